"""Reports of studies: settings, statistics, files; every number from the runs' own results."""

import csv
import io
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from engram.scripts import report
from engram.scripts.analysis import figures, report_page, study_report, study_tables
from engram.scripts.analysis.pairing import pair_runs
from engram.scripts.analysis.run_set import RunSet, collect
from engram.scripts.analysis.table import Column, Table, make_table, mean_std, signed
from engram.utils import figure_files
from engram.utils.config.config import resolve
from engram.utils.errors import UserError
from engram.utils.metrics import accuracy_matrix
from tests.unit.stored_records import run_set, stored_record, view

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
    folder: Path, seed: int, plus: float = 0.0, status: str = "finished", curve=(), stored=(), **flags
) -> dict:
    """stored: parts of results.json that are not as usual; flags: of its configuration."""
    R = accuracy(seed, plus)
    config = CONFIG | flags | {"seed": seed, "data_dir": f"/of/{seed}"}
    views = {
        "class_il": {"R": R.tolist(), **accuracy_matrix.summary(R)},
        "task_il": {"R": np.minimum(R + 0.2, 1).tolist(), **accuracy_matrix.summary(np.minimum(R + 0.2, 1))},
    }
    document = {
        "config": config, "seed": seed, "status": status, "scenario": "class-il", **views, "fwt": 0.1,
        "b": [0.1] * T, "curve": list(curve), "images_per_second": 1000.0, "peak_memory_bytes": 2**30,
        "seconds": {"total": 4.0 + seed, "train": 3.0, "eval": 0.5, "data": 0.2},
        "device": "cpu (x86_64, 1 threads)", "versions": {"torch": "2.15.0"}, "git_commit": "0123456789abcd",
    } | dict(stored)  # fmt: skip
    name = f"{config['model']}-{seed}-" + "-".join(f"{k}{v}" for k, v in flags.items())
    name += f"-{document['scenario']}" * ("scenario" in dict(stored))
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


def found_in(folder: Path) -> RunSet:
    return collect([folder])


def page_of(found: RunSet, title: str = "t", about: str = "") -> str:
    drawn = figures.of_study(found.benchmarks)
    return report_page.render(title, found, about, None, tuple(study_tables.METRICS), drawn)


@pytest.fixture
def without_drawing(monkeypatch):
    """Figures are made but not written: that takes longer than all else."""
    monkeypatch.setattr(figure_files, "encoded", lambda figure, file_format, dpi=100: b"")


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


def test_a_data_set_in_several_scenarios_is_several_benchmarks(tmp_path, capsys, without_drawing):
    """The least accurate setting, here in domain-IL, once decided the views and titles of all."""
    for seed in range(3):
        for scenario, plus in (("domain-il", 0.0), ("task-il", 0.1), ("class-il", 0.2)):
            for more, model in ((0.0, "sgd"), (0.05 * seed, "joint")):
                write_run(tmp_path, seed, plus + more, model=model, stored={"scenario": scenario})
    found = found_in(tmp_path)
    wanted = ["seq-digits, class-il", "seq-digits, domain-il", "seq-digits, task-il"]
    assert list(found.benchmarks) == wanted
    for name, settings in found.benchmarks.items():
        assert [setting.label for setting in settings] == ["sgd", "joint"]
        table = study_tables.paired_table(settings, "task_il")
        assert table.title == ("domain-IL accuracy" if "domain" in name else "task-IL accuracy")
        assert [row[:2] for row in table.rows] == [["joint", "sgd"]] and "over 1 tests" in table.note
    text = study_report.latex(found)
    assert text.count("{2}{c}{class-IL}") == text.count("{2}{c}{task-IL}") == 2
    assert text.count("{2}{c}{domain-IL}") == 1 and text.count(r"\label{tab:seq-digits-domain-il}") == 1
    assert report.main([str(tmp_path)]) == 0 and "**seq-digits, task-il**: 3 tasks" in capsys.readouterr().out
    page = (tmp_path / "report" / "report.html").read_text()
    assert '<a href="#seq-digits-task-il">' in page and '<h2 id="seq-digits-task-il">' in page
    assert "<summary>seq-digits, task-il: joint, seeds 0, 1, 2</summary>" in page
    assert page.count("<h3>domain-IL</h3>") == 1 and page.count("<h3>class-IL (") == 2
    rows = list(csv.DictReader(io.StringIO((tmp_path / "report" / "report.csv").read_text())))
    assert [row["scenario"] for row in rows] == ["class-il"] * 6 + ["domain-il"] * 6 + ["task-il"] * 6


