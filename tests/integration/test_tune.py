"""Tuning: the stability-decay rule by hand, and through main.py without the test set."""

import argparse
import dataclasses
import json
import shutil
import sys

import numpy as np
import pytest
import yaml

from engram import main as program
from engram.datasets import sources
from engram.scripts import tune
from engram.scripts.strengths import START_STRENGTHS
from engram.scripts.trials import average_accuracy, learning_accuracy
from engram.scripts.tune import checked, choose, preset, write_preset
from engram.utils.config import registry
from engram.utils.config.cli import parse
from engram.utils.errors import UserError
from engram.utils.runs.run_record import RunRecord
from engram.utils.training.trainer import Trainer
from tests.conftest import ROOT, tiny_config

pytestmark = pytest.mark.slow

STREAM = ["--dataset", "seq-digits", "--n_epochs", "1", "--batch_size", "40", "--multi_head"]


def scripted(sgd: dict, decay: dict):
    """A measure that answers from tables, and the strengths it was asked about."""
    asked = []

    def measure(model, flags):
        if model == "sgd":
            return sgd[flags["lr"]]
        asked.append(dict(flags))
        return decay.get(flags["s"], 0.0)

    return measure, asked


def test_the_first_strength_within_the_drop_is_taken():
    measure, asked = scripted(
        {0.1: 0.7, 0.01: 0.9, 0.001: 0.8}, {8.0: 0.1, 4.0: None, 2.0: 0.719, 1.0: 0.721}
    )
    found = choose(measure, "x", (0.1, 0.01, 0.001), {"s": 8.0, "t": 2.0}, drop=0.2, tries=10)
    assert (found.lr, found.best, found.accuracy, found.n_tries) == (0.01, 0.9, 0.721, 4)
    assert found.strengths == {"s": 1.0, "t": 0.25}, "flags are halved together"
    assert [a["s"] for a in asked] == [8.0, 4.0, 2.0, 1.0] and all(a["lr"] == 0.01 for a in asked)


def test_exactly_the_threshold_is_enough_and_tries_end():
    measure, asked = scripted({0.1: 0.5}, {1.0: 0.25})
    assert choose(measure, "x", (0.1,), {"s": 1.0}, drop=0.5, tries=1).accuracy == 0.25
    found = choose(measure, "x", (0.1,), {"s": 2.0}, drop=0.49, tries=3)
    assert found.strengths is None and found.accuracy is None and found.n_tries == 3
    assert [a["s"] for a in asked[1:]] == [2.0, 1.0, 0.5]


def test_a_rate_that_diverges_is_not_taken():
    measure, _ = scripted({0.1: None, 0.01: 0.4}, {1.0: 0.4})
    assert choose(measure, "x", (0.1, 0.01), {"s": 1.0}, 0.2, 10).lr == 0.01
    measure, _ = scripted({0.1: None}, {})
    with pytest.raises(UserError, match=r"--rates 0.1: sgd diverged at all of them"):
        choose(measure, "x", (0.1,), {"s": 1.0}, 0.2, 10)


def test_learning_accuracy_is_the_diagonal_of_the_scenarios_view():
    views = {"class_il": {"R": [[0.9, None], [0.1, 0.7]]}, "task_il": {"R": [[1.0, None], [0.2, 0.5]]}}
    values = {"config": {}, "status": "finished", **views}
    class_il, task_il = (RunRecord.from_json(values | {"scenario": s}) for s in ("class-il", "task-il"))
    assert learning_accuracy(class_il, 2) == pytest.approx(0.8)
    assert learning_accuracy(task_il, 2) == 0.75
    assert learning_accuracy(class_il, 1) == 0.9
    assert average_accuracy(class_il, 2) == pytest.approx(0.4) and average_accuracy(task_il, 2) == 0.35
    assert average_accuracy(class_il, 1) == 0.9, "of the first tasks, when the last of these was learned"
    class_il.views["class_il"].R[1, 1] = np.nan
    with pytest.raises(UserError, match="task 1 has no accuracy"):
        learning_accuracy(class_il, 2)


def test_without_a_strength_the_rate_of_the_method_itself_is_chosen():
    accuracies = {0.1: 0.4, 0.01: None, 0.001: 0.6}
    found = choose(
        lambda model, flags: {"er": accuracies}[model][flags["lr"]], "er", (*accuracies,), {}, 0, 1
    )
    assert found == tune.Choice(0.001, 0.6, {}, 0.6, 0)


