"""Policies on rankings small enough to write down; choices by features, gradients and loss by brute force.

Statistical tests use fixed seeds; "false alarm" is the chance that another seed would fail a correct
implementation.
"""

import itertools

import numpy as np
import pytest
import torch
from scipy import stats

from engram.utils.buffers import selection
from engram.utils.buffers.selection import POLICIES, class_balanced, pick, quotas


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("min", [0, 1, 2, 3]),
        ("max", [16, 17, 18, 19]),
        ("middle", [8, 9, 10, 11]),
        ("0.1min", [2, 3, 4, 5]),
        ("0.9max", [14, 15, 16, 17]),
        ("high_min", [0, 1, 2, 3]),  # a tenth of four is none
    ],
)
def test_policies_on_twenty(policy, expected):
    ranking = torch.arange(20) * 10
    found = pick(ranking, 4, policy, torch.ones(20), generator())
    assert found.tolist() == [10 * i for i in expected]


@pytest.mark.parametrize(
    ("policy", "expected"),
    [("high_min", [*range(8), 19]), ("high_middle", [*range(5, 13), 19])],
)
def test_mixed_policies_take_a_tenth_from_the_end(policy, expected):
    assert pick(torch.arange(20), 9, policy, torch.ones(20), generator()).tolist() == expected


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("k", [0, 1, 9, 10, 11])
def test_exactly_k_distinct_or_all(policy, k):
    found = pick(torch.arange(10), k, policy, torch.rand(10), generator())
    assert len(found) == len(set(found.tolist())) == min(k, 10)


@pytest.mark.parametrize("k", range(32))
def test_cautious_policies_skip_a_tenth_while_enough_are_left(k):
    """Of thirty, three at an end."""
    ranking, taken = torch.arange(30), min(k, 30)
    skipped = min(3, 30 - taken)
    found = pick(ranking, k, "0.1min", torch.ones(30), generator())
    assert found.tolist() == list(range(skipped, skipped + taken))
    found = pick(ranking, k, "0.9max", torch.ones(30), generator())
    assert found.tolist() == list(range(30 - skipped - taken, 30 - skipped))
    found = pick(ranking, k, "randomized", torch.zeros(30), generator()).tolist()
    assert found == sorted(set(found)) and len(found) == taken and set(found) <= set(range(max(27, taken)))


@pytest.mark.parametrize("n", [11, 15, 19, 25, 39])
def test_cautious_policies_cut_where_the_official_code_does(n):
    """Numbers that are no multiple of ten: slices by int(.1 n) and int(.9 n), as written there."""
    order = list(range(n))
    found = {
        p: pick(torch.arange(n), 4, p, torch.ones(n), generator()).tolist() for p in ("0.1min", "0.9max")
    }
    assert found == {"0.1min": order[int(0.1 * n) :][:4], "0.9max": order[: int(0.9 * n)][-4:]}
    every = int(0.9 * n)
    assert pick(torch.arange(n), every, "randomized", torch.ones(n), generator()).tolist() == order[:every]


def test_what_takes_all_or_nothing_draws_nothing():
    for k in (0, 10, 11):
        source, fresh = generator(), generator()
        pick(torch.arange(10), k, "randomized", torch.ones(10), source)
        assert torch.equal(source.get_state(), fresh.get_state())


def test_randomized_follows_the_weights_and_spares_the_last_tenth():
    """First draw ∝ weight; 4,000 draws, each share within 4.5 standard errors (false alarm < 1e-4)."""
    weights = torch.arange(1.0, 11.0) / 20
    counts = np.zeros(10)
    source = generator()
    for _ in range(4000):
        counts[pick(torch.arange(10), 1, "randomized", weights, source)] += 1
    assert counts[9] == 0
    p = weights[:9].numpy() / weights[:9].numpy().sum()
    z = (counts[:9] / 4000 - p) / np.sqrt(p * (1 - p) / 4000)
    assert np.abs(z).max() < 4.5