def test_the_scenario_counts_that_a_run_had_not_how_it_was_asked_for(tmp_path):
    write_run(tmp_path, 0, scenario=None)
    write_run(tmp_path, 1, scenario="class-il")
    (setting,) = found_in(tmp_path).settings
    assert (setting.label, setting.seeds) == ("er", [0, 1])


def test_runs_from_before_a_flag_are_brought_up_to_date(tmp_path):
    whole = resolve([("test", {**CONFIG, "model": "sgd"})]).flat()
    old = {name: value for name, value in whole.items() if name != "keep_optimizer"}
    assert whole["keep_optimizer"] is False
    write_run(tmp_path, 0, stored={"config": old | {"seed": 0}}, model="sgd")
    write_run(tmp_path, 1, stored={"config": whole | {"seed": 1}}, model="sgd")
    write_run(tmp_path, 2, stored={"config": whole | {"seed": 2, "keep_optimizer": True}}, model="sgd")
    found = {setting.label: setting.seeds for setting in found_in(tmp_path).settings}
    assert found == {"sgd": [0, 1], "sgd, keep_optimizer": [2]}


def test_an_imported_log_is_not_filled_up_with_our_defaults(tmp_path):
    write_run(tmp_path, 0, stored={"imported_run": "abc"}, model="sgd")
    write_run(tmp_path, 1, model="sgd")
    runs = {run.imported_run: run.config for run in collect([tmp_path]).runs}
    assert "optimizer" not in runs["abc"] and runs[None]["optimizer"] == "sgd"


def test_every_commit_is_listed_once(tmp_path, without_drawing):
    """A run that was resumed by other code has several."""
    for seed, commit in enumerate(("a" * 40, f"{'a' * 40}, {'b' * 40}", None)):
        write_run(tmp_path, seed, stored={"git_commit": commit})
    write_run(tmp_path, 3, stored={"git_commit": "a" * 40, "git_dirty": True})
    found = found_in(tmp_path)
    named = "aaaaaaaaaa, aaaaaaaaaa+changes, bbbbbbbbbb, unknown"
    assert study_tables.provenance(found.runs).endswith(f"; commits: {named}.")
    assert f'<p class="note">commit {named}</p>' in page_of(found)


def test_means_and_deviations(folder):
    values = [100 * accuracy(seed, 0.2 + 0.01 * seed)[-1].mean() for seed in range(3)]
    table = study_report.markdown(found_in(folder))
    assert f"| er, buffer 500, policy min | {np.mean(values):.2f} ± {np.std(values, ddof=1):.2f} |" in table
    assert table.startswith(
        "**seq-digits**: 3 tasks, mlp, 1 epoch(s), batch 10, learning rate 0.1\n\n| method"
    )
    assert re.search(r"torch: 2.15.0; runs: \d+, .+ together; commits: 0123456789.$", table)


@pytest.mark.parametrize(
    ("flags", "labels", "told"),
    [
        ([{"n_iters": 10}, {"n_iters": 20}], ["sgd, n_iters 10", "sgd, n_iters 20"], ""),
        ([{"n_epochs": 5}, {"n_epochs": 2}], ["sgd, n_epochs 2", "sgd, n_epochs 5"], ""),
        ([{"n_epochs": 5, "n_iters": 10}, {"n_epochs": 5}], ["sgd, n_epochs 5", "sgd, n_iters 10"], ""),
        ([{"n_epochs": 5, "n_iters": 10}, {"n_epochs": 2}], ["sgd, n_epochs 2", "sgd, n_iters 10"], ""),
        ([{"n_epochs": 5, "n_iters": 10}], ["sgd"], "10 steps per task, "),
        (
            [{"n_epochs": 5, "n_iters": 10}, {"n_iters": 10, "lr": 0.1, "optimizer": "adam"}],
            ["sgd, optimizer adam", "sgd, optimizer sgd"],
            "10 steps per task, ",
        ),
    ],
)
def test_a_caption_names_the_length_of_training_that_all_settings_share(tmp_path, flags, labels, told):
    """It was the first setting's; and --n_epochs, which --n_iters replaces, was part of its rows' names."""
    for of_setting in flags:
        write_run(tmp_path, 0, model="sgd", **of_setting)
    found = found_in(tmp_path)
    assert sorted(setting.label for setting in found.settings) == labels
    assert study_tables.caption(found.settings) == f"3 tasks, mlp, {told}batch 10, learning rate 0.1"
    for row in csv.DictReader(io.StringIO(study_tables.run_table(found).csv())):
        assert not (row.get("n_iters", "0") != "0" and row.get("n_epochs")), row


