"""Teacher: a frozen copy of the network as the last task left it, and what it says of the current task."""

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engram.backbones.heads import TaskHeads
from engram.datasets.benchmark import Batch, Benchmark, Task

CHUNK = 500  # images per forward pass when answers are made in advance


def frozen_copy(net: nn.Module) -> nn.Module:
    """A copy of the network in eval mode that learns nothing."""
    return copy.deepcopy(net).eval().requires_grad_(False)


def share_frozen(net: nn.Module, copied: nn.Module) -> None:
    """Let a copy use the parameters that rest in `net` themselves: memory and checkpoints hold them once."""
    of_copy = dict(copied.named_parameters())
    for name, parameter in net.named_parameters():
        if name in of_copy and not parameter.requires_grad:
            of_copy[name].data = parameter.data


class Teacher:
    """A copy of a network in eval mode that never learns."""

    def __init__(self, net: nn.Module):
        self.net = frozen_copy(net)

    def update(self, net: nn.Module) -> None:
        """Become what the network is now."""
        self.net.load_state_dict(net.state_dict())

    def state_dict(self) -> dict:
        """The parameters and statistics of the copy."""
        return self.net.state_dict()

    def load_state_dict(self, state: dict) -> None:
        """Continue where `state` was taken."""
        self.net.load_state_dict(state)


class Answers:
    """What a frozen function says of a task's images: (N, C, H, W) normalised images → (N, K).

    Where augmentation draws nothing an image is the same in every epoch, so the answers are made once
    per task, at the first question, and looked up from then on.
    """

    def __init__(self, benchmark: Benchmark, function: Callable[[Tensor], Tensor]):
        self.benchmark, self.function = benchmark, function
        self.row: Tensor | None = None  # position in the training set → row of the table
        self.table: Tensor | None = None

    def reset(self) -> None:
        """A new task begins, or the function has changed."""
        self.row = self.table = None

    @torch.no_grad()
    def of(self, task: Task, batch: Batch) -> Tensor:
        """(N, K) answers for the batch."""
        if self.benchmark.augment.draws:
            return self.function(batch.x)
        if self.table is None:
            samples, normalise = self.benchmark.train(task), self.benchmark.augment.normalise
            self.table = torch.cat([self.function(normalise(raw)) for raw in samples.x_raw.split(CHUNK)])
            self.row = torch.zeros(self.benchmark.n_train, dtype=torch.long, device=batch.y.device)
            self.row[samples.index] = torch.arange(len(samples.y), device=batch.y.device)
        return self.table.index_select(0, self.row[batch.index])

    def state_dict(self) -> dict:
        """Nothing: what is looked up can be made again."""
        return {}

    def load_state_dict(self, state: dict) -> None:
        """Forget all answers: they are made again when asked for."""
        self.reset()


def old_outputs(head: nn.Module, features: Tensor, benchmark: Benchmark, n_old: int) -> list[Tensor]:
    """Logits (N, C_t) for each of the first `n_old` tasks; where tasks share all classes, one for all.

    features: (N, D). With a head per task those of the task's own head.
    """
    if isinstance(head, TaskHeads):
        return [task_head(features) for task_head in head.heads[:n_old]]
    logits, slices = head(features), [columns(task) for task in benchmark.tasks[:n_old]]
    if slices and slices[0] == slice(0, benchmark.n_classes):
        return [logits]
    return [logits[:, classes] for classes in slices]


def columns(task: Task) -> slice:
    """Where the task's classes lie among all: a slice, so that no index travels to the device."""
    first, end = task.classes[0], task.classes[-1] + 1
    assert tuple(range(first, end)) == task.classes, "labels of a task follow one another"
    return slice(first, end)


def distillation(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Scalar −mean_n Σ_c q_nc log p_nc of (N, C) logits, p and q their softmax at a temperature.

    The student may have more classes, which then come last: the teacher's q of those is 0. Li & Hoiem 2017
    (LwF, arXiv 1606.09282), eq. 2-3; not multiplied by the temperature squared.
    """
    p, n_classes = F.log_softmax(student / temperature, 1), teacher.shape[1]
    p = p if p.shape[1] == n_classes else p[:, :n_classes]  # taking all takes a kernel and two more backward
    return -(F.softmax(teacher / temperature, 1) * p).sum(1).mean()
