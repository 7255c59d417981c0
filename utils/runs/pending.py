"""Pending: what MLflow lacks of a finished run, sent from the files of its folder.

A run that still has its checkpoint is opened again and logs as it would have. This module sends one whose
checkpoint was deleted: `results.json` holds every number that was to be logged.
"""

import time
from collections.abc import Iterator

import numpy as np

from engram.utils.config.config import Config
from engram.utils.runs import completion
from engram.utils.runs.run_dir import RunDir
from engram.utils.runs.run_record import RunRecord
from engram.utils.tracking.background_tracker import BackgroundTracker
from engram.utils.tracking.mlflow_tracker import open_tracker
from engram.utils.training.accuracy_log import AccuracyLog
from engram.utils.training.training_curve import LOSS


def send(config: Config, run_dir: RunDir, background: BackgroundTracker, wait: bool = False) -> None:
    """Send what MLflow lacks of the finished run in `run_dir`; nothing there is changed but `mlflow_run`.

    wait: for another process that holds the folder, instead of refusing.
    """
    record = RunRecord.read(run_dir.path)
    with run_dir.claimed(wait):
        started = (run_dir.ended or time.time()) - (record.seconds.total or 0)
        tracker = open_tracker(config, run_dir.path, run_dir.tracking_id, True, background, started)
        tags = {name: getattr(record, name) for name in ("device", "evaluated_on", "split_hash")}
        tags["precision"] = record.used_precision
        tracker.set_tags({name: value for name, value in tags.items() if name != "split_hash" or value})
        log = accuracy_log(record)
        logged = set().union(*map(tracker.logged_steps, log.mean_names))
        if record.training:
            tracker.log_history(log.training.not_in(tracker.logged_steps(LOSS)))
        for row in rows(record):
            if row not in logged:
                tracker.log_history([*log.curve_metrics(row), (row, log.task_metrics(row))])
        if not (run_dir.path / "curves.png").exists():
            completion.draw(record, run_dir)
        completion.log_files(record, run_dir, tracker)
        tracker.finish("finished", ended=run_dir.ended)
        run_id = tracker.run_id or run_dir.tracking_id
        run_dir.track(run_id, pending=not tracker.active)
        if tracker.active:
            run_dir.say(f"{run_dir.path}: sent to MLflow from its {run_dir.results.name}")
        else:
            completion.tell(run_dir, run_id)


def rows(record: RunRecord) -> Iterator[int]:
    """The tasks after which the run has measured something; `joint` does so only after the last."""
    measured = ~np.isnan(record.class_il.R).all(axis=1)
    return (int(row) for row in np.flatnonzero(measured))


def accuracy_log(record: RunRecord) -> AccuracyLog:
    """The accuracies of a record as the object that names what is logged of them."""
    sampled = bool(record.standard_errors)
    log = AccuracyLog(record.n_tasks, record.scenario, record.evaluated_on != "test", sampled)
    log.R = {view: result.R for view, result in record.views.items()}
    log.errors |= record.standard_errors
    log.b = np.array(record.b, dtype=np.float64)
    log.curve = record.curve
    log.training.points = record.training
    log.groups = {
        group: {view: result.R for view, result in views.items()} for group, views in record.groups.items()
    }
    return log
