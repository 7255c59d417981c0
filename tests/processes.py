"""Processes that tests start, as Linux tells of them."""

from pathlib import Path

from tests.waiting import wait_until


def descendants(pid: int) -> list[int]:
    """Processes below this one, from Linux's process table."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [found for child in children for found in (int(child), *descendants(int(child)))]


def alive(pid: int) -> bool:
    """Whether it runs; one that ended and that nobody waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def command_line(pid: int) -> str:
    """What it was started with; empty when it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def wait_for_end(pids: list[int]) -> None:
    """Until all of them have ended; fails when they do not."""
    wait_until(lambda: not any(map(alive, pids)), what=f"some of the processes {pids} live on")
