"""Store: the folder of a study's trained networks. Every file is written whole or not at all.

settings.json           what the networks are and how they were trained
networks/0007.pt        the network of repeat 7: {"repeat": 7, "net": weights by name}
checkpoints/0003.pt     the cohort that job 3 is training
"""

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from engram.memorization import cli
from engram.memorization.cli import Options
from engram.memorization.settings import OPERATIONAL
from engram.utils import checkpoint, files
from engram.utils.errors import UserError


class Store:
    """Paths, and reading and writing what lies there."""

    def __init__(self, folder: str):
        self.folder = Path(folder).expanduser()

    def settings(self) -> dict[str, Any]:
        """What the folder was made with; empty for a new one."""
        return cli.saved_settings(str(self.folder))

    def claim(self, options: Options, *also_operational: str, **measured: Any) -> dict[str, Any]:
        """Write the settings into a new folder; of an old one, what was `measured` then stays in force."""
        known = self.settings()
        if not known:
            flat = options.flat().items()
            known = {k: v for k, v in flat if k not in OPERATIONAL | set(also_operational)} | measured
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                files.write_text(json.dumps(known, indent=1) + "\n", self.folder / cli.SETTINGS)
            except OSError as error:
                raise UserError(f"--weights_dir {self.folder}: cannot be written: {error}") from None
        return known

    def result(self, kind: str, number: int) -> Path:
        """Of the numbered file of a kind."""
        return self.folder / kind / f"{number:04d}.pt"

    def path(self, repeat: int) -> Path:
        """Of a network."""
        return self.result("networks", repeat)

    def missing(self, n: int) -> list[int]:
        """Which of the first `n` repeats have no network yet."""
        return [repeat for repeat in range(n) if not self.path(repeat).exists()]

    def present(self) -> list[int]:
        """Which repeats have a network."""
        return sorted(int(path.stem) for path in self.folder.glob("networks/*.pt"))

    def save(self, repeat: int, weights: dict[str, Tensor]) -> None:
        """Put a trained network there."""
        checkpoint.write({"repeat": repeat, "net": weights}, self.path(repeat))

    def load(self, repeat: int) -> dict[str, Tensor]:
        """A network's weights, on the CPU."""
        return checkpoint.read(self.path(repeat))["net"]

    def checkpoint(self, job: int) -> Path:
        """Of the cohort that a job trains."""
        return self.result("checkpoints", job)
