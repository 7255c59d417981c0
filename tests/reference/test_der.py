"""DER and DER++ against naive transcriptions: lists, loops, the same draws."""

import pytest
import torch
import torch.nn.functional as F

from tests.conftest import tiny_method
from tests.contract.test_methods import train
from tests.reference.naive import FLAGS, LR, SCENARIOS, Reservoir, columns, trained
from tests.reference.test_mer_baselines import assert_equal_networks, descend


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("model", ["der", "derpp"])
def test_der_equals_a_naive_transcription(model, scenario):
    weights = {"der": {"alpha": 0.7}, "derpp": {"alpha": 0.7, "beta": 0.4}}[model]
    method, twin, steps = trained(model, scenario, **weights, **FLAGS)
    memory = Reservoir(twin.buffer.generator)
    for _, batch in steps:
        outputs = twin.net(batch.x)
        loss = F.cross_entropy(outputs, batch.y)
        if memory:
            x, _, z = columns(memory.draw())
            loss = loss + 0.7 * ((twin.net(x) - z) ** 2).sum() / z.numel()
            if model == "derpp":
                x, y, _ = columns(memory.draw())
                loss = loss + 0.4 * F.cross_entropy(twin.net(x), y)
        descend(list(twin.net.parameters()), loss, LR)
        memory.offer(zip(batch.x, batch.y, outputs.detach(), strict=True))
    assert_equal_networks(method.net, twin.net)
    torch.testing.assert_close(method.buffer.stored()["logits"], columns(memory)[2].float())


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_stored_logits_are_renewed_by_the_coin_of_the_epoch(scenario):
    """Every (task, index) held has the outputs of the last epoch whose coin said so, written as a loop."""
    method, config = tiny_method("der", scenario, buffer_size=20, n_epochs=3)
    coins, expected, seen = method.setup.generator("method"), {}, {}
    observe = method.observe

    def noting(batch):
        out = observe(batch)
        keys = [(method.task.id, i) for i in batch.index.tolist()]
        tossed = torch.rand(len(keys), generator=coins).tolist() if method.epoch else [0.0] * len(keys)
        for key, coin, z in zip(keys, tossed, method.outputs, strict=True):
            seen.setdefault(key, []).append(z)
            if coin * (method.epoch + 1) < 1:
                expected[key] = z
        return out

    method.observe = noting
    train(method, config)
    held = method.buffer.stored()
    keys = list(zip(held["task_id"].tolist(), held["index"].tolist(), strict=True))
    for key, z in zip(keys, held["logits"], strict=True):
        assert torch.equal(z, expected[key])
    pairs = zip(keys, held["logits"], strict=True)
    epochs = [[torch.equal(z, s) for s in seen[key]].index(True) for key, z in pairs]
    assert len(set(epochs)) == 3 and all(len(seen[key]) == 3 for key in keys)


def test_dark_logits_of_per_task_heads_are_finite():
    method, _ = train(*tiny_method("derpp", "task-il", buffer_size=20))
    assert method.buffer.stored()["logits"].isfinite().all()
