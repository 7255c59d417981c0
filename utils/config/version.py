"""Version of the project and the commit that is checked out."""

import subprocess
import tomllib
from importlib import metadata

import engram
from engram.utils.config import registry


def version() -> str:
    """Version of the project, with the git commit where there is one."""
    if engram.is_installed:
        return f"engram {metadata.version('engram')}"
    text = (registry.ROOT / "pyproject.toml").read_text(encoding="utf-8")
    number = tomllib.loads(text)["project"]["version"]
    commit = git_commit()
    return f"engram {number}" + (f" ({commit[:10]})" if commit else "")


def git_commit() -> str | None:
    """The commit that is checked out, None outside a git checkout and for an installed copy."""
    if engram.is_installed:  # a repository around it is not the project's
        return None
    command = ["git", "-C", str(registry.ROOT), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
