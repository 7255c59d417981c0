"""Write a new method's skeleton: models/NAME.py and its reference test; the contract tests find it by itself.

    python scripts/new_method.py my_idea                      # a penalty on the weights
    python scripts/new_method.py my_replay --rehearsal        # a memory of past samples
    python -m pytest tests/reference/test_my_replay.py tests/contract -k my_replay
    python main.py --model my_replay --dataset seq-digits --buffer_size 200

The skeleton is a small method that works, with every part there; replace what your paper does otherwise.
Without --rehearsal the weights are pulled to where the last task left them; with it samples of a reservoir
are trained on again beside the stream's.
"""

import sys

from engram.scripts.skeletons import Skeleton
from engram.utils.door import guarded

METHOD = '''"""TITLE: one line for --help, at most 100 characters, that ends with a period.

Source: AUTHORS YEAR, "TITLE OF THE PAPER" (arXiv NUMBER), equations NUMBERS.
Differs from the paper: in nothing.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from engram.backbones.backbone import Backbone
from engram.datasets.benchmark import Task
from engram.models.method import Method, Setup
from engram.utils.config.options import OptionSet, option


@dataclass(frozen=True)
class Options(OptionSet):
    """Flags of TITLE."""

    strength: float = option(1.0, "weight of the penalty; 0 turns the method off", ge=0)


class CLASS(Method):
    """Weights are pulled to where the last task left them: strength / 2 · Σ (θ − θ*)²."""

    # True: end_task is part of the method, so it needs to know where tasks end. The contract tests check that
    # the flags of off_switch make it plain SGD; a sentence instead of flags says why nothing does.
    needs_boundaries = True
    off_switch: ClassVar = {"strength": 0}

    def __init__(self, net: Backbone, options: Options, setup: Setup) -> None:
        super().__init__(net, options, setup)
        self.anchor: dict[str, Tensor] = {}  # parameter name → θ*; all that is set on self is checkpointed

    def penalty(self) -> Tensor | None:
        """Strength / 2 · Σ (θ − θ*)²; None when there is nothing to add: strength 0 is plain SGD."""
        if not self.options.strength or not self.anchor:
            return None
        named = self.trainable()
        distances = [(named[name] - old).square().sum() for name, old in self.anchor.items() if name in named]
        return self.options.strength / 2 * torch.stack(distances).sum()

    def end_task(self, task: Task) -> None:
        """Keep the solution that the task has led to."""
        self.anchor = {name: p.detach().clone() for name, p in self.trainable().items()}
'''

TEST = '''"""NAME against its formula."""

import pytest
import torch

from tests.conftest import tiny_method


def test_penalty_is_the_formula():
    method, _ = tiny_method("NAME", strength=3.0)
    assert method.penalty() is None, "nothing to hold on to before the first task"
    method.end_task(method.setup.benchmark.tasks[0])
    assert method.penalty().item() == 0
    with torch.no_grad():
        for parameter in method.net.parameters():
            parameter.add_(0.5)
    n_weights = sum(parameter.numel() for parameter in method.net.parameters())
    assert method.penalty().item() == pytest.approx(3.0 / 2 * n_weights * 0.25, rel=1e-6)
'''

REHEARSAL_METHOD = '''"""TITLE: one line for --help, at most 100 characters, that ends with a period.

Source: AUTHORS YEAR, "TITLE OF THE PAPER" (arXiv NUMBER), equations NUMBERS.
Differs from the paper: in nothing.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from engram.datasets.benchmark import Batch
from engram.models.rehearsal import RehearsalMethod, ReplayOptions
from engram.utils.config.options import option


@dataclass(frozen=True)
class Options(ReplayOptions):
    """Flags of TITLE; --buffer_size and --minibatch_size come from ReplayOptions."""

    strength: float = option(1.0, "weight of the loss on replayed samples", ge=0)


class CLASS(RehearsalMethod):
    """Cross-entropy on the stream's batch and, weighted, on one drawn from the memory."""

    # The memory, self.buffer, is a uniform reservoir unless make_buffer returns another one. That
    # --buffer_size 0 makes the method plain SGD is said by RehearsalMethod and checked by the contract tests.
    options: Options

    def loss(self, batch: Batch) -> Tensor:
        """CE(stream) + strength · CE(memory); an empty memory adds nothing."""
        replayed = self.replay()  # --minibatch_size samples, augmented as the stream's; None without any
        if replayed is None:
            return super().loss(batch)
        stream_logits, memory_logits = self.separate_passes(batch, replayed)
        stream = F.cross_entropy(self.mask_classes(stream_logits, batch.task_id), batch.y)
        memory = F.cross_entropy(self.mask_classes(memory_logits, replayed.task_id), replayed.y)
        return stream + self.options.strength * memory

    def after_step(self, batch: Batch) -> None:
        """Offer the batch to the memory, once the network has been trained on it."""
        self.remember(batch)
'''

REHEARSAL_TEST = '''"""NAME against a naive transcription: lists of samples, the same draws."""

import torch.nn.functional as F

from tests.reference.naive import FLAGS, LR, Reservoir, columns, trained
from tests.reference.test_mer_baselines import assert_equal_networks, descend


def test_NAME_equals_a_naive_transcription():
    method, twin, steps = trained("NAME", "class-il", strength=0.5, **FLAGS)
    memory = Reservoir(twin.buffer.generator)
    for _, batch in steps:
        loss = F.cross_entropy(twin.net(batch.x), batch.y)
        if memory:
            x, y = columns(memory.draw())
            loss = loss + 0.5 * F.cross_entropy(twin.net(x), y)
        descend(list(twin.net.parameters()), loss, LR)
        memory.offer(zip(batch.x, batch.y, strict=True))
    assert_equal_networks(method.net, twin.net)
'''


def _skeleton(method: str, test: str) -> Skeleton:
    return Skeleton(
        "models",
        {"models/NAME.py": method, "tests/reference/test_NAME.py": test},
        "python -m pytest tests/reference/test_NAME.py tests/contract -k NAME",
    )


SKELETON = _skeleton(METHOD, TEST)
REHEARSAL_SKELETON = _skeleton(REHEARSAL_METHOD, REHEARSAL_TEST)


@guarded
def main(argv: list[str] | None = None) -> int:
    """Write the skeleton that the command line names; returns the exit code."""
    parser = SKELETON.parser(__doc__)
    parser.add_argument("--rehearsal", action="store_true", help="a method with a memory of past samples")
    given = parser.parse_args(argv)
    return (REHEARSAL_SKELETON if given.rehearsal else SKELETON).run(given.name)


if __name__ == "__main__":
    sys.exit(main())
