"""Methods, benchmarks and backbones in files, packages and entry points that are not the project's."""

import os
import shutil
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

import engram
from engram import main as main_program
from engram.utils.config import cli, outside, registry
from engram.utils.errors import UserError
from engram.utils.runs.run_record import RunRecord
from engram.utils.sweeps.run_index import path_of_new_run
from engram.utils.sweeps.sweep_spec import SweepSpec
from tests.conftest import ROOT

QUICK = ["--n_epochs=1", "--disable_log"]
METHOD = '''"""Plain SGD whose loss is scaled."""

from dataclasses import dataclass

from engram.models.method import Method
from engram.utils.config.options import OptionSet, option
IMPORT


@dataclass(frozen=True)
class Options(OptionSet):
    """Flags of the method."""

    factor: float = option(1.0, "of the loss", ge=0)


class Scaled(Method):
    """The loss times a factor."""

    off_switch = {"factor": 1}

    def loss(self, batch):
        return self.options.factor * super().loss(batch)
'''
DATASET = '''"""Two tasks of the digits."""

from engram.datasets import seq_digits

DEFAULTS = {**seq_digits.DEFAULTS, "n_tasks": 2, "backbone": BACKBONE}


def build(config, device):
    return seq_digits.build(config, device)
'''
BACKBONE = '''"""One linear layer."""

from math import prod

from torch import nn

from engram.backbones.backbone import Backbone


class Linear(Backbone):
    """The features are a linear map of the pixels."""

    feature_dim = 8

    def __init__(self, n_inputs):
        super().__init__()
        self.map = nn.Linear(n_inputs, 8)

    def features(self, x):
        return self.map(x.flatten(1))


def build(options, input_shape, name):
    assert name == "my_net"
    return Linear(prod(input_shape))
'''


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A folder with the three plugins, the current one; the method imports its neighbour `neighbour.py`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "my_method.py").write_text(METHOD.replace("IMPORT", "import neighbour_of_mine"))
    (tmp_path / "neighbour_of_mine.py").write_text("")
    (tmp_path / "my_data.py").write_text(DATASET.replace("BACKBONE", repr(str(tmp_path / "my_net.py"))))
    (tmp_path / "my_net.py").write_text(BACKBONE)
    package = tmp_path / "my_own_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "neighbour.py").write_text("")
    (package / "idea.py").write_text(METHOD.replace("IMPORT", "from my_own_package import neighbour"))
    yield tmp_path
    for name in [
        n for n in sys.modules if n.startswith(("my_own_package", "engram_plugin_", "neighbour_of"))
    ]:
        del sys.modules[name]


def only_run(folder):
    (path,) = folder.glob("runs/*/*/*/results.json")
    return path.parent


def test_a_run_of_three_files_is_recorded_and_resumed_from_anywhere(files, monkeypatch, capsys):
    flags = ["--model", "my_method.py", "--dataset", "my_data.py", "--factor", "0.5", *QUICK]
    assert main_program.main([*flags, "--stop_after", "1"]) == 0
    run = only_run(files)
    assert run.parent.parent.name == "my_data" and run.parent.name == "my_method"
    record = RunRecord.read(run)
    assert record.config["model"] == str(files / "my_method.py") and record.config["factor"] == 0.5
    assert (
        record.config["backbone"] == str(files / "my_net.py")
        and record.title == "my_method on my_data, seed 0"
    )
    assert (run / "plugins" / "model.py").read_text() == (files / "my_method.py").read_text()
    elsewhere = files / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    capsys.readouterr()
    assert main_program.main(["--resume", str(run), "--stop_after", "0"]) == 0
    assert "has changed" not in capsys.readouterr().out
    assert RunRecord.read(run).finished


