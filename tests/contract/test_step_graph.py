"""Whole steps as pretended graphs: a method whose step can be captured computes what it does without.

The graph of tests/pretended_graph.py freezes what a CUDA graph freezes, so that a Python number, a branch
or a host draw inside a step makes other weights here. Nothing is shown about CUDA's own kernels.
"""

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F

from engram.datasets.augment import first_runs
from engram.models.agem import AGEM
from engram.models.method import Method
from engram.models.rehearsal import TaskRingMethod
from engram.models.sgd import SGD
from engram.utils.training import step_graph
from engram.utils.training.step_graph import N_WARM_UP
from engram.utils.training.trainer import Trainer
from engram.utils.transfer import send
from tests.conftest import methods_with_code
from tests.contract.test_methods import CASES, assert_same, classes_of, flags_of, small_method, weights
from tests.pretended_device import PretendedDevice
from tests.pretended_graph import pretended_graphs

pytestmark = pytest.mark.own_device

CAPTURABLE = [m for m in methods_with_code() if not classes_of(m).eager_step]
ALL_SCENARIOS = ("sgd", "derpp")  # the others in the first one that they are defined for
FIRST = {model: scenario for model, scenario in reversed(CASES)}
# Rates that float32, in which a graph keeps them, holds exactly; each epoch has another.
SCHEDULED = {"n_tasks": 2, "n_epochs": 2, "lr": 2**-4, "lr_scheduler": "multistep", "lr_milestones": (1,)}
SCHEDULED |= {"sched_multistep_lr_gamma": 0.5}


@pytest.fixture
def gpu() -> Iterator[PretendedDevice]:
    with PretendedDevice() as device, pretended_graphs(device):
        yield device


def trained(method: Method, config) -> Trainer:
    trainer = Trainer(config, method, folder=None)
    trainer.save = lambda: None
    trainer.run()
    return trainer


def compared(model: str, gpu: PretendedDevice, scenario: str | None = None, **flags) -> tuple[Trainer, int]:
    """The trainer of a run with graphs, which computed what a run without did, and the number of replays."""
    method, config = small_method(model, scenario, device="cuda", **SCHEDULED | flags)
    eager = trained(method, config)
    gpu.launches.clear()
    method, config = small_method(model, scenario, device="cuda", compile=True, **SCHEDULED | flags)
    captured = trained(method, config)
    assert_same(weights(captured.method), weights(eager.method))
    for view in eager.results.R:
        torch.testing.assert_close(
            captured.results.R[view], eager.results.R[view], rtol=0, atol=0, equal_nan=True
        )
    return captured, gpu.launches["graph"]


@pytest.mark.parametrize(
    ("model", "scenario"),
    [(m, s) for m, s in CASES if m in CAPTURABLE and (m in ALL_SCENARIOS or s == FIRST[m])],
)
def test_a_captured_step_computes_what_an_eager_one_does(model, scenario, gpu):
    """Two tasks of two epochs: eleven full batches (of a domain seven) and an odd one; three of 15."""
    small = {"buffer_size": 30} if "buffer_size" in flags_of(model) else {}
    trainer, n_replays = compared(model, gpu, scenario, **small)
    assert not trainer.graph.refused
    n_epochs = 3 if trainer.method.rehearses else 4  # in the first one the memory fills
    n_full = len(trainer.tasks[0].train_index) // trainer.config.train.batch_size
    assert n_replays >= max(1, n_epochs * (n_full - N_WARM_UP))


@pytest.mark.parametrize("model", ["sgd", "ewc"])
@pytest.mark.parametrize("optimizer", [{"optim_mom": 0.9, "optim_wd": 0.001}, {"optimizer": "adam"}])
def test_optimizers_that_keep_state(model, optimizer, gpu):
    assert compared(model, gpu, **optimizer, keep_optimizer=True)[1] > 0


