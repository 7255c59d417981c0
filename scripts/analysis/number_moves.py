"""Changes that moved numbers, and which runs and tables are older than one that concerns them.

number_moves.yaml lists the changes. A run is older than a change if its commit does not contain the change's
commit. Whether it does is asked of the repository; where it does not know one of them (imported runs, shallow
clones, installed copies) the run's age is unknown, which is said and refused by nobody.

A run's flags say exactly which changes concern it. A printed table names its methods, benchmarks and commits,
so a change that concerns some flags alone may concern it: number_moves.yaml says which tables that change
leaves alone (`unaffected`), and which are older and why they still stand (`stale`).
"""

import re
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

import engram
from engram.scripts.analysis.run_set import StoredRecord
from engram.utils.config import registry
from engram.utils.config.config import resolve
from engram.utils.config.run_key import INCIDENTAL, command_line_of
from engram.utils.errors import UserError

FILE = Path(__file__).with_name("number_moves.yaml")
N_DIGITS = 10  # of a commit, as the notes of tables name it
COMMIT = re.compile(rf"[0-9a-f]{{{N_DIGITS},40}}")


@dataclass(frozen=True)
class Reason:
    """Why a table that is older than a change still stands, and the command that makes its runs again."""

    why: str
    rerun: str


@dataclass(frozen=True)
class Move:
    """A change that moved numbers, and the runs whose numbers those are: every condition must hold.

    models, datasets: names, empty for all. flags: flag → the values that are concerned; unless: flag → the
    values that are not, None for a flag that the run does not have.
    """

    commit: str
    what: str
    models: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()
    flags: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    unless: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    stale: Mapping[str, Reason] = field(default_factory=dict)  # table → why it still stands
    unaffected: Mapping[str, str] = field(default_factory=dict)  # table → why its rows are not concerned

    @classmethod
    def from_yaml(cls, entry: dict[str, Any]) -> "Move":
        """An entry of the file; a key that it should not have is a TypeError."""
        values = dict(entry)
        values |= {name: tuple(entry.get(name, ())) for name in ("models", "datasets")}
        values["stale"] = {table: Reason(**reason) for table, reason in entry.get("stale", {}).items()}
        values["unaffected"] = {t: why for why, names in entry.get("unaffected", {}).items() for t in names}
        return cls(**values)

    def may_concern(self, model: str, dataset: str | None) -> bool:
        """Whether it concerns some runs of this method on this benchmark; None is a benchmark not named."""
        return (not self.models or model in self.models) and (
            not self.datasets or dataset is None or dataset in self.datasets
        )

    def concerns(self, run: StoredRecord) -> bool:
        """Whether it concerns a run of these flags, had the run been made before."""
        config = run.computed_flags
        return (
            self.may_concern(run.model, run.dataset)
            and all(config.get(name) in values for name, values in self.flags.items())
            and not any(config.get(name) in values for name, values in self.unless.items())
        )

    @property
    def title(self) -> str:
        """Its commit and what it did."""
        return f"{self.commit} ({self.what})"


@dataclass(frozen=True)
class RunAges:
    """The runs that are older than a change that concerns them, and those of which nobody can tell."""

    older: list[tuple[Move, list[StoredRecord]]]
    unknown: list[StoredRecord]

    def unlisted(self, table: str) -> list[tuple[Move, list[StoredRecord]]]:
        """The older runs that the change does not list as runs of this table."""
        return [(move, runs) for move, runs in self.older if table not in move.stale]


@dataclass(frozen=True)
class TableAge:
    """A printed table that has rows and a commit from before a change that may concern them."""

    table: str
    move: Move
    rows: list[str]

    @property
    def listed(self) -> bool:
        """Whether the change says why the table still stands."""
        return self.table in self.move.stale


@lru_cache
def read_moves() -> tuple[Move, ...]:
    """The changes in number_moves.yaml, in its order."""
    return tuple(Move.from_yaml(entry) for entry in yaml.safe_load(FILE.read_text(encoding="utf-8"))["moves"])


def ages(runs: Iterable[StoredRecord]) -> RunAges:
    """Compare the runs with every change that concerns them."""
    runs = list(runs)
    older, unknown = [], []
    for move in read_moves():
        answers = [(run, is_older(run.git_commit, move.commit)) for run in runs if move.concerns(run)]
        older += [(move, [run for run, answer in answers if answer])]
        unknown += [run for run, answer in answers if answer is None and run not in unknown]
    return RunAges([(move, old) for move, old in older if old], unknown)


def is_older(commits: str | None, change: str) -> bool | None:
    """Whether one of a run's commits, `a, b` for a resumed one, lacks the change; None if nobody knows."""
    contained = [ancestors(commit) for commit in (commits or "unknown").split(", ")]
    if ancestors(change) is None or any(commits is None for commits in contained):
        return None
    return any(change[:N_DIGITS] not in commits for commits in contained if commits is not None)


@lru_cache
def ancestors(commit: str) -> frozenset[str] | None:
    """The commit and those before it, ten digits each; None if the repository does not know it."""
    if engram.is_installed or not COMMIT.fullmatch(commit):
        return None
    command = ["git", "--no-optional-locks", "-C", str(registry.ROOT), "rev-list", f"{commit}^{{commit}}"]
    try:
        lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    except (OSError, subprocess.CalledProcessError):
        return None
    return frozenset(line[:N_DIGITS] for line in lines)


