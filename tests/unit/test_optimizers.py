"""Optimizers: PyTorch's updates to the bit, and nobody pays for a compiler that nobody uses."""

import io
import math
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from engram.models.sgd import SGD
from engram.utils.config.config import TrainOptions
from engram.utils.errors import UserError
from engram.utils.training.optimizers import build_optimizer, build_scheduler, carry_over
from tests.conftest import ROOT, tiny_config, tiny_method
from tests.contract.test_methods import train

FLAGS = {"lr": 0.03, "optim_wd": 0.1}


@pytest.mark.parametrize("kind", ["sgd", "adam", "adamw"])
def test_updates_are_pytorchs(kind):
    options = replace(tiny_config(optimizer=kind, **FLAGS).train)
    a = [torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).requires_grad_() for _ in range(2)]
    b = [p.detach().clone().requires_grad_() for p in a]
    extra = {"momentum": options.optim_mom} if kind == "sgd" else {}
    theirs = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[kind]
    ours, theirs = build_optimizer(a, options), theirs(b, lr=0.03, weight_decay=0.1, fused=True, **extra)
    for step in range(5):
        for parameters, optimizer in ((a, ours), (b, theirs)):
            optimizer.zero_grad()
            sum((p * p * (step + 1)).sum() for p in parameters).backward()
            optimizer.step()
        if step == 2:
            ours.load_state_dict(ours.state_dict())
    assert all(torch.equal(p, q) and not q.equal(torch.zeros_like(q)) for p, q in zip(a, b, strict=True))
    assert ours.state_dict().keys() == theirs.state_dict().keys()


@pytest.mark.parametrize("kind", ["sgd", "adam", "adamw"])
def test_gradients_and_state_of_another_layout_are_brought_into_the_parameters(kind):
    """A fused step on a CPU pairs numbers as they lie in memory, whatever their strides."""
    options = replace(tiny_config(optimizer=kind, optim_mom=0.9 * (kind == "sgd"), **FLAGS).train)
    start, gradients = torch.randn(3, 4, 5, 2, 2, generator=torch.Generator().manual_seed(0)).split([1, 2])
    ended = []
    for layouts in (("contiguous_format",) * 3, ("channels_last", "contiguous_format", "contiguous_format")):
        own, of_gradient, of_state = (getattr(torch, name) for name in layouts)
        p = start[0].clone(memory_format=own).requires_grad_()
        optimizer = build_optimizer([p], options)
        for gradient in gradients:
            p.grad = gradient.clone(memory_format=of_gradient)
            optimizer.step()
            saved = optimizer.state_dict()
            for state in saved["state"].values():
                tensors = {k: v for k, v in state.items() if isinstance(v, torch.Tensor) and v.dim() == 4}
                state.update({k: v.contiguous(memory_format=of_state) for k, v in tensors.items()})
            optimizer = build_optimizer([p], options)
            optimizer.load_state_dict(saved)
        ended.append(p.detach())
    assert torch.equal(*ended) and not torch.equal(ended[0], start[0])


@pytest.mark.parametrize("kind", ["sgd", "adam", "adamw"])
def test_what_is_carried_over_goes_on_as_in_one_optimizer(kind):
    """Parameters are known by name; a new one and one that has grown begin as in a new optimizer."""
    options = replace(tiny_config(optimizer=kind, optim_mom=0.9 * (kind == "sgd"), **FLAGS).train)
    draws = torch.Generator().manual_seed(0)
    start = {"gone": 2, "stays": 3, "grows": 4, "new": 5}
    start = {name: torch.randn(size, generator=draws) for name, size in start.items()}
    gradient = {name: torch.randn(len(p) + 2, generator=draws) for name, p in start.items()}

    def steps(optimizer, named, n=3):
        for _ in range(n):
            for name, p in named:
                p.grad = gradient[name][: len(p)] * p.detach()
            optimizer.step()

    def parameter(name):
        return name, start[name].clone().requires_grad_()

    first = [parameter(name) for name in ("gone", "stays", "grows")]
    before = build_optimizer(first, options)
    steps(before, first)
    second = [parameter("new"), ("grows", torch.ones(6, requires_grad=True)), first[1]]
    after = build_optimizer(second, replace(options, lr=0.01))
    carry_over(after, before.state_dict())
    steps(after, second)

    stays, anew = [parameter("stays")], [parameter("new"), ("grows", torch.ones(6, requires_grad=True))]
    one, another = build_optimizer(stays, options), build_optimizer(anew, replace(options, lr=0.01))
    steps(one, stays)
    one.param_groups[0]["lr"] = 0.01
    steps(one, stays)
    steps(another, anew)
    for (name, p), (_, q) in zip(second, [*anew, *stays], strict=True):
        assert torch.equal(p, q), name


