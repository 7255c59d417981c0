"""The table of pre-trained encoders: a table for each, published numbers beside their own encoder alone."""

from dataclasses import replace

from engram.scripts.analysis.papers.pretrained import PretrainedReport
from engram.scripts.analysis.run_set import StoredRecord
from engram.utils.runs.run_record import Seconds
from tests.unit.stored_records import run_set, stored_record, view
from tests.unit.test_rehearsal_report import rows

VIT, LITE = "timm:vit_base_patch16_224.augreg_in21k", "timm:tf_efficientnet_lite0"


def run(model: str, accuracy: float, backbone: str, seed: int = 0, **config) -> StoredRecord:
    R = [[accuracy, None], [accuracy, accuracy]]
    return stored_record(
        {"model": model, "dataset": "seq-cifar100", "seed": seed, "backbone": backbone, **config},
        scenario="class-il", class_il=view(R, forgetting=0.1), task_il=view(R), seconds={"total": 7.0},
    )  # fmt: skip


def test_published_numbers_and_the_gap_to_the_joint_probe_are_those_of_the_encoder():
    records = [
        run("ncm", 0.83, VIT), run("ncm", 0.85, VIT, 1), run("linear_probe_joint", 0.9, VIT),
        run("ncm", 0.6, LITE), run("er", 0.5, LITE, buffer_size=500),
    ]  # fmt: skip
    text = PretrainedReport(run_set(*records)).markdown()
    lite, vit = text.split(f"**seq-cifar100** on {VIT}")
    assert [row[:5] for row in rows(lite)[2:]] == [
        ["er", "500", "50.00", "–", "–"], ["ncm", "–", "60.00", "–", "–"]
    ]  # fmt: skip
    assert [row[:5] for row in rows(vit)[2:]] == [
        ["ncm", "–", "84.00 ± 1.41", "83.4", "6.00"], ["linear_probe_joint", "–", "90.00", "87.9", "0.00"]
    ]  # fmt: skip


def test_runs_whose_time_nobody_measured_have_none():
    unmeasured = [replace(run("ncm", 0.8, VIT, seed), seconds=Seconds()) for seed in (0, 1)]
    assert rows(PretrainedReport(run_set(*unmeasured)).markdown())[2][-2:] == ["–", "2"]
    one = PretrainedReport(run_set(unmeasured[0], run("ncm", 0.8, VIT, 1)))
    assert rows(one.markdown())[2][-2:] == ["7", "2"]
