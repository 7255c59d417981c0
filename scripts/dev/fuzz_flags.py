"""Fuzz of the command lines: flags of any program with values at the edges, of wrong types, beyond sense.

The flags are those that the program's own --help lists, the type of each is the word after it there.
"""

import io
import os
import random
import re
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import cache
from pathlib import Path

from engram import main as main_program
from engram.memorization import cli as memorization_cli
from engram.models.method import Method
from engram.scripts import check_plugin, docs, new_backbone, new_dataset, new_method, report, sweep, tune
from engram.scripts.bench import __main__ as bench
from engram.scripts.bench import gpu_check, importance, shards
from engram.scripts.dev import check_store
from engram.scripts.dev.fuzz_trial import faults, in_fork
from engram.scripts.interop import (
    adapt_importance,
    compute_forgetting,
    export_tasks,
    import_mlruns,
    write_gem_file,
)
from engram.utils.config import registry

Program = Callable[[list[str]], object]
NUMBERS = [
    *"0 1 1 2 2 3 4 5 7 10 50 1000 -1 65536 1e3 2.5".split(), *map(str, (2**31, 2**63, 10**12, 10**18)),
]  # fmt: skip
FRACTIONS = [
    *"0 0.0 0.5 0.5 0.1 0.25 0.9 1 1 2 10 30 99.9 100 -0.5 -0.0".split(),
    *"1e-300 1e300 1e999 1e10 nan inf -inf".split(),
]  # fmt: skip
TEXTS = [
    *"abc zażółć ../x adir afile afile/x ~nouser/x ~/x - -- = , 1,2,3 3,2,1,0 0,1 a,b {} None true".split(),
    *"%s $HOME 0x10 １ 1_0 +1 cpu cuda:99 /proc/none/x loop data.npz data.npy data.yaml data.pt * '".split(),
    "", " ", "a b", "a\nb", "a\0b", "[1, [2]]", "\udcff", "a" * 5000, "9" * 5000,
]  # fmt: skip
POSITIONAL = ("adir", "afile", "o.pt", "my_idea")  # words of the tiny commands that are drawn, too
# Flags that would leave the folder of the trial, take a minute, or start other processes.
LEFT_OUT = {
    "help",
    "disable_log",
    "use_multiprocessing",
    "address",
    "slurm",
    "compile",
    "seeds_together",
    "jobs",
}
# Flags that count what is done inside one step or at the end of a task, where no signal is answered: a large
# value is legal and only takes longer. Values between the bound and 2³¹, which is refused, are drawn as it.
COST_TIME = {
    "anchor_steps": 10,
    "batches_per_example": 10,
    "coreset_steps": 10,
    "ebll_epochs": 5,
    "fitting_epochs": 5,
    "lwf_warmup": 5,
    "n_bootstrap": 50,
    "n_steps": 5,
}
TINY = ["--dataset", "seq-digits", "--n_iters", "2", "--disable_log", "1", "--device", "cpu"]
STUDY = ["--n_epochs", "1", "--dataset_size", "0.1", "--hidden_sizes", "4", "--use_multiprocessing", "0"]
OUTPUTS = {
    "train_splits": ["--weights_dir", "w", "--n_repeats", "4", "--stack", "4", *STUDY],
    "eval_splits": ["--weights_dir", "w", "--out_filename", "o.npz"],
    "train_whole": [
        "--weights_dir", "w", "--out_filename", "o.npz", "--n_examples", "1", "--n_repeats", "2",
        "--n_whole", "2", "--stack", "1", *STUDY,
    ],
    "train_stream": [
        "--weights_dir", "w", "--out_filename", "o.npz", "--n_repeats", "4", "--stack", "4", *STUDY
    ],
    "train_proxies": ["--out_filename", "o.npz", "--n_networks", "1", *STUDY],
    "correlate": ["--scores", "data.npz", "--against", "data.npz"],
    "plots": ["--out_dir", "o"],
    "intervention": ["--scores", "data.npz", "--out_dir", "o"],
}  # fmt: skip


def memorization_program(name: str) -> Program:
    """The program as `python -m memorization.NAME` runs it."""

    def program(argv: list[str]) -> object:
        sys.argv = [name, *argv]
        return memorization_cli.main(name)

    return program


def in_this_folder(program: Program) -> Program:
    """A program that writes a skeleton, below the folder it is started in."""

    def started(argv: list[str]) -> object:
        for name in ("models", "datasets", "backbones", "tests/reference", "tests/unit"):
            Path(name).mkdir(parents=True, exist_ok=True)
        registry.checkout = Path.cwd
        return program(argv)

    return started


def pages_alone(argv: list[str]) -> object:
    """`docs.py` without MkDocs, which takes seconds for the site."""
    docs.build = docs.write_pages
    return docs.main(argv)


def without_writers(argv: list[str]) -> object:
    """`check_store.py` up to where it starts its processes."""
    check_store.check = lambda *_: 0
    return check_store.main(argv)


