"""What the environment of a process that we start needs, and how many threads one takes."""

import os
import signal
import sys
import tempfile
import threading
import types
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import util

import engram
from engram.utils.config.registry import ROOT

MAX_TMPDIR_BYTES = 60  # multiprocessing adds /pymp-XXXXXXXX/listener-XXXXXXXX


@contextmanager
def child_process_environment() -> Iterator[None]:
    """Processes started inside find `engram`, leave the calling script alone, and ignore Ctrl-C.

    They must import this copy of engram, which PYTHONPATH tells them; engram.py then moves our folder behind
    everybody else's packages. The script that calls us is not for them to run again. Ctrl-C reaches every
    process of a terminal and is for that script alone.
    """
    shorten_socket_paths()
    before = os.environ.get("PYTHONPATH")
    on_main_thread = threading.current_thread() is threading.main_thread()
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN) if on_main_thread else None
    os.environ["PYTHONPATH"] = python_path()
    script, sys.modules["__main__"] = sys.modules["__main__"], types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = script
        if on_main_thread:
            signal.signal(signal.SIGINT, handler)
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


def threads_at_most() -> int:
    """How many threads a process takes that is not told: the cores it may use, or OMP_NUM_THREADS if less."""
    n_cores = len(os.sched_getaffinity(0))
    given = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return min(n_cores, int(given)) if given.isdecimal() and int(given) else n_cores


def shorten_socket_paths() -> None:
    """Let multiprocessing keep its sockets below /tmp when TMPDIR is too long for their 108 characters."""
    here = tempfile.gettempdir()
    if len(os.fsencode(here)) <= MAX_TMPDIR_BYTES:
        return
    short = next((path for path in ("/tmp", "/var/tmp", "/dev/shm") if os.access(path, os.W_OK)), here)
    try:
        tempfile.tempdir = short
        util.get_temp_dir()  # made once for each process and remembered
    finally:
        tempfile.tempdir = here


def python_path() -> str:
    """The PYTHONPATH of a process that is to find this copy of engram; an installed copy needs nothing."""
    ours = [] if engram.is_installed else [str(ROOT)]
    return os.pathsep.join([*ours, *filter(None, [os.environ.get("PYTHONPATH")])])
