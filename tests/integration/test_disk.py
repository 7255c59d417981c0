"""Disks that are full or read-only, files that a kill left half-written, a checkpoint that is gone."""

import os
import subprocess
from pathlib import Path

import pytest

from engram.main import main
from engram.utils import checkpoint, files
from engram.utils.errors import DiskError, UserError
from engram.utils.runs import figures
from engram.utils.runs.run_dir import RunDir
from engram.utils.runs.run_record import RunRecord

FLAGS = ["--model", "er", "--buffer_size", "20", "--dataset", "seq-digits", "--disable_log", "--debug_mode"]


def start(output_dir: Path, *flags: str) -> int:
    return main([*FLAGS, "--output_dir", str(output_dir), *flags])


def only_run(output_dir: Path) -> Path:
    (run,) = output_dir.glob("*/*/*")
    return run


def content_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def temporaries(folder: Path) -> list[Path]:
    return list(folder.rglob("*.tmp"))


def full(*_):
    raise OSError(28, "No space left on device")


# --- a checkpoint that is gone -------------------------------------------------------------------


def test_a_finished_run_without_checkpoint_is_not_trained_again(tmp_path, capsys):
    assert start(tmp_path) == 0
    run = only_run(tmp_path)
    (run / "checkpoint.pt").unlink()
    before = content_of(run)
    assert main(["--resume", str(run)]) == 0
    assert "is finished; its checkpoint is gone" in capsys.readouterr().out
    assert content_of(run) == before


def in_the_way(path: Path, kind: str) -> None:
    path.unlink(missing_ok=True)
    path.mkdir() if kind == "folder" else path.symlink_to(path.name)


@pytest.mark.parametrize("kind", ["folder", "link to itself"])
def test_what_lies_where_results_belong_is_refused_before_anything_is_changed(tmp_path, capsys, kind):
    assert start(tmp_path, "--stop_after", "2", "--savecheck", "task") == 0
    run = only_run(tmp_path)
    in_the_way(run / "results.json", kind)
    before = content_of(run) | content_of(run / "weights")
    assert main(["--resume", str(run)]) == 2
    error = capsys.readouterr().err
    assert "results.json: cannot be written: a " in error and "remove it, then start or resume" in error
    assert content_of(run) | content_of(run / "weights") == before


def test_a_file_where_weights_belong_is_refused_before_anything_is_changed(tmp_path, capsys):
    assert start(tmp_path, "--stop_after", "2", "--savecheck", "last") == 0
    run = only_run(tmp_path)
    (run / "weights").touch()
    before = content_of(run)
    assert main(["--resume", str(run)]) == 2
    assert "weights: not a folder" in capsys.readouterr().err
    assert content_of(run) == before


def test_damaged_results_are_made_again_from_the_checkpoint_or_refused_without_one(tmp_path, capsys):
    assert start(tmp_path) == 0
    run = only_run(tmp_path)
    record = RunRecord.read(run)
    (run / "results.json").write_text("{")
    assert main(["--resume", str(run)]) == 0
    assert f"{run}/results.json was damaged; it is made again from the checkpoint" in capsys.readouterr().out
    seconds = {"seconds": None}  # those of loading the data again are new
    assert RunRecord.read(run).to_json() | seconds == record.to_json() | seconds
    assert main(["--resume", str(run)]) == 0 and "was damaged" not in capsys.readouterr().out
    (run / "results.json").write_text("{")
    (run / "checkpoint.pt").unlink()
    before = content_of(run)
    assert main(["--resume", str(run)]) == 2
    assert "results.json: damaged, and there is no checkpoint" in capsys.readouterr().err
    assert content_of(run) == before


