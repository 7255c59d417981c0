"""One contract for every method in the registry; a new file in models/ is tested by being there."""

import dataclasses
import io

import pytest
import torch

from engram.models.method import Method
from engram.utils.config import registry
from engram.utils.errors import UserError
from engram.utils.training.evaluation import accuracies
from engram.utils.training.optimizers import build_optimizer
from engram.utils.training.trainer import Trainer
from tests.conftest import tiny_benchmark, tiny_method

MODELS = list(registry.names("models"))
# The flag that turns a method off, and the value that does. A method without one is listed with None
# and the reason.
OFF = {
    "scr": None,  # another loss: contrastive
    "sgd": None,  # is plain SGD
    "online": None,  # is plain SGD
    "joint": None,  # changes the stream, not the step
    "independent": None,  # another network: one per task
    "taskinput": None,  # another network: a first layer per task
    "er": {"buffer_size": 0},
    "maer": {"buffer_size": 0},
    "maer_adaptive": {"buffer_size": 0},
    "maer_bic": None,  # also distils, with or without a memory
    "maer_derpp": {"buffer_size": 0},
    "maer_er_ace": {"buffer_size": 0},
    "maer_high": {"buffer_size": 0},
    "gem": {"buffer_size": 0},
    "bic": None,  # also distils, with or without a memory
    "gdumb": None,  # trains on the memory alone
    "hal": {"buffer_size": 0, "hal_lambda": 0},
    "herding": {"buffer_size": 0},
    "lucir": None,  # another head: cosines
    "rainbow_memory": {"buffer_size": 0},
    "icarl": None,  # another loss: binary cross-entropy
    "agem": {"buffer_size": 0},
    "ewc": {"e_lambda": 0},
    "mas": {"mas_lambda": 0},
    "agem_r": {"buffer_size": 0},
    "cumulative": None,  # changes the stream, not the step
    "der": {"buffer_size": 0},
    "derpp": {"buffer_size": 0},
    "er_ace": {"buffer_size": 0},
    "er_aml": {"buffer_size": 0},
    "fdr": {"buffer_size": 0},
    "full_buffer": None,  # keeps everything
    "gss": {"buffer_size": 0},
    "mir": {"buffer_size": 0},
    "bcsr": {"buffer_size": 0},
    "goldilocks": {"buffer_size": 0},
    "pbcs": {"buffer_size": 0},
    "ebll": {"lwf_lambda": 0, "ebll_alpha": 0},
    "imm_mean": {"imm_lambda": 0},
    "imm_mode": {"imm_lambda": 0},
    "lwf": {"lwf_lambda": 0},
    "lwf_mc": None,  # another loss: a sigmoid per class
    "rwalk": {"rwalk_lambda": 0},
    "si": {"si_c": 0},
    "pnn": None,  # another network: a column per task
    "rpc": None,  # another head: a fixed one
    "xder": None,  # another loss: among the task's own classes
    "mer": {"buffer_size": 0, "beta": 1, "gamma": 1, "batches_per_example": 1, "batch_size": 1},
}
# Where the defaults would make these tests slow.
SMALL = {
    "bcsr": {"coreset_steps": 3},
    "gdumb": {"fitting_epochs": 2},
    "hal": {"anchor_steps": 3},
    "mer": {"minibatch_size": 3, "batches_per_example": 2},
    "pbcs": {"coreset_steps": 3},
}


def small_method(model: str, scenario: str | None = None, **flags):
    scenario = scenario or classes_of(model).scenarios[0]
    return tiny_method(model, scenario, **{**SMALL.get(model, {}), **flags})


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
    method.optimizer = build_optimizer(method.trainable().values(), config.train)
    for _, batch in zip(range(n), benchmark.batches(task, 0, config.train.batch_size), strict=False):
        method.observe(batch)


def weights(method: Method) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in method.net.state_dict().items()}


def assert_same(a: dict, b: dict) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def test_every_method_states_how_to_turn_it_off():
    assert set(OFF) == set(MODELS)


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
    runs = [train(*small_method(model, scenario, **where)) for where in ({}, disk)]
    (first, results), (second, again) = runs
    assert_same(weights(first), weights(second))
    for view in results.R:
        torch.testing.assert_close(results.R[view], again.R[view], rtol=0, atol=0, equal_nan=True)
    untrained = weights(small_method(model, scenario)[0])
    assert any(not torch.equal(untrained[k], v) for k, v in weights(first).items())
    assert all(torch.isfinite(v).all() for v in weights(first).values() if v.is_floating_point())
    last = results.R["task_il"][-1]
    assert (last >= 0).all() and (last <= 1).all()


