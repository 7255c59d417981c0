"""Methods of pre-trained encoders: passes, time and memory beside one pass of the frozen encoder.

Part `prompts` of `python -m scripts.bench`: every method that needs a vision transformer, others that tune
one, and their controls, over five tasks of two classes. Passes are counted at the encoder's patch embedding:
images that enter it over images of the batch, the task or the test set. Times are the trainer's epoch and
evaluation beside as many images through a frozen encoder, in alternating rounds. On a CPU every method has a
fork of this process, one thread and the small transformer with random weights; on a GPU there is ViT-B/16.
"""

import functools
import math
import multiprocessing
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from engram.backbones.backbone import build_network
from engram.backbones.timm_library import library as load_timm
from engram.datasets.benchmark import Benchmark
from engram.models.method import Method
from engram.scripts.analysis.table import MISSING, Table
from engram.scripts.bench.buffer import CIFAR
from engram.scripts.bench.methods import Stream
from engram.scripts.bench.timing import Figure, alternate, process_bytes, random_source, reset_peak, wait_for
from engram.utils import device as devices
from engram.utils import precision
from engram.utils.batching import evaluation_chunk
from engram.utils.config import registry
from engram.utils.config.config import resolve

N_TASKS = 5
PRECISIONS = ("fp32", "bf16")


@dataclass(frozen=True)
class Case:
    """A method and the flags that it is measured with."""

    model: str
    flags: dict[str, Any] = field(default_factory=dict)


ADAPTED = {"first_task": "adapter"}
CASES = {  # and every method whose `needs_vit` is true, with its default flags
    "sgd, head alone": Case("sgd", {"tune": "head"}),
    "sgd, adapters": Case("sgd", {"tune": "adapter"}),
    "sgd, LoRA": Case("sgd", {"tune": "lora"}),
    "sgd, everything": Case("sgd"),
    "ncm": Case("ncm"),
    "ranpac": Case("ranpac", {"rp_size": 1000}),
    "ranpac, adapters": Case("ranpac", {"rp_size": 1000, **ADAPTED}),
    "fecam, adapters": Case("fecam", ADAPTED),
    "aper, adapters": Case("aper", ADAPTED),
    "slca": Case("slca"),
}


@dataclass(frozen=True)
class Size:
    """The network, its images, and how much is measured: steps of a task, test images of all tasks."""

    flags: dict[str, Any]
    side: int
    n_steps: int
    n_test: int
    rounds: int


ON_CPU = Size({"backbone": "small_vit", "batch_size": 8}, 32, 2, 20, 3)
ON_GPU = Size({"backbone": "timm:vit_base_patch16_224", "batch_size": 64}, 224, 10, 1000, 5)


@dataclass(frozen=True)
class Costs:
    """Passes per image; times over those of the frozen encoder; MB. NaN where there is no step."""

    step_passes: float  # of a training step
    between_passes: float  # between two tasks, for each training image of the task
    evaluation_passes: float
    step_ratio: float
    evaluation_ratio: float
    peak_mb: float
    first_task: bool  # whether steps are taken in the first task alone, and were measured there


def cases() -> dict[str, Case]:
    """Name → case: the controls, then every method that needs a vision transformer."""
    classes = {
        name: registry.plugin_class(registry.load("models", name), Method)
        for name in registry.names("models")
    }
    return CASES | {name: Case(name) for name, method_class in classes.items() if method_class.needs_vit}


@contextmanager
def counted() -> Iterator[list[int]]:
    """Inside, the batch of every pass through an encoder is noted."""
    sizes: list[int] = []

    def note(module: nn.Module, given: tuple[Tensor, ...], output: object) -> None:
        if type(module).__name__ == "PatchEmbed":  # timm's, of which every transformer has one
            sizes.append(len(given[0]))

    handle = register_module_forward_hook(note)
    try:
        yield sizes
    finally:
        handle.remove()


def n_encoded(work: Callable[[], object]) -> int:
    """Images that enter an encoder while the work is done."""
    with counted() as sizes:
        work()
    return sum(sizes)


class FrozenEncoder:
    """The network alone, in eval mode and without gradients, over images that are already there."""

    def __init__(self, benchmark: Benchmark, flags: dict[str, Any]) -> None:
        config = resolve([("bench", {"model": "sgd", **flags})])
        net = build_network(config.run.backbone, config.architecture, benchmark, seed=0).eval()
        precision.use(precision.resolve(config.run.precision, benchmark.device), net)
        self.net, self.shape, self.device = net, benchmark.input_shape, benchmark.device

    @torch.no_grad()
    def encode(self, n_images: int, batch_size: int) -> None:
        """Encode so many images, in batches."""
        for batch in torch.rand(n_images, *self.shape, device=self.device).split(batch_size):
            self.net.features(batch)


def spent(work: Callable[[], object], device: torch.device) -> float:
    """Seconds that the work takes: of the processor on a CPU, where other programs run, too."""
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    wait_for(device)
    started = clock()
    work()
    wait_for(device)
    return clock() - started