def test_epochs_that_were_not_counted_make_no_setting_of_their_own(tmp_path):
    for seed, n_epochs in enumerate((1, 5)):
        write_run(tmp_path, seed, n_epochs=n_epochs, n_iters=10)
    (setting,) = found_in(tmp_path).settings
    assert (setting.label, setting.seeds) == ("er", [0, 1])


def test_a_run_below_two_of_the_folders_is_read_once(folder, tmp_path, capsys, without_drawing):
    link = tmp_path / "link"
    link.symlink_to(folder)
    given = [folder, folder / "seq-digits", folder / "seq-digits" / ".." / "seq-digits" / "er", link]
    found = collect(given)
    assert (len(found.runs), len(found.repeated), len(found.unfinished)) == (15, 0, 1)
    assert all(folder in run.folder.parents for run in found.runs), "named as it was given first"
    assert report.main([*map(str, given), "--figures"]) == 0
    assert "earlier runs" not in capsys.readouterr().err


def test_the_note_says_what_the_runs_cost_together(tmp_path):
    for seed, seconds in enumerate((3600, 1800)):
        write_run(tmp_path, seed, stored={"seconds": {"total": seconds}})
    assert "; runs: 2, 1.5 h together; " in study_tables.provenance(found_in(tmp_path).runs)
    write_run(tmp_path, 2, stored={"seconds": {"total": None}})  # of a time that measured none
    assert "; runs: 3; " in study_tables.provenance(found_in(tmp_path).runs)


def test_the_note_names_every_precision_that_its_runs_computed_in(tmp_path, without_drawing):
    for seed, stored in enumerate(({"precision": "bf16"}, {"precision": "fp32"}, {})):
        write_run(tmp_path, seed, stored=stored, precision="auto")  # the last: of a time that noted none
    assert "; precision: bf16, fp32, unknown; torch: " in study_tables.provenance(found_in(tmp_path).runs)


def test_differences_are_paired_by_seed_and_corrected(folder):
    table = study_tables.paired_table(found_in(folder).settings, "class_il")
    assert len(table.rows) == 10, "each of five settings with each"
    (row,) = [r for r in table.rows if {r[0], r[1]} == {"er, buffer 500, policy min", "sgd"}]
    er = [accuracy(seed, 0.2 + 0.01 * seed)[-1].mean() for seed in range(3)]
    sgd = [accuracy(seed, 0.0)[-1].mean() for seed in range(3)]
    wanted = stats.ttest_rel(er, sgd)
    assert row[3] == f"{wanted.statistic:.2f}" and row[6] == "3"
    assert float(row[4].removeprefix("< ")) == pytest.approx(max(wanted.pvalue, 1e-4), abs=6e-5)
    p_values = [float(r[5].removeprefix("< ")) for r in table.rows if r[5] != "–"]
    assert p_values == sorted(p_values)
    against = study_tables.paired_table(found_in(folder).settings, "class_il", baseline="sgd")
    assert len(against.rows) == 4 and all(r[1] == "sgd" for r in against.rows)


