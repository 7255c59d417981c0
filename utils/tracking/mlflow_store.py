"""Tracking store: which database or server MLflow writes to, and how to share it between processes."""

import fcntl
import hashlib
import logging
import os
import re
import shlex
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from engram.utils import compat
from engram.utils.config.registry import default_dir
from engram.utils.credentials import completed, redact
from engram.utils.errors import UserError

# A dead server must cost seconds, not MLflow's four minutes; nothing is sent to third parties, and the
# last line on stdout stays ours. What the user has set wins.
ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_ARTIFACT_UPLOAD_DOWNLOAD_TIMEOUT": "30",
    "PGCONNECT_TIMEOUT": "10",  # PostgreSQL's own, as the name says
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
CHATTY = ("mlflow", "alembic", "urllib3")
ENGINE_ATTEMPTS = 4  # of opening a database
LOCK_SECONDS = 60
MAX_FOLDER_BYTES = 200  # a file system takes 255
BROWSE = "browse:  "  # begins the printed line that says how to open an experiment
DATABASES = ("sqlite", "postgresql", "mysql", "mssql")


def resolve_uri(flag: str | None) -> str:
    """--tracking_uri, else MLflow's own variable, else the database that `mlflow ui` opens by default.

    Raises `UserError` for one that was stored without its password when the environment does not hold it.
    """
    return completed(_named_uri(flag))


def _named_uri(flag: str | None) -> str:
    return flag or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{default_dir() / 'mlflow.db'}"


def how_to_browse(flag: str | None, page: str = "") -> str:
    """What to type and open to see a page of the store that --tracking_uri `flag` names.

    `mlflow ui` by itself opens the database of the folder that it is typed in.
    """
    uri = _named_uri(flag)
    if uri.startswith(("http://", "https://")):
        return redact(uri).rstrip("/") + page
    here = sqlite_path(uri) == Path.cwd() / "mlflow.db"
    option = "" if here else f" --backend-store-uri {shlex.quote(redact(uri))}"
    return f"mlflow ui{option}   then open http://127.0.0.1:5000{page}"


def is_database(uri: str) -> bool:
    """Whether this process writes to the database itself, without a server in between."""
    return re.split(r"[:+]", uri)[0] in DATABASES


def sqlite_path(uri: str) -> Path | None:
    """The file behind a SQLite URI, None for any other store."""
    name = uri.removeprefix("sqlite:///").split("?")[0]
    return Path(name).absolute() if uri.startswith("sqlite:///") and name not in ("", ":memory:") else None


def artifact_location(uri: str, experiment: str) -> str | None:
    """Folder for an experiment's files, beside the database; a server decides for itself."""
    if not is_database(uri):
        return None
    path = sqlite_path(uri)
    folder = re.sub(r"[^\w-]+", "_", experiment)
    if len(folder.encode()) > MAX_FOLDER_BYTES:
        digest = hashlib.sha256(experiment.encode()).hexdigest()[:12]
        folder = f"{folder.encode()[:MAX_FOLDER_BYTES].decode(errors='ignore')}-{digest}"
    return ((path.parent if path else default_dir()) / "mlruns" / folder).as_uri()


def import_mlflow(uri: str) -> tuple[type[Exception], ...]:
    """Import what logging needs, outside any lock; returns the errors by which a store can fail."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        Path.home()
    except RuntimeError:  # a user without home; MLflow asks for one when it is imported
        os.environ["HOME"] = tempfile.gettempdir()
    try:
        import mlflow.tracking
        from alembic.util import CommandError
        from sqlalchemy.exc import SQLAlchemyError
    except ImportError as error:
        raise UserError(
            f"MLflow cannot be imported ({error}): pip install mlflow, or train without it: --disable_log"
        ) from None
    if is_database(uri):
        compat.limit_database_retries(ENGINE_ATTEMPTS)
    # requests' errors are OSErrors; a database driver that is not installed is an ImportError.
    return (mlflow.exceptions.MlflowException, SQLAlchemyError, CommandError, OSError, ImportError)


def create_database(path: Path) -> None:
    """MLflow's tables, made in another file: creation killed half-way would spoil the database for good."""
    fresh = path.with_name(path.name + ".new")
    fresh.unlink(missing_ok=True)
    compat.create_mlflow_tables(f"sqlite:///{fresh}", (path.parent / "mlruns").as_uri())
    os.replace(fresh, path)


@contextmanager
def exclusive(path: Path | None) -> Iterator[None]:
    """One process at a time in a SQLite store.

    Its own locks are not enough: of two transactions that have read and want to write, SQLite fails
    one at once, whatever the timeout.
    """
    if path is None:
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_name(path.name + ".lock"), "a") as file:
        deadline = time.monotonic() + LOCK_SECONDS
        while not _locked(file):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{file.name} is held by another process for {LOCK_SECONDS} s")
            time.sleep(0.005)
        yield


def _locked(file: IO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


class _Silence:
    """How many threads want the loggers of MLflow silent, and the levels to go back to after the last."""

    def __init__(self) -> None:
        self.lock, self.n = threading.Lock(), 0
        self.levels: dict[str, int] = {}

    def begin(self) -> None:
        with self.lock:
            if not self.n:
                self.levels = {name: logging.getLogger(name).level for name in CHATTY}
            self.n += 1
            for name in CHATTY:
                logging.getLogger(name).setLevel(logging.CRITICAL + 1)

    def end(self) -> None:
        with self.lock:
            self.n -= 1
            for name, level in self.levels.items() if not self.n else ():
                logging.getLogger(name).setLevel(level)


_silence = _Silence()


@contextmanager
def quiet() -> Iterator[None]:
    """Without the log lines of MLflow and what it uses: creation steps, retries, errors that we report."""
    _silence.begin()
    try:
        yield
    finally:
        _silence.end()
