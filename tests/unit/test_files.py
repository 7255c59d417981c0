"""Files that are whole or not there, whoever else writes them."""

import os

import pytest

from engram.utils import files


def test_two_who_write_one_file_do_not_disturb_each_other(tmp_path, monkeypatch):
    path, real = tmp_path / "config.yaml", files.put_in_place

    def another_comes_first(temporary, target):
        monkeypatch.setattr(files, "put_in_place", real)
        files.write_text("the other's", path)
        assert path.read_text() == "the other's"
        real(temporary, target)

    monkeypatch.setattr(files, "put_in_place", another_comes_first)
    files.write_text("mine", path)
    assert path.read_text() == "mine" and os.listdir(tmp_path) == ["config.yaml"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "config.yaml"
    files.write_text("old", path)

    def full(number):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        files.write_text("new", path)
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["config.yaml"]
