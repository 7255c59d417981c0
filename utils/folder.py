"""Run folder: OUTPUT_DIR/DATASET/MODEL/ID with the resolved config, the log, the checkpoint, the results."""

import secrets
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from utils import checkpoint
from utils.errors import UserError


class RunFolder:
    """The files of one run. Everything in it is written atomically or line by line."""

    def __init__(self, path: Path):
        self.path = path
        self.results, self.config = path / "results.json", path / "config.yaml"

    @property
    def id(self) -> str:
        """Name of the run, unique under its output folder."""
        return self.path.name

    @classmethod
    def create(cls, flags: dict[str, Any]) -> "RunFolder":
        """A new folder holding the resolved configuration; refuses an output folder it cannot write."""
        run_id = time.strftime("%Y%m%d-%H%M%S-") + secrets.token_hex(3)
        path = Path(flags["output_dir"]).expanduser() / flags["dataset"] / flags["model"] / run_id
        try:
            path.mkdir(parents=True)
        except OSError as error:
            raise UserError(f"--output_dir {flags['output_dir']}: cannot be written: {error}") from None
        folder = cls(path)
        folder.save_config(flags)
        return folder

    @classmethod
    def find(cls, run: str, output_dir: str) -> "RunFolder":
        """An existing run by its folder or by its id under `output_dir`."""
        candidates = [Path(run).expanduser(), *Path(output_dir).expanduser().glob(f"*/*/{Path(run).name}")]
        for path in candidates:
            if (path / "config.yaml").is_file():
                return cls(path)
        raise UserError(
            f"--resume {run}: no run folder of that path, and no run of that id under {output_dir}; "
            "a run folder holds config.yaml and checkpoint.pt"
        )

    def save_config(self, flags: dict[str, Any]) -> None:
        """config.yaml; with --config it starts the same run again."""
        checkpoint.write_text(yaml.safe_dump(flags, sort_keys=False), self.config)

    def load_config(self) -> dict[str, Any]:
        """The flags this run was started with."""
        try:
            flags = yaml.safe_load(self.config.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise UserError(f"{self.config}: damaged ({error}); the run cannot be resumed") from None
        if not isinstance(flags, dict):
            raise UserError(f"{self.config}: damaged; the run cannot be resumed")
        return flags

    @property
    def tracking_id(self) -> str | None:
        """Id of the MLflow run that belongs to this folder."""
        path = self.path / "mlflow_run"
        return path.read_text().strip() if path.is_file() else None

    @tracking_id.setter
    def tracking_id(self, run_id: str | None) -> None:
        if run_id:
            checkpoint.write_text(run_id + "\n", self.path / "mlflow_run")

    def say(self, text: str, error: bool = False) -> None:
        """Print, and keep in log.txt."""
        print(text, file=sys.stderr if error else sys.stdout, flush=True)
        with open(self.path / "log.txt", "a", encoding="utf-8") as log:
            log.write(text + "\n")
