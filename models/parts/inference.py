"""Inference: a network in eval mode, and the classes that a sample may be given."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from engram.datasets.benchmark import Benchmark


@contextmanager
def evaluating(net: nn.Module) -> Iterator[None]:
    """Inside the network is in eval mode, afterwards in the mode it was in before."""
    was_training = net.training
    net.eval()
    try:
        yield
    finally:
        net.train(was_training)


def head_mask(net: nn.Module, benchmark: Benchmark) -> Tensor | None:
    """(T, C) bool, the classes of each task's own head; None where tasks share a head or its classes."""
    separate = benchmark.scenario == "task-il" and not getattr(net.head, "n_shared", 0)
    return benchmark.class_masks if separate else None
