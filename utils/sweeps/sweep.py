"""Sweep: which of its runs are still to be executed, what they will cost, and how they came out."""

import signal
import textwrap
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from engram.utils.config import registry
from engram.utils.config.config import PLUGINS
from engram.utils.config.run_key import run_key
from engram.utils.errors import DIVERGED
from engram.utils.runs import text_summary
from engram.utils.runs.changed_files import changed_since
from engram.utils.runs.run_dir import RunDir
from engram.utils.runs.run_record import RunRecord
from engram.utils.sweeps.job_pool import Job, JobExit, JobPool, run_jobs
from engram.utils.sweeps.run_index import RunIndex
from engram.utils.sweeps.sweep_spec import PlannedRun

WORKER, WORKER_OF_SEVERAL = "engram.scripts.worker:execute_run", "engram.scripts.worker:execute_interleaved"
PARENTS = "engram.utils.sweeps.parent_runs:write_parents"
# What every run imports; where nothing is logged to MLflow its part is left out.
PRELOAD = (
    "engram.scripts.worker",
    *(f"engram.utils.{m}" for m in ("training.trainer", "runs.recorder", "runs.figures")),
)
PRELOAD_LOGGING = ("mlflow.tracking", "mlflow.store.db.utils", "mlflow.store.tracking.sqlalchemy_store")
# Packages that build a network, by the name of --backbone or what stands before its colon; seconds to import.
LIBRARIES = {"timm": "timm", "small_vit": "timm", "torchvision": "torchvision"}
LAST_LINES = 6  # of a failed run's output
MAX_REASON = 120  # characters of an error in the line of a failed run


class Sweep:
    """The runs of a sweep and which of them the index has; `seeds_together` of a setting share a process."""

    def __init__(self, runs: list[PlannedRun], index: RunIndex, seeds_together: int = 1):
        self.runs, self.index, self.seeds_together = runs, index, seeds_together
        self.paths = {run.key: index.path_of(run) for run in runs}

    def state(self, run: PlannedRun) -> str:
        """`finished`, `begun` (it goes on from its checkpoint) or `new`."""
        indexed = self.index.find(run.key)
        return "new" if indexed is None else "finished" if indexed.finished else "begun"

    @property
    def open(self) -> list[PlannedRun]:
        """Runs to do: begun ones first."""
        runs = [run for run in self.runs if self.state(run) != "finished"]
        return sorted(runs, key=lambda run: self.state(run) == "new")

    def changed_files(self) -> list[str]:
        """One line for each file that was written after finished runs began that name it."""
        n_runs = Counter(
            given
            for run in self.runs
            if self.state(run) == "finished"
            for given in changed_since(RunDir(self.paths[run.key]), run.config.flat())
        )
        return [
            f"note: {given} has changed since {n} finished run{'s' * (n > 1)} of it began, which "
            f"{'are' if n > 1 else 'is'} not run again; another --output_dir does"
            for given, n in n_runs.items()
        ]

    def processes(self) -> list[list[PlannedRun]]:
        """Runs to do, by the process that they share: seeds of one setting, `seeds_together` at a time."""
        settings: dict[tuple, list[PlannedRun]] = defaultdict(list)
        for run in self.open:
            flags = run.config.flat()
            settings[run_key(flags | {"seed": 0}), flags["device"], flags["num_threads"]].append(run)
        n = self.seeds_together
        return [runs[i : i + n] for runs in settings.values() for i in range(0, len(runs), n)]

    def job(self, runs: list[PlannedRun], n_threads: int) -> Job:
        """The job that executes a run, or several that take turns in one process."""
        path_and_flags = [(str(self.paths[run.key].absolute()), self._flags(run, n_threads)) for run in runs]
        name, output = runs[0].key, self._output_file(runs[0])
        gpu = path_and_flags[0][1]["device"] in ("auto", "cuda")
        if len(runs) == 1:
            return Job(name, WORKER, path_and_flags[0], output, gpu)
        return Job(name, WORKER_OF_SEVERAL, (path_and_flags,), output, gpu)

    def _flags(self, run: PlannedRun, n_threads: int) -> dict[str, Any]:
        """The flags of the run; small networks stay on one thread (utils/device.py)."""
        flags = run.config.flat() | {"tracking_uri": run.config.log.tracking_uri}  # with its password
        if not flags["num_threads"] and flags["backbone"] != "mlp":
            flags["num_threads"] = n_threads
        if not flags["run_name"]:
            flags["run_name"] = run.label
        return flags

    def execute(
        self, pool: JobPool, n_threads: int, retries: int
    ) -> Iterator[tuple[PlannedRun, JobExit, int]]:
        """Execute the runs that are not finished; yields how each try ended and the tries left for it."""
        processes = {runs[0].key: runs for runs in self.processes()}
        jobs = [self.job(runs, n_threads) for runs in processes.values()]
        succeeded = set()
        for job_exit, tries_left in run_jobs(
            pool, jobs, retries, lambda job_exit: all(map(self._is_settled, processes[job_exit.job.name]))
        ):
            for run in processes[job_exit.job.name]:
                if run.key not in succeeded:
                    run_exit = self._exit_of_run(run, job_exit)
                    if not run_exit.code:
                        succeeded.add(run.key)
                    yield run, run_exit, tries_left if run_exit.code else 0

    def _exit_of_run(self, run: PlannedRun, job_exit: JobExit) -> JobExit:
        """How one of the runs of a process ended: the process's exit code does not tell."""
        job = replace(job_exit.job, output=self._output_file(run))
        return JobExit(job, 0 if RunDir(self.paths[run.key]).finished else job_exit.code)

    def _is_settled(self, run: PlannedRun) -> bool:
        """Whether another try of the run would end as this one did: it is finished, or it diverged."""
        return RunDir(self.paths[run.key]).finished or last_error(self._output_file(run)).startswith(DIVERGED)

    def n_unlogged(self) -> int:
        """Number of runs that have ended but of which MLflow lacks something."""
        return sum(not RunDir(path).logged for path in self.paths.values() if RunDir(path).results.exists())

    def _output_file(self, run: PlannedRun) -> str:
        """The file that takes what the run prints."""
        return str(self.paths[run.key].absolute() / "output.txt")

    def parent_jobs(self, name: str) -> list[Job]:
        """The jobs that write the parent runs of this sweep, one for each MLflow store."""
        by_store: dict[str | None, list[PlannedRun]] = defaultdict(list)
        for run in self.runs:
            if not (run.config.log.disable_log or run.config.run.debug_mode):
                by_store[run.config.log.tracking_uri].append(run)
        return [
            Job(
                f"parents of {name}",
                PARENTS,
                (name, self._with_records(runs), uri),
                self._parents_file(runs[0]),
            )
            for uri, runs in by_store.items()
        ]

    def _with_records(self, runs: list[PlannedRun]) -> list[str]:
        """The folders of those of the runs that have a record."""
        paths = [self.paths[run.key].absolute() for run in runs]
        return [str(path) for path in paths if RunDir(path).results.exists()]

    def _parents_file(self, run: PlannedRun) -> str:
        return str(Path(run.config.run.output_dir).expanduser().absolute() / "parents.txt")

    def plan(self, n_at_a_time: int) -> str:
        """The runs and what they will take, for --dry_run, when so many are executed at a time."""
        rows = [(self.state(run), self._cost(run), run.label) for run in self.runs]
        width = max(len(cost) for _, cost, _ in rows)
        lines = [f"{state:<9} {cost:>{width}}  {label}" for state, cost, label in rows]
        commands = [run.command for run in self.open]
        return "\n".join([*lines, "", self._total(n_at_a_time), *(["", *commands] if commands else [])])

    def _cost(self, run: PlannedRun) -> str:
        seconds = self.index.seconds(run.config)
        return "–" if self.state(run) == "finished" else "unknown" if seconds is None else duration(seconds)

    def _total(self, n_at_a_time: int) -> str:
        n_open = len(self.open)
        costs = [self.index.seconds(run.config) for run in self.open]
        estimates = [seconds for seconds in costs if seconds is not None]
        text = f"{len(self.runs)} runs, {len(self.runs) - n_open} finished, {n_open} to do"
        if not n_open:
            return text
        if not estimates:
            return f"{text}; cost unknown: no finished run of these methods and benchmarks yet"
        parallel = min(n_at_a_time, n_open)
        total, unknown = sum(estimates), len(costs) - len(estimates)
        text += f"; about {duration(total)} of runs, {duration(total / parallel)} with {parallel} at a time"
        return text + (f"; cost of {unknown} more unknown" if unknown else "")


