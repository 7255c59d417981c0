"""Which figures are drawn from which files: the work of plots."""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from engram.memorization import galleries, run_plots, score_plots, stream_plots, study_data
from engram.memorization.file_names import short_names
from engram.memorization.plots import PlotOptions
from engram.utils import scores
from engram.utils.errors import UserError
from engram.utils.figure_files import save_all


def draw(options: PlotOptions) -> list[Path]:
    """Write all figures that the options ask for; returns their paths."""
    out = Path(options.out_dir).expanduser()
    out.mkdir(parents=True, exist_ok=True)
    drawn: dict[str, Figure] = {}
    if options.scores:
        loaded = [scores.load(path, "scores") for path in options.scores]
        contents = dict(zip(short_names(options.scores), loaded, strict=True))
        proxies = scores.load(options.proxies, "names", "proxies", "index") if options.proxies else None
        drawn |= score_plots.draw_all(contents, proxies)
        drawn |= draw_galleries(next(iter(contents.values())), options.data_dir)
    if options.stream:
        drawn["decay"] = stream_plots.decay(scores.load(options.stream, "in_stream", "task"))
    if options.runs:
        drawn |= run_plots.draw_all(Path(options.runs).expanduser())
    return [path for name, figure in drawn.items() for path in save_all(figure, out / name, options.figures)]


def draw_galleries(content: dict[str, NDArray[Any]], data_dir: str) -> dict[str, Figure]:
    """The least and most memorized images; the score file's settings say which data set they are of."""
    if "settings" not in content:
        print("no galleries: a bare vector does not say which images it is about", file=sys.stderr)
        return {}
    settings = str(content["settings"])
    examples = study_data.load(study_data.options_of(settings, data_dir), torch.device("cpu"))
    if examples.order_hash != str(content["order_hash"]):
        raise UserError("--scores: the images found are not those that were scored (another sample order)")
    if examples.images.dtype != torch.uint8:
        print("no galleries: vectors and standardised numbers are no pictures", file=sys.stderr)
        return {}
    shown, n_networks = examples.at(content["index"]), json.loads(settings).get("n_networks")
    drawn = {"gallery": galleries.extremes(shown, content, n_networks)}
    if "influence" in content:
        drawn["pairs"] = galleries.pairs(examples, content)
    return drawn
