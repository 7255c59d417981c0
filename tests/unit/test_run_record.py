"""The record of a run: what is written is read back, and a file that cannot be trusted is one clear error."""

import ast
import math
from pathlib import Path

import numpy as np
import pytest

from engram.utils.errors import UserError
from engram.utils.metrics.measurements import CurvePoint, MemoryCounts
from engram.utils.runs.run_dir import RunDir
from engram.utils.runs.run_record import RunRecord, Seconds, ViewResult
from engram.utils.training.training_curve import TrainingPoint

ROOT = Path(__file__).resolve().parents[2]
NAN = float("nan")
R = np.array([[0.5, NAN], [1 / 3, 1.0]])
KEYS = [
    "schema_version", "config", "seed", "status", "scenario", "evaluated_on", "class_il", "task_il", "fwt",
    "b", "curve", "memory", "training", "groups", "seconds", "images_per_second", "peak_memory_bytes",
    "device", "precision",
    "versions", "git_commit", "git_dirty", "class_order", "transforms",
]  # fmt: skip


def record(**more) -> RunRecord:
    result = ViewResult(R, {"average_accuracy": 2 / 3, "forgetting": NAN})
    values = {
        "config": {"model": "er", "dataset": "seq-digits", "seed": 3, "lr": 0.1},
        "status": "finished",
        "views": {"class_il": result, "task_il": result},
        "seed": 3,
        "b": [0.1, NAN],
        "curve": [CurvePoint(5, 0, {"class_il": [0.25], "task_il": [0.75]})],
        "memory": [MemoryCounts(0, [1, 2], [3, 0])],
        "training": [TrainingPoint(5, 0.5, NAN, 1000.0, 2.5)],
        "groups": {"high": {"class_il": ViewResult(R, {"forgetting": 0.5 - 1 / 3})}},
        "seconds": Seconds(1.5, 1.0, 0.25, 0.25),
        "images_per_second": 12.5,
        "peak_memory_bytes": 10**12,
        "device": "cpu (x86_64, 2 threads)",
        "precision": "fp32",
        "versions": {"torch": "2.11"},
        "git_commit": "abc",
        "git_dirty": True,
        "class_order": [1, 0],
        "transforms": {"angles": [0.5, 1.25]},
    }
    return RunRecord(**values | more)


def test_forgetting_of_an_old_file_is_made_of_its_matrix_again():
    """Its maximum once began at the task's own row: .05 here, where the row before it was better."""
    matrix = np.array([[0.5, 0.7, 0.1], [0.5, 0.6, 0.1], [0.5, 0.5, 0.9]])
    old = ViewResult(matrix, {"average_accuracy": 0.6333, "forgetting": 0.05})
    not_measured = ViewResult(R, {"forgetting": NAN, "fm": 0.2})
    document = record(views={"class_il": old, "task_il": not_measured}).to_json()
    some_absent = [[0.5, 0.7, None], [0.5, 0.6, None], [None, 0.5, 0.9]]
    document["groups"] = {"high": {"class_il": {"R": some_absent, "forgetting": 0.0}}}
    read = RunRecord.from_json(document)
    assert read.class_il.metrics == {"average_accuracy": 0.6333, "forgetting": pytest.approx(0.1)}
    assert math.isnan(read.task_il.metric("forgetting")) and read.task_il.metric("fm") == 0.2
    assert read.groups["high"]["class_il"].metric("forgetting") == pytest.approx(0.2)


def test_what_is_written_is_read_back(tmp_path):
    written = record()
    written.write(tmp_path / "results.json")
    for path in (tmp_path, tmp_path / "results.json"):
        read = RunRecord.read(path)
        assert read.to_json() == written.to_json()
        np.testing.assert_array_equal(read.class_il.R, R)
        assert math.isnan(read.class_il.metric("forgetting")) and math.isnan(read.class_il.metric("min_acc"))
        assert (
            read.curve == written.curve and read.memory == written.memory and read.seconds == written.seconds
        )
        assert (read.n_tasks, read.title, read.finished) == (2, "er on seq-digits, seed 3", True)


def test_the_hash_of_a_split_is_written_where_there_is_one():
    assert "split_hash" not in record().to_json()
    assert RunRecord.from_json(record(split_hash="0a1b").to_json()).split_hash == "0a1b"


