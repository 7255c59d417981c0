"""Inference: a network in eval mode, and the classes that a sample may be given."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from engram.datasets.benchmark import Benchmark, Task


@contextmanager
def evaluating(net: nn.Module) -> Iterator[None]:
    """Inside the network is in eval mode, afterwards in the mode it was in before."""
    was_training = net.training
    net.eval()
    try:
        yield
    finally:
        net.train(was_training)


def allowed_classes(net: nn.Module, benchmark: Benchmark, current: Task) -> Tensor | None:
    """(T, C) bool, the classes that compete in the training softmax for a sample of each task; None for all.

    With a head per task they are the classes of the sample's own head. In class-IL `--train_classes` chooses:
    `seen` are those of the tasks up to the `current` one, `task` those of the sample's own task.
    """
    separate = benchmark.scenario == "task-il" and not getattr(net.head, "n_shared", 0)
    if separate or benchmark.train_classes == "task":
        return benchmark.class_masks
    if benchmark.train_classes == "seen":
        return benchmark.class_masks[: current.id + 1].any(0).expand_as(benchmark.class_masks)
    return None
