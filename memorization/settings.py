"""Settings: the flags that the programs of this folder share, and the defaults of each data set.

They are called as main.py's are; the memorization paper's names (`dataset_name`, `model_name`, `momentum`,
`weight_decay`) are understood too, also in settings and score files of before.

Nothing here imports torch, so `--help` is quick.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

from engram.utils.config.flags import flatten
from engram.utils.config.options import SEEDS, OptionError, OptionSet, Pixels, option
from engram.utils.config.stream_options import MAX_SIDE

IMAGES = {"backbone": "resnet18", "n_epochs": 50, "lr": 0.1}
GREY = {"backbone": "mlp", "n_epochs": 30, "lr": 0.02}
# Data set → defaults. Those of images are the memorization paper's.
DATASETS: dict[str, dict[str, Any]] = {
    "digits": GREY, "mnist": GREY, "fmnist": GREY, "cifar10": IMAGES, "cifar100": IMAGES,
    "tinyimagenet": IMAGES, "imagefolder": IMAGES, "arrays": GREY,
}  # fmt: skip
MAX_NETWORKS = 100_000  # of a study
MIN_NETWORKS = 4  # on random subsets: of fewer, no example has two that had it and two that had not
# Flags that the settings of older studies do not name, and what these were made with.
OLDER: dict[str, Any] = {"augment": None}
# When the learning rate is multiplied by 0.1, in parts of the training.
MILESTONES = (0.7, 0.9)


@dataclass(frozen=True)
class DataOptions(OptionSet):
    """Which examples are studied, and where they come from."""

    dataset: str = option(
        "digits", "source of the images", choices=tuple(DATASETS), aliases=("dataset_name",)
    )
    class_range: str | None = option(
        None, "only the classes a to b−1, given as a,b; the network has b outputs"
    )
    dataset_size: float = option(1.0, "share of the training set used (stratified, drawn once)", gt=0, le=1)
    augment: str | None = option(
        None, "of training images: none, by which small networks fit their examples (default: as main.py, "
        "crops and mirror images of colour images)", choices=("none",),
    )  # fmt: skip
    data_dir: str = option("~/.cache/engram", "where data sets lie or are downloaded to")
    image_dir: str | None = option(
        None, "imagefolder: as --image_dir of seq-imagefolder, a folder or a CSV file (default: --data_dir)"
    )
    test_share: float = option(0.2, "imagefolder: share held out if nothing says what is tested", gt=0, lt=1)
    split_seed: int = option(0, "imagefolder: seed of that split", ge=0)
    img_size: int | None = option(None, "imagefolder: bring every image to this side", ge=8, le=MAX_SIDE)
    arrays: str | None = option(None, "arrays: as --arrays of seq-arrays, a .npz file or a folder of .npy")
    array_layout: str = option("auto", "arrays: axes of images", choices=("auto", "nchw", "nhwc"))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dataset == "arrays" and not self.arrays:
            raise OptionError("--dataset arrays: --arrays is missing, a .npz file or a folder of .npy files")


@dataclass(frozen=True)
class NetworkOptions(OptionSet):
    """Which architecture the networks have."""

    backbone: str = option(
        "mlp", "architecture (--backbone NAME --help: its own flags)", aliases=("model_name",)
    )
    model_width: float = option(1.0, "multiplies the channels or units of every layer", gt=0, le=1000)


@dataclass(frozen=True)
class RecipeOptions(OptionSet):
    """How every network is trained: SGD, the rate times 0.1 after 70 and 90 % of the epochs."""

    n_epochs: int = option(50, "passes over a network's examples", ge=1)
    batch_size: int = option(32, "examples per step", ge=1)
    lr: float = option(0.1, "learning rate", gt=0)
    optim_mom: float = option(0.9, "momentum", ge=0, lt=1, aliases=("momentum",))
    optim_wd: float = option(1e-6, "weight decay", ge=0, aliases=("weight_decay",))
    seed: int = option(
        0, "initial weights, orders and augmentations derive from it; the subsets do not", ge=0, lt=SEEDS
    )


@dataclass(frozen=True)
class MachineOptions(OptionSet):
    """On which machine and how; the scores depend on it by rounding alone, which is coarse in bf16."""

    device: str = option("auto", "auto (CUDA when there is one), cpu, cuda, cuda:N or N")
    precision: str = option(
        "auto", "arithmetic of the networks below the head: fp32, tf32 (CUDA), bf16, or auto: tf32 on CUDA, "
        "fp32 on a CPU",
        choices=("auto", "fp32", "tf32", "bf16"),
    )  # fmt: skip
    num_threads: int = option(
        0, "CPU threads of each process; 0: 1 for a fully connected net alone, otherwise the cores, shared, "
        "but no more than OMP_NUM_THREADS",
        ge=0, le=1024,
    )  # fmt: skip
    use_multiprocessing: bool | None = option(
        None, "a process for every GPU, or every CPU core (default: where there are several)"
    )
    num_workers: int = option(
        0, "processes with --use_multiprocessing; 0: one per GPU or core", ge=0, le=1024
    )
    stack: int = option(
        0, "networks trained as one, stacked (dropout: 1); 0: what measures fastest (then kept)",
        ge=0, le=MAX_NETWORKS,
    )  # fmt: skip
    checkpoint_every: float = option(5.0, "minutes of training that a kill may cost", ge=0)


# What may differ between the program that trains networks and those that read them.
OPERATIONAL = {"data_dir", "weights_dir", *(f.name for f in dataclasses.fields(MachineOptions))} - {
    "precision"
}


@dataclass(frozen=True)
class StudyConfig:
    """The options of every program that trains networks or reads them; a program adds its own set."""

    data: DataOptions
    network: NetworkOptions
    recipe: RecipeOptions
    machine: MachineOptions
    architecture: OptionSet  # the flags of the backbone called `network.backbone`

    def flat(self) -> dict[str, Any]:
        """Flag → value, tuples as lists: what is saved and compared."""
        return flatten(getattr(self, field.name) for field in dataclasses.fields(self))

    @property
    def pixels(self) -> Pixels | None:
        """Mean and deviation that pre-trained weights expect; None where the networks start from none."""
        return self.architecture.pixels(self.network.backbone)


def scaled(architecture: OptionSet, width: float) -> OptionSet:
    """A backbone's options with every layer `width` times as wide."""
    if width == 1:
        return architecture
    names = {f.name for f in dataclasses.fields(architecture)}
    changes: dict[str, Any] = {}
    if "width" in names:
        changes["width"] = vars(architecture)["width"] * width
    for name in ("channels", "hidden_sizes"):
        if name in names:
            changes[name] = tuple(max(1, round(size * width)) for size in vars(architecture)[name])
    if changes:
        return dataclasses.replace(architecture, **changes)
    raise OptionError(f"--model_width {width}: this backbone has no width; leave the flag out")