def check_runs(runs: Iterable[StoredRecord], table: str, path: Path | None) -> list[str]:
    """Lines that tell which runs are older than a change that concerns them.

    Raises `UserError` with these lines if they would be put into the file `path`, unless the changes list the
    table as one that still stands.
    """
    run_ages = ages(runs)
    unlisted = run_ages.unlisted(table)
    if path and unlisted:
        refused = "; ".join(_in_words(move, old) for move, old in unlisted)
        raise UserError(f"--update {path}: {refused}. Without --update the tables are printed all the same")
    lines = [_in_words(move, old) for move, old in run_ages.older]
    if run_ages.unknown:
        lines.append(
            f"{len(run_ages.unknown)} runs whose commit this repository does not know may be older than a "
            f"change that moved their numbers ({FILE.name})"
        )
    return lines


def _in_words(move: Move, runs: list[StoredRecord]) -> str:
    """Which runs are older than the change, and how they are made again."""
    seeds = ", ".join(map(str, sorted({run.seed for run in runs})))
    names = ", ".join(sorted({f"{run.model} on {run.dataset}" for run in runs}))
    first = runs[0]
    return (
        f"{len(runs)} runs ({names}; seeds {seeds}; the first: {first.folder}) are older than {move.title}; "
        f"remove their folders and run them again: {short_command(first)}"
    )


def short_command(run: StoredRecord) -> str:
    """A command that makes the run again, with the flags that are not their benchmark's and method's own."""
    plugins: dict[str, Any] = {n: run.config[n] for n in ("model", "dataset", "backbone") if n in run.config}
    try:
        usual = resolve([("the run", plugins)]).flat()
    except UserError:
        return command_line_of(run.config)
    flags = {name: value for name, value in run.config.items() if name not in INCIDENTAL or name == "seed"}
    unusual = {name: value for name, value in flags.items() if value != usual.get(name)}
    return command_line_of({name: run.config[name] for name in ("model", "dataset")} | unusual)


def table_ages(page: str, titles: Mapping[str, str]) -> list[TableAge]:
    """The tables of a page, each with every change that it may be older than.

    titles: what stands over a benchmark's table → the benchmark, where that is not its name.
    """
    older = []
    for name, body in re.findall(r"<!-- table (.+?) -->\n(.*?)<!-- end \1 -->", page, re.DOTALL):
        rows = _rows(body, titles)
        for move in read_moves():
            labels = [label for label, dataset in rows if move.may_concern(_model(label), dataset)]
            is_old = any(is_older(commit, move.commit) for commit in commits_of(body))
            if labels and is_old and name not in move.unaffected:
                older.append(TableAge(name, move, list(dict.fromkeys(labels))))
    return older


def outdated(table_ages: Iterable[TableAge], page: str) -> list[str]:
    """What number_moves.yaml lists of the page's tables although it does not hold any more."""
    older = {(age.table, age.move.commit, age.move.models) for age in table_ages}
    return [
        f"{table}: listed as older than {move.title}, which it is not; remove that from {FILE.name}"
        for move in read_moves()
        for table in move.stale
        if (table, move.commit, move.models) not in older
        and f"<!-- table {table} -->" in page
        and ancestors(move.commit) is not None
    ]


def without_commits(page: str) -> list[str]:
    """The tables that name no commit that this repository knows, so that nobody can tell their age."""
    blocks = re.findall(r"<!-- table (.+?) -->\n(.*?)<!-- end \1 -->", page, re.DOTALL)
    return [name for name, body in blocks if all(ancestors(commit) is None for commit in commits_of(body))]


def with_unnamed_commits(page: str) -> list[str]:
    """The tables whose note counts further commits without naming them, so that an older one is not seen."""
    blocks = re.findall(r"<!-- table (.+?) -->\n(.*?)<!-- end \1 -->", page, re.DOTALL)
    return [name for name, body in blocks if re.search(r"commits: .+ and \d+ more\.", body)]


def unknown_changes() -> list[str]:
    """The commits of changes that this repository does not know: it is a shallow clone, or none at all."""
    return list(dict.fromkeys(move.commit for move in read_moves() if ancestors(move.commit) is None))


def commits_of(body: str) -> list[str]:
    """The commits that the note below a table names."""
    named = re.search(r"commits: (.+)\.", body)
    return COMMIT.findall(named[1]) if named else []


def _model(label: str) -> str:
    """The method of a row's label: `er balanced` and `er, buffer 500` are er's."""
    return re.split("[ ,]", label)[0]


def _rows(body: str, titles: Mapping[str, str]) -> list[tuple[str, str | None]]:
    """(label, benchmark) of each row of a table of methods; None where no benchmark stands above it."""
    rows: list[tuple[str, str | None]] = []
    dataset, column, head = None, None, True
    for line in body.splitlines():
        if title := re.match(r"\*\*(.+?)\*\*", line):
            name = title[1].split(",")[0]
            dataset = titles.get(name, name)
        if not line.startswith("|"):
            head = True
        elif head:
            column, head = _column_of_methods(_cells(line)), False
        elif column is not None and not line.startswith("| ---"):
            rows.append((_cells(line)[column], dataset))
    return rows


def _cells(line: str) -> list[str]:
    """The texts between the bars of a row."""
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def _column_of_methods(heads: list[str]) -> int | None:
    """Which column names the methods; tables by the size of the memory have them below `buffer size`."""
    if "method" in heads:
        return heads.index("method")
    return 0 if heads[0] in ("buffer size", "buffer") else None
