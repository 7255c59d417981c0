"""What all tables beside published numbers ask of the runs in a cell: they differ in the seed alone."""

import numpy as np
import pytest

from engram.scripts import report
from engram.scripts.analysis.run_set import one_per_seed
from engram.utils.errors import UserError
from engram.utils.metrics import accuracy_matrix

DATASETS = {"mer": "mnist-rotations"}
PAPERS = list(report.PAPERS)


def run(paper: str, seed: int = 0, **flags) -> dict:
    view = accuracy_matrix.summary(np.full((2, 2), 0.5 + seed / 100)) | {
        "R": [[0.5, None], [0.5, 0.5]],
        "bti": 0.0,
    }
    config = {
        "dataset": DATASETS.get(paper, "seq-mnist"), "model": "er", "seed": seed, "buffer_size": 500,
        "hidden_sizes": [100], "n_iters": 0, "batch_size": 10, "lr": 0.1, "scenario": None,
    }  # fmt: skip
    return {
        "config": config | flags, "seed": seed, "scenario": "class-il", "evaluated_on": "test",
        "class_il": view, "task_il": view, "path": f"runs/{seed}-" + "-".join(map(str, flags.values())),
        "seconds": {"total": 1.0}, "peak_memory_bytes": 2**20,
    }  # fmt: skip


@pytest.mark.parametrize("paper", PAPERS)
def test_runs_that_differ_in_more_than_the_seed_are_refused(paper):
    """Else the spread over a tuning grid is shown as one over seeds, or one of its runs alone."""
    for documents in (
        [run(paper, 0), run(paper, 1), run(paper, 2, lr=0.3, n_iters=7)],
        [run(paper, 0), run(paper, 0, lr=0.3, n_iters=7)],
    ):
        with pytest.raises(UserError) as caught:
            report.PAPERS[paper].markdown(documents)
        text = str(caught.value)
        assert text.startswith(f"runs/0- and {documents[-1]['path']} belong in one cell")
        assert "differ in more than the seed: --n_iters (0, 7), --lr (0.1, 0.3);" in text


@pytest.mark.parametrize("paper", PAPERS)
def test_two_runs_of_a_seed_are_refused(paper):
    documents = [run(paper, 0), run(paper, 1), run(paper, 1, output_dir="again")]
    with pytest.raises(UserError, match=r"^runs/1- and runs/1-again are two runs of seed 1 of one setting"):
        report.PAPERS[paper].markdown(documents)


@pytest.mark.parametrize("paper", PAPERS)
def test_where_how_and_under_which_name_runs_were_made_does_not_matter(paper):
    flags = {"output_dir": "x", "data_dir": "y", "device": "cuda", "run_name": "z", "scenario": "class-il"}
    assert "50.50 ± 0.71" in report.PAPERS[paper].markdown([run(paper, 0), run(paper, 1, **flags)])


def test_runs_stand_in_the_order_of_their_seeds_under_their_key():
    documents = [run("mer", seed, lr=lr) for seed in (2, 0, 1) for lr in (0.1, 0.3)]
    found = one_per_seed(documents, [document["config"]["lr"] for document in documents])
    assert {key: [own["seed"] for own in runs] for key, runs in found.items()} == {
        0.1: [0, 1, 2],
        0.3: [0, 1, 2],
    }


@pytest.mark.parametrize("paper", ["mer", "scenarios"])
def test_benchmarks_that_are_not_shown_are_not_asked(paper):
    other = [run(paper, 0, dataset="seq-digits", lr=lr) for lr in (0.1, 0.3)]
    assert "50.00" in report.PAPERS[paper].markdown([run(paper), *other])
