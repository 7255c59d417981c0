"""A training step of any method: time, images/s, what it is spent on, memory, share of the machine's peak.

Part `steps` of `python -m scripts.bench`, on the CPU or a GPU. Images are random and of CIFAR's size (of
MNIST's for the mlp). The other sides, in alternating rounds: `bare`, a plain loop of the passes that the
method cannot do without, over float images in memory; `loader`, the same loop fed by torchvision's PIL
transforms in a DataLoader; `plain`, our own step without --compile. The split waits for the device at every
change of purpose, so on a GPU its sum is longer than the step.
"""

import functools
import os
import resource
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from engram.backbones.compiled import compile_passes
from engram.datasets.augment import Augment
from engram.scripts.bench.buffer import CIFAR
from engram.scripts.bench.data import pil_loader
from engram.scripts.bench.methods import METHODS, Case, Stream, bare_epoch, bare_steps
from engram.scripts.bench.timing import Figure, alternate, random_source, wait_for
from engram.utils import compat, precision
from engram.utils import device as devices

AGAINST = ("bare", "loader", "plain")
EPOCHS, N_IMAGES = 50, 50_000  # of the run whose length is told: the memorization paper's on CIFAR-100


@dataclass(frozen=True)
class Settings:
    """What is trained, where and how; as main.py's flags of the same names."""

    models: tuple[str, ...] = ("er",)
    backbone: str = "resnet18"
    batch_size: int = 32
    device: str = "cpu"
    precision: str = "fp32"
    compile: bool = False
    against: tuple[str, ...] = ("bare",)
    n_steps: int = 8

    @property
    def source(self):
        """Random images for two tasks of `n_steps` batches each, in up to ten classes."""
        shape = (1, 28, 28) if self.backbone == "mlp" else (3, 32, 32)
        n_images = 2 * self.n_steps * self.batch_size
        return random_source(n_images, 500, shape, n_classes=min(10, n_images))

    @property
    def augment(self) -> Augment:
        """The augmentation of CIFAR; MNIST has none."""
        return Augment() if self.backbone == "mlp" else CIFAR

    def stream(self, model: str, compiled: bool) -> Stream:
        """The method in its second task."""
        names = ("backbone", "batch_size", "device", "precision")
        flags = {name: getattr(self, name) for name in names} | METHODS[model].flags
        stream = Stream(model, flags | {"compile": compiled}, 2, 1, self.source, self.augment)
        if compiled:  # whether it pays is what is measured
            compile_passes(stream.trainer.method.net)
        return stream


class Stopwatch:
    """Seconds by purpose; those of an inner purpose do not count for the outer one."""

    def __init__(self, device: torch.device):
        self.device, self.seconds = device, defaultdict(float)
        self._purposes: list[str] = []
        self._since = 0.0

    @contextmanager
    def during(self, purpose: str) -> Iterator[None]:
        """What runs inside is for this purpose."""
        self._stop()
        self._purposes.append(purpose)
        try:
            yield
        finally:
            self._stop()
            self._purposes.pop()

    def _stop(self) -> None:
        wait_for(self.device)
        now = time.perf_counter()
        if self._purposes:
            self.seconds[self._purposes[-1]] += now - self._since
        self._since = now

    def timed(self, function: Callable, purpose: str) -> Callable:
        """The function, its time for this purpose."""

        @functools.wraps(function)
        def run(*args, **kwargs):
            with self.during(purpose):
                return function(*args, **kwargs)

        return run

    def drawn(self, batches: Iterable, purpose: str) -> Iterator:
        """The batches, the time to make them for this purpose."""
        batches = iter(batches)
        while True:
            with self.during(purpose):
                batch = next(batches, None)
            if batch is None:
                return
            yield batch


def split(stream: Stream) -> dict[str, float]:
    """Seconds of a step by purpose, over an epoch."""
    method, benchmark = stream.trainer.method, stream.benchmark
    watch = Stopwatch(method.device)
    buffer, own_batches = getattr(method, "buffer", None), benchmark.batches
    own_backward, short_backward = torch.Tensor.backward, compat.backward
    patched = [(method.net, "features", "forward"), (method.net.head, "forward", "forward")]
    patched += [(method.optimizer, name, "optimizer") for name in ("step", "zero_grad")]
    patched += [(method, "augment", "buffer"), (method, "observe", "method")]
    patched += [(buffer, name, "buffer") for name in ("add", "slots", "at", "replace") if buffer is not None]
    before = [(thing, name, vars(thing).get(name)) for thing, name, _ in patched]
    try:
        for thing, name, purpose in patched:
            setattr(thing, name, watch.timed(getattr(thing, name), purpose))
        benchmark.batches = lambda *args: watch.drawn(own_batches(*args), "data")
        torch.Tensor.backward = watch.timed(own_backward, "backward")
        compat.backward = watch.timed(short_backward, "backward")
        with watch.during("trainer"):
            stream.epoch()
    finally:
        torch.Tensor.backward, compat.backward = own_backward, short_backward
        del benchmark.batches
        for thing, name, value in before:
            setattr(thing, name, value) if value is not None else delattr(thing, name)
    return {purpose: seconds / stream.n_steps for purpose, seconds in watch.seconds.items()}