def test_runs_of_a_seed_that_had_other_tasks_are_no_pair(tmp_path, without_drawing):
    """Tasks are sets of classes; where they share outputs, the order of each one's classes counts too."""
    orders = {
        "sgd": ([0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5]),
        "joint": ([1, 0, 3, 2, 5, 4], [0, 1, 2, 3, 4, 5], [0, 2, 1, 3, 4, 5]),
    }
    for scenario in ("class-il", "domain-il"):
        for model, of_seeds in orders.items():
            for seed, order in enumerate(of_seeds):
                stored = {"class_order": order, "scenario": scenario}
                write_run(tmp_path, seed, 0.1 * seed * (model == "joint"), model=model, stored=stored)
    classes, domains = found_in(tmp_path).benchmarks.values()
    table = study_tables.paired_table(classes, "class_il")
    joint, sgd = ([accuracy(seed, plus * seed)[-1].mean() for seed in (0, 1)] for plus in (0.1, 0.0))
    ((*_, t, p, _, n),) = table.rows
    wanted = stats.ttest_rel(joint, sgd)
    assert (t, n) == (f"{wanted.statistic:.2f}", "2") and float(p) == pytest.approx(wanted.pvalue, abs=6e-5)
    assert table.note.endswith("Seeds left out where the two runs had different tasks: 2.")
    table = study_tables.paired_table(domains, "task_il")
    assert not table.rows and table.note.endswith("tasks: 0, 2.")
    assert page_of(found_in(tmp_path)).count("had different tasks: ") == 3


def test_as_many_tasks_are_needed_for_a_pair():
    config, order = {"model": "er", "dataset": "seq-digits", "seed": 0}, list(range(6))
    two, three = (
        stored_record(config, class_order=order, class_il=view(np.full((n, n), 0.5))) for n in (2, 3)
    )
    halved = replace(three, config=config | {"half_classes_in_first_task": True})
    assert pair_runs([three], [three]) == ([(three, three)], [])
    assert pair_runs([two], [three]) == pair_runs([halved], [three]) == ([], [0])
    unknown = replace(two, class_order=None)
    assert pair_runs([unknown], [three]) == ([(unknown, three)], []), "imported logs do not have classes"


def test_the_files_of_a_report(folder, capsys, without_drawing):
    assert report.main([str(folder)]) == 0
    out, err = capsys.readouterr()
    assert "left out: 1 runs that did not finish" in err
    written = {path.name: path.read_text() for path in (folder / "report").glob("report.*")}
    assert set(written) == {"report.md", "report.tex", "report.csv", "report.html"}
    assert written["report.md"].strip() == out.strip()
    rows = list(csv.DictReader(io.StringIO(written["report.csv"])))
    assert len(rows) == 15
    (row,) = [r for r in rows if r["setting"] == "er, buffer 50, policy min" and r["seed"] == "2"]
    assert float(row["class_il_average_accuracy"]) == accuracy(2, 0.05 + 0.02)[-1].mean()
    assert (
        written["report.tex"].count(r"\begin{tabular}") == written["report.tex"].count(r"\end{tabular}") == 3
    )
    lines = [line for line in written["report.tex"].splitlines() if not re.match(r"%|\\label", line)]
    assert not re.search(r"(?<!\\)[_%#]|[λ±–]", "\n".join(lines)), "special characters are escaped"
    assert report.main([str(folder)]) == 0, "the report's own files are no runs"


def test_the_page_is_whole_and_alone(folder):
    report.main([str(folder), "--out", str(folder / "r"), "--figures"])
    page = (folder / "r" / "report.html").read_text()
    assert not re.search(r"(src|href)=[\"'](?!data:|#)", page), "nothing is loaded from elsewhere"
    # class-IL: tasks, buffer size, stability, matrices; task-IL: the same without the size; time and memory
    assert page.count("data:image/svg+xml;base64,") == 8
    for wanted in (
        "class-IL (which of all classes seen?)", "Accuracy against buffer size", "stability gap",
        "p (Holm)", "Time and memory", "the loss became inf", "python main.py --model=sgd", "torch 2.15.0",
    ):  # fmt: skip
        assert wanted in page, wanted


def test_bands_are_one_standard_deviation(folder):
    settings = [s for s in found_in(folder).settings if s.label == "sgd"]
    left = figures.over_tasks(settings, "class_il").axes[0]
    values = 100 * np.array([[accuracy(seed, 0)[i, : i + 1].mean() for i in range(T)] for seed in range(3)])
    assert left.lines[0].get_ydata() == pytest.approx(values.mean(0))
    (vertices,) = [path.vertices for path in left.collections[0].get_paths()]
    top = [max(y for x, y in vertices if x == i) for i in range(T)]
    assert top == pytest.approx(values.mean(0) + values.std(0, ddof=1))


