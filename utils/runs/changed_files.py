"""Files that a run was given, such as scores, weights or samples to leave out, and whether they have changed.

A run is known by its flags, so by the names of its files: one with another content is not another run.
"""

from pathlib import Path
from typing import Any

from engram.utils.config.config import PLUGINS
from engram.utils.runs.run_dir import RunDir

OF_PLUGINS = {flag for flag, _ in PLUGINS.values()}


def changed_since(run_dir: RunDir, flags: dict[str, Any]) -> list[str]:
    """The flags, such as `--exclude out.npz`, whose files were written after the run began.

    Folders do not count. Times are those of the file system; config.yaml is written once, at the beginning.
    """
    try:
        began = run_dir.config.stat().st_mtime_ns
    except OSError:  # the run has no folder yet
        return []
    named = {name: value for name, value in flags.items() if isinstance(value, str)}
    return [f"--{name} {value}" for name, value in named.items() if (_written(value) or 0) > began]


def _written(name: str) -> int | None:
    """When the file of that name was last written, in ns since 1970; None where there is none."""
    path = Path(name).expanduser()
    try:
        return path.stat().st_mtime_ns if path.is_file() else None
    except (OSError, ValueError):  # a flag that is no file's name
        return None
