"""Data sets by a function of the user's: PIL images, tensors, dicts, and what is refused in one line."""

import numpy as np
import pytest
import torch
from PIL import Image

from engram.models.build import build_benchmark
from engram.utils.config.config import resolve
from engram.utils.errors import UserError

CODE = """
import numpy as np, torch
from PIL import Image
rgb = np.random.default_rng(0).integers(0, 256, (24, 8, 6, 3)).astype(np.uint8)
y = np.arange(24) % 4
pil = lambda: [[(Image.fromarray(x), int(c)) for x, c in zip(rgb, y)]] * 2
chw = torch.from_numpy(rgb).permute(0, 3, 1, 2) / 255
tensors = lambda: ([(x, torch.tensor(c)) for x, c in zip(chw, y)],) * 2
rows = [{"image": Image.fromarray(x), "label": int(c)} for x, c in zip(rgb, y)]
hugging_face = lambda: {"train": rows, "test": rows}
features = lambda: ([(np.arange(5) * 0.3 + c, str(c)) for c in y],) * 2
one = lambda: (pil()[0],)
sizes = lambda: ([(np.zeros((8, i + 6)), 0) for i in range(2)],) * 2
stream = lambda: (iter([]), iter([]))
no_label = lambda: ([{"image": rgb[0], "name": 1}],) * 2
splits = lambda: {"train": pil()[0], "validation": pil()[0]}
number = 3
"""
RGB = np.random.default_rng(0).integers(0, 256, (24, 8, 6, 3)).astype(np.uint8)


@pytest.fixture
def stream_of(tmp_path):
    (tmp_path / "own.py").write_text(CODE)

    def build(name: str):
        flags = {"model": "sgd", "dataset": "seq-dataset", "n_tasks": 2, "device": "cpu"}
        flags["dataset_from"] = name if ":" in name else f"{tmp_path}/own.py:{name}"
        return build_benchmark(resolve([("test", flags)]), torch.device("cpu"))

    return build


@pytest.mark.parametrize("name", ["pil", "tensors", "hugging_face"])
def test_images_of_any_kind_become_the_same_bytes(stream_of, name):
    stream = stream_of(name)
    assert stream.input_shape == (3, 8, 6)
    for task in stream.tasks:
        for samples in (stream.train(task), stream.test_of(task)):
            assert torch.equal(samples.x_raw, torch.from_numpy(RGB).permute(0, 3, 1, 2)[samples.index])
            assert samples.y.tolist() == (samples.index % 4).tolist()


def test_features_and_grey_images(stream_of, tmp_path):
    stream = stream_of("features")
    assert stream.input_shape == (5,) and stream.class_names == ["0", "1", "2", "3"]
    assert stream.train(stream.tasks[0]).x_raw.dtype == torch.float32
    grey = Image.fromarray(RGB[0, :, :, 0])
    (tmp_path / "grey.py").write_text(f"from {__name__} import grey_images as load\n")
    assert grey.mode == "L" and stream_of(f"{tmp_path}/grey.py:load").input_shape == (1, 8, 6)


def grey_images():
    return ([(Image.fromarray(x[:, :, 0]), i % 2) for i, x in enumerate(RGB)],) * 2


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("one", "expected a training and a test set, not tuple"),
        ("sizes", r"samples have shapes \(8, 6\), \(8, 7\); resize"),
        ("stream", "has no length and no order"),
        ("no_label", "has image, name; expected one of label"),
        ("splits", "returned train, validation; expected train and test"),
        ("number", "has no function number"),
        ("nowhere.at_all:load", "cannot be imported"),
        (":load", "expected module:function"),
    ],
)
def test_what_is_no_data_set_is_refused_in_one_line(stream_of, name, message):
    with pytest.raises(UserError, match=message) as error:
        stream_of(name)
    assert "\n" not in str(error.value)
