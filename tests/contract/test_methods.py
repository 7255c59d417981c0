"""One contract for every method in the registry; a new file in models/ is tested by being there."""

import dataclasses
import io
import re

import pytest
import torch

from engram.models.method import Method
from engram.utils.config import registry
from engram.utils.errors import UserError
from engram.utils.training.evaluation import accuracies
from engram.utils.training.optimizers import build_optimizer
from engram.utils.training.trainer import Trainer
from tests.conftest import tiny_benchmark, tiny_method, under_test

MODELS = under_test("models")


def small_method(model: str, scenario: str | None = None, **flags):
    """The method on the tiny benchmark, with its quick flags and a memory that the first task fills.

    A domain is as large as a task of classes.
    """
    scenario = scenario or classes_of(model).scenarios[0]
    per_class = 7 if scenario == "domain-il" else 20
    small = {"buffer_size": 24} if "buffer_size" in flags_of(model) else {}
    return tiny_method(model, scenario, per_class, **{**small, **classes_of(model).quick_flags, **flags})


def classes_of(model: str) -> type[Method]:
    return registry.plugin_class(registry.load("models", model), Method)


def flags_of(model: str) -> set[str]:
    options = getattr(registry.load("models", model), "Options", None)
    return {field.name for field in dataclasses.fields(options)} if options else set()


CASES = [(m, s) for m in MODELS for s in classes_of(m).scenarios]


def train(method: Method, config, tasks=None) -> Method:
    trainer = Trainer(config, method, folder=None, quiet=True)
    trainer.save = lambda: None
    trainer.tasks = trainer.tasks if tasks is None else trainer.tasks[:tasks]
    trainer.run()
    return method, trainer.results


def steps(method: Method, config, n: int = 3) -> None:
    """`n` steps on the second task, as the trainer would do them."""
    benchmark = method.setup.benchmark
    task = benchmark.tasks[1]
    method.enter(task)
    method.begin_task(task)
    method.optimizer = build_optimizer(method.trainable().items(), config.train)
    for _, batch in zip(range(n), benchmark.batches(task, 0, config.train.batch_size), strict=False):
        method.observe(batch)


def weights(method: Method) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in method.net.state_dict().items()}


def assert_same(a: dict, b: dict, advice: str = "") -> None:
    assert a.keys() == b.keys()
    different = [name for name in a if not torch.equal(a[name], b[name])]
    assert not different, advice


@pytest.mark.parametrize("model", MODELS)
def test_every_method_states_how_to_turn_it_off(model):
    """Flags of its own or of the run that make it plain SGD; or why there are none, in words."""
    off = classes_of(model).off_switch
    assert isinstance(off, dict) or len(off.split()) >= 4, f"{model}: say why there is no off switch"
    if isinstance(off, dict):
        assert off and off.keys() <= flags_of(model) | {"batch_size"}


@pytest.mark.parametrize("model", MODELS)
def test_documented(model):
    module = registry.load("models", model)
    assert module.__doc__.split("\n")[0].endswith("."), "the first docstring line is the --help line"
    assert len(module.__doc__.split("\n")[0]) <= 100
    options = getattr(module, "Options", None)
    for field in dataclasses.fields(options) if options else ():
        assert field.metadata["help"], field.name


@pytest.fixture(scope="module")
def disk(tmp_path_factory) -> dict[str, str]:
    """Flags that leave the images in files."""
    return {"images": "disk", "data_dir": str(tmp_path_factory.mktemp("images"))}


@pytest.mark.parametrize(("model", "scenario"), CASES)
def test_learns_a_tiny_stream_and_repeats_itself_from_disk(model, scenario, disk):
    runs = [train(*small_method(model, scenario, **flags)) for flags in ({}, disk)]
    (first, results), (second, again) = runs
    assert_same(weights(first), weights(second))
    for view in results.R:
        torch.testing.assert_close(results.R[view], again.R[view], rtol=0, atol=0, equal_nan=True)
    untrained = weights(small_method(model, scenario)[0])
    changed = {k for k, v in weights(first).items() if not torch.equal(untrained[k], v)}
    assert bool(changed) == classes_of(model).takes_steps, (
        "a method without steps leaves the network as it is"
    )
    if classes_of(model).frozen_encoder:
        assert all(name.startswith("head.") for name in changed)
    assert all(torch.isfinite(v).all() for v in weights(first).values() if v.is_floating_point())
    last = results.R["task_il"][-1]
    assert (last >= 0).all() and (last <= 1).all()