def test_against_the_buffer_size(folder):
    axes = figures.against_buffer(found_in(folder).settings).axes[0]
    labels = {container.get_label() for container in axes.containers}
    assert labels == {"er, policy min", "maer, policy middle"}
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["50", "500"]
    assert figures.against_buffer([s for s in found_in(folder).settings if s.label == "sgd"]) is None


def test_curves_inside_tasks_with_the_steps_at_which_tasks_end(folder):
    """Six evaluations at steps 0 to 50, of tasks 0 to 2: tasks 0 and 1 end at steps 10 and 30."""
    axes = figures.stability(found_in(folder).settings, "task_il").axes[0]
    curve, *boundaries = axes.lines
    assert list(curve.get_xdata()) == [0, 10, 20, 30, 40, 50] and curve.get_ydata() == pytest.approx([60] * 6)
    assert sorted(line.get_xdata()[0] for line in boundaries) == [10, 30]
    assert figures.stability([s for s in found_in(folder).settings if s.label != "sgd"], "task_il") is None


def test_heat_maps_show_the_mean_over_seeds(folder):
    settings = [s for s in found_in(folder).settings if s.label == "sgd"]
    axes = figures.matrices(settings, "class_il").axes[0]
    mean = 100 * np.mean([accuracy(seed, 0) for seed in range(3)], axis=0)
    learned = np.tri(T, dtype=bool)
    drawn = axes.collections[0].get_array()
    assert drawn[learned].data == pytest.approx(mean[learned]) and drawn.mask[~learned].all()
    assert [text.get_text() for text in axes.texts] == [f"{value:.0f}" for value in mean[learned]]


def test_runs_of_different_numbers_of_tasks_have_matrices_of_their_own_size(tmp_path, without_drawing):
    """All were once drawn as large as the first setting's, which ended the report."""
    for n_tasks, value in ((2, 0.9), (12, 0.2), (3, 0.5)):
        views = dict.fromkeys(("class_il", "task_il"), view(np.full((n_tasks, n_tasks), value)))
        write_run(tmp_path, 0, stored=views, n_tasks=n_tasks)
    settings = found_in(tmp_path).settings
    assert [setting.label for setting in settings] == ["er, n_tasks 12", "er, n_tasks 3", "er, n_tasks 2"]
    panels = figures.matrices(settings, "class_il").axes[:3]
    assert [axes.collections[0].get_array().shape for axes in panels] == [(12, 12), (3, 3), (2, 2)]
    assert [axes.get_ylim() for axes in panels] == [(11.5, -0.5), (2.5, -0.5), (1.5, -0.5)]
    assert [len(axes.texts) for axes in panels] == [0, 6, 3], "numbers where there is room for them"
    assert list(panels[1].get_xticks()) == [0, 1, 2] and list(panels[2].get_yticks()) == [0, 1]
    for some, ticks in ((settings[1:], [0, 1, 2]), (settings[:0:-1], [0, 1, 2])):
        assert [list(axes.get_xticks()) for axes in figures.over_tasks(some, "class_il").axes] == [ticks] * 2
    assert report.main([str(tmp_path), "--figures"]) == 0


def test_tasks_that_are_not_learned_yet_are_blank_but_in_domain_il(tmp_path):
    """Class-IL has zeros there; in domain-IL they are the numbers that forward transfer is made of."""
    for scenario in ("class-il", "task-il", "domain-il"):
        write_run(tmp_path, 0, stored={"scenario": scenario})
    for name, settings in found_in(tmp_path).benchmarks.items():
        for view_name in settings[0].views:
            blank = figures.matrices(settings, view_name).axes[0].collections[0].get_array().mask
            wanted = np.zeros((T, T)) if "domain" in name else ~np.tri(T, dtype=bool)
            np.testing.assert_array_equal(blank + np.zeros((T, T)), wanted)


