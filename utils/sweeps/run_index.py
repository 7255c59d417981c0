"""Run index: the runs under some output folders, found by what they compute, and what they cost."""

import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engram.utils.config.config import OPERATIONAL, Config, resolve
from engram.utils.config.outside import label
from engram.utils.config.run_key import NAMES, run_key
from engram.utils.errors import UserError
from engram.utils.runs.run_dir import RunDir
from engram.utils.runs.run_record import RunRecord
from engram.utils.sweeps.sweep_spec import PlannedRun

# What a run costs is taken from runs that agree in these; of them, from those that differ least.
COMPARABLE = ("model", "dataset", "backbone")


@dataclass(frozen=True)
class IndexedRun:
    """A run on disk: its folder, its flags as today's code resolves them and the `run_key` of these.

    keys: those of all requests that it answers, its own first (`keys_of`). seconds: what the whole run took,
    None where that is not known.
    """

    run_dir: RunDir
    keys: tuple[str, ...]
    flags: dict[str, Any]
    finished: bool
    seconds: float | None


class RunIndex:
    """Every run under some output folders; of several that compute the same, one is found."""

    def __init__(self, output_dirs: set[str]):
        self.runs = [
            run
            for output_dir in sorted(output_dirs)
            for path in sorted(Path(output_dir).expanduser().glob("*/*/*/config.yaml"))
            if (run := read_run(RunDir(path.parent)))
        ]
        self._by_key: dict[str, IndexedRun] = {}
        # of several with the same key a finished one counts, else the latest of those that were asked for so
        for own in (True, False):
            for run in self.runs:
                for key in run.keys[:1] if own else run.keys[1:]:
                    earlier = self._by_key.get(key)
                    if earlier is None or not earlier.finished:
                        self._by_key[key] = run

    def find(self, key: str) -> IndexedRun | None:
        """The run with this `run_key`, None if there is none."""
        return self._by_key.get(key)

    def path_of(self, run: PlannedRun) -> Path:
        """The folder in which the run lies, or will lie."""
        indexed = self.find(run.key)
        return indexed.run_dir.path if indexed else path_of_new_run(run)

    def seconds(self, config: Config) -> float | None:
        """What such a run takes: the median of the most similar finished ones, scaled by epochs."""
        flags = config.flat()
        distance_and_seconds = [
            (_distance(run.flags, flags), run.seconds * flags["n_epochs"] / run.flags["n_epochs"])
            for run in self.runs
            if run.finished and run.seconds and all(run.flags[name] == flags[name] for name in COMPARABLE)
        ]
        if not distance_and_seconds:
            return None
        least = min(distance for distance, _ in distance_and_seconds)
        return statistics.median(seconds for distance, seconds in distance_and_seconds if distance == least)


def path_of_new_run(run: PlannedRun) -> Path:
    """The folder of a run that a sweep starts: the same however often it is started."""
    options = run.config.run
    assert options.model is not None, "a resolved configuration names its method"
    return Path(options.output_dir).expanduser() / label(options.dataset) / label(options.model) / run.key


def _distance(flags: dict[str, Any], other: dict[str, Any]) -> int:
    names = set(flags) - OPERATIONAL - NAMES - {"seed", "n_epochs"}
    return sum(flags[name] != other.get(name) for name in names)


def read_run(run_dir: RunDir) -> IndexedRun | None:
    """The run in a folder; None for one that today's code cannot make sense of."""
    try:
        record = RunRecord.read(run_dir.path)
    except UserError:  # it has only begun, or was killed while it wrote
        record = None
    try:
        stored = record.config if record else run_dir.load_config()
        flags = resolve([(str(run_dir.config), stored)]).flat()
    except UserError:
        return None
    finished = record is not None and record.finished and run_dir.logged
    keys = (run_key(flags), *(run_key(flags | {"precision": p}) for p in other_precisions(flags, record)))
    return IndexedRun(run_dir, keys, flags, finished, record.seconds.total if record else None)


def other_precisions(flags: dict[str, Any], record: RunRecord | None) -> set[str]:
    """Other values of --precision by which the run might have been asked for, as it computes the same.

    `auto` and what it stands for on the run's device are one request once the run is finished. A run from
    before `auto` was the default answers it where it has the default of then, fp32, finished or not: no study
    is trained again for the last bits of its numbers, as none is for being continued on another device.
    """
    used = record.used_precision if record else None
    if record is None or used is None:
        return set()
    from_before = record.precision is None
    default = "tf32" if "cuda" in (record.device or "") else "fp32"
    precisions = {used} if record.finished else set()
    if (used == default and record.finished) or (used == "fp32" and from_before):
        precisions.add("auto")
    return precisions - {flags["precision"]}
