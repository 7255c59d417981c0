"""Are examples that were memorized in the stream forgotten faster than others that are known as well?

    python scripts/studies/stream_forgetting.py [--data_dir DIR] [--datasets mnist,cifar10] [--n_networks 64]

Networks follow the stream (`memorization.train_stream`, a tenth of each training set, 5 tasks, an mlp as
memorization's programs train it, 50 epochs a task on CIFAR-10), without replay and with a memory of
--buffer_size examples. Examples whose score right after their task is above .25 are paired with others of
their class, of a score up to .1, whose expected probability is within .02 (memorization.matched_forgetting).
`initial` is what the pairs differ by right after their task in networks that did not form them; `forgetting`
is what the memorized lost more than the others after 1, 2, ... more tasks; 95 % intervals over networks and
pairs. Both views are shown: without replay the class-IL view is a floor. Networks lie in --output_dir, where
the same command goes on, and the figure is written there.
"""

import argparse
import contextlib
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from engram.memorization import train_stream
from engram.memorization.matched_forgetting import (
    AgeResult,
    Difference,
    Matching,
    StreamOutputs,
    matched_forgetting,
)
from engram.scripts.analysis.table import Column, make_table, signed
from engram.scripts.studies.program import run_study, study_parser
from engram.utils import scores
from engram.utils.config.flags import COUNT, check_bounds
from engram.utils.config.options import MAX_COUNT
from engram.utils.door import guarded
from engram.utils.errors import UserError
from engram.utils.figure_files import canvas, save_all

FLAGS = {
    "mnist": [],
    "fmnist": [],
    "cifar10": ["--backbone", "mlp", "--n_epochs", "50", "--lr", "0.02"],
}
VIEWS = {"task-IL": "task_loss_over_time", "class-IL": "loss_over_time"}


class Row(NamedTuple):
    """The result of one stream in one view at one age; no result where no pairs were found."""

    dataset: str
    buffer_size: int
    view: str
    n_networks: int
    result: AgeResult | None


def follow_stream(args: argparse.Namespace, dataset: str, buffer_size: int) -> Path:
    """Let the networks that are missing follow the stream; the file of what they gave."""
    folder = args.output_dir / f"{dataset}-buffer{buffer_size}"
    file = folder / "stream.npz"
    flags = ["--dataset", dataset, "--dataset_size", "0.1", "--data_dir", args.data_dir, *FLAGS[dataset]]
    flags += [
        "--n_repeats",
        str(args.n_networks),
        "--buffer_size",
        str(buffer_size),
        "--store_probs",
        "--num_threads",
        "1",
    ]
    with contextlib.redirect_stdout(sys.stderr):
        train_stream.run([*flags, "--weights_dir", str(folder / "networks"), "--out_filename", str(file)])
    return file


def compare(file: Path, view: str) -> list[AgeResult]:
    """The matched comparison of a stream's file in one view; empty where no pairs are found."""
    content = scores.load(file, "member", "task", "labels", VIEWS[view])
    probabilities = np.exp(-content[VIEWS[view]].astype(np.float64))
    outputs = StreamOutputs(probabilities, content["member"], content["task"], content["labels"])
    try:
        return matched_forgetting(outputs, Matching(), np.random.default_rng(0))
    except ValueError:
        return []


def study(args: argparse.Namespace) -> str:
    """Train what is missing, compare, draw the figure, and return the table."""
    rows: list[Row] = []
    for dataset in args.datasets:
        for buffer_size in (0, args.buffer_size):
            file = follow_stream(args, dataset, buffer_size)
            for view in VIEWS:
                results = compare(file, view)
                rows += [Row(dataset, buffer_size, view, args.n_networks, r) for r in results or [None]]
    save_all(figure(rows), args.output_dir / "stream_forgetting", ("png", "svg", "pdf"))
    return table(rows)


def table(rows: list[Row]) -> str:
    """The rows in Markdown; dashes where no pairs were found."""
    columns = [
        Column[Row]("data", lambda row: row.dataset),
        Column[Row]("memory", lambda row: str(row.buffer_size)),
        Column[Row]("view", lambda row: row.view),
        Column[Row]("tasks later", lambda row: str(row.result.age) if row.result else "–"),
        Column[Row]("pairs", lambda row: str(row.result.n_pairs) if row.result else "0"),
        Column[Row]("initial", lambda row: _text(row.result.initial) if row.result else "–"),
        Column[Row](
            "lost: memorized, others",
            lambda row: (
                f"{row.result.forgetting_memorized:.1f}, {row.result.forgetting_others:.1f}"
                if row.result
                else "–"
            ),
        ),
        Column[Row]("forgetting", lambda row: _text(row.result.forgetting) if row.result else "–"),
        Column[Row]("networks", lambda row: str(row.n_networks)),
    ]
    return make_table(rows, columns).markdown()


def figure(rows: list[Row]) -> Figure:
    """Difference in forgetting against the tasks since: a panel for each view, a line for each stream."""
    drawn = canvas(11, 4.6)
    panels = drawn.subplots(1, len(VIEWS), sharey=True)
    streams = sorted({(row.dataset, row.buffer_size) for row in rows})
    for axes, view in zip(panels, VIEWS, strict=True):
        for i, stream in enumerate(streams):
            results = [row.result for row in rows if row[:3] == (*stream, view) and row.result]
            x = np.array([r.age for r in results]) + 0.05 * (i - (len(streams) - 1) / 2)
            middle = np.array([r.forgetting.value for r in results])
            ends = np.array([(r.forgetting.low, r.forgetting.high) for r in results]).reshape(-1, 2).T
            name = f"{stream[0]}, {f'memory {stream[1]}' if stream[1] else 'no replay'}"
            axes.errorbar(
                x, middle, np.abs(ends - middle), marker="o", markersize=4, capsize=3, linewidth=1.3,
                color=f"C{i // 2}", linestyle="-" if stream[1] else "--", label=name,
            )  # fmt: skip
        axes.axhline(0, color="black", linewidth=0.8)
        axes.set(xlabel="tasks since learned", title=view)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("forgetting of memorized minus others (points)")
    panels[0].legend(frameon=False, fontsize=9, ncols=2, loc="upper left")
    drawn.suptitle(
        "Pairs of one class, known as well right after their task (bars: 95 % intervals)", fontsize=11
    )
    return drawn


def _text(difference: Difference) -> str:
    return f"{signed(difference.value, 1)} [{signed(difference.low, 1)}, {signed(difference.high, 1)}]"


@guarded
def main(argv: list[str] | None = None) -> int:
    """Run the program; returns its exit code."""
    parser = study_parser(__doc__, "runs/stream_forgetting")
    parser.add_argument("--datasets", default="mnist,fmnist,cifar10", help="separated by commas")
    parser.add_argument("--n_networks", type=int, default=64, help="that follow each stream, at least 24")
    parser.add_argument("--buffer_size", type=int, default=200, help="of the streams with replay")
    args = parser.parse_args(argv)
    args.datasets = args.datasets.split(",")
    if unknown := set(args.datasets) - set(FLAGS):
        raise UserError(f"--datasets {','.join(sorted(unknown))}: expected some of {', '.join(FLAGS)}")
    check_bounds(args, n_networks=(24, MAX_COUNT), buffer_size=COUNT)
    return run_study(study, "stream forgetting", args)


if __name__ == "__main__":
    sys.exit(main())
