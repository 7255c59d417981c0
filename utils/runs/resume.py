"""Which configuration and which folder a run has: those of a new run, or those of one that is continued."""

from pathlib import Path
from typing import Any

from engram.utils.config import cli
from engram.utils.config.config import OPERATIONAL, Config, resolve
from engram.utils.runs import changed_files, plugin_copies
from engram.utils.runs.run_dir import RunDir


def find_run(request: cli.Request) -> tuple[Config, RunDir]:
    """The run that --resume names by its folder or its id, with the flags that were given again."""
    run_dir = RunDir.find(str(request.resume), request.overrides.get("output_dir", "runs"))
    stored = run_dir.load_config()
    say_changes(run_dir, stored)
    flags = cli.flags_to_resume(stored, request.overrides)
    return resolve([(str(run_dir.config), flags)]), run_dir


def open_or_create(path: Path, flags: dict[str, Any]) -> tuple[Config, RunDir]:
    """The run in the folder `path`, made with `flags` if it is new.

    Of a run that is there already `flags` change only where and how it is executed.
    """
    run_dir = RunDir.at(path, flags)
    stored = run_dir.load_config() | {name: flags[name] for name in OPERATIONAL if name in flags}
    say_changes(run_dir, stored)
    return resolve([(str(run_dir.config), stored)]), run_dir


def say_changes(run_dir: RunDir, flags: dict[str, Any]) -> None:
    """Say, in the log too, which files of the run have changed; `UserError` for a plugin that is gone."""
    lines = plugin_copies.changes(run_dir.path, flags)
    others = {name: value for name, value in flags.items() if name not in changed_files.OF_PLUGINS}
    for given in changed_files.changed_since(run_dir, others):
        lines.append(f"{given} has changed since the run began; it goes on with the new file")
    for line in lines:
        run_dir.say(f"note: {line}")