def test_figures_are_files_too(folder, without_drawing):
    assert report.main([str(folder)]) == 0
    names = {path.name for path in (folder / "report" / "figures").iterdir()}
    stems = ["buffer_size", "cost", *(f"{view}-{kind}" for view in ("class_il", "task_il")
             for kind in ("over_tasks", "stability", "matrices"))]  # fmt: skip
    assert names == {f"seq-digits-{stem}.{end}" for stem in stems for end in ("pdf", "svg", "png")}
    assert report.main([str(folder), "--out", str(folder / "a"), "--figures", "pdf"]) == 0
    assert {path.suffix for path in (folder / "a" / "figures").iterdir()} == {".pdf"}
    assert report.main([str(folder), "--out", str(folder / "b"), "--figures"]) == 0
    assert not (folder / "b" / "figures").exists()


def test_the_parts_of_the_time_add_up_to_the_total(folder):
    """Seconds in the runs: 4 + seed in all, of which 3 train, 0.5 eval and 0.2 data."""
    settings = [s for s in found_in(folder).settings if s.label == "sgd"]
    bars = {bar.get_label(): bar[0] for bar in figures.cost(settings).axes[0].containers}
    widths = {"train": 3.0, "eval": 0.5, "data": 0.2, "start and logging": 1.3}
    assert {name: bar.get_width() for name, bar in bars.items()} == pytest.approx(widths)
    ends = np.cumsum([0, *widths.values()])
    assert [bar.get_x() for bar in bars.values()] == pytest.approx(ends[:-1]) and ends[-1] == 5.0
    cells = study_tables.cost_table(settings).rows[0][1:5]
    assert cells == ["5.0 ± 1.0", "3.0 ± 0.0", "0.5 ± 0.0", "0.2 ± 0.0"]


def test_what_was_not_measured_is_not_a_zero_in_the_figure_of_costs():
    """Of 4 seconds, 6 seconds and none the mean is 5; of runs that nobody measured there is no bar."""
    seconds = [{"total": 4.0, "train": 3.0}, {"total": 6.0, "train": 3.0}, {}]
    parts = [{"seconds": s, "peak_memory_bytes": 2**20 if s else None} for s in seconds]
    config = {"model": "er", "dataset": "seq-digits"}
    some = [stored_record(config | {"seed": i}, **part) for i, part in enumerate(parts)]
    none = [stored_record(config | {"seed": i, "lr": 1.0}, **parts[2]) for i in range(2)]
    times, memory = figures.cost(run_set(*some, *none).settings).axes
    of_first = {bars.get_label(): bars[0].get_width() for bars in times.containers}
    assert of_first == {"train": 3, "eval": 0, "data": 0, "start and logging": 2}
    assert [bar.get_width() for bar in memory.containers[0]] == [1, 0]


def test_a_figure_is_the_same_file_whenever_it_is_written(folder):
    settings = found_in(folder).settings
    starts = {"pdf": b"%PDF", "svg": b"<?xml", "png": b"\x89PNG"}
    for name, start in starts.items():
        first, second = (figure_files.encoded(figures.cost(settings), name) for _ in range(2))
        assert first == second and first.startswith(start), name
        assert not re.search(rb"Date", first), "when it was made is not in the file"
        assert name != "pdf" or b"/Type3" not in first, "publishers refuse letters of Type 3"


def test_nothing_that_a_run_holds_is_markup_on_the_page(tmp_path, without_drawing):
    """Commits once came out raw. Labels, names, log lines, devices and versions are text too."""
    script = "<script>alert('x')</script>"
    stored = {"git_commit": script, "device": script, "versions": {"torch": script}}
    for seed in range(2):
        write_run(tmp_path, seed, model=f"er{script}".replace("/", "_"), note=script, stored=stored)
        write_run(tmp_path, seed, model="sgd", stored=stored, run_name=script)
    failed = write_run(tmp_path, 5, model="joint", status="failed")
    path = next(tmp_path.rglob("joint-5*"))
    (path / "log.txt").write_text(f"{script}\n")
    page = page_of(found_in(tmp_path), script, script)
    assert failed and "<script" not in page and page.count("&lt;script&gt;") > 10
    assert "commit &lt;script&gt" in page


