"""InfLoRA: the memory against a naive DualGPM, A orthogonal to it, old tokens' keys and values unchanged."""

import numpy as np
import pytest
import torch

from engram.models.inflora import InfLoRA, Options
from engram.models.parts.vision_transformer import SMALL_VIT
from engram.utils.errors import UserError
from tests.conftest import tiny_method
from tests.contract.test_declarations import train_second_task
from tests.contract.test_methods import small_method, train

pytest.importorskip("timm")
UNEVEN = {"half_classes_in_first_task": True}  # three tasks of 3, 2 and 1 classes


DEPTH = SMALL_VIT["depth"]


def moments(seed, n_blocks=DEPTH, width=16, decay=0.5):
    """Σ x xᵀ of tokens whose variances fall from direction to direction, by block."""
    generator = torch.Generator().manual_seed(seed)
    scales = decay ** torch.arange(width, dtype=torch.float64)
    result = []
    for _ in range(n_blocks):
        directions = torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64)).Q
        tokens = torch.randn(50, width, generator=generator, dtype=torch.float64) * scales @ directions.T
        result.append(tokens.T @ tokens)
    return torch.stack(result)


class DualGPM:
    """The memory of one block as published: a basis of what is used, or of what is not once that is less."""

    def __init__(self):
        self.basis, self.holds_used = np.zeros((16, 0)), True

    def free(self):
        projector = self.basis @ self.basis.T
        return np.eye(16) - projector if self.holds_used else projector

    def update(self, X, share):
        total = (np.linalg.svd(X)[1] ** 2).sum()
        U, S, _ = np.linalg.svd(self.free() @ X)
        held, n = total - (S**2).sum(), 0
        while held < share * total:
            held, n = held + S[n] ** 2, n + 1
        if self.holds_used:
            self.basis = np.hstack((self.basis, U[:, :n]))
        else:
            n_left = self.basis.shape[1] - n
            self.basis = np.linalg.svd(self.basis - U[:, :n] @ U[:, :n].T @ self.basis)[0][:, :n_left]
        if self.holds_used and self.basis.shape[1] > 8:
            self.basis = np.linalg.svd(self.basis)[0][:, self.basis.shape[1] :]
            self.holds_used = False


@pytest.mark.parametrize(("epsilon", "decay"), [(0.95, 0.9), (0.5, 0.8), (0.9999, 0.7)])
def test_memory_and_directions_equal_a_naive_dualgpm(epsilon, decay, monkeypatch):
    method, _ = small_method("inflora", dualgpm_epsilon=epsilon)
    naive, passed_half = [DualGPM() for _ in range(DEPTH)], 0
    for task in method.benchmark.tasks:
        X = moments(task.id, decay=decay)
        monkeypatch.setattr(method, "input_moments", lambda task, X=X: X)
        method.begin_task(task)
        for block, memory in enumerate(naive):
            U = np.linalg.svd(memory.free() @ X[block].numpy())[0][:, :2]
            for lora in method.loras()[block]:
                A = lora.down[task.id].detach().numpy()
                np.testing.assert_allclose(np.abs(A @ U), np.eye(2) / 3**0.5, atol=1e-5)
        method.end_task(task)
        for block, memory in enumerate(naive):
            memory.update(X[block].numpy(), epsilon + (1 - epsilon) * task.id / 3)
            np.testing.assert_allclose(method.free[block].numpy(), memory.free(), atol=1e-8)
            passed_half += not memory.holds_used
    assert passed_half or epsilon == 0.5


def test_the_moments_are_those_of_the_tokens():
    method, config = small_method("inflora")
    train(method, config, tasks=1)
    task, net = method.benchmark.tasks[1], method.net
    of_blocks = method.input_moments(task)
    assert not any(block.attn._forward_pre_hooks for block in net.blocks)
    with torch.no_grad():
        z = net.embedded(net.prepared(method.benchmark.augment.normalise(method.benchmark.train(task).x_raw)))
        for block, X in zip(net.blocks, of_blocks, strict=True):
            tokens = block.norm1(z).flatten(0, 1).double().numpy()
            np.testing.assert_allclose(X.numpy(), sum(np.outer(x, x) for x in tokens), rtol=1e-4, atol=1e-4)
            z = block(z)


