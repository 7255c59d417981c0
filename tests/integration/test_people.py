"""What is there for people: the listing, the result object, the skeleton of a method, the reference pages."""

import re
import subprocess
import sys

import numpy as np
import pytest

import engram
from engram.scripts import new_backbone, new_dataset, new_method
from engram.utils.config import plugin_docs, registry
from engram.utils.errors import UserError
from engram.utils.runs.run_result import RunResult
from tests.conftest import ROOT, run_main
from tests.waiting import LIMIT

pytestmark = pytest.mark.slow


def test_the_listing_names_everything_with_paper_and_scenarios(capsys):
    from engram.utils.config.cli import parse

    with pytest.raises(SystemExit) as stop:
        parse(["--list"])
    out = capsys.readouterr().out
    assert stop.value.code == 0
    for kind in plugin_docs.KINDS:
        for name in registry.names(kind):
            assert re.search(rf"^  {name}$", out, re.MULTILINE), name
    er = out.split("\n  er\n")[1].split("\n  ewc\n")[0].splitlines()
    assert er[1].strip().startswith("Chaudhry et al. 2019") and er[1].strip().endswith("(arXiv 1902.10486)")
    assert er[2].strip() == "class-il, task-il, domain-il"


def test_the_listing_imports_no_torch(tmp_path):
    done = run_main("--list", cwd=tmp_path, PYTHONPROFILEIMPORTTIME="1")
    imported = {line.split("|")[-1].strip() for line in done.stderr.splitlines() if "|" in line}
    assert "engram.utils.config.plugin_docs" in imported and not imported & {"torch", "numpy", "mlflow"}


@pytest.mark.parametrize("plugin", plugin_docs.plugins("datasets"), ids=lambda p: p.name)
def test_scenarios_read_from_the_source_are_those_that_are_built(plugin):
    """As far as the stream can be built without data."""
    assert plugin.scenarios, plugin.name
    if "(domain-IL)" in plugin.summary:
        assert plugin.scenarios == ("domain-il",)


@pytest.mark.parametrize("plugin", plugin_docs.plugins("models"), ids=lambda p: p.name)
def test_scenarios_of_methods_are_the_classes_own(plugin):
    from engram.models.method import Method

    own = registry.plugin_class(registry.load("models", plugin.name), Method).scenarios
    assert plugin.scenarios == tuple(own)


def test_a_docstring_is_taken_apart():
    text = "\nSource: A 2019, (1), eq. 2;\nmore.\nDiffers from the papers: nothing\nat all.\n\nFree text."
    assert plugin_docs.split(text) == ("A 2019, (1), eq. 2;\nmore.", "nothing\nat all.", "Free text.")
    assert plugin_docs.paper('Riemer et al. 2019, "Learning" (arXiv 1810.11910), Algorithm 4') == (
        'Riemer et al. 2019, "Learning" (arXiv 1810.11910)'
    )


@pytest.mark.parametrize("kind", plugin_docs.KINDS)
def test_the_listing_cuts_no_source_short(kind):
    """No "e.g" without its example, no parenthesis that stays open."""
    for plugin in plugin_docs.plugins(kind):
        paper = plugin_docs.paper(plugin.source)
        assert not paper.endswith("e.g") and paper.count("(") == paper.count(")"), plugin.name


def test_the_result_of_a_run_shows_itself(tmp_path, monkeypatch):
    """What a notebook's cell ends with."""
    monkeypatch.chdir(tmp_path)
    result = engram.train(model="er", dataset="seq-digits", buffer_size=50, n_epochs=1, disable_log=True)
    assert result.R.shape == (5, 5) and result.status == "finished"
    assert "er on seq-digits, seed 0, finished: class-IL accuracy" in repr(result)
    assert result._repr_html_().startswith("<p>er on seq-digits")
    assert len(result.plot().axes) == 2
    log = (result.path / "log.txt").read_text()
    assert f"picture: {result.path}/accuracy_matrix_class_il.png" in log
    assert "above the diagonal are tasks that are not learned yet" in log
    assert np.array_equal(RunResult(result.path).R, result.R)
    assert np.isclose(result.R[-1].mean(), result.metrics["class_il"]["average_accuracy"])


def test_flags_are_checked_as_on_the_command_line():
    with pytest.raises(UserError, match="did you mean --buffer_size"):
        engram.train(model="er", bufer_size=5)
    with pytest.raises(UserError, match="holds no results"):
        RunResult("/nowhere")


def test_what_is_new_passes_its_tests(tmp_path, monkeypatch):
    """All skeletons, in a copy of the house, under the contract suite and their own tests."""
    rooms = ("backbones", "datasets", "memorization", "models", "scripts", "tests", "utils")
    subprocess.run(
        ["cp", "-r", "main.py", "engram.py", "pyproject.toml", *rooms, tmp_path], cwd=ROOT, check=True
    )
    written = new_method.SKELETON.write("my_idea", tmp_path)
    assert [str(path) for path in written] == ["models/my_idea.py", "tests/reference/test_my_idea.py"]
    made = (tmp_path / "models" / "my_idea.py").read_text()
    assert "class MyIdea(Method):" in made and "CLASS" not in made
    monkeypatch.setattr(registry, "checkout", lambda: tmp_path)
    assert new_method.main(["my_replay", "--rehearsal"]) == 0
    assert "class MyReplay(RehearsalMethod):" in (tmp_path / "models" / "my_replay.py").read_text()
    new_dataset.SKELETON.write("my_data", tmp_path)
    new_backbone.SKELETON.write("my_net", tmp_path)
    flags = ["-p", "no:cacheprovider", "-p", "no:xdist", "-k", "my_idea or my_replay or my_data or my_net"]
    tests = ["reference/test_my_idea.py", "reference/test_my_replay.py"]
    tests += ["unit/test_my_data.py", "unit/test_my_net.py", "contract"]
    command = [sys.executable, "-m", "pytest", *flags, *(f"tests/{path}" for path in tests)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=LIMIT)
    assert done.returncode == 0, done.stdout[-3000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) >= 28


@pytest.mark.parametrize(
    ("program", "name", "message"),
    [
        (new_method, "My-Idea", "small letters"), (new_method, "er", "is taken"),
        (new_method, "method", "is taken"), (new_dataset, "seq_digits", "is taken"),
        (new_dataset, "streams", "is taken"), (new_backbone, "cnn", "is taken"),
        (new_backbone, "resnet18", "is taken"),
    ],
)  # fmt: skip
def test_names_that_no_plugin_can_have(program, name, message, capsys):
    assert program.main([name]) == 2
    assert message in capsys.readouterr().err
