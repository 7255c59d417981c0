"""ER-ACE and ER-AML against naive transcriptions: lists, loops, the same draws."""

import pytest
import torch
import torch.nn.functional as F

from engram.models.er_aml import supcon
from tests.conftest import tiny_method
from tests.reference.naive import FLAGS, LR, SCENARIOS, Reservoir, columns, trained
from tests.reference.test_mer_baselines import assert_equal_networks, descend


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_er_ace_equals_a_naive_transcription(scenario):
    method, twin, steps = trained("er_ace", scenario, **FLAGS)
    memory, met = Reservoir(twin.buffer.generator), set()
    for _, batch in steps:
        present = set(batch.y.tolist())
        if not memory:
            loss = F.cross_entropy(twin.net(batch.x), batch.y)
        else:
            x, y = columns(memory.draw())
            loss = F.cross_entropy(twin.net(x), y)
            allowed = [c for c in range(6) if c in present or c not in met]
            for logits, label in zip(twin.net(batch.x), batch.y.tolist(), strict=True):
                loss = loss + (torch.logsumexp(logits[allowed], 0) - logits[label]) / len(batch.y)
        descend(list(twin.net.parameters()), loss, LR)
        memory.offer(zip(batch.x, batch.y, strict=True))
        met |= present
    assert_equal_networks(method.net, twin.net)


def test_er_ace_masks_old_classes_only():
    method, _ = tiny_method("er_ace", buffer_size=5)
    method.seen[:4] = True
    assert method.absent(torch.tensor([3, 3, 4])).tolist() == [True, True, True, False, False, False]


def naive_contrast(net, batch, memory, draws: torch.Generator, temperature: float):
    """The stream's loss, sample by sample; None where no sample has a positive and a negative."""
    pool = [*((x, int(y)) for x, y in memory), *((x, int(y)) for x, y in zip(batch.x, batch.y, strict=True))]
    n, first, labels = len(batch.y), len(memory), batch.y.tolist()
    chances = torch.rand(2 * n, generator=draws).tolist()
    pairs = []
    for i, label in enumerate(labels):
        positives = [j for j, (_, y) in enumerate(pool) if y == label and j != first + i]
        negatives = [j for j, (_, y) in enumerate(pool) if y != label and y in labels]
        if positives and negatives:
            p, q = int(chances[i] * len(positives)), int(chances[n + i] * len(negatives))
            pairs.append((i, [positives[p], negatives[q]]))
    if not pairs:
        return torch.tensor(0.0)
    others = [pool[chosen[k]] for k in (0, 1) for _, chosen in pairs]
    f = [F.normalize(net.features(x[None])[0], dim=0) for x, _ in others]
    total = 0.0
    for i, _ in pairs:
        h = F.normalize(net.features(batch.x[i][None])[0], dim=0)
        similar = torch.stack([h @ g for g in f]) / temperature
        log_p = similar - torch.logsumexp(similar, 0)
        mine = [j for j, (_, y) in enumerate(others) if y == labels[i]]
        total = total - sum(log_p[j] for j in mine) / len(mine)
    return temperature / 0.07 * total / len(pairs)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_er_aml_equals_a_naive_transcription(scenario):
    method, twin, steps = trained("er_aml", scenario, supcon_temperature=0.3, **FLAGS)
    memory = Reservoir(twin.buffer.generator)
    for _, batch in steps:
        if not memory:
            loss = F.cross_entropy(twin.net(batch.x), batch.y)
        else:
            x, y = columns(memory.draw())
            loss = F.cross_entropy(twin.net(x), y)
            loss = loss + naive_contrast(twin.net, batch, memory, twin.draws, 0.3)
        descend(list(twin.net.parameters()), loss, LR)
        memory.offer(zip(batch.x, batch.y, strict=True))
    assert_equal_networks(method.net, twin.net)


def test_supcon_counts_valid_anchors_and_their_pairs_only():
    """With some anchors out, the loss is that of the others alone; with all out it is 0, gradient and all."""
    draws = torch.Generator().manual_seed(0)
    h, f = (F.normalize(torch.randn(n, 3, generator=draws, dtype=torch.float64), dim=1) for n in (4, 8))
    y, y_f = torch.tensor([0, 1, 0, 1]), torch.tensor([0, 1, 0, 1, 1, 0, 1, 0])
    valid, kept = torch.tensor([True, False, True, True]), torch.tensor([0, 2, 3])
    pairs = torch.cat((kept, 4 + kept))
    alone = supcon(h[kept], f[pairs], y[kept], y_f[pairs], torch.ones(3, dtype=torch.bool), 0.3)
    torch.testing.assert_close(supcon(h, f, y, y_f, valid, 0.3), alone)
    h.requires_grad_()
    nothing = supcon(h, f, y, y_f, torch.zeros(4, dtype=torch.bool), 0.3)
    nothing.backward()
    assert nothing == 0 and not h.grad.any()


def test_er_aml_draws_pairs_uniformly():
    """Each possible positive and negative about as often: 4.5 standard errors, false alarm < 1e-4."""
    method, _ = tiny_method("er_aml", buffer_size=5)
    pool = torch.tensor([0, 1, 1, 2, 0, 1, 0])  # the last two are the batch
    counts = torch.zeros(4, len(pool))
    for _ in range(4000):
        places, valid = method.pairs(pool, 2)
        assert valid.all()
        counts[torch.arange(4), places] += 1
    for row, allowed in zip(counts, ([1, 2], [0, 4], [0, 4, 6], [1, 2, 5]), strict=True):
        assert row.sum() == row[allowed].sum()
        p = 1 / len(allowed)
        assert ((row[allowed] / 4000 - p).abs() < 4.5 * (p * (1 - p) / 4000) ** 0.5).all()
