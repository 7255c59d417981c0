"""Weights of networks that come from a library: which are wanted, and files of them read without pickle."""

from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engram.utils.config.options import OptionError
from engram.utils.errors import UserError

SUFFIXES = (".pth", ".pt", ".bin", ".safetensors", ".npz")
WRAPPERS = ("state_dict", "model", "network", "net")  # under which files hold the weights

OURS = ("body.", "head.", "prompts.")  # how names begin in files of --savecheck, those of l2p too


class Weights(NamedTuple):
    """What --pretrained says: `default` or the library's name for weights, or a file; neither is random."""

    name: str | None = None
    file: Path | None = None

    @classmethod
    def given(cls, text: str | None) -> "Weights":
        """What a value of --pretrained stands for."""
        if text and (text.endswith(SUFFIXES) or "/" in text):
            return cls(file=Path(text).expanduser())
        return cls(name=text)

    def refuse_missing(self) -> None:
        """Raise `OptionError` where --pretrained names a file that is absent or of no kind that is read."""
        file = self.file
        if file and file.is_dir():
            raise OptionError(f"--pretrained {file}: is a folder; expected a file of weights in it")
        if file and not file.is_file():
            raise OptionError(f"--pretrained {file}: there is no such file")
        if file and file.suffix not in SUFFIXES:
            raise OptionError(f"--pretrained {file}: expected {', '.join(SUFFIXES)}")

    @property
    def are_random(self) -> bool:
        """Whether the network starts from random weights."""
        return not (self.name or self.file)


class Built(NamedTuple):
    """A library's network without its classifier.

    feature_dim: of its output (N, D). side: of the images it takes, 0 for any.
    """

    body: nn.Module
    feature_dim: int
    side: int


def read_file(file: Path) -> dict[str, Tensor]:
    """Name → tensor of a .safetensors file, or of a .pth file that holds nothing but tensors.

    Raises `UserError` for anything else; code in a pickle is never run.
    """
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file  # comes with timm

            return load_file(file)
        saved = torch.load(file, map_location="cpu", weights_only=True)
    except ModuleNotFoundError:
        raise UserError(
            f"--pretrained {file}: needs the package safetensors: pip install safetensors"
        ) from None
    except Exception as error:  # each library has its own for damaged files
        reason = " ".join(str(error).split())[:90] if file.stat().st_size else "the file is empty"
        raise UserError(f"--pretrained {file}: cannot be read as weights ({reason})") from None
    for wrapper in WRAPPERS:
        if isinstance(saved, dict) and isinstance(saved.get(wrapper), dict):
            saved = saved[wrapper]
    if not isinstance(saved, dict) or not saved or not all(isinstance(v, Tensor) for v in saved.values()):
        raise UserError(f"--pretrained {file}: holds no weights by name")
    if all(name.startswith(OURS) for name in saved):  # a network of `from_library.py`, written by --savecheck
        return {name.removeprefix("body."): v for name, v in saved.items() if name.startswith("body.")}
    return saved


def downloaded(make: Callable[[], nn.Module], name: str) -> nn.Module:
    """The network that `make` returns; a failed download or a file that does not fit is one `UserError`."""
    try:
        return make()
    except (OSError, RuntimeError, EOFError, UnpicklingError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"the weights of {name} could not be loaded ({reason}); without a connection give a file: "
            "--pretrained FILE.safetensors"
        ) from None


def load_into(body: nn.Module, state: dict[str, Tensor], file: Path) -> None:
    """Load a file's weights by name into a network without classifier; what else the file has is left out.

    Raises `UserError` where one of the network's tensors is missing or has another shape: a network that is
    loaded in part looks as if it were trained.
    """
    current = body.state_dict()
    wrong = sorted(name for name in current if name not in state or state[name].shape != current[name].shape)
    wrong = [name for name in wrong if not name.endswith("num_batches_tracked")]
    if wrong:
        raise UserError(
            f"--pretrained {file}: the weights of another network; {len(wrong)} tensors are missing or have "
            f"another shape: {', '.join(wrong[:3])}"
        )
    body.load_state_dict({name: state[name] for name in current if name in state}, strict=False)


def resized_positions(positions: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """(1, P + h·w, D) position embeddings → (1, P + h'·w', D); the P of tokens that are no patch stay.

    Bicubic without antialiasing, as the weights' authors do it; with it a ViT's outputs are off by 0.4.
    """
    n_prefix = positions.shape[1] - old[0] * old[1]
    prefix, grid = positions[:, :n_prefix], positions[:, n_prefix:]
    grid = grid.reshape(1, *old, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, new, mode="bicubic", align_corners=False, antialias=False)
    return torch.cat([prefix, grid.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)