def test_er_has_its_rate_tuned_by_average_accuracy(folder, capsys):
    """As `python scripts/tune.py --model er --rates ...`: no run of sgd, the highest mean of R's last row."""
    flags = ["--dataset", "seq-digits", "--n_epochs", "1", "--buffer_size", "100", "--first_tasks", "2"]
    assert tune.main(["--model", "er", *flags, "--rates", "0.1,0.001", "--output_dir", str(folder)]) == 0
    said = capsys.readouterr()
    means = {d["config"]["lr"]: sum(d["class_il"]["R"][1][:2]) / 2 for d in documents(folder).values()}
    assert means.keys() == {0.1, 0.001} and {d["config"]["model"] for d in documents(folder).values()} == {
        "er"
    }
    assert f"er lr 0.1: average accuracy {100 * means[0.1]:.2f} %\n" in said.out
    entry = yaml.safe_load(said.out[said.out.index("seq-digits:") :])["seq-digits"][100]
    best = max(means, key=means.get)
    assert entry["lr"] == best and f"the best rate: average accuracy {means[best]:.4f} on" in entry["source"]
    assert "no strength of er is known: its rate alone is tuned" in said.err
    assert "accepted at once" not in said.err


class Untouchable:
    """Raises at whatever is done with it."""

    def __getattribute__(self, name):
        raise AssertionError(f"the test set was touched: {name}")

    def __len__(self):
        raise AssertionError("the test set was touched: len")

    def __getitem__(self, index):
        raise AssertionError("the test set was touched: []")


@pytest.fixture
def no_test_set(monkeypatch):
    """The embedded digits, their test images and labels out of reach."""
    real = sources.digits()
    parts = (real.name, real.train_x, real.train_y, Untouchable(), Untouchable(), real.classes)
    monkeypatch.setattr(sources, "digits", lambda: sources.Source(*parts))


@pytest.fixture
def presets(tmp_path, monkeypatch):
    """A copy of the presets, where they are written to and looked for."""
    for kind in ("models", "datasets", "backbones"):
        registry.names(kind)  # are cached: the plugins stay where they are
    folder = tmp_path / "models" / "presets"
    shutil.copytree(ROOT / "models" / "presets", folder)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)  # holds the version
    monkeypatch.setattr(registry, "ROOT", tmp_path)
    return folder


def documents(folder) -> dict[str, dict]:
    return {p.parts[-5]: json.loads(p.read_text()) for p in folder.glob("tune/*/*/*/*/results.json")}


def test_the_whole_rule_on_digits_never_reads_the_test_set(no_test_set, folder, capsys):
    flags = ["--model", "sgd", *STREAM, "--disable_log", "--output_dir", str(folder / "x")]
    assert program.main(flags) == 70 and "the test set was touched" in capsys.readouterr().err
    arguments = [
        "--model",
        "mas",
        *STREAM,
        "--mas_n",
        "50",
        "--rates",
        "0.1,0.001",
        "--strength",
        "mas_lambda=64",
    ]
    arguments += ["--first_tasks", "3", "--drop", "0.05", "--seeds", "0,1", "--output_dir", str(folder)]
    capsys.readouterr()
    assert tune.main(arguments) == 0
    said = capsys.readouterr().out
    found = documents(folder)
    assert all(d["evaluated_on"] == "validation" and d["config"]["validation"] == 10 for d in found.values())
    by_sgd = [d for d in found.values() if d["config"]["model"] == "sgd"]
    by_mas = [d for d in found.values() if d["config"]["model"] == "mas"]
    assert len(by_sgd) == 4 and "mas_n" not in by_sgd[0]["config"]
    means = {}
    for d in by_sgd + by_mas:
        key = d["config"]["model"], d["config"]["lr"], d["config"].get("mas_lambda")
        if d["status"] != "failed":
            assert d["status"] == "stopped" and d["task_il"]["R"][3][0] is None
            means.setdefault(key, []).append(sum(d["task_il"]["R"][k][k] for k in range(3)) / 3)
    best = sum(means["sgd", 0.1, None]) / 2
    assert best > sum(means["sgd", 0.001, None]) / 2
    entry = yaml.safe_load(said[said.index("seq-digits:") :])["seq-digits"]["any"]
    chosen = entry["mas_lambda"]
    tried = sorted({d["config"]["mas_lambda"] for d in by_mas}, reverse=True)
    assert tried == [64 / 2**n for n in range(len(tried))] and tried[-1] == chosen < 64
    assert sum(means["mas", 0.1, chosen]) / 2 >= 0.95 * best
    refused = means.get(("mas", 0.1, 2 * chosen))
    assert refused is None or len(refused) < 2 or sum(refused) / 2 < 0.95 * best
    assert {k: entry[k] for k in ("lr", "multi_head", "mas_n", "batch_size")} == {
        "lr": 0.1, "multi_head": True, "mas_n": 50, "batch_size": 40,
    }  # fmt: skip
    assert "10 % held-out training data, 3 tasks, seeds 0,1" in entry["source"]
    assert not set(entry) & {"validation", "stop_after", "seed", "output_dir", "disable_log"}