def preload(points: list[dict[str, Any]]) -> list[str]:
    """Modules of the project that the runs of a study will import."""
    modules = list(PRELOAD)
    if not all(str(point.get("disable_log", "0")).lower() in ("1", "true") for point in points):
        modules += PRELOAD_LOGGING
    for kind, (flag, _) in PLUGINS.items():
        for name in {str(point[flag]) for point in points if point.get(flag)}:
            path = registry.names(kind).get(registry.canonical(kind, name))
            modules += [f"engram.{kind}.{path.stem}"] if path else []
    networks = {str(point.get("backbone")).partition(":")[0] for point in points}
    return modules + [LIBRARIES[name] for name in sorted(networks & LIBRARIES.keys())]


def ending(run: PlannedRun, job_exit: JobExit, path: Path) -> str:
    """A line about a run that has ended and lies in `path`."""
    if job_exit.code:
        error = last_error(str(job_exit.job.output))
        return f"failed: {run.label} ({reason(job_exit.code)}{error and ': ' + error})"
    record = RunRecord.read(path)
    return f"{run.label}: {text_summary.headline(record)} ({duration(record.seconds.total or 0.0)})"


def failure(run: PlannedRun, job_exit: JobExit) -> str:
    """A failed run with the end of its output and where to read all of it."""
    assert job_exit.job.output is not None, "every job of a sweep prints to a file"
    path = Path(job_exit.job.output)
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    shown = [f"    {line}" for line in lines[-LAST_LINES:] if line.strip()]
    head = f"{run.label}: {reason(job_exit.code)}"
    return "\n".join([head, *shown, f"    output: {path}", f"    again:  {run.command}"])


def last_error(output: str) -> str:
    """The error among the last lines that a run has printed, shortened; empty without one."""
    path = Path(output)
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    last_lines = text.splitlines()[-LAST_LINES:]
    errors = [line.removeprefix("error: ") for line in last_lines if line.startswith("error: ")]
    return textwrap.shorten(errors[-1], MAX_REASON, placeholder=" ...") if errors else ""


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
