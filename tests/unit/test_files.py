"""Files that are whole or not there, whoever else writes them."""

import os

import numpy as np
import pytest

from engram.memorization.runs import finished_runs
from engram.scripts import tune
from engram.scripts.analysis import table
from engram.scripts.interop import write_gem_file
from engram.utils import figure_files, files, scores
from engram.utils.errors import DiskError, UserError
from engram.utils.runs import matrix_csv, run_record


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


def figure(path):
    drawn = figure_files.canvas(1, 1)
    drawn.add_subplot()
    figure_files.save(drawn, path)


def gem_file(path):
    program = ["seq-digits", str(path), "--n_tasks", "1"]
    assert write_gem_file.main(program) == 2, "the disk is full"
    raise OSError(28, "No space left on device")


def page(path):
    path.write_text("<!-- table a -->old<!-- end a -->")
    table.update(path, "a", "new")


WRITERS = {
    "figure.png": figure,
    "page.md": page,
    "matrix.csv": lambda path: matrix_csv.write_matrix_csv([[0.5]], path),
    "scores.npz": lambda path: scores.write(path, {}, scores=np.zeros(3)),
    "preset.yaml": lambda path: tune.write_preset(path, "d", 1, {"lr": 1}),
    "stream.pt": gem_file,
}


@pytest.mark.parametrize("name", WRITERS)
def test_whatever_is_written_is_whole_or_not_there(tmp_path, monkeypatch, name):
    """A process that dies before its file is complete leaves what was there before."""
    path = tmp_path / name
    path.write_text("{}")
    if name == "stream.pt":  # written over a file of its own kind only
        path.unlink()
        assert write_gem_file.main(["seq-digits", str(path), "--n_tasks", "1"]) == 0
    before = b"<!-- table a -->old<!-- end a -->" if name == "page.md" else path.read_bytes()
    seen = []

    def full(temporary, target):
        seen.append(temporary)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "put_in_place", full)
    with pytest.raises((OSError, UserError), match="No space left"):
        WRITERS[name](path)
    assert seen and path.read_bytes() == before and os.listdir(tmp_path) == [name]


def test_a_link_stays_and_a_device_is_refused(tmp_path):
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    files.write_text("new", tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real").read_text() == "new"
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DiskError, match="pipe: cannot be written: a folder or device"):
        files.write_text("new", tmp_path / "pipe")


@pytest.mark.parametrize("content", ["{}", "[]", "null", '"text"', "3", '{"config": {}}', "{", "", "\x00"])
def test_damaged_results_are_left_out_named_and_counted(tmp_path, capsys, content):
    (tmp_path / "results.json").write_text(content)
    assert list(run_record.read_all([tmp_path / "results.json"])) == []
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and "results.json: damaged" in lines[0]
    assert lines[1] == "left out: 1 damaged results.json in all"
    with pytest.raises(UserError, match="no finished run there"):
        finished_runs(tmp_path, "--runs")
