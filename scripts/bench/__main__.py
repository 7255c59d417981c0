"""Speed: every figure in one program, as ratios taken in one process, as lines, JSON and a picture.

    python -m scripts.bench                       all parts (about a quarter of an hour on two cores)
    python -m scripts.bench trainer-mlp data      some of them
    python -m scripts.bench --update RESULTS.md    and put the lines between the file's markers
    python -m scripts.bench steps --models er maer --backbone resnet18 --against bare loader
    python -m scripts.bench steps seeds --device cuda --models er maer --json gpu.json
    python scripts/bench/memorization.py --device cuda resnet18

The last two lines measure a GPU: er and maer compiled, in bf16, beside the plain step and a DataLoader's,
four seeds at once, and networks per hour.

Rounds alternate between the two sides, so that a machine whose speed drifts slows both. Images are
random: their content does not change the time (`seeds` reads real ones from --data_dir).
"""

import argparse
import json
import os
import platform
import sys
from dataclasses import asdict
from pathlib import Path

import torch
from matplotlib.figure import Figure as Picture

from engram.scripts.analysis.table import check_update, update
from engram.scripts.bench.buffer import buffer_speed
from engram.scripts.bench.data import data_path
from engram.scripts.bench.evaluation import evaluation
from engram.scripts.bench.methods import METHODS, methods_mlp, methods_resnet, scaling
from engram.scripts.bench.precision import precisions
from engram.scripts.bench.prompts import prompts, table
from engram.scripts.bench.seeds import seeds
from engram.scripts.bench.startup import overhead, startup
from engram.scripts.bench.steps import AGAINST, Settings, steps
from engram.scripts.bench.timing import Figure, Names, cpu_name
from engram.scripts.bench.trainer import trainer_mlp, trainer_resnet
from engram.utils import device as devices
from engram.utils import figure_files, files
from engram.utils.config.flags import COUNT, CheckedParser, check_bounds
from engram.utils.destinations import check_file
from engram.utils.door import guarded
from engram.utils.training.environment import versions

PARTS = {
    "trainer-mlp": "sgd's whole run against a bare loop: the MLP at batch 10",
    "trainer-resnet": "the same, ResNet-18 at batch 32",
    "data": "augmented images/s against a DataLoader",
    "buffer": "memory against a loop over samples",
    "methods-mlp": "steps of seven methods against bare loops: the MLP",
    "methods-resnet": "the same, ResNet-18",
    "scaling": "cost against tasks, memory and classes",
    "startup": "from the command to the first step",
    "overhead": "logging, figures and checkpoints",
    "evaluation": "images/s of an evaluation against the network alone",
    "precision": "bf16 against fp32: training and evaluation, threads",
    "seeds": "several seeds against one",
    "prompts": "passes, time and memory of prompts, adapters, LoRA: a table of its own",
    "steps": "any method's step: time, split, memory, share of peak",
}


def figures(name: str, args: argparse.Namespace) -> list[Figure]:
    """Measure the part of this name; returns its lines."""
    if name == "seeds":
        return seeds(args.device, args.data_dir)
    if name == "evaluation":
        return evaluation(args.device)
    if name == "prompts":
        return prompts(args.device)
    if name == "precision":
        return precisions(args.device)
    if name == "steps":
        names = ("backbone", "batch_size", "device", "precision", "compile", "n_steps")
        given = {flag: getattr(args, flag) for flag in names}
        return steps(Settings(models=tuple(args.models), against=tuple(args.against), **given))
    measured = {
        "trainer-mlp": trainer_mlp, "trainer-resnet": trainer_resnet, "data": data_path,
        "buffer": buffer_speed, "methods-mlp": methods_mlp, "methods-resnet": methods_resnet,
        "scaling": scaling, "startup": startup, "overhead": overhead,
    }  # fmt: skip
    return measured[name]()


