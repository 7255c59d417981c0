"""Everything a run leaves behind: on the terminal, in its folder and in MLflow."""

import sys
import time
from contextlib import suppress
from typing import Generic

import numpy as np

from engram.utils import checkpoint
from engram.utils.config import registry
from engram.utils.config.config import Config
from engram.utils.errors import DiskError
from engram.utils.runs import completion, text_summary
from engram.utils.runs.completion import Completion
from engram.utils.runs.introduction import introduction
from engram.utils.runs.matrix_csv import matrix_stem
from engram.utils.runs.record_of_run import evaluated_on, record_of
from engram.utils.runs.run_dir import RunDir
from engram.utils.runs.run_record import VIEW_NAMES, RunRecord
from engram.utils.runs.system_metrics import SystemMetrics
from engram.utils.tracking.background_tracker import BackgroundTracker
from engram.utils.tracking.experiment_view import address
from engram.utils.tracking.mlflow_store import BROWSE, how_to_browse
from engram.utils.tracking.mlflow_tracker import open_tracker, wanted
from engram.utils.training.environment import device_name
from engram.utils.training.ports import BatchT, TaskT
from engram.utils.training.signals import InterruptedRunError
from engram.utils.training.trainer import Trainer
from engram.utils.training.training_curve import LOSS

SEND_SECONDS = 10.0  # at least, between two messages to MLflow inside a task
OPEN_SECONDS = 5.0  # that a terminal waits, below the printed results, for the address of a run of seconds