def test_resume_takes_names_as_they_are_and_one_run_only(tmp_path, monkeypatch):
    flags = {"output_dir": str(tmp_path / "runs"), "dataset": "d", "model": "m"}
    run = RunDir.create(flags)
    for pattern in ("*", "?" * len(run.id), f"[{run.id[0]}]{run.id[1:]}"):
        with pytest.raises(UserError, match="no run of that id"):
            RunDir.find(pattern, flags["output_dir"])
    assert RunDir.find(run.id, flags["output_dir"]).path == run.path
    RunDir.at(tmp_path / "runs" / "d" / "other" / run.id, flags)
    with pytest.raises(UserError, match=r"several runs: .*/m/.*/other/.*; give one folder"):
        RunDir.find(run.id, flags["output_dir"])


# --- half-written files --------------------------------------------------------------------------


def test_files_that_a_kill_left_half_written_go_at_the_next_start(tmp_path):
    run = RunDir.create({"output_dir": str(tmp_path), "dataset": "d", "model": "m"})
    (run.path / "weights").mkdir()
    of_a_run = [
        "checkpoint.tmp",
        "results.json.0a1b2c3d.tmp",
        "weights/task_3.tmp",
        "curves.png.0a1b2c3d.tmp",
    ]
    of_others = ["notes.tmp", "config.yaml.0a1b2c3d.tmp", "weights/mine.tmp"]
    for name in of_a_run + of_others:
        (run.path / name).write_text("half")
    with run.claimed():
        assert sorted(temporaries(run.path)) == sorted(run.path / name for name in of_others)
        (run.path / "checkpoint.tmp").write_text("of the process that holds the claim")
        with pytest.raises(UserError, match="another process is running"), RunDir(run.path).claimed():
            pass
        assert (run.path / "checkpoint.tmp").exists()


# --- full and read-only disks --------------------------------------------------------------------


@pytest.mark.parametrize(
    "write", [lambda p: checkpoint.write({"a": [1.0]}, p), lambda p: files.write_text("new", p)]
)
def test_a_write_that_fails_names_file_and_need_and_leaves_the_old_file(tmp_path, monkeypatch, write):
    path = tmp_path / "file.pt"
    path.write_text("old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        DiskError, match=r"file\.pt: cannot be written \(No space left on device\): it takes \d"
    ):
        write(path)
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["file.pt"]


def test_figures_that_cannot_be_written_do_not_cost_the_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(figures, "write_all", full)
    assert start(tmp_path) == 0
    assert "figures not written: [Errno 28]" in capsys.readouterr().err
    assert RunRecord.read(only_run(tmp_path)).finished


@pytest.fixture
def small_disk(tmp_path):
    """A function that mounts a disk of so many kB at a folder, or mounts it again with other options."""
    disk = tmp_path / "disk"
    disk.mkdir()

    def mount(options: str) -> Path:
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(disk)]
        if subprocess.run(command, capture_output=True).returncode:
            pytest.skip("mounting a file system is not allowed here")
        return disk

    yield mount
    while os.path.ismount(disk):
        subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.parametrize("size", [4, 16, 64, 128, 200, 400])
def test_a_full_disk_is_one_line_and_the_run_goes_on_when_there_is_room(small_disk, size, capsys):
    disk = small_disk(f"size={size}k")
    code = start(disk)
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    runs = [path for path in disk.glob("*/*/*") if (path / "config.yaml").exists()]
    assert code in (0, 1, 2) and len(errors) == (1 if code else 0), errors
    if code:
        assert "cannot be written" in errors[0] and "No space left on device" in errors[0]
        assert not temporaries(disk)
    else:
        assert RunRecord.read(runs[0]).finished
    if runs:
        small_disk("remount,size=64m")
        assert main(["--resume", str(runs[0])]) == 0
        assert RunRecord.read(runs[0]).finished and not temporaries(disk)


def test_a_read_only_disk_is_one_line(small_disk, capsys):
    disk = small_disk("size=64m")
    assert start(disk) == 0
    run = only_run(disk)
    small_disk("remount,ro")
    capsys.readouterr()
    for flags in ([*FLAGS, "--output_dir", str(disk)], ["--resume", str(run)]):
        assert main(flags) == 2
        errors = capsys.readouterr().err.splitlines()
        assert len(errors) == 1 and "cannot be written" in errors[0] and "Read-only" in errors[0]
