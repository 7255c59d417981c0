"""Whether an MLflow store takes what many runs log at once: N processes, every run complete, R times.

    python scripts/dev/check_store.py                                8 processes, 10 rounds, a new SQLite file
    python scripts/dev/check_store.py --tracking_uri http://server:5000 --writers 16 --rounds 3

Every process logs a run as training does: parameters, tags, metrics of 10 tasks, a curve, files; then all
is read back and compared. The runs go into an experiment of their own, which is deleted at the end.
"""

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from engram.utils.config.cli import parse
from engram.utils.config.config import Config
from engram.utils.config.flags import CheckedParser, check_bounds
from engram.utils.credentials import redact
from engram.utils.door import guarded
from engram.utils.errors import UserError
from engram.utils.tracking import mlflow_store as store
from engram.utils.tracking.mlflow_tracker import open_tracker

N_TASKS, N_POINTS, N_METRICS = 10, 30, 25
MAX_WRITERS, MAX_ROUNDS = 500, 10_000  # each writer is a process
EXPERIMENT = "check store"


def config_of(uri: str, experiment: str, writer: int) -> Config:
    """A run that is not trained."""
    flags = ["--model=er", f"--seed={writer}", f"--tracking_uri={uri}", f"--experiment_name={experiment}"]
    return parse([*flags, f"--run_name=writer {writer}"]).config


def values(writer: int, task: int) -> list[tuple[int, dict[str, float]]]:
    """What a writer logs after a task: (step, metrics)."""
    curve = [(100 * task + i, {"step_acc": writer + task + i / N_POINTS}) for i in range(N_POINTS)]
    return [*curve, (task, {f"metric_{k}": 1000.0 * writer + 10 * task + k for k in range(N_METRICS)})]


def write(config: Config, writer: int, folder: Path) -> bool:
    """A whole run; False when the store refused something."""
    folder.mkdir()
    (folder / "results.json").write_text(json.dumps({"writer": writer}))
    tracker = open_tracker(config, folder)
    for task in range(N_TASKS):
        tracker.log_history(values(writer, task))
    tracker.log_artifacts([folder / "results.json"])
    tracker.describe(f"writer {writer}")
    tracker.finish("finished")
    return tracker.active


def together(configs: list[Config], folder: Path) -> int:
    """All writers at once, forked so that they reach the store in the same moment; how many failed."""
    start, go = os.pipe()
    for writer, config in enumerate(configs):
        if os.fork() == 0:
            os.close(go)
            os.read(start, 1)  # returns for all of them when the parent closes its end
            os._exit(0 if write(config, writer, folder / str(writer)) else 1)
    os.close(start)
    os.close(go)
    return sum(os.wait()[1] != 0 for _ in configs)


def missing(uri: str, experiment: str, n_writers: int) -> list[str]:
    """What of an experiment is not in the store as it was written."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    identity = client.get_experiment_by_name(experiment).experiment_id
    stored_runs = {run.info.run_name: run for run in client.search_runs([identity])}
    faults = []
    if len(stored_runs) != n_writers:
        faults.append(f"{len(stored_runs)} runs instead of {n_writers}")
    for writer in range(n_writers):
        run = stored_runs.get(f"writer {writer}")
        if run is None:
            faults.append(f"writer {writer}: no run")
            continue
        wanted: dict[str, list] = {}
        for task in range(N_TASKS):
            for step, metrics in values(writer, task):
                for name, value in metrics.items():
                    wanted.setdefault(name, []).append((step, value))
        for name, points in wanted.items():
            stored = client.get_metric_history(run.info.run_id, name)
            if sorted((m.step, m.value) for m in stored) != sorted(points):
                faults.append(f"writer {writer}: {name} has {len(stored)} of {len(points)} values")
        files = [file.path for file in client.list_artifacts(run.info.run_id)]
        ended = run.info.status == "FINISHED" and run.data.params.get("seed") == str(writer)
        if files != ["results.json"] or not ended:
            faults.append(f"writer {writer}: status {run.info.status}, files {files}")
    return faults


def check(uri: str, n_writers: int, n_rounds: int) -> int:
    """Rounds of writing and reading back; how many went wrong."""
    wrong = 0
    for number in range(1, n_rounds + 1):
        # each in its own process: the next round's writers must not inherit connections that this one opened
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as apart:
            faults, seconds = apart.submit(one_round, uri, n_writers).result()
        wrong += bool(faults)
        outcome = "; ".join(faults[:5]) or f"{n_writers} runs complete"
        print(f"round {number}/{n_rounds}: {outcome} ({seconds:.1f} s)", flush=True)
    return wrong


def one_round(uri: str, n_writers: int) -> tuple[list[str], float]:
    """What went wrong when all wrote at once, and the seconds of writing; the experiment is deleted."""
    from mlflow.tracking import MlflowClient

    # a name of its own: a check that was killed has left its runs, and a deleted experiment keeps its name
    name = f"{EXPERIMENT} {time.time_ns()}"
    configs = [config_of(uri, name, writer) for writer in range(n_writers)]
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        n_failed = together(configs, Path(folder))
    seconds = time.monotonic() - started
    faults = missing(uri, name, n_writers) + ([f"{n_failed} writers were refused"] if n_failed else [])
    client = MlflowClient(tracking_uri=uri)
    client.delete_experiment(client.get_experiment_by_name(name).experiment_id)
    return faults, seconds


@guarded
def main(argv: list[str] | None = None) -> int:
    """Check the store that the command line names; returns the exit code."""
    parser = CheckedParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tracking_uri", help="store to check (default: a new SQLite file)")
    parser.add_argument("--writers", type=int, default=8, metavar="N", help="processes (default: 8)")
    parser.add_argument("--rounds", type=int, default=10, metavar="N", help="times (default: 10)")
    args = parser.parse_args(argv)
    check_bounds(args, writers=(1, MAX_WRITERS), rounds=(1, MAX_ROUNDS))
    with tempfile.TemporaryDirectory() as folder:
        uri = args.tracking_uri or f"sqlite:///{folder}/mlflow.db"
        failures = store.import_mlflow(uri)
        try:
            return 1 if check(uri, args.writers, args.rounds) else 0
        except failures as error:
            raise UserError(f"{redact(uri)}: {redact(str(error))}") from None


if __name__ == "__main__":
    sys.exit(main())
