"""The README's commands: run where they need no data, otherwise parsed; its files and targets exist."""

import re
import shlex
import subprocess

import pytest

from engram.utils.config.cli import parse
from tests.conftest import ROOT

TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL)
COMMANDS = [shlex.split(line, comments=True) for block in BLOCKS for line in block.strip().splitlines()]
MAIN = [c[2:] for c in COMMANDS if c[:2] == ["python", "main.py"]]
HELP = [c for c in MAIN if "--help" in c]
EMBEDDED = [c for c in MAIN if c not in HELP and "seq-digits" in c]
OTHERS = [c for c in MAIN if c not in HELP + EMBEDDED]


def test_the_readme_has_commands_of_every_kind():
    assert len(HELP) >= 2 and len(EMBEDDED) >= 4 and len(OTHERS) >= 1
    assert {c[0] for c in COMMANDS} == {"make", "python"}


@pytest.mark.parametrize("command", EMBEDDED, ids=" ".join)
def test_commands_on_the_embedded_data_run(command, folder, capsys):
    """As written, but into a folder and without the MLflow store of the project."""
    from engram import main as program

    code = program.main([*command, "--output_dir", str(folder), "--disable_log"])
    out = capsys.readouterr().out
    assert code == 0 and "average accuracy" in out and out.splitlines()[-1].startswith("results: ")


@pytest.mark.parametrize("command", OTHERS, ids=" ".join)
def test_other_commands_are_valid(command):
    assert parse(command).config.run.model


@pytest.mark.parametrize("command", HELP, ids=" ".join)
def test_help_commands_print(command, capsys):
    with pytest.raises(SystemExit) as stop:
        parse(command)
    assert stop.value.code == 0 and "usage:" in capsys.readouterr().out


def test_the_method_in_the_readme_is_er():
    """The listing, executed, trains to the same weights as models/er.py."""
    from engram.models.method import Setup
    from tests.conftest import tiny_method
    from tests.contract.test_methods import assert_same, train, weights

    names: dict = {}
    (listing,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    exec(compile(listing, "README.md", "exec"), names)
    er, config = tiny_method("er", buffer_size=20)
    fresh, _ = tiny_method("er", buffer_size=20)
    setup = Setup(fresh.setup.benchmark, config.train, config.run.seed)
    listed = names["Replay"](fresh.net, names["Options"](buffer_size=20), setup)
    assert_same(weights(train(er, config)[0]), weights(train(listed, config)[0]))


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    named = {c[1] for c in COMMANDS if c[0] == "make"} | set(re.findall(r"`make (\w+)`", TEXT))
    for target in named:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_files_named_in_the_readme_exist():
    """Scripts, documents and the rooms of the map."""
    for name in set(re.findall(r"`(scripts/[\w.]+)`", TEXT)) | {"CONTRIBUTING.md", "env.yml"}:
        assert (ROOT / name).exists(), name
    for room in re.findall(r"^    (\w+)/ ", TEXT, re.MULTILINE):
        assert (ROOT / room).is_dir(), room


@pytest.mark.parametrize("script", ["scripts/report.py", "scripts/bench"])
def test_scripts_explain_themselves(script):
    import sys

    done = subprocess.run(
        [sys.executable, str(ROOT / script), "--help"], capture_output=True, text=True, check=True
    )
    assert "usage:" in done.stdout
