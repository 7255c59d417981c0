"""Tracking: where a run reports its numbers, MLflow or nowhere.

A store that fails never stops a run: one warning, then the tracker keeps silent and the run's folder
holds the results. MLflow takes seconds to import and is imported only when something is logged.
"""

import getpass
import logging
import math
import os
import platform
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from engram.utils.config.config import Config
from engram.utils.config.outside import label
from engram.utils.config.run_title import run_title
from engram.utils.config.version import git_state
from engram.utils.credentials import redact
from engram.utils.tracking import mlflow_store as store
from engram.utils.tracking.experiment_view import experiment_id
from engram.utils.tracking.mlflow_requests import LivelyClient, delete_twins, milliseconds, started_from

if TYPE_CHECKING:
    from engram.utils.tracking.background_tracker import BackgroundTracker

logger = logging.getLogger(__name__)
Value = TypeVar("Value")

METRICS_PER_BATCH, PARAMS_PER_BATCH = 1000, 100  # MLflow's limits
ENDINGS = {"finished": "FINISHED", "failed": "FAILED"}  # anything else is KILLED
TAG_FLAGS = (
    "model", "dataset", "backbone", "seed", "device", "buffer_size", "buffer_policy", "batchwise_prompt",
    "as_released",
)  # fmt: skip


class Tracker:
    """What a run reports to. `active`: whether what is logged arrives; `run_id`, `experiment`: where."""

    run_id: str | None = None
    experiment: str | None = None
    active = False

    def log_metrics(self, metrics: dict[str, float | None], step: int) -> None:
        """Numbers at one step; those that are NaN, infinite or None are left out."""
        self.log_history([(step, metrics)])

    def log_history(self, rows: Sequence[tuple[int, Mapping[str, float | None]]]) -> None:
        """Numbers at many steps, sent together."""

    def logged_steps(self, key: str) -> set[int]:
        """The steps at which metric `key` is in the store: a resumed run need not log them again."""
        return set()

    def log_artifacts(self, paths: list[Path]) -> None:
        """Copy files to the run."""

    def set_tags(self, tags: dict[str, Any]) -> None:
        """Add tags to the run, or replace those it has."""

    def describe(self, text: str) -> None:
        """The text shown on top of the run's page."""
        self.set_tags({"mlflow.note.content": text})

    def flush(self) -> None:
        """Afterwards everything reported so far is where it belongs, or `active` is False."""

    def finish(self, status: str, hurried: bool = False, ended: float | None = None) -> None:
        """End the run as `finished`, `failed` or anything else (killed); resuming opens it again.

        hurried: the run was asked to end, and soon; a store that is slow is not waited for.
        ended: when it came to its end, in seconds since 1970; by default, now.
        """


class NullTracker(Tracker):
    """Keeps nothing: --disable_log, --debug_mode or a store that cannot be reached."""


