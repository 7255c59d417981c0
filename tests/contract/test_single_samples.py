"""Batch norm and a last batch of one: refused before training with the sizes that work, or learned."""

import pytest
import torch

from engram import main as program
from engram.memorization import cli
from engram.models.method import Method
from engram.models.parts.single_samples import refuse_last_batch_of_one
from engram.utils import single_samples
from engram.utils.config import registry
from engram.utils.errors import UserError
from engram.utils.training.trainer import Trainer
from tests.conftest import DEVICE, methods_with_code, tiny_method

RESNET = {"backbone": "resnet18", "width": 0.03, "n_tasks": 3}
MORE = {"hal": {"hal_lambda": 0}}  # at a task's end it splits its memory into batches, too


def joins(model: str) -> bool:
    return registry.plugin_class(registry.load("models", model), Method).joins_replay


@pytest.mark.parametrize("model", [m for m in methods_with_code() if joins(m)])
def test_a_batch_of_one_is_learned_together_with_replayed_samples(model, tmp_path):
    quick = registry.plugin_class(registry.load("models", model), Method).quick_flags
    method, config = tiny_method(
        model, **RESNET, **{"batch_size": 29, "minibatch_size": 4, **quick, **MORE.get(model, {})}
    )
    counts = [method.benchmark.n_samples(task) for task in method.benchmark.tasks]
    assert single_samples.leaves_one(counts, 29)
    refuse_last_batch_of_one(method, config)
    Trainer(config, method, tmp_path, quiet=True).run()


@pytest.mark.parametrize("model", ["sgd", "derpp", "ewc", "icarl", "joint", "cumulative"])
def test_others_refuse_it_and_name_the_sizes_that_work(model):
    n = 90 if model == "joint" else 30
    method, config = tiny_method(model, **RESNET, batch_size=n - 1)
    with pytest.raises(
        UserError, match=f"--batch_size {n - 1} leaves 1 of {n} samples .*--batch_size {n - 2}"
    ):
        refuse_last_batch_of_one(method, config)
    with pytest.raises(UserError, match="batch norm on feature maps of 1×1"):  # no false refusal
        next_step(method)


def next_step(method: Method) -> None:
    method.enter(method.benchmark.tasks[0])
    method.begin_task(method.task)
    method.net.train()
    method.optimizer = torch.optim.SGD(method.net.parameters(), 0.1)
    batch = next(method.benchmark.batches(method.task, 0, 1))
    with single_samples.explained():
        method.observe(batch)


@pytest.mark.parametrize(
    "flags",
    [{"n_iters": 1}, {"backbone": "mlp"}, {"backbone": "cnn", "channels": (2,)}, {"batch_size": 28}],
    ids=str,
)
def test_runs_that_take_no_such_step_are_not_refused(flags):
    method, config = tiny_method("sgd", **{"backbone": "resnet18", "batch_size": 29, **flags})
    refuse_last_batch_of_one(method, config)


def test_a_memory_of_no_samples_joins_nothing():
    method, config = tiny_method("er", **RESNET, batch_size=29, buffer_size=0)
    with pytest.raises(UserError, match="leaves 1 of 30"):
        refuse_last_batch_of_one(method, config)


def test_the_check_leaves_the_network_as_it_is():
    method, _ = tiny_method("sgd", **RESNET)
    before = {name: value.clone() for name, value in method.net.state_dict().items()}
    assert single_samples.cannot_learn(method.net, torch.rand(1, 6, 6).to(DEVICE[0]))
    assert method.net.training
    assert all(torch.equal(value, before[name]) for name, value in method.net.state_dict().items())


def test_the_program_refuses_before_a_folder_is_made(tmp_path, capsys):
    flags = ["--backbone=resnet18", "--batch_size=7", "--width=0.03", "--disable_log"]
    assert program.main(["--model=sgd", *flags, f"--output_dir={tmp_path}"]) == 2
    told = capsys.readouterr().err
    assert "leaves 1 of 288 samples" in told and "--batch_size 5 or 8 leaves none" in told
    assert list(tmp_path.iterdir()) == []


def test_a_replayed_batch_of_one_is_a_line(tmp_path, capsys):
    flags = ["--backbone=resnet18", "--batch_size=8", "--minibatch_size=1", "--width=0.03", "--disable_log"]
    assert program.main(["--model=derpp", *flags, f"--output_dir={tmp_path}"]) == 2
    assert "cannot learn from a single sample; give a --batch_size, --minibatch" in capsys.readouterr().err


@pytest.mark.parametrize("program_name", ["train_splits", "train_stream", "train_proxies"])
def test_memorization_refuses_it(program_name, tmp_path, monkeypatch, capsys):
    sizes = {"train_splits": 717, "train_stream": 143, "train_proxies": 1436}
    places = {
        "train_splits": ["--weights_dir", str(tmp_path / "w"), "--n_repeats=4"],
        "train_stream": [
            "--n_repeats=4",
            "--out_filename",
            str(tmp_path / "s.npz"),
            "--weights_dir",
            str(tmp_path / "w"),
        ],
        "train_proxies": ["--out_filename", str(tmp_path / "p.npz")],
    }
    flags = ["--model_name=resnet18", "--width=0.03", "--n_epochs=1", "--stack=1", "--num_workers=1"]
    flags += ["--use_multiprocessing=0"]
    monkeypatch.setattr(
        "sys.argv", ["x", *flags, f"--batch_size={sizes[program_name]}", *places[program_name]]
    )
    assert cli.main(program_name) == 2
    assert "samples for the last step" in capsys.readouterr().err
