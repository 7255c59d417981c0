"""Processes: what the environment of a process that we start needs."""

import os
import signal
import sys
import threading
import types
from collections.abc import Iterator
from contextlib import contextmanager

from engram.utils.config.registry import ROOT


@contextmanager
def child_process_environment() -> Iterator[None]:
    """For what is started inside: it must find our modules; the script that calls us is not for it to run
    again; and Ctrl-C, which reaches every process of a terminal, is for that script alone.
    """
    path = os.environ.get("PYTHONPATH")
    on_main_thread = threading.current_thread() is threading.main_thread()
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN) if on_main_thread else None
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *([path] if path else [])])
    script, sys.modules["__main__"] = sys.modules["__main__"], types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = script
        if on_main_thread:
            signal.signal(signal.SIGINT, handler)
        if path is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = path
