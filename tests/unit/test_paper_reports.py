"""What all tables beside published numbers ask of the runs in a cell: they differ in the seed alone."""

from pathlib import Path

import pytest

from engram.scripts import report
from engram.scripts.analysis import study_report
from engram.scripts.analysis.paper_report import PAPERS_DIR, Cell, Published
from engram.scripts.analysis.run_set import StoredRecord
from engram.utils.errors import UserError
from tests.unit.stored_records import run_set, stored_record

DATASETS = {"mer": "mnist-rotations", "perm-small": "perm-mnist"}
PAPERS = list(study_report.PAPERS)
WITH_ALL_RUNS = [paper for paper in PAPERS if paper != "audit"]  # whose rows are pairs of runs


def run(paper: str, seed: int = 0, **flags) -> StoredRecord:
    config = {
        "dataset": DATASETS.get(paper, "seq-mnist"), "model": "er", "seed": seed, "buffer_size": 500,
        "hidden_sizes": [100], "n_iters": 0, "batch_size": 10, "lr": 0.1, "scenario": None,
    }  # fmt: skip
    folder = f"runs/{seed}-" + "-".join(map(str, flags.values()))
    return stored_record(config | flags, folder, accuracy=0.5 + seed / 100)


def markdown(paper: str, *records: StoredRecord) -> str:
    return study_report.PAPERS[paper](run_set(*records)).markdown()


@pytest.mark.parametrize("paper", PAPERS)
def test_runs_that_differ_in_more_than_the_seed_are_refused(paper):
    """Else the deviation over a tuning grid is shown as one over seeds, or one of its runs alone."""
    for records in (
        [run(paper, 0), run(paper, 1), run(paper, 2, lr=0.3, n_iters=7)],
        [run(paper, 0), run(paper, 0, lr=0.3, n_iters=7)],
    ):
        with pytest.raises(UserError) as caught:
            markdown(paper, *records)
        text = str(caught.value)
        assert text.startswith(f"runs/0- and {records[-1].folder} belong in one cell")
        assert "differ in more than the seed: --n_iters (0, 7), --lr (0.1, 0.3);" in text


@pytest.mark.parametrize("paper", PAPERS)
def test_two_runs_of_a_seed_are_refused(paper):
    records = [run(paper, 0), run(paper, 1), run(paper, 1, output_dir="again")]
    with pytest.raises(UserError, match=r"^runs/1- and runs/1-again are two runs of seed 1 of one setting"):
        markdown(paper, *records)


@pytest.mark.parametrize("paper", WITH_ALL_RUNS)
def test_where_how_and_under_which_name_runs_were_made_does_not_matter(paper):
    flags = {"output_dir": "x", "data_dir": "y", "device": "cuda", "run_name": "z", "scenario": "class-il"}
    spread = (
        "0.50" if paper in ("scenarios", "perm-small") else "0.71"
    )  # a standard error there, as published
    assert f"50.50 ± {spread}" in markdown(paper, run(paper, 0), run(paper, 1, **flags))


@pytest.mark.parametrize("paper", PAPERS)
def test_the_runs_of_a_cell_are_in_the_order_of_their_seeds(paper):
    (cells,) = study_report.PAPERS[paper](run_set(*(run(paper, seed) for seed in (2, 0, 1)))).cells.values()
    assert [setting.seeds for setting in cells.values()] == [[0, 1, 2]]


@pytest.mark.parametrize("paper", ["mer", "scenarios"])
def test_benchmarks_that_are_not_shown_are_not_asked(paper):
    others = [run(paper, 0, dataset="seq-digits", lr=lr) for lr in (0.1, 0.3)]
    repeated = [run(paper, 0, dataset="seq-digits", output_dir="again", lr=0.1)]
    assert "50.00" in markdown(paper, run(paper), *others, *repeated)


@pytest.mark.parametrize(
    ("paper", "model", "row"),
    [("mer", "er_alg4", "er alg4"), ("scenarios", "ewc_online", "ewc online"),
     ("scenarios", "ewc_separate", "ewc"), ("rehearsal", "lars", "er loss_aware"),
     ("memorization", "cbrs", "er balanced")],
)  # fmt: skip
def test_a_method_with_a_name_of_its_own_stands_where_its_flag_does(paper, model, row):
    assert f"\n| {row} | " in markdown(paper, run(paper, model=model))


FILES = {
    "mer": ["mer.csv", "mer.svg", "mer.tex"],
    "memorization": ["memorization.csv", "memorization.tex"],
}  # of a paper that is not here: its .tex alone


def finished_run(folder: Path, **flags) -> None:
    """A run folder below `folder` as training leaves it, with nothing in it but results.json."""
    record = stored_record({"model": "er", "seed": 0, "buffer_size": 5120, "hidden_sizes": [100], **flags})
    folder = folder / f"er-{flags['lr']}"
    folder.mkdir(parents=True)
    record.write(folder / "results.json")


@pytest.mark.parametrize("paper", WITH_ALL_RUNS)
def test_a_papers_files_are_written_where_the_user_says_and_named(paper, tmp_path, capsys):
    """--out was once not asked, and what was written into the folder of the runs not said."""
    finished_run(
        tmp_path / "runs", dataset=DATASETS.get(paper, "seq-mnist"), lr=0.1, n_iters=5, batch_size=10
    )
    names = FILES.get(paper, [f"{paper}.tex"])
    for out, folder in (
        (["--out", str(tmp_path / "a" / "b")], tmp_path / "a" / "b"),
        ([], tmp_path / "runs"),
    ):
        assert report.main([paper, str(tmp_path / "runs"), "--figures", "svg", *out]) == 0
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("written: ")]
        assert sorted(line.removeprefix("written: ").split(", ")) == [str(folder / name) for name in names]
        assert sorted(path.name for path in folder.iterdir() if path.is_file()) == names
        assert out == [] or [path.name for path in (tmp_path / "runs").iterdir()] == ["er-0.1"]


def test_a_papers_tables_compare_with_what_the_paper_does(tmp_path, capsys):
    finished_run(tmp_path, dataset="seq-mnist", lr=0.1)
    assert report.main(["rehearsal", str(tmp_path), "--against", "er"]) == 2
    assert capsys.readouterr().err == (
        "error: --against: the tables of rehearsal have the paper's comparisons; leave it out\n"
    )


@pytest.mark.parametrize("path", sorted(PAPERS_DIR.glob("published_*.yaml")), ids=lambda path: path.stem)
def test_published_numbers_have_a_source_and_a_value_for_each_column(path):
    published = Published.read(path.stem.removeprefix("published_"))
    assert "arXiv" in published.source and published.values
    for methods in published.values.values():
        for name, values in methods.items():
            assert len(values) == len(published.columns), name
            for value in values:
                assert value is None or isinstance(value, float | str), (name, value)


def test_published_numbers_are_found_by_method_and_size():
    published = Published.read("mer")
    assert published.of("mnist-rotations", Cell("gem", 5120)) == ["~87.3", "~86.4", "~+1"]
    assert published.of("mnist-rotations", Cell("online")) == ["~53.38", "~58.82", "~-5.44"]
    assert published.of("mnist-rotations", Cell("agem", 5120)) == ["–"] * 3
    assert published.of("seq-digits", Cell("online")) == ["–"] * 3
