"""What two equal runs have in common in an MLflow store, read back through MLflow's own client."""

from typing import TYPE_CHECKING

from engram.utils.metrics.measurements import SYSTEM, measures_machine

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient


def comparable_metrics(client: "MlflowClient", run_id: str) -> dict[str, list[tuple[int, float | None]]]:
    """Name → (step, value) in order, each as often as it was logged; None for what measures the machine.

    Of `system/` nothing is compared: a process that is killed takes its last measurement with it.
    """
    names = [name for name in client.get_run(run_id).data.metrics if not name.startswith(SYSTEM)]
    points = {}
    for name in names:
        history = client.get_metric_history(run_id, name)
        compared = [(m.step, None if measures_machine(name) else m.value) for m in history]
        points[name] = sorted(compared, key=lambda point: (point[0], point[1] or 0.0))
    return points
