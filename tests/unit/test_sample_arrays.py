"""The first images of each class of data sets, as arrays."""

import numpy as np
import torch

from engram.datasets.sources import Source
from engram.scripts.interop import sample_arrays


def test_the_first_images_of_each_class_are_written_in_their_order(monkeypatch, tmp_path, capsys):
    x = torch.arange(6, dtype=torch.uint8).view(6, 1, 1, 1)
    y = torch.tensor([1, 0, 1, 0, 1, 0])
    source = Source("mnist", x, y, x + 10, y, ("zero", "one"))
    monkeypatch.setitem(sample_arrays.READERS, "mnist", lambda folder: source)
    file = tmp_path / "sample.npz"
    flags = ["--classes", "0,1", "--train"]
    assert sample_arrays.main([str(file), "mnist", *flags, "2", "--test", "1"]) == 0
    with np.load(file) as arrays:
        assert arrays["train_x"].flatten().tolist() == [0, 1, 2, 3] and arrays["train_x"].dtype == np.uint8
        assert arrays["train_y"].tolist() == [1, 0, 1, 0]
        assert (arrays["test_x"].flatten().tolist(), arrays["test_y"].tolist()) == ([10, 11], [1, 0])
    assert (
        sample_arrays.main([str(file), "mnist", "mnist", "--classes", "1", "--train", "1", "--test", "1"])
        == 0
    )
    with np.load(file) as arrays:  # the labels of the second data set follow
        assert (arrays["train_x"].flatten().tolist(), arrays["train_y"].tolist()) == ([0, 0], [1, 3])
    assert sample_arrays.main([str(file), "mnist", *flags, "4"]) == 2
    assert "4 images of a class: there are 3 of one" in capsys.readouterr().err
    assert sample_arrays.main([str(file), "mnist", "--classes", "one"]) == 2
    assert "--classes one: expected labels" in capsys.readouterr().err