@pytest.mark.parametrize("model", [m for m in MODELS if classes_of(m).stream == "sequential"])
def test_the_optimizer_may_be_kept(model):
    """Adam's count of steps runs on through all three tasks, where they share parameters."""
    if model == "mer":
        pytest.skip("defined for plain SGD")
    n_steps = {}
    for keep in (False, True):
        flags = {"optimizer": "adam", "lr": 0.001, "keep_optimizer": keep}
        method, _ = train(*small_method(model, **flags))
        n_steps[keep] = max((int(own["step"]) for own in method.optimizer.state.values()), default=0)
    assert n_steps[True] == n_steps[False] * (1 if model in ("independent", "pnn") else 3)


@pytest.mark.parametrize("model", [m for m in MODELS if classes_of(m).stream == "sequential"])
def test_the_seed_matters(model):
    a, b = (train(*small_method(model, seed=seed), tasks=1)[0] for seed in (0, 1))
    assert any(not torch.equal(x, y) for x, y in zip(weights(a).values(), weights(b).values(), strict=True))


@pytest.mark.parametrize("model", [m for m in MODELS if OFF[m]])
def test_turned_off_is_plain_sgd_bit_for_bit(model, autograd):
    size = {"batch_size": OFF[model].get("batch_size", 4)}
    method, _ = train(*small_method(model, **OFF[model]))
    plain, _ = train(*small_method("sgd", **size))
    assert_same(weights(method), weights(plain))


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
    for each in (method, restored):
        steps(each, config)
    assert_same(weights(method), weights(restored))


@pytest.mark.parametrize("model", MODELS)
def test_the_batch_is_not_mutated(model):
    method, config = small_method(model)
    train(method, config, tasks=1)
    benchmark = method.setup.benchmark
    task = benchmark.tasks[-1]
    method.enter(task)
    method.begin_task(task)
    method.optimizer = build_optimizer(method.trainable().values(), config.train)
    batch = next(benchmark.batches(task, 0, 4))
    before = [field.clone() for field in batch]
    method.observe(batch)
    for field, copy in zip(batch, before, strict=True):
        assert torch.equal(field, copy)


HAVE_MEMORY = [m for m in MODELS if "buffer_size" in flags_of(m)]
SIZES = [(m, size) for m in HAVE_MEMORY for size in (1, 7, 10_000)]
# need a place for each task, or one or two for each class
RING = [("gem", 1), ("agem", 1), ("hal", 1)]
EXEMPLARS = ("bcsr", "goldilocks", "herding", "icarl", "lucir", "pbcs", "rainbow_memory", "rpc", "xder")
TWO_EACH = ("bic", "maer_bic")
TOO_SMALL = [*RING, *((m, 1) for m in EXEMPLARS), *((m, size) for m in TWO_EACH for size in (1, 7))]
SIZES = [case for case in SIZES if case not in TOO_SMALL]


@pytest.mark.parametrize(("model", "size"), SIZES)
def test_a_buffer_never_exceeds_its_size(model, size):
    method, config = small_method(model, buffer_size=size)
    train(method, config)
    stored = method.buffer.stored() if hasattr(method, "buffer") else {}
    for field in stored.values():
        assert 0 < len(field) <= size


@pytest.mark.parametrize(("model", "size"), TOO_SMALL)
def test_a_buffer_that_cannot_serve_all_is_refused(model, size):
    with pytest.raises(UserError, match=f"--buffer_size {size}: .* give at least"):
        small_method(model, buffer_size=size)


@pytest.mark.parametrize("model", MODELS)
def test_the_loss_is_a_detached_scalar_on_the_device(model):
    method, config = small_method(model)
    benchmark = method.setup.benchmark
    task = benchmark.tasks[0]
    method.enter(task)
    method.begin_task(task)
    method.optimizer = build_optimizer(method.trainable().values(), config.train)
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
    found = accuracies(method, 3, 3)[:, 0]
    for j in range(3):
        mine = samples.task_id == j
        expected = (logits[mine].argmax(1) == samples.y[mine]).double().mean()
        torch.testing.assert_close(found[j], expected)
