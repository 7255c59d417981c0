"""Sweep: which runs of a study are still to be done, what they will cost, and how they came out."""

import signal
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from engram.utils.config import registry
from engram.utils.config.config import PLUGINS
from engram.utils.config.run_key import run_key
from engram.utils.runs import text_summary
from engram.utils.runs.run_dir import RunDir
from engram.utils.runs.run_record import RunRecord
from engram.utils.sweeps.job_pool import Job, JobExit, JobPool, run_jobs
from engram.utils.sweeps.run_index import RunIndex
from engram.utils.sweeps.sweep_spec import Run

WORKER, WORKER_OF_SEVERAL = "engram.scripts.worker:execute_run", "engram.scripts.worker:execute_interleaved"
PARENTS = "engram.utils.sweeps.parent_runs:log"
# What every run imports; where nothing is logged to MLflow its part is left out.
PRELOAD = (
    "engram.scripts.worker",
    *(f"engram.utils.{m}" for m in ("training.trainer", "runs.recorder", "runs.figures")),
)
PRELOAD_LOGGING = ("mlflow.tracking", "mlflow.store.db.utils", "mlflow.store.tracking.sqlalchemy_store")
FAREWELL_LINES = 6  # of a failed run's output


class Sweep:
    """The runs of a study and what the ledger says of them."""

    def __init__(self, runs: list[Run], ledger: RunIndex, together: int = 1):
        self.runs, self.ledger, self.together = runs, ledger, together
        self.folders = {run.key: ledger.folder_of(run) for run in runs}

    def state(self, run: Run) -> str:
        """`finished`, `begun` (it goes on from its checkpoint) or `new`."""
        found = self.ledger.find(run.key)
        return "new" if found is None else "finished" if found.finished else "begun"

    @property
    def open(self) -> list[Run]:
        """Runs to do: begun ones first."""
        runs = [run for run in self.runs if self.state(run) != "finished"]
        return sorted(runs, key=lambda run: self.state(run) == "new")

    def processes(self) -> list[list[Run]]:
        """Runs to do, by the process that they share: seeds of one setting, `self.together` at a time."""
        settings: dict[tuple, list[Run]] = defaultdict(list)
        for run in self.open:
            flags = run.config.flat()
            settings[run_key(flags | {"seed": 0}), flags["device"], flags["num_threads"]].append(run)
        n = self.together
        return [runs[i : i + n] for runs in settings.values() for i in range(0, len(runs), n)]

    def job(self, runs: list[Run], n_threads: int) -> Job:
        """What a worker is given: a run, or several that take turns."""
        given = [(str(self.folders[run.key].absolute()), self._flags(run, n_threads)) for run in runs]
        (folder, flags), name, output = given[0], runs[0].key, self._printed(runs[0])
        gpu = flags["device"] in ("auto", "cuda")
        if len(runs) == 1:
            return Job(name, WORKER, (folder, flags), output, gpu)
        return Job(name, WORKER_OF_SEVERAL, (given,), output, gpu)

    def _flags(self, run: Run, n_threads: int) -> dict[str, Any]:
        """Small networks stay on one thread (utils/device.py)."""
        flags = run.config.flat()
        if not flags["num_threads"] and flags["backbone"] != "mlp":
            flags["num_threads"] = n_threads
        if not flags["run_name"]:
            flags["run_name"] = run.label
        return flags

    def execute(self, pool: JobPool, n_threads: int, retries: int) -> Iterator[tuple[Run, JobExit, int]]:
        """Do what is to do; yields each ending and the tries left for that run."""
        processes = {runs[0].key: runs for runs in self.processes()}
        jobs = [self.job(runs, n_threads) for runs in processes.values()]
        told = set()
        for outcome, tries_left in run_jobs(pool, jobs, retries):
            for run in processes[outcome.job.name]:
                if run.key not in told:
                    own = self._own_outcome(run, outcome)
                    if not own.code:
                        told.add(run.key)
                    yield run, own, tries_left if own.code else 0

    def _own_outcome(self, run: Run, outcome: JobExit) -> JobExit:
        """How one of the runs of a process came out: that one failed does not tell which."""
        job = replace(outcome.job, output=self._printed(run))
        return JobExit(job, 0 if RunDir(self.folders[run.key]).finished else outcome.code)

    def _printed(self, run: Run) -> str:
        """The file that takes what the run prints."""
        return str(self.folders[run.key].absolute() / "output.txt")

    def parent_jobs(self, name: str) -> list[Job]:
        """What writes the parent runs of this study, one job for each MLflow store."""
        by_store: dict[str | None, list[Run]] = defaultdict(list)
        for run in self.runs:
            if not (run.config.log.disable_log or run.config.run.debug_mode):
                by_store[run.config.log.tracking_uri].append(run)
        return [
            Job(f"parents of {name}", PARENTS, (name, self._folders(runs), uri), self._output(runs[0]))
            for uri, runs in by_store.items()
        ]

    def _folders(self, runs: list[Run]) -> list[str]:
        folders = [self.folders[run.key].absolute() for run in runs]
        return [str(folder) for folder in folders if (folder / "results.json").exists()]

    def _output(self, run: Run) -> str:
        return str(Path(run.config.run.output_dir).expanduser().absolute() / "parents.txt")

    def plan(self, n_places: int) -> str:
        """The runs and what they will take, for --dry_run."""
        rows = [(self.state(run), self._cost(run), run.label) for run in self.runs]
        width = max(len(cost) for _, cost, _ in rows)
        lines = [f"{state:<9} {cost:>{width}}  {label}" for state, cost, label in rows]
        commands = [run.command for run in self.open]
        return "\n".join([*lines, "", self._total(n_places), *(["", *commands] if commands else [])])

    def _cost(self, run: Run) -> str:
        seconds = self.ledger.seconds(run.config)
        return "–" if self.state(run) == "finished" else "unknown" if seconds is None else duration(seconds)

    def _total(self, n_places: int) -> str:
        n_open = len(self.open)
        costs = [self.ledger.seconds(run.config) for run in self.open]
        known = [seconds for seconds in costs if seconds is not None]
        text = f"{len(self.runs)} runs, {len(self.runs) - n_open} finished, {n_open} to do"
        if not n_open:
            return text
        if not known:
            return f"{text}; cost unknown: no finished run of these methods and benchmarks yet"
        parallel = min(n_places, n_open)
        total, unknown = sum(known), len(costs) - len(known)
        text += f"; about {duration(total)} of runs, {duration(total / parallel)} with {parallel} at a time"
        return text + (f"; cost of {unknown} more unknown" if unknown else "")


