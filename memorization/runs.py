"""Finished runs of main.py below a folder, and what tells their settings apart."""

import sys
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from engram.utils.config.outside import label
from engram.utils.config.run_key import computed_flags
from engram.utils.errors import UserError
from engram.utils.runs.run_record import FILE_NAME, RunRecord, read_all

# Imported logs name every method's buffer by --buffer_policy; ours say the same with --memory.
POLICIES_OF_THE_PAPERS_CODE = {"reservoir": "", "balanced_reservoir": "balanced"}
# Flags that say what is measured or kept besides; accuracies are the same without.
MOVE_NO_ACCURACY = {"ignore_other_metrics", "eval_every", "savecheck"}
Runs = list[tuple[Path, RunRecord]]  # each with its folder


def finished_runs(folder: Path, flag: str, told_apart: Collection[str] = ()) -> list[RunRecord]:
    """The record of every finished run below `folder`; errors name the flag that it was given by.

    Runs evaluated on held-out data are left out with a line. Runs of one setting and buffer size that differ
    in more than their seed and the flags `told_apart`, or in nothing, are refused: a mean over them is none
    over seeds.
    """
    # not MLflow's copy of a run that lies elsewhere
    paths = (path for path in sorted(folder.rglob(FILE_NAME)) if path.parent.name != "artifacts")
    finished = [(path.parent, record) for path, record in read_all(paths) if record.finished]
    tested = [(path, record) for path, record in finished if record.evaluated_on == "test"]
    if n_others := len(finished) - len(tested):
        runs = "run" if n_others == 1 else "runs"
        print(f"left out: {n_others} {runs} evaluated on validation data", file=sys.stderr)
    if not tested:
        raise UserError(f"{flag} {folder}: no finished run there" + " on test data" * bool(finished))
    for of_one in _of_one_setting(tested):
        _refuse_mixture(of_one, flag, told_apart)
    return [record for _, record in tested]


def _of_one_setting(runs: Runs) -> Iterator[Runs]:
    """The runs of each benchmark, setting and buffer size, as the figures and tables name them."""
    benchmarks: dict[str, Runs] = defaultdict(list)
    for folder, record in runs:
        benchmarks[label(str(record.config["dataset"]))].append((folder, record))
    for of_benchmark in benchmarks.values():
        settings: dict[tuple[str, int], Runs] = defaultdict(list)
        names = setting_names([record.config for _, record in of_benchmark])
        for name, (folder, record) in zip(names, of_benchmark, strict=True):
            settings[name, record.config.get("buffer_size") or 0].append((folder, record))
        yield from settings.values()


def _refuse_mixture(runs: Runs, flag: str, told_apart: Collection[str]) -> None:
    """Raise `UserError` that names two of the runs of a setting that no mean over seeds can be of."""
    flags = [_computed_flags(record) for _, record in runs]
    names = sorted(_compared_flags(runs, flags) - MOVE_NO_ACCURACY - set(told_apart))
    by_seed: dict[tuple[Any, ...], Path] = {}
    for (folder, record), own in zip(runs, flags, strict=True):
        differing = [n for n in names if own.get(n) != flags[0].get(n)]
        if differing:
            values = ", ".join(f"--{n} ({flags[0].get(n)}, {own.get(n)})" for n in differing)
            raise UserError(
                f"{flag}: {runs[0][0]} and {folder} belong to one setting, but differ in more than the seed: "
                f"{values}; give a folder without one of them"
            )
        key = (record.seed, *(record.config.get(name) for name in told_apart))
        if key in by_seed:
            raise UserError(
                f"{flag}: {by_seed[key]} and {folder} are two runs of seed {record.seed} of one setting; "
                "remove one"
            )
        by_seed[key] = folder


def _compared_flags(runs: Runs, flags: Sequence[Mapping[str, Any]]) -> set[str]:
    """The flags in which runs of one setting must agree; of imported ones those that every log mentions."""
    names = [set(own) for own in flags]
    is_imported = any(record.imported_run for _, record in runs)
    return set.intersection(*names) if is_imported else set.union(*names)


def _computed_flags(run: RunRecord) -> dict[str, Any]:
    """The flags that say what a run computes, today's; what an imported log does not mention is unknown."""
    return computed_flags(run.config if run.imported_run else run.current_flags(), run.scenario)


def setting_names(configs: list[dict[str, Any]]) -> list[str]:
    """The setting of each configuration but for buffer size and seed: `maer min`, `er balanced`.

    A proxy of memorization is named where the configurations do not share one.
    """
    proxies = {config["mem_proxy"] for config in configs if config.get("mem_proxy")}
    return [setting_name(config, len(proxies) > 1) for config in configs]


def setting_name(config: Mapping[str, Any], with_proxy: bool) -> str:
    """`maer min` for a run's configuration; with its proxy of memorization, if it has one, when asked."""
    words = [config["model"]]
    policy = config.get("buffer_policy")
    if policy:
        words.append(POLICIES_OF_THE_PAPERS_CODE.get(policy, policy))
    if with_proxy and config.get("mem_proxy"):
        words.append(config["mem_proxy"])
    if config.get("memory", "reservoir") != "reservoir":
        words.append(config["memory"])
    return " ".join(filter(None, words))