def test_a_plugin_imports_its_own_utils_and_datasets(files):
    """Not the project's folders of these names, which `python main.py` has on the search path."""
    (files / "utils.py").write_text("WORD = 'mine'\n")
    (files / "datasets.py").write_text("")
    (files / "own.py").write_text(METHOD.replace("IMPORT", "from utils import WORD\nimport os"))
    code = "import engram.utils.config.registry as r; print(r.load('models', 'own.py').WORD)"
    command = [sys.executable, "-P", "-c", code]  # -P: the current folder is not on the search path
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=files, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == "mine\n", done.stderr


def test_a_file_that_something_else_hides_from_the_plugin_is_told(files, capsys):
    """Two plugins, each with a `neighbour_of_mine`: the second one would get the first one's."""
    other = files / "other"
    other.mkdir()
    for name in ("neighbour_of_mine", "random"):
        (other / f"{name}.py").write_text("")
        (other / "idea.py").write_text(METHOD.replace("IMPORT", f"import {name}"))
        import_of_first = registry.load("models", "my_method.py").neighbour_of_mine
        assert main_program.main(["--model", str(other / "idea.py"), *QUICK]) == 2
        told = capsys.readouterr().err
        assert f"idea.py imports {name}, which Python finds in" in told and "rename that file" in told
        assert import_of_first.__file__ == str(files / "neighbour_of_mine.py")


