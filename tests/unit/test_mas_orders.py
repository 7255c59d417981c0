"""The study of task orders: its table and the interval of its difference."""

import numpy as np
import pytest

from engram.scripts.studies import mas_orders, program
from tests.unit.stored_records import stored_record


def accuracies(spread: float, seed: int, n_seeds: int = 40) -> np.ndarray:
    """(3 orders, seeds) whose orders lie `spread` apart, each seed with noise of 1 %."""
    noise = np.random.default_rng(seed).normal(0, 0.01, (3, n_seeds))
    return 0.9 + spread * np.array([[-1], [0], [1]]) + noise


def test_the_spread_of_the_means_is_told_with_its_interval():
    found = {False: accuracies(0.05, 1), True: accuracies(0.01, 2)}
    low, high = mas_orders.interval(found)
    assert low < 0.04 < high and high - low < 4 * 2 * 0.01 / np.sqrt(40)
    text = mas_orders.table(found, {False: "0.01", True: "0.1"})
    row = [cell.strip() for cell in text.splitlines()[2].split("|")[1:-1]]
    assert row[:2] == ["sum", "0.01"]
    assert float(row[-1]) == pytest.approx(100 * found[False].mean(1).std(ddof=1), abs=0.005)
    assert f"smaller by {100 * low:.2f} to {100 * high:.2f} points (95 %)" in text


def test_no_difference_is_inside_the_interval():
    found = {False: accuracies(0.02, 3), True: accuracies(0.02, 4)}
    low, high = mas_orders.interval(found)
    assert low < 0 < high


def test_one_seed_has_no_interval():
    found = {way: accuracies(0.02, 5, n_seeds=1) for way in (False, True)}
    assert "95 %" not in mas_orders.table(found, {False: "1", True: "1"})


def test_a_study_names_the_commits_of_its_runs(tmp_path, capsys):
    page, folder = tmp_path / "RESULTS.md", tmp_path / "runs"
    page.write_text("<!-- table mas orders -->\n<!-- end mas orders -->\n")
    arguments = ["--output_dir", str(folder), "--update", str(page)]
    args = program.study_parser("", "runs").parse_args(arguments)
    assert program.run_study(lambda args: "| a |", "mas orders", args) == 0
    assert page.read_text() == "<!-- table mas orders -->\n| a |\n<!-- end mas orders -->\n", (
        "no runs, no note"
    )
    for seed, commit in enumerate(("b" * 40, "a" * 40)):
        (folder / "angle20" / str(seed)).mkdir(parents=True)
        run = stored_record({"model": "mas", "dataset": "seq-mnist", "seed": seed}, git_commit=commit)
        run.write(folder / "angle20" / str(seed) / "results.json")
    assert program.run_study(lambda args: "| a |", "mas orders", args) == 0
    note = f"devices: cpu; commits: {'a' * 10}, {'b' * 10}."
    assert page.read_text() == f"<!-- table mas orders -->\n| a |\n\n{note}\n<!-- end mas orders -->\n"
