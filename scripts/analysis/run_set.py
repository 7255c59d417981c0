"""Run sets: the records of runs below folders, grouped into settings whose runs differ by seed alone."""

import dataclasses
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engram.utils.config.outside import label
from engram.utils.config.run_key import INCIDENTAL, computed_flags
from engram.utils.config.version import shortened
from engram.utils.errors import UserError
from engram.utils.runs.run_record import FILE_NAME, RunRecord, read_all

# Names that MLflow makes up where a run was given none, such as bold-crow-123.
MADE_UP = re.compile(r"[a-z]+-[a-z]+-\d+")
# A setting's label leaves out these too: the table says them anyway.
UNLABELED = INCIDENTAL | {"model", "dataset", "scenario"}
# Methods that keep all data, or train on all tasks at once.
BOUNDS = {"joint", "cumulative", "full_buffer", "linear_probe_joint"}
N_NAMED = 32  # commits below a table; more, as of another project's logs, are counted
SHORT_NAMES = {"buffer_size": "buffer", "buffer_policy": "policy", "e_lambda": "λ", "mas_lambda": "λ"}


@dataclass(frozen=True, eq=False)
class StoredRecord(RunRecord):
    """A run's record, the folder it was read from and the time at which the run ended.

    That is when its file was written; for an imported run, whose file is younger, what its log says.
    """

    folder: Path = Path()
    written: float = 0.0  # seconds since 1970

    @property
    def dataset(self) -> str:
        """The name of the run's benchmark."""
        return label(str(self.config["dataset"]))

    @property
    def model(self) -> str:
        """The name of the run's method."""
        return label(str(self.config["model"]))

    @property
    def buffer_size(self) -> int:
        """The size of the method's memory in samples; 0 for a method without one."""
        return int(self.config.get("buffer_size") or 0)

    @property
    def peak_memory_mib(self) -> float | None:
        """The most memory that the run took, in MiB; None where it was not measured."""
        return None if self.peak_memory_bytes is None else self.peak_memory_bytes / 2**20

    @property
    def campaign(self) -> str:
        """For an imported run, the name that it shares with those of the same campaign; empty for ours."""
        return str(self.config.get("campaign", ""))

    @property
    def computed_flags(self) -> dict[str, Any]:
        """The flags that say what the run computes, without the seed; the scenario is the one it had."""
        return computed_flags(self.config, self.scenario)


@dataclass(frozen=True)
class Setting:
    """Runs of one configuration with different seeds, in the order of their seeds."""

    label: str
    flags: dict[str, Any]  # the flags that tell it from the other settings of its benchmark
    runs: list[StoredRecord]

    @property
    def first(self) -> StoredRecord:
        """The run of the lowest seed; its flags but for the seed are those of all runs."""
        return self.runs[0]

    @property
    def seeds(self) -> list[int]:
        """The seeds of the runs, in ascending order."""
        return [run.seed for run in self.runs]

    @property
    def views(self) -> tuple[str, ...]:
        """The views that differ: in domain-IL both hold the same numbers, so that one is enough."""
        return ("task_il",) if self.first.scenario == "domain-il" else ("class_il", "task_il")

    def values(self, view: str, metric: str) -> NDArray[np.float64]:
        """A metric as a fraction for each seed, (n_seeds,); NaN where a run does not have it.

        Forward transfer, `fwt`, is a number of the run, of the view in which unseen tasks can be predicted.
        """
        if metric == "fwt":
            return np.array([run.fwt if view == "task_il" else np.nan for run in self.runs])
        return np.array([run.views[view].metric(metric) for run in self.runs])

    def matrices(self, view: str) -> NDArray[np.float64]:
        """The accuracy matrix R of each seed, (n_seeds, T, T)."""
        return np.stack([run.views[view].R for run in self.runs])

    @property
    def is_bound(self) -> bool:
        """Whether its method has all data at once, so that methods are read against it, not beside it."""
        return self.first.model in BOUNDS

    @property
    def mean_accuracy(self) -> float:
        """Mean average accuracy in class-IL, by which settings are ordered; 0 if it was not measured."""
        return float(np.nan_to_num(self.values("class_il", "average_accuracy")).mean())


@dataclass(frozen=True)
class RunSet:
    """The settings of every benchmark, ordered by accuracy, and the runs that are not in them."""

    settings: list[Setting]
    unfinished: list[StoredRecord]
    repeated: list[StoredRecord]  # runs of a seed that was run again later

    @property
    def runs(self) -> list[StoredRecord]:
        """The runs of all settings."""
        return [run for setting in self.settings for run in setting.runs]

    @cached_property
    def benchmarks(self) -> dict[str, list[Setting]]:
        """Benchmark → its settings; the name includes the scenario if the data set was run in several.

        Runs evaluated on validation data are a benchmark of their own, which is named so.
        """
        scenarios = defaultdict(set)
        for setting in self.settings:
            scenarios[setting.first.dataset].add(setting.first.scenario)
        benchmarks = defaultdict(list)
        for setting in self.settings:
            dataset, scenario = setting.first.dataset, setting.first.scenario
            several = len(scenarios[dataset]) > 1
            words = [dataset, *([scenario] if several else [])]
            if setting.first.evaluated_on != "test":
                words.append(f"{setting.first.evaluated_on} data")
            benchmarks[", ".join(words)].append(setting)
        return dict(benchmarks)


