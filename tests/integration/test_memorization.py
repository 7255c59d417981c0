"""The programs of the memorization room as a user runs them: killed, resumed, misused."""

import ast
import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from engram.memorization import cli, eval_splits, train_splits
from engram.memorization.__main__ import PARTS, PROGRAMS
from engram.memorization.store import NetworkStore
from tests.conftest import ROOT
from tests.waiting import wait_until

pytestmark = pytest.mark.slow

SMALL = "--dataset_size 0.2 --n_epochs 6 --hidden_sizes 10 --n_repeats 24 --stack 6".split()


def command(module: str, *flags: str) -> list[str]:
    return [sys.executable, "-m", f"memorization.{module}", *flags]


def written(folder: Path) -> dict[Path, int]:
    """Networks and checkpoints, and when each was put in place."""
    found = {}
    for path in folder.rglob("*.pt"):
        with contextlib.suppress(FileNotFoundError):  # a checkpoint may be removed meanwhile
            found[path] = path.stat().st_mtime_ns
    return found


def scores_of(folder: Path) -> dict[str, np.ndarray]:
    out = folder / "scores.npz"
    eval_splits.run(
        ["--weights_dir", str(folder), "--n_repeats", "24", "--out_filename", str(out), "--store_probs"]
    )
    with np.load(out) as content:
        return {name: content[name] for name in content.files}


