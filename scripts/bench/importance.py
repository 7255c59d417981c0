"""Speed of exact importances, as ratios to one backward pass per sample, taken in one process.

    python scripts/bench/importance.py                 all parts (about five minutes)
    python scripts/bench/importance.py resnet-mas      one part: mlp-mas mlp-fisher resnet-mas resnet-fisher
    python scripts/bench/importance.py --threads 2     CPU threads (default: 1)

Networks: the MLP 784-100-100-10 on 28x28 images, ResNet-18 on 32x32 colour images. Quantities: MAS's
squared norm of the outputs (one gradient per sample) and EWC's exact Fisher (one per label: ten). Rounds
alternate between the sides; with one thread processor time counts, so that other programs on the machine
hardly do, with more the clock. In double precision both sides must agree to 1e-9 of each
tensor's largest importance. Images are random: their content does not change the time. Printed per
1,000 samples, with the bytes of the largest tensors that each side holds beside network and result.
"""

import argparse
import copy
import statistics
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from engram.backbones import resnet
from engram.backbones.heads import SharedHead
from engram.backbones.mlp import MLP
from engram.models.parts import importance, layers
from engram.models.parts.fisher import log_probabilities
from engram.models.parts.norms import squared_norm
from engram.scripts.bench.timing import Names, cpu_name
from engram.utils.config.flags import CheckedParser, check_bounds
from engram.utils.door import guarded

ROUNDS = 3


class Part(NamedTuple):
    """A network, a quantity, and how many samples each side takes in a round."""

    network: str
    quantity: str
    ours: int
    theirs: int


PARTS = {
    "mlp-mas": Part("mlp", "mas", 1000, 100),
    "mlp-fisher": Part("mlp", "fisher", 1000, 20),
    "resnet-mas": Part("resnet", "mas", 16, 6),
    "resnet-fisher": Part("resnet", "fisher", 8, 1),
}
QUANTITIES = {"mas": (squared_norm, 1), "fisher": (log_probabilities, 2)}
NAMES = {
    "mlp": "MLP, 28x28",
    "resnet": "ResNet-18, 32x32",
    "mas": "MAS",
    "fisher": "exact Fisher of 10 labels",
}


def build(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    """A network in eval mode and the shape of its images."""
    torch.manual_seed(0)
    if name == "mlp":
        return MLP(784, (100, 100)).attach(SharedHead(100, 10)).eval(), (1, 28, 28)
    net = resnet.build(resnet.Options(), (3, 32, 32), "resnet18")
    net = net.attach(SharedHead(net.feature_dim, 10)).eval()
    return net.to(memory_format=torch.channels_last), (3, 32, 32)  # as runs have it


def ours(totals: dict[str, Tensor], net: nn.Module, x: Tensor, quantities, power: int) -> None:
    """Add up the importances of `x` as methods do it, in chunks."""
    task_id = torch.zeros(len(x), dtype=torch.long)
    size = importance.chunk_size(net, totals, x[:1], task_id[:1])
    for images, ids in zip(x.split(size), task_id.split(size), strict=True):
        importance.accumulate(totals, net, images, ids, quantities, power)


def theirs(totals: dict[str, Tensor], net: nn.Module, x: Tensor, quantities, power: int) -> None:
    """One backward pass per sample and quantity, as public code does it."""
    for sample in x.split(1):
        values, weights = quantities(net(sample))
        for k, weight in enumerate(weights[0].detach()):
            net.zero_grad()
            values[0, k].backward(retain_graph=k + 1 < len(weights[0]))
            for name, p in net.named_parameters():
                totals[name] += weight * layers.magnitude(p.grad, power)


def timed(work: Callable, clock: Callable[[], float], net: nn.Module, x: Tensor, *how) -> tuple[float, dict]:
    """Seconds per 1,000 samples, and the sums."""
    totals = {name: torch.zeros_like(p) for name, p in net.named_parameters()}
    started = clock()
    work(totals, net, x, *how)
    return 1000 * (clock() - started) / len(x), totals


def measure(name: str, clock: Callable[[], float]) -> str:
    """Measure one part; returns its line."""
    case = PARTS[name]
    net, shape = build(case.network)
    how = QUANTITIES[case.quantity]
    x = torch.randn(case.ours, *shape)
    check(net, x[:2], how)
    rounds = [
        (timed(theirs, clock, net, x[: case.theirs], *how)[0], timed(ours, clock, net, x, *how)[0])
        for _ in range(ROUNDS)
    ]
    ratio = statistics.median(slow / fast for slow, fast in rounds)
    slow, fast = (statistics.median(side) for side in zip(*rounds, strict=True))
    return (
        f"{NAMES[case.network]}, {NAMES[case.quantity]}: one backward per sample / ours = {ratio:.1f}  "
        f"(1,000 samples: {slow:.2f} s, {fast:.2f} s; {held(net, x)})"
    )


def check(net: nn.Module, x: Tensor, how: tuple) -> None:
    """Stop if the two sides differ; in double precision, where no rounding switches a unit on or off."""
    net, x = copy.deepcopy(net).double(), x.double()
    (_, measured), (_, expected) = (timed(side, time.perf_counter, net, x, *how) for side in (ours, theirs))
    for name, value in expected.items():
        if (measured[name] - value).abs().max() > 1e-9 * value.max():
            sys.exit(f"error: the two sides differ in {name}")


def held(net: nn.Module, x: Tensor) -> str:
    """`held beside the result: 45 MB, 52 MB`: gradients of a sample; activations and patches of a chunk."""
    totals = dict(net.named_parameters())
    task_id = torch.zeros(1, dtype=torch.long)
    floats = layers.floats_per_sample(net, totals, x[:1], task_id)
    chunk = min(len(x), importance.chunk_size(net, totals, x[:1], task_id))
    sizes = 4 * sum(p.numel() for p in totals.values()), 4 * (floats * chunk + layers.BLOCK_FLOATS["cpu"])
    return "held beside the result: " + ", ".join(f"{size / 1e6:.1f} MB" for size in sizes)


@guarded
def main(argv: list[str] | None = None) -> None:
    """Print the machine and a line for every part asked for."""
    parser = CheckedParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "parts",
        nargs="*",
        choices=Names(PARTS),
        metavar="PART",
        help=f"of {', '.join(PARTS)}",
    )
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    given = parser.parse_args(argv)
    check_bounds(given, threads=(1, 1024))
    torch.set_num_threads(given.threads)
    clock = time.process_time if given.threads == 1 else time.perf_counter
    print(f"{cpu_name()}, {given.threads} thread(s), torch {torch.__version__}")
    for name in given.parts or PARTS:
        print(measure(name, clock), flush=True)


if __name__ == "__main__":
    sys.exit(main())
