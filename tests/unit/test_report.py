import numpy as np
import pytest

from engram.utils.metrics import accuracy_matrix
from engram.utils.runs import text_summary
from engram.utils.runs.run_record import RunRecord

CHECK = [[0.80, 0.10, None], [0.85, 0.90, 0.10], [0.90, 0.60, 1.0]]

TABLE = """\
class-IL
after \\ on      0      1      2
         0   80.0   10.0      ·
         1   85.0   90.0   10.0
         2   90.0   60.0  100.0"""

SUMMARY = """\
in %                                    class-IL     task-IL
average accuracy                            80.7        90.0
forgetting                                  12.5           –
backward transfer (BWT)                    -10.0         0.0
learning accuracy                           87.3        90.0
average incremental accuracy                82.7           –
forward transfer (FWT)                         –         2.0"""

FULL = """
class-IL accuracy in % (test data)
after \\ on      0
         0   50.0

task-IL accuracy in % (test data)
after \\ on      0
         0   75.0

in %                                    class-IL     task-IL
average accuracy                            50.0        75.0
forgetting                                     –           –
backward transfer (BWT)                        –           –
learning accuracy                              –           –
average incremental accuracy                   –           –
min-ACC, inside tasks                       40.0           –

time     3.2 s train, 0.4 s eval, 3.7 s total; 12,346 images/s in training
device   cpu (x86_64, 2 threads)
"""


def record(**more) -> RunRecord:
    class_il = {
        "R": CHECK, "average_accuracy": 0.80667, "forgetting": 0.125, "bwt": -0.1,
        "learning_accuracy": 0.8733, "average_incremental_accuracy": 0.827,
    }  # fmt: skip
    task_il = {
        "R": [[0.5]],
        "average_accuracy": 0.9,
        "forgetting": None,
        "bwt": -0.00001,
        "learning_accuracy": 0.9,
    }
    content = {"class_il": class_il, "task_il": task_il, "fwt": 0.02, "status": "finished", "config": {}}
    return RunRecord.from_json(content | more)


def test_matrix_table():
    assert text_summary.matrix_table(CHECK, "class-IL") == TABLE


def test_nan_is_a_missing_number_too():
    assert text_summary.matrix_table(np.array(CHECK, dtype=float), "class-IL") == TABLE


@pytest.mark.parametrize("T, width", [(10, 80), (20, 130)])
def test_width(T, width):
    lines = text_summary.matrix_table(np.ones((T, T)), "t").splitlines()
    assert {len(line) for line in lines[1:]} == {width}
    assert lines[-1].split() == [str(T - 1)] + ["100.0"] * T


def test_many_tasks_show_diagonal_and_last_row():
    R = np.full((25, 25), np.nan)
    np.fill_diagonal(R, 0.9)
    R[-1] = np.arange(25) / 100
    R[-1, -1] = 0.9
    lines = text_summary.matrix_table(R, "t").splitlines()
    assert len(lines) == 1 + 3 * 3 + 1 and max(map(len, lines)) < 110
    assert lines[4].split() == ["task", *map(str, range(10, 20))]
    assert lines[5].split() == ["learned"] + ["90.0"] * 10
    assert lines[6].split() == ["at", "the", "end"] + [f"{j:.1f}" for j in range(10, 20)]
    assert lines[-1].strip() == f"mean   learned 90.0, at the end {(sum(range(24)) + 90) / 25:.1f}"


def test_summary():
    assert text_summary.summary(record()) == SUMMARY


def test_summary_agrees_with_metrics():
    R = np.array([[0.80, 0.10, 0.05], [0.85, 0.90, 0.10], [0.90, 0.60, 0.92]])
    lines = text_summary.summary(
        record(class_il={"R": R.tolist(), **accuracy_matrix.summary(R)}, scenario="domain-il")
    ).splitlines()
    assert lines[0].split() == ["in", "%", "domain-IL"]
    assert [line.split()[-1] for line in lines[1:5]] == ["80.7", "12.5", "-10.0", "87.3"]
    assert lines[-1].split() == ["forward", "transfer", "(FWT)", "2.0"]


def test_without_forward_transfer():
    assert "FWT" not in text_summary.summary(record(fwt=None))


@pytest.mark.parametrize("speed", [None, 0.0])
def test_a_method_without_steps_has_no_speed(speed):
    assert "images" not in text_summary.cost(record(images_per_second=speed))


def test_full(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    values = dict(
        class_il={"R": [[0.5]], "average_accuracy": 0.5, "min_acc": 0.4},
        task_il={"R": [[0.75]], "average_accuracy": 0.75},
        fwt=None, seconds={"train": 3.21, "eval": 0.4, "total": 3.7},
        images_per_second=12345.6, device="cpu (x86_64, 2 threads)",
    )  # fmt: skip
    assert text_summary.full(record(**values)) == FULL
    on_validation = record(**values, evaluated_on="validation")
    assert "(validation data)" in text_summary.full(on_validation)


def test_samples_by_memorization_are_counted():
    """A record of before counts none."""
    groups = {
        "high": {"class_il": {"R": [[0.21]], "forgetting": 0.754, "n_samples": 1234}},
        "low": {"class_il": {"R": [[0.5]], "forgetting": 0.1}},
    }
    (text,) = text_summary.memorization(record(groups=groups, config={"mem_thresholds": [0.1, 0.25]}))
    head, *rows = text.splitlines()
    assert head.endswith("     samples    class-IL  forgetting   (accuracy in %, at the end)")
    assert rows == [
        "high (above 0.25)                          1,234        21.0           –",
        "low (up to 0.1)                                –        50.0           –",
    ]


def test_cost_without_numbers():
    assert text_summary.cost(record()) == "time     –"


def test_headline():
    assert (
        text_summary.headline(record())
        == "class-IL accuracy 80.7 %, forgetting 12.5 %; task-IL accuracy 90.0 %"
    )
    assert (
        text_summary.headline(record(scenario="domain-il")) == "domain-IL accuracy 80.7 %, forgetting 12.5 %"
    )


def test_a_validation_run_is_marked_in_its_headline():
    assert text_summary.headline(record(evaluated_on="validation")).endswith("; on validation data")
