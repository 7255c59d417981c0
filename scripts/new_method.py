"""Write a new method's skeleton: models/NAME.py and its reference test; the contract tests find it by itself.

    python scripts/new_method.py my_idea
    python -m pytest tests/reference/test_my_idea.py tests/contract -k my_idea
    python main.py --model my_idea --dataset seq-digits

The skeleton is a small method that works (the weights are pulled to where the last task left them), with
every part there; replace what your paper does otherwise. For a method with a memory extend RehearsalMethod
and ReplayOptions instead: models/er.py is the example, and tests/reference/test_er.py its test.
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


SKELETON = Skeleton(
    "models",
    {"models/NAME.py": METHOD, "tests/reference/test_NAME.py": TEST},
    "python -m pytest tests/reference/test_NAME.py tests/contract -k NAME",
)


@guarded
def main(argv: list[str] | None = None) -> int:
    """Write the skeleton that the command line names; returns the exit code."""
    return SKELETON.run(__doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
