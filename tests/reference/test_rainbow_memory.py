"""Rainbow Memory: votes and strides against loops, the perturbations pixel by pixel, what is kept."""

import pytest
import torch

from engram.models import rainbow_memory
from engram.models.rainbow_memory import cutout, perturbed, rotated, strides
from tests.conftest import tiny_method
from tests.contract.test_methods import train


def images(n: int, size: int = 16) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(1, 256, (n, 2, size, size), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize("scenario", ["class-il", "task-il", "domain-il"])
def test_uncertainty_is_one_minus_the_winners_share_of_the_votes(scenario):
    method, config = tiny_method("rainbow_memory", scenario, buffer_size=18)
    train(method, config, tasks=2)
    benchmark = method.setup.benchmark
    samples = benchmark.train(benchmark.tasks[1])
    draws = torch.Generator()
    draws.set_state(method.draws.get_state())
    found = method.uncertainty(samples.x_raw, samples.task_id)
    views = list(perturbed(samples.x_raw, draws))
    assert len(views) == 12
    allowed = range(6) if scenario == "domain-il" else [range(4), range(2, 4)][scenario == "task-il"]
    for i in range(len(samples.y)):
        votes = []
        for view in views:
            logits = method.net(benchmark.augment.normalise(view[i : i + 1]), samples.task_id[i : i + 1])[0]
            votes.append(max(allowed, key=lambda c: logits[c].item()))
        winner = max(votes.count(c) for c in range(6))
        assert found[i].item() == pytest.approx(1 - winner / 12)
    assert len(found.unique()) > 2


def test_strides_are_the_papers_loop():
    generator = torch.Generator().manual_seed(0)
    for n, k in [(10, 1), (10, 3), (10, 10), (7, 5), (3, 8), (100, 7)]:
        doubt = torch.rand(n, generator=generator)
        ranking = sorted(range(n), key=lambda i: doubt[i].item())
        expected = [ranking[int(j * n / min(k, n))] for j in range(min(k, n))]
        assert strides(doubt, k).tolist() == expected


def test_a_class_keeps_its_most_certain_sample_and_covers_its_range():
    """At each task end, over what was stored and what is new; classes learned earlier included."""
    method, config = tiny_method("rainbow_memory", buffer_size=24)
    train(method, config, tasks=1)
    task, known = method.setup.benchmark.tasks[1], {}
    before = method.buffer.stored()
    samples = method.task_samples(task)
    scores = torch.rand(len(before["y"]) + len(samples["y"]), generator=torch.Generator().manual_seed(0))
    index, y = (torch.cat((before[name], samples[name])) for name in ("index", "y"))
    known = dict(zip(index.tolist(), scores.tolist(), strict=True))
    method.uncertainty = lambda raw, task_id: scores[:24] if task_id[0] == 0 else scores[24:]
    method.enter(task)
    method.end_task(task)
    stored = method.buffer.stored()
    for label in range(4):
        mine = sorted(index[y == label].tolist(), key=known.get)
        expected = [mine[j * len(mine) // 6] for j in range(6)]
        assert stored["index"][stored["y"] == label].tolist() == expected


def test_perturbations_change_what_they_say():
    raw, generator = images(40), torch.Generator().manual_seed(0)
    views = list(perturbed(raw, generator))
    assert all(view.shape == raw.shape and view.dtype == torch.uint8 for view in views)
    for view, share in zip(views[:4], rainbow_memory.CUTOUTS, strict=True):
        black = view[:, 0] == 0
        assert torch.equal(view, raw.masked_fill(black.unsqueeze(1), 0)), "the same pixels in all channels"
        assert black.flatten(1).sum(1).max() <= (16 * share) ** 2
    for view, axis in zip(views[4:6], (-1, -2), strict=True):
        same = (view == raw).flatten(1).all(1)
        assert torch.equal(view[~same], raw[~same].flip(axis)) and 5 < same.sum() < 35
    assert torch.equal(views[8].int(), 255 - raw.int())
    for view, threshold in zip(views[9:], rainbow_memory.SOLARISATIONS, strict=True):
        expected = [value if value < threshold else 255 - value for value in raw.flatten().tolist()]
        assert view.flatten().tolist() == expected


def test_cutouts_are_squares_around_any_pixel():
    """Whole squares are seen, and cut ones at the border; every pixel is hidden sometimes."""
    hidden = cutout(images(2000), 0.5, torch.Generator().manual_seed(0))[:, 0] == 0
    sizes = hidden.flatten(1).sum(1)
    assert sizes.max() == 64 and sizes.min() == 16
    assert (hidden.float().mean(0) > 0.02).all()


def test_rotation_by_a_right_angle_is_exact(monkeypatch):
    raw = images(3)
    assert torch.equal(rotated(raw, 0, torch.Generator()), raw)
    monkeypatch.setattr(torch, "rand", lambda n, generator: torch.ones(n))
    assert any(torch.equal(rotated(raw, 90, None), torch.rot90(raw, k, (2, 3))) for k in (1, 3))
