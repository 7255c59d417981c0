"""The rehearsal tables: what counts as one setting, what stands beside it, in which order."""

from dataclasses import replace

from engram.scripts.analysis.papers.rehearsal import RehearsalReport
from engram.scripts.analysis.run_set import StoredRecord
from engram.utils.runs.run_record import Seconds
from tests.unit.stored_records import run_set, stored_record, view


def run(model: str, accuracy: float, seed: int = 0, dataset: str = "rot-mnist", **config) -> StoredRecord:
    R = [[accuracy, None], [accuracy, accuracy]]
    return stored_record(
        {"model": model, "dataset": dataset, "seed": seed, **config},
        scenario="class-il" if dataset == "seq-mnist" else "domain-il",
        class_il=view(R, forgetting=0.1), task_il=view([[0.99, None], [0.99, 0.99]]),
        seconds={"total": 12.4 + seed}, peak_memory_bytes=700 * 2**20,
    )  # fmt: skip


def markdown(*records: StoredRecord) -> str:
    return RehearsalReport(run_set(*records)).markdown()


def rows(text: str) -> list[list[str]]:
    return [
        [cell.strip() for cell in line[1:-1].split("|")] for line in text.splitlines() if line[:2] == "| "
    ]


def test_domain_tables_stand_beside_the_papers_numbers_by_buffer_size():
    records = [
        run("derpp", 0.9241, buffer_size=500), run("er", 0.89, buffer_size=500),
        run("er", 0.91, 1, buffer_size=500), run("er", 0.85, buffer_size=200),
        run("gss", 0.8, buffer_size=200), run("sgd", 0.67),
    ]  # fmt: skip
    head, _, *found = rows(markdown(*records))
    assert head[:4] == ["method", "buffer", "accuracy", "published"]
    assert [row[:4] for row in found] == [
        ["sgd", "–", "67.00", "~67.7"],
        ["gss", "200", "80.00", "–"],
        ["er", "200", "85.00", "85.01 ± 1.90"],
        ["er", "500", "90.00 ± 1.41", "88.91 ± 1.44"],
        ["derpp", "500", "92.41", "92.77 ± 1.05"],
    ]
    assert found[3][-3:] == ["13", "700", "2"]


def test_variants_of_a_method_are_settings_of_their_own():
    flags = {"dataset": "seq-mnist", "buffer_size": 500}
    records = [
        run("er", 0.87, memory="reservoir", **flags), run("er", 0.8, memory="fifo", **flags),
        run("full_buffer", 0.9, dataset="seq-mnist", order="grasp"),
    ]  # fmt: skip
    text = markdown(*records)
    assert text.startswith("**seq-mnist**, buffer 500\n")
    assert [row[:3] for row in rows(text)[2:]] == [
        ["er fifo", "80.00", "99.00"], ["er", "87.00", "99.00"], ["full_buffer grasp", "90.00", "99.00"],
    ]  # fmt: skip


def test_settings_of_several_sizes_of_the_memory_are_told_apart():
    records = [
        run("er", accuracy, dataset="seq-mnist", buffer_size=size)
        for size, accuracy in ((200, 0.8), (500, 0.9))
    ]
    head, _, *found = rows(markdown(*records, run("sgd", 0.2, dataset="seq-mnist")))
    assert head[:3] == ["method", "buffer", "class-IL accuracy"]
    assert [row[:3] for row in found] == [
        ["sgd", "–", "20.00"], ["er", "200", "80.00"], ["er", "500", "90.00"],
    ]  # fmt: skip


def test_what_was_not_measured_is_left_out_of_the_medians():
    """Of seconds 12.4, none and 14.4 and of 700 MB, none and 700 MB the medians are 13 and 700."""
    records = [run("er", 0.5, seed) for seed in range(3)]
    unmeasured = [replace(r, seconds=Seconds(), peak_memory_bytes=None) for r in records]
    _, _, row = rows(markdown(records[0], unmeasured[1], records[2]))
    assert row[-3:] == ["13", "700", "3"]
    _, _, row = rows(markdown(*unmeasured))
    assert row[-3:] == ["–", "–", "3"]
