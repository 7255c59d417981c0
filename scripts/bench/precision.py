"""Precision: bf16 against fp32, a training step of SGD and an evaluation, of convolutional networks.

Part `precision` of `python -m scripts.bench`: CIFAR-sized random images; on a CPU with one thread and with
all cores. Both sides are the trainer's own epoch and evaluation, in alternating rounds of one process.
"""

import os

import torch

from engram.scripts.bench.buffer import CIFAR
from engram.scripts.bench.methods import Stream
from engram.scripts.bench.timing import Figure, alternate, random_source
from engram.utils import device as devices

BATCH, N_TEST = 32, 100  # N_TEST: images of each of the two tasks on a CPU
CASES = {"cnn": 24, "resnet18": 3}  # steps of an epoch on a CPU
ON_GPU = 50  # times as many


def compared(backbone: str, device: str, n_threads: int, rounds: int = 5) -> list[Figure]:
    """The figures of training and of evaluation; ratio: the time in bf16 over that in fp32."""
    times = ON_GPU if device.startswith("cuda") else 1
    n_steps = CASES[backbone] * times
    source = random_source(2 * n_steps * BATCH, 2 * N_TEST * times, (3, 32, 32))
    flags = {"backbone": backbone, "batch_size": BATCH, "device": device}
    low, full = (Stream("sgd", flags | {"precision": name}, 2, 1, source, CIFAR) for name in ("bf16", "fp32"))
    on = device if device.startswith("cuda") else f"{n_threads} thread{'s' * (n_threads > 1)}"
    figures = []
    for what, run_low, run_full in (
        (f"training, batch {BATCH}", low.epoch, full.epoch),
        ("evaluation", low.evaluation, full.evaluation),
    ):
        in_low, in_full, ratio = alternate(run_low, run_full, rounds)
        name = f"bf16 / fp32, {backbone}, {on}, {what}"
        text = f"{name} = {ratio:.2f}  (medians of {rounds} rounds: {in_low:.3f} s, {in_full:.3f} s)"
        figures.append(Figure(name, text, {"ratio": ratio, "bf16_s": in_low, "fp32_s": in_full}))
    return figures


def precisions(device_name: str) -> list[Figure]:
    """Measure the cnn and ResNet-18, on a CPU with one thread and with all cores."""
    device = devices.choose(device_name)
    n_cores = len(os.sched_getaffinity(0))
    figures = []
    for n_threads in (1,) if device.type == "cuda" else sorted({1, n_cores}):
        torch.set_num_threads(n_threads)
        for backbone in CASES:
            figures += compared(backbone, device_name, n_threads)
    return figures
