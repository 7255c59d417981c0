"""Does every method train on the device, does a step wait for it, does it compute what the CPU computes?

The first three sections of `scripts/gpu_check.sh`. Images are real digits where scikit-learn is installed,
else noisy prototypes of ten classes; networks are small.
"""

import contextlib
import functools
from collections.abc import Iterator

import numpy as np
import torch

from engram.backbones.backbone import build_network
from engram.datasets import sources
from engram.datasets.augment import Augment
from engram.datasets.benchmark import Task
from engram.datasets.sources import Source
from engram.datasets.streams import class_incremental, domain_incremental
from engram.memorization import proxies
from engram.models.build import build_setup
from engram.models.method import Method
from engram.scripts.bench.check_runner import Check, Finding, SkippedCheck
from engram.utils import device as devices
from engram.utils import precision
from engram.utils.config import registry
from engram.utils.config.config import Config, resolve
from engram.utils.errors import UserError
from engram.utils.training.environment import device_name
from engram.utils.training.optimizers import build_optimizer
from engram.utils.training.trainer import Trainer

N_STEPS = 20
# Methods whose step reads from the device; MAY_WAIT in tests/contract/test_device.py has the reasons.
MAY_WAIT = ("gem",)
COMPARED = ("er", "derpp", "maer", "ewc", "gem", "lwf")
# |R on the device - R on the CPU|: sums in another order grow apart over hundreds of steps. A task has some
# 70 test digits, so an entry of R moves in steps of 0.014.
LARGEST_DIFFERENCE, MEAN_DIFFERENCE = 0.10, 0.02
BACKBONES = {"mlp": {"hidden_sizes": (16,)}, "cnn": {"channels": (4, 8)}}
VIT = "small_vit"  # with the sizes in `quick_flags`; the only network of methods that need its hooks


def prototypes(n_train: int, n_test: int, size: int = 8, n_classes: int = 10) -> Source:
    """Noisy class prototypes, grey images of `size` x `size`: learnable, and made without any data set."""
    draws = torch.Generator().manual_seed(0)
    means = torch.randint(0, 256, (n_classes, 1, size, size), generator=draws)
    y = torch.arange(n_train + n_test) % n_classes
    noise = torch.randint(-90, 91, (len(y), 1, size, size), generator=draws)
    x = (means[y] + noise).clamp(0, 255).to(torch.uint8)
    names = tuple(map(str, range(n_classes)))
    return Source("prototypes", x[:n_train], y[:n_train], x[n_train:], y[n_train:], names)


def digits_or_prototypes() -> Source:
    """The images of seq-digits, or prototypes where they cannot be made."""
    try:
        return sources.digits()
    except ImportError:  # of scikit-learn, or of its version
        return prototypes(1437, 360)


def small_method(model: str, device: torch.device, source: Source, **flags: object) -> tuple[Method, Config]:
    """The method in its first scenario, five tasks of two classes or five permutations of the pixels."""
    method_class = registry.plugin_class(registry.load("models", model), Method)
    scenario = method_class.scenarios[0]
    given = {"n_tasks": 5, "batch_size": 10, "n_epochs": 1, "lr": 0.05, "disable_log": True, "num_threads": 1}
    given |= {"model": model, "device": str(device), "multi_head": scenario == "task-il"}
    config = resolve([("check", given | method_class.quick_flags | flags)])
    precision.configure(precision.resolve(config.run.precision, device))
    augment = Augment()
    if scenario == "domain-il":
        n_pixels = source.train_x[0].numel()
        orders = [np.random.RandomState(i).permutation(n_pixels) for i in range(config.stream.n_tasks)]
        transforms = [lambda raw, order=o: raw.flatten(1)[:, order].view_as(raw) for o in orders]
        benchmark = domain_incremental("check", source, augment, transforms, config, device)
    else:
        benchmark = class_incremental("check", source, augment, config, device)
    net = build_network(config.run.backbone, config.architecture, benchmark, config.run.seed)
    return method_class(net, config.method, build_setup(config, benchmark, proxies.create)), config


def trained(method: Method, config: Config) -> np.ndarray:
    """Train on the stream; returns R of the method's first view, (tasks, tasks)."""
    trainer = Trainer(config, method, folder=None, quiet=True)  # type: ignore[arg-type]  # nothing is saved
    trainer.save = lambda: None  # type: ignore[method-assign]
    return np.asarray(next(iter(trainer.run().R.values())))


def learns(model: str, backbone: str, device: torch.device) -> Finding:
    """Two tasks of a few steps with evaluations and ends of tasks; everything is finite and on the device."""
    flags = {"backbone": backbone, "n_tasks": 2, "n_iters": 6, **BACKBONES.get(backbone, {})}
    source = prototypes(160, 40)
    try:
        method, config = small_method(model, device, source, **flags)
    except UserError as error:
        if backbone == "mlp":
            raise
        raise SkippedCheck(str(error)) from error
    R = trained(method, config)
    parameters = dict(method.net.named_parameters())
    astray = [name for name, p in parameters.items() if p.device.type != device.type]
    assert not astray, f"not on {device}: {astray[:3]}"
    broken = [name for name, p in parameters.items() if not torch.isfinite(p).all()]
    assert not broken, f"not finite: {broken[:3]}"
    assert np.nanmin(R) >= 0 and np.nanmax(R) <= 1, R
    return Finding("trains", {"accuracy": float(np.nanmean(R[-1]))})


