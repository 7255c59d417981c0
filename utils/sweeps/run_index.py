"""Ledger: the runs that lie under an output folder, known by what they compute, and what they cost."""

import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engram.utils.config.config import OPERATIONAL, Config, resolve
from engram.utils.config.run_key import NAMES, run_key
from engram.utils.errors import UserError
from engram.utils.runs.run_dir import RunDir
from engram.utils.sweeps.sweep_spec import Run

# What a run costs is taken from runs that agree in these; of them, from those that differ least.
COMPARABLE = ("model", "dataset", "backbone")


@dataclass(frozen=True)
class IndexedRun:
    """A run folder and its configuration as today's code resolves it."""

    folder: RunDir
    key: str
    flags: dict[str, Any]
    finished: bool
    seconds: float | None


class RunIndex:
    """Every run under some output folders."""

    def __init__(self, output_dirs: set[str]):
        self.entries = [
            entry
            for output_dir in sorted(output_dirs)
            for path in sorted(Path(output_dir).expanduser().glob("*/*/*/config.yaml"))
            if (entry := _entry(RunDir(path.parent)))
        ]
        self._by_key: dict[str, IndexedRun] = {}
        for entry in self.entries:  # of several with the same key a finished one counts, else the latest
            known = self._by_key.get(entry.key)
            if known is None or not known.finished:
                self._by_key[entry.key] = entry

    def find(self, key: str) -> IndexedRun | None:
        """The run that computes this."""
        return self._by_key.get(key)

    def folder_of(self, run: Run) -> Path:
        """Where the run lies, or will lie."""
        found = self.find(run.key)
        return found.folder.path if found else home(run)

    def seconds(self, config: Config) -> float | None:
        """What such a run takes: the median of the most similar finished ones, scaled by epochs."""
        flags = config.flat()
        similar = [
            e
            for e in self.entries
            if e.finished and e.seconds and all(e.flags[n] == flags[n] for n in COMPARABLE)
        ]
        if not similar:
            return None
        distances = [_distance(e.flags, flags) for e in similar]
        nearest = [e for e, d in zip(similar, distances, strict=True) if d == min(distances)]
        return statistics.median(e.seconds * flags["n_epochs"] / e.flags["n_epochs"] for e in nearest)


def home(run: Run) -> Path:
    """The folder of a run that a sweep starts: the same however often it is started."""
    options = run.config.run
    return Path(options.output_dir).expanduser() / options.dataset / options.model / run.key


def _distance(flags: dict[str, Any], other: dict[str, Any]) -> int:
    names = set(flags) - OPERATIONAL - NAMES - {"seed", "n_epochs"}
    return sum(flags[name] != other.get(name) for name in names)


def _entry(folder: RunDir) -> IndexedRun | None:
    """None for a folder that today's code cannot make sense of."""
    try:
        document = json.loads(folder.results.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        document = {}
    try:
        stored = document.get("config") or folder.load_config()
        flags = resolve([(str(folder.config), stored)]).flat()
    except UserError:
        return None
    finished = document.get("status") == "finished" and folder.logged
    return IndexedRun(folder, run_key(flags), flags, finished, document.get("seconds", {}).get("total"))