def parser() -> argparse.ArgumentParser:
    """Build the parser of the command line, whose help lists the parts."""
    listed = "\n".join(f"  {name:<15} {text}" for name, text in PARTS.items())
    made = CheckedParser(
        prog="python -m scripts.bench",
        description=f"{__doc__}\nparts:\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = made.add_argument
    add("parts", nargs="*", choices=Names(PARTS), metavar="PART", help="what to measure (default: all)")
    add("--update", type=Path, metavar="FILE", help="file whose marked part is replaced by the lines")
    add("--json", type=Path, metavar="FILE", help="write machine, versions and every number")
    add("--plot", type=Path, metavar="FILE", help="draw the ratios")
    of = made.add_argument_group("of the part steps; --device of evaluation, precision and seeds too")
    of.add_argument("--models", nargs="+", default=["er"], choices=METHODS, metavar="NAME")
    of.add_argument("--backbone", default="resnet18")
    of.add_argument("--batch_size", type=int, default=32, metavar="N")
    of.add_argument("--n_steps", type=int, metavar="N", help="steps of an epoch (default: 8; on a GPU 200)")
    of.add_argument("--device", default="cpu")
    of.add_argument("--precision", choices=("fp32", "tf32", "bf16"), help="(default: fp32; on a GPU bf16)")
    compiled = argparse.BooleanOptionalAction
    of.add_argument("--compile", action=compiled, help="whether it pays or not (default: on a GPU)")
    of.add_argument(
        "--against", nargs="*", choices=Names(AGAINST), help="(default: bare; on a GPU bare loader plain)"
    )
    of.add_argument("--data_dir", default="~/.cache/engram")
    return made


def completed(args: argparse.Namespace) -> argparse.Namespace:
    """With the defaults that depend on the device."""
    on_gpu = args.device.startswith("cuda")
    defaults = {
        "n_steps": 200 if on_gpu else 8,
        "precision": "bf16" if on_gpu else "fp32",
        "compile": on_gpu,
        "against": ["bare", "loader", "plain"] if on_gpu else ["bare"],
    }
    for name, value in defaults.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    return args


def machine(device: str) -> str:
    """Name the machine, its processors and the versions of the libraries."""
    listed = ", ".join(f"{k} {v}" for k, v in versions().items())
    gpu = f", {torch.cuda.get_device_name(device)}" if device.startswith("cuda") else ""
    return f"{platform.machine()}, {os.cpu_count()} cores, {cpu_name()}{gpu}; {listed}"


@guarded
def main(argv: list[str] | None = None) -> None:
    """Measure the parts asked for; print, and write what --json, --plot and --update name."""
    args = completed(parser().parse_args(argv))
    check_bounds(args, batch_size=COUNT, n_steps=COUNT)
    check_destinations(args)
    devices.choose(args.device)  # refuses what this machine does not have
    system, measured = machine(args.device), {}
    print(system, flush=True)
    for name in args.parts or PARTS:
        measured[name] = figures(name, args)
        print("\n".join(figure.text for figure in measured[name]), flush=True)
        if args.json:  # after each part: an interrupted benchmark keeps what it has measured
            files.write_text(json.dumps(document(system, measured), indent=1), args.json)
    if args.plot:
        plot(measured, system, args.plot)
    if args.update:
        for marker, text in marked(system, measured).items():
            update(args.update, marker, text)


def marked(system: str, measured: dict[str, list[Figure]]) -> dict[str, str]:
    """What --update writes: name of the markers → text between them; `prompts` has a table of its own."""
    lines = [figure.text for name, figures in measured.items() if name != "prompts" for figure in figures]
    texts = {"bench": "\n".join(["```text", system, *lines, "```"])} if lines else {}
    if "prompts" in measured:
        texts["bench prompts"] = table(measured["prompts"], system).markdown()
    return texts


def check_destinations(args: argparse.Namespace) -> None:
    """Refuse what cannot be written before hours are spent on measuring."""
    parts = set(args.parts or PARTS)
    for marker, wanted in (("bench", parts - {"prompts"}), ("bench prompts", parts & {"prompts"})):
        if wanted:
            check_update(args.update, marker)
    if args.json:
        check_file(args.json, "--json", (".json",), lambda file: "figures" in json.loads(file.read_text()))
    if args.plot:
        check_file(args.plot, "--plot", (".png", ".svg", ".pdf"))


def document(system: str, measured: dict[str, list[Figure]]) -> dict:
    """Build what --json writes: machine, versions, and every figure with the name of its part."""
    rows = [{"part": name, **asdict(figure)} for name, lines in measured.items() for figure in lines]
    return {"machine": system, "versions": versions(), "figures": rows}


def plot(measured: dict[str, list[Figure]], system: str, path: Path) -> None:
    """Draw a bar for every ratio, on a logarithmic scale: left of 1 our side takes less time."""
    rows = [figure for lines in measured.values() for figure in lines if "ratio" in figure.numbers][::-1]
    picture = Picture(figsize=(9, 1.5 + 0.28 * len(rows)), layout="constrained")
    axes = picture.subplots()
    ratios = [figure.numbers["ratio"] for figure in rows]
    bars = axes.barh([figure.name for figure in rows], [r - 1 for r in ratios], left=1, color="#4878a8")
    axes.bar_label(bars, [f"{r:.2f}" for r in ratios], padding=3, fontsize=8)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xscale("log")
    for ticks in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
        ticks("{x:g}")
    axes.tick_params(axis="x", which="both", labelsize=8)
    axes.margins(x=0.15)
    axes.tick_params(axis="y", labelsize=8)
    axes.set_xlabel(f"time of the first / time of the second\n{system.split(';')[0]}")
    figure_files.save(picture, path, dpi=120)


if __name__ == "__main__":
    sys.exit(main())
