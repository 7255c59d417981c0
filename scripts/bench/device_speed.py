"""How fast is the device: steps in every precision, seeds together, networks per hour, evaluation.

Sections four to seven of `scripts/gpu_check.sh`. Images are random: their content does not change the time.
"""

import functools
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from engram.scripts.bench import evaluation
from engram.scripts.bench.buffer import LoopBuffer, pil_transform
from engram.scripts.bench.check_runner import Check, Finding, SkippedCheck
from engram.scripts.bench.data import pil_loader
from engram.scripts.bench.device_checks import prototypes, small_method
from engram.scripts.bench.methods import METHODS, Stream
from engram.scripts.bench.steps import Settings, flops, loader_epoch, peak_flops
from engram.scripts.bench.timing import wait_for
from engram.utils import device as devices
from engram.utils import precision
from engram.utils.training import interleaved
from engram.utils.training.interleaved import InterleavedJob
from engram.utils.training.optimizers import build_optimizer
from engram.utils.training.step_graph import StepGraph
from engram.utils.training.trainer import Trainer

MODELS = ("er", "derpp", "maer", "ewc")
PRECISIONS = ("fp32", "tf32", "bf16")
N_SEEDS = 4


def settings(device: torch.device, quick: bool, **chosen: object) -> Settings:
    """ResNet-18 at batch 32 and 200 steps; quick: the cnn at batch 8 and 3 steps."""
    size = {"backbone": "cnn", "batch_size": 8, "n_steps": 3} if quick else {"n_steps": 200}
    return replace(Settings(device=str(device), **size), **chosen)  # type: ignore[arg-type]


def configured_stream(model: str, chosen: Settings) -> Stream:
    """The method in its second task, this process's arithmetic set as main.py sets it."""
    device = devices.choose(chosen.device)
    precision.configure(precision.resolve(chosen.precision, device))
    stream = chosen.stream(model, chosen.compile)
    precision.time_convolutions(stream.trainer.method.net, device)
    return stream


def step_speed(model: str, chosen: Settings, captured: bool = False) -> Finding:
    """Images/s of our step and its share of the arithmetic that a large matrix product reaches.

    captured: the whole step is one CUDA graph; raises `AssertionError` with the reason where it cannot be.
    """
    device = devices.choose(chosen.device)
    arithmetic = flops(configured_stream(model, replace(chosen, compile=False)))
    stream = configured_stream(model, chosen)
    if captured:
        stream.trainer.graph = StepGraph(stream.trainer.method, stream.size, _refused)
    stream.epoch()
    seconds = min(stream.epoch() for _ in range(3)) / stream.n_steps
    share = arithmetic / seconds / peak_flops(device, chosen.precision)
    rate = stream.size / seconds
    text = f"{rate:,.0f} images/s, {1e3 * seconds:.2f} ms a step, {100 * share:.1f} % of a matrix product"
    return Finding(text, {"images_per_s": rate, "seconds": seconds, "share_of_peak": share})


def _refused(line: str) -> None:
    raise AssertionError(line)


def loader_speed(model: str, chosen: Settings) -> Finding:
    """Images/s of the passes that the method needs, over a DataLoader with PIL transforms and two workers."""
    stream = configured_stream(model, chosen)
    n = stream.n_steps * stream.size
    loader = pil_loader(chosen.source, 2, n, stream.size, chosen.augment)
    return _rate(lambda: loader_epoch(stream, METHODS[model], loader), n, "a DataLoader's loop")


def mammoth_speed(model: str, chosen: Settings) -> Finding:
    """Images/s of er or derpp as mammoth writes them: a buffer filled and drawn sample by sample."""
    stream = configured_stream(model, chosen)
    n = stream.n_steps * stream.size
    loader = pil_loader(chosen.source, 2, n, stream.size, chosen.augment)
    return _rate(lambda: mammoth_epoch(stream, chosen, loader, model), n, "a mammoth-style loop")


def _rate(epoch: Callable[[], float], n: int, what: str) -> Finding:
    epoch()
    rate = n / min(epoch() for _ in range(2))
    return Finding(f"{rate:,.0f} images/s, {what}", {"images_per_s": rate})


def mammoth_epoch(stream: Stream, chosen: Settings, loader: Iterator, model: str) -> float:
    """Seconds of an epoch: images drawn one by one through PIL, the loss read after every step."""
    net, device, size = stream.trainer.method.net, stream.device, stream.size
    optimizer = build_optimizer(list(net.parameters()), stream.trainer.config.train)
    buffer = LoopBuffer(pil_transform(chosen.augment, chosen.source.train_x.shape[-1]))
    to_add = chosen.source.train_x[:size].float() / 255
    buffer.add(to_add, torch.arange(size) % 10, torch.zeros(size), torch.arange(size))

    def replayed() -> tuple[Tensor, Tensor]:
        x, y, *_ = buffer.take(size)
        return x.to(device), y.to(device)

    started = time.perf_counter()
    for host_x, host_y in loader:
        x, y = host_x.to(device), host_y.to(device)
        optimizer.zero_grad()
        if model == "er":
            old_x, old_y = replayed()
            loss = F.cross_entropy(net(torch.cat([x, old_x])), torch.cat([y, old_y]))
        else:  # derpp: the stream, remembered logits, remembered labels
            loss = F.cross_entropy(net(x), y)
            old_x, _ = replayed()
            logits = net(old_x)
            loss = loss + 0.1 * F.mse_loss(logits, torch.zeros_like(logits))
            old_x, old_y = replayed()
            loss = loss + 0.5 * F.cross_entropy(net(old_x), old_y)
        loss.backward()
        optimizer.step()
        buffer.add(to_add[: len(y)], host_y, torch.zeros(len(y)), torch.arange(len(y)))
        loss.item()
    wait_for(device)
    return time.perf_counter() - started