def test_markers_in_a_page_of_results(folder, tmp_path, monkeypatch, without_drawing):
    page = tmp_path / "RESULTS.md"
    page.write_text("before\n<!-- table digits -->\nold\n<!-- end digits -->\nafter\n")
    assert report.main([str(folder), "--update", str(page)]) == 0
    text = page.read_text()
    assert text.startswith("before\n<!-- table digits -->\n**seq-digits**") and text.endswith("after\n")
    assert "old" not in text and not (folder / "report").exists()
    monkeypatch.setenv("HOME", str(tmp_path))
    assert report.main([str(folder), "--update", str(page), "--out=~/files", "--figures"]) == 0
    assert (tmp_path / "files" / "report.csv").exists(), "what --out asks for is written besides"


def test_a_sweep_spec_stands_for_the_folder_of_its_runs(folder, tmp_path, capsys):
    spec = tmp_path / "study.yaml"
    spec.write_text(f"name: digits\nfixed: {{output_dir: {folder}}}\ngrid: {{seed: [0]}}\n")
    assert study_report.run_folder(str(spec)) == folder == study_report.run_folder(str(folder))
    spec.write_text("name: digits\ngrid: {seed: [0]}\n")
    assert study_report.run_folder(str(spec)) == Path("runs/digits")


def test_damaged_files_are_left_out_and_named(folder, capsys):
    path = folder / "seq-digits" / "sgd" / "damaged" / "results.json"
    path.parent.mkdir()
    path.write_text('{"config": ')
    assert len(found_in(folder).settings) == 5
    assert f"left out: {path}: damaged" in capsys.readouterr().err


def test_rows_are_made_from_columns():
    columns = [Column("n", str), Column("square", lambda n: str(n * n))]
    table = make_table([2, 3], columns, "title", "note")
    assert table == Table("title", ["n", "square"], [["2", "4"], ["3", "9"]], "note")
    assert table.markdown() == "title\n\n| n | square |\n| --- | --- |\n| 2 | 4 |\n| 3 | 9 |\n\nnote"
    assert table.csv() == "n,square\n2,4\n3,9\n"
    assert Table("", ["a|b"], []).markdown() == "| a\\|b |\n| --- |"
    assert r"\multicolumn{2}{c}{x\_y}" in replace(table, spans=(("x_y", 2),)).latex()


NASTY = r"a_b & 100% $x #1 {c} ~d ^e \input{f} [g] *h |i| `j` --k ''l ,,m" + "\n\nn"
ESCAPED = (
    r"a\_b \& 100\% \$x \#1 \{c\} \textasciitilde{}d \textasciicircum{}e \textbackslash{}input\{f\} {[}g] "
    r"{*}h \textbar{}i\textbar{} \textasciigrave{}j\textasciigrave{} -{}-k '{}'l ,{},m n"
)


def test_latex_prints_every_text_as_it_is():
    table = Table(f"**{NASTY}**", [NASTY], [[NASTY]], note=NASTY, spans=((NASTY, 1),)).latex()
    lines = table.splitlines()
    assert lines[3:5] == [r"\small", r"\setlength{\tabcolsep}{4pt}"], "a table of five columns fits a page"
    assert lines[2] == rf"\caption{{{ESCAPED}. {ESCAPED}}}"
    assert lines[7] == rf"\multicolumn{{1}}{{c}}{{{ESCAPED}}} \\" and lines[8] == r"\cmidrule(lr){1-1}"
    assert lines[9] == lines[11] == rf"{ESCAPED} \\" and len(lines) == 15


def test_latex_has_dashes_and_minus_signs_of_its_own():
    """A missing number once came out as two hyphens, and a negative one with a hyphen."""
    lines = Table("t", ["m", "x"], [["a-1", "–"], ["b", "-4.20 ± 0.10 (~-5), λ 1e-3"]]).latex().splitlines()
    assert lines[9] == r"a-1 & -- \\"
    assert lines[10] == r"b & $-$4.20 $\pm$ 0.10 (\textasciitilde{}$-$5), $\lambda$ 1e-3 \\"


