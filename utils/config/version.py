"""Version of the project, the commit that is checked out, and whether its code has changed since."""

import subprocess
import tomllib
from importlib import metadata
from typing import NamedTuple

import engram
from engram.utils.config import registry

# What a run imports or reads of the checkout: what changes elsewhere, or comes to lie there, moves no number.
CODE = ("main.py", "engram.py", "backbones", "datasets", "memorization", "models", "utils")


class GitState(NamedTuple):
    """The commit that is checked out, and whether a file of the code differs from it or is new."""

    commit: str | None = None
    dirty: bool | None = None

    def short(self) -> str:
        """The commit's first ten digits, followed by +changes where its code has changed."""
        return shortened(self.commit or "unknown", self.dirty)

    def tags(self) -> dict[str, str]:
        """What a run's tags in MLflow say of it."""
        commit = self.commit or "unknown"
        changes = {} if self.dirty is None else {"git_dirty": str(self.dirty).lower()}
        return {"git": commit, "mlflow.source.git.commit": commit} | changes


def shortened(commit: str, dirty: bool | None) -> str:
    """A commit as tables and --version show it."""
    return commit[:10] + ("+changes" if dirty else "")


def version() -> str:
    """Version of the project, with the git commit where there is one."""
    if engram.is_installed:
        return f"engram {metadata.version('engram')}"
    text = (registry.ROOT / "pyproject.toml").read_text(encoding="utf-8")
    number = tomllib.loads(text)["project"]["version"]
    state = git_state()
    return f"engram {number}" + (f" ({state.short()})" if state.commit else "")


def git_state() -> GitState:
    """What is checked out; empty outside a git checkout and for an installed copy. It takes about 10 ms."""
    if engram.is_installed:  # a repository around it is not the project's
        return GitState()
    # without optional locks: many runs may start at once, and none writes to the index
    command = ["git", "--no-optional-locks", "-C", str(registry.ROOT), "status", "--porcelain=v2", "--branch"]
    command += ["--no-ahead-behind", "--untracked-files=normal", "--", *CODE]
    try:
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        return GitState()
    headers = [line.split() for line in told if line.startswith("# ")]
    commit = next((words[2] for words in headers if words[1] == "branch.oid"), "(initial)")
    return GitState() if commit == "(initial)" else GitState(commit, len(told) > len(headers))
