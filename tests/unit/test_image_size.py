"""--img_size, --test_resize and random boxes in whole runs: shapes, memories, resumes, what is refused."""

import dataclasses

import pytest
import torch

from engram.datasets.augment import Augment, Standardised, as_asked
from engram.memorization import proxies
from engram.models.build import build_method
from engram.utils.config.cli import parse
from engram.utils.config.stream_options import StreamOptions
from engram.utils.errors import UserError
from engram.utils.training.trainer import Trainer

SMALL = ["--dataset", "seq-digits", "--backbone", "cnn", "--channels", "2,2", "--n_epochs", "1"]
BOXES = ["--img_size", "16", "--augment", "random_resized_crop", "--crop_scale", "0.3,1"]


def built(*flags: str):
    config = parse(["--model", "er", "--buffer_size", "20", *SMALL, *flags]).config
    return config, build_method(config, torch.device("cpu"), proxies.create)


def test_the_network_sees_the_asked_size_and_memories_the_stored_one(tmp_path):
    config, method = built(*BOXES, "--debug_mode", "--n_tasks", "2")
    stream = method.benchmark
    assert stream.input_shape == (1, 16, 16) and stream.stored_shape == (1, 8, 8)
    assert "images of 8x8 are seen at 16x16" in stream.notes
    batch = next(stream.batches(stream.tasks[0], 0, 10))
    assert batch.x.shape == (10, 1, 16, 16) and batch.x_raw.shape == (10, 1, 8, 8)
    Trainer(config, method, tmp_path, quiet=True).run()
    assert len(method.buffer) == 20 and method.buffer.fields["x"].shape[1:] == (1, 8, 8)


def test_a_block_resumed_in_its_middle_has_the_same_boxes():
    stream = built(*BOXES)[1].benchmark
    whole = [batch.x for batch in stream.batches(stream.tasks[0], 1, 10)]
    resumed = [batch.x for batch in stream.batches(stream.tasks[0], 1, 10, start=5)]
    assert len(whole) > 10 and all(map(torch.equal, whole[5:], resumed))
    assert not torch.equal(whole[0], next(stream.batches(stream.tasks[0], 2, 10)).x)


def test_a_library_network_is_built_for_the_asked_size():
    flags = ["--model", "ncm", "--dataset", "seq-digits", "--backbone", "torchvision:shufflenet_v2_x0_5"]
    for sizes, side in ((["--img_size", "40"], 40), (["--img_size", "40", "--input_size", "32"], 32)):
        config = parse([*flags, *sizes]).config
        net = build_method(config, torch.device("cpu"), proxies.create).net
        assert net.side == side and any("brought to" in note for note in net.notes) == (side == 32)


WRONG = {
    "smaller": (["--img_size", "16", "--test_resize", "12"], "the centre of --img_size is cut from it"),
    "alone": (["--test_resize", "12"], "give an --img_size of at most that"),
    "falling": (["--crop_scale", "0.9,0.2"], "two numbers that do not fall"),
    "one": (["--crop_scale", "0.9"], "two numbers that do not fall"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_has_no_meaning_is_refused(case):
    flags, message = WRONG[case]
    with pytest.raises(UserError, match=message):
        parse(["--model", "sgd", *SMALL, *flags])


SIZED = {"--img_size": {"img_size": 16}, "--augment random_resized_crop": {"augment": "random_resized_crop"}}


@pytest.mark.parametrize("flag", SIZED)
def test_what_is_no_image_has_no_size(flag):
    config = dataclasses.replace(
        parse(["--model", "sgd", *SMALL]).config, stream=StreamOptions(**SIZED[flag])
    )
    with pytest.raises(UserError, match=f"{flag}: samples are vectors of 5 numbers, not images"):
        as_asked(Augment(), config, (5,))
    with pytest.raises(UserError, match=f"{flag}: for images with pixels 0 to 255"):
        as_asked(Standardised(), config, (1, 8, 8))


def test_boxes_of_images_that_are_no_squares_need_a_size():
    config = parse(["--model", "sgd", *SMALL, "--augment", "random_resized_crop"]).config
    assert as_asked(Augment(), config, (1, 8, 8)).side == 8
    with pytest.raises(UserError, match="these are not: give --img_size"):
        as_asked(Augment(), config, (1, 8, 9))


@pytest.mark.parametrize(("flags", "padding"), [([], 4), (["--img_size", "224"], 28)])
def test_the_benchmarks_own_crop_grows_with_the_images(flags, padding):
    config = parse(["--model", "sgd", *SMALL, *flags]).config
    assert as_asked(Augment(crop_padding=4), config, (3, 32, 32)).crop_padding == padding
