"""What a GPU shows in fifteen minutes, in sections whose failures do not stop the next: scripts/gpu_check.sh.

    scripts/gpu_check.sh --out results             all of it: results/gpu_check.json and results/gpu_check.md
    scripts/gpu_check.sh --only steps evaluation   some sections
    scripts/gpu_check.sh --device cpu --quick      on a CPU as far as it goes, in half a minute
    python scripts/bench/gpu_check.py --quick      the same program without the shell

Both files are written anew after every section. Exit code 1: a check failed; skipped checks say why.
Nothing is downloaded, and MLflow is not needed.
"""

import argparse
import functools
import importlib.util
import json
import math
import platform
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from engram.scripts.bench import device_checks, device_speed
from engram.scripts.bench.check_runner import (
    FAILED,
    PASSED,
    SKIPPED,
    Check,
    Finding,
    Outcome,
    Section,
    SkippedCheck,
    run_section,
)
from engram.utils import files
from engram.utils.config.flags import CheckedParser
from engram.utils.destinations import check_folder
from engram.utils.door import guarded
from engram.utils.errors import UserError
from engram.utils.training.environment import versions

ROOT = Path(__file__).resolve().parents[2]
MINUTES = 15.0


def tests(path: Path, device: torch.device) -> Finding:
    """Run the tests of a file that are marked `gpu`."""
    if device.type != "cuda":
        raise SkippedCheck("the tests marked gpu need a CUDA device")
    if importlib.util.find_spec("pytest") is None:
        raise SkippedCheck("needs pytest")
    options = ["-q", "-m", "gpu", "-p", "no:cacheprovider", "-rf", "--tb=line", "--maxfail=20"]
    command = [sys.executable, "-m", "pytest", *options, str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    last = (done.stdout.strip().splitlines() or done.stderr.strip().splitlines() or ["no output"])[-1]
    failed = re.findall(r"^FAILED (\S+)", done.stdout, re.MULTILINE)
    assert done.returncode == 0, f"{last}; {', '.join(failed[:10])}"
    return Finding(last)


def test_checks(device: torch.device, quick: bool) -> list[Check]:
    """A check for every file that holds tests marked `gpu`."""
    paths = [p for p in (ROOT / "tests").rglob("test_*.py") if "mark.gpu" in p.read_text(encoding="utf-8")]
    return [
        Check(str(path.relative_to(ROOT)), functools.partial(tests, path, device)) for path in sorted(paths)
    ]


# Name, heading, seconds of the fifteen minutes, and what makes the checks of a device, quick or not.
SECTIONS = (
    ("device", "what it is", 30, device_checks.device_checks),
    ("methods", "every method trains", 120, device_checks.training_checks),
    ("waits", "no step waits for the device", 60, device_checks.waiting_checks),
    ("numbers", "R as on the CPU", 90, device_checks.number_checks),
    ("steps", "images per second of a step", 270, device_speed.step_checks),
    ("seeds", "several seeds in one process", 60, device_speed.seed_checks),
    ("networks", "networks of train_splits per hour", 75, device_speed.network_checks),
    ("evaluation", "evaluation against the network alone", 45, device_speed.evaluation_checks),
    ("tests", "pytest -m gpu", 180, test_checks),
)


def sections(names: Sequence[str], device: torch.device, quick: bool) -> list[Section]:
    """The sections of these names, all without any, in their order."""
    return [
        Section(name, title, budget, make(device, quick))
        for name, title, budget, make in SECTIONS
        if not names or name in names or name == "device"
    ]


def document(device: torch.device, outcomes: list[Outcome], complete: bool) -> dict[str, object]:
    """What the JSON file holds: the machine, whether all sections are done, and every outcome."""
    return {
        "device": str(device),
        "machine": platform.machine(),
        "versions": versions(),
        "complete": complete,
        "counts": Counter(outcome.status for outcome in outcomes),
        "outcomes": [asdict(outcome) for outcome in outcomes],
    }


def table(chosen: list[Section], outcomes: list[Outcome]) -> str:
    """The outcomes as Markdown: a heading and a table for each section, checks alike in one row."""
    lines = ["# GPU check", "", summary(outcomes)]
    for section in chosen:
        rows = [outcome for outcome in outcomes if outcome.section == section.name]
        if rows:
            lines += [
                "",
                f"## {section.name}: {section.title}",
                "",
                "| check | outcome | |",
                "| --- | --- | --- |",
            ]
            lines += [f"| {names} | {status} | {text} |" for names, status, text in joined(rows)]
    return "\n".join(lines) + "\n"


def joined(rows: list[Outcome]) -> list[tuple[str, str, str]]:
    """(names, status, text) of the outcomes; those with the same status and text are one row."""
    groups: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        text = " ".join(row.text.replace("|", "\\|").split())
        groups.setdefault((row.status, text), []).append(row.name)
    return [(shortened(names), status, text) for (status, text), names in groups.items()]


def shortened(names: list[str], most: int = 60) -> str:
    """The names, at most so many and the number of the others."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return "; ".join(names[:most]) + more


def summary(outcomes: list[Outcome]) -> str:
    """One line: how many checks passed, failed and were skipped."""
    counts = Counter(outcome.status for outcome in outcomes)
    return ", ".join(f"{counts[status]} {status}" for status in (PASSED, FAILED, SKIPPED))


def write(folder: Path, device: torch.device, chosen: list[Section], outcomes: list[Outcome], complete: bool):
    """Write the JSON and the Markdown file into the folder."""
    files.write_text(json.dumps(document(device, outcomes, complete), indent=1), folder / "gpu_check.json")
    files.write_text(table(chosen, outcomes), folder / "gpu_check.md")


def report(outcome: Outcome) -> None:
    """Print what is worth a line while the program runs: failures, and what was measured."""
    if outcome.status == FAILED or (
        outcome.status == PASSED and outcome.numbers.keys() - {"accuracy", "steps"}
    ):
        print(f"  {outcome.status}  {outcome.name}: {outcome.text}", flush=True)


def run(chosen: list[Section], device: torch.device, folder: Path, scale: float) -> list[Outcome]:
    """Run the sections one after the other; files are complete after each."""
    outcomes: list[Outcome] = []
    folder.mkdir(parents=True, exist_ok=True)
    for i, section in enumerate(chosen, 1):
        started, before = time.monotonic(), len(outcomes)
        print(f"{section.name}: {section.title}", flush=True)
        for outcome in run_section(section, section.budget_s * scale):
            outcomes.append(outcome)
            report(outcome)
        print(f"  {summary(outcomes[before:])} in {time.monotonic() - started:.0f} s", flush=True)
        write(folder, device, chosen, outcomes, complete=i == len(chosen))
        if section.name == "device" and outcomes[-1].status == FAILED:
            break  # so would all others
    return outcomes


def parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    listed = "\n".join(f"  {name:<11} {title} ({budget} s)" for name, title, budget, _ in SECTIONS)
    made = CheckedParser(
        prog="scripts/gpu_check.sh",
        description=f"{__doc__}\nsections:\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = [name for name, *_ in SECTIONS]
    made.add_argument("--out", type=Path, default=Path("runs/gpu_check"), metavar="DIR")
    made.add_argument("--device", default="cuda:0", help="cuda:N, or cpu for a trial (default: cuda:0)")
    made.add_argument(
        "--quick", action="store_true", help="tiny sizes: shows that the program works, not speed"
    )
    made.add_argument("--only", nargs="+", default=[], choices=names, metavar="SECTION")
    made.add_argument(
        "--minutes", type=float, default=MINUTES, help="for all sections together (default: 15)"
    )
    return made


def device_called(name: str) -> torch.device:
    """The device; this does not touch CUDA, as `utils.device.choose` does: forks could not use it then."""
    if not re.fullmatch(r"cpu|cuda(:\d{1,3})?", name):
        raise UserError(f"--device {name}: choose cpu, cuda or cuda:N")
    return torch.device("cuda:0" if name == "cuda" else name)


@guarded
def main(argv: list[str] | None = None) -> int:
    """Run the sections; returns 1 where a check failed."""
    args = parser().parse_args(argv)
    check_folder(args.out, "--out")
    if not 0 < args.minutes < math.inf:
        raise UserError(f"--minutes {args.minutes:g}: must be > 0 and finite")
    device = device_called(args.device)
    torch.set_num_threads(1 if args.quick else torch.get_num_threads())
    chosen = sections(args.only, device, args.quick)
    outcomes = run(chosen, device, args.out, args.minutes / MINUTES)
    for status in (SKIPPED, FAILED):
        rows = [outcome for outcome in outcomes if outcome.status == status]
        if rows:
            print(f"{status}:")
            for names, _, text in joined(rows):
                print(f"  {names}: {text}")
    print(f"{summary(outcomes)}; written: {args.out / 'gpu_check.json'} and .md")
    return int(any(outcome.status == FAILED for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