def test_the_file_has_one_line_a_key_and_null_for_what_was_not_measured(tmp_path):
    record().write(tmp_path / "results.json")
    lines = (tmp_path / "results.json").read_text().splitlines()
    assert [line.split('"')[1] for line in lines[1:-1]] == [*KEYS, "checksum"]
    assert lines[1] == '  "schema_version": 1,'
    metrics = '"average_accuracy": 0.6666666666666666, "forgetting": null'
    view = f'{{"R": [[0.5, null], [0.3333333333333333, 1.0]], {metrics}}}'
    assert f'  "class_il": {view},' in lines and '  "b": [0.1, null],' in lines


def test_files_from_before_the_version_and_some_keys_are_read():
    old = {"config": {"seed": 7}, "status": "finished", "class_il": {"R": [[1]]}, "task_il": {"R": [[None]]}}
    read = RunRecord.from_json(old)
    assert (read.schema_version, read.seed, read.evaluated_on, read.curve) == (1, 7, "test", [])
    assert math.isnan(read.fwt) and read.seconds == Seconds()
    assert RunRecord.from_json(read.to_json()).to_json() == read.to_json()


def test_a_domain_incremental_run_has_one_view_to_show():
    assert record(scenario="domain-il").view_names == {"class_il": "domain-IL"}
    assert list(record().view_names.values()) == ["class-IL", "task-IL"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "damaged"),
        ("{", "damaged"),
        ("[]", "the file: expected an object with named values, got []"),
        ("null", "the file: expected an object with named values, got null"),
        ("{}", "config: expected an object with named values, got null"),
        ('{"schema_version": 2}', "schema_version 2, known up to 1: another version of this program"),
        ('{"schema_version": "x"}', "schema_version 'x'"),
    ],
)
def test_a_file_that_is_no_record_is_one_error(tmp_path, text, message):
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(UserError, match="remove it or run the run again") as error:
        RunRecord.read(tmp_path)
    assert message in str(error.value) and str(tmp_path / "results.json") in str(error.value)
    assert not RunDir(tmp_path).finished


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "class_il",
            {"R": [[0.1, 0.2], [0.3]]},
            r"class_il.R: expected a square matrix, got 2 rows of \[1, 2\]",
        ),
        ("class_il", {"R": []}, "class_il.R: expected a square matrix"),
        ("class_il", {"R": [["0.5"]]}, 'class_il.R: expected a number or null, got "0.5"'),
        ("class_il", {"R": [[True]]}, "class_il.R: expected a number or null"),
        ("class_il", {"R": "text"}, "class_il.R: expected a list"),
        ("class_il", {"R": [[50.0]]}, "class_il.R: expected accuracies as fractions"),
        ("task_il", {}, "task_il.R: expected a list, got null"),
        ("task_il", {"R": [[0.5]], "bwt": "x"}, "task_il.bwt: expected a number"),
        ("status", None, "status: expected text"),
        ("curve", [{"step": 1}], "curve: incomplete entry"),
        ("seconds", [], "seconds: expected an object"),
        ("groups", {"high": {"class_il": {"R": [[2]]}}}, "groups.high.class_il.R: expected accuracies"),
    ],
)
def test_a_damaged_value_is_named(key, value, message):
    with pytest.raises(UserError, match=message):
        RunRecord.from_json(record().to_json() | {key: value})


def test_a_folder_without_a_record_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"holds no results\.json; give the folder of a run"):
        RunRecord.read(tmp_path)
    assert not RunDir(tmp_path).finished


def test_a_finished_record_makes_a_finished_run(tmp_path):
    record().write(tmp_path / "results.json")
    assert RunDir(tmp_path).finished
    record(status="interrupted").write(tmp_path / "results.json")
    assert not RunDir(tmp_path).finished


def opens_results(text: str) -> bool:
    """Whether a source has the file's name in its code; docstrings and help texts only mention it."""
    constants = (node.value for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Constant))
    return any(isinstance(value, str) and value.split("/")[-1] == "results.json" for value in constants)


def test_nothing_else_opens_the_file():
    rooms = ("backbones", "datasets", "memorization", "models", "scripts", "utils")
    paths = [path for room in rooms for path in (ROOT / room).rglob("*.py")]
    allowed = {ROOT / "utils" / "runs" / "run_record.py", ROOT / "scripts" / "dev" / "check_store.py"}
    assert {path for path in paths if opens_results(path.read_text())} <= allowed
    assert opens_results('path.glob("*/results.json")') and not opens_results('"""The file results.json."""')
