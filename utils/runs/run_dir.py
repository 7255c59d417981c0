"""The folder of a run: OUTPUT_DIR/DATASET/MODEL/ID with its resolved config, log, checkpoint and results."""

import fcntl
import glob
import re
import secrets
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from engram.utils import files, yaml_files
from engram.utils.config.outside import label
from engram.utils.credentials import redact
from engram.utils.errors import DiskError, UserError
from engram.utils.runs import plugin_copies
from engram.utils.runs.run_record import FILE_NAME, RunRecord

# What `files` and `checkpoint` write before they rename it. config.yaml is written by who has no claim yet.
TEMPORARY = re.compile(r"(?!config\.yaml).+\.[0-9a-f]{8}\.tmp|(checkpoint|last|task_\d+)\.tmp")
CHECKSUM_LINE = "# written by the program, checksum "  # a comment: with --config the file may be edited
PENDING = "pending"  # in the file that names the MLflow run: something has yet to be sent


class RunDir:
    """The files of one run. Everything in it is written atomically or line by line."""

    def __init__(self, path: Path):
        self.path = path
        self.results, self.config = path / FILE_NAME, path / "config.yaml"
        self.claim: int | None = None  # descriptor of the locked file; a process that inherits it holds it

    @property
    def id(self) -> str:
        """Name of the run, unique under its output folder."""
        return self.path.name

    @classmethod
    def create(cls, flags: dict[str, Any]) -> "RunDir":
        """A new folder holding the resolved configuration; refuses an output folder it cannot write."""
        run_id = time.strftime("%Y%m%d-%H%M%S-") + secrets.token_hex(3)
        return cls.at(
            Path(flags["output_dir"]).expanduser() / label(flags["dataset"]) / label(flags["model"]) / run_id,
            flags,
        )

    @classmethod
    def at(cls, path: Path, flags: dict[str, Any]) -> "RunDir":
        """The folder at `path`: as it is, or new and holding these flags."""
        folder = cls(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
            if not folder.config.exists():
                folder.save_config(flags)
                plugin_copies.write(path, flags)
        except OSError as error:
            raise UserError(f"--output_dir {flags['output_dir']}: cannot be written: {error}") from None
        return folder

    @classmethod
    def find(cls, run: str, output_dir: str) -> "RunDir":
        """An existing run by its folder or by its id under `output_dir`."""
        path = Path(run).expanduser()
        if (path / "config.yaml").is_file():
            return cls(path)
        folders = Path(output_dir).expanduser().glob(f"*/*/{glob.escape(path.name)}")
        of_that_id = [folder for folder in sorted(folders) if (folder / "config.yaml").is_file()]
        if len(of_that_id) == 1:
            return cls(of_that_id[0])
        if of_that_id:
            raise UserError(
                f"--resume {run}: several runs: {', '.join(map(str, of_that_id))}; give one folder"
            )
        raise UserError(
            f"--resume {run}: no run folder of that path, and no run of that id under {output_dir}; "
            "a run folder holds config.yaml and checkpoint.pt"
        )

    def save_config(self, flags: dict[str, Any]) -> None:
        """Write config.yaml, without passwords; with --config it starts the same run again."""
        uri = flags.get("tracking_uri")
        stored = flags | ({"tracking_uri": redact(uri)} if uri else {})
        text = yaml.safe_dump(stored, sort_keys=False)
        files.write_text(f"{text}{CHECKSUM_LINE}{files.checksum(stored)}\n", self.config)

    def load_config(self) -> dict[str, Any]:
        """The flags this run was started with."""
        try:
            flags = yaml_files.read(self.config)
        except yaml_files.YamlFileError as error:
            raise UserError(f"{self.config}: damaged ({error}); the run cannot be resumed") from None
        if not isinstance(flags, dict):
            raise UserError(f"{self.config}: damaged; the run cannot be resumed")
        _, line, checksum = self.config.read_text(encoding="utf-8").partition(CHECKSUM_LINE)
        if line and checksum.strip() != files.checksum(flags):
            raise UserError(
                f"{self.config}: damaged, or edited after the run began (its checksum is another); restore "
                f"it, or start a new run with --config {self.config}"
            )
        return flags

    @property
    def tracking_id(self) -> str | None:
        """Id of the MLflow run that belongs to this folder."""
        words = [word for word in self._tracking() if word != PENDING]
        return words[0] if words else None

    @property
    def ended(self) -> float | None:
        """When results.json was last written, in seconds since 1970; a run that has ended does so last."""
        try:
            return self.results.stat().st_mtime
        except OSError:
            return None

    @property
    def finished(self) -> bool:
        """Whether the run has come to its end, its logging included."""
        try:
            return RunRecord.read(self.path).finished and self.logged
        except UserError:
            return False

    @property
    def logged(self) -> bool:
        """Whether MLflow has all that it is to have: a run killed in the last moment has yet to be sent."""
        return PENDING not in self._tracking()

    @property
    def ended_without_checkpoint(self) -> bool:
        """Whether the run has come to its end and cannot be opened again: it would be trained anew."""
        try:
            return RunRecord.read(self.path).finished and not (self.path / "checkpoint.pt").exists()
        except UserError:
            return False

    def track(self, run_id: str | None, pending: bool) -> None:
        """Remember the MLflow run, if it is known yet, and whether something has yet to be sent to it."""
        words, path = ([run_id] if run_id else []) + ([PENDING] if pending else []), self.path / "mlflow_run"
        if words:
            files.write_text(" ".join(words) + "\n", path)
        elif not path.is_dir():  # somebody else's folder of this name says nothing either
            path.unlink(missing_ok=True)

    def _tracking(self) -> list[str]:
        path = self.path / "mlflow_run"
        return path.read_text(encoding="utf-8", errors="replace").split() if path.is_file() else []

    @contextmanager
    def claimed(self, wait: bool = False) -> Iterator[None]:
        """Nobody else runs in this folder meanwhile; the system ends the claim with the process, or with the
        last process that was given `claim`.

        Half-written files that a killed process has left are removed. A folder in which the results cannot be
        written is refused before anything in it is changed.
        """
        self._check_outputs()
        try:
            lock = open(self.path / "lock", "a")
        except OSError as error:
            raise UserError(f"{self.path}: the run's folder cannot be written: {error.strerror}") from None
        with lock as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                raise UserError(
                    f"{self.path}: another process is running this run, or sends it to MLflow; wait for it"
                ) from None
            except OSError:  # a file system without locks
                pass
            else:
                self._remove_half_written()
            self.claim = file.fileno()
            try:
                yield
            finally:
                self.claim = None

    def _check_outputs(self) -> None:
        try:
            files.replaceable(self.results)
        except DiskError as error:
            raise UserError(f"{error}; remove it, then start or resume the run again") from None
        weights = self.path / "weights"
        if not weights.is_dir() and (weights.exists() or weights.is_symlink()):
            raise UserError(f"{weights}: not a folder, which --savecheck needs there; remove it")

    def check_results(self) -> None:
        """Say that a results.json that cannot be read is made again from the checkpoint.

        Raises `UserError` where there is no checkpoint either: the run would be trained from its start.
        """
        if not self.results.exists():
            return
        try:
            RunRecord.read(self.path)
        except UserError:
            if not (self.path / "checkpoint.pt").exists():
                raise UserError(
                    f"{self.results}: damaged, and there is no checkpoint to make it from again; remove it "
                    "to train the run from its start"
                ) from None
            self.say(f"note:    {self.results} was damaged; it is made again from the checkpoint")

    def _remove_half_written(self) -> None:
        for path in (*self.path.glob("*.tmp"), *self.path.glob("weights/*.tmp")):
            if TEMPORARY.fullmatch(path.name):
                with suppress(OSError):
                    path.unlink()

    def say(self, text: str, error: bool = False) -> None:
        """Print, and keep in log.txt if the disk takes it."""
        print(text, file=sys.stderr if error else sys.stdout, flush=True)
        with suppress(OSError), open(self.path / "log.txt", "a", encoding="utf-8") as log:
            log.write(text + "\n")
