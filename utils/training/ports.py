"""What the trainer drives, as typed Protocols: a stream of tasks and a learner that learns it.

`datasets.benchmark.Benchmark` is a Stream and `models.method.Method` a Learner (tests/unit/test_ports.py);
the trainer imports neither. N samples, C classes of the whole stream, T tasks.
"""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

# What a checkpoint holds of an object: tensors, numbers, text, and dicts and lists of them.
State = dict[str, Any]


class StreamTask(Protocol):
    """One task of a stream."""

    @property
    def id(self) -> int:
        """Position in the stream, from 0."""

    @property
    def classes(self) -> tuple[int, ...]:
        """Labels that occur in the task."""

    @property
    def parts(self) -> tuple[int, ...]:
        """Ids of the tasks whose training samples this one presents; its own alone in a plain stream."""

    @property
    def test_index(self) -> Tensor:
        """(N,) positions of its test samples in the test set."""


class StreamBatch(Protocol):
    """What a learner sees in one step; the trainer itself reads the number of labels only.

    It is built from its fields, in their order.
    """

    @property
    def y(self) -> Tensor:
        """(N,) labels of the samples."""

    def __iter__(self) -> Iterator[Tensor]:
        """The fields, each (N, ...)."""


TaskT = TypeVar("TaskT", bound=StreamTask)
BatchT = TypeVar("BatchT", bound=StreamBatch)
BatchOut = TypeVar("BatchOut", bound=StreamBatch, covariant=True)
# x_raw (N, C, H, W) uint8, y (N,), task_id (N,), index (N,) in the original training or test set
Chunk = tuple[Tensor, Tensor, Tensor, Tensor]


class Normaliser(Protocol):
    """What turns images of the data set into a network's input."""

    def normalise(self, raw: Tensor) -> Tensor:
        """(N, C, H, W) uint8 → float32, without augmentation."""


class Stream(Protocol[TaskT, BatchOut]):
    """A benchmark as the trainer, the evaluation and the recorder see it."""

    name: str
    scenario: str
    device: torch.device
    input_shape: tuple[int, ...]  # of a sample, (C, H, W)
    n_classes: int
    class_names: list[str]
    build_seconds: float  # that reading the data took
    notes: list[str]  # what is said of the data when a run starts
    split_hash: str  # of a split into training and test images that is the user's own, else empty

    @property
    def tasks(self) -> Sequence[TaskT]:
        """The tasks in the order in which they are learned."""

    @property
    def augment(self) -> Normaliser:
        """The augmentation, which also normalises."""

    @property
    def class_masks(self) -> Tensor:
        """(T, C) bool: the classes of each task."""

    @property
    def class_order(self) -> NDArray[np.integer[Any]]:
        """(C,) the source's class that each label stands for."""

    @property
    def transforms(self) -> Mapping[str, Sequence[object]]:
        """What was drawn for the tasks' transforms, by name: angles, permutations."""

    @property
    def on_disk(self) -> str | None:
        """Where the images are, if they are not in memory."""

    def joint(self) -> list[TaskT]:
        """One task that presents the training samples of all."""

    def cumulative(self) -> list[TaskT]:
        """The tasks, each presenting the training samples of all up to its own."""

    def n_steps(self, task: TaskT, batch_size: int) -> int:
        """Steps of one epoch of the task."""

    def train(self, task: TaskT) -> Chunk:
        """The task's training samples, ready to be drawn from."""

    def batches(self, task: TaskT, epoch: int, batch_size: int, start: int = 0) -> Iterator[BatchOut]:
        """The batches of one epoch from step `start` on."""

    def train_chunks(self, n_tasks: int, size: int) -> Iterator[Chunk]:
        """Training samples of the first `n_tasks` tasks, `size` at a time."""

    def test_chunks(self, n_tasks: int, size: int, positions: Tensor | None = None) -> Iterator[Chunk]:
        """Test samples of the first `n_tasks` tasks, `size` at a time; only those at `positions` if given."""


class LearnerSetup(Protocol[TaskT, BatchOut]):
    """What a learner was built from."""

    @property
    def precision(self) -> str:
        """The resolved precision of its network's passes."""

    @property
    def benchmark(self) -> Stream[TaskT, BatchOut]:
        """The stream that is learned."""

    @property
    def scores(self) -> Tensor | None:
        """(N,) given memorization scores of the training samples, NaN where unknown; None without any."""


class Learner(Protocol[TaskT, BatchT]):
    """A continual-learning method as the trainer, the evaluation and the recorder see it."""

    epoch: int  # of the current task, from 0
    optimizer: torch.optim.Optimizer | None  # of the current task

    @property
    def net(self) -> nn.Module:
        """The network that is trained."""

    @property
    def setup(self) -> LearnerSetup[TaskT, BatchT]:
        """What the learner was built from."""

    @property
    def stream(self) -> str:
        """Which tasks it is given: `sequential`, or `joint` or `cumulative` for upper bounds."""

    def takes_steps_in(self, task: TaskT) -> bool:
        """Whether it learns this task from batches; otherwise `end_task` does everything."""

    def enter(self, task: TaskT) -> None:
        """Make `task` the current one; `begin_task` follows unless a checkpoint is resumed."""

    def begin_task(self, task: TaskT) -> None:
        """Prepare for the task, before its optimizer is built."""

    def end_task(self, task: TaskT) -> None:
        """Consolidate what was learned in the task."""

    def trainable(self) -> dict[str, nn.Parameter]:
        """Name → parameter of everything that learns in the current task."""

    def capture(self, n_steps: int) -> str:
        """Compile the network for a run of so many steps; returns what was done, and why."""

    @property
    def eager_step(self) -> str:
        """Why a step cannot be captured as one CUDA graph; empty if it can."""

    def step_form(self) -> Hashable:
        """What the operations of the next step depend on besides the batch's size; None: on too much."""

    def begin_step(self) -> None:
        """Called before each `observe` of a run with `--compile`."""

    def observe(self, batch: BatchT) -> dict[str, Tensor]:
        """Take one training step; returns detached scalars on the device, `loss` among them."""

    def predict(self, x: Tensor, task_id: Tensor) -> Tensor:
        """(N, C) unmasked logits of normalised inputs; the network is in eval mode."""

    def stored_samples(self) -> Mapping[str, Tensor]:
        """Field → (N, ...) tensor of what the memory holds; empty without a memory."""

    def state_dict(self) -> State:
        """The network and everything that the method has to remember, for a checkpoint."""

    def load_state_dict(self, saved: State) -> None:
        """Continue exactly where `saved` was taken."""
