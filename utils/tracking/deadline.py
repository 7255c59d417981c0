"""Deadline for calls into other packages that may wait for a server or a database for ever."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

Value = TypeVar("Value")


def within(seconds: float, work: Callable[[], Value]) -> Value:
    """What `work` returns or raises; `TimeoutError` when it has not come to an end after so many seconds.

    Nothing can stop a call that waits: it goes on in its thread, which ends with this process.
    """
    outcome: Future[Value] = Future()

    def carry_out() -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:  # raised again by `result`
            outcome.set_exception(error)

    threading.Thread(target=carry_out, name="with a deadline", daemon=True).start()
    try:
        return outcome.result(seconds)
    except TimeoutError:
        if outcome.done():  # the work's own
            raise
        raise TimeoutError(f"no answer for {seconds:g} s") from None
