"""The table of the audit: pairs of runs that differ in one practice, one network's evaluations."""

import json

import pytest

from engram.scripts.analysis.papers.audit import AuditReport
from engram.scripts.analysis.run_set import StoredRecord
from engram.utils.errors import UserError
from tests.unit.stored_records import run_set, stored_record
from tests.unit.test_rehearsal_report import rows


def run(model: str, seed: int, accuracy: float, folder: str = "runs/x", **flags) -> StoredRecord:
    config = {"model": model, "dataset": "seq-arrays", "seed": seed, "backbone": "timm:vit", "lr": 0.01}
    return stored_record(config | flags, folder, accuracy=accuracy)


def audited(folder, model: str, seed: int, none: float, *ways: tuple[str, str, int, float]) -> StoredRecord:
    """A run with an audit.json of (practice, order, batch size, class-IL accuracy); task-IL is 1 − that."""
    path = folder / f"{model}-{seed}"
    path.mkdir()
    rows = [{"practice": "none", "class_il": none, "task_il": 1 - none}]
    rows += [
        {"practice": name, "order": order, "batch_size": size, "class_il": value, "task_il": 1 - value}
        for name, order, size, value in ways
    ]
    (path / "audit.json").write_text(json.dumps({"evaluations": rows}))
    return run(model, seed, 0.99, str(path))  # which is not what the audit measured


def table(*records: StoredRecord) -> list[list[str]]:
    return rows(AuditReport(run_set(*records)).markdown())[2:]


def test_runs_that_differ_in_one_practice_alone_are_paired_by_seed():
    own, zero_one = {"pixel_mean": [], "pixel_std": []}, {"pixel_mean": [0.0], "pixel_std": [1.0]}
    records = [
        *(run("sgd", seed, (30 + 2 * seed) / 100, tune="head", train_classes="all") for seed in (0, 1)),
        *(run("sgd", seed, (40 + 4 * seed) / 100, tune="head", train_classes="task") for seed in (0, 1)),
        run("ncm", 0, 0.6, **own), run("ncm", 0, 0.5, **zero_one),
        run("mos", 0, 0.6, as_released=False), run("mos", 0, 0.7, as_released=True),
        run("coda_prompt", 0, 0.6, ortho_lambda=0.1), run("coda_prompt", 0, 0.58, ortho_lambda=0.0),
    ]  # fmt: skip
    shown = table(*records)
    points = [
        "+11.00 ± 1.41",
        "-1.71 to +23.71",
        "+11.00 ± 1.41",
        "2",
    ]  # t(0.975, 1) = 12.706 and std / √2 = 1
    assert shown == [
        ["softmax of the task", "sgd, head alone", "–", "31.00 ± 1.41", "42.00 ± 2.83", *points],
        ["pixels in [0, 1]", "ncm", "–", "60.00", "50.00", "-10.00", "–", "-10.00", "1"],
        ["as released", "mos", "–", "60.00", "70.00", "+10.00", "–", "+10.00", "1"],
        ["no penalty, as released", "coda_prompt", "–", "60.00", "58.00", "-2.00", "–", "-2.00", "1"],
    ]


@pytest.mark.parametrize(
    ("without", "with_it", "points"), [(0.4, 0.4, "0.00"), (0.40001, 0.4, "0.00"), (0.4, 0.4001, "+0.01")]
)
def test_a_difference_that_prints_as_zero_has_no_sign(without, with_it, points):
    (row,) = table(run("l2p", 0, without, train_classes="all"), run("l2p", 0, with_it, train_classes="task"))
    assert row[5] == row[7] == points


def test_the_ends_of_an_interval_of_zeros_have_no_sign():
    records = [run("l2p", seed, 0.4, train_classes=classes) for seed in (0, 1) for classes in ("all", "task")]
    assert table(*records)[0][5:8] == ["0.00 ± 0.00", "0.00 to 0.00", "0.00 ± 0.00"]


def test_runs_that_differ_in_another_flag_too_are_no_pair_and_a_table_without_rows_is_refused():
    records = [run("l2p", 0, 0.3, train_classes="all"), run("l2p", 0, 0.4, train_classes="task", lr=0.1)]
    with pytest.raises(UserError, match="no two settings differ in one practice alone"):
        table(*records)


def test_evaluations_of_one_network_and_of_one_trained_with_the_reshape(tmp_path):
    records = [
        audited(tmp_path, "dualprompt", 0, 0.5, ("vote", "by class", 8, 0.6),
                ("reshape", "shuffled", 8, 0.45)),
        audited(tmp_path, "dualprompt", 1, 0.4, ("vote", "by class", 8, 0.54)),
        audited(tmp_path, "dualprompt_reshaped", 0, 0.2, ("reshape", "shuffled", 1, 0.3)),
    ]  # fmt: skip
    assert table(*records) == [
        ["vote of the batch", "dualprompt", "by class, 8", "45.00 ± 7.07", "57.00 ± 4.24", "+12.00 ± 2.83",
         "-13.41 to +37.41", "-12.00 ± 2.83", "2"],
        ["reshape in evaluation", "dualprompt", "shuffled, 8", "50.00", "45.00", "-5.00", "–", "+5.00", "1"],
        ["reshape in training too", "dualprompt", "shuffled, 1", "50.00", "30.00", "-20.00", "–", "+20.00",
         "1"],
    ]  # fmt: skip


@pytest.mark.parametrize("formats", [[], ["svg"]])
def test_the_figure_has_a_line_for_each_row(tmp_path, formats):
    records = [
        audited(tmp_path, "l2p", seed, 0.5, ("vote", "by task", 32, 0.6 + seed / 50)) for seed in (0, 1)
    ]
    AuditReport(run_set(*records)).write_files(tmp_path, formats)
    assert (tmp_path / "audit-seq-arrays.svg").exists() == bool(formats)
    assert "by task, 32" in (tmp_path / "audit.tex").read_text()
