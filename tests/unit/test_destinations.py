"""What programs write: a wrong destination is refused in one line, before any work is done."""

import importlib
import json
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch

from engram.memorization import cli
from engram.scripts.analysis.table import check_update, update
from engram.utils import checkpoint, scores
from engram.utils.destinations import check_file, check_folder
from engram.utils.errors import UserError

MEM = "memorization."
# Program → module, words whose other inputs are not there, start of what is said, whether a file is meant.
OUT_NPZ, OUT_CSV = ["--out_filename", "OUT.npz"], ["--out_filename", "OUT.csv"]
PROGRAMS = {
    "report --update": ("scripts.report", ["no-runs", "--update", "OUT"], "--update", True),
    "report --out": ("scripts.report", ["no-runs", "--out", "OUT"], "--out", False),
    "mas_orders --update": ("scripts.studies.mas_orders", ["--update", "OUT"], "--update", True),
    "mas_orders": ("scripts.studies.mas_orders", ["--output_dir", "OUT"], "--output_dir", False),
    "mas_adaptation": ("scripts.studies.mas_adaptation", ["--output_dir", "OUT"], "--output_dir", False),
    "bench --update": ("scripts.bench.__main__", ["--update", "OUT"], "--update", True),
    "bench --json": ("scripts.bench.__main__", ["--json", "OUT.json"], "--json", True),
    "bench --plot": ("scripts.bench.__main__", ["--plot", "OUT.png"], "--plot", True),
    "mer --update": ("scripts.bench.mer", ["--update", "OUT"], "--update", True),
    "bench.shards": ("scripts.bench.shards", ["--folder", "OUT"], "--folder", False),
    "record_r": ("scripts.dev.record_r", ["OUT.json"], "", True),
    "mutation_check": ("scripts.dev.mutation_check", ["--state", "OUT.json"], "--state", True),
    "sweep": ("scripts.sweep", ["--model", "er", "--output_dir", "OUT"], "--output_dir", False),
    "tune": ("scripts.tune", ["--model", "ewc", "--output_dir", "OUT"], "--output_dir", False),
    "docs": ("scripts.docs", ["--out", "OUT"], "--out", False),
    "write_gem_file": ("scripts.interop.write_gem_file", ["no-benchmark", "OUT"], "", True),
    "export_tasks": ("scripts.interop.export_tasks", ["no-run", "OUT"], "", False),
    "import_mlruns": ("scripts.interop.import_mlruns", ["no", "--output_dir", "OUT"], "--output_dir", False),
    "train_splits": (MEM + "train_splits", ["--weights_dir", "OUT"], "--weights_dir", False),
    "train_whole": (MEM + "train_whole", ["--weights_dir", "w", *OUT_NPZ], "--out_f", True),
    "train_stream": (MEM + "train_stream", ["--weights_dir", "w", *OUT_NPZ], "--out_f", True),
    "eval_splits": (MEM + "eval_splits", ["--weights_dir", "w", *OUT_NPZ], "--out_f", True),
    "train_proxies": (MEM + "train_proxies", OUT_NPZ, "--out_filename", True),
    "correlate": (MEM + "correlate", ["--scores", "a", "--against", "b", *OUT_CSV], "", True),
    "plots": (MEM + "plots", ["--scores", "no.npz", "--out_dir", "OUT"], "--out_dir", False),
    "intervention": (MEM + "intervention", ["--scores", "no.npz", "--out_dir", "OUT"], "--out_dir", False),
}  # fmt: skip


def refused(module: str, words: list[str], capsys, monkeypatch) -> str:
    """What a program says, as its only line, when it ends with exit code 2."""
    program = importlib.import_module(f"engram.{module}")
    if module.startswith(MEM):
        monkeypatch.setattr("sys.argv", ["program", *words])
        code = cli.main(module.removeprefix(MEM))
    else:
        code = program.main(words)
    err = capsys.readouterr().err
    assert code == 2 and err.count("\n") == 1, err
    return err.removeprefix("error: ")


WRONG = [(wrong, name) for wrong in ("below a file", "other kind", "read-only") for name in PROGRAMS]
# of a file to update it is said first that it cannot be read, or has no markers
WRONG = [(wrong, name) for wrong, name in WRONG if wrong != "read-only" or "--update" not in name]


@pytest.mark.parametrize(("wrong", "name"), WRONG)
def test_every_program_refuses_a_wrong_destination_first(tmp_path, monkeypatch, capsys, name, wrong):
    module, words, flag, is_file = PROGRAMS[name]
    monkeypatch.chdir(tmp_path)
    out = words[[word.startswith("OUT") for word in words].index(True)]
    given = out.replace("OUT", "x/y" if wrong == "below a file" else "out")
    if wrong == "below a file":
        Path("x").write_text("data")
    elif wrong == "other kind":
        Path(given).mkdir() if is_file else Path(given).write_text("data")
        if name == "export_tasks":
            Path(given).unlink()
            Path(given).mkdir()
            (Path(given) / "data").write_text("data")
    else:
        monkeypatch.setattr(tempfile, "TemporaryFile", read_only)
    told = refused(module, [given if word == out else word for word in words], capsys, monkeypatch)
    assert told.startswith(flag) and given in told
    left = {p.as_posix() for p in Path().rglob("*")}
    assert left <= {"x", given, f"{given}/data"}


