"""README.md and CONTRIBUTING.md: their commands run or are valid, and everything that they name exists."""

import importlib
import importlib.util
import re
import shlex

import pytest

from engram.memorization.__main__ import PROGRAMS
from engram.utils.config.cli import parse
from tests.conftest import ROOT
from tests.integration.test_scripts import call_help

TEXTS = {name: (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "CONTRIBUTING.md")}
README = TEXTS["README.md"]
COMMAND = re.compile(r"^ *((?:python|make|torchrun) .*)$", re.MULTILINE)


def commands_in(text: str) -> list[list[str]]:
    """Words of every command: lines of bash and indented blocks, and `python ...` inside sentences."""
    blocks = "\n".join(re.findall(r"```bash\n(.*?)```", text, re.DOTALL))
    indented = "\n".join(
        re.findall(r"^ {4,}.*$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    )
    inline = "\n".join(re.findall(r"`((?:python|make) [^`]+)`", text))
    lines = COMMAND.findall("\n".join([blocks, indented, inline]))
    return [shlex.split(line, comments=True) for line in lines]


COMMANDS = [command for text in TEXTS.values() for command in commands_in(text)]
MAIN = [c[2:] for c in COMMANDS if c[:2] == ["python", "main.py"]]
HELP = [c for c in MAIN if "--help" in c or "--list" in c]
EMBEDDED = [c for c in MAIN if c not in HELP and "seq-digits" in c]
OTHERS = [c for c in MAIN if c not in HELP + EMBEDDED]
SCRIPTS = [c[1:] for c in COMMANDS if c[1].startswith("scripts/") and c[1].endswith(".py")]
MODULES = [c[2:] for c in COMMANDS if c[:2] == ["python", "-m"]]


def test_the_texts_have_commands_of_every_kind():
    assert len(HELP) >= 2 and len(EMBEDDED) >= 4 and len(OTHERS) >= 1
    assert len(SCRIPTS) >= 6 and len(MODULES) >= 4
    checked = len(MAIN) + len(SCRIPTS) + len(MODULES) + sum(c[0] == "make" for c in COMMANDS)
    assert checked == len(COMMANDS), "a command of a kind that nothing below checks"


def test_the_section_on_memorization_names_every_program():
    """On a line that calls it, or in the prose below, beside the command that lists them all."""
    section = README[README.index("## Memorization") :].split("\n## ")[0]
    called = re.findall(r"^python -m memorization\.(\w+) --", section, re.MULTILINE)
    assert len(called) >= 4 and "`python -m memorization`" in section
    assert set(PROGRAMS) <= {*called, *re.findall(r"`(\w+)`", section)}


@pytest.mark.parametrize("command", [c for c in MODULES if c[0].startswith("memorization.")], ids=" ".join)
def test_flags_given_to_programs_of_memorization_are_theirs(command, capsys):
    with pytest.raises(SystemExit):
        importlib.import_module(f"engram.{command[0]}").run(["--help"])
    text = capsys.readouterr().out
    for flag in (word for word in command if word.startswith("--")):
        assert re.search(rf"{flag}\b", text), f"{command[0]} has no {flag}"


def test_the_readme_stays_short():
    assert len(README.splitlines()) <= 200


@pytest.mark.parametrize("command", EMBEDDED, ids=" ".join)
def test_commands_on_the_embedded_data_run(command, folder, capsys):
    """As written, but into a folder and without the MLflow store of the project."""
    from engram import main as program

    code = program.main([*command, "--output_dir", str(folder), "--disable_log"])
    out = capsys.readouterr().out
    assert code == 0 and "average accuracy" in out and out.splitlines()[-1].startswith("results: ")


@pytest.mark.parametrize("command", OTHERS, ids=" ".join)
def test_other_commands_are_valid(command):
    """Words in capitals stand for what the reader fills in."""
    filled = ["seq-digits" if word == "NAME" else word for word in command]
    request = parse(filled)
    assert request.resume or request.config.run.model


@pytest.mark.parametrize("command", HELP, ids=" ".join)
def test_help_commands_print(command, capsys):
    with pytest.raises(SystemExit) as stop:
        parse(command)
    assert stop.value.code == 0 and len(capsys.readouterr().out.splitlines()) > 20


@pytest.mark.parametrize("command", SCRIPTS, ids=" ".join)
def test_flags_given_to_scripts_are_theirs(command, capsys, monkeypatch):
    """Those of sweep.py and tune.py may also be flags of main.py."""
    text = call_help(command[0], capsys, monkeypatch)
    if command[0] in ("scripts/sweep.py", "scripts/tune.py"):
        with pytest.raises(SystemExit):
            parse(["--model", "mas", "--help"])
        text += capsys.readouterr().out
    for flag in (word for word in command if word.startswith("--") and word != "--"):
        assert re.search(rf"{flag}\b", text), f"{command[0]} has no {flag}"


@pytest.mark.parametrize("command", MODULES, ids=" ".join)
def test_modules_named_in_commands_exist(command):
    if command[0] == "pytest":
        for path in (word for word in command[1:] if word.startswith("tests")):
            assert (ROOT / path).exists(), path
    else:
        assert importlib.util.find_spec(f"engram.{command[0]}"), command[0]


def test_the_method_in_the_readme_is_er():
    """The listing, executed, trains to the same weights as models/er.py."""
    from engram.models.method import Setup
    from tests.conftest import tiny_method
    from tests.contract.test_methods import assert_same, train, weights

    names: dict = {}
    (listing,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    exec(compile(listing, "README.md", "exec"), names)
    er, config = tiny_method("er", buffer_size=20)
    fresh, _ = tiny_method("er", buffer_size=20)
    setup = Setup(fresh.setup.benchmark, config.train, config.run.seed)
    listed = names["Replay"](fresh.net, names["Options"](buffer_size=20), setup)
    assert_same(weights(train(er, config)[0]), weights(train(listed, config)[0]))


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in {command[1] for command in COMMANDS if command[0] == "make"}:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
        assert f"make {target}" in makefile or target == "install", f"make help does not name {target}"


@pytest.mark.parametrize("name", TEXTS)
def test_files_named_in_the_texts_exist(name):
    """Links, paths in backticks that begin with a room, and the rooms of the map."""
    text = TEXTS[name]
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", text):
        assert (ROOT / target).exists(), target
    for path in re.findall(
        r"`((?:scripts|utils|models|datasets|backbones|memorization|tests)/[\w./-]*)`", text
    ):
        assert (ROOT / path).exists() or "NAME" in path, path
    for room in re.findall(r"^    (\w+)/ ", text, re.MULTILINE):
        assert (ROOT / room).is_dir(), room
