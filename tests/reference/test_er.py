"""ER and its memories against naive transcriptions: lists, loops, the same draws."""

import pytest
import torch
import torch.nn.functional as F

from engram.utils.buffers.reservoir import distinct, rows_where
from engram.utils.config.options import OptionError
from tests.conftest import tiny_method
from tests.contract.test_methods import train
from tests.reference.naive import FLAGS, LR, SCENARIOS, SIZE, K, Reservoir, columns, trained
from tests.reference.test_mer_baselines import assert_equal_networks, descend


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_er_equals_a_naive_transcription(scenario):
    method, twin, steps = trained("er", scenario, **FLAGS)
    memory = Reservoir(twin.buffer.generator)
    for _, batch in steps:
        samples = [*zip(batch.x, batch.y, strict=True), *(memory.draw() if memory else [])]
        x, y = columns(samples)
        descend(list(twin.net.parameters()), F.cross_entropy(twin.net(x), y), LR)
        memory.offer(samples[: len(batch.y)])
    assert_equal_networks(method.net, twin.net)


def test_loss_aware_er_keeps_every_samples_last_known_loss():
    """The scores in the memory, sample by sample, and the parameters they lead to."""
    method, twin, steps = trained("er", "class-il", memory="loss_aware", **FLAGS)
    known, kept, n_seen, source = {}, [], 0, twin.buffer.generator
    for task, batch in steps:
        rows = distinct(len(kept), min(K, len(kept)), source).tolist() if kept else []
        samples = [*zip(batch.x, batch.y, [(task, i) for i in batch.index.tolist()], strict=True)]
        samples += [kept[row] for row in rows]
        x, y = columns([s[:2] for s in samples])
        losses = F.cross_entropy(twin.net(x), y, reduction="none")
        known |= {s[2]: v for s, v in zip(samples, losses.tolist(), strict=True)}
        descend(list(twin.net.parameters()), losses.mean(), LR)
        draws = torch.rand(len(batch.y), generator=source, dtype=torch.float64).tolist()
        entering = []
        for sample, draw in zip(samples[: len(batch.y)], draws, strict=True):
            n_seen += 1
            if len(kept) < SIZE:
                kept.append(sample)
            elif int(draw * n_seen) < SIZE:
                entering.append(sample)
        chances = torch.rand(len(entering), generator=source).tolist() if entering else []
        for sample, chance in zip(entering, chances, strict=True):
            losses = [known[s[2]] for s in kept]
            weights = torch.tensor([max(losses) - v for v in losses], dtype=torch.float64).cumsum(0)
            kept[int((weights > chance * weights[-1]).to(torch.uint8).argmax())] = sample
    assert_equal_networks(method.net, twin.net)
    stored = method.buffer.stored()
    assert stored["index"].tolist() == [s[2][1] for s in kept]
    expected = torch.tensor([known[s[2]] for s in kept], dtype=torch.float64)
    torch.testing.assert_close(stored["score"], expected)


def test_er_with_a_ring_per_class_replays_from_it():
    method, twin, steps = trained("er", "class-il", memory="class_ring", buffer_size=12, minibatch_size=K)
    rings, counts, source = {c: [None, None] for c in range(6)}, [0] * 6, twin.buffer.generator
    for _, batch in steps:
        samples = list(zip(batch.x, batch.y, strict=True))
        places = [sample for c in range(6) for sample in rings[c]]
        mask = torch.tensor([p is not None for p in places])
        if mask.any():
            drawn = rows_where(torch.cat((mask, torch.tensor([False])))[:12], K, source)
            samples += [places[row] for row in drawn.tolist()]
        x, y = columns(samples)
        descend(list(twin.net.parameters()), F.cross_entropy(twin.net(x), y), LR)
        for sample in samples[: len(batch.y)]:
            c = int(sample[1])
            rings[c][counts[c] % 2] = sample
            counts[c] += 1
    assert_equal_networks(method.net, twin.net)


@pytest.mark.parametrize("memory", ["balanced", "class_ring", "task_ring", "fifo", "loss_aware_balanced"])
@pytest.mark.parametrize("scenario", [*SCENARIOS, "task-il"])
def test_every_memory_serves_er(memory, scenario):
    """Never over size, all filled at the end, replayed in the next task, and continued after saving."""
    flags = {"memory": memory, "buffer_size": 12}
    method, results = train(*tiny_method("er", scenario, **flags))
    again, restored = train(*tiny_method("er", scenario, **flags))[0], tiny_method("er", scenario, **flags)[0]
    assert_equal_networks(method.net, again.net)
    stored = method.buffer.stored()
    assert len(stored["y"]) == len(method.buffer) == 12
    assert results.memory[-1].per_class == stored["y"].bincount(minlength=6).tolist()
    restored.load_state_dict(method.state_dict())
    assert torch.equal(method.buffer.sample(5)["x"], restored.buffer.sample(5)["x"])
    if memory == "balanced":
        assert stored["y"].bincount().max() <= 3
    if memory == "task_ring":
        assert stored["task_id"].bincount().tolist() == [4, 4, 4]
    if memory == "class_ring" and scenario != "domain-il":
        assert stored["y"].bincount().tolist() == [2] * 6


def test_a_memory_of_its_own_excludes_flags_of_the_reservoir():
    for flags in ({"er_variant": "alg4"}, {"draws": "replacement"}, {"reservoir": "original"}):
        with pytest.raises(OptionError, match="belong to --memory reservoir"):
            tiny_method("er", memory="balanced", **flags)
