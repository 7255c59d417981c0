"""Seeds at once: a sweep over several seeds against one run alone, as a user starts them.

Part `seeds` of `python -m scripts.bench`: er on seq-mnist with the mlp, a process for each core; on a GPU
er on seq-cifar10 with ResNet-18, all seeds sharing it, in processes of their own and in one, where they
take turns (utils/training/interleaved.py). Both sides include the start of Python and torch.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from engram.scripts.bench.timing import Figure
from engram.utils import device as devices
from engram.utils.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
CPU = ("--dataset", "seq-mnist", "--buffer_size", "500")
GPU = ("--dataset", "seq-cifar10", "--backbone", "resnet18", "--batch_size", "32", "--buffer_size", "500",
       "--n_epochs", "3", "--precision", "bf16", "--compile")  # fmt: skip


def seeds(device: str, data_dir: str, rounds: int = 2) -> list[Figure]:
    """Wall time of 5 seeds over that of one; on a GPU of 4, in processes and together in one."""
    on_gpu = devices.choose(device).type == "cuda"
    n, flags = (4, GPU) if on_gpu else (5, CPU)
    ways = {"a process for each core": ()}
    if on_gpu:
        ways = {"in processes": ("--runs_per_gpu", str(n), "--jobs", str(n)),
                "in one process": ("--seeds_together", str(n), "--jobs", "1")}  # fmt: skip
    fixed = (*flags, "--device", device, "--data_dir", data_dir, "--disable_log", "--ignore_other_metrics")
    figures = []
    for way, sharing in ways.items():
        pairs = [(sweep(1, sharing, fixed), sweep(n, sharing, fixed)) for _ in range(rounds)]
        one, several = (min(pair[i] for pair in pairs) for i in (0, 1))
        text = (
            f"seeds at once, er on {flags[1]}, {way}: {n} seeds / 1 seed = {several / one:.2f}  (best of "
            f"{rounds} rounds: {several:.1f} s, {one:.1f} s)"
        )
        numbers = {"ratio": several / one, "one_s": one, "several_s": several}
        figures.append(Figure(f"seeds at once, {way}", text, numbers))
    return figures


def sweep(n: int, sharing: tuple[str, ...], fixed: tuple[str, ...]) -> float:
    """Seconds of scripts/sweep.py over `n` seeds; raises `UserError` with its reason if a run fails."""
    with tempfile.TemporaryDirectory() as folder:
        grid = ("--model", "er", "--seed", *map(str, range(n)), "--output_dir", folder, *sharing)
        command = [sys.executable, str(ROOT / "scripts" / "sweep.py"), *grid, "--", *fixed]
        started = time.perf_counter()
        done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
        if done.returncode:
            reason = (done.stdout + done.stderr).partition("error: ")[2].partition("\n")[0]
            raise UserError(reason or f"a sweep failed: {' '.join(command)}")
        return time.perf_counter() - started
