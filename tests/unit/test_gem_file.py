"""GEM files: what is read is what was written, and every malformed file is one clear error."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from engram.utils.errors import DataError, UserError
from tests.conftest import ROOT
from tests.unit.test_sources import MNIST_DIR, mnist_folder
from tests.unit.test_streams import build

SPEC = importlib.util.spec_from_file_location("write_gem_file", ROOT / "scripts/interop/write_gem_file.py")
SCRIPT = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(SCRIPT)
needs_mnist = pytest.mark.skipif(MNIST_DIR is None, reason="the real MNIST is not here")


def task(n: int, width: int = 784, seed: int = 0, meta=None) -> list:
    draws = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 256, (n, width), generator=draws) / 255
    return [meta, x, torch.randint(0, 10, (n,), generator=draws)]


def content(sizes=((8, 4), (3, 6), (5, 5))) -> list:
    """Two splits of tasks of unequal size."""
    return [[task(size[k], seed=10 * i + k) for i, size in enumerate(sizes)] for k in (0, 1)]


def saved(folder: Path, data, **options) -> Path:
    path = folder / "data.pt"
    torch.save(data, path, **options)
    return path


def read(path: Path, **flags):
    return build("gem-file", path.parent, gem_file=str(path), **{"n_tasks": 3, **flags})[0]


# What is read


@pytest.mark.parametrize("zipped", [True, False])
def test_tasks_of_unequal_size_are_read_as_they_are(tmp_path, zipped):
    data = content()
    data[0][2][2][0] = 6
    stream = read(saved(tmp_path, data, _use_new_zipfile_serialization=zipped))
    assert stream.scenario == "domain-il" and stream.input_shape == (1, 28, 28)
    assert stream.n_classes == 1 + max(int(y.max()) for split in data for _, _, y in split)
    assert [len(t.train_index) for t in stream.tasks] == [8, 3, 5] and stream.test_ends.tolist() == [
        4,
        10,
        15,
    ]
    for t, (_, x, y), (_, test_x, test_y) in zip(stream.tasks, *data, strict=True):
        for found, pixels, labels in ((stream.train(t), x, y), (stream.test_of(t), test_x, test_y)):
            assert found.x_raw.dtype == torch.uint8 and found.y.tolist() == labels.tolist()
            assert torch.equal(found.x_raw.flatten(1), (255 * pixels).round().to(torch.uint8))
            assert torch.allclose(stream.augment.normalise(found.x_raw).flatten(1), pixels, atol=1e-6)
    index = torch.cat([stream.train(t).index for t in stream.tasks])
    assert index.tolist() == list(range(16))


@pytest.mark.parametrize("meta", [None, 12.5, "a permutation", [3, 1], {"angle": torch.tensor(3.0)}])
def test_meta_may_be_anything_that_is_safe(tmp_path, meta):
    assert len(read(saved(tmp_path, [[task(4, meta=meta)], [task(4)]]), n_tasks=1).tasks) == 1


def test_labels_may_be_any_integers_and_images_have_three_channels(tmp_path):
    tasks = [[0, torch.rand(4, 3072).mul(255).round().div(255).double(), torch.tensor([0, 1, 2, 4]).to(kind)]
             for kind in (torch.uint8, torch.int32)]  # fmt: skip
    stream = read(saved(tmp_path, [tasks, tasks]), n_tasks=2)
    assert stream.input_shape == (3, 32, 32) and stream.n_classes == 5
    assert stream.train(stream.tasks[1]).y.tolist() == [0, 1, 2, 4]


def test_samples_per_task_draws_from_each_task(tmp_path):
    path = saved(tmp_path, content())
    stream, again, other = (read(path, samples_per_task=4, seed=s) for s in (1, 1, 2))
    assert [len(t.train_index) for t in stream.tasks] == [4, 3, 4] and stream.test_ends[-1] == 15
    whole, drawn = read(path), []
    for s in (stream, again, other):
        images = [s.train(t).x_raw for t in s.tasks]
        drawn.append(torch.cat(images))
        for t, own in zip(whole.tasks, images, strict=True):
            rows = {bytes(x.numpy()) for x in whole.train(t).x_raw}
            assert {bytes(x.numpy()) for x in own} <= rows
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


def test_the_first_tasks_are_taken_and_it_is_said(tmp_path, capsys):
    stream = read(saved(tmp_path, content()), n_tasks=2)
    assert len(stream.tasks) == 2 and "the first 2 of the 3 tasks" in capsys.readouterr().err


def test_validation_takes_its_share_of_every_task(tmp_path):
    path = saved(tmp_path, content(((40, 4), (20, 4), (60, 4))))
    whole, stream = read(path), read(path, validation=20.0)
    for t, all_of in zip(stream.tasks, whole.tasks, strict=True):
        kept, held = stream.train(t), stream.test_of(t)
        assert len(held.y) == len(all_of.train_index) // 5
        shown = sorted(bytes(x.numpy()) for x in torch.cat([kept.x_raw, held.x_raw]))
        assert shown == sorted(bytes(x.numpy()) for x in whole.train(all_of).x_raw)
    with pytest.raises(UserError, match="--validation 1"):
        read(path, validation=1.0)


def test_multi_head_gives_each_task_a_head(tmp_path):
    stream = read(saved(tmp_path, content()), multi_head=True)
    assert stream.scenario == "task-il" and bool(stream.class_masks.all())


# What is refused


def change(split: int, i: int, place: int, value) -> list:
    data = content()
    data[split][i][place] = value(data[split][i][place])
    return data


def set_first(value):
    return lambda tensor: torch.cat([torch.full_like(tensor[:1], value), tensor[1:]])


MALFORMED = {
    "not a list": ({"train": 1}, r"expected \[d_tr, d_te\]"),
    "three splits": ([[1], [2], [3]], r"expected \[d_tr, d_te\]"),
    "no tasks": ([[], []], r"expected \[d_tr, d_te\]"),
    "other number": ([content()[0], content()[1][:2]], "3 training tasks but 2 test tasks"),
    "two fields": ([content()[0], [[1, 2]] * 3], r"test task 0: expected \[meta, X, y\]"),
    "no tensor": (change(1, 2, 1, lambda x: x.tolist()), "test task 2: X and y must be dense tensors"),
    "sparse": (change(0, 0, 1, lambda x: x.to_sparse()), "training task 0: X and y must be dense"),
    "three dimensions": (change(0, 1, 1, lambda x: x.view(-1, 28, 28)), r"training task 1: X \(3, 28, 28\)"),
    "unequal lengths": (change(0, 1, 2, lambda y: y[:-1]), r"X \(3, 784\) and y \(2,\); expected \(N, pix"),
    "empty": (change(1, 1, 1, lambda x: x[:0]), r"test task 1: X \(0, 784\)"),
    "bytes": (change(0, 0, 1, lambda x: (255 * x).byte()), "X is torch.uint8; expected floats in"),
    "width": (change(1, 1, 1, lambda x: x[:, :400]), "rows of 784 and of 400 pixels; all tasks must"),
    "no square": ([[task(4, 783)] * 3] * 2, "rows of 783 pixels are no square image"),
    "negative label": (change(0, 2, 2, set_first(-1)), "training task 2: a label -1; expected integers"),
    "float label": (change(1, 0, 2, lambda y: y + 0.5), "test task 0: labels of type torch.float32; exp"),
    "one-hot": (change(0, 0, 2, lambda y: torch.eye(10)[y]), r"y \(8, 10\); expected"),
    "bool": (change(0, 0, 2, lambda y: y > 4), "labels of type torch.bool"),
    "huge label": (change(0, 0, 2, set_first(10**12)), "label 1000000000000 is out of range"),
    "above 1": (change(0, 0, 1, lambda x: 255 * x), r"training task 0: pixels from 0 to 255; expected"),
    "below 0": (change(1, 1, 1, lambda x: x - 1), r"test task 1: pixels from -1 to 0; expected \[0, 1\]"),
    "NaN": (change(0, 1, 1, set_first(float("nan"))), "training task 1: pixels from nan"),
    "infinite": (change(0, 1, 1, set_first(float("inf"))), "training task 1: pixels from 0 to inf"),
    "not bytes": (change(0, 1, 1, lambda x: x**1.1), "training task 1: pixels are not multiples of 1/255"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Validating sparse tensor")
@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_content_is_refused(tmp_path, case):
    data, message = MALFORMED[case]
    with pytest.raises(DataError, match=message) as caught:
        read(saved(tmp_path, data))
    assert "data.pt" in str(caught.value) and "\n" not in str(caught.value)


def test_class_order_is_refused(tmp_path):
    with pytest.raises(UserError, match="--class_order: not for gem-file"):
        read(saved(tmp_path, content()), class_order=(0, 1))


def test_more_tasks_than_the_file_holds(tmp_path):
    with pytest.raises(DataError, match=r"--n_tasks 20: .* holds 3 tasks; give --n_tasks 3"):
        read(saved(tmp_path, content()), n_tasks=20)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.9, 0.9999])
def test_a_truncated_file_is_refused(tmp_path, zipped, share):
    path = saved(tmp_path, content(), _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(DataError, match=r"data\.pt: damaged, or holds more than tensors.*write it again"):
        read(path)


def test_code_in_a_file_is_not_run(tmp_path):
    class Harm:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "harmed",))

    with pytest.raises(DataError, match="holds more than tensors, lists"):
        read(saved(tmp_path, [[task(3, meta=Harm())], [task(3)]]))
    assert not (tmp_path / "harmed").exists()


def test_no_file(tmp_path):
    with pytest.raises(DataError, match="--gem_file is missing"):
        build("gem-file", tmp_path)
    with pytest.raises(DataError, match=r"--gem_file .*nowhere\.pt: no such file"):
        read(tmp_path / "nowhere.pt")


# Written and read back


def write(data_dir: Path, name: str, *flags: str) -> Path:
    out = data_dir / f"{name}.pt"
    assert SCRIPT.main([name, str(out), "--data_dir", str(data_dir), *flags]) == 0
    return out


def check_round_trip(ours, theirs) -> None:
    for own, other in zip(ours.tasks, theirs.tasks, strict=True):
        for a, b in ((ours.train(own), theirs.train(other)), (ours.test_of(own), theirs.test_of(other))):
            names = [[s.class_names[y] for y in samples.y] for s, samples in ((ours, a), (theirs, b))]
            assert torch.equal(a.x_raw, b.x_raw) and names[0] == names[1]
        shown = zip(ours.batches(own, 0, 2), theirs.batches(other, 0, 2), strict=True)
        assert all(torch.equal(a.x, b.x) for a, b in shown), "in the same order"


@pytest.mark.parametrize(
    "name", ["mnist-rotations", "mnist-permutations", "mnist-manypermutations", "seq-mnist"]
)
def test_a_written_benchmark_is_read_back_image_by_image(tmp_path, capsys, name):
    mnist_folder(tmp_path)
    few = [] if name == "seq-mnist" else ["--samples_per_task", "5"]
    path = write(tmp_path, name, "--n_tasks", "3", "--seed", "7", *few)
    assert "3 tasks, " in capsys.readouterr().out
    flags = {"samples_per_task": 5} if few else {}
    ours = build(name, tmp_path, n_tasks=3, seed=7, **flags)[0]
    check_round_trip(ours, read(path, seed=7))
    metas = [entry[0] for entry in torch.load(path, weights_only=True)[0]]
    assert metas == next(iter(ours.transforms.values()), [0, 1, 2])


@needs_mnist
def test_the_real_rotations_round_trip(tmp_path):
    (tmp_path / "MNIST").symlink_to(MNIST_DIR.resolve() / "MNIST")
    path = write(tmp_path, "mnist-rotations", "--n_tasks", "2")
    ours, theirs = build("mnist-rotations", tmp_path, n_tasks=2)[0], read(path, n_tasks=2)
    check_round_trip(ours, theirs)
    assert np.diff(theirs.test_ends).tolist() == [10000] and len(theirs.train(theirs.tasks[0]).y) == 1000


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["mnist-rotation", "x.pt"], "did you mean mnist-rotations"),
        (["mnist-rotations", "x.pt", "--n_tasks", "0"], "--n_tasks 0: must be >= 1"),
        (["seq-mnist", "x.pt", "--samples_per_task", "5"], "unknown flag --samples_per_task"),
        (["seq-digits", f"{__file__}/x.pt"], "test_gem_file.py is no folder"),
    ],
)
def test_the_script_says_what_is_wrong(tmp_path, monkeypatch, capsys, argv, message):
    monkeypatch.chdir(tmp_path)
    assert SCRIPT.main(argv) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("multi_head", [False, True])
def test_disjoint_classes_are_the_tasks_own(tmp_path, multi_head):
    """As in GEM's split sets: three tasks of two classes each, in any order, are no domains of six."""
    labels = [(4, 1), (0, 5), (2, 3)]
    split = []
    for i, pair in enumerate(labels):
        _, x, _ = task(8, seed=i)
        split.append([None, x, torch.tensor(pair).repeat(4)])
    stream = read(saved(tmp_path, [split, split]), multi_head=multi_head)
    assert stream.scenario == ("task-il" if multi_head else "class-il")
    assert [t.classes for t in stream.tasks] == [(0, 1), (2, 3), (4, 5)]
    assert stream.class_masks.sum(1).tolist() == [2, 2, 2] and stream.n_classes == 6
    for t, pair in zip(stream.tasks, labels, strict=True):
        named = [int(stream.class_names[y]) for y in stream.test_of(t).y]
        assert named == list(pair) * 4
    assert [t.classes for t in read(tmp_path / "data.pt", scenario="domain-il").tasks] == [(0, 1)] * 3
