"""The world of the file fuzz: one of each file that a run leaves, and the programs that read them."""

import functools
import hashlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from engram import main as main_program
from engram.memorization.stream import StreamTraining
from engram.memorization.training import CohortTraining, StackedTraining
from engram.scripts import report, sweep, worker
from engram.scripts.dev.fuzz_flags import STUDY, TINY, memorization_program
from engram.scripts.dev.fuzz_trial import Outcome, in_fork
from engram.scripts.interop import compute_forgetting, export_tasks
from engram.utils.config import cli
from engram.utils.metrics.measurements import VIEWS
from engram.utils.runs.run_record import FILE_NAME, RunRecord

RUN = ["--model", "er", *TINY, "--output_dir"]
Result = object


@dataclass(frozen=True)
class Reader:
    """A program that reads the files of the given patterns, and what it computes from them.

    text: patterns of files without a checksum, in which another character may be another valid value.
    alike: names of files of others that it may be given in their place, as weights of another run.
    """

    start: Callable[[], object]
    files: tuple[str, ...]
    result: Callable[[Path, Outcome], Result]
    text: tuple[str, ...] = ()
    alike: tuple[str, ...] = ()


def printed(work: Path, outcome: Outcome) -> Result:
    """What a program that makes tables has printed."""
    return outcome.out


def matrices(pattern: str, work: Path, outcome: Outcome) -> Result:
    """R of both views of the run below a folder."""
    runs = [RunRecord.read(path).to_json() for path in sorted(work.glob(f"{pattern}/**/{FILE_NAME}"))]
    return [[run[key] for key in ("status", *VIEWS)] for run in runs]


def arrays(pattern: str, work: Path, outcome: Outcome) -> Result:
    """A hash of the arrays or weights in each file of the pattern."""
    hashes = {}
    for path in sorted(work.glob(pattern)):
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as content:
                parts = [content[name] for name in sorted(content.files) if name != "settings"]
        else:
            parts = [weight.numpy() for weight in torch.load(path)["net"].values()]
        hashes[path.name] = hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()
    return hashes


def of_run(folder: str) -> Callable[[Path, Outcome], Result]:
    """Give the function that reads R of the runs below a folder."""
    return functools.partial(matrices, folder)


def of_arrays(pattern: str) -> Callable[[Path, Outcome], Result]:
    """Give the function that hashes the files of a pattern."""
    return functools.partial(arrays, pattern)


def main(*argv: str) -> Callable[[], object]:
    """Give a call of main.py with this command line."""
    return lambda: main_program.main(list(argv))


def study(name: str, *argv: str) -> Callable[[], object]:
    """A memorization program with this command line."""
    return lambda: memorization_program(name)(list(argv))


def continue_run(folder: str) -> Callable[[], object]:
    """What a sweep's worker does with a run that is there."""
    flags = cli.parse([*RUN, "study"]).config
    assert flags is not None
    return lambda: worker.execute_run(folder, flags.flat())


QUICK = ["--n_tasks", "2", "--n_iters", "2", "--disable_log", "1", "--device", "cpu", "--output_dir", "out"]
IMAGES = ["--model", "sgd", "--dataset", "seq-imagefolder", "--image_dir", "images", *QUICK]
IMAGES += ["--backbone", "mlp", "--batch_size", "4"]
GEM = ["--model", "sgd", "--dataset", "gem-file", "--gem_file", "gem.pt", *QUICK]
MAER = ["--model", "maer", *TINY, "--output_dir", "out", "--memorization_scores"]


def run_files(run: str) -> tuple[str, ...]:
    """Patterns of the files of a run that other starts read."""
    return tuple(f"{run}/{name}" for name in ("config.yaml", "checkpoint.pt", FILE_NAME, "mlflow_run"))


def readers() -> dict[str, Reader]:
    """Name → reader; every file that the world holds and a program reads is in one of them."""
    return runs_and_tables() | studies() | data_sets()


