"""Tables of prompts beside their controls: names, accuracies, paired differences, rates that were tried."""

from dataclasses import replace

import pytest

from engram.scripts.analysis.papers import prompts
from engram.scripts.analysis.papers.prompts import PromptsReport
from engram.scripts.analysis.run_set import StoredRecord
from engram.utils.runs.run_record import Seconds
from tests.unit.stored_records import run_set, stored_record, view
from tests.unit.test_rehearsal_report import rows

HEAD = {"train_classes": "task", "tune": "head"}


def run(model: str, accuracy: float, seed: int = 0, task_il: float = 0.9, **parts) -> StoredRecord:
    flags = {"model": model, "dataset": "seq-arrays", "seed": seed, "backbone": "small_vit", "lr": 0.01}
    flags["pretrained"] = "encoder.pt"
    measured = {key: parts.pop(key) for key in ("evaluated_on",) if key in parts}
    return stored_record(
        {**flags, "arrays": "half.npz", **parts}, class_il=view([[accuracy, None], [accuracy, accuracy]]),
        task_il=view([[task_il, None], [task_il, task_il]]), seconds={"total": 4.0 + seed}, **measured,
    )  # fmt: skip


def tables(*records: StoredRecord) -> list[list[list[str]]]:
    texts = PromptsReport(run_set(*records)).markdown().split("**seq-arrays** on small_vit, half")[1:]
    return [rows(text)[2:] for text in texts]


@pytest.mark.parametrize(
    ("model", "flags", "name"),
    [
        ("sgd", HEAD, "sgd task head"),
        ("sgd", {"train_classes": "all", "encoder_lr_scale": 0.01}, "sgd all slow"),
        ("slca", {"ca_epochs": 0, "encoder_lr_scale": 0.01}, "slca without alignment"),
        ("slca", {"ca_epochs": 5, "reverse_ce": 0.1, "tune": "lora"}, "slca++"),
        ("mos", {"merge_momentum": 0.0, "ca_epochs": 30}, "mos without merging"),
        ("ranpac", {"first_task": "adapter"}, "ranpac first task"),
        ("ranpac", {"first_task": "none"}, "ranpac"),
        ("er", {"tune": "adapter", "train_classes": "all"}, "er adapter"),
        ("joint", {"tune": "full"}, "joint"),
    ],
)
def test_a_row_is_called_by_what_tells_it_from_others(model, flags, name):
    assert prompts.row_name(run(model, 0.5, **flags)) == name


def test_differences_to_controls_are_paired_with_an_interval_and_corrected():
    """l2p − head alone: 10, 12, 14 points, so 12 ± t(.975, 2) · 2 / √3 = 4.97 and t = 10.39, p = .0091.

    dualprompt − head alone: -1, 0, 1, p = 1. Holm over two tests doubles the smaller p.
    """
    accuracies = {"l2p": (0.50, 0.52, 0.54), "dualprompt": (0.39, 0.40, 0.41)}
    records = [run(model, a, seed) for model, values in accuracies.items() for seed, a in enumerate(values)]
    records += [run("sgd", 0.4, seed, task_il=0.8, **HEAD) for seed in range(3)]
    measured, differences = tables(*records)
    assert measured[2][:4] == ["l2p", "52.00 ± 2.00", "90.00 ± 0.00", "52.00 ± 2.00"]
    assert {row[0] for row in measured[:2]} == {"sgd task head", "dualprompt"}
    assert measured[2][5:] == ["0.01", "5", "3"]
    assert differences[0][:4] == ["l2p", "sgd task head", "+12.00 [7.03, 16.97]", "0.018"]
    assert differences[1][:4] == ["dualprompt", "sgd task head", "0.00 [-2.48, 2.48]", "1.000"]
    assert [row[4] for row in differences] == ["+10.00 [10.00, 10.00]"] * 2
    assert [row[-1] for row in differences] == ["3", "3"]


def test_a_method_without_its_control_has_no_difference_and_one_seed_no_interval():
    _, differences = tables(run("l2p", 0.5), run("sgd", 0.4, **HEAD), run("ease", 0.6))
    assert [row[:3] for row in differences] == [["l2p", "sgd task head", "+10.00"]]


def test_runs_whose_time_nobody_measured_have_none():
    unmeasured = replace(run("l2p", 0.5), seconds=Seconds())
    assert tables(unmeasured)[0][0][-2:] == ["–", "1"]
    assert tables(unmeasured, run("l2p", 0.5, 1))[0][0][-2:] == ["5", "2"]


def test_random_weights_are_another_encoder():
    report = PromptsReport(run_set(run("ncm", 0.9), run("ncm", 0.4, pretrained=None)))
    titles = [table.title for table in report.tables()]
    assert titles == [
        "**seq-arrays** on small_vit, half", "**seq-arrays** on small_vit, random weights, half"
    ]  # fmt: skip


def test_a_table_without_a_row_is_left_out():
    assert len(tables(run("joint", 0.9))) == 1


def test_rates_that_were_tried_are_a_table_of_their_own_with_the_chosen_one_marked():
    tried = [
        run("l2p", accuracy, 100, lr=lr, evaluated_on="validation")
        for lr, accuracy in ((0.001, 0.2), (0.01, 0.3), (0.1, 0.3))
    ]
    measured, rates = tables(run("l2p", 0.5), run("ncm", 0.4), *tried)
    assert rates == [["l2p", "20.00", "30.00 *", "30.00"]]
    assert {row[0]: row[5] for row in measured} == {"l2p": "0.01", "ncm": "–"}


def test_two_settings_of_a_method_that_tried_one_rate_have_a_row_each():
    tried = [
        run("l2p", accuracy, 100, lr=lr, n_prompts=n, evaluated_on="validation")
        for n, lr, accuracy in ((3, 0.01, 0.2), (3, 0.1, 0.1), (5, 0.01, 0.4))
    ]
    _, rates = tables(run("l2p", 0.5, n_prompts=5), *tried, run("ease", 0.6, evaluated_on="validation"))
    assert rates == [
        ["ease", "60.00 *", "–"], ["l2p, n_prompts 3", "20.00 *", "10.00"],
        ["l2p, n_prompts 5", "40.00 *", "–"],
    ]  # fmt: skip


def test_every_control_is_the_name_of_a_row_of_the_study():
    from engram.scripts.studies.prompts import rows as study_rows

    names = {prompts.row_name(run(row.pop("model"), 0.5, **row)) for row in study_rows()}
    assert {name for controls in prompts.CONTROLS.values() for name in controls} <= names
    assert set(prompts.CONTROLS) <= names


def test_a_method_without_a_run_of_any_control_is_named(capsys):
    assert len(tables(run("l2p", 0.5), run("ease", 0.6), run("ncm", 0.4))) == 2
    said = capsys.readouterr().err
    assert "l2p has none of its controls: sgd task head" in said and "ease" not in said
