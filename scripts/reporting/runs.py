"""Runs: what lies in run folders, grouped into settings that differ by seed alone."""

import json
import sys
from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from utils.config import OPERATIONAL
from utils.errors import UserError
from utils.study import NAMES

# Not told in a setting's label: where and how it ran, what it is called, and what the table says anyway.
UNTOLD = OPERATIONAL | NAMES | {"seed", "model", "dataset"}
WORDS = {"buffer_size": "buffer", "buffer_policy": "policy", "e_lambda": "λ", "mas_lambda": "λ"}


@dataclass(frozen=True)
class Setting:
    """Runs of one configuration with different seeds, in the order of their seeds."""

    dataset: str
    label: str
    told: dict[str, Any]  # the flags that tell it from the other settings of this benchmark
    runs: list[dict]

    @property
    def config(self) -> dict[str, Any]:
        """Of its first run."""
        return self.runs[0]["config"]

    @property
    def seeds(self) -> list[int]:
        """Of its runs."""
        return [run["seed"] for run in self.runs]

    @property
    def views(self) -> tuple[str, ...]:
        """Where the views differ; one in domain-IL."""
        return ("task_il",) if self.runs[0]["scenario"] == "domain-il" else ("class_il", "task_il")

    def values(self, view: str, metric: str) -> list[float] | None:
        """One fraction a seed; None where a run has no such number."""
        found = [run[view].get(metric) for run in self.runs]
        return None if None in found else found

    def stacked(self, view: str) -> np.ndarray:
        """R of every seed: (seeds, T, T)."""
        return np.array([run[view]["R"] for run in self.runs], dtype=np.float64)


@dataclass(frozen=True)
class Study:
    """The settings of every benchmark, ordered by accuracy, and the runs that are not in them."""

    settings: list[Setting]
    unfinished: list[dict]
    repeated: list[dict]

    @cached_property
    def benchmarks(self) -> dict[str, list[Setting]]:
        """Benchmark → its settings."""
        found = defaultdict(list)
        for setting in self.settings:
            found[setting.dataset].append(setting)
        return dict(found)

    @property
    def documents(self) -> list[dict]:
        """Of all finished runs that count."""
        return [run for setting in self.settings for run in setting.runs]


def load(folders: list[Path]) -> list[dict]:
    """Every results document below the folders, with its `path`."""
    documents = []
    for folder in folders:
        for path in sorted(folder.rglob("results.json")):
            if path.parent.name == "artifacts":  # MLflow's copy
                continue
            try:
                documents.append(json.loads(path.read_text(encoding="utf-8")) | {"path": path.parent})
            except ValueError as error:
                print(f"left out: {path}: damaged ({error})", file=sys.stderr)
    if not any(document["status"] == "finished" for document in documents):
        raise UserError(
            f"no finished run below {', '.join(map(str, folders))}; run the sweep first, or name its folder"
        )
    return documents


def study(documents: list[dict]) -> Study:
    """Settings found from the configurations themselves: by the flags in which they differ."""
    finished = [document for document in documents if document["status"] == "finished"]
    settings, repeated = [], []
    for dataset in sorted({d["config"]["dataset"] for d in finished}, reverse=True):
        own = [d for d in finished if d["config"]["dataset"] == dataset]
        found = [_setting(dataset, members, differing(own)) for members in _same(own).values()]
        repeated += [run for _, extra in found for run in extra]
        settings += sorted((setting for setting, _ in found), key=mean_accuracy)
    return Study(settings, [d for d in documents if d["status"] != "finished"], repeated)


def mean_accuracy(setting: Setting) -> float:
    """What settings are ordered by."""
    return float(np.mean([run["class_il"]["average_accuracy"] for run in setting.runs]))


def differing(documents: list[dict]) -> list[str]:
    """Flags that have more than one value among the runs that have them."""
    values = defaultdict(set)
    for document in documents:
        for name, value in document["config"].items():
            if name not in UNTOLD:
                values[name].add(json.dumps(value))
    return [name for name, seen in values.items() if len(seen) > 1]


def _same(documents: list[dict]) -> dict[str, list[dict]]:
    """The runs of each configuration, whatever their seed."""
    found = defaultdict(list)
    for document in documents:
        told = {k: v for k, v in document["config"].items() if k not in UNTOLD - {"model"}}
        found[json.dumps(told, sort_keys=True)].append(document)
    return found


def _setting(dataset: str, members: list[dict], names: list[str]) -> tuple[Setting, list[dict]]:
    """The setting, and runs that repeat a seed: of those the latest counts."""
    by_seed: dict[int, dict] = {}
    repeated = []
    for run in sorted(members, key=lambda run: (run["path"] / "results.json").stat().st_mtime):
        if run["seed"] in by_seed:
            repeated.append(by_seed[run["seed"]])
        by_seed[run["seed"]] = run
    config = members[0]["config"]
    told = {n: config[n] for n in names if n in config and config[n] not in (None, False, [])}
    words = [f"{WORDS.get(n, n)} {_shown(v)}" if v is not True else n for n, v in told.items()]
    runs = [by_seed[seed] for seed in sorted(by_seed)]
    return Setting(dataset, ", ".join([config["model"], *words]), told, runs), repeated


def _shown(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)