class MlflowTracker(Tracker):
    """One MLflow run, in a database or on a server. `alive` is called after each request to the store."""

    def __init__(
        self,
        uri: str,
        run_dir: Path,
        warn: Callable[[str], None] = logger.warning,
        alive: Callable[[], None] = lambda: None,
    ):
        self.uri, self.run_dir, self.warn, self.alive = uri, run_dir, warn, alive
        self._client: Any = None
        self._failures = store.import_mlflow(uri)

    def start(
        self,
        flags: dict[str, Any],
        resume_id: str | None,
        resumed: bool = False,
        title: str | None = None,
        started: float | None = None,
    ) -> None:
        """Create the run, or continue the one called `resume_id`; `active` says whether it worked.

        resumed: the run may have been killed between making its MLflow run and noting the id.
        title: the run's name. started: when it began, in seconds since 1970; by default, now.
        """
        self.active = True
        opening = f"opening {redact(self.uri)}"
        self._guarded(opening, lambda: self._start(flags, resume_id, resumed, title, started))

    def log_history(self, rows: Sequence[tuple[int, Mapping[str, float | None]]]) -> None:
        """As many batches as MLflow's limit demands."""
        now = int(time.time() * 1000)
        values = [
            (name, float(value), now, step)
            for step, metrics in rows
            for name, value in metrics.items()
            if value is not None and math.isfinite(value)
        ]
        if values:
            self._guarded("logging metrics", lambda: self._log_values(values))

    def logged_steps(self, key: str) -> set[int]:
        """Empty when the store does not answer."""
        steps = self._guarded(f"reading {key}", lambda: self._client.get_metric_history(self.run_id, key))
        return {metric.step for metric in steps or []}

    def log_artifacts(self, paths: list[Path]) -> None:
        """Each to the top folder of the run's artifacts."""
        for path in paths:
            self._guarded(
                f"logging {path.name}", lambda p=path: self._client.log_artifact(self.run_id, str(p))
            )

    def set_tags(self, tags: dict[str, Any]) -> None:
        """Add or replace the tags in one request."""
        self._guarded("setting tags", lambda: self._log_tags(tags))

    def finish(self, status: str, hurried: bool = False, ended: float | None = None) -> None:
        """End the run in the MLflow state that belongs to the status."""
        self._guarded("ending the run", lambda: self._end(ENDINGS.get(status, "KILLED"), ended))

    # --- MLflow ----------------------------------------------------------------------------------

    def _start(
        self,
        flags: dict[str, Any],
        resume_id: str | None,
        resumed: bool,
        title: str | None,
        started: float | None,
    ) -> None:
        from mlflow.tracking import MlflowClient

        path = store.sqlite_path(self.uri)
        if path is not None and not path.exists():
            store.create_database(path)
            self.alive()
        self._client = LivelyClient(MlflowClient(tracking_uri=self.uri), self.alive)
        tags = run_tags(flags, self.run_dir)
        name = flags["experiment_name"] or label(flags["dataset"])
        self.experiment = experiment = experiment_id(self._client, self.uri, name)
        if resumed and not resume_id:
            earlier = started_from(self._client, experiment, tags["run_dir"])
            resume_id = earlier[0].info.run_id if earlier else None
        if resume_id and self._continue(resume_id):
            self._log_tags(tags)
            logged = self._client.get_run(resume_id).data.params
            self._log_params({name: value for name, value in flags.items() if name not in logged})
            return
        self.run_id = self._client.create_run(
            experiment, start_time=milliseconds(started), run_name=title, tags=tags
        ).info.run_id
        self._log_params(flags)

    def _end(self, status: str, ended: float | None) -> None:
        self._client.set_terminated(self.run_id, status, milliseconds(ended))
        if not store.is_database(self.uri):  # its requests are never repeated
            delete_twins(self._client, self.run_id)

    def _continue(self, run_id: str) -> bool:
        """Open an existing run again; False, with a warning, when the store does not have it."""
        from mlflow.exceptions import MlflowException

        try:
            exists = self._client.get_run(run_id).info.lifecycle_stage == "active"
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            exists = False
        if not exists:
            self.warn(f"MLflow run {run_id} is not in {redact(self.uri)}; a new one continues it")
            return False
        self._client.update_run(run_id, status="RUNNING")
        self.run_id = run_id
        return True

    def _log_params(self, flags: dict[str, Any]) -> None:
        from mlflow.entities import Param

        # --tracking_uri may carry a password
        params = [Param(name, redact(str(value))) for name, value in flags.items()]
        for batch in batches(params, PARAMS_PER_BATCH):
            self._client.log_batch(self.run_id, params=batch)

    def _log_tags(self, tags: dict[str, Any]) -> None:
        from mlflow.entities import RunTag

        self._client.log_batch(self.run_id, tags=[RunTag(name, str(value)) for name, value in tags.items()])

    def _log_values(self, values: list[tuple[str, float, int, int]]) -> None:
        from mlflow.entities import Metric

        for batch in batches([Metric(*value) for value in values], METRICS_PER_BATCH):
            self._client.log_batch(self.run_id, metrics=batch)

    # --- failures --------------------------------------------------------------------------------

    def _guarded(self, doing: str, work: Callable[[], Value]) -> Value | None:
        """Do it; the first failure is reported and the last thing this tracker tries."""
        if not self.active:
            return None
        try:
            with store.quiet(), store.exclusive(store.sqlite_path(self.uri)):
                return work()
        except self._failures as error:
            self.active = False
            reason = _shortened(redact(str(error))) or type(error).__name__
            self.warn(
                f"MLflow: {doing} failed; nothing more is logged there, training goes on and its results "
                f"are kept in {self.run_dir} ({reason})"
            )
            return None


def wanted(config: Config) -> bool:
    """Whether the flags ask for MLflow."""
    return not (config.log.disable_log or config.run.debug_mode)


def open_tracker(
    config: Config,
    run_dir: Path,
    resume_id: str | None = None,
    resumed: bool = False,
    background: "BackgroundTracker | None" = None,
    started: float | None = None,
) -> Tracker:
    """The tracker that the flags ask for; `NullTracker`, after a warning, when its store cannot be used.

    background: the one of `background_tracker.prepared`; it logs beside the run and warns later.
    started: when the run began, in seconds since 1970; by default, when `background` was made.
    """
    if not wanted(config):
        return NullTracker()
    flags = config.flat()
    title = flags["run_name"] or run_title(flags)
    if background is not None:
        background.start(flags, run_dir, resume_id, resumed, title, started or background.started)
        return background
    tracker = MlflowTracker(store.resolve_uri(config.log.tracking_uri), run_dir)
    tracker.start(flags, resume_id, resumed, title, started)
    return tracker if tracker.active else NullTracker()


def run_tags(flags: dict[str, Any], run_dir: Path) -> dict[str, str]:
    """What runs are searched by, and where this one came from."""
    return {name: str(flags[name]) for name in TAG_FLAGS if name in flags} | {
        **git_state().tags(),
        "host": socket.gethostname(),
        "python": platform.python_version(),
        "torch": metadata.version("torch"),
        "run_dir": str(run_dir.absolute()),
        "mlflow.user": _user(),
        "mlflow.source.name": "main.py",
        "mlflow.source.type": "LOCAL",
    }


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return f"uid {os.getuid()}"


def _shortened(text: str, head: int = 120, tail: int = 160) -> str:
    """One line; of a long chain of causes the last one says most."""
    text = " ".join(text.split())
    return text if len(text) <= head + tail else f"{text[:head]} ... {text[-tail:]}"


def batches(items: list, size: int) -> list[list]:
    """Divide the list into lists of at most `size` items, in their order."""
    return [items[i : i + size] for i in range(0, len(items), size)]
