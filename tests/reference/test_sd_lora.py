"""SD-LoRA: its update of queries and values against the formula by hand; what learns and what stays."""

import pytest
import torch

from engram.models.parts.vision_transformer import SMALL_VIT
from tests.conftest import tiny_method
from tests.contract.test_methods import small_method, train

pytest.importorskip("timm")
FAST = {"lr": 0.5, "n_epochs": 2}


def begun(task_id, **flags):
    """SD-LoRA with the tasks before learned, about to learn this one."""
    method, config = small_method("sd_lora", **FAST, **flags)
    train(method, config, tasks=task_id)
    pairs = [(d.down[task_id - 1].clone(), d.up[task_id - 1].clone()) for d in method.directions()]
    task = method.benchmark.tasks[task_id]
    method.enter(task)
    method.begin_task(task)
    return method, pairs


def test_the_update_by_hand():
    """α₀ B₀A₀/(‖B₀‖‖A₀‖) + α₁ B₁A₁/(‖B₁‖‖A₁‖) + α₂ B₂A₂ of a token, in every block."""
    method, last = begun(2)
    x = torch.randn(4, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for j, alpha in enumerate(next(method.directions()).magnitudes):
            alpha.fill_((0.3, 0.7, 1.9)[j])
        for directions, (A1, B1) in zip(method.directions(), last, strict=True):
            directions.up[2].normal_(generator=torch.Generator().manual_seed(1))
            A0, B0, A2, B2 = directions.down[0], directions.up[0], directions.down[2], directions.up[2]
            update = 0.3 * B0 @ A0 / (B0.norm() * A0.norm())
            update += 0.7 * B1 @ A1 / (B1.norm() * A1.norm())
            update += 1.9 * B2 @ A2
            torch.testing.assert_close(directions(x), x @ update.T, rtol=1e-4, atol=1e-5)
            assert B1.norm() > 0 and not torch.allclose(B1, directions.up[1]), "it has been normalised"


def test_magnitudes_learn_and_are_the_same_everywhere():
    method, _ = begun(1, initial_magnitude=0.6)
    method.optimizer = torch.optim.SGD(method.trainable().values(), lr=0.5)
    magnitudes = next(method.directions()).magnitudes
    assert all(d.magnitudes is magnitudes for d in method.directions())
    assert [alpha.item() for alpha in magnitudes] == pytest.approx([0.6] * 3)
    for batch in method.benchmark.batches(method.benchmark.tasks[1], 0, 4):
        method.observe(batch)
    values = [alpha.item() for alpha in magnitudes]
    assert values[0] != pytest.approx(0.6) and values[1] != pytest.approx(0.6)
    assert values[2] == pytest.approx(0.6), "its task is still to come"


def test_old_directions_and_heads_stay_bit_for_bit():
    method, _ = begun(1)
    method.optimizer = torch.optim.SGD(method.trainable().values(), lr=0.5, weight_decay=0.1)
    before = {name: p.clone() for name, p in method.net.named_parameters()}
    for batch in method.benchmark.batches(method.benchmark.tasks[1], 0, 4):
        method.observe(batch)
    changed = {name for name, p in method.net.named_parameters() if not torch.equal(p, before[name])}
    learned = ("down.1", "up.1", "head.heads.1.weight", "head.heads.1.bias", "magnitudes.0", "magnitudes.1")
    assert changed and all(name.endswith(learned) for name in changed)
    assert sum(name.endswith("up.1") for name in changed) == 2 * method.net.depth


def test_at_first_it_is_the_frozen_network_bit_for_bit():
    plain, _ = tiny_method("sgd", **SMALL_VIT)
    method, _ = small_method("sd_lora")
    images = method.benchmark.test(3).x_raw
    assert torch.equal(method.features(images), plain.features(images))


def test_a_pair_that_has_not_learned_is_a_direction_of_nothing():
    method, _ = small_method("sd_lora")
    directions = next(method.directions())
    directions.normalise(0)
    assert not directions.up[0].any() and directions.down[0].norm().item() == pytest.approx(1)
