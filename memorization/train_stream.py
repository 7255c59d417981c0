r"""In-stream memorization: which examples networks memorize while they follow a stream, and how it decays.

    python -m memorization.train_stream --dataset digits --n_tasks 5 --buffer_size 100 --n_repeats 64 \
        --weights_dir runs/mem/stream --out_filename runs/mem/stream.npz

R networks follow the stream of tasks; of every task each leaves out its own random half. After task t the
memorization of an example of task s <= t is the mean probability of its label, among the classes met so far,
in networks that saw it minus that in networks that did not. The file holds `in_stream` (T, n) with
`in_stream_stderr`, `mean_in`, `mean_out` (NaN before an example's task), the same among the classes of the
example's own task (`task_il...`), `task` (n,), and as `scores` the memorization right after the own task.
Offline scores are the limit of one task. Interrupted, the same command goes on.
"""

import sys
from dataclasses import dataclass

from engram.memorization import cli
from engram.memorization.settings import MAX_NETWORKS, MIN_NETWORKS, StudyConfig
from engram.utils.config.options import OptionSet, option


@dataclass(frozen=True)
class StreamOptions(OptionSet):
    """The stream, its replay and the networks that follow it."""

    weights_dir: str = option("", "folder of the outputs of each network (required)")
    out_filename: str = option("", "file to write, .npz (required)")
    n_repeats: int = option(
        64, f"networks that follow the stream, at least {MIN_NETWORKS}", ge=MIN_NETWORKS, le=MAX_NETWORKS
    )
    subset_ratio: float = option(0.5, "share of every task that a network sees", gt=0, lt=1)
    n_tasks: int = option(5, "tasks, consecutive classes", ge=1)
    permute_classes: bool = option(False, "class order permuted by --seed, as main.py does")
    buffer_size: int = option(0, "examples of its own past that a network replays from; 0: no replay", ge=0)
    minibatch_size: int = option(0, "examples replayed per step; 0 takes --batch_size", ge=0)
    store_probs: bool = option(
        False, "also keep every network's loss (T, R, n), in both views, and membership (R, n)"
    )


@dataclass(frozen=True)
class StreamConfig(StudyConfig):
    """All options of the program train_stream."""

    stream: StreamOptions


def run(argv: list[str]) -> None:
    """Train the networks that are missing, then estimate the scores and write them."""
    config = cli.parse("train_stream", str(__doc__), StreamConfig, argv)
    cli.require(config.stream, "weights_dir", "out_filename")
    cli.check_out(config.stream.out_filename, ".npz")
    cli.check_weights_dir(config.stream.weights_dir)
    from engram.memorization import stream_scores  # imports torch, which --help does without

    stream_scores.train_and_write(config)


if __name__ == "__main__":
    sys.exit(cli.main("train_stream"))