def collect(folders: Sequence[Path]) -> RunSet:
    """The settings of all runs below the folders; raises `UserError` if none of the runs is finished."""
    run_set = group(_read(folders))
    if not run_set.settings:
        raise UserError(
            f"no finished run below {', '.join(map(str, folders))}; run the sweep first, or name its folder"
        )
    return run_set


def group(records: Iterable[StoredRecord]) -> RunSet:
    """Runs that differ by seed alone become one setting; of two runs of a seed the later one counts."""
    records = list(records)
    benchmarks = defaultdict(list)
    for record in sorted((r for r in records if r.finished), key=lambda r: r.scenario):
        benchmarks[record.dataset, record.scenario, record.evaluated_on].append(record)
    settings, repeated = [], []
    for _, runs in sorted(benchmarks.items(), key=lambda item: item[0][0], reverse=True):
        names = _differing_flags(runs)
        grouped = [_setting(same, names) for same in _same_configuration(runs)]
        settings += sorted((setting for setting, _ in grouped), key=lambda s: s.mean_accuracy)
        repeated += [run for _, earlier in grouped for run in earlier]
    return RunSet(settings, [r for r in records if not r.finished], repeated)


def _read(folders: Sequence[Path]) -> list[StoredRecord]:
    """The records below the folders, in the order of their paths; damaged files are left out and named."""
    records = []
    paths: dict[Path, Path] = {}  # a file that lies below two of the folders is read once
    for path in (path for folder in folders for path in sorted(folder.rglob(FILE_NAME))):
        paths.setdefault(path.resolve(), path)
    # not MLflow's copy of a run that lies elsewhere
    for path, record in read_all(path for path in paths.values() if path.parent.name != "artifacts"):
        config = record.current_flags() if record.imported_run is None else _imported_config(record)
        if config.get("n_iters"):  # steps were counted, not passes
            config = config | {"n_epochs": None}
        values = {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}
        more = {"config": config, "folder": path.parent, "written": record.ended or path.stat().st_mtime}
        records.append(StoredRecord(**values | more))
    return records


def _imported_config(record: RunRecord) -> dict[str, Any]:
    """The campaign and the flags as logged: what a log does not mention need not have had our defaults."""
    name = campaign_name(str(record.config.get("run_name", "")), record.seed)
    return record.config | ({"campaign": name} if name else {})


def campaign_name(run_name: str, seed: int) -> str:
    """A run's name without its seed: `er seed 0 buffer 500` → `er buffer 500`; empty if MLflow made it up.

    Logs of other projects tell campaigns, between which their code changed, by nothing else.
    """
    if MADE_UP.fullmatch(run_name):
        return ""
    return re.sub(rf"[\W_]*(?<![A-Za-z])seed[\W_]*{seed}(?!\d)", "", run_name, flags=re.IGNORECASE).strip()


def _differing_flags(runs: list[StoredRecord]) -> list[str]:
    """The flags that have more than one value among the runs that have them."""
    values = defaultdict(set)
    for run in runs:
        for name, value in run.config.items():
            if name not in UNLABELED:
                values[name].add(json.dumps(value))
    return [name for name, seen in values.items() if len(seen) > 1]


def _same_configuration(runs: list[StoredRecord]) -> list[list[StoredRecord]]:
    """The runs of each configuration, whatever their seed.

    Imported runs of a campaign are of one configuration unless a flag that both logs mention differs.
    """
    groups: dict[str, list[StoredRecord]] = defaultdict(list)
    for run in runs:
        key = json.dumps(run.computed_flags, sort_keys=True)
        if run.campaign and key not in groups:
            key = next((k for k, (first, *_) in groups.items() if _agree(first, run)), key)
        groups[key].append(run)
    return list(groups.values())


def _agree(run: StoredRecord, other: StoredRecord) -> bool:
    """Whether two runs are of one campaign and no flag that both have differs."""
    flags, others = run.computed_flags, other.computed_flags
    return run.campaign == other.campaign and all(flags[n] == others[n] for n in flags.keys() & others.keys())


def _setting(runs: list[StoredRecord], names: list[str]) -> tuple[Setting, list[StoredRecord]]:
    """The setting of these runs, labelled by the named flags; and the runs that a later one replaces."""
    by_seed: dict[int, StoredRecord] = {}
    replaced = []
    for run in sorted(runs, key=lambda run: run.written):
        if run.seed in by_seed:
            replaced.append(by_seed[run.seed])
        by_seed[run.seed] = run
    config = runs[0].config
    flags = {name: config[name] for name in names if config.get(name) not in (None, False, [])}
    words = [_flag_words(name, value) for name, value in flags.items()]
    return Setting(
        ", ".join([label(config["model"]), *words]), flags, [by_seed[seed] for seed in sorted(by_seed)]
    ), replaced


def _flag_words(name: str, value: Any) -> str:
    if value is True:
        return name
    shown = ",".join(map(str, value)) if isinstance(value, list) else value
    return f"{SHORT_NAMES.get(name, name)} {shown}"


def commits(runs: Iterable[RunRecord]) -> str:
    """The commits that made these runs, each once, the first N_NAMED named; a resumed run may have several.

    A run whose code had changes has +changes behind them. `report.py --check` reads the named ones.
    """
    commits_of_runs = {
        shortened(commit, run.git_dirty)
        for run in runs
        for commit in (run.git_commit or "unknown").split(", ")
    }
    named = sorted(commits_of_runs)
    more = f" and {len(named) - N_NAMED} more" if len(named) > N_NAMED else ""
    return ", ".join(named[:N_NAMED]) + more
