"""Runs: what lies in run folders, grouped into settings that differ by seed alone."""

import json
import sys
from collections import defaultdict
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from engram.utils.config.config import OPERATIONAL, up_to_date
from engram.utils.config.run_key import NAMES
from engram.utils.errors import UserError

# Not told in a setting's label: where and how it ran, what it is called, and what the table says anyway.
UNTOLD = OPERATIONAL | NAMES | {"seed", "model", "dataset", "scenario"}
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
    def scenario(self) -> str:
        """Of its runs."""
        return self.runs[0]["scenario"]

    @property
    def views(self) -> tuple[str, ...]:
        """Where the views differ; one in domain-IL."""
        return ("task_il",) if self.scenario == "domain-il" else ("class_il", "task_il")

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
        """Benchmark → its settings; its name tells the scenario where the data set has several."""
        scenarios, found = defaultdict(set), defaultdict(list)
        for setting in self.settings:
            scenarios[setting.dataset].add(setting.scenario)
        for setting in self.settings:
            several = len(scenarios[setting.dataset]) > 1
            found[f"{setting.dataset}, {setting.scenario}" if several else setting.dataset].append(setting)
        return dict(found)

    @property
    def documents(self) -> list[dict]:
        """Of all finished runs that count."""
        return [run for setting in self.settings for run in setting.runs]


def load(folders: list[Path]) -> list[dict]:
    """Every results document below the folders, with its `path` and its configuration up to date."""
    documents = []
    for folder in folders:
        for path in sorted(folder.rglob("results.json")):
            if path.parent.name == "artifacts":  # MLflow's copy
                continue
            try:
                document = json.loads(path.read_text(encoding="utf-8"))
            except ValueError as error:
                print(f"left out: {path}: damaged ({error})", file=sys.stderr)
                continue
            if "imported_run" not in document:  # what an old log leaves out need not be our default
                document["config"] = up_to_date(document["config"])
            documents.append(document | {"path": path.parent})
    if not any(document["status"] == "finished" for document in documents):
        raise UserError(
            f"no finished run below {', '.join(map(str, folders))}; run the sweep first, or name its folder"
        )
    return documents


def study(documents: list[dict]) -> Study:
    """Settings found from the configurations themselves: by the flags in which they differ."""
    finished = [document for document in documents if document["status"] == "finished"]
    settings, repeated = [], []
    benchmarks = defaultdict(list)
    for document in sorted(finished, key=lambda d: d["scenario"]):
        benchmarks[document["config"]["dataset"], document["scenario"]].append(document)
    for (dataset, _), own in sorted(benchmarks.items(), key=lambda item: item[0][0], reverse=True):
        found = [_setting(dataset, members, differing(own)) for members in _same(own).values()]
        repeated += [run for _, extra in found for run in extra]
        settings += sorted((setting for setting, _ in found), key=mean_accuracy)
    return Study(settings, [d for d in documents if d["status"] != "finished"], repeated)


def mean_accuracy(setting: Setting) -> float:
    """What settings are ordered by."""
    return float(np.mean([run["class_il"]["average_accuracy"] for run in setting.runs]))


def computed(document: dict) -> dict[str, Any]:
    """The flags that say what a run computes, but for the seed; the scenario is the one it had."""
    told = {k: v for k, v in document["config"].items() if k not in OPERATIONAL | NAMES | {"seed"}}
    return told | {"scenario": document["scenario"]}


def one_per_seed(documents: list[dict], keys: Iterable[Hashable]) -> dict[Hashable, list[dict]]:
    """The runs of each key, one key a document, in the order of their seeds.

    Runs of one key that differ in more than the seed are refused, as the spread over them is not one over
    seeds; so are two runs of one seed.
    """
    found: dict[Hashable, dict[int, dict]] = defaultdict(dict)
    for document, key in zip(documents, keys, strict=True):
        own, seed = found[key], document["seed"]
        _check_same(next(iter(own.values()), document), document)
        if seed in own:
            both = f"{own[seed]['path']} and {document['path']}"
            raise UserError(f"{both} are two runs of seed {seed} of one setting; remove one")
        own[seed] = document
    return {key: [own[seed] for seed in sorted(own)] for key, own in found.items()}


def _check_same(one: dict, other: dict) -> None:
    a, b = computed(one), computed(other)
    differ = [f"--{name} ({a.get(name)}, {b.get(name)})" for name in a | b if a.get(name) != b.get(name)]
    if differ:
        raise UserError(
            f"{one['path']} and {other['path']} belong in one cell of the table, but differ in more than the "
            f"seed: {', '.join(differ)}; name folders without one of them, or leave out the paper's name for "
            "a table that keeps all settings apart"
        )


def pairs(one: Iterable[dict], other: Iterable[dict]) -> tuple[list[tuple[dict, dict]], list[int]]:
    """Runs of the same seed and tasks; and the seeds of those whose tasks differ, which are no pairs."""
    by_seed = {run["seed"]: run for run in other}
    both = [(run, by_seed[run["seed"]]) for run in one if run["seed"] in by_seed]
    same = [_same_tasks(*pair) for pair in both]
    found = [pair for pair, kept in zip(both, same, strict=True) if kept]
    return found, [run["seed"] for (run, _), kept in zip(both, same, strict=True) if not kept]


def left_out(seeds: Iterable[int]) -> str:
    """A sentence for a table's note; empty without such seeds."""
    named = ", ".join(map(str, sorted(set(seeds))))
    return f"Seeds left out where the two runs had different tasks: {named}." if named else ""


def _same_tasks(one: dict, other: dict) -> bool:
    # imported logs do not tell their classes
    if not (one.get("class_order") and other.get("class_order")):
        return True
    return _tasks(one) == _tasks(other)


def _tasks(run: dict) -> list[list[int]]:
    """Original classes of each task; in domain-IL in their order, which is that of the shared outputs."""
    order, n_tasks = run["class_order"], len(run["class_il"]["R"])
    half = bool(run["config"].get("half_classes_in_first_task"))
    first = half * (len(order) // 2)
    parts = [part.tolist() for part in np.array_split(order[first:], n_tasks - half)]
    return [own if run["scenario"] == "domain-il" else sorted(own) for own in (order[:first], *parts)]


def commits(documents: list[dict]) -> str:
    """The commits that made these runs, each once; a run that was resumed may have several."""
    named = {commit for d in documents for commit in (d["git_commit"] or "unknown").split(", ")}
    return ", ".join(sorted({commit[:10] for commit in named}))


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
        found[json.dumps(computed(document), sort_keys=True)].append(document)
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
