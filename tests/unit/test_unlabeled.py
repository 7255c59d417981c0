"""Folders of unlabeled images: shapes, colours, order, and what is wrong with them."""

import os

import numpy as np
import pytest
import torch
from PIL import Image

from engram.datasets import unlabeled
from engram.utils.errors import DataError


def save(path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path)


def test_files_are_found_below_the_folder_in_order(tmp_path):
    for name in ("b/2.PNG", "b/1.png", "a/deep/9.jpg", "c.jpeg"):
        save(tmp_path / name, np.zeros((2, 2, 3)))
    (tmp_path / "notes.txt").write_text("no image")
    found = [path.relative_to(tmp_path).as_posix() for path in unlabeled.files(tmp_path)]
    assert found == ["a/deep/9.jpg", "b/1.png", "b/2.PNG", "c.jpeg"]


def test_links_in_a_circle_and_locked_folders(tmp_path, monkeypatch, capsys):
    save(tmp_path / "a/1.png", np.zeros((2, 2, 3)))
    (tmp_path / "a/up").symlink_to("..")
    (tmp_path / "a/self").symlink_to("self")
    assert unlabeled.files(tmp_path) == [tmp_path / "a/1.png"]
    skipped = capsys.readouterr().err.strip().removeprefix(f"{tmp_path}: 2 files skipped: ")
    assert set(skipped.split(", ")) == {"1 subfolder", "1 link in a circle"}
    (tmp_path / "a/9.png").symlink_to("9.png")
    with pytest.raises(DataError, match=r"a/9\.png: .*Too many levels"):
        unlabeled.files(tmp_path)
    monkeypatch.setattr(os, "scandir", locked)
    with pytest.raises(DataError, match="the folder cannot be read"):
        unlabeled.files(tmp_path)


def locked(path):
    raise PermissionError(13, "Permission denied")


def test_images_of_the_right_size_keep_their_pixels(tmp_path):
    colour = np.random.RandomState(0).randint(0, 256, (3, 5, 4, 3))
    for i, pixels in enumerate(colour):
        save(tmp_path / f"{i}.png", pixels)
    found = unlabeled.read(unlabeled.files(tmp_path), (3, 5, 4))
    assert found.dtype == torch.uint8
    assert np.array_equal(found.numpy(), colour.transpose(0, 3, 1, 2))


def test_grey_and_colour_are_converted_and_sizes_brought_to_one(tmp_path):
    save(tmp_path / "1.png", np.full((10, 10), 7))
    save(tmp_path / "2.png", np.full((4, 20, 3), 9))
    assert unlabeled.read(unlabeled.files(tmp_path), (1, 6, 8)).shape == (2, 1, 6, 8)
    colour = unlabeled.read(unlabeled.files(tmp_path), (3, 6, 8))
    assert colour.shape == (2, 3, 6, 8) and colour[0].unique().tolist() == [7]


def test_the_centre_is_kept(tmp_path):
    pixels = np.zeros((4, 12))
    pixels[:, 4:8] = 200
    save(tmp_path / "1.png", pixels)
    assert unlabeled.read(unlabeled.files(tmp_path), (1, 4, 4)).unique().tolist() == [200]


def test_what_cannot_be_read_is_named(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        unlabeled.files(tmp_path / "missing")
    with pytest.raises(DataError, match="no image in it or below it"):
        unlabeled.files(tmp_path)
    (tmp_path / "broken.png").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"broken\.png: not a readable image"):
        unlabeled.read(unlabeled.files(tmp_path), (1, 4, 4))
