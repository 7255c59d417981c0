"""Several processes (torchrun) compute what one does: parameters, memory, importances and R."""

import json
import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from engram import main as program
from engram.backbones import row_parallel
from engram.datasets.augment import Augment
from engram.models.method import Method
from engram.utils import distributed
from engram.utils.config import registry
from engram.utils.training.distributed_trainer import FollowerTrainer
from engram.utils.training.trainer import Trainer
from tests.conftest import tiny_method
from tests.waiting import LIMIT

pytestmark = pytest.mark.slow

N = 2
ABLE = [
    name
    for name in registry.names("models")
    if registry.plugin_class(registry.load("models", name), Method).data_parallel
]
# Name → method, scenario, flags. Batches of 11, the last of 8, fall into 5 and 6, and 4 and 4.
CASES = {name: (name, "class-il", {}) for name in ABLE} | {
    "one row": ("sgd", "class-il", {"batch_size": 29}),  # the last batch: nothing for one of two
    "momentum": ("sgd", "task-il", {"optim_mom": 0.9, "optim_wd": 0.01, "n_epochs": 2}),
    "algorithm 5": ("er", "class-il", {"er_variant": "alg5"}),  # in compiled form
    "losses": ("er", "class-il", {"memory": "loss_aware_balanced", "buffer_size": 10}),
    "epochs": ("derpp", "task-il", {"n_epochs": 2, "buffer_size": 20}),
    "separate": ("ewc", "class-il", {"ewc_mode": "separate", "fisher": "sampled", "fisher_n": 11}),
    "batched": ("ewc", "task-il", {"fisher": "batched"}),
    "first samples": ("ewc", "class-il", {"ewc_variant": "mer"}),
    "Hebbian": ("mas", "class-il", {"mas_local": True}),
    "one image": ("mas", "class-il", {"mas_n": 1, "mas_norm": "vector"}),
    "domains": ("mas", "domain-il", {"mas_data": "test"}),
    "warm-up": ("lwf", "task-il", {"lwf_warmup": 1}),
    "old domains": ("lwf", "domain-il", {}),
    "batch norm": ("er", "class-il", {"backbone": "resnet18", "width": 0.05, "n_iters": 2}),
}


def trained(name: str, trainer_class: type[Trainer]) -> dict:
    """All that a case's method has learned, and R."""
    model, scenario, flags = CASES[name]
    method, config = tiny_method(model, scenario, **{"batch_size": 11, **flags})
    if name == "batch norm":  # over four numbers a channel: any rounding grows
        in_double_precision(method)
    row_parallel.shard_rows(method.net)
    trainer = trainer_class(config, method, folder=None, quiet=True)
    trainer.save = lambda: None
    results = trainer.run()
    return {"method": method.state_dict(), "R": {k: torch.from_numpy(R) for k, R in results.R.items()}}


def in_double_precision(method: Method) -> None:
    class Augment64(Augment):
        def scaled(self, raw):
            return super().scaled(raw).double()

    method.net.double()
    method.setup.benchmark.augment = Augment64(crop_padding=1, flip=True)