@pytest.mark.parametrize("flags", [{}, UNEVEN])
def test_directions_are_orthogonal_to_what_old_tasks_use(flags):
    method, config = small_method("inflora", dualgpm_epsilon=0.999, **flags)
    train(method, config, tasks=2)
    task = method.benchmark.tasks[2]
    used = torch.eye(16) - method.free.float()
    assert (used.diagonal(dim1=1, dim2=2).sum(1) > 1.5).all(), "there are directions to keep away from"
    method.enter(task)
    method.begin_task(task)
    for pair, M in zip(method.loras(), used, strict=True):
        for lora in pair:
            A = lora.down[2].detach()
            assert (A @ M).abs().max() < 1e-4
            torch.testing.assert_close(A @ A.T, torch.eye(2) / 3, rtol=0, atol=1e-5)


def test_keys_and_values_of_old_tokens_stay():
    method, config = small_method("inflora", dualgpm_epsilon=0.999)
    train(method, config, tasks=1)
    task, x = method.benchmark.tasks[1], torch.randn(5, 16, generator=torch.Generator().manual_seed(0))
    method.enter(task)
    method.begin_task(task)
    attention, old = method.net.blocks[0].attn, x @ (torch.eye(16) - method.free[0].float())
    before = [attention.lora[name](tokens) for name in "kv" for tokens in (old, x)]
    with torch.no_grad():
        for name in "kv":
            attention.lora[name].up[1].normal_(generator=torch.Generator().manual_seed(1))
    after = [attention.lora[name](tokens) for name in "kv" for tokens in (old, x)]
    changes = [(a - b).abs().max().item() for a, b in zip(after, before, strict=True)]
    assert changes[0] < 1e-4 and changes[2] < 1e-4
    assert changes[1] > 0.1 and changes[3] > 0.1, "other tokens' change"


def test_an_epsilon_of_one_freezes_every_direction():
    method, config = small_method("inflora", dualgpm_epsilon=1)
    train(method, config, tasks=1)
    images = method.benchmark.test(3).x_raw
    before = method.features(images)
    train_second_task(method, config)
    assert torch.equal(method.features(images), before)
    assert all(not lora.down[1].any() for pair in method.loras() for lora in pair)


def test_each_task_begins_with_the_network_that_the_last_one_left():
    """At first the frozen one, bit for bit: B is zero. Then only B and the new head move, in eval mode."""
    plain, _ = tiny_method("sgd", **SMALL_VIT)
    method, config = small_method("inflora")
    images = method.benchmark.test(3).x_raw
    assert torch.equal(method.features(images), plain.features(images))
    train(method, config, tasks=1)
    features, task = method.features(images), method.benchmark.tasks[1]
    assert not torch.allclose(features, plain.features(images))
    method.enter(task)
    method.begin_task(task)
    assert torch.equal(method.features(images), features)
    expected = {f"body.blocks.{i}.attn.lora.{name}.up.1" for i in range(DEPTH) for name in "kv"}
    assert method.trainable().keys() == expected | {"head.heads.1.weight", "head.heads.1.bias"}
    method.net.train()
    assert not method.net.body.training and not method.net.blocks[0].training


def test_other_networks_and_too_large_ranks_are_refused():
    mlp, _ = tiny_method("sgd")
    with pytest.raises(UserError, match="needs a vision transformer"):
        InfLoRA(mlp.net, Options(), mlp.setup)
    with pytest.raises(UserError, match="--lora_rank 17: give at most the encoder's width, 16"):
        small_method("inflora", lora_rank=17)