def measure(case: Case, size: Size, device_name: str, kind: str) -> Costs:
    """Learn five tasks, a few steps each; the last one's steps and ends, and an evaluation, are measured."""
    device = devices.choose(device_name)
    precision.configure(kind)
    reset_peak(device)
    before = process_bytes("RssAnon")
    n_train = N_TASKS * size.n_steps * size.flags["batch_size"]
    source = random_source(n_train, size.n_test, (3, size.side, size.side))
    flags = size.flags | {"device": device_name, "precision": kind}
    stream = Stream(case.model, flags | case.flags, N_TASKS, 0, source, CIFAR)
    method, tasks, frozen = (
        stream.trainer.method,
        stream.benchmark.tasks,
        FrozenEncoder(stream.benchmark, flags),
    )
    learns_last = method.takes_steps_in(tasks[-1])
    in_first = method.takes_steps_in(tasks[0]) and not learns_last
    step_passes, step_ratio = step_costs(stream, frozen, size.rounds) if in_first else (math.nan, math.nan)
    for task in tasks[1:-1]:
        method.end_task(stream.task)
        stream.begin(task)
    method.end_task(stream.task)
    n_between = n_encoded(lambda: stream.begin(tasks[-1], n_steps=0))
    if learns_last:
        step_passes, step_ratio = step_costs(stream, frozen, size.rounds)
    n_between += n_encoded(lambda: method.end_task(tasks[-1]))
    evaluation_passes, evaluation_ratio = evaluation_costs(stream, frozen, size.rounds)
    peak = process_bytes("VmHWM") - process_bytes("RssFile") - before
    return Costs(
        step_passes=step_passes,
        between_passes=n_between / len(stream.benchmark.train(tasks[-1]).y),
        evaluation_passes=evaluation_passes,
        step_ratio=step_ratio,
        evaluation_ratio=evaluation_ratio,
        peak_mb=(torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak) / 1e6,
        first_task=in_first,
    )


def step_costs(stream: Stream, frozen: FrozenEncoder, rounds: int) -> tuple[float, float]:
    """Passes of a step, and its time over that of a frozen pass of its batch."""
    batch = next(iter(stream.benchmark.batches(stream.task, 0, stream.size)))
    passes = n_encoded(lambda: stream.trainer.method.observe(batch)) / len(batch.y)
    return passes, times(stream.epoch, frozen, stream.n_steps * stream.size, stream.size, rounds)


def evaluation_costs(stream: Stream, frozen: FrozenEncoder, rounds: int) -> tuple[float, float]:
    """Passes of an evaluation of all tasks, and its time over that of frozen passes of its images."""
    n_test = int(stream.benchmark.test_ends[-1])
    chunk = evaluation_chunk(frozen.net, frozen.shape, frozen.device)
    passes = n_encoded(stream.evaluation) / n_test
    return passes, times(stream.evaluation, frozen, n_test, chunk, rounds)


def times(work: Callable[[], object], frozen: FrozenEncoder, n: int, batch_size: int, rounds: int) -> float:
    """The time of the work over that of n images through the frozen encoder: the median of the rounds."""
    ours = functools.partial(spent, work, frozen.device)
    theirs = functools.partial(spent, lambda: frozen.encode(n, batch_size), frozen.device)
    return alternate(ours, theirs, rounds)[2]


def apart(case: Case, size: Size, device_name: str, kind: str) -> Costs:
    """The costs, on a CPU measured in a fork, whose memory holds nothing of other methods."""
    if device_name != "cpu":
        return measure(case, size, device_name, kind)
    torch.set_num_threads(1)
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.apply(measure, (case, size, device_name, kind))


def prompts(device_name: str) -> list[Figure]:
    """Measure every case in both precisions; a figure for each."""
    size = ON_GPU if device_name.startswith("cuda") else ON_CPU
    load_timm()  # once, before the forks whose memory is measured
    return [
        figure(name, kind, apart(case, size, device_name, kind))
        for name, case in cases().items()
        for kind in PRECISIONS
    ]


def figure(name: str, kind: str, costs: Costs) -> Figure:
    """The costs as a line; numbers that do not exist are left out."""
    numbers = {key: float(value) for key, value in asdict(costs).items() if not math.isnan(value)}
    step = "it takes no steps"
    if "step_ratio" in numbers:
        step = f"a step {costs.step_passes:g} passes, {costs.step_ratio:.2f} times a frozen pass"
        step += " (in the first task, the only one with steps)" if costs.first_task else ""
    text = (
        f"{name}, {kind}: {step}; between tasks {costs.between_passes:g} passes; evaluation "
        f"{costs.evaluation_passes:g} passes, {costs.evaluation_ratio:.2f} times; peak {costs.peak_mb:.0f} MB"
    )
    return Figure(f"{name}, {kind}", text, numbers)


def table(figures: list[Figure], system: str) -> Table:
    """The figures of `prompts` as a table: a row for each case, the two precisions side by side."""
    rows: dict[str, list[dict[str, float]]] = {}
    for figure in figures:
        rows.setdefault(figure.name.rpartition(", ")[0], []).append(figure.numbers)
    head = [
        "method", "passes of a step", "between tasks", "of an evaluation",
        "time of a step", "of an evaluation", "peak MB",
    ]  # fmt: skip
    cells = [
        [
            name + (" (steps in the first task)" if both[0]["first_task"] else ""),
            *(
                number(both[0].get(key), "g")
                for key in ("step_passes", "between_passes", "evaluation_passes")
            ),
            *(
                " / ".join(number(n.get(key), ".2f") for n in both)
                for key in ("step_ratio", "evaluation_ratio")
            ),
            " / ".join(number(n["peak_mb"], ".0f") for n in both),
        ]
        for name, both in rows.items()
    ]
    note = (
        "Passes: images that enter the encoder, over those of the batch, of the task's training set, of the "
        f"test set. Times: over a frozen pass of as many images. Two: {' / '.join(PRECISIONS)}. {system}"
    )
    return Table("", head, cells, note)


def number(value: float | None, form: str) -> str:
    """A number in a cell, or the sign that there is none."""
    return MISSING if value is None else format(value, form)