def test_killed_at_any_moment_the_scores_are_the_same_bit_for_bit(tmp_path):
    """SIGKILL at the first and at the fourth file that appears; the processes beside it end too."""
    train_splits.run(["--weights_dir", str(tmp_path / "whole"), *SMALL, "--use_multiprocessing", "0"])
    folder = tmp_path / "killed"
    flags = ["--weights_dir", str(folder), *SMALL, "--use_multiprocessing", "--num_workers", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for n_changes in (1, 4):
        seen = [written(folder)]
        process = subprocess.Popen(
            command("train_splits", *flags, "--checkpoint_every", "0"), cwd=ROOT, env=environment,
            stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        )  # fmt: skip

        def changed_enough(seen=seen, process=process, n_changes=n_changes) -> bool:
            seen += [now for now in [written(folder)] if now != seen[-1]]
            return len(seen) > n_changes or process.poll() is not None

        wait_until(changed_enough)
        process.send_signal(signal.SIGKILL)
        process.wait()
    train_splits.run(["--weights_dir", str(folder), *SMALL, "--use_multiprocessing", "0"])
    for repeat in range(24):
        one, other = (NetworkStore(str(f)).load(repeat) for f in (folder, tmp_path / "whole"))
        assert all(torch.equal(one[name], other[name]) for name in one)
    whole, killed = scores_of(tmp_path / "whole"), scores_of(folder)
    for name in ("loss", "scores", "stderr", "scores_01", "member"):
        assert np.array_equal(whole[name], killed[name]), name
    assert not list((folder / "checkpoints").glob("*.pt"))
    left = [NetworkStore(str(folder)).checkpoint(job) for job in (1, 4)]  # 24 networks are jobs 0 to 3
    for path in left:
        path.write_bytes(b"a kill came before this was removed")
    train_splits.run(["--weights_dir", str(folder), *SMALL, "--use_multiprocessing", "0"])
    assert [path.exists() for path in left] == [False, True], "job 4 may go on when --n_repeats is raised"


def test_a_study_grows_and_is_not_mixed(tmp_path, capsys):
    folder = ["--weights_dir", str(tmp_path / "study")]
    base = [*folder, "--dataset_size", "0.1", "--hidden_sizes", "6", "--use_multiprocessing", "0"]
    train_splits.run([*base, "--n_epochs", "1", "--n_repeats", "20", "--stack", "16"])
    first = (tmp_path / "study/networks/0019.pt").read_bytes()
    train_splits.run([*folder, "--n_repeats", "24", "--use_multiprocessing", "0"])
    assert (tmp_path / "study/networks/0019.pt").read_bytes() == first
    assert len(list((tmp_path / "study/networks").iterdir())) == 24
    with pytest.raises(ValueError, match=r"--n_epochs 2: the networks in --weights_dir were trained with 1"):
        train_splits.run([*base, "--n_epochs", "2", "--n_repeats", "24"])
    out = str(tmp_path / "scores.npz")
    eval_splits.run([*folder, "--n_repeats", "30", "--out_filename", out, "--influence", "3"])
    assert "of 30 networks 24 have been trained" in capsys.readouterr().err
    with np.load(out) as content:
        n = len(content["scores"])
        assert n == 144 and content["influence"].shape == (360, 3)
        assert content["n_in"].tolist() == (24 - content["n_out"]).tolist()
        assert (np.diff(content["influence"], axis=1) <= 0).all()


def test_all_trained_networks_are_evaluated_unless_fewer_are_asked_for(tmp_path, capsys):
    """More than train_splits makes by default, and a gap where one is missing."""
    folder = ["--weights_dir", str(tmp_path / "study"), "--use_multiprocessing", "0"]
    flags = ["--dataset_size", "0.1", "--hidden_sizes", "4", "--n_epochs", "1", "--stack", "16"]
    train_splits.run([*folder, *flags, "--n_repeats", "20"])
    store = NetworkStore(str(tmp_path / "study"))
    store.save(260, store.load(3))
    store.path(3).unlink()
    first = [repeat for repeat in range(20) if repeat != 3]
    for asked, expected in (([], [*first, 260]), (["--n_repeats", "18"], first[:17])):
        out = tmp_path / "scores.npz"
        eval_splits.run([*folder, *asked, "--out_filename", str(out)])
        with np.load(out) as content:
            assert content["repeats"].tolist() == expected
        assert ("of 18 networks 17 have been trained" in capsys.readouterr().err) == bool(asked)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--weights_dir is missing"),
        (["--weights_dir", "x", "--subset_ratoi", "0.5"], "did you mean --subset_ratio"),
        (
            ["--weights_dir", "x", "--dataset", "svhn"],
            "--dataset svhn: choose one of digits, mnist",
        ),
        (["--weights_dir", "x", "--backbone", "resnet81"], "did you mean resnet18"),
        (["--weights_dir", "x", "--dataset_size", "0"], "--dataset_size 0.0: must be > 0"),
        (["--weights_dir", "x", "--class_range", "5,3"], "--class_range 5,3: must satisfy"),
        (
            ["--weights_dir", "x", "--dataset_size", "0.001"],
            "--dataset_size 0.001: 1437 examples cannot be split",
        ),
    ],
)
def test_misuse_is_one_clear_line(flags, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train_splits", *flags])
    assert cli.main("train_splits") == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("error: ")


def test_flags_come_from_a_file_too(tmp_path, capsys):
    """The command line wins over the file; both are held against what the networks were trained with."""
    file = tmp_path / "flags.yaml"
    file.write_text(f"weights_dir: {tmp_path / 'study'}\ndataset_size: 0.1\nhidden_sizes: [6]\nn_epochs: 2\n")
    flags = ["--config", str(file), "--use_multiprocessing", "0", "--stack", "4"]
    train_splits.run([*flags, "--n_repeats", "4", "--n_epochs", "1"])
    settings = NetworkStore(str(tmp_path / "study")).settings()
    assert settings["hidden_sizes"] == [6] and settings["dataset_size"] == 0.1
    assert settings["n_epochs"] == 1 and "config" not in settings
    with pytest.raises(ValueError, match="--n_epochs 2: the networks in --weights_dir were trained with 1"):
        train_splits.run([*flags, "--n_repeats", "4"])
    file.write_text("n_epoch: 2\n")
    with pytest.raises(ValueError, match=r"--config .*: unknown flag --n_epoch; did you mean n_epochs"):
        train_splits.run([*flags, "--weights_dir", str(tmp_path / "other")])


def test_help_does_not_import_torch(tmp_path):
    code = (
        "import sys\nfrom memorization import {0}\ntry:\n {0}.run(['--help'])\nexcept SystemExit:\n pass\n"
        "assert 'torch' not in sys.modules"
    )
    for module in PROGRAMS:
        done = subprocess.run(
            [sys.executable, "-c", code.format(module)], cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert f"usage: python -m memorization.{module}" in done.stdout
        assert f"\n    python -m memorization.{module} --" in done.stdout, "its examples"


def test_the_programs_are_listed_without_torch():
    """By `python -m memorization`, each with what its file says that it does."""
    code = (
        "import runpy, sys\ntry:\n runpy.run_module('memorization', run_name='__main__')\n"
        "except SystemExit as end:\n assert not end.code\nassert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "usage: python -m memorization.PROGRAM --help"
    for module in PROGRAMS:
        said = ast.get_docstring(ast.parse((ROOT / "memorization" / f"{module}.py").read_text()))
        assert f"{module:<14}{said.splitlines()[0]}" in lines
    programs = {path.stem for path in (ROOT / "memorization").glob("*.py") if "cli.main" in path.read_text()}
    assert set(PROGRAMS) == programs, "none is forgotten"
    assert "leave_one_out of train_whole" in lines[-1]


def imported(path: Path) -> set[str]:
    """The files of memorization/ that a file imports, and those that they import, by name."""
    found: set[str] = set()
    rest = [path]
    while rest:
        nodes = [
            node for node in ast.walk(ast.parse(rest.pop().read_text())) if isinstance(node, ast.ImportFrom)
        ]
        ours = [node for node in nodes if str(node.module).startswith("engram.memorization")]
        names = {
            name for node in ours for name in (str(node.module).split(".")[-1], *(a.name for a in node.names))
        }
        new = {name for name in names - found if (ROOT / "memorization" / f"{name}.py").exists()}
        found |= new
        rest += [ROOT / "memorization" / f"{name}.py" for name in new]
    return found


@pytest.mark.parametrize(("part", "program"), PARTS.items())
def test_a_file_that_is_called_a_part_is_imported_by_its_program(part, program):
    path = program if "." in program else f"memorization.{program}"
    assert part in imported(ROOT / f"{path.replace('.', '/')}.py")
