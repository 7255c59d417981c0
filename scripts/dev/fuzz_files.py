"""Fuzz of the files that runs leave: one file is damaged, then a program that reads it is started.

A small world of runs, networks, scores and caches is made once. Each trial copies it, damages one file and
starts a reader; what the reader computes from the undamaged world is what it may compute, or nothing.
"""

import random
import shutil
from pathlib import Path

from engram.scripts.dev.fuzz_trial import Outcome, faults, in_fork, last_line
from engram.scripts.dev.fuzz_world import Reader, Result, make_world, printed, readers

# A flipped bit is what a reader misses most easily, and there are most of them: half of all trials.
DAMAGES = (*["flipped"] * 7, "foreign", "foreign", "truncated", "garbage", "empty", "folder", "unreadable")
FURTHER = ("checkpoint.pt", "mlflow_run")
NOT_WORK = ("log.txt", "lock", "output.txt")  # what a program that fails may write, too


def damage(path: Path, kind: str, rng: random.Random, foreign: list[Path]) -> str:
    """Damage the file; returns what was done, for the report."""
    content = path.read_bytes()
    if kind == "folder":
        path.unlink()
        path.mkdir()
    elif kind == "unreadable":  # for root too: a link to itself
        path.unlink()
        path.symlink_to(path.name)
    elif kind == "foreign":
        path.write_bytes(rng.choice(foreign).read_bytes() if foreign else b"PK\x03\x04 something else")
    elif kind == "flipped" and content:
        position, changed = rng.randrange(len(content)), bytearray(content)
        changed[position] ^= 1 << rng.randrange(8)
        path.write_bytes(changed)
        return f"bit flipped in byte {position} of {len(content)}"
    elif kind == "garbage":
        path.write_bytes(content + rng.randbytes(rng.randint(1, 400)))
    else:
        path.write_bytes(content[: rng.randrange(len(content))] if kind == "truncated" and content else b"")
    return kind


def contents(folder: Path) -> dict[Path, bytes]:
    """Path below the folder → content of every file that a program may not change when it fails."""
    return {
        path.relative_to(folder): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in NOT_WORK
    }


class FileFuzz:
    """Trials on copies of one world."""

    def __init__(self, folder: Path):
        self.world, self.readers = make_world(folder / "world"), readers()
        self.folder = folder
        self._expected: dict[str, Result] = {}

    def expected(self, name: str) -> Result:
        """What a reader computes from the undamaged world."""
        if name not in self._expected:
            work = self._copy(self.folder / "expected")
            outcome = in_fork(self.readers[name].start, work)
            assert outcome.code == 0, (name, outcome)
            self._expected[name] = self.readers[name].result(work, outcome)
            shutil.rmtree(work.parent)
        return self._expected[name]

    def _copy(self, folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        return Path(shutil.copytree(self.world, folder / "work", symlinks=True))

    def trial(self, number: int, seed: int, folder: Path) -> list[str]:
        """Damage one file, start one of its readers; returns what was wrong."""
        rng = random.Random(f"files {seed} {number}")
        name = rng.choice(sorted(self.readers))
        reader, work = self.readers[name], self._copy(folder)
        path = rng.choice([path for pattern in reader.files for path in sorted(work.glob(pattern))])
        kind, expected = rng.choice(DAMAGES), self.expected(name)
        alike = {path.name, *reader.alike}
        foreign = [p for p in sorted(work.rglob(f"*{path.suffix}")) if p.is_file() and p.name not in alike]
        what = f"{name}: {path.relative_to(work)} {damage(path, kind, rng, foreign)}"
        before = contents(work)
        outcome = in_fork(reader.start, work)
        wrong = faults(outcome, work)
        may_differ = any(path.relative_to(work).match(pattern) for pattern in reader.text)
        if outcome.code == 0 and not may_differ:
            wrong += self._accepted(reader, work, outcome, expected)
        if outcome.code:
            damaged = path.relative_to(work)
            after = contents(work)
            # a run that ends by itself (1), say on a full disk, may have come further
            further = FURTHER if outcome.code == 1 else ()
            lost = [p for p in before if p != damaged and p.name not in further and before[p] != after.get(p)]
            wrong += [f"exit code {outcome.code}, and {p} changed" for p in lost[:1]]
        return [f"{what}\n    {fault}" for fault in wrong]

    @staticmethod
    def _accepted(reader: Reader, work: Path, outcome: Outcome, expected: Result) -> list[str]:
        """The damage, if the result is another and nobody said so."""
        try:
            result = reader.result(work, outcome)
        except Exception as error:
            return [f"exit code 0, and the result cannot be read: {error!r}"]
        said = reader.result is printed and ("left out" in outcome.err or "damaged" in outcome.err)
        if result == expected or said:
            return []
        return [f"exit code 0 and another result; said: {last_line(outcome.err)}"]