def test_finished_runs_are_not_repeated_and_stopped_ones_resumed(folder, presets, monkeypatch, capsys):
    arguments = [
        "--model",
        "ewc",
        *STREAM,
        "--rates",
        "0.1",
        "--strength",
        "e_lambda=0.01",
        "--output_dir",
        str(folder),
    ]
    calls, real = [], program.main

    def counting(flags):
        calls.append(flags)
        return real(flags)

    monkeypatch.setattr(program, "main", counting)
    assert tune.main(arguments) == 0
    said = capsys.readouterr()
    assert len(calls) == 2 and "accepted at once: a higher start may be accepted too" in said.err
    assert tune.main(arguments) == 0
    assert len(calls) == 2 and capsys.readouterr().out == said.out
    (path,) = folder.glob("tune/ewc-*/*/*/*/results.json")
    dataclasses.replace(RunRecord.read(path.parent), status="interrupted").write(path)
    assert tune.main(arguments) == 0
    assert calls[2:] == [["--resume", str(path.parent)]] and capsys.readouterr().out == said.out
    assert tune.main([*arguments, "--write"]) == 0
    assert capsys.readouterr().out == said.out + f"written to {presets / 'ewc.yaml'}\n" and len(calls) == 3
    assert yaml.safe_load((presets / "ewc.yaml").read_text())["seq-digits"]["any"]["e_lambda"] == 0.01


SHORT = [*STREAM, "--first_tasks", "2", "--strength", "e_lambda=0.01", "--model", "ewc"]


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt, 130), (MemoryError, 2)])
def test_a_trial_that_failed_without_diverging_is_resumed(error, code, folder, monkeypatch, capsys):
    """A second Ctrl-C or a full memory says nothing of the rate, here the better one."""
    arguments = [*SHORT, "--rates", "0.1,0.001", "--output_dir"]
    assert tune.main([*arguments, str(folder / "fresh")]) == 0
    said = capsys.readouterr().out
    assert " lr: 0.1\n" in said
    real = Trainer._evaluate_row

    def failing(self, task):
        if task.id == 1:
            raise error
        real(self, task)

    with monkeypatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr(Trainer, "_evaluate_row", failing)
        sys.exit(tune.main([*arguments, str(folder / "broken")]))
    assert ended.value.code == code
    assert [d["status"] for d in documents(folder / "broken").values()] == ["failed"]
    capsys.readouterr()
    assert tune.main([*arguments, str(folder / "broken")]) == 0
    assert capsys.readouterr().out == said


def test_a_trial_that_diverged_diverges_again(folder, capsys):
    arguments = [*SHORT, "--rates", "1e20,0.1", "--output_dir", str(folder)]
    assert tune.main(arguments) == 0
    said = capsys.readouterr().out
    assert said.startswith("sgd lr 1e+20: diverged\n") and " lr: 0.1\n" in said
    assert tune.main(arguments) == 0 and capsys.readouterr().out == said


def test_a_written_preset_is_found_by_load_best_args(presets):
    before = yaml.safe_load((presets / "er.yaml").read_text())
    flags = {"lr": 0.03, "lr_milestones": [3, 4], "source": "a test"}
    write_preset(presets / "er.yaml", "seq-cifar10", 123, flags)
    write_preset(
        presets / "mas.yaml", "seq-mnist", "any", {"lr": 0.001, "mas_lambda": 1e-05, "source": "a test"}
    )
    after = yaml.safe_load((presets / "er.yaml").read_text())
    assert after["seq-cifar10"][123] == flags
    after["seq-cifar10"].pop(123)
    assert after == before, "what was there stays, and only one benchmark changes"
    write_preset(presets / "er.yaml", "seq-cifar10", 123, {"lr": 0.5, "source": "again"})
    assert yaml.safe_load((presets / "er.yaml").read_text())["seq-cifar10"][123]["lr"] == 0.5
    config = parse(["--model", "mas", "--dataset", "seq-mnist", "--load_best_args"]).config
    assert (config.method.mas_lambda, config.train.lr) == (1e-05, 0.001)
    config = parse(
        ["--model", "er", "--dataset", "seq-cifar10", "--load_best_args", "--buffer_size", "123"]
    ).config
    assert config.train.lr == 0.5


