"""Completion: what follows when a finished run's results are safe on disk: its figures, and MLflow's end.

It needs nothing but the run's folder, so that the tracking process can do it when the command has returned
(`BackgroundTracker.hand_over`). Killed on its way, it leaves the mark `pending` in the folder, and the next
start of the run does it again.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path

from engram.utils import files
from engram.utils.config import registry
from engram.utils.config.config import Config
from engram.utils.runs import text_summary
from engram.utils.runs.matrix_csv import write_matrix_csvs
from engram.utils.runs.run_dir import RunDir
from engram.utils.runs.run_record import RunRecord
from engram.utils.tracking.mlflow_tracker import Tracker

ARTIFACTS = ("class_order.json", "*.png", "*.csv")  # beside the results and the configuration


@dataclass(frozen=True)
class Completion:
    """Draws the figures of the finished run in a folder and sends MLflow what it lacks of the run's end."""

    path: Path

    def __call__(self, tracker: Tracker) -> None:
        """Do all of it; the mark `pending` goes when MLflow has everything."""
        run_dir = RunDir(self.path)
        record = RunRecord.read(self.path)
        draw(record, run_dir)
        log_files(record, run_dir, tracker)
        tracker.finish("finished", ended=run_dir.ended)
        run_id = tracker.run_id or run_dir.tracking_id
        run_dir.track(run_id, pending=not tracker.active)
        if not tracker.active:
            tell(run_dir, run_id)


def must_be_waited_for(config: Config) -> bool:
    """Whether the command returns only after its completion: as asked for, or since nothing outlives it.

    Slurm ends what a job has left behind, and a container ends with its first process.
    """
    return config.log.wait_for_log or "SLURM_JOB_ID" in os.environ or os.getpid() == 1


def write_tables(record: RunRecord, class_names: object, run_dir: RunDir) -> None:
    """The files that take no time: the order of the classes, and R as CSV."""
    named = {"class_order": record.class_order, "class_names": class_names}
    try:
        files.write_text(json.dumps(named) + "\n", run_dir.path / "class_order.json")
        write_matrix_csvs(record, run_dir.path)
    except OSError as error:  # the run is finished all the same
        run_dir.say(f"tables not written: {error}", True)


def draw(record: RunRecord, run_dir: RunDir) -> None:
    """Draw the figures of a run in its folder."""
    from engram.utils.runs import figures  # matplotlib takes a second to import

    try:
        figures.write_all(record, run_dir.path)
    except OSError as error:  # as above
        run_dir.say(f"figures not written: {error}", True)


def log_files(record: RunRecord, run_dir: RunDir, tracker: Tracker) -> None:
    """Send the files of a run and the line on top of its page."""
    others = [path for pattern in ARTIFACTS for path in sorted(run_dir.path.glob(pattern))]
    tracker.log_artifacts([run_dir.results, run_dir.config, *others])
    tracker.describe(text_summary.headline(record))


def tell(run_dir: RunDir, run_id: str | None) -> None:
    """Say of a finished run that MLflow lacks its end, or all of it, and which command sends it."""
    missing = "the end of this run" if run_id else "this run"
    command = f"{registry.command()} --resume {run_dir.path}"
    run_dir.say(f"pending: MLflow lacks {missing}; its results are safe, and this sends it: {command}")