def test_quotas_and_balance():
    assert quotas(7, 3) == [3, 2, 2]
    y = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2])
    order = torch.tensor([8, 0, 3, 1, 4, 6, 2, 5, 7])
    found = class_balanced(order, y, 5, "min", torch.ones(9), generator())
    assert found.tolist() == [0, 1, 3, 4, 8]
    assert class_balanced(order, y, 0, "min", torch.ones(9), generator()).tolist() == []
    assert class_balanced(order[:0], y, 5, "min", torch.ones(9), generator()).tolist() == []
    by_last = class_balanced(
        order, y, 4, lambda ranking, k, weights: ranking[-k:], torch.ones(9), generator()
    )
    assert by_last.tolist() == [1, 2, 5, 7]


# --- by features --------------------------------------------------------------------------------


def features(n: int, seed: int = 0, d: int = 3) -> torch.Tensor:
    return torch.randn(n, d, generator=generator(seed), dtype=torch.float64)


def naive_herding(points: np.ndarray, k: int) -> list[int]:
    chosen = []
    for _ in range(k):
        free = [i for i in range(len(points)) if i not in chosen]
        gaps = [np.linalg.norm(points.mean(0) - points[[*chosen, i]].mean(0)) for i in free]
        chosen.append(free[int(np.argmin(gaps))])
    return chosen


@pytest.mark.parametrize("k", [0, 1, 4, 9, 12])
def test_herding_is_the_greedy_of_icarl(k):
    points = features(9, seed=k)
    assert selection.herding(points, k).tolist() == naive_herding(points.numpy(), min(k, 9))


def test_herding_of_one_is_the_sample_nearest_to_the_mean_and_prefixes_agree():
    points = features(30)
    assert torch.equal(selection.herding(points, 1), selection.mean_of_features(points, 1))
    assert torch.equal(selection.herding(points, 20)[:7], selection.herding(points, 7))
    assert selection.herding(points[:1], 1).tolist() == [0]


def radius(points: np.ndarray, chosen) -> float:
    """Largest distance of a point to the nearest of the chosen."""
    return np.linalg.norm(points[:, None] - points[list(chosen)], axis=2).min(1).max()


@pytest.mark.parametrize("seed", range(5))
def test_k_center_is_greedy_and_within_twice_the_best_of_all_choices(seed):
    points = features(9, seed)
    chosen = selection.k_center(points, 3).tolist()
    expected = [int(np.linalg.norm(points.numpy() - points.numpy().mean(0), axis=1).argmin())]
    for _ in range(2):
        gaps = np.linalg.norm(points.numpy()[:, None] - points.numpy()[expected], axis=2).min(1)
        expected.append(int(gaps.argmax()))
    assert chosen == expected
    best = min(radius(points.numpy(), c) for c in itertools.combinations(range(9), 3))
    assert radius(points.numpy(), chosen) <= 2 * best + 1e-12


def test_k_center_by_hand():
    """Mean 10; 25 is 15 away; 0 is 10 away; then 14 is 4 away from 10, and 1 only 1 away from 0."""
    points = torch.tensor([[0.0], [1.0], [10.0], [14.0], [25.0]])
    assert selection.k_center(points, 5).tolist() == [2, 4, 0, 3, 1]


@pytest.mark.parametrize("choose", [selection.herding, selection.k_center, selection.mean_of_features])
def test_equal_features_are_still_chosen_once_each(choose):
    assert sorted(choose(torch.zeros(5, 2), 5).tolist()) == [0, 1, 2, 3, 4]
    assert len(choose(torch.zeros(5, 2), 3).unique()) == 3


@pytest.mark.parametrize("choose", [selection.herding, selection.k_center, selection.mean_of_features])
@pytest.mark.parametrize("k", range(8))
def test_at_most_k_are_chosen_by_features(choose, k):
    chosen = choose(features(6), k)
    assert chosen.dtype == torch.long and len(chosen) == len(chosen.unique()) == min(k, 6)


def test_mean_of_features_by_hand():
    points = torch.tensor([[0.0], [4.0], [5.0], [11.0]])  # mean 5
    assert selection.mean_of_features(points, 3).tolist() == [2, 1, 0]


def test_ties_keep_the_order_of_the_samples():
    """With 100 samples, since a sort that is not stable keeps the order of a few."""
    assert selection.mean_of_features(torch.ones(100, 2), 100).tolist() == list(range(100))
    assert selection.entropy(torch.zeros(100, 3), 100).tolist() == list(range(100))


