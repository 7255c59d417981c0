"""Reports of studies: settings, statistics, files; every number from the runs' own results."""

import csv
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from scripts import report
from scripts.reporting import figures, tables
from scripts.reporting.runs import load, study
from utils import metrics
from utils.errors import UserError

T = 3
CONFIG = {
    "model": "er", "dataset": "seq-digits", "backbone": "mlp", "n_tasks": T, "n_epochs": 1, "batch_size": 10,
    "lr": 0.1, "output_dir": "runs", "run_name": None, "data_dir": "/somewhere", "num_threads": 0,
}  # fmt: skip


def accuracy(seed: int, plus: float) -> np.ndarray:
    """R (T, T), its mean rising with `plus`."""
    draws = np.random.default_rng(seed)
    return np.clip(draws.uniform(0.5, 0.7, (T, T)) + plus, 0, 1)


def write_run(
    folder: Path, seed: int, plus: float = 0.0, status: str = "finished", curve=(), **flags
) -> dict:
    R = accuracy(seed, plus)
    config = CONFIG | flags | {"seed": seed, "data_dir": f"/of/{seed}"}
    views = {
        "class_il": {"R": R.tolist(), **metrics.summary(R)},
        "task_il": {"R": np.minimum(R + 0.2, 1).tolist(), **metrics.summary(np.minimum(R + 0.2, 1))},
    }
    document = {
        "config": config, "seed": seed, "status": status, "scenario": "class-il", **views, "fwt": 0.1,
        "b": [0.1] * T, "curve": list(curve), "images_per_second": 1000.0, "peak_memory_bytes": 2**30,
        "seconds": {"total": 4.0 + seed, "train": 3.0, "eval": 0.5, "data": 0.2},
        "device": "cpu (x86_64, 1 threads)", "versions": {"torch": "2.15.0"}, "git_commit": "0123456789abcd",
    }  # fmt: skip
    name = f"{config['model']}-{seed}-" + "-".join(f"{k}{v}" for k, v in flags.items())
    run = folder / config["dataset"] / config["model"] / name
    run.mkdir(parents=True)
    (run / "results.json").write_text(json.dumps(document))
    return document


