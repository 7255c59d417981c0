"""Garbage collection where it only costs time: while torch is imported, and when the process ends.

Importing torch makes some hundred thousand objects that stay; Python's collector walks through them again and
again (a tenth of the import), and once more at the end of the process, when the system takes all memory back.
"""

import atexit
import gc
from collections.abc import Iterator
from contextlib import contextmanager

atexit.register(gc.freeze)  # what is alive at the end is not looked through


@contextmanager
def paused() -> Iterator[None]:
    """Inside, reference cycles are not collected."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