def test_the_best_numbers_are_bold_in_latex():
    """Numbers that print the same are equally good; a bound, a missing number and a text are out of it."""
    rows = [["er", "81.20 ± 1", "9.10", "3"], ["gem", "81.20 ± 9", "10.2", "3"], ["sgd", "–", "–", "3"],
            ["joint", "95.00", "0.1", "3"]]  # fmt: skip
    table = Table("t", ["m", "accuracy", "forgetting", "seeds"], rows, best=("", "max", "min", ""))
    table = replace(table, bounds=frozenset({3}))
    assert table.best_cells() == {(0, 1), (1, 1), (0, 2)}
    assert r"er & \textbf{81.20} $\pm$ 1 & \textbf{9.10} & 3 \\" in table.latex()
    assert r"joint & 95.00 & 0.1 & 3 \\" in table.latex()
    alone = replace(table, rows=[rows[0], rows[3]])
    assert replace(alone, bounds=frozenset({1})).best_cells() == set(), "nothing to be better than"
    assert (1, 1) in alone.best_cells(), "9.10 is less than 10.2 as a number, not as a text"


def test_columns_are_chosen(folder, capsys, without_drawing):
    metrics = ["bwt", "average_accuracy", "fwt"]
    assert report.main([str(folder), "--figures", "--metrics", *metrics]) == 0
    head = capsys.readouterr().out.splitlines()[2]
    assert head == (
        "| method | class-IL BWT | class-IL accuracy | task-IL BWT | task-IL accuracy | task-IL FWT | seeds |"
    )
    latex = (folder / "report" / "report.tex").read_text()
    assert r"\multicolumn{2}{c}{class-IL} & \multicolumn{3}{c}{task-IL}" in latex
    assert "\n & BWT & accuracy & BWT & accuracy & FWT " in latex and "over 3 seeds" in latex
    page = (folder / "report" / "report.html").read_text()
    assert "FWT" in page and "learning accuracy" not in page and 'class="number best"' in page
    with pytest.raises(SystemExit):
        report.main([str(folder), "--metrics", "acuracy"])
    assert report.main(["rehearsal", str(folder), "--metrics", "bwt"]) == 2


def test_a_name_ends_no_command_of_latex(tmp_path):
    write_run(tmp_path, 0)
    found = found_in(tmp_path)
    (settings,) = found.benchmarks.values()
    object.__setattr__(found, "benchmarks", {"a\n\\input{b}": settings})
    latex = study_report.latex(found)
    assert r"\caption{a \textbackslash{}input\{b\}: " in latex and r"\label{tab:a-input-b-}" in latex


def test_means_of_few_values():
    assert mean_std([0.5, 0.51]) == "50.50 ± 0.71" and mean_std([0.5]) == "50.00"
    assert mean_std([0.5, float("nan")]) == mean_std([]) == "–"
    assert mean_std([-1e-5]) == "0.00" and mean_std([-1e-4]) == "-0.01", "no sign before 0"
    assert [signed(value) for value in (1.204, -0.3, 0.001, -0.001)] == ["+1.20", "-0.30", "0.00", "0.00"]
    assert mean_std([1.0, 2.0], scale=1, digits=1) == "1.5 ± 0.7"


def test_what_cannot_be_reported(folder, tmp_path, capsys):
    with pytest.raises(UserError, match="no finished run below"):
        collect([tmp_path / "nothing"])
    assert report.main([str(folder), "--against", "gem"]) == 2
    assert "no such setting; there is: er, buffer 50" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no folder given; give one that holds runs, such as runs/mnist, or a study.yaml (see --help)"),
        (
            ["mer"],
            "mer is the name of a paper's tables, and no folder is given; give its runs, such as "
            "mer runs/mer, or ./mer for a folder of that name",
        ),
    ],
)
def test_without_a_folder_it_says_what_to_give(words, message, capsys):
    assert report.main(words) == 2
    assert capsys.readouterr().err == f"error: {message}\n"


def test_a_folder_may_have_a_papers_name(folder, capsys, monkeypatch, without_drawing):
    folder.rename(folder.with_name("mer"))
    monkeypatch.chdir(folder.parent)
    assert report.main(["./mer", "--figures"]) == 0 and "**seq-digits**" in capsys.readouterr().out


def test_validation_runs_have_a_table_of_their_own():
    config = {"model": "er", "dataset": "seq-digits", "seed": 0, "validation": 0.0}
    held_out = stored_record(config | {"validation": 10.0}, "runs/y", evaluated_on="validation")
    tables = run_set(stored_record(config), held_out).benchmarks
    assert {name: len(settings) for name, settings in tables.items()} == {
        "seq-digits": 1, "seq-digits, validation data": 1,
    }  # fmt: skip