@pytest.fixture
def folder(tmp_path) -> Path:
    runs = tmp_path / "digits"
    for seed in range(3):
        curve = [
            {
                "step": 10 * i,
                "task": i // 2,
                "class_il": [0.5] * (i // 2 + 1),
                "task_il": [0.6] * (i // 2 + 1),
            }
            for i in range(6)
        ]
        write_run(runs, seed, model="sgd", curve=curve)
        for size, plus in ((50, 0.05), (500, 0.2)):
            write_run(runs, seed, plus + 0.01 * seed, buffer_size=size, buffer_policy="min")
            write_run(runs, seed, plus, buffer_size=size, model="maer", buffer_policy="middle")
    write_run(runs, 9, model="sgd", status="failed")
    (runs / "seq-digits" / "sgd" / "sgd-9-modelsgd" / "log.txt").write_text(
        "run: x\nerror: the loss became inf\nresults: y\n"
    )
    return runs


def found_in(folder: Path):
    return study(load([folder]))


def test_settings_are_found_in_the_configurations(folder):
    labels = [setting.label for setting in found_in(folder).settings]
    assert sorted(labels) == [
        "er, buffer 50, policy min", "er, buffer 500, policy min", "maer, buffer 50, policy middle",
        "maer, buffer 500, policy middle", "sgd",
    ]  # fmt: skip
    assert labels[0] == "sgd", "ordered by accuracy"
    assert all(setting.seeds == [0, 1, 2] for setting in found_in(folder).settings)


def test_any_flag_can_tell_settings_apart(tmp_path):
    for lr in (0.1, 0.3):
        for sizes in ([100], [100, 100]):
            write_run(tmp_path, 0, lr=lr, hidden_sizes=sizes, run_name=f"{lr} {sizes}")
    labels = {setting.label for setting in found_in(tmp_path).settings}
    assert "er, lr 0.3, hidden_sizes 100,100" in labels and len(labels) == 4


def test_a_seed_that_was_run_again_counts_once(folder, capsys):
    again = write_run(folder, 1, plus=0.3, model="sgd", note="x")
    path = folder / "seq-digits" / "sgd" / "sgd-1-modelsgd-notex" / "results.json"
    del again["config"]["note"]
    path.write_text(json.dumps(again))
    found = found_in(folder)
    (sgd,) = [setting for setting in found.settings if setting.label == "sgd"]
    assert sgd.seeds == [0, 1, 2] and len(found.repeated) == 1
    assert sgd.values("class_il", "average_accuracy")[1] == again["class_il"]["average_accuracy"]


def test_means_and_deviations(folder):
    values = [100 * accuracy(seed, 0.2 + 0.01 * seed)[-1].mean() for seed in range(3)]
    table = report.markdown(found_in(folder))
    assert f"| er, buffer 500, policy min | {np.mean(values):.2f} ± {np.std(values, ddof=1):.2f} |" in table
    assert table.startswith(
        "**seq-digits**: 3 tasks, mlp, 1 epoch(s), batch 10, learning rate 0.1\n\n| method"
    )
    assert table.endswith("torch: 2.15.0; commits: 0123456789.")


def test_differences_are_paired_by_seed_and_corrected(folder):
    table = tables.paired_table(found_in(folder).settings, "class_il")
    assert len(table.rows) == 10, "each of five settings with each"
    (row,) = [r for r in table.rows if {r[0], r[1]} == {"er, buffer 500, policy min", "sgd"}]
    er = [accuracy(seed, 0.2 + 0.01 * seed)[-1].mean() for seed in range(3)]
    sgd = [accuracy(seed, 0.0)[-1].mean() for seed in range(3)]
    wanted = stats.ttest_rel(er, sgd)
    assert row[3] == f"{wanted.statistic:.2f}" and row[6] == "3"
    assert float(row[4].removeprefix("< ")) == pytest.approx(max(wanted.pvalue, 1e-4), abs=6e-5)
    p_values = [float(r[5].removeprefix("< ")) for r in table.rows if r[5] != "–"]
    assert p_values == sorted(p_values)
    against = tables.paired_table(found_in(folder).settings, "class_il", against="sgd")
    assert len(against.rows) == 4 and all(r[1] == "sgd" for r in against.rows)


def test_the_files_of_a_report(folder, capsys):
    assert report.main([str(folder)]) == 0
    out, err = capsys.readouterr()
    assert "left out: 1 runs that did not finish" in err
    written = {path.name: path.read_text() for path in (folder / "report").iterdir()}
    assert set(written) == {"report.md", "report.tex", "report.csv", "report.html"}
    assert written["report.md"].strip() == out.strip()
    rows = list(csv.DictReader(io.StringIO(written["report.csv"])))
    assert len(rows) == 15
    (row,) = [r for r in rows if r["setting"] == "er, buffer 50, policy min" and r["seed"] == "2"]
    assert float(row["class_il_average_accuracy"]) == accuracy(2, 0.05 + 0.02)[-1].mean()
    assert (
        written["report.tex"].count(r"\begin{tabular}") == written["report.tex"].count(r"\end{tabular}") == 4
    )
    lines = [line for line in written["report.tex"].splitlines() if not line.startswith("%")]
    assert not re.search(r"(?<!\\)[_%#]|[λ±–]", "\n".join(lines)), "special characters are escaped"
    assert report.main([str(folder)]) == 0, "the report's own files are no runs"


def test_the_page_is_whole_and_alone(folder):
    report.main([str(folder), "--out", str(folder / "r")])
    page = (folder / "r" / "report.html").read_text()
    assert not re.search(r"(src|href)=[\"'](?!data:|#)", page), "nothing is loaded from elsewhere"
    # class-IL: tasks, buffer size, stability, matrices; task-IL: the same without the size; time and memory
    assert page.count("data:image/svg+xml;base64,") == 8
    for wanted in (
        "class-IL (which of all classes seen?)", "Accuracy against buffer size", "stability gap",
        "p (Holm)", "Time and memory", "the loss became inf", "python main.py --model=sgd", "torch 2.15.0",
    ):  # fmt: skip
        assert wanted in page, wanted


def test_bands_are_one_standard_deviation(folder, monkeypatch):
    drawn = []
    monkeypatch.setattr(figures, "_svg", lambda figure: drawn.append(figure) or "")
    settings = [s for s in found_in(folder).settings if s.label == "sgd"]
    figures.over_tasks(settings, "class_il")
    left = drawn[0].axes[0]
    values = 100 * np.array([[accuracy(seed, 0)[i, : i + 1].mean() for i in range(T)] for seed in range(3)])
    assert left.lines[0].get_ydata() == pytest.approx(values.mean(0))
    (vertices,) = [path.vertices for path in left.collections[0].get_paths()]
    top = [max(y for x, y in vertices if x == i) for i in range(T)]
    assert top == pytest.approx(values.mean(0) + values.std(0, ddof=1))


def test_against_the_buffer_size(folder, monkeypatch):
    drawn = []
    monkeypatch.setattr(figures, "_svg", lambda figure: drawn.append(figure) or "")
    figures.against_buffer(found_in(folder).settings)
    axes = drawn[0].axes[0]
    labels = {container.get_label() for container in axes.containers}
    assert labels == {"er, policy min", "maer, policy middle"}
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["50", "500"]
    assert figures.against_buffer([s for s in found_in(folder).settings if s.label == "sgd"]) is None


def test_markers_in_a_readme(folder, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- table digits -->\nold\n<!-- end digits -->\nafter\n")
    assert report.main([str(folder), "--update", str(readme)]) == 0
    text = readme.read_text()
    assert text.startswith("before\n<!-- table digits -->\n**seq-digits**") and text.endswith("after\n")
    assert "old" not in text and not (folder / "report").exists()


def test_what_cannot_be_reported(folder, tmp_path, capsys):
    with pytest.raises(UserError, match="no finished run below"):
        load([tmp_path / "nothing"])
    assert report.main([str(folder), "--against", "gem"]) == 2
    assert "no such setting; there is: er, buffer 50" in capsys.readouterr().err