@pytest.mark.parametrize("memory", ["balanced", "fifo"])
def test_other_memories(memory, gpu):
    """A memory that fills slowly: the first steps draw more samples each than the one before."""
    assert compared("er", gpu, memory=memory, minibatch_size=80, buffer_size=60)[1] > 0


def test_draws_with_replacement(gpu):
    assert compared("er", gpu, draws="replacement", buffer_size=6)[1] > 0


@pytest.mark.parametrize(
    "flags", [{"memory": "class_ring"}, {"memory": "loss_aware"}, {"er_variant": "alg4"}]
)
def test_forms_of_er_that_are_not_captured_say_why(flags, gpu, capsys):
    method, _ = small_method("er", device="cuda", compile=True, **flags)
    assert step_graph.build(method, 9, 100, print) is None
    assert f"(not the whole step: {method.eager_step})" in capsys.readouterr().out
    assert method.eager_step != Method.eager_step


@pytest.mark.parametrize("model", ["lwf", "derpp"])
def test_a_network_that_keeps_statistics(model, gpu, monkeypatch):
    """Crops of replayed images read tables from a cache, which has forgotten them when a step is replayed."""
    true_replay = step_graph.CapturedStep.replay
    monkeypatch.setattr(
        step_graph.CapturedStep, "replay", lambda *args: (first_runs.cache_clear(), true_replay(*args))[1]
    )
    flags = {
        "backbone": "resnet18",
        "width": 0.05,
        "n_tasks": 2,
        "n_epochs": 1,
        "n_iters": 6,
        "batch_size": 6,
    }
    assert compared(model, gpu, **flags)[1] > 0


def test_a_replay_is_one_launch_and_does_not_wait(gpu, monkeypatch):
    """Besides it: copies of the batch's five fields and of the host's decisions."""
    method, config = small_method("sgd", device="cuda", compile=True, n_tasks=1, batch_size=9)
    observed, true_observe = [], SGD.observe
    monkeypatch.setattr(SGD, "observe", lambda self, batch: observed.append(0) or true_observe(self, batch))
    trainer = Trainer(config, method, folder=None, quiet=True)
    trainer.save = trainer._show = lambda *_: None
    task = trainer.tasks[0]
    trainer.run()
    batch = next(iter(method.benchmark.batches(task, 0, 9)))
    gpu.launches.clear()
    gpu.waits.clear()
    trainer.graph.observe(batch)
    assert len(observed) == N_WARM_UP + 1, "three eager steps and the capture"
    assert sum(gpu.launches.values()) == 1 + 5 + 1 and not gpu.waits, (gpu.launches, gpu.waits)


@pytest.mark.parametrize("model", ["si", "maer"])
def test_a_checkpoint_inside_a_task_continues(model, gpu, folder):
    """Stopped after ten steps, some of them replayed, and read back: the same bits as without the stop."""
    whole = trained(*small_method(model, device="cuda", compile=True, **SCHEDULED))
    method, config = small_method(model, device="cuda", compile=True, **SCHEDULED)
    first = Trainer(config, method, folder, quiet=True)

    def stop_after_ten(task, label):
        if first.position.total == 10:
            first.save()
            raise KeyboardInterrupt

    first._between_steps = stop_after_ten
    with pytest.raises(KeyboardInterrupt):
        first.run()
    method, config = small_method(model, device="cuda", compile=True, **SCHEDULED)
    second = Trainer(config, method, folder, quiet=True)
    second.load()
    second.save = lambda: None
    second.run()
    assert second.graph.captured is not None
    assert_same(weights(method), weights(whole.method))


# --- what is not captured --------------------------------------------------------------------------


class Counting(SGD):
    """The loss grows with a counter of the host."""

    eager_step = ""
    n = 0

    def loss(self, batch):
        self.n += 1
        return super().loss(batch) * self.n


