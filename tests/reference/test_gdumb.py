"""GDumb: the sampler against Algorithm 1, the rates against PyTorch's scheduler, CutMix, the learner."""

import copy
from collections import Counter

import pytest
import torch
import torch.nn.functional as F

from engram.models import gdumb
from engram.models.gdumb import GreedyBuffer, cutmix, rate
from engram.utils.config import cli
from tests.conftest import tiny_method
from tests.contract.test_methods import train


def algorithm_1(labels: list[int], k: int, generator: torch.Generator) -> dict[int, list[int]]:
    """The greedy sampler as the paper writes it: a list of positions per class, in order of arrival."""
    held: dict[int, list[int]] = {}
    for position, y in enumerate(labels):
        classes = set(held) | {y}
        if y not in held or len(held[y]) < k / len(classes):
            if sum(map(len, held.values())) >= k:
                largest = max(held, key=lambda c: len(held[c]))
                victim = int(torch.randint(len(held[largest]), (1,), generator=generator))
                held[largest].pop(victim)
            held.setdefault(y, []).append(position)
    return held


@pytest.mark.parametrize("k", [1, 5, 12, 40, 500])
@pytest.mark.parametrize("batch", [1, 7, 64])
def test_the_sampler_is_algorithm_1(k, batch):
    """On a stream of blocks of classes, with returns; the same draws evict the same samples."""
    generator = torch.Generator().manual_seed(3)
    blocks = [torch.randint(2 * b, 2 * b + 2, (40,), generator=generator) for b in (0, 1, 2, 0, 3)]
    labels = torch.cat(blocks)
    buffer = GreedyBuffer(k, torch.Generator().manual_seed(5), "cpu")
    for part, y in zip(torch.arange(len(labels)).split(batch), labels.split(batch), strict=True):
        buffer.add(x=part, y=y)
        assert len(buffer) == min(k, sum(map(len, buffer.members.values())))
    stored = buffer.stored()
    assert torch.equal(labels[stored["x"]], stored["y"]), "a sample keeps its label"
    expected = algorithm_1(labels.tolist(), k, torch.Generator().manual_seed(5))
    found = {}
    for label, slots in buffer.members.items():
        found[label] = [int(stored["x"][slot]) for slot in slots]
    assert {c: held for c, held in found.items() if held} == {c: h for c, h in expected.items() if h}


def test_the_memory_ends_balanced_however_unbalanced_the_stream():
    labels = torch.tensor([0] * 300 + [1] * 30 + [2] * 10 + [0] * 100 + [3] * 50)
    buffer = GreedyBuffer(40, torch.Generator().manual_seed(0), "cpu")
    buffer.add(y=labels)
    assert Counter(buffer.stored()["y"].tolist()) == {0: 10, 1: 10, 2: 10, 3: 10}


def test_rates_are_a_warm_start_and_then_pytorchs_warm_restarts():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.05)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 1, 2, 0.0005)
    assert rate(0, 0.05, 0.0005) == pytest.approx(0.005)
    optimizer.step()
    for epoch in range(1, 300):
        assert rate(epoch, 0.05, 0.0005) == pytest.approx(optimizer.param_groups[0]["lr"])
        scheduler.step()


def test_cutmix_moves_a_box_and_its_share_of_the_labels():
    """Images are constant planes of their number, so every pixel tells whose it is."""
    x = torch.arange(5.0).view(5, 1, 1, 1).expand(5, 2, 9, 12)
    y, generator, shares = torch.arange(5), torch.Generator().manual_seed(0), []
    for _ in range(300):
        mixed, other, share = cutmix(x, y, generator)
        for i in range(5):
            own = mixed[i, 0] == i if other[i] != i else None
            if own is not None:
                assert own.float().mean().item() == pytest.approx(share, abs=1e-6)
                assert torch.equal(mixed[i, 0][~own], torch.full_like(mixed[i, 0][~own], float(other[i])))
                assert torch.equal(mixed[i, 0], mixed[i, 1])
                rows, columns = (~own).any(1), (~own).any(0)
                assert int((~own).sum()) == int(rows.sum() * columns.sum()), "a box"
        shares.append(share)
    assert x[3].unique() == 3 and sorted(other.tolist()) == y.tolist()
    assert min(shares) < 0.4 and max(shares) > 0.95


def test_the_network_is_trained_from_scratch_on_the_memory_alone(monkeypatch):
    """Against a loop; forgetting what it was, it depends on nothing but memory and draws."""
    flags = {"fitting_epochs": 4, "maxlr": 0.04, "minlr": 0.01, "cutmix_prob": 0}
    method, config = tiny_method("gdumb", buffer_size=12, **flags)
    train(method, config, tasks=1)
    benchmark, task = method.setup.benchmark, method.setup.benchmark.tasks[0]
    method.augment = benchmark.augment.normalise
    twin, draws = copy.deepcopy(method.initial).requires_grad_(True), torch.Generator()
    draws.set_state(method.draws.get_state())
    learner = torch.optim.SGD(twin.parameters(), lr=1, momentum=0.9, weight_decay=1e-6)
    stored = method.buffer.stored()
    for lr in (0.004, 0.04, 0.04, 0.025):
        learner.param_groups[0]["lr"] = lr
        for rows in torch.randperm(12, generator=draws).split(4):
            torch.rand((), generator=draws)
            learner.zero_grad()
            F.cross_entropy(
                twin(benchmark.augment.normalise(stored["x"][rows])), stored["y"][rows]
            ).backward()
            torch.nn.utils.clip_grad_norm_(twin.parameters(), gdumb.CLIP)
            learner.step()
    method.end_task(task)
    for a, b in zip(method.net.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_nothing_is_learned_during_the_stream():
    method, _ = tiny_method("gdumb", buffer_size=12)
    before = copy.deepcopy(method.net.state_dict())
    task = method.setup.benchmark.tasks[0]
    method.enter(task)
    for batch in method.setup.benchmark.batches(task, 0, 4):
        method.observe(batch)
    assert all(torch.equal(before[name], value) for name, value in method.net.state_dict().items())
    assert len(method.buffer) == 12


def test_the_preset_of_mnist_is_the_authors_script():
    """scripts/replicate.sh: MNIST, 500 places, 128 passes without CutMix; src/opts.py: the rest."""
    flags = ["--model", "gdumb", "--dataset", "seq-mnist", "--buffer_size", "500", "--load_best_args"]
    config = cli.parse(flags).config
    found = config.method
    assert (found.fitting_epochs, found.cutmix_prob, found.maxlr, found.minlr) == (128, 0, 0.05, 0.0005)
    assert config.train.batch_size == 16