def test_what_makes_a_preset():
    config = tiny_config("ewc", dataset="seq-digits", seed=7, validation=20.0, e_lambda=5.0, optim_mom=0.9)
    choice = tune.Choice(0.01, 0.9, {"e_lambda": 2.5}, 0.8, 2)
    dataset, size, flags = preset(config, choice, "why")
    assert (dataset, size) == ("seq-digits", "any")
    assert flags == {
        "n_tasks": 3, "n_epochs": 1, "batch_size": 4, "optim_mom": 0.9, "hidden_sizes": [8], "lr": 0.01,
        "e_lambda": 2.5, "source": "why",
    }  # fmt: skip
    assert preset(tiny_config("er", buffer_size=30), choice, "why")[1] == 30


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "mas", "--n_taks", "3"], "unknown argument --n_taks; did you mean --n_tasks"),
        (
            ["--model", "mas", "--n_tasks", "30", "--rates", "0.1"],
            "10 classes can be split into 1 to 10 tasks",
        ),
        (["--resume", "x"], "--resume: not for tuning"),
        (["--model", "ewc", "--strength", "e_lamda=3"], "not a flag of ewc; did you mean e_lambda"),
    ],
)
def test_bad_input_is_one_clear_error(folder, capsys, arguments, message):
    extra = ["--n_epochs", "1", "--batch_size", "200", "--output_dir", str(folder)]
    assert tune.main([*arguments, *([] if "--resume" in arguments else extra)]) == 2
    assert message in capsys.readouterr().err


RATELESS = "--lr has no effect on it, so no rate of it can be tuned; "
MERGED = "merging alone makes worse, so no strength would be accepted; compare a grid on held-out data"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "imm_mean"], MERGED),
        (["--model", "imm_mode", "--strength", "imm_lambda=1"], MERGED),
        *(
            (["--model", model], f"--model {model}: {RATELESS}compare its own flags")
            for model in ("gdumb", "ranpac", "slda")
        ),
        (["--model", "ncm"], f"--model ncm: {RATELESS}it has no flags of its own either"),
        (["--model", "gdumb", "--strength", "maxlr=0.1"], RATELESS),
        (["--model", "er", "--drop", "0.2"], "--drop: without effect, since no strength of er is known"),
        (["--model", "er", "--tries", "10", "--drop", "0"], "--drop, --tries: without effect, since no"),
        (["--model", "mas", "--first_tasks", "6"], "--first_tasks 6: the stream has 5 tasks; give 1 to 5"),
        (["--model", "mas", "--first_tasks", "-1"], "--first_tasks -1: the stream has 5 tasks; give 1 to 5"),
        (
            ["--model", "mas", "--drop", "20"],
            "--drop 20: a share from 0 to below 1 is expected, e.g. 0.2 for",
        ),
        (["--model", "mas", "--drop", "1"], "--drop 1: a share from 0 to below 1"),
        (["--model", "mas", "--drop", "-0.1"], "--drop -0.1: a share from 0 to below 1"),
        (["--model", "mas", "--drop", "nan"], "--drop nan: a share from 0 to below 1"),
    ],
)
def test_what_cannot_be_tuned_is_refused_before_the_first_run(arguments, message, monkeypatch, capsys):
    monkeypatch.setattr(program, "main", None)
    assert tune.main(arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("flags", [["--model", "ranpac", "--first_task", "full"], ["--model", "aper"]])
def test_the_rate_of_an_adaptation_to_the_first_task_is_tuned(flags):
    """Later tasks take no step, and it is the rate that decides what they find."""
    args = argparse.Namespace(first_tasks=3, drop=None, strength=None, tries=None)
    assert checked(args, parse([*flags, "--dataset", "seq-digits"]).config) == {}


def test_a_strength_without_words_is_refused(capsys):
    with pytest.raises(SystemExit, match="2"):
        tune.main(["--model", "er", "--strength", ""])
    assert "argument --strength: nothing: expected e.g. e_lambda=1000" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "used"), [([], (0.2, 10)), (["--drop", "0"], (0.0, 10)), (["--tries", "3"], (0.2, 3))]
)
def test_drop_and_tries_are_those_given_or_those_of_the_help(flags, used, monkeypatch, folder, capsys):
    asked = []

    def refusing(measure, model, rates, start, drop, tries):
        asked.append((drop, tries))
        return tune.Choice(0.1, 0.9, None, None, tries)

    monkeypatch.setattr(tune, "choose", refusing)
    assert tune.main(["--model", "mas", *flags, "--output_dir", str(folder)]) == 2
    assert asked == [used]
    assert f"none of {used[1]} strengths reached {1 - used[0]:g} of 90.00 %" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        tune.main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "below 1 (default: 0.2)" in text and "that are tried (default: 10)" in text


@pytest.mark.parametrize("first_tasks", ["0", "1", "3"])
def test_some_or_all_tasks_may_be_tuned_on(first_tasks):
    args = tune.parser().parse_args(["--first_tasks", first_tasks])
    assert checked(args, tiny_config("mas")) == START_STRENGTHS["mas"]


def test_no_strength_that_is_accepted_is_said(folder, capsys):
    arguments = ["--model", "mas", *STREAM, "--rates", "0.1", "--strength", "mas_lambda=1000", "--tries", "1"]
    assert tune.main([*arguments, "--drop", "0.01", "--output_dir", str(folder)]) == 2
    assert "none of 1 strengths reached 0.99 of" in capsys.readouterr().err
