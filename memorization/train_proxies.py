"""Train a few networks on everything and write what every proxy of memorization says of each example.

    python -m memorization.train_proxies --dataset digits --out_filename runs/mem/proxies.npz

The file holds `names` (P,), `proxies` (P, n) (higher: more memorized; the mean over networks), `cost`
(P,) in seconds per 1,000 examples (of proxies that watch training: per 1,000 examples and epoch) and what
ties it to the data set. EL2N and GraNd are also taken early, as their paper does.
"""

import sys
from dataclasses import dataclass

from engram.memorization import cli
from engram.memorization.settings import MAX_NETWORKS, StudyConfig
from engram.utils.config.options import OptionSet, option


@dataclass(frozen=True)
class ProxyOptions(OptionSet):
    """How many networks are trained, and what is written."""

    out_filename: str = option("", "file to write, .npz (required)")
    n_networks: int = option(3, "networks, each trained on all examples", ge=1, le=MAX_NETWORKS)
    early: float = option(0.2, "share of the epochs after which the early versions are taken", gt=0, lt=1)


@dataclass(frozen=True)
class ProxiesConfig(StudyConfig):
    """All options of the program train_proxies."""

    proxies: ProxyOptions


def run(argv: list[str]) -> None:
    """Train the networks, evaluate all proxies on them and write the file."""
    config = cli.parse("train_proxies", str(__doc__), ProxiesConfig, argv)
    cli.require(config.proxies, "out_filename")
    cli.check_out(config.proxies.out_filename, ".npz")
    from engram.memorization import proxy_scores  # imports torch, which --help does without

    proxy_scores.train_and_write(config)


if __name__ == "__main__":
    sys.exit(cli.main("train_proxies"))