def runs_and_tables() -> dict[str, Reader]:
    """The readers of runs and of their records."""
    records, stopped, whole = (f"runs/*/{FILE_NAME}",), "runs/stopped", "runs/whole"
    plan = ["study.yaml", "--dry_run"]
    tree = ("tree/Task_*/performance*.txt",)
    return {
        "resume": Reader(main("--resume", stopped), run_files(stopped), of_run(stopped)),
        "resume of a finished run": Reader(main("--resume", whole), run_files(whole), of_run(whole)),
        "restart by a sweep": Reader(continue_run(stopped), run_files(stopped), of_run(stopped)),
        "loadcheck": Reader(
            main(*RUN, "out", "--loadcheck", f"{whole}/weights/last.pt"),
            (f"{whole}/weights/last.pt",),
            of_run("out"),
            alike=("last.pt", "checkpoint.pt"),
        ),
        "plan of a sweep": Reader(
            lambda: sweep.main(plan), ("study.yaml", *records), printed, ("study.yaml",)
        ),
        "report": Reader(lambda: report.main(["runs"]), records, printed),
        "report rehearsal": Reader(lambda: report.main(["rehearsal", "runs"]), records, printed),
        "intervention --results": Reader(study("intervention", "--results", "runs"), records, printed),
        "export_tasks": Reader(
            lambda: export_tasks.main([whole, "exported"]),
            (f"{whole}/checkpoint.pt", f"{whole}/config.yaml"),
            printed,
        ),
        "compute_forgetting": Reader(lambda: compute_forgetting.main(["tree"]), tree, printed, tree),
    }


def studies() -> dict[str, Reader]:
    """The readers of networks and of scores."""
    left_out = "left_out/top_10.npz"
    return {
        "scores": Reader(main(*MAER, "scores.npz"), ("scores.npz",), of_run("out")),
        "bare scores": Reader(main(*MAER, "scores.npy"), ("scores.npy",), of_run("out"), ("scores.npy",)),
        "exclude": Reader(
            main(*RUN, "out", "--exclude", left_out), (left_out,), of_run("out"), alike=("random_10_0.npz",)
        ),
        "intervention --scores": Reader(
            study("intervention", "--scores", "scores.npz", "--out_dir", "out", "--n_random", "1"),
            ("scores.npz",),
            of_arrays("out/*.npz"),
        ),
        "correlate": Reader(
            study("correlate", "--scores", "scores.npz", "--against", "proxies.npz", "--n_bootstrap", "5"),
            ("scores.npz", "proxies.npz"),
            printed,
            alike=("scores.npz", "proxies.npz"),
        ),
        "eval_splits": Reader(
            study("eval_splits", "--weights_dir", "networks", "--out_filename", "out.npz"),
            ("networks/networks/*.pt", "networks/settings.json"),
            of_arrays("out.npz"),
        ),
        "train_splits goes on": Reader(
            study("train_splits", "--weights_dir", "begun", *SPLITS),
            ("begun/settings.json", "begun/checkpoints/*.pt"),
            of_arrays("begun/networks/*.pt"),
        ),
        "train_stream goes on": Reader(
            study("train_stream", "--weights_dir", "stream", *STREAM),
            ("stream/settings.json", "stream/checkpoints/*.pt", "stream/stream/*.pt"),
            of_arrays("stream.npz"),
        ),
    }


def data_sets() -> dict[str, Reader]:
    """The readers of images and of what is decoded from them."""
    memory, disk = (main(*IMAGES, "--images", where, "--data_dir", "data") for where in ("memory", "disk"))
    return {
        "cache of images": Reader(memory, ("data/**/*.pt",), of_run("out")),
        "shards": Reader(disk, ("data/**/*.shards/*",), of_run("out")),
        "GEM file": Reader(main(*GEM), ("gem.pt",), of_run("out")),
    }


STREAM = ["--n_repeats", "24", "--stack", "12", "--n_tasks", "2", "--buffer_size", "5", *STUDY]
STREAM += ["--out_filename", "stream.npz", "--checkpoint_every", "0"]
SPLITS = ["--n_repeats", "6", "--stack", "2", *STUDY, "--n_epochs", "2", "--checkpoint_every", "0"]


