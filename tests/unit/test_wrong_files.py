"""Files of the wrong kind, given to every program that takes one: each is one clear line."""

import shutil

import numpy as np
import pytest

from engram import main as main_program
from engram.memorization import cli as memorization_cli
from engram.scripts import check_plugin, report, sweep
from engram.scripts.interop import compute_forgetting
from tests.conftest import ROOT

RUN = ["--model", "er", "--dataset", "seq-digits", "--disable_log"]
YAML_FILE = "expected a YAML file, a mapping from flag names to values, e.g. 'lr: 0.1'"
STUDY = "expected a study's YAML file, a mapping with some of name, fixed, grid, runs"


def told(capsys) -> str:
    return capsys.readouterr().err


def memorization(name: str):
    def program(flags: list[str]) -> int:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sys.argv", [name, *flags])
            return memorization_cli.main(name)

    return program


# Program, flags in which FILE is replaced → what is said of a page of text and of a picture.
CASES = {
    "config": (main_program.main, ["--config", "FILE"], YAML_FILE),
    "sweep": (sweep.main, ["FILE"], STUDY),
    "report": (report.main, ["FILE"], "expected a folder that holds runs, e.g. runs, or a study's YAML file"),
    "paper": (report.main, ["pretrained", "FILE"], "expected a folder that holds runs"),
    "loadcheck": (main_program.main, [*RUN, "--loadcheck", "FILE"], "(torch.save did not write it); give"),
    "gem": (main_program.main, ["--model", "er", "--dataset", "gem-file", "--gem_file", "FILE"],
            "(torch.save did not write it)"),
    "scores": (main_program.main, [*RUN, "--memorization_scores", "FILE"], "expected .npz with 'scores'"),
    "exclude": (main_program.main, [*RUN, "--exclude", "FILE"], "--exclude: FILE"),
    "images": (main_program.main, ["--model", "er", "--dataset", "seq-imagefolder", "--image_dir", "FILE"],
               "a file, but no .csv; give a folder that holds train/<class>/"),
    "data": (main_program.main, ["--model", "er", "--dataset", "seq-mnist", "--data_dir", "FILE"],
             "--data_dir FILE: is a file, not a folder"),
    "store": (main_program.main, [*RUN[:4], "--tracking_uri", "FILE"], "expected an address: http://HOST:5000"),
    "plugin": (check_plugin.main, ["FILE"], "expected a Python file"),
    "tasks": (compute_forgetting.main, ["FILE"], "no Task_1; give a folder"),
    "splits": (memorization("train_splits"), ["--dataset", "digits", "--weights_dir", "FILE"],
               "--weights_dir FILE: is a file, not a folder"),
    "study": (memorization("train_splits"), ["--config", "FILE"], YAML_FILE),
    "correlate": (memorization("correlate"), ["--scores", "FILE", "--against", "FILE"], "expected .npz with"),
}  # fmt: skip


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A page of text and a picture, in an empty folder from which the programs are started."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "README.md", tmp_path)
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\r\n" + bytes(range(256)))
    return tmp_path


@pytest.mark.parametrize("name", ["README.md", "picture.png"])
@pytest.mark.parametrize("case", CASES)
def test_a_file_of_another_kind_is_told_in_one_line(case, name, files, capsys):
    program, flags, message = CASES[case]
    assert program([name if word == "FILE" else word for word in flags]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("error: ") and message.replace("FILE", name) in lines[-1]
    assert not any("Errno" in line or "<unicode string>" in line for line in lines)
    assert sorted(path.name for path in files.iterdir()) == ["README.md", "picture.png"]


def test_what_is_no_yaml_says_where(files, capsys):
    (files / "flags.yaml").write_text("lr: 0.1\nmodel: er: der\n")
    assert main_program.main(["--config", "flags.yaml"]) == 2
    assert "not a YAML file: mapping values are not allowed in this context in line 2" in told(capsys)
    assert main_program.main(["--config", "."]) == 2
    assert "--config .: cannot be read: Is a directory; expected" in told(capsys)


@pytest.mark.parametrize(
    ("kind", "message"), [("method", "exactly one Method"), ("benchmark", "DEFAULTS and")]
)
def test_a_file_without_a_plugin_is_refused_before_any_test(kind, message, files, capsys):
    (files / "empty.py").write_text("value = 1\n")
    assert check_plugin.main(["empty.py", "--kind", kind]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and "cannot begin" not in captured.out


def test_correlations_without_resampling_have_no_interval(files, capsys):
    scores = np.linspace(0, 1, 30)
    np.save("a.npy", scores)
    np.save("b.npy", scores**2)
    np.save("constant.npy", np.full(30, 0.5))
    flags = ["--scores", "a.npy", "--against", "b.npy,constant.npy", "--n_bootstrap", "0"]
    assert not memorization("correlate")(flags)
    out = capsys.readouterr().out
    pearson = np.corrcoef(scores, scores**2)[0, 1]
    assert (
        f"| b | {pearson:.3f} | 1.000 | 1.000 |" in out
        and "| constant | – | – | – |" in out
        and "nan" not in out
    )