def test_a_plugin_that_has_changed_or_is_gone_is_told_in_one_line(files, capsys):
    assert main_program.main(["--model", "my_method.py", *QUICK, "--stop_after", "1"]) == 0
    run, plugin = only_run(files), files / "my_method.py"
    plugin.write_text(plugin.read_text() + "\n# a thought\n")
    assert main_program.main(["--resume", str(run), "--stop_after", "2"]) == 0
    notes = [line for line in capsys.readouterr().out.splitlines() if "has changed" in line]
    assert len(notes) == 1 and notes[0].startswith(f"note: {plugin} has changed since the run began")
    assert notes[0] in (run / "log.txt").read_text()
    plugin.unlink()
    assert main_program.main(["--resume", str(run)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--model of the run is gone" in line and str(run / "plugins" / "model.py") in line


def test_modules_are_found_below_the_folder_or_where_they_are_installed(files, monkeypatch):
    path = str(files / "my_own_package" / "idea.py")
    assert registry.canonical("models", "my_own_package.idea") == path
    module = registry.load("models", path)
    assert module.__name__ == "my_own_package.idea", "so that its package's other files are importable"
    assert registry.canonical("models", "my_own_package.idea") == path, "also after it was imported"
    elsewhere = files / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert registry.canonical("models", "my_own_package.idea") == "my_own_package.idea"
    assert outside.label("my_own_package.idea") == "my_own_package.idea"


def test_an_entry_point_of_an_installed_package_is_a_plugin(files, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(files))
    entry = EntryPoint("scaled", "my_own_package.idea", "engram.models")
    monkeypatch.setattr(
        "importlib.metadata.entry_points", lambda group: [entry] if group == entry.group else []
    )
    config = cli.parse(["--model", "scaled", "--factor", "2"]).config
    assert config.run.model == "scaled" and config.method.factor == 2
    assert registry.source_from_outside("models", "scaled") == (files / "my_own_package/idea.py").read_bytes()
    with pytest.raises(SystemExit):
        cli.parse(["--list"])
    assert "\n  scaled\n      my_own_package.idea" in capsys.readouterr().out
    with pytest.raises(UserError, match="did you mean scaled"):
        registry.canonical("models", "scaledd")


def test_a_file_that_was_edited_is_read_anew(files):
    """As in a notebook, whose process stays."""
    (files / "my_method.py").write_text(METHOD.replace("IMPORT", ""))
    assert cli.parse(["--model", "my_method.py", "--factor", "2"]).config.method.factor == 2
    (files / "my_method.py").write_text(METHOD.replace("IMPORT", "").replace("factor", "weight"))
    assert cli.parse(["--model", "my_method.py", "--weight", "2"]).config.method.weight == 2


@pytest.mark.parametrize(
    ("code", "at_fault"),
    [("1 / 0", "ZeroDivisionError: division by zero"), ("import nothing_such", "ModuleNotFoundError: No mod"),
     ("def f(:", "SyntaxError: invalid syntax")],
)  # fmt: skip
def test_an_error_in_the_file_is_told_with_its_line(files, capsys, code, at_fault):
    (files / "my_method.py").write_text(f'"""Mine."""\n\n{code}\n')
    assert main_program.main(["--model", "my_method.py"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: my_method cannot be imported: {at_fault}")
    assert f"{files / 'my_method.py'}, line 3: {code}" in line


def test_an_error_in_a_hook_is_told_with_its_line(files, capsys):
    (files / "my_method.py").write_text(
        METHOD.replace("IMPORT", "").replace("self.options.factor", "self.no_such")
    )
    assert main_program.main(["--model", "my_method.py", *QUICK]) == 70
    error, where = capsys.readouterr().err.splitlines()[-2:]
    assert error.startswith("error: AttributeError: 'Scaled' object has no attribute 'no_such'")
    assert where.strip().startswith(
        f"in your {files / 'my_method.py'}, line 23, in loss: return self.no_such"
    )


def test_a_loss_that_is_none_is_told_by_its_class(files, capsys):
    text = METHOD.replace("IMPORT", "").replace("return self.options.factor", "self.options.factor")
    (files / "my_method.py").write_text(text)
    assert main_program.main(["--model", "my_method.py", *QUICK]) == 2
    assert "error: Scaled.loss returned None; it must return a scalar tensor" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model", "nothing.py"], "unknown method nothing.py: there is no such file"),
        (
            ["--model", "no.such"],
            "unknown method no.such: no module of that name is installed, and no/such.py",
        ),
        (["--model", "er.py"], "there is a method er already, and tables would mix them; rename the file"),
        (["--model", "my_net.py"], "must define exactly one Method, not 0"),
        (["--model", "sgd", "--dataset", "my_net.py"], "my_net.py: does not define DEFAULTS"),
        (["--model", "sgd", "--backbone", "my_method.py"], "my_method.py: does not define build"),
        (["--model", "my_method.py", "--facto", "1"], "unknown argument --facto; did you mean --factor"),
    ],
)
def test_what_is_no_plugin_is_refused_in_one_line(files, capsys, flags, message):
    shutil.copy(files / "my_method.py", files / "er.py")
    assert main_program.main([*flags, *QUICK]) == 2
    assert message in capsys.readouterr().err


def test_the_projects_own_files_are_its_plugins(files):
    assert registry.canonical("models", str(registry.ROOT / "models" / "er.py")) == "er"
    data = registry.load("models", str(registry.ROOT / "datasets" / "seq_digits.py"))  # asked what it is
    assert data is registry.load("datasets", "seq-digits"), "not of Hugging Face's package datasets"


@pytest.mark.parametrize(
    ("recorded", "shown"),
    [("/a/my idea (2).py", "my_idea_2_"), ("er", "er"), ("a.b", "a.b"), ("/x/ü.py", "ü")],
)
def test_labels_are_fit_for_folders(recorded, shown):
    assert outside.label(recorded) == shown


def test_a_program_names_a_file_too(files):
    result = engram.train(model="my_method.py", factor=0.5, n_epochs=1, disable_log=True)
    assert result.record.title == "my_method on seq-digits, seed 0"


def test_a_sweep_puts_runs_of_a_file_where_main_does(files):
    """A file's absolute path below the output folder would be the path itself."""
    fixed = {"model": str(files / "my_method.py"), "dataset": str(files / "my_data.py"), "output_dir": "out"}
    (run,) = SweepSpec(fixed=fixed).resolved()
    assert path_of_new_run(run) == Path("out") / "my_data" / "my_method" / run.key
