"""Store: the folder of a study's trained networks. Every file is written whole or not at all.

settings.json           what the networks are and how they were trained
networks/0007.pt        the network of repeat 7: {"repeat": 7, "net": weights by name}
checkpoints/0003.pt     the networks that job 3 is training
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from engram.memorization.cli import SETTINGS, saved_settings
from engram.memorization.settings import OPERATIONAL, StudyConfig
from engram.utils import checkpoint, files, precision
from engram.utils import device as devices
from engram.utils.errors import UserError


class NetworkStore:
    """The paths of a study's files, and reading and writing of settings and networks."""

    def __init__(self, folder: str):
        self.folder = Path(folder).expanduser()

    def settings(self) -> dict[str, Any]:
        """What the networks were made with; empty for a new folder."""
        settings = saved_settings(str(self.folder))
        stack = settings.get("stack")
        if settings and (isinstance(stack, bool) or not isinstance(stack, int) or stack < 1):
            raise UserError(f"{self.folder / SETTINGS}: damaged, or of another program; use a new folder")
        return settings

    def claim(self, config: StudyConfig, *also_operational: str, stack: int) -> dict[str, Any]:
        """Write the settings of a new study and return them.

        also_operational: flags of this program that may differ when it is called again. stack: networks
        trained as one, which stays as it was first measured, since rounding depends on it. What --precision
        means on the device is kept beside it as `computed_in`.
        """
        operational = OPERATIONAL | set(also_operational)
        settings = {name: value for name, value in config.flat().items() if name not in operational}
        computed_in = precision.resolve(config.machine.precision, devices.choose(config.machine.device))
        settings |= {"stack": stack, "computed_in": computed_in}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            document = settings | {files.CHECKSUM: files.checksum(settings)}
            files.write_text(json.dumps(document, indent=1) + "\n", self.folder / SETTINGS)
        except OSError as error:
            raise UserError(f"--weights_dir {self.folder}: cannot be written: {error}") from None
        return settings

    def result(self, kind: str, number: int) -> Path:
        """The path of a numbered file in the subfolder `kind`."""
        return self.folder / kind / f"{number:04d}.pt"

    def holds(self, kind: str, number: int) -> bool:
        """Whether that file is there. A link that leads nowhere is, so that nothing is trained over it."""
        return os.path.lexists(self.result(kind, number))

    def path(self, repeat: int) -> Path:
        """The path of a repeat's network."""
        return self.result("networks", repeat)

    def checkpoint(self, job: int) -> Path:
        """The path at which a job saves the networks that it is training."""
        return self.result("checkpoints", job)

    def discard_checkpoints(self, is_finished: Callable[[int], bool]) -> None:
        """Remove the checkpoints of jobs whose results are all there: a kill just before that leaves one."""
        for path in self.checkpoint(0).parent.glob("*.pt"):
            if is_finished(int(path.stem)):
                path.unlink()

    def missing(self, n: int) -> list[int]:
        """Those of the first `n` repeats that have no network yet."""
        return [repeat for repeat in range(n) if not self.holds("networks", repeat)]

    def present(self) -> list[int]:
        """The repeats that have a network, ascending."""
        return sorted(int(path.stem) for path in self.folder.glob("networks/*.pt"))

    def save(self, repeat: int, weights: dict[str, Tensor]) -> None:
        """Write the weights of a trained network."""
        checkpoint.write({"repeat": repeat, "net": weights}, self.path(repeat))

    def load(self, repeat: int) -> dict[str, Tensor]:
        """The weights of a trained network by name, on the CPU."""
        path = self.path(repeat)
        content = checkpoint.read(path)
        if content.get("repeat") != repeat or not isinstance(content.get("net"), dict):
            raise UserError(f"{path}: not the network of repeat {repeat}; remove it and train it again")
        weights: dict[str, Tensor] = content["net"]
        return weights