@contextlib.contextmanager
def no_waits() -> Iterator[None]:
    """Inside, an operation that waits for the device raises."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def never_waits(model: str, device: torch.device) -> Finding:
    """Some steps of the second task, with a memory that is full of the first."""
    if model in MAY_WAIT:
        raise SkippedCheck("its algorithm reads from the device once a step")
    if device.type != "cuda":
        raise SkippedCheck("torch.cuda.set_sync_debug_mode needs CUDA")
    backbone = VIT if needs_vit(model) else "mlp"
    method, config = small_method(model, device, prototypes(1000, 50), backbone=backbone, n_tasks=2)
    streams = {"joint": method.benchmark.joint, "cumulative": method.benchmark.cumulative}
    tasks = streams.get(method.stream, lambda: method.benchmark.tasks)()[:2]
    for task in tasks[:-1]:
        learn(method, config, task)
        method.end_task(task)
    n = learn(method, config, tasks[-1], watched=True)
    return Finding(f"{n} steps without a wait", {"steps": n})


def learn(method: Method, config: Config, task: Task, watched: bool = False) -> int:
    """Take at most `N_STEPS` steps of a task, its batches made before; returns how many."""
    method.enter(task)
    method.net.train()
    method.begin_task(task)
    method.optimizer = build_optimizer(method.trainable().items(), config.train)
    batches = list(method.benchmark.batches(task, 0, config.train.batch_size))[:N_STEPS]
    with no_waits() if watched else contextlib.nullcontext():
        for batch in batches:
            method.observe(batch)
    return len(batches)


def same_as_on_the_cpu(model: str, device: torch.device, n_epochs: int) -> Finding:
    """R on seq-digits here and on the CPU, from the same weights, orders and draws."""
    source, flags = digits_or_prototypes(), {"backbone": "mlp", "n_epochs": n_epochs, "precision": "fp32"}
    here, on_cpu = (trained(*small_method(model, d, source, **flags)) for d in (device, torch.device("cpu")))
    assert np.array_equal(np.isnan(here), np.isnan(on_cpu)), "other entries of R were evaluated"
    difference = np.abs(here - on_cpu)
    largest, mean = float(np.nanmax(difference)), float(np.nanmean(difference))
    text = f"|R - R of the CPU| at most {largest:.3f}, {mean:.4f} on average ({source.name})"
    limits = f"allowed: {LARGEST_DIFFERENCE} and {MEAN_DIFFERENCE}"
    assert largest <= LARGEST_DIFFERENCE and mean <= MEAN_DIFFERENCE, f"{text}; {limits}"
    return Finding(text, {"largest": largest, "mean": mean})


def describe(device: torch.device) -> Finding:
    """The device's name, memory and libraries; raises `UserError` where there is none."""
    device = devices.choose(str(device))
    gigabytes = devices.memory_bytes(device) / 1e9
    text = f"{device_name(device)}, {gigabytes:.0f} GB, torch {torch.__version__}"
    if device.type == "cuda":
        text += f", CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"
        text += f", compute capability {torch.cuda.get_device_capability(device)}"
    return Finding(text)


def device_checks(device: torch.device, quick: bool) -> list[Check]:
    """Whether there is a device, as one check."""
    return [Check(str(device), functools.partial(describe, device))]


def training_checks(device: torch.device, quick: bool) -> list[Check]:
    """Every method of the registry, on the mlp and on a network with convolutions (quick: the mlp alone).

    Methods that need a vision transformer have that alone.
    """
    names = ("mlp",) if quick else tuple(BACKBONES)
    return [
        Check(f"{model}, {backbone}", functools.partial(learns, model, backbone, device))
        for backbone in (*names, VIT)
        for model in registry.names("models")
        if (backbone == VIT) == needs_vit(model)
    ]


def needs_vit(model: str) -> bool:
    """Whether the method takes no network but a vision transformer with hooks."""
    return registry.plugin_class(registry.load("models", model), Method).needs_vit


def waiting_checks(device: torch.device, quick: bool) -> list[Check]:
    """Every method of the registry under `torch.cuda.set_sync_debug_mode`."""
    models = registry.names("models")
    return [Check(model, functools.partial(never_waits, model, device)) for model in models]


def number_checks(device: torch.device, quick: bool) -> list[Check]:
    """R of some methods against the CPU's."""
    n_epochs = 1 if quick else 5
    return [
        Check(model, functools.partial(same_as_on_the_cpu, model, device, n_epochs)) for model in COMPARED
    ]
