"""Checks that may fail, hang or kill their process: each section runs in processes of its own, with a budget.

A CUDA error leaves a process's device unusable, so what follows a failed check runs in a fresh process. The
processes are forks: the parent never touches the device, which a fork could not share.
"""

import contextlib
import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"
MAX_REASON = 400  # characters of an error that are kept


class SkippedCheck(Exception):  # noqa: N818  it is no error
    """Raised by a check that cannot be made on this machine; its text says why."""


@dataclass(frozen=True)
class Outcome:
    """What a check found: numbers for programs, a line for people, and the reason if it did not pass."""

    section: str
    name: str
    status: str
    text: str = ""
    seconds: float = 0.0
    numbers: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Finding:
    """What a check returns when it passes."""

    text: str
    numbers: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Check:
    """A named function without arguments: it returns a finding, or raises."""

    name: str
    run: Callable[[], Finding]


@dataclass(frozen=True)
class Section:
    """Checks under one heading, in the order of their worth, and the seconds that they may take together."""

    name: str
    title: str
    budget_s: float
    checks: list[Check]


def run_section(section: Section, budget_s: float) -> Iterator[Outcome]:
    """Make the checks of a section; yields an outcome for every one, made or not."""
    deadline, first, remaining = time.monotonic() + budget_s, 0, section.checks
    while remaining:
        if time.monotonic() >= deadline:
            yield from (_not_made(section, check, budget_s) for check in remaining)
            return
        for outcome in _run_in_process(section, remaining, deadline, budget_s):
            first += 1
            yield outcome
        remaining = section.checks[first:]


def _run_in_process(
    section: Section, checks: list[Check], deadline: float, budget_s: float
) -> Iterator[Outcome]:
    """Outcomes of the first of these checks up to one that fails; at least one."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_make_checks, args=(section.name, checks, deadline, sender))
    process.start()
    sender.close()
    n, started = 0, time.monotonic()
    try:
        while n < len(checks):
            if not receiver.poll(max(0.0, deadline - time.monotonic())):
                yield cut_off(section, checks[n], started, budget_s)
                return
            outcome = receiver.recv()
            if outcome is None:
                return
            n, started = n + 1, time.monotonic()
            yield outcome
    except EOFError:
        process.join(10)
        reason = f"its process ended with code {process.exitcode}"
        yield Outcome(section.name, checks[n].name, FAILED, reason, time.monotonic() - started)
    finally:
        _kill(process)


def _kill(process: BaseProcess) -> None:
    """End a process and what it has started, which is in its group."""
    assert process.pid is not None
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()  # it may not have made its group yet
    process.join()


def _make_checks(section: str, checks: list[Check], deadline: float, sender: Connection) -> None:
    """Send the outcome of each check, then None; ends after a failure or when the time is over."""
    os.setpgrp()
    for check in checks:
        outcome = make(section, check)
        sender.send(outcome)
        if outcome.status == FAILED or time.monotonic() >= deadline:
            break
    sender.send(None)


def make(section: str, check: Check) -> Outcome:
    """The outcome of one check; an optional package that is missing is a reason to skip it."""
    started = time.monotonic()
    try:
        finding = check.run()
        status, text, numbers = PASSED, finding.text, finding.numbers
    except SkippedCheck as reason:
        status, text, numbers = SKIPPED, str(reason), {}
    except ModuleNotFoundError as error:
        ours = (error.name or "").startswith("engram")
        status, text, numbers = FAILED if ours else SKIPPED, f"needs {error.name}", {}
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        line = f"{frame.filename.rpartition('/')[2]}:{frame.lineno}"
        message = " ".join(f"{type(error).__name__}: {error}".split())[:MAX_REASON]
        status, text, numbers = FAILED, f"{message} ({line})", {}
    return Outcome(section, check.name, status, text, time.monotonic() - started, numbers)


def _not_made(section: Section, check: Check, budget_s: float) -> Outcome:
    return Outcome(section.name, check.name, SKIPPED, f"the section's {budget_s:.0f} s were over")


def cut_off(section: Section, check: Check, started: float, budget_s: float) -> Outcome:
    """A check that the section's end interrupts: it hangs if it had all the time, else it came too late."""
    seconds = time.monotonic() - started
    hangs = seconds >= budget_s / 2
    text = f"not done after {seconds:.0f} s, when the section's {budget_s:.0f} s were over"
    return Outcome(section.name, check.name, FAILED if hangs else SKIPPED, text, seconds)
