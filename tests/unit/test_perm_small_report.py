"""Permuted MNIST at a smaller size: our runs beside those of the original code, seed by seed."""

from itertools import pairwise

from engram.scripts.analysis.papers.perm_small import OriginalRuns, PermSmallReport
from engram.scripts.analysis.run_set import StoredRecord
from tests.unit.stored_records import run_set
from tests.unit.test_scenario_report import commands, run

SMALL = {"dataset": "perm-mnist", "n_tasks": 5, "n_iters": 200, "batch_size": 256}


def report(monkeypatch, original: dict, *records: StoredRecord) -> list[str]:
    """The lines of the report where the original ended at these accuracies."""
    runs = OriginalRuns("the source", {"perm-mnist": original})
    monkeypatch.setattr(OriginalRuns, "read", lambda name: runs)
    return PermSmallReport(run_set(*records)).markdown().splitlines()


def test_differences_are_taken_seed_by_seed(monkeypatch):
    """Seeds that only one of both has count in its mean, not in the difference."""
    original = {"sgd": {"task-il": {9: 60.0, 2: 82.0, 0: 86.0}, "domain-il": {0: 70.0}}}
    records = [run("sgd", "task-il", seed, accuracy, **SMALL) for seed, accuracy in
               ((0, 0.87), (1, 0.5), (2, 0.85))]  # fmt: skip
    records += [run("sgd", "domain-il", 0, 0.69, **SMALL), run("si", "class-il", 0, 0.3, si_c=10.0, **SMALL)]
    lines = report(monkeypatch, original, *records)
    assert lines[0].endswith("test data; 1 tasks") and "In parentheses: the source." in lines
    assert lines[2].startswith("| method | task-il (original) |")
    # ours 87, 50, 85: standard deviation 20.82, over √3; theirs 86, 82, 60: 14.00
    assert lines[4] == ("| sgd | 74.00 ± 12.01 (76.00 ± 8.08) | 69.00 (70.00) | – (–) | 3 / 1 / – |")
    assert lines[5] == "| si | – (–) | – (–) | 30.00 (–), λ 10 | – / – / 1 |"
    # differences 1 and 3: mean 2, standard error 1, t(0.975, 1) = 12.706
    assert lines[-2:] == ["| sgd | +2.00 ± 12.71 | -1.00 | – |", "| si | – | – | – |"]


def test_the_original_was_run_on_each_setting_that_the_script_runs():
    original = OriginalRuns.read("perm_small").values["perm-mnist"]
    settings = set()
    for flags in commands("perm-small"):
        values = dict(pairwise(flags))
        name = "ewc online" if values.get("--ewc_mode") == "online" else values["--model"]
        settings.add((name, values["--scenario"]))
        size = [values[f"--{flag}"] for flag in ("n_tasks", "n_iters", "batch_size", "hidden_sizes", "lr")]
        assert size == ["5", "200", "256", "400,400", "0.001"]
    assert settings == {(method, scenario) for method, runs in original.items() for scenario in runs}
    for accuracies in (runs for scenarios in original.values() for runs in scenarios.values()):
        assert 0 in accuracies and all(10 < value < 100 for value in accuracies.values())