def leaves(value, at: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Path → tensor of all tensors and numbers in nested dicts and lists."""
    if isinstance(value, dict | list | tuple):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(item, f"{at}/{key}")
    elif value is not None and not isinstance(value, str):
        yield at, torch.as_tensor(value)


def in_processes(work: Callable[[], int], *alone: Callable[[int], None]) -> list[int]:
    """Exit codes of `work`, done in N forked processes at once, in the environment that torchrun gives."""
    # as torchrun does: the parent holds the store on a port that the system chose, the workers connect to it
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    environment = {
        "WORLD_SIZE": N, "LOCAL_WORLD_SIZE": N, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": store.port,
        "TORCHELASTIC_USE_AGENT_STORE": True, "TORCHELASTIC_RESTART_COUNT": 0,
    }  # fmt: skip

    def child(rank: int) -> None:
        code = 99
        try:
            environment.update(RANK=rank, LOCAL_RANK=rank)
            os.environ.update({name: str(value) for name, value in environment.items()})
            code = work()
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    processes = [multiprocessing.get_context("fork").Process(target=child, args=(r,)) for r in range(N)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(LIMIT)
    return [process.exitcode for process in processes]


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict[str, list[dict]]:
    """Case → what one process finds, then what each of N finds."""
    folder = tmp_path_factory.mktemp("found")
    alone = {name: trained(name, Trainer) for name in CASES}

    def work() -> int:
        with distributed.process_group("cpu"):
            rank = distributed.rank()
            for name in CASES:
                torch.save(trained(name, FollowerTrainer if rank else Trainer), folder / f"{name} {rank}")
        return 0

    assert in_processes(work) == [0] * N
    return {
        name: [result, *(torch.load(folder / f"{name} {rank}") for rank in range(N))]
        for name, result in alone.items()
    }


@pytest.mark.parametrize("name", CASES)
def test_several_processes_find_what_one_does(found, name):
    alone, first, *others = (dict(leaves(result)) for result in found[name])
    assert alone.keys() == first.keys() and any("head" in path for path in alone)
    for path, expected in alone.items():
        scale = expected.abs().max() if expected.numel() and expected.is_floating_point() else 1
        atol = 1e-6 * max(1.0, float(scale)) if expected.dtype != torch.float64 else 1e-9
        torch.testing.assert_close(first[path], expected, rtol=0, atol=atol, equal_nan=True, msg=path)
        for other in others:
            torch.testing.assert_close(other[path], first[path], rtol=0, atol=0, equal_nan=True, msg=path)


def test_the_methods_that_were_asked_for_are_able():
    assert {"sgd", "er", "derpp", "ewc", "mas", "lwf"} <= set(ABLE)


# --- the program ----------------------------------------------------------------------------------

FLAGS = ["--dataset", "seq-digits", "--device", "cpu", "--disable_log", "--batch_size", "30"]
FLAGS += ["--n_epochs", "2"]


def run_program(folder: Path, *flags: str, before: Callable[[], None] = lambda: None) -> list[int]:
    def work() -> int:
        before()
        return program.main([*flags, "--output_dir", str(folder)])

    return in_processes(work)


def only_run(folder: Path) -> Path:
    (path,) = folder.glob("*/*/*")
    return path


def document(path: Path) -> dict:
    return json.loads((path / "results.json").read_text())


def test_a_run_that_is_stopped_and_resumed_ends_as_one_process_does(tmp_path):
    flags = [*FLAGS, "--model", "er", "--buffer_size", "50"]
    assert program.main([*flags, "--output_dir", str(tmp_path / "alone")]) == 0
    assert run_program(tmp_path / "two", *flags, "--stop_after", "2") == [0] * N
    path = only_run(tmp_path / "two")
    assert document(path)["status"] == "stopped"
    assert run_program(tmp_path / "two", "--resume", str(path), "--stop_after", "0") == [0] * N
    alone, two = document(only_run(tmp_path / "alone")), document(path)
    assert two["status"] == "finished" and two["device"].startswith(f"{N} x cpu")
    for view in ("class_il", "task_il"):  # one test image of 71 may lie on the border
        np.testing.assert_allclose(two[view]["R"], alone[view]["R"], rtol=0, atol=1.5 / 71)
    assert not alone["device"].startswith(f"{N} x")


def test_a_signal_to_all_saves_the_run(tmp_path):
    def signalled_at_step_7():
        between = Trainer._between_steps

        def signalling(self, *args):
            if self.position.total == 7:
                os.kill(os.getpid(), signal.SIGTERM)
            between(self, *args)

        Trainer._between_steps = signalling

    codes = run_program(tmp_path, *FLAGS, "--model", "derpp", before=signalled_at_step_7)
    assert codes == [143, 2]
    path = only_run(tmp_path)
    assert document(path)["status"] == "interrupted"
    assert torch.load(path / "checkpoint.pt")["position"]["total"] == 7


def test_when_one_process_dies_all_end(tmp_path, capfd):
    def killed_at_step_7():
        between = Trainer._between_steps

        def dying(self, *args):
            if self.position.total == 7 and distributed.rank() == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            between(self, *args)

        Trainer._between_steps = dying

    assert run_program(tmp_path, *FLAGS, "--model", "sgd", before=killed_at_step_7) == [2, -9]
    said = capfd.readouterr().err
    assert said.count("error: another process of this run has ended") == 1
    assert document(only_run(tmp_path))["status"] == "failed"


def test_a_loss_that_diverges_is_said_once(tmp_path, capfd):
    codes = run_program(tmp_path, *FLAGS, "--model", "sgd", "--lr", "1e30")
    assert codes == [1, 2]
    assert capfd.readouterr().err.count("error:") == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model", "gem"], "--model gem runs in one process: start it without torchrun"),
        (["--model", "sgd", "--backbone", "alexnet"], "add --dropout 0"),
        (["--model", "sgd", "--device", "cuda:0"], "under torchrun each process has its own GPU"),
    ],
)
def test_what_cannot_be_divided_is_refused_by_one_message(tmp_path, capfd, flags, message):
    assert run_program(tmp_path, *FLAGS, *flags) == [2] * N
    said = capfd.readouterr().err
    assert said.count("error:") == 1 and message in said
    assert not list(tmp_path.iterdir())
