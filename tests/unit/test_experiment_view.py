"""The view that MLflow's pages read: stored where they look for it, in words that they know."""

import json
import re
from pathlib import Path

import mlflow
import pytest

from engram.utils.tracking import experiment_view as ev


@pytest.fixture(scope="module")
def front_end() -> str:
    """The text of the installed front end: what it is made of stands in it, with names shortened."""
    folder = Path(mlflow.__file__).parent / "server" / "js" / "build" / "static" / "js"
    return "\n".join(path.read_text(errors="replace") for path in sorted(folder.glob("*.js")))


@pytest.mark.parametrize(
    "words",
    [
        ev.VIEW_TAG.removesuffix(ev.KEY), ev.KIND_TAG[0], ev.KIND_TAG[1], "viewStateShareKey", "workflowType",
        f'MACHINE_LEARNING="{ev.MODE}"', '"/experiments/:experimentId/runs"', '"/experiments"',
        *json.loads(ev.view()),
        "runDateAndNestInfo", 'field:"duration"', '"Run Name"', "+\".`\"+",
    ],
)  # fmt: skip
def test_the_front_end_knows_the_words(front_end, words):
    assert words in front_end, (
        f"MLflow {mlflow.__version__}: its front end no longer has {words!r}; read how it keeps a shared "
        "view of an experiment, and repair experiment_view.py"
    )


def test_the_address_of_an_experiment_and_of_one_that_is_not_there_yet():
    assert ev.address("7") == "/#/experiments/7/runs?workflowType=machine_learning&viewStateShareKey=engram"
    assert ev.address(None) == "/#/experiments?workflowType=machine_learning", (
        "not the page for language models"
    )


def test_columns_are_metrics_flags_and_tags_that_a_run_logs():
    from tests.unit.test_logged_values import filled

    names = {f"metrics.`{name}`" for name in filled().task_metrics(2)}
    chosen = json.loads(ev.view())["selectedColumns"]
    plain = {re.sub("`validation_", "`", column) for column in chosen if column.startswith("metrics")}
    assert plain <= names
    assert {"params.`buffer_size`", "params.`seed`", "metrics.`forgetting`"} < set(chosen)


def test_the_first_columns_fit_beside_the_assistant():
    until_seed = list(ev.COLUMNS)[: list(ev.COLUMNS).index("params.`seed`") + 1]
    assert 75 + sum(ev.COLUMNS[column] for column in until_seed) <= 700  # 75: the boxes to choose runs by


def test_the_view_fits_into_a_tag():
    assert len(ev.view()) < 5000  # MLflow's limit


def test_a_server_that_forbids_tags_of_experiments_is_still_written_to(tmp_path, monkeypatch):
    from mlflow.entities import Experiment
    from mlflow.exceptions import MlflowException

    class Client:
        def get_experiment_by_name(self, name):
            return Experiment("7", name, "", "active", [])

        def set_experiment_tag(self, *arguments):
            raise MlflowException("PERMISSION_DENIED")

    assert ev.experiment_id(Client(), "http://host", "theirs") == "7"
