"""Figures of memorization: scores, proxies, galleries, streams, and runs of main.py.

    python -m memorization.plots --scores runs/mem/mnist.npz --proxies runs/mem/proxies.npz --out_dir figures
    python -m memorization.plots --stream runs/mem/stream.npz --out_dir figures
    python -m memorization.plots --runs runs/maer --out_dir figures

Scores: how they are distributed, how their standard errors shrink, each proxy against them, the most and
least memorized images of each class, and where influences were kept the strongest pairs of a training and
a test image. Runs: accuracy against buffer size with standard deviations over seeds, and accuracy by
memorization over tasks (runs with --memorization_scores).
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engram.memorization import cli
from engram.utils.config.options import OptionSet, option
from engram.utils.errors import UserError


@dataclass(frozen=True)
class PlotOptions(OptionSet):
    """What is drawn, from which files."""

    scores: tuple[str, ...] = option((), "score files of eval_splits, the first with galleries")
    proxies: str | None = option(None, "file of train_proxies, drawn against the first score file")
    stream: str | None = option(None, "file of train_stream (with --store_probs also by group)")
    runs: str | None = option(None, "folder of finished runs of main.py")
    out_dir: str | None = option(None, "folder for the figures (required)")
    data_dir: str = option("~/.cache/engram", "where data sets lie, for the galleries")


def run(argv: list[str]) -> None:
    """Draw what there is."""
    options = cli.parse("plots", __doc__.split("\n")[0], {"plots": PlotOptions}, argv).plots
    cli.require(options, "out_dir")
    if not (options.scores or options.stream or options.runs):
        raise UserError("nothing to draw: give --scores, --stream or --runs (see --help)")
    from engram.memorization import run_plots, score_plots, stream_plots
    from engram.utils import scores

    out = Path(options.out_dir).expanduser()
    out.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    if options.scores:
        contents = {Path(path).stem: scores.load(path, "scores") for path in options.scores}
        proxies = scores.load(options.proxies, "names", "proxies", "index") if options.proxies else None
        written += score_plots.write_all(contents, proxies, out)
        written += draw_galleries(next(iter(contents.values())), options.data_dir, out)
    if options.stream:
        written.append(out / "decay.png")
        stream_plots.decay(scores.load(options.stream, "in_stream", "task"), written[-1])
    if options.runs:
        written += run_plots.write_all(Path(options.runs).expanduser(), out)
    for path in written:
        print(path)


def draw_galleries(content: dict[str, Any], data_dir: str, out: Path) -> list[Path]:
    """Images at both ends; the data are those that the score file's settings name."""
    if "settings" not in content:
        print("no galleries: a bare vector does not say which images it is about", file=sys.stderr)
        return []
    import dataclasses

    import torch

    from engram.memorization import galleries, study_data
    from engram.memorization.settings import DataOptions

    settings = json.loads(str(content["settings"])) | {"data_dir": data_dir}
    own = {f.name: settings[f.name] for f in dataclasses.fields(DataOptions) if f.name in settings}
    options = cli.Options(data=DataOptions(**own), architecture=OptionSet())
    examples = study_data.load(options, torch.device("cpu"))
    if examples.order_hash != str(content["order_hash"]):
        raise UserError("--scores: the images found are not those that were scored (another sample order)")
    written = [out / "gallery.png"]
    galleries.extremes(examples.at(content["index"]), content["scores"], written[0])
    if "influence" in content:
        written.append(out / "pairs.png")
        galleries.pairs(examples, content, written[-1])
    return written


if __name__ == "__main__":
    sys.exit(cli.main(run))