def test_a_run_does_not_import_the_compiler(tmp_path):
    code = (
        "import sys, main\n"
        "from engram.utils.runs import figures\n"  # which matplotlib alone draws, in a second a run
        "figures.write_all = lambda record, folder: []\n"
        "flags = ['--dataset', 'seq-digits', '--disable_log', '--debug_mode']\n"
        f"flags += ['--output_dir', {str(tmp_path)!r}]\n"
        "for model in ('er', 'hal', 'gdumb', 'ebll'):\n"  # the last three build optimizers of their own
        "    buffer = ['--buffer_size', '40'] * (model != 'ebll')\n"
        "    assert main.main([*flags, '--model', model, *buffer]) == 0\n"
        "    assert 'torch._dynamo' not in sys.modules, model"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


SLOW = TrainOptions(lr=0.1, encoder_lr_scale=0.01, optim_mom=0.9, lr_scheduler="cosine")


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_the_encoder_learns_slowly(optimizer):
    """Each parameter moves as in an optimizer of its own rate, along its own schedule, from task to task."""
    options = replace(SLOW, optimizer=optimizer)
    names, rates = ["body.0.weight", "head.weight", "layers.1.bias"], [0.001, 0.1, 0.001]
    together = [(name, torch.ones(3, requires_grad=True)) for name in names]
    apart = [(name, torch.ones(3, requires_grad=True)) for name in names]

    def task(pairs, options, before):
        optimizer = build_optimizer(pairs, options)
        if before:
            carry_over(optimizer, before)
        scheduler = build_scheduler(optimizer, options, 4)
        for _ in range(3):
            for _, p in pairs:
                p.grad = torch.arange(1.0, 4) * p.detach()
            optimizer.step()
            scheduler.step()
        return optimizer.state_dict()

    before, alone = None, [None] * 3
    for _ in range(2):
        before = task(together, options, before)
        for i, pair in enumerate(apart):
            alone[i] = task([pair], replace(options, lr=rates[i], encoder_lr_scale=1.0), alone[i])
    for (name, p), (_, q) in zip(together, apart, strict=True):
        torch.testing.assert_close(p, q, msg=name)


def test_a_slow_encoder_needs_names_and_is_refused_where_a_step_has_one_rate():
    with pytest.raises(ValueError, match="pairs"):
        build_optimizer([torch.ones(1, requires_grad=True)], SLOW)
    for model in ("mer", "mir", "hal"):
        method, config = tiny_method(model, buffer_size=20, encoder_lr_scale=0.5)
        with pytest.raises(UserError, match="leave --encoder_lr_scale out"):
            train(method, config)


def test_the_compiled_kernel_is_not_taken_with_a_slow_encoder():
    fast, slow = (tiny_method("er_alg4", buffer_size=20, encoder_lr_scale=s)[0] for s in (1, 0.5))
    assert fast.inner.kernel is not None and slow.inner.kernel is None


def test_the_head_alone_learns_where_the_encoder_hardly_moves():
    method, config = tiny_method("sgd", encoder_lr_scale=1e-12)
    before = {name: p.clone() for name, p in method.net.named_parameters()}
    train(method, config)
    for name, p in method.net.named_parameters():
        assert torch.allclose(p, before[name], atol=1e-6) == (not name.startswith("head.")), name


def test_a_method_chooses_how_slow_the_encoder_is_and_a_flag_wins(monkeypatch):
    monkeypatch.setattr(SGD, "encoder_lr_scale", 0.01)
    assert tiny_config("sgd").train.encoder_lr_scale == 0.01
    assert tiny_config("sgd", encoder_lr_scale=1).train.encoder_lr_scale == 1
    assert tiny_config("er", buffer_size=20).train.encoder_lr_scale == 1


def rates(n_epochs: int, resumed_at: int | None = None) -> list[float]:
    """The rate of each epoch of a task; before one of them the run is stopped and resumed."""
    options = TrainOptions(lr=0.4, lr_scheduler="cosine_quarter")

    def begin():
        optimizer = build_optimizer([torch.ones(3, requires_grad=True)], options)
        return optimizer, build_scheduler(optimizer, options, n_epochs)

    optimizer, scheduler = begin()
    found = []
    for epoch in range(n_epochs):
        if epoch == resumed_at:
            file = io.BytesIO()
            torch.save([optimizer.state_dict(), scheduler.state_dict()], file)
            file.seek(0)
            optimizer, scheduler = begin()
            for part, state in zip((optimizer, scheduler), torch.load(file, weights_only=True), strict=True):
                part.load_state_dict(state)
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def test_the_quarter_wave_of_prompts_and_lora():
    """lr cos(99 π e / (200 (K − 1))), as CosineSchedule of CODA-Prompt and InfLoRA; half a wave has 0.525."""
    found = rates(20)
    assert found == pytest.approx([0.4 * math.cos(99 * math.pi * e / (200 * 19)) for e in range(20)])
    assert sum(found) / 20 / 0.4 == pytest.approx(0.636, abs=5e-4)
    assert rates(1) == [0.4]
    assert rates(20, resumed_at=7) == found
