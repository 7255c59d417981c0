"""Sweep specification: flags given as a grid and a list, and the runs they stand for.

    name: digits
    fixed: {dataset: seq-digits, n_epochs: 5}       # the same for every run
    grid: {buffer_size: [500, 2000], seed: [0, 1, 2]}   # every combination
    runs: [{model: er}, {model: maer, buffer_policy: min}]   # each with the whole grid

A run is known by its resolved configuration: what it computes, not what it is called or where it lies.
"""

import itertools
import math
import shlex
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from engram.utils import yaml_files
from engram.utils.config import cli, registry
from engram.utils.config.config import Config
from engram.utils.config.outside import label
from engram.utils.config.run_key import arguments, run_key
from engram.utils.credentials import redact
from engram.utils.errors import UserError

MAX_RUNS = 100_000  # every one is resolved before the first starts
KEYS = ("name", "fixed", "grid", "runs")
STUDY_FILE = f"a study's YAML file, a mapping with some of {', '.join(KEYS)}"
NOT_FOR_RUNS = {"resume", "help", "version", "list"}


@dataclass(frozen=True)
class PlannedRun:
    """A run that a sweep asks for: what main.py would be given, and what that resolves to.

    varied: the flags that differ between the runs of the sweep, with this run's values.
    """

    argv: tuple[str, ...]
    config: Config
    varied: dict[str, Any]

    @cached_property
    def key(self) -> str:
        """The `run_key` of its configuration."""
        return run_key(self.config.flat())

    @property
    def label(self) -> str:
        """`er, buffer_size 500, seed 0`: the method and what tells it from the sweep's other runs."""
        return ", ".join([label(self.config.run.model), *(f"{k} {v}" for k, v in self.varied.items())])

    @property
    def command(self) -> str:
        """The command that starts the same run; passwords in it are hidden."""
        return redact(" ".join(["python main.py", *map(shlex.quote, self.argv)]))


@dataclass(frozen=True)
class SweepSpec:
    """Flags: `fixed` for all runs, `runs` one by one, `grid` in every combination."""

    name: str | None = None
    fixed: dict[str, Any] = field(default_factory=dict)
    grid: dict[str, list] = field(default_factory=dict)
    runs: tuple[dict[str, Any], ...] = ()

    def __post_init__(self):
        listed = [name for entry in self.runs for name in entry]
        for name in [*self.fixed, *self.grid, *listed]:
            if name in NOT_FOR_RUNS:
                raise UserError(f"a study cannot set --{name}: it starts runs and resumes them itself")
        if both := sorted(set(self.grid) & set(listed)):
            raise UserError(f"--{both[0]} stands both in the grid and in the list of runs; keep one of them")

    def points(self) -> list[dict[str, Any]]:
        """The flags of each run, in order."""
        n_runs = max(1, len(self.runs)) * math.prod(map(len, self.grid.values()))
        if n_runs > MAX_RUNS:
            raise UserError(f"the grid has {n_runs:,} runs; a study may have {MAX_RUNS:,}: split it")
        combined = [
            dict(zip(self.grid, values, strict=True)) for values in itertools.product(*self.grid.values())
        ]
        return [{**self.fixed, **entry, **point} for entry in self.runs or ({},) for point in combined]

    def resolved(self) -> list[PlannedRun]:
        """Every run of the sweep, those that compute the same only once."""
        points = self.points()
        varied = varying(points)
        runs: dict[str, PlannedRun] = {}
        for point in points:
            argv = tuple(arguments(point))
            shown = {name: point[name] for name in varied if name in point and name != "model"}
            try:
                config = cli.parse(list(argv)).config
            except UserError as error:
                label = ", ".join(f"{k} {v}" for k, v in point.items() if k in varied) or "the study"
                raise UserError(f"{label}: {error}") from None
            assert config is not None, "a sweep's flags never ask for --resume"
            run = PlannedRun(argv, config, shown)
            runs.setdefault(run.key, run)
        return list(runs.values())

    def document(self) -> dict[str, Any]:
        """The content of a file that `read_spec` reads back."""
        content = {"name": self.name, "fixed": self.fixed, "grid": self.grid, "runs": list(self.runs)}
        return {key: _redacted(value) for key, value in content.items() if value}


def read_spec(path: Path) -> SweepSpec:
    """The study in a YAML file; its name is the file's unless the file says another."""
    try:
        content = yaml_files.read(path)
    except yaml_files.YamlFileError as error:
        raise UserError(f"{path}: {error}; expected {STUDY_FILE}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected {STUDY_FILE}")
    for key in content:
        if key not in KEYS:
            hint = registry.suggest(str(key), list(KEYS))
            raise UserError(f"{path}: unknown key '{key}'{hint} (valid: {', '.join(KEYS)})")
    fixed, grid, runs = content.get("fixed") or {}, content.get("grid") or {}, content.get("runs") or []
    if not isinstance(fixed, dict) or not isinstance(grid, dict):
        raise UserError(f"{path}: fixed and grid must be mappings from flags to values")
    if not isinstance(runs, list) or not all(isinstance(entry, dict) for entry in runs):
        raise UserError(f"{path}: runs must be a list of mappings from flags to values")
    name = str(content.get("name") or path.stem)
    return SweepSpec(
        name, _plain(fixed), {k: _many(path, k, v) for k, v in _plain(grid).items()}, tuple(map(_plain, runs))
    )


def varying(points: list[dict[str, Any]]) -> list[str]:
    """The flags that do not have one value in all of `points`, in the order of appearance, the seed last."""
    names = dict.fromkeys(name for point in points for name in point)
    different = [n for n in names if any(point.get(n) != points[0].get(n) for point in points)]
    return sorted(different, key=lambda name: name == "seed")


def _plain(flags: dict[Any, Any]) -> dict[str, Any]:
    """The flags without the dashes that a person may have written before them."""
    return {str(name).removeprefix("--"): value for name, value in flags.items()}


def _redacted(value: Any) -> Any:
    """The value, in whatever lists and dicts, without the passwords of tracking URIs."""
    if isinstance(value, dict):
        return {key: _redacted(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_redacted(item) for item in value]
    return redact(value) if isinstance(value, str) else value


def _many(path: Path, name: str, value: Any) -> list:
    """The values of one flag of the grid."""
    if value == []:
        raise UserError(f"{path}: {name} has an empty list of values; give at least one")
    return value if isinstance(value, list) else [value]