class Recorder(Generic[TaskT, BatchT]):
    """Writes results after every task; a context manager that ends the MLflow run on leaving.

    wait: until the figures are drawn and the MLflow run is complete, as `--wait_for_log`.
    """

    def __init__(
        self,
        config: Config,
        run_dir: RunDir,
        trainer: Trainer[TaskT, BatchT],
        resumed: bool = False,
        background: BackgroundTracker | None = None,
        wait: bool = False,
    ):
        self.config, self.run_dir, self.trainer = config, run_dir, trainer
        self.resumed, self.background = resumed, background
        self.wait = wait or completion.must_be_waited_for(config)
        self.handed_over = False  # the tracking process has the rest to do
        self.system_metrics = SystemMetrics(trainer.benchmark.device)
        self.status = "failed"
        self.logged_points: set[int] = set()  # steps of the training curve
        self._sent = time.monotonic()

    def __enter__(self) -> "Recorder[TaskT, BatchT]":
        for line in introduction(self.config, self.run_dir.path, self.trainer):
            self.run_dir.say(line)
        self.tracker = open_tracker(
            self.config, self.run_dir.path, self.run_dir.tracking_id, self.resumed, self.background
        )
        benchmark = self.trainer.benchmark
        tags = {
            "device": device_name(benchmark.device),
            "precision": self.trainer.method.setup.precision,
            "evaluated_on": evaluated_on(self.config.flat()),
        }
        self.tracker.set_tags(tags | ({"split_hash": benchmark.split_hash} if benchmark.split_hash else {}))
        self._note_tracking(pending=True)
        if self.resumed:
            self.logged_points = self.tracker.logged_steps(LOSS)
        self._log_missed_tasks()
        return self

    def __exit__(self, *exception: object) -> None:
        if self.handed_over:
            return
        if self.status == "failed":
            self._write_if_possible("failed")
        hurried = bool(self.trainer.signals.requested)
        self.tracker.finish(self.status, hurried, self.run_dir.ended)
        with suppress(DiskError):  # it has been said, and "pending" stands in the folder since the start
            self._note_tracking(pending=self.status != "finished" or self._store_failed())
        if self.status == "finished" and self._store_failed():
            completion.tell(self.run_dir, self._tracking_id())

    # --- MLflow ----------------------------------------------------------------------------------

    def _store_failed(self) -> bool:
        """Whether the store lacks something, or the whole run; another start sends what it lacks."""
        return wanted(self.config) and not self.tracker.active

    def _tracking_id(self) -> str | None:
        return self.tracker.run_id or self.run_dir.tracking_id

    def _note_tracking(self, pending: bool) -> None:
        """Keep in the folder which MLflow run is its own, and whether something has yet to be sent to it."""
        if wanted(self.config) or self._tracking_id() or not pending:
            self.run_dir.track(self._tracking_id(), pending)

    def _log_missed_tasks(self) -> None:
        """After a resume: log the tasks that were finished but not logged when the run was killed."""
        if not self.resumed:
            return
        logged = set().union(*map(self.tracker.logged_steps, self.trainer.results.mean_names))
        for task in self.trainer.tasks[self.config.log.start_from : self.trainer.position.task]:
            if task.id not in logged:
                self._log(task.id)

    def _log(self, row: int, system_metrics: dict[str, float] | None = None) -> None:
        results = self.trainer.results  # sent together: a kill in between must not lose one of the two
        after_task = results.task_metrics(row) | (system_metrics or {})
        self.tracker.log_history([*self._new_points(), *results.curve_metrics(row), (row, after_task)])

    def _new_points(self) -> list[tuple[int, dict[str, float]]]:
        """What is to be logged of the training curve since the last time; it counts as logged."""
        points = self.trainer.results.training.not_in(self.logged_points)
        self.logged_points |= {step for step, _ in points}
        self._sent = time.monotonic()
        return points

    # --- while training --------------------------------------------------------------------------

    def after_point(self) -> None:
        """Send the training curve now and then: a long task shows something before its end."""
        if time.monotonic() - self._sent > SEND_SECONDS:
            self.tracker.log_history(self._new_points())

    def after_task(self, row: int) -> None:
        """Results so far to disk, a line to the terminal, metrics to MLflow."""
        self._write("running")
        self.trainer.progress.say(f"after task {row}: mean over tasks seen: {self._means(row)}")
        self._log(row, self.system_metrics.measure())
        self._note_tracking(pending=True)
        if self.config.log.savecheck == "task":
            self._save_weights(f"task_{row}.pt")

    def _means(self, row: int) -> str:
        """The mean accuracy over the tasks seen, in each view; where estimated, its standard error."""
        results, texts = self.trainer.results, []
        sampled = results.is_sampled(row)
        names = {"task_il": "accuracy"} if results.scenario == "domain-il" else VIEW_NAMES
        for view, name in names.items():
            mean, error = results.mean_of_seen(view, row)
            spread = f" ± {100 * error:.1f}" if sampled else ""
            texts.append(f"{name} {100 * mean:.1f}{spread} %")
        n_evaluated = np.isfinite(results.R["task_il"][row, : row + 1]).sum()
        how = f" (± standard error; {n_evaluated} of {row + 1} tasks evaluated)" if sampled else ""
        return ", ".join(texts) + how

    def _save_weights(self, name: str) -> None:
        content = {"config": self.config.flat(), "net": self.trainer.method.net.state_dict()}
        checkpoint.write(content, self.run_dir.path / "weights" / name)

    def _write(self, status: str) -> RunRecord:
        record = record_of(self.trainer.results, status, self.config.flat(), self.trainer.benchmark)
        record.write(self.run_dir.results)
        return record

    def _write_if_possible(self, status: str) -> None:
        """Write the results of a run that ends early, where the disk takes them."""
        with suppress(DiskError):
            self._write(status)

    # --- at the end ------------------------------------------------------------------------------

    def finished(self) -> None:
        """Results, tables, figures, artifacts, the last lines."""
        if self.config.log.savecheck:
            self._save_weights("last.pt")
        record = self._write("finished")
        self.status = "finished"
        completion.write_tables(record, self.trainer.benchmark.class_names, self.run_dir)
        self.run_dir.say(text_summary.full(record))
        page = self._page()
        self.handed_over = self._hand_over()
        if not self.handed_over:
            completion.draw(record, self.run_dir)
            completion.log_files(record, self.run_dir, self.tracker)
            self.tracker.flush()
        if self.tracker.active:
            self.run_dir.say(f"{BROWSE}{how_to_browse(self.config.log.tracking_uri, page)}")
        if self.handed_over:
            self.run_dir.say("figures and the end of the MLflow run follow (log.txt says if not)")
        view = next(iter(record.view_names))
        self.run_dir.say(f"picture: {self.run_dir.path / matrix_stem(record, view)}.png")
        self.run_dir.say(f"results: {self.run_dir.results}")

    def _page(self) -> str:
        """The page of MLflow that shows this run's experiment, which a run of seconds waits for."""
        if self.background and sys.stdout.isatty():  # else nobody reads it at once
            self.background.wait_until_open(OPEN_SECONDS)
        return address(self.tracker.experiment)

    def _hand_over(self) -> bool:
        """Let the tracking process go on alone, unless it is to be waited for; returns whether it does."""
        claim, background = self.run_dir.claim, self.background
        if self.wait or self.trainer.signals.requested or claim is None or background is None:
            return False
        return background.hand_over(Completion(self.run_dir.path), self.run_dir.path / "log.txt", claim)

    def interrupted(self, stop: InterruptedRunError) -> None:
        """Say how to go on."""
        self.status = stop.status
        self._write_if_possible(stop.status)
        command = f"{registry.command()} --resume {self.run_dir.path}"
        self.run_dir.say(f"{stop}: checkpoint saved; continue with\n  {command}", True)
        self.run_dir.say(f"results: {self.run_dir.results}")

    def failed(self, reason: str) -> None:
        """Keep what was measured; say why it ended."""
        self._write_if_possible("failed")
        self.run_dir.say(f"error: {reason}", True)
        self.run_dir.say(f"results: {self.run_dir.results}")

    def not_written(self, error: DiskError) -> None:
        """Say what the disk did not take and how to go on."""
        command = f"{registry.command()} --resume {self.run_dir.path}"
        self.run_dir.say(f"error: {error}; free some space, then continue with {command}", True)
