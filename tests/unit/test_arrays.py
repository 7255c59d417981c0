"""A user's own arrays: what is recognised, what is learned from it, and what is refused in one line."""

import numpy as np
import pytest
import torch

from engram.models.build import build_benchmark
from engram.utils.config.config import resolve
from engram.utils.errors import UserError
from engram.utils.training.trainer import Trainer
from tests.conftest import built

N_CLASSES = 6
DRAWS = np.random.default_rng(0)
PROTOTYPES = DRAWS.integers(0, 256, (N_CLASSES, 3, 8, 8))


def images(n: int, dtype=np.uint8) -> tuple[np.ndarray, np.ndarray]:
    """(n, 3, 8, 8) noisy prototypes of six classes, and their labels."""
    y = np.arange(n) % N_CLASSES
    noise = np.random.default_rng(n).integers(-20, 21, (n, 3, 8, 8))
    return np.clip(PROTOTYPES[y] + noise, 0, 255).astype(dtype), y


def features(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(n, 20) separable features on wildly different scales, and their labels."""
    y = np.arange(n) % N_CLASSES
    x = np.eye(N_CLASSES, 20)[y] * 8 + np.random.default_rng(seed).normal(size=(n, 20))
    return x * 10.0 ** np.linspace(-3, 4, 20) + 1e3, y


def saved(folder, x=None, y=None, **changed) -> str:
    """A file with these training samples, the first of them as test samples."""
    x, y = images(48) if x is None else (x, y)
    content = {"train_x": x, "train_y": y, "test_x": x[:12], "test_y": y[:12], **changed}
    np.savez(folder / "own.npz", **{name: value for name, value in content.items() if value is not None})
    return str(folder / "own.npz")


def config_of(arrays: str, model: str = "sgd", **flags):
    base = {
        "dataset": "seq-arrays",
        "device": "cpu",
        "n_tasks": 3,
        "hidden_sizes": (16,),
        "disable_log": True,
    }
    base |= {"arrays": arrays, "model": model, **flags}
    if base.get("backbone", "mlp") != "mlp":
        del base["hidden_sizes"]
    return resolve([("test", base)])


def stream_of(arrays: str, **flags):
    return build_benchmark(config_of(arrays, **flags), torch.device("cpu"))


def test_separable_features_are_learned(tmp_path):
    x, y = features(600, 1)
    test_x, test_y = features(120, 2)
    path = saved(tmp_path, x, y, test_x=test_x, test_y=test_y)
    config = config_of(path, "er", buffer_size=200, hidden_sizes=(100, 100))
    results = Trainer(config, built(config), tmp_path, quiet=True).run()
    assert results.R["class_il"][-1].mean() > 0.95


def test_features_are_standardised_once_by_the_training_set(tmp_path):
    x, y = features(60, 1)
    x[:, 3] = 7.0  # a feature that does not vary
    stream = stream_of(saved(tmp_path, x, y, test_x=x[:12] + 1, test_y=y[:12]))
    std = np.where(np.arange(20) == 3, 1, x.std(0))
    assert stream.input_shape == (20,) and stream.notes[-1].startswith("float64, standardised once")
    for task in stream.tasks:
        for samples, raw in ((stream.train(task), x), (stream.test_of(task), x[:12] + 1)):
            wanted = (raw[samples.index] - x.mean(0)) / std
            before = samples.x_raw.clone()
            for _ in range(2):  # normalised anew at every pass
                assert np.allclose(stream.augment.normalise(samples.x_raw), wanted, atol=1e-4)
            assert torch.equal(samples.x_raw, before)


FORMS = {
    "bytes": lambda x: x,
    "floats of bytes": lambda x: x.astype(np.float32),
    "wide integers": lambda x: x.astype(np.int64),
    "floats in [0, 1]": lambda x: x / 255,
    "single floats in [0, 1]": lambda x: (x / 255).astype(np.float32),
    "channels last": lambda x: x.transpose(0, 2, 3, 1),
    "floats, channels last": lambda x: x.transpose(0, 2, 3, 1) / np.float32(255),
}


@pytest.mark.parametrize("form", FORMS)
def test_images_in_any_form_become_the_same_bytes(tmp_path, form):
    x, y = images(48)
    stream = stream_of(saved(tmp_path, FORMS[form](x), y))
    assert stream.sample_bytes == 192 and stream.input_shape == (3, 8, 8)
    for task in stream.tasks:
        for samples in (stream.train(task), stream.test_of(task)):
            assert torch.equal(samples.x_raw, torch.from_numpy(x)[samples.index])
            assert samples.y.tolist() == y[samples.index].tolist()
    last = "last" in form
    assert any(("NHWC" if last else "NCHW") in note for note in stream.notes)


STANDARDISED = {
    "16 bits": lambda x: x.astype(np.uint16) * 257,
    "signed": lambda x: x.astype(np.int16) - 128,
    "few levels": lambda x: x // 16,
    "standardised before": lambda x: x / 127.5 - 1,
    "half floats": lambda x: (x / 100).astype(np.float16),
}


@pytest.mark.parametrize("form", STANDARDISED)
def test_other_images_are_standardised_channel_by_channel(tmp_path, form):
    x, y = images(48)
    changed = STANDARDISED[form](x)
    stream = stream_of(saved(tmp_path, changed, y))
    whole = changed.astype(np.float64)
    mean, std = (f(whole, axis=(0, 2, 3)).reshape(3, 1, 1) for f in (np.mean, np.std))
    samples = stream.train(stream.tasks[0])
    wanted = (whole[samples.index] - mean) / std
    assert np.allclose(stream.augment.normalise(samples.x_raw), wanted, atol=1e-3)


def test_grey_images_and_a_folder_of_files(tmp_path):
    x, y = images(48)
    for name, array in {"train_x": x[:, 0], "train_y": y, "test_x": x[:12, 0], "test_y": y[:12]}.items():
        np.save(tmp_path / f"{name}.npy", array)
    stream = stream_of(str(tmp_path))
    assert stream.input_shape == (1, 8, 8) and "grey images, 8x8" in stream.notes
    told = stream_of(saved(tmp_path, x.transpose(0, 3, 1, 2)[:, :4], y), array_layout="nhwc")
    assert told.input_shape == (8, 4, 3)


def test_tasks_domains_and_text_labels(tmp_path):
    x, y = images(48)
    names = np.array(["f", "e", "d", "c", "b", "a"])[y]
    task = np.array([2, 0, 1])[y // 2]  # classes 2, 3 first, then 4, 5, then 0, 1
    path = saved(tmp_path, x, names, train_task=task, test_task=task[:12])
    stream = stream_of(path)
    assert stream.scenario == "class-il" and [t.classes for t in stream.tasks] == [(0, 1), (2, 3), (4, 5)]
    assert stream.class_names == ["c", "d", "a", "b", "e", "f"]
    for t in stream.tasks:
        for samples, all_tasks in ((stream.train(t), task), (stream.test_of(t), task[:12])):
            assert samples.index.tolist() == np.flatnonzero(all_tasks == t.id).tolist()
            assert [stream.class_names[label] for label in samples.y] == names[samples.index].tolist()
    assert stream_of(path, multi_head=True).class_masks.sum(1).tolist() == [2, 2, 2]
    assert stream_of(path, scenario="domain-il").n_classes == 2
    held = stream_of(path, validation=25.0)
    assert [len(held.test_of(t).y) for t in held.tasks] == [4, 4, 4]
    domain = np.repeat(["day", "night"], 24)
    path = saved(tmp_path, x, y, train_domain=domain, test_domain=domain[18:30])
    stream = stream_of(path, n_tasks=2)
    assert stream.scenario == "domain-il" and [len(t.test_index) for t in stream.tasks] == [6, 6]
    assert all(t.classes == tuple(range(6)) for t in stream.tasks)


REFUSED = {
    "NaN": (lambda x, y: {"train_x": np.where(x > 200, np.nan, x), "test_x": x[:12] / 2}, "train_x: holds"),
    "infinity": (lambda x, y: {"train_x": x * 1.0, "test_x": x[:12] + np.inf}, "test_x: holds NaN"),
    "complex": (lambda x, y: {"train_x": x + 0j}, "holds complex128; expected integers or floats"),
    "objects": (lambda x, y: {"train_x": x.astype(object)}, "not readable as NumPy arrays"),
    "one-hot": (lambda x, y: {"train_y": np.eye(6)[y]}, r"shape \(48, 6\).*argmax\(1\) of one-hot"),
    "column": (lambda x, y: {"train_y": y[:, None]}, r"train_y\[:, 0\]"),
    "float labels": (lambda x, y: {"train_y": y * 1.0}, "labels of type float64; expected integers or text"),
    "short labels": (lambda x, y: {"train_y": y[:-1]}, "expected one label for each of the 48 samples"),
    "unknown class": (lambda x, y: {"test_y": y[:12] + 1}, "test_y has 6, which no training sample"),
    "text and numbers": (lambda x, y: {"test_y": y[:12].astype(str)}, "text in one split and numbers in"),
    "two types": (lambda x, y: {"test_x": x[:12] / 255}, "train_x is uint8 and test_x float64; both must"),
    "two widths": (lambda x, y: {"test_x": x[:12].astype(np.int16)}, "train_x is uint8 and test_x int16"),
    "two shapes": (lambda x, y: {"test_x": x[:12, :, :4]}, r"different shapes: \(3, 8, 8\) and \(3, 4, 8\)"),
    "ambiguous": (lambda x, y: {"train_x": x[..., :3]}, "channels may be the 3 or the 3; say which"),
    "no channels": (lambda x, y: {"train_x": x.reshape(48, 12, 2, 8)}, "channels may be the 12 or the 8"),
    "one axis": (lambda x, y: {"train_x": y}, r"shape \(48,\); expected vectors \(N, D\)"),
    "missing": (lambda x, y: {"test_y": None}, "test_y missing; it holds test_x, train_x, train_y"),
    "one group": (lambda x, y: {"train_task": y}, "test_task is missing"),
    "other tasks": (lambda x, y: {"train_task": y // 2, "test_task": y[:12] // 3}, "do not have the same"),
    "other number": (lambda x, y: {"train_task": y, "test_task": y[:12]}, "--n_tasks 3: .* has 6 tasks"),
    "no test": (lambda x, y: {"test_x": x[:2], "test_y": y[:2]}, "task 1 has no test sample"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_right_is_refused_in_one_line(tmp_path, case):
    change, message = REFUSED[case]
    path = saved(tmp_path, *images(48), **change(*images(48)))
    with pytest.raises(UserError, match=message) as error:
        stream_of(path)
    assert "\n" not in str(error.value)


def test_a_file_that_is_no_arrays_is_refused(tmp_path):
    (tmp_path / "text.npz").write_text("no arrays")
    np.save(tmp_path / "one.npy", np.zeros(3))
    for path, message in (("text.npz", "not readable"), ("one.npy", "one array"), ("none.npz", "no such")):
        with pytest.raises(UserError, match=message):
            stream_of(str(tmp_path / path))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"backbone": "cnn"}, "--backbone cnn takes images, and samples are vectors of 20: use mlp"),
        ({"backbone": "resnet18"}, "--backbone resnet18 takes images"),
        ({"model": "rainbow_memory", "buffer_size": 9}, "rainbow_memory.* needs images; .* vectors of 20"),
        ({"model": "gdumb", "buffer_size": 9}, "--cutmix_prob 0.5 needs images"),
        ({"model": "mas", "mas_data": "."}, r"--mas_data \. needs images"),
        ({"pixel_mean": (0.5,)}, "--pixel_mean.*these floats are standardised"),
        ({"images": "disk"}, "--images disk: for images with pixels 0 to 255"),
    ],
)
def test_what_takes_no_vectors_says_so_at_the_start(tmp_path, flags, message):
    with pytest.raises(UserError, match=message):
        built(config_of(saved(tmp_path, *features(60, 1)), **flags))
