"""Experiment view: what MLflow's pages show of an experiment at first sight, and the address that opens it.

MLflow's front end opens an experiment in its mode for language models, and its table of runs without any
metric. Both can be told otherwise without a click: the mode stands in the address, and the address names a
"shared view", which the page reads from a tag of the experiment (it is what its button "Share" writes).

The names and forms in this file are those of MLflow's front end, which documents none of them. They were
read in, and tried with, MLflow 3.17; `tests/unit/test_experiment_view.py` looks for them in the front end
that is installed. Where they change, the address still opens MLflow, and nothing else depends on them.
"""

import json
from contextlib import suppress
from typing import TYPE_CHECKING

from engram.utils.tracking import mlflow_store as store

if TYPE_CHECKING:
    from mlflow.entities import Experiment
    from mlflow.tracking import MlflowClient

KEY = "engram"  # of our shared view
VIEW_TAG = f"mlflow.sharedViewState.{KEY}"
KIND_TAG = ("mlflow.experimentKind", "custom_model_development")
MODE = "machine_learning"  # instead of "genai"

# Columns of the table from left to right, and their widths in pixels. Those up to the seed fit together into
# 700 pixels, what a window of 1280 pixels leaves when MLflow's assistant has opened itself. A column that no
# run has a value for is not shown.
COLUMNS = {
    "attributes.`Run Name`": 170, "runDateAndNestInfo": 50,
    "metrics.`mean_acc_class_il`": 135, "metrics.`forgetting`": 80, "duration": 60,
    "params.`buffer_size`": 85, "params.`seed`": 45,
    "tags.`evaluated_on`": 95, "metrics.`validation_mean_acc_class_il`": 195,
    "metrics.`validation_forgetting`": 140, "metrics.`mean_acc_task_il`": 130,
    "metrics.`forgetting_mask_classes`": 165,
}  # fmt: skip
ALWAYS = {"attributes.`Run Name`", "runDateAndNestInfo", "duration"}  # columns that cannot be chosen


def view() -> str:
    """The view as the page reads it: chosen columns, best class-IL accuracy first, charts in full width."""
    state = {
        "orderByKey": "metrics.`mean_acc_class_il`",
        "orderByAsc": False,
        "selectedColumns": [column for column in COLUMNS if column not in ALWAYS],
        "columnOrder": list(COLUMNS),
        "columnWidths": COLUMNS,
        "runListHidden": True,  # beside charts, whose legends name the runs; the table is not meant
    }
    return json.dumps(state)


def address(experiment: str | None) -> str:
    """What follows a server's address to open the table of this experiment's runs.

    None stands for an experiment that is not created yet, as in the first seconds of a new database; the
    address then opens the list of experiments.
    """
    if experiment is None:
        return f"/#/experiments?workflowType={MODE}"
    return f"/#/experiments/{experiment}/runs?workflowType={MODE}&viewStateShareKey={KEY}"


def experiment_id(client: "MlflowClient", uri: str, name: str) -> str:
    """Id of the experiment, which another process may be creating at this moment; it has our view."""
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        tags = {KIND_TAG[0]: KIND_TAG[1], VIEW_TAG: view()}
        try:
            return client.create_experiment(name, store.artifact_location(uri, name), tags=tags)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            experiment = client.get_experiment_by_name(name)
    if experiment.lifecycle_stage == "deleted":
        raise MlflowException(
            f"the experiment was deleted: mlflow experiments restore -x {experiment.experiment_id}, or give "
            f"another --experiment_name than {name}; then start the run again, which sends its numbers"
        )
    _renew_view(client, experiment)
    return experiment.experiment_id


def _renew_view(client: "MlflowClient", experiment: "Experiment") -> None:
    """Store the view where another version of this program left another one, or none.

    A server may let this user write runs but no tags of experiments; then the table is shown as it was.
    """
    from mlflow.exceptions import MlflowException

    if experiment.tags.get(VIEW_TAG) != view():
        with suppress(MlflowException):
            client.set_experiment_tag(experiment.experiment_id, VIEW_TAG, view())