@pytest.mark.parametrize("model", [m for m in MODELS if classes_of(m).stream == "sequential"])
def test_the_optimizer_may_be_kept(model):
    """Adam's count of steps runs on through all three tasks, where they share parameters."""
    n_steps = {}
    for keep in (False, True):
        flags = {"optimizer": "adam", "lr": 0.001, "keep_optimizer": keep}
        try:
            method, config = small_method(model, **flags)
        except UserError as error:
            assert "--optimizer sgd" in str(error)  # defined for plain SGD alone
            return
        first, second, *_ = (learning_in(method, task) for task in method.benchmark.tasks)
        train(method, config)
        n_steps[keep] = max((int(state["step"]) for state in method.optimizer.state.values()), default=0)
    assert n_steps[True] == n_steps[False] * (3 if first & second else 1)


def learning_in(method: Method, task) -> set[str]:
    """Names of the parameters that learn in a task."""
    method.enter(task)
    return set(method.trainable())


@pytest.mark.parametrize("model", [m for m in MODELS if classes_of(m).stream == "sequential"])
def test_the_seed_matters(model):
    a, b = (train(*small_method(model, seed=seed), tasks=1)[0] for seed in (0, 1))
    assert any(not torch.equal(x, y) for x, y in zip(weights(a).values(), weights(b).values(), strict=True))


@pytest.mark.parametrize("model", [m for m in MODELS if isinstance(classes_of(m).off_switch, dict)])
def test_turned_off_is_plain_sgd_bit_for_bit(model, autograd):
    off = classes_of(model).off_switch
    size = {"batch_size": off.get("batch_size", 4)}
    method, _ = train(*small_method(model, **off))
    plain, _ = train(*small_method("sgd", **size))
    advice = (
        f"off_switch says that {off} makes the method plain SGD with cross-entropy, bit for bit, and it does "
        "not; name flags that do, or write off_switch = 'a sentence why none does'"
    )
    assert_same(weights(method), weights(plain), advice)


@pytest.mark.parametrize(("model", "scenario"), CASES)
def test_save_load_step_equals_step(model, scenario):
    """A method saved after a task and a few steps continues identically in a fresh process."""
    method, config = small_method(model, scenario)
    if classes_of(model).stream == "sequential":
        train(method, config, tasks=1)
    steps(method, config)
    file = io.BytesIO()
    torch.save(method.state_dict(), file)
    file.seek(0)
    restored, _ = small_method(model, scenario)
    restored.load_state_dict(torch.load(file, weights_only=True))
    for learner in (method, restored):
        steps(learner, config)
    assert_same(weights(method), weights(restored))


@pytest.mark.parametrize("model", MODELS)
def test_the_batch_is_not_mutated(model):
    method, config = small_method(model)
    train(method, config, tasks=1)
    benchmark = method.setup.benchmark
    task = benchmark.tasks[-1]
    method.enter(task)
    method.begin_task(task)
    method.optimizer = build_optimizer(method.trainable().items(), config.train)
    batch = next(benchmark.batches(task, 0, 4))
    before = [field.clone() for field in batch]
    method.observe(batch)
    for field, copy in zip(batch, before, strict=True):
        assert torch.equal(field, copy)


HAVE_MEMORY = [m for m in MODELS if "buffer_size" in flags_of(m)]


@pytest.mark.parametrize("size", [1, 7, 10_000])
@pytest.mark.parametrize("model", HAVE_MEMORY)
def test_a_buffer_never_exceeds_its_size(model, size):
    """It holds something and never too much; a size that cannot serve all is refused, the next one is not."""
    try:
        method, config = small_method(model, buffer_size=size)
    except UserError as error:
        found = re.search(rf"--buffer_size {size}: .* give at least (\d+)", str(error))
        assert found and int(found[1]) > size, error
        with pytest.raises(UserError, match="give at least"):
            small_method(model, buffer_size=int(found[1]) - 1)
        size = int(found[1])
        method, config = small_method(model, buffer_size=size)
    train(method, config)
    for field in method.buffer.stored().values():
        assert 0 < len(field) <= size
    assert method.buffer.stored()


@pytest.mark.parametrize("model", MODELS)
def test_the_loss_is_a_detached_scalar_on_the_device(model):
    method, config = small_method(model)
    benchmark = method.setup.benchmark
    task = benchmark.tasks[0]
    method.enter(task)
    method.begin_task(task)
    method.optimizer = build_optimizer(method.trainable().items(), config.train)
    out = method.observe(next(benchmark.batches(task, 0, 4)))
    assert out["loss"].shape == () and not out["loss"].requires_grad
    assert torch.isfinite(out["loss"])


@pytest.mark.parametrize("model", MODELS)
def test_prediction_is_unmasked_logits(model):
    method, config = small_method(model)
    train(method, config)
    samples = tiny_benchmark(config).test(3)
    x = method.setup.benchmark.augment.normalise(samples.x_raw)
    logits = method.predict(x, samples.task_id)
    assert logits.shape == (len(x), 6)
    measured = accuracies(method, 3, 3)[:, 0]
    for j in range(3):
        members = samples.task_id == j
        expected = (logits[members].argmax(1) == samples.y[members]).double().mean()
        torch.testing.assert_close(measured[j], expected.cpu())