def test_no_part_stands_for_all_of_them(monkeypatch, capsys):
    """Which Python 3.11 refused with a traceback."""
    program = importlib.import_module("engram.scripts.bench.__main__")
    assert program.parser().parse_args([]).parts == []
    with pytest.raises(SystemExit):
        program.parser().parse_args(["no-part"])
    assert "invalid choice: 'no-part' (choose from" in capsys.readouterr().err


def read_only(*_, **__):
    raise OSError(30, "Read-only file system")


OTHER = {
    "bench --json": b'{"my": "data"}', "record_r": b'{"my": {"data": 1}}', "mutation_check": b"[1, 2]",
    "write_gem_file": b"data", "train_whole": b"data", "train_proxies": b"data", "eval_splits": b"data",
    "correlate": b"my,data\n1,2\n",
}  # fmt: skip


@pytest.mark.parametrize("name", OTHER)
def test_a_file_of_data_is_not_overwritten(tmp_path, monkeypatch, capsys, name):
    module, words, flag, _ = PROGRAMS[name]
    monkeypatch.chdir(tmp_path)
    out = words[[word.startswith("OUT") for word in words].index(True)]
    Path(out).write_bytes(OTHER[name])
    told = refused(module, words, capsys, monkeypatch)
    assert told.startswith(flag) and f"{out}: exists and is no file that this program writes" in told
    assert Path(out).read_bytes() == OTHER[name]


def test_a_checkpoint_is_no_gem_file_and_images_are_no_scores(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    checkpoint.write({"step": 1, "net": torch.zeros(3)}, Path("run.pt"))
    words = ["no-benchmark", "run.pt"]
    assert "is no file that this" in refused("scripts.interop.write_gem_file", words, capsys, monkeypatch)
    np.savez("data.npz", images=np.zeros(3))
    np.save("data.npy", np.zeros((3, 2), dtype=np.float32))
    np.save("labels.npy", np.zeros(3, dtype=np.int64))
    for file in ("data.npz", "data.npy", "labels.npy"):
        with pytest.raises(UserError, match=rf"^--out_filename {file}: exists and is no file"):
            cli.check_out(file, ".npz", ".npy")


def test_what_a_program_wrote_is_replaced(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("scores.npz", "scores.npy"):
        scores.write(name, {}, scores=np.zeros(4))
        cli.check_out(name, ".npz", ".npy")
    np.savez("proxies.npz", proxies=np.zeros((2, 4)), names=np.array(["a", "b"]))
    cli.check_out("proxies.npz", ".npz")
    gem = importlib.import_module("engram.scripts.interop.write_gem_file")
    torch.save([[], []], "gem.pt")
    check_file("gem.pt", "", (".pt",), gem.is_gem_file)
    record = importlib.import_module("engram.scripts.dev.record_r")
    Path("r.json").write_text(json.dumps({"a": {"refused": "x"}, "b": {"R": {}, "weights": "y"}}))
    assert set(record.records_in(Path("r.json"))) == {"a", "b"}
    Path("empty.npz").touch()  # nothing can be lost
    cli.check_out("empty.npz", ".npz")


@pytest.mark.parametrize("suffix", ["", ".txt", ".NPZ"])
def test_names_that_numpy_would_change_are_refused(tmp_path, suffix):
    with pytest.raises(UserError, match=r"the name of this file ends in \.npz or \.npy"):
        cli.check_out(str(tmp_path / f"scores{suffix}"), ".npz", ".npy")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a\0b", "x" * 300, "loop/x"])
def test_paths_that_cannot_be(tmp_path, name):
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(UserError, match=r"^--out .*cannot be written \(.+\); give another path"):
        check_folder(tmp_path / name / "sub", "--out")
    with pytest.raises(UserError, match=r"^--out .*cannot be written \(.+\); give another path"):
        check_file(tmp_path / name / "a.csv", "--out", (".csv",))
    with pytest.raises(UserError, match=r"^--update "):
        check_update(tmp_path / name, "x")


def test_folders_that_may_be_made_are_not_and_those_of_files_are(tmp_path):
    check_folder(tmp_path / "a/b/c", "--out")
    assert list(tmp_path.iterdir()) == []
    check_file(tmp_path / "d/e/f.csv", "--out", (".csv",))
    assert [p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*")] == ["d", "d/e"]
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.csv")
        with pytest.raises(UserError, match=r"a folder or device, not a file"):
            check_file(tmp_path / "pipe.csv", "--out", (".csv",))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, r"cannot be read \(No such file"), (b"no markers", "has no markers"),
        (b"<!-- end a -->\n<!-- table a -->\n", "has no markers"), (b"<!-- table a -->", "has no markers"),
        (b"\xff\xfe<!-- table a --><!-- end a -->", r"cannot be read \(not text in UTF-8\)"),
    ],
)  # fmt: skip
def test_files_that_cannot_be_updated(tmp_path, content, reason):
    page = tmp_path / "page.md"
    if content is not None:
        page.write_bytes(content)
    for call in (lambda: check_update(page, "a"), lambda: update(page, "a", "text")):
        with pytest.raises(UserError, match=rf"^--update {page}: {reason}"):
            call()
    assert content is None or page.read_bytes() == content


def test_an_update_replaces_what_stands_between_the_markers(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("0\n<!-- table a -->\nold\n<!-- end a -->\n1\n<!-- table b -->\nb\n<!-- end b -->\n2\n")
    check_update(page, "a")
    check_update(None, "a")
    update(page, "a", "new")
    assert page.read_text() == (
        "0\n<!-- table a -->\nnew\n<!-- end a -->\n1\n<!-- table b -->\nb\n<!-- end b -->\n2\n"
    )