def preload(points: list[dict[str, Any]]) -> list[str]:
    """Modules that the runs of a study will import."""
    modules = list(PRELOAD)
    if not all(str(point.get("disable_log", "0")).lower() in ("1", "true") for point in points):
        modules += PRELOAD_LOGGING
    for kind, (flag, _) in PLUGINS.items():
        for name in {str(point[flag]) for point in points if point.get(flag)}:
            modules.append(f"engram.{kind}.{registry.names(kind)[registry.canonical(kind, name)].stem}")
    return modules


def ending(run: Run, outcome: JobExit, folder: Path) -> str:
    """A line about a run that has ended."""
    if outcome.code:
        return f"failed: {run.label} ({reason(outcome.code)})"
    record = RunRecord.read(folder)
    return f"{run.label}: {text_summary.headline(record)} ({duration(record.seconds.total or 0.0)})"


def failure(run: Run, outcome: JobExit) -> str:
    """A failed run with the end of its output and where to read all of it."""
    path = Path(outcome.job.output)
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    shown = [f"    {line}" for line in lines[-FAREWELL_LINES:] if line.strip()]
    head = f"{run.label}: {reason(outcome.code)}"
    return "\n".join([head, *shown, f"    output: {path}", f"    again:  {run.command}"])


def reason(code: int) -> str:
    """What an exit code says."""
    if code == -signal.SIGKILL:
        return "killed (SIGKILL; the system does so when memory runs out)"
    if code < 0:
        return f"killed ({signal.Signals(-code).name})"
    if code > 128:
        return f"interrupted ({signal.Signals(code - 128).name})"
    return {2: "refused, exit code 2"}.get(code, f"exit code {code}")


def duration(seconds: float) -> str:
    """`12 s`, `3.5 min` or `2.1 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
