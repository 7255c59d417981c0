"""Shared pieces of the tests: a tiny benchmark, methods built on it, runs of the program."""

import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from engram.backbones.backbone import build_network
from engram.datasets.augment import Augment
from engram.datasets.sources import Source
from engram.datasets.streams import class_incremental, domain_incremental
from engram.memorization import proxies
from engram.models.build import build_method, build_setup
from engram.models.method import Method
from engram.utils import device
from engram.utils.config import registry
from engram.utils.config.config import Config, resolve
from tests.waiting import LIMIT

ROOT = Path(__file__).resolve().parent.parent
torch.set_num_threads(1)
DEVICE = ["cpu"]  # where the tests of methods train: --device
PLUGIN: dict[str, str] = {}  # kind → the only plugin of that kind to test: --plugin


def pytest_addoption(parser: pytest.Parser) -> None:
    """`pytest tests/contract --device cuda` trains the methods there; `pretended` needs no CUDA device."""
    parser.addoption("--device", default="cpu", choices=("cpu", "cuda", "pretended"))
    parser.addoption(
        "--plugin", default="", metavar="KIND:FILE", help="test this plugin, no other of its kind"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Remember where the methods train, and which plugin alone is tested."""
    DEVICE[0] = "cpu" if config.getoption("--device") == "cpu" else "cuda"
    kind, _, given = config.getoption("--plugin").partition(":")
    PLUGIN.clear()
    PLUGIN.update({kind: registry.canonical(kind, given)} if given else {})


def under_test(kind: str, *names: str) -> list[str]:
    """The plugin of this kind that --plugin names; without it those of these names, by default all."""
    return [PLUGIN[kind]] if kind in PLUGIN else list(names or registry.names(kind))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests marked `gpu` need a CUDA device; a pretended one shows plain mistakes in them."""
    if DEVICE[0] != "cpu":
        for item in items:
            if "own_device" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="chooses its device itself"))
    if not torch.cuda.is_available() and config.getoption("--device") != "pretended":
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(autouse=True)
def pretended_device(request: pytest.FixtureRequest) -> Iterator[None]:
    """With `--device pretended` CPU tensors claim to be on CUDA (tests/pretended_device.py)."""
    if request.config.getoption("--device") != "pretended":
        yield
        return
    from tests.pretended_device import PretendedDevice
    from tests.pretended_graph import pretended_graphs

    with PretendedDevice() as gpu, pretended_graphs(gpu):
        yield


def synthetic_source(n_classes: int = 6, per_class: int = 20, size: int = 6) -> Source:
    """Noisy class prototypes, (per_class · n_classes, 1, size, size), the same at every call."""
    generator = torch.Generator().manual_seed(0)
    prototypes = torch.randint(0, 256, (n_classes, 1, size, size), generator=generator)
    labels = torch.arange(n_classes).repeat(per_class)
    noise = torch.randint(-40, 41, (len(labels), 1, size, size), generator=generator)
    images = (prototypes[labels] + noise).clamp(0, 255).to(torch.uint8)
    n_train = len(labels) * 3 // 4
    names = tuple(f"class {i}" for i in range(n_classes))
    return Source("tiny", images[:n_train], labels[:n_train], images[n_train:], labels[n_train:], names)


def tiny_config(model: str = "sgd", **flags) -> Config:
    """A resolved configuration for the tiny benchmark: 3 tasks, batches of 4, a small MLP."""
    base = {
        "n_tasks": 3,
        "batch_size": 4,
        "n_epochs": 1,
        "lr": 0.05,
        "disable_log": True,
        "device": DEVICE[0],
    }
    method_class = registry.plugin_class(registry.load("models", model), Method)
    if method_class.needs_vit and "backbone" not in flags:
        base |= method_class.quick_flags
    elif flags.get("backbone", "mlp") == "mlp":
        base["hidden_sizes"] = (8,)
    return resolve([("test", {"model": model, **base, **flags})])


def tiny_benchmark(config: Config, scenario: str = "class-il", per_class: int = 20):
    """The tiny stream in a scenario; domains are fixed pixel permutations."""
    source, augment = synthetic_source(per_class=per_class), Augment(crop_padding=1, flip=True)
    device = config.run.device
    if scenario != "domain-il":
        return class_incremental("tiny", source, augment, config, device)
    orders = [np.random.RandomState(i).permutation(36) for i in range(config.stream.n_tasks)]
    transforms = [lambda raw, order=o: raw.flatten(1)[:, order].view_as(raw) for o in orders]
    return domain_incremental("tiny", source, augment, transforms, config, device)


def tiny_method(
    model: str, scenario: str = "class-il", per_class: int = 20, **flags
) -> tuple[Method, Config]:
    """A freshly built method on the tiny benchmark."""
    config = tiny_config(model, multi_head=scenario == "task-il", **flags)
    benchmark = tiny_benchmark(config, scenario, per_class)
    net = build_network(config.run.backbone, config.architecture, benchmark, config.run.seed)
    method_class = registry.plugin_class(registry.load("models", model), Method)
    return method_class(net, config.method, build_setup(config, benchmark, proxies.create)), config


def built(config: Config) -> Method:
    """The method that main.py would build for this configuration."""
    return build_method(config, device.choose(config.run.device), proxies.create)


def methods_with_code() -> list[str]:
    """All methods but those that are a name for another's class with flags fixed (lars, mer_alg6, ...).

    tests/reference/test_paper_names.py shows that these are the same, bit for bit; slow tests leave them out.
    With --plugin it is that method alone.
    """
    if "models" in PLUGIN:
        return [PLUGIN["models"]]
    classes = {n: registry.plugin_class(registry.load("models", n), Method) for n in registry.names("models")}

    def adds_code(cls: type[Method]) -> bool:
        alone = len(cls.__bases__) == 1 and cls.__base__ in classes.values()
        return not alone or any(callable(value) for value in vars(cls).values())

    return [name for name, cls in classes.items() if adds_code(cls)]


def run_main(*flags: str, cwd: Path, check: bool = True, **env: str) -> subprocess.CompletedProcess:
    """Run main.py as a user would, with its output captured."""
    command = [sys.executable, str(ROOT / "main.py"), *flags]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **env}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=LIMIT)
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


def random_draws(purpose: str) -> random.Random:
    """Draws for one purpose: the same at every run of the tests, and others with TEST_SEED=number."""
    return random.Random(f"{purpose} {os.environ.get('TEST_SEED', 0)}")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Programs that a test calls take more threads; the next tests would be up to six times slower."""
    yield
    if torch.get_num_threads() != 1:
        torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def global_generators() -> None:
    """What a test draws without a generator of its own is the same alone and after other tests."""
    seed = int(os.environ.get("TEST_SEED", 0))
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


@pytest.fixture(autouse=True)
def no_figures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run's figures take longer than a small run: they are drawn where a test is marked `figures`."""
    if "figures" not in request.keywords:
        monkeypatch.setattr("engram.utils.runs.figures.write_all", lambda document, folder: [])


@pytest.fixture
def autograd(monkeypatch: pytest.MonkeyPatch) -> None:
    """The readable code, without the compiled kernel that equals it up to rounding."""
    from engram.models.parts.kernel import MLPKernel

    monkeypatch.setattr(MLPKernel, "fits", staticmethod(lambda net, device: False))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty folder to run in."""
    return tmp_path


def small_batch(method: Method, task):
    """The first batch of a task."""
    return next(method.setup.benchmark.batches(task, 0, method.setup.train.batch_size))