def naive_grasp(points: np.ndarray, y: np.ndarray, n: int, chances: np.ndarray) -> list[int]:
    """The official loop over classes, with the draw by inversion of the cumulated probabilities."""
    apart = {}
    for c in np.unique(y):
        mean = points[y == c].mean(0)
        cosine = points[y == c] @ mean / np.linalg.norm(points[y == c], axis=1) / np.linalg.norm(mean)
        apart[c] = 1 - cosine
    drawn = []
    for turn in chances:
        for c, chance in zip(np.unique(y), turn, strict=True):
            weights = np.cumsum(1 / (apart[c] + 1e-7))
            h = int((weights > chance * weights[-1]).argmax())
            drawn.append(int(np.flatnonzero(y == c)[h]))
            apart[c][h] += apart[c].max()
    return drawn[:n]


@pytest.mark.parametrize("n", [1, 8, 50])
def test_grasp_is_the_official_loop(n):
    points, y = features(20, 3) + 1, torch.randint(3, (20,), generator=generator(4)) * 2
    chances = torch.rand(-(-n // 3), 3, generator=generator(5), dtype=torch.float64).numpy()
    found = selection.grasp(points, y, n, generator(5))
    assert found.tolist() == naive_grasp(points.numpy(), y.numpy(), n, chances)


def test_grasp_takes_prototypes_before_outliers():
    """First draws against last draws; with 20 samples the chance of a wrong order is below 1e-6."""
    points = torch.ones(20, 2, dtype=torch.float64)
    points[:, 1] += torch.linspace(0, 3, 20) ** 3
    mean = points.mean(0, keepdim=True)
    apart = 1 - torch.nn.functional.cosine_similarity(points, mean)
    order = selection.grasp(points, torch.zeros(20, dtype=torch.long), 2000, generator(6))
    assert apart[order[:20]].mean() < apart[order[-200:]].mean()


@pytest.mark.parametrize("seed", range(20))
def test_grasp_by_hand_with_classes_of_different_sizes(seed):
    """Class 0: three samples at distance 0, each with a third of the chance, again after a draw.

    Class 1: both samples at the same distance d; the one drawn first is then at 2d, so its chance is 1/3.
    """
    points = torch.tensor([[1, 0], [1, 0], [1, 0], [10, 1], [10, -1]], dtype=torch.float64)
    chances = torch.rand(2, 2, generator=generator(seed), dtype=torch.float64)
    (a, b), (c, d) = chances.tolist()
    split = 1 / 3 if b < 0.5 else 2 / 3
    expected = [int(3 * a), 3 + (b >= 0.5), int(3 * c), 3 + (d >= split)]
    found = selection.grasp(points, torch.tensor([0, 0, 0, 1, 1]), 4, generator(seed))
    assert found.tolist() == expected


def test_grasp_draws_one_number_per_class_and_round():
    """Eight positions of three classes take three rounds."""
    source, twin = generator(), generator()
    selection.grasp(features(6) + 1, torch.tensor([0, 0, 1, 1, 2, 2]), 8, source)
    torch.rand(3, 3, generator=twin, dtype=torch.float64)
    assert torch.equal(source.get_state(), twin.get_state())


# --- by prediction, by gradient, at random --------------------------------------------------------


def test_entropy_orders_from_uncertain_to_certain():
    p = torch.tensor([[0.98, 0.01, 0.01], [0.4, 0.3, 0.3], [0.5, 0.5, 0.0], [0.8, 0.1, 0.1]])
    assert selection.entropy(p.log().clamp_min(-50), 4).tolist() == [1, 2, 3, 0]
    assert selection.entropy(p.log().clamp_min(-50), 2).tolist() == [1, 2]


def test_random_is_uniform_and_distinct():
    """Chi-square over the 10 pairs of 5; false alarm 1e-4."""
    pairs = {frozenset(p): i for i, p in enumerate(itertools.combinations(range(5), 2))}
    source = generator(7)
    found = [pairs[frozenset(selection.random(torch.zeros(5), 2, source).tolist())] for _ in range(4000)]
    assert stats.chisquare(np.bincount(found, minlength=10)).pvalue > 1e-4
    assert sorted(selection.random(torch.zeros(3), 9, source).tolist()) == [0, 1, 2]


gss_rules = {
    "sample": selection.gss_by_sample,
    "batch": lambda held, offered, source: selection.gss_by_batch(held, offered, torch.tensor(0.9), source),
}


@pytest.mark.parametrize("rule", gss_rules)
def test_gss_gives_up_slots_as_algorithm_2_does(rule):
    """One sample of score .5 offered to slots of scores .2, .6, 1.2: P(i replaced) = C_i/ΣC · C_i/(C_i + c).

    Chi-square over the three slots and "none"; false alarm 1e-4.
    """
    held, offered, source = torch.tensor([0.2, 0.6, 1.2]), torch.tensor([0.5]), generator(8)
    counts = np.zeros(4)
    for _ in range(3000):
        slots, holder = gss_rules[rule](held, offered, source)
        counts[slots.item() if holder.item() == 0 else 3] += 1
    chances = np.array([c / 2.0 * c / (c + 0.5) for c in (0.2, 0.6, 1.2)])
    assert stats.chisquare(counts, 3000 * np.array([*chances, 1 - chances.sum()])).pvalue > 1e-4


def test_gss_draws_at_most_as_many_slots_as_the_memory_has():
    slots, holder = selection.gss_by_sample(torch.rand(3) + 0.5, torch.zeros(5), generator(9))
    assert sorted(slots.tolist()) == [0, 1, 2] and holder.tolist() == [0, 1, 2]
    assert selection.gss_by_sample(torch.zeros(3), torch.zeros(2), generator(9))[1].tolist() == [-1, -1]


def test_gss_refuses_samples_that_point_as_the_memory_does():
    slots, holder = selection.gss_by_sample(torch.rand(6), torch.tensor([1.0, 1.7, 0.0, 0.0]), generator())
    assert holder.tolist() == [-1, -1, 2, 3]
    assert len(slots.unique()) == 4


def test_gss_lets_all_of_a_batch_compete_or_none():
    """By the batch's score alone: 1 is not below 1, and samples of score 0 win for certain, of 2 at times."""
    held, offered = torch.full((50,), 0.5), torch.tensor([0.0, 2.0] * 10)
    holder = selection.gss_by_batch(held, offered, torch.tensor(1.0), generator(3))[1]
    assert holder.tolist() == [-1] * 20
    holder = selection.gss_by_batch(held, offered, torch.tensor(0.99), generator(3))[1]
    assert (holder[::2] >= 0).all() and 0 < (holder[1::2] >= 0).sum() < 10
    assert held.tolist() == [0.5] * 50, "the caller's scores stay as they are"


def test_gss_draws_of_one_slot_name_its_last_holder():
    """All slots but one have score 0; a sample of score 0 that takes it leaves nothing to be drawn."""
    held = torch.tensor([0.0, 1.0, 0.0])
    slots, holder = selection.gss_by_batch(held, torch.tensor([3.0] * 40), torch.tensor(0.5), generator(5))
    assert slots.tolist() == [1] * 40 and len(holder.unique()) == 1 and holder[0] > 0


@pytest.mark.parametrize("seed", range(10))
def test_gss_draws_uniformly_among_slots_of_score_zero(seed):
    """All chances are equal then, and the slots with the largest random keys are drawn."""
    slots, _ = selection.gss_by_sample(torch.zeros(6), torch.zeros(2), generator(seed))
    keys = torch.rand(6, generator=generator(seed), dtype=torch.float64)
    assert slots.tolist() == keys.argsort(descending=True)[:2].tolist()


def test_gss_keeps_a_slot_when_the_coin_equals_the_chance():
    """A chance of c means a coin below c. Here c / (c + 1 - c) is exactly the coin that will be drawn."""
    source = generator()
    torch.rand(1, generator=source, dtype=torch.float64)  # the key of the slot
    coin = torch.rand(1, generator=source)
    assert selection.gss_by_sample(coin, 1 - coin, generator())[1].tolist() == [-1]
    assert selection.gss_by_sample(coin + 1e-3, 1 - coin, generator())[1].tolist() == [0]


def test_gss_keeps_slots_whose_score_is_rounded_below_zero():
    """A cosine of -1 may come out as -1.0000001 in float32."""
    rounded = torch.full((20,), -1e-7)
    assert (selection.gss_by_sample(rounded, rounded, generator())[1] < 0).all()
