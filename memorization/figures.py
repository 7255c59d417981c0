"""Which figures are drawn from which files: the work of plots."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from engram.memorization import galleries, run_plots, score_plots, stream_plots, study_data
from engram.memorization.plots import PlotOptions
from engram.memorization.settings import DataOptions
from engram.utils import scores
from engram.utils.errors import UserError


def draw(options: PlotOptions) -> list[Path]:
    """Draw all figures that the options ask for; returns their paths."""
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
    return written


def draw_galleries(content: dict[str, NDArray[Any]], data_dir: str, out: Path) -> list[Path]:
    """Draw the least and most memorized images; the score file's settings say which data set they are of."""
    if "settings" not in content:
        print("no galleries: a bare vector does not say which images it is about", file=sys.stderr)
        return []
    settings = json.loads(str(content["settings"])) | {"data_dir": data_dir}
    names = {field.name for field in dataclasses.fields(DataOptions)}
    options = DataOptions(**{name: value for name, value in settings.items() if name in names})
    examples = study_data.load(options, torch.device("cpu"))
    if examples.order_hash != str(content["order_hash"]):
        raise UserError("--scores: the images found are not those that were scored (another sample order)")
    written = [out / "gallery.png"]
    galleries.extremes(examples.at(content["index"]), content["scores"], written[0])
    if "influence" in content:
        written.append(out / "pairs.png")
        galleries.pairs(examples, content, written[-1])
    return written