def programs() -> dict[str, tuple[Program, list[str]]]:
    """Name → the program and flags with which a run of it is tiny; later flags win over them."""
    methods = {
        f"main {model}": (main_program.main, ["--model", model, *TINY, *quick_flags(model)])
        for model in registry.names("models")
    }
    studies = {name: (memorization_program(name), flags) for name, flags in OUTPUTS.items()}
    others = {
        "sweep": (sweep.main, ["--model", "er", "--seed", "0", "1", "--dry_run"]),
        "report": (report.main, ["adir"]),
        "tune": (tune.main, ["--model", "nothing", "--dataset", "seq-digits"]),
        "export_tasks": (export_tasks.main, ["adir", "afile"]),
        "compute_forgetting": (compute_forgetting.main, ["adir"]),
        "adapt_importance": (adapt_importance.main, ["adir", "afile"]),
        "import_mlruns": (import_mlruns.main, ["adir", "--disable_log"]),
        "write_gem_file": (write_gem_file.main, ["seq-digits", "o.pt"]),
        "new_method": (in_this_folder(new_method.main), ["my_idea"]),
        "new_dataset": (in_this_folder(new_dataset.main), ["my_idea"]),
        "new_backbone": (in_this_folder(new_backbone.main), ["my_idea"]),
        "check_plugin": (check_plugin.main, ["afile"]),
        "gpu_check": (gpu_check.main, ["--device", "cpu", "--quick", "--only", "device", "--out", "o"]),
        "bench_importance": (importance.main, ["mlp-mas"]),
        "bench_shards": (shards.main, ["--gb", "0.001", "--folder", "o"]),
        "docs": (pages_alone, ["--out", "o"]),
        "check_store": (without_writers, []),
        "bench": (bench.main, ["steps", "--backbone", "mlp", "--batch_size", "2", "--n_steps", "1"]),
    }
    return methods | studies | others


def quick_flags(model: str) -> list[str]:
    """The flags with which one step of the method takes little time."""
    method = registry.plugin_class(registry.load("models", model), Method)
    return [f"--{name}={value}" for name, value in method.quick_flags.items()]


@cache
def flags_of(name: str) -> list[tuple[str, str]]:
    """Each flag of the program with the word that stands for its value in the help, "" for a switch."""
    program, tiny = programs()[name]
    told = io.StringIO()
    argv, width = sys.argv, os_columns("200")
    try:
        with redirect_stdout(told):
            program([*tiny, "--help"])
    except SystemExit:
        pass
    finally:
        sys.argv = argv
        os_columns(width)
    found = re.findall(r"^  (?:-\w, )?--(\w+)(?: ([^ \n]+))?(?:  |\n|$)", told.getvalue(), re.MULTILINE)
    return [(flag, word) for flag, word in found if flag not in LEFT_OUT]


def os_columns(width: str) -> str:
    """Set the width of argparse's help; returns the one before."""
    before = os.environ.get("COLUMNS", "80")
    os.environ["COLUMNS"] = width
    return before


def draw(number: int, seed: int) -> tuple[str, list[str]]:
    """The name of a program and a command line for it, the same for the same numbers."""
    rng = random.Random(f"flags {seed} {number}")
    kinds = ["main"] * 5 + ["study"] * 3 + ["other"] * 2
    kind = rng.choice(kinds)
    names = [name for name in programs() if kind == (name.split()[0] if " " in name else kind_of(name))]
    name = rng.choice(sorted(names))
    _, argv = programs()[name]
    argv = [rng.choice(TEXTS) if word in POSITIONAL and rng.random() < 0.3 else word for word in argv]
    for flag, word in rng.sample(flags_of(name), min(rng.randint(1, 3), len(flags_of(name)))):
        argv += [f"--{flag}={bounded(flag, draw_value(word, rng))}"] if word else [f"--{flag}"]
    return name, argv


def bounded(flag: str, value: str) -> str:
    """The value, or the bound of a flag whose large values are legal and only cost time."""
    most = COST_TIME.get(flag)
    if most is not None and re.fullmatch("[0-9]+", value) and most < int(value) < 2**31:
        return str(most)
    return value


def kind_of(name: str) -> str:
    """Whether a program trains networks for scores, or is another one."""
    return "study" if name in OUTPUTS else "other"


def draw_value(word: str, rng: random.Random) -> str:
    """A value for a flag: of its type at the edges, or anything."""
    typed = {"N": NUMBERS, "X": FRACTIONS, "N,...": NUMBERS, "X,...": FRACTIONS}.get(word, TEXTS)
    if "|" in word or word.startswith("{"):
        typed = re.split("[|,]", word.strip("[]{}"))
    values = typed if rng.random() < 0.8 else rng.choice([NUMBERS, FRACTIONS, TEXTS])
    n = rng.randint(1, 3) if word.endswith("...") else 1
    return ",".join(rng.choice(values) for _ in range(n))


def prepare(folder: Path) -> Path:
    """The folder of a trial: files and folders that the texts name."""
    work = folder / "work"
    (work / "adir").mkdir(parents=True)
    (work / "afile").write_text("no file that a program wrote\n")
    for name in ("data.npz", "data.npy", "data.yaml", "data.pt"):
        (work / name).write_bytes(b"\x93NUMPY or so: [[[")
    (work / "loop").symlink_to("loop")
    return work


def trial(number: int, seed: int, folder: Path) -> list[str]:
    """Run one; returns what was wrong with it."""
    name, argv = draw(number, seed)
    program, _ = programs()[name]
    work = prepare(folder)
    outcome = in_fork(lambda: program(argv), work)
    return [f"{name}: {' '.join(map(ascii, argv))[:600]}\n    {fault}" for fault in faults(outcome, work)]