def make_world(folder: Path) -> Path:
    """The folder with one of each file; its programs run in forks."""
    world = folder / "work"
    world.mkdir(parents=True)

    def made(program: Callable[[], object], expected: int = 0) -> None:
        outcome = in_fork(program, world)
        assert outcome.code == expected, outcome

    for name, more in (
        ("whole", ["--savecheck", "last"]),
        ("other", ["--seed", "1"]),
        ("stopped", ["--stop_after", "2"]),
    ):
        made(main(*RUN, f"new/{name}", *more, "--savecheck", "last"))
        (run,) = (world / "new" / name).glob("*/*/*")
        run.rename(_parent(world / "runs" / name))
        (world / "runs" / name / "mlflow_run").write_text("0123456789abcdef0123456789abcdef\n")
    (world / "study.yaml").write_text(
        "fixed: {model: er, output_dir: runs}\ngrid: {seed: [0, 1], lr: [0.1, 0.2]}\n"
    )
    made(study("train_splits", "--weights_dir", "networks", *SPLITS, "--n_repeats", "24", "--stack", "12"))
    made(study("train_splits", "--weights_dir", "begun", *SPLITS, "--n_repeats", "4"))
    begun = study("train_splits", "--weights_dir", "begun", *SPLITS)
    made(lambda: _interrupted(CohortTraining, begun), 130)
    made(lambda: _interrupted(StreamTraining, study("train_stream", "--weights_dir", "stream", *STREAM)), 130)
    made(study("eval_splits", "--weights_dir", "networks", "--out_filename", "part.npz"))
    made(
        study(
            "train_proxies",
            "--out_filename",
            "proxies.npz",
            "--n_networks",
            "1",
            *STUDY,
            "--dataset_size",
            "1",
        )
    )
    _write_scores(world)
    made(study("intervention", "--scores", "scores.npz", "--out_dir", "left_out", "--n_random", "1"))
    made(lambda: export_tasks.main(["runs/whole", "tree"]))
    _write_images(world)
    for where in ("memory", "disk"):
        made(main(*IMAGES, "--images", where, "--data_dir", "data"))
    shutil.rmtree(world / "out")
    generator = torch.Generator().manual_seed(0)
    tasks = [
        [None, torch.randint(256, (20, 16), generator=generator) / 255, torch.arange(20) % 4]
        for _ in range(4)
    ]
    torch.save([tasks[:2], tasks[2:]], world / "gem.pt")
    return world


def _parent(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _interrupted(training: type[CohortTraining | StreamTraining], program: Callable[[], object]) -> object:
    """The program, interrupted when its last networks have been trained for an epoch and saved."""
    run_epoch = training.run_epoch

    def second_epoch_is_too_much(self: StackedTraining, *observers: object) -> None:
        if self.epoch == 1 and self.repeats[0]:
            raise KeyboardInterrupt
        run_epoch(self)

    training.run_epoch = second_epoch_is_too_much  # type: ignore[method-assign]
    return program()


def _write_scores(world: Path) -> None:
    """Scores of every sample of the digits, of the order and labels that the proxies' file has."""
    with np.load(world / "proxies.npz") as content:
        identity = {name: content[name] for name in ("dataset", "order_hash", "n_train", "index", "labels")}
    values = np.random.default_rng(0).uniform(-0.1, 1, len(identity["index"]))
    with np.load(world / "part.npz") as content:
        settings = str(content["settings"])
    (world / "part.npz").unlink()  # other scores of the same data set are no foreign file
    np.savez_compressed(
        world / "scores.npz", scores=values, stderr=values / 10, settings=settings, **identity
    )
    whole = np.zeros(int(identity["n_train"]))
    whole[identity["index"]] = values
    np.save(world / "scores.npy", whole)


def _write_images(world: Path) -> None:
    draw = np.random.default_rng(0)
    for split in ("train", "test"):
        for label in ("a", "b", "c", "d"):
            for i in range(4):
                path = _parent(world / "images" / split / label / f"{i}.png")
                Image.fromarray(draw.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