def seeds_together(device: torch.device, quick: bool) -> Finding:
    """Time of four runs of er that take turns in one process (`--seeds_together`) over that of one."""
    deep = {"backbone": "cnn"} if quick else {"backbone": "resnet18", "batch_size": 32}
    source = prototypes(200 if quick else 12_800, 100, size=8 if quick else 32)
    clock = time.process_time if device.type == "cpu" else time.perf_counter

    def run(seed: int) -> int:
        method, config = small_method("er", device, source, seed=seed, n_tasks=2, **deep)
        trainer = Trainer(config, method, folder=None, quiet=True)  # type: ignore[arg-type]
        trainer.save = lambda: None  # type: ignore[method-assign]
        trainer.run()
        wait_for(device)
        return 0

    def seconds(n: int, folder: str) -> float:
        jobs = [InterleavedJob(functools.partial(run, i), f"{folder}/{i}.txt", str(device)) for i in range(n)]
        started = clock()
        if interleaved.run_interleaved(jobs):
            texts = [Path(job.output).read_text(encoding="utf-8")[-200:] for job in jobs]
            raise RuntimeError(f"a run failed: {texts}")
        return clock() - started

    with tempfile.TemporaryDirectory() as folder:
        seconds(1, folder)
        one, several = seconds(1, folder), seconds(N_SEEDS, folder)
    text = f"{N_SEEDS} seeds / 1 seed = {several / one:.2f} ({several:.1f} s and {one:.1f} s)"
    return Finding(text, {"ratio": several / one, "one_s": one, "several_s": several})


def networks_per_hour(backbone: str, device: torch.device, quick: bool) -> Finding:
    """Rate of train_splits on 2,500 random images a network, 32 networks stacked as measures fastest."""
    # only this check needs scikit-learn, which the programs of memorization import
    from engram.memorization import training
    from engram.scripts.bench import memorization

    options = memorization.options_of(backbone, str(device))
    stack = n = 4 if quick else memorization.R
    machine = replace(options.machine, use_multiprocessing=False)
    recipe = replace(options.recipe, n_epochs=1) if quick else options.recipe
    options = replace(options, machine=machine, recipe=recipe)
    if not quick:
        data = memorization.data_of(memorization.PARTS[backbone], device)
        stack = training.fastest_stack_size(options, data, memorization.N // 2, memorization.R)
    seconds, _ = memorization.ours(backbone, options, stack, n)
    rate = 3600 * n / seconds
    n_epochs = options.recipe.n_epochs
    text = f"{rate:,.0f} networks/h of {n_epochs} epochs, {stack} as one ({seconds:.1f} s)"
    return Finding(text, {"networks_per_hour": rate, "epochs": n_epochs, "stack": stack})


def evaluation_speed(backbone: str, device: torch.device, quick: bool) -> Finding:
    """Images/s of an evaluation beside those of the network alone."""
    figure = evaluation.compared(backbone, device, rounds=1 if quick else 5)
    return Finding(figure.text, figure.numbers)


def step_checks(device: torch.device, quick: bool) -> list[Check]:
    """Eager steps, the other sides' loops, captured steps, then compiled ones, a minute each to compile."""
    checks = [
        Check(
            f"{model}, {kind}", functools.partial(step_speed, model, settings(device, quick, precision=kind))
        )
        for kind in (PRECISIONS if device.type == "cuda" else ("fp32", "bf16"))
        for model in (MODELS[:2] if quick else MODELS)
    ]
    plain = settings(device, quick, precision="bf16")
    for loop, models in ((loader_speed, MODELS), (mammoth_speed, ("er", "derpp"))):
        name = loop.__name__.removesuffix("_speed")
        checks += [
            Check(f"{model}, bf16, {name} loop", functools.partial(loop, model, plain))
            for model in models[: 1 if quick else None]
        ]
    checks += [
        Check(f"{model}, {precision}, captured", functools.partial(captured_speed, model, device, precision))
        for precision in ("bf16", "fp32")
        for model in MODELS
    ]
    checks += [
        Check(f"{model}, {precision}, compiled", functools.partial(compiled_speed, model, device, precision))
        for precision in ("bf16", "tf32", "fp32")
        for model in MODELS
    ]
    return checks


def captured_speed(model: str, device: torch.device, precision: str, quick: bool = False) -> Finding:
    """Our step as one CUDA graph, which `--compile` makes of it."""
    if device.type != "cuda":
        raise SkippedCheck("a CPU has no CUDA graphs")
    return step_speed(model, settings(device, quick, precision=precision), captured=True)


def compiled_speed(model: str, device: torch.device, precision: str) -> Finding:
    """Our step with its training passes compiled and captured as CUDA graphs."""
    if device.type != "cuda":
        raise SkippedCheck("--compile gains nothing on a CPU")
    return step_speed(model, settings(device, quick=False, precision=precision, compile=True))


def seed_checks(device: torch.device, quick: bool) -> list[Check]:
    """Several seeds in one process against one."""
    return [Check("er", functools.partial(seeds_together, device, quick))]


def network_checks(device: torch.device, quick: bool) -> list[Check]:
    """Networks per hour of each backbone of the memorization benchmark that the time allows."""
    names = ("mlp",) if quick else ("mlp", "cnn", "resnet18")
    return [Check(name, functools.partial(networks_per_hour, name, device, quick)) for name in names]


def evaluation_checks(device: torch.device, quick: bool) -> list[Check]:
    """Evaluation of each backbone (quick: of the mlp)."""
    names = ("mlp",) if quick else tuple(evaluation.CASES)
    return [Check(name, functools.partial(evaluation_speed, name, device, quick)) for name in names]
