"""Copies of a run's plugins from outside, in its folder: what it began with, and whether that has changed.

RUN/plugins/model.py is the file that --model named when the run began, and so for dataset and backbone.
"""

from pathlib import Path
from typing import Any

from engram.utils import files
from engram.utils.config import registry
from engram.utils.config.config import PLUGINS
from engram.utils.errors import UserError

FOLDER = "plugins"


def write(run_folder: Path, flags: dict[str, Any]) -> None:
    """Keep the source of every plugin from outside that these flags name."""
    for kind, (flag, _) in PLUGINS.items():
        source = registry.source_from_outside(kind, flags[flag]) if flag in flags else None
        if source is not None:
            (run_folder / FOLDER).mkdir(exist_ok=True)
            files.write_text(source.decode("utf-8"), run_folder / FOLDER / f"{flag}.py")


def changes(run_folder: Path, flags: dict[str, Any]) -> list[str]:
    """One line for each plugin of the run that is not what it was; `UserError` for one that is gone."""
    lines = []
    for kind, (flag, _) in PLUGINS.items():
        copy = run_folder / FOLDER / f"{flag}.py"
        if not copy.is_file():
            continue
        try:
            source = registry.source_from_outside(kind, flags[flag])
        except UserError as error:
            raise UserError(f"--{flag} of the run is gone: {error}; put it back (a copy is {copy})") from None
        if source is None:
            raise UserError(f"--{flag} {flags[flag]} of the run is gone; install it again (a copy is {copy})")
        if source.decode("utf-8") != copy.read_text(encoding="utf-8"):
            lines.append(
                f"{flags[flag]} has changed since the run began; it goes on with the new file ({copy})"
            )
    return lines