class Drawing(SGD):
    """The loss is weighed by a number that the host draws in the step."""

    eager_step = ""

    def loss(self, batch):
        if not hasattr(self, "draws"):
            self.draws = self.setup.generator("method")
        return super().loss(batch) * torch.rand(1, generator=self.draws)[0]


class Reading(SGD):
    """Its step counts on the host and then reads the loss there: a refused capture has counted already."""

    eager_step = ""
    n = 0

    def loss(self, batch):
        self.n += 1
        loss = super().loss(batch)
        return loss / self.n if loss.item() > 0 else loss


class Sending(SGD):
    """It sends a number of the host to the device, where a graph would find the same one at every replay."""

    eager_step = ""

    def loss(self, batch):
        return super().loss(batch) * send([1.0 + self.epoch], self.device)[0]


class Branching(SGD):
    """The second epoch learns otherwise, and no form says so."""

    eager_step = ""

    def loss(self, batch):
        return super().loss(batch) * (1 if self.epoch else 2)


class Told(Branching):
    """The form of its step tells the epochs apart."""

    eager_step = ""

    def step_form(self):
        return bool(self.epoch)


@pytest.fixture
def planted(monkeypatch):
    """Let `sgd` be another method, which is built beside the real one."""

    def plant(method_class: type[Method]) -> None:
        monkeypatch.setattr("tests.conftest.registry.plugin_class", lambda *_: method_class)

    return plant


@pytest.mark.parametrize("mistake", [Counting, Drawing, Branching])
def test_a_mistake_in_a_step_is_seen(mistake, gpu, planted):
    planted(mistake)
    with pytest.raises(AssertionError):
        compared("sgd", gpu)


def test_a_form_makes_a_graph_of_its_own(gpu, planted):
    planted(Told)
    assert compared("sgd", gpu)[1] > 0


def test_a_rate_that_is_a_python_number_is_seen(gpu, monkeypatch):
    monkeypatch.setattr("engram.utils.training.step_graph.decide", lambda draw, device: float(draw()))
    with pytest.raises(AssertionError):
        compared("sgd", gpu)


def test_without_warm_up_the_optimizer_begins_anew_at_every_step(gpu, monkeypatch):
    monkeypatch.setattr("engram.utils.training.step_graph.N_WARM_UP", 0)
    with pytest.raises(AssertionError):
        compared("sgd", gpu, optim_mom=0.9)


def test_a_step_that_cannot_be_captured_is_told_once_and_runs_eagerly(gpu, planted, capsys):
    planted(Reading)
    trainer, n_replays = compared("sgd", gpu)
    assert n_replays == 0 and trainer.graph.refused
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "captured" in line]
    assert "operation not permitted when stream is capturing: a value is read" in line
    assert line.endswith("steps run eagerly")


def test_a_number_sent_to_the_device_is_refused(gpu, planted, capsys):
    planted(Sending)
    trainer, n_replays = compared("sgd", gpu)
    assert n_replays == 0 and trainer.graph.refused
    assert "a captured step sends a host value" in capsys.readouterr().err


def test_the_start_says_what_is_captured(gpu, capsys):
    trained(*small_method("sgd", device="cuda", compile=True))
    assert "--compile: every training step is one CUDA graph" in capsys.readouterr().err
    trained(*small_method("gem", device="cuda", compile=True))
    assert f"(not the whole step: {classes_of('gem').eager_step})" in capsys.readouterr().err
    trained(*small_method("sgd", device="cpu", compile=True))
    said = capsys.readouterr().err
    assert "--compile: " in said and "whole step" not in said


def test_a_subclass_with_code_of_its_own_is_not_captured_unasked():
    class Fixed(SGD):
        off_switch = "it is plain SGD"

    class Other(SGD):
        def loss(self, batch):
            return F.cross_entropy(self.logits(batch.x, batch.task_id), batch.y)

    assert Fixed.eager_step == "" and Other.eager_step == Method.eager_step != ""
    assert AGEM.eager_step == TaskRingMethod.eager_step != Method.eager_step