def loader_epoch(stream: Stream, case: Case, loader) -> float:
    """Seconds of the bare loop over the task's images as a DataLoader gives them."""
    wide = max(case.trained + case.forward)

    def batches() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for x, y in loader:
            x, y = x.to(stream.device, non_blocking=True), y.to(stream.device, non_blocking=True)
            yield x.repeat(wide, 1, 1, 1), y.repeat(wide)

    return bare_steps(stream, case, batches())


def flops(stream: Stream) -> float:
    """Floating-point operations of a step, forward and backward."""
    # Imported here: it imports Triton, which makes --help slow and prints a page of its own at the exit.
    from torch.utils.flop_counter import FlopCounterMode

    method = stream.trainer.method
    with FlopCounterMode(display=False) as counter:
        method.observe(next(iter(stream.benchmark.batches(stream.task, 0, stream.size))))
    return counter.get_total_flops()


def peak_flops(device: torch.device, precision: str, n: int = 4096) -> float:
    """Floating-point operations a second of a large matrix product, in that precision."""
    n = n if device.type == "cuda" else n // 4
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.randn(n, n, device=device, dtype=kind) for _ in range(2))
    best = float("inf")
    for _ in range(5):
        wait_for(device)
        started = time.perf_counter()
        for _ in range(5):
            a @ b
        wait_for(device)
        best = min(best, (time.perf_counter() - started) / 5)
    return 2 * n**3 / best


def peak_memory(device: torch.device) -> float:
    """MB: of the device's memory, or of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def steps(settings: Settings) -> list[Figure]:
    """Two figures and one for each other side, for every method."""
    device = devices.choose(settings.device)
    torch.set_num_threads(1 if settings.backbone == "mlp" else os.cpu_count())
    precision.configure(settings.precision)
    peak, figures = peak_flops(device, settings.precision), []
    for model in settings.models:
        per_step = flops(settings.stream(model, compiled=False))
        stream = settings.stream(model, settings.compile)
        for other in settings.against:
            figures.append(compared(settings, model, stream, other))
        figures += [alone(settings, model, stream, per_step, peak), by_purpose(settings, model, stream)]
    return figures


def compared(settings: Settings, model: str, stream: Stream, other: str) -> Figure:
    """Our step beside another side's, whose network is never compiled."""
    case, plain = METHODS[model], settings.stream(model, compiled=False)
    if other == "bare":
        run = functools.partial(bare_epoch, plain, case)
    elif other == "loader":
        n = stream.n_steps * stream.size
        workers = min(2, len(os.sched_getaffinity(0)))
        loader = pil_loader(settings.source, workers, n, stream.size, settings.augment)
        run = functools.partial(loader_epoch, plain, case, loader)
    else:
        run = plain.epoch
    ours, theirs, ratio = alternate(stream.epoch, run, rounds=5)
    per_step = {"ours": ours / stream.n_steps, "theirs": theirs / stream.n_steps}
    text = f"{title(settings, model)}: step / {other} = {ratio:.3f}  ({1e3 * per_step['ours']:.2f} and "
    return Figure(
        f"{model} / {other}", f"{text}{1e3 * per_step['theirs']:.2f} ms)", {"ratio": ratio, **per_step}
    )


def alone(settings: Settings, model: str, stream: Stream, per_step: float, peak: float) -> Figure:
    """Our step's speed and what the machine could do."""
    seconds = min(stream.epoch() for _ in range(3)) / stream.n_steps
    wide = sum(METHODS[model].trained) * settings.batch_size
    share, memory = per_step / seconds / peak, peak_memory(stream.device)
    whole = EPOCHS * -(-N_IMAGES // settings.batch_size) * seconds
    stream.evaluation()  # the first prepares
    rate = 1e3 * stream.evaluation() / len(stream.benchmark.test(2).y) * 100
    text = (
        f"{title(settings, model)}: {1e3 * seconds:.2f} ms a step, {wide / seconds:,.0f} trained images/s, "
        f"{100 * share:.0f} % of a matrix product's {peak / 1e12:.2f} TFLOP/s; evaluation {rate:.2f} ms per "
        f"100 images; peak memory {memory:,.0f} MB; {EPOCHS} epochs of {N_IMAGES:,} images "
        f"{whole / 60:.1f} min"
    )
    numbers = {"seconds": seconds, "images_per_s": wide / seconds, "share_of_peak": share}
    return Figure(model, text, numbers | {"peak_mb": memory, "run_s": whole, "eval_ms_per_100": rate})


def by_purpose(settings: Settings, model: str, stream: Stream) -> Figure:
    """Where a step's time goes."""
    parts = split(stream)
    total = sum(parts.values())
    listed = ", ".join(f"{k} {100 * v / total:.0f} %" for k, v in sorted(parts.items(), key=lambda p: -p[1]))
    return Figure(f"{model} split", f"{title(settings, model)}: {listed}", parts)


def title(settings: Settings, model: str) -> str:
    """What is measured, in short."""
    compiled = ", compiled" if settings.compile else ""
    return f"{model}, {settings.backbone}, batch {settings.batch_size}, {settings.precision}{compiled}"
