"""Run key: what identifies a run, its resolved configuration, and the command line that gives it."""

import hashlib
import json
import shlex
from typing import Any

from engram.utils.config.config import OPERATIONAL

# These name a run and do not change what it computes; OPERATIONAL ones say where and how it runs.
NAMES = {"experiment_name", "run_name"}
# Flags that say where and how a run ran and what it is called; runs of one setting may differ in them.
INCIDENTAL = OPERATIONAL | NAMES | {"seed"}


def run_key(flags: dict[str, Any]) -> str:
    """Twelve digits that stand for what a resolved configuration computes."""
    computed = {k: v for k, v in flags.items() if k not in OPERATIONAL | NAMES}
    return hashlib.sha256(json.dumps(computed, sort_keys=True).encode()).hexdigest()[:12]


def computed_flags(flags: dict[str, Any], scenario: str) -> dict[str, Any]:
    """The flags that say what a run computes, without the seed; the scenario is the one it had.

    Where steps are counted (--n_iters), --n_epochs is None: it counts for nothing.
    """
    computed = {k: v for k, v in flags.items() if k not in INCIDENTAL} | {"scenario": scenario}
    return computed | ({"n_epochs": None} if flags.get("n_iters") else {})


def command_line_of(flags: dict[str, Any]) -> str:
    """A command that runs this resolved configuration: every flag written out, so that no default counts."""
    computed = {k: v for k, v in flags.items() if k not in OPERATIONAL | NAMES}
    return " ".join(["python main.py", *map(shlex.quote, arguments(computed))])


def arguments(flags: dict[str, Any]) -> list[str]:
    """Words of a command line; None stands for a flag that is not given."""
    return [_argument(name, value) for name, value in flags.items() if value is not None]


def _argument(name: str, value: Any) -> str:
    if isinstance(value, bool):
        value = int(value)
    return f"--{name}={','.join(map(str, value)) if isinstance(value, list | tuple) else value}"
