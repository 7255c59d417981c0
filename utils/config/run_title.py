"""Run title: the name by which a person tells a run from others."""

from typing import Any

from engram.utils.config.config import OPERATIONAL, resolve
from engram.utils.config.consistency import MAX_NAME
from engram.utils.config.outside import label
from engram.utils.config.run_key import NAMES
from engram.utils.errors import UserError

APART = {"model", "dataset", "seed"}  # these stand in every title


def run_title(flags: dict[str, Any]) -> str:
    """`er seq-digits, buffer_size 50, seed 0`: method, benchmark, what differs from the defaults, seed."""
    differing = [f"{name} {_text(value)}" for name, value in _not_default(flags).items()]
    head, tail = f"{label(flags['model'])} {label(flags['dataset'])}", f", seed {flags['seed']}"
    middle = "".join(f", {text}" for text in differing)
    room = MAX_NAME - len(head) - len(tail)
    return head + (middle if len(middle) <= room else f"{middle[: room - 1]}…") + tail


def _not_default(flags: dict[str, Any]) -> dict[str, Any]:
    """The flags that change what is computed and have another value than if they were not given."""
    try:
        defaults = resolve([("title", {"model": flags["model"], "dataset": flags["dataset"]})]).flat()
    except UserError:  # of another version of this program
        return {}
    return {
        name: value
        for name, value in flags.items()
        if name not in OPERATIONAL | NAMES | APART and name in defaults and value != defaults[name]
    }


def _text(value: Any) -> str:
    values = value if isinstance(value, list | tuple) else (value,)
    return ",".join(str(item).removesuffix(".0") for item in values)
