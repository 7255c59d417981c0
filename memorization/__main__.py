"""The programs of this folder, a line each: python -m memorization."""

import importlib
import sys

from engram.memorization import cli
from engram.utils.door import guarded

PROGRAMS = (
    "train_splits", "eval_splits", "train_whole", "train_proxies", "train_stream", "correlate", "plots",
    "intervention",
)  # fmt: skip
PARTS = {
    "leave_one_out": "train_whole", "agreement": "correlate", "galleries": "plots",
    "matched_forgetting": "scripts.studies.stream_forgetting",
}  # fmt: skip


@guarded
def main() -> None:
    """Print what every program does, and which one uses files that are named as if they were programs."""
    print(f"usage: python -m {cli.package()}.PROGRAM --help\n")
    for name in PROGRAMS:
        module = importlib.import_module(f"engram.memorization.{name}")
        print(f"{name:<14}{str(module.__doc__).splitlines()[0]}")
    parts = ", ".join(f"{part} of {program}" for part, program in PARTS.items())
    print(f"\nThe other files are parts of programs: {parts}.")


if __name__ == "__main__":
    sys.exit(main())
