"""MLflow's client as a run uses it: it gives signs of life, and leaves no twin of the run in the store."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient


class LivelyClient:
    """`MlflowClient` that calls `alive` after each request, whether it was answered or failed.

    Opening a run takes several requests, each with its own patience: whoever waits for all of them needs to
    tell a store that is slow from one that never answers.
    """

    def __init__(self, client: "MlflowClient", alive: Callable[[], None]):
        self._client, self._alive = client, alive

    def __getattr__(self, name: str) -> Any:
        request = getattr(self._client, name)

        def carry_out(*arguments: Any, **keywords: Any) -> Any:
            try:
                return request(*arguments, **keywords)
            finally:
                self._alive()

        return carry_out


def milliseconds(seconds: float | None) -> int | None:
    """A time in seconds since 1970 as MLflow has it; None stays None, which MLflow takes for now."""
    return None if seconds is None else int(1000 * seconds)


def started_from(client: Any, experiment: str, run_dir: str) -> "list[Run]":
    """The experiment's runs that were started from this folder, the oldest first."""
    quoted = run_dir.replace("'", "''")
    order = ["attributes.start_time ASC"]
    runs: list[Run] = list(client.search_runs([experiment], f"tags.run_dir = '{quoted}'", order_by=order))
    return runs


def delete_twins(client: Any, run_id: str) -> None:
    """Delete the empty runs that the requests for this one have left beside it.

    MLflow's client repeats a request that a slow server did not answer in time, and the server carries out
    each of them. Nothing is ever logged to a twin, and its start is the same to the millisecond, since the
    repeated request carries it; any other run is not touched.
    """
    run = client.get_run(run_id)
    run_dir = run.data.tags.get("run_dir")
    for other in started_from(client, run.info.experiment_id, run_dir) if run_dir else ():
        empty = not (other.data.params or other.data.metrics)
        if other.info.run_id != run_id and empty and other.info.start_time == run.info.start_time:
            client.delete_run(other.info.run_id)
