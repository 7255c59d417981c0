"""Selection: which samples deserve a slot of the memory, as pure functions on tensors.

By score or ranking (`pick`, `class_balanced`), by features (`herding`, `k_center`, `mean_of_features`,
`grasp`), by prediction (`entropy`), by gradient (`gss_by_batch`), by loss (`loss_aware`).
Functions that choose return positions (k,) on the device of their input; what is random is drawn on the
host from the generator given.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from engram.utils.buffers.reservoir import distinct
from engram.utils.transfer import send

HIGH_SHARE = 0.1  # of the highest in a mix
# a class's ranking (n,), k, weights of its samples (n,) → at most k of the ranking
Policy = Callable[[Tensor, int, Tensor], Tensor]
POLICIES = ("min", "max", "middle", "0.1min", "0.9max", "randomized", "high_min", "high_middle")

# --- by score -----------------------------------------------------------------------------------


def pick(ranking: Tensor, k: int, policy: str, weights: Tensor, generator: torch.Generator) -> Tensor:
    """`k` entries of a ranking (n,), or all when it has no more.

    ranking: sample positions, lowest memorization first. min, max, middle: the first, last, central
    k. 0.1min: the first k from ⌊n/10⌋ on; 0.9max: the last k of the first ⌊9n/10⌋. randomized: of these
    ⌊9n/10⌋, drawn with probability ∝ `weights` (n,); the official code spares the others as probably
    mislabelled. high_min, high_middle: a tenth of the k (rounded) from the end, the others as min or middle.
    Source: Kozal et al. 2025 (arXiv 2505.17664), section 5, and its official code.
    """
    n = len(ranking)
    if k >= n or not k:
        return ranking[:k]
    if policy.startswith("high_"):
        high = round(HIGH_SHARE * k)
        others = pick(ranking[: n - high], k - high, policy.removeprefix("high_"), weights, generator)
        return torch.cat((others, ranking[n - high :]))
    low, high = min(n // 10, n - k), max(9 * n // 10, k)
    if policy == "randomized":
        shares = weights[:high].double().clamp_min(1e-12).cpu()
        drawn = torch.multinomial(shares, k, replacement=False, generator=generator)
        return ranking[drawn.sort().values.to(ranking.device)]
    start = {"min": 0, "max": n - k, "middle": (n - k) // 2, "0.1min": low, "0.9max": high - k}[policy]
    return ranking[start : start + k]


def quotas(n: int, n_classes: int) -> list[int]:
    """`n` slots shared equally among classes; the first classes take one more where a rest remains."""
    return [n // n_classes + (i < n % n_classes) for i in range(n_classes)]


def class_balanced(
    order: Tensor, y: Tensor, n: int, policy: str | Policy, weights: Tensor, generator: torch.Generator
) -> Tensor:
    """At most `n` positions, the same number for every class as far as it has candidates.

    order: (m,) candidate positions in ascending memorization. y: (N,) labels by position. policy: as in
    `pick`, or a function that takes its k of a class's ranking. weights: (N,) by position, for
    `randomized`.
    """
    if not n or not len(order):
        return order[:0]
    classes = y[order].unique()
    chosen = []
    for label, quota in zip(classes, quotas(n, len(classes)), strict=True):
        ranking = order[y[order] == label]
        if callable(policy):
            chosen.append(policy(ranking, quota, weights[ranking]))
        else:
            chosen.append(pick(ranking, quota, policy, weights[ranking], generator))
    return torch.cat(chosen)


def random(y: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """`k` distinct positions of (N,), uniformly."""
    return send(distinct(len(y), min(k, len(y)), generator), y.device)


# --- by features --------------------------------------------------------------------------------


def herding(features: Tensor, k: int) -> Tensor:
    """`k` of the samples (n, D), each bringing the mean of those chosen nearest to the mean of all.

    The first m of them are the choice for m. Source: Rebuffi et al. 2017, iCaRL (arXiv 1611.07725),
    Algorithm 4, which normalises the features of one class first.
    """
    mean, total = features.mean(0), torch.zeros_like(features[0])
    free = torch.zeros(len(features), dtype=features.dtype, device=features.device)
    chosen = []
    for i in range(min(k, len(features))):
        distance = (mean - (total + features) / (i + 1)).square().sum(1) + free
        chosen.append(distance.argmin(0, keepdim=True))
        total = total + features.index_select(0, chosen[-1])[0]
        free.index_fill_(0, chosen[-1], torch.inf)
    return _cat(chosen, features)


def k_center(features: Tensor, k: int) -> Tensor:
    """`k` of the samples (n, D), each the one farthest from those chosen; the first is nearest to the mean.

    The largest distance of a sample to the chosen is at most twice the smallest possible. Source: Gonzalez
    1985; as a coreset: Sener & Savarese 2018 (arXiv 1708.00489), Algorithm 1.
    """
    chosen = [mean_of_features(features, 1)]
    nearest = (features - features[chosen[0]]).square().sum(1)
    for _ in range(min(k, len(features)) - 1):
        nearest = nearest.index_fill(0, chosen[-1], -1)  # never twice, were all samples the same
        chosen.append(nearest.argmax(0, keepdim=True))
        distance = (features - features.index_select(0, chosen[-1])).square().sum(1)
        nearest = torch.minimum(nearest, distance)
    return _cat(chosen[:k], features)


def mean_of_features(features: Tensor, k: int) -> Tensor:
    """The `k` samples (n, D) nearest to their mean, nearest first (MOF).

    Source: Chaudhry et al. 2018, RWalk (arXiv 1801.10112), section 4.2, for one class at a time.
    """
    distance = (features - features.mean(0)).square().sum(1)
    return distance.sort(stable=True).indices[:k]


def grasp(features: Tensor, y: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """`n` positions in the order of rehearsal: classes in turn, prototypes first, harder ones later.

    A sample is drawn with probability ∝ 1 / d, d its cosine distance to the mean feature of its class;
    once drawn, its d grows by the largest of its class, so repetitions come late. Source: Harun et al.
    2025, "GRASP" (arXiv 2308.13646), and its official code (1e-7 is added to d). All classes draw at once.
    """
    classes, group = y.unique(return_inverse=True)
    counts = class_counts(group, len(classes))
    order = group.argsort(stable=True)
    column = torch.arange(len(y), device=y.device) - (counts.cumsum(0) - counts)[group[order]]
    means = torch.zeros(len(classes), features.shape[1], dtype=features.dtype, device=y.device)
    means = means.index_add_(0, group, features) / counts.view(-1, 1)
    apart = 1 - F.cosine_similarity(features, means[group])
    table = torch.full((len(classes), int(counts.max())), torch.inf, dtype=torch.float64, device=y.device)
    table[group[order], column] = apart[order].double()
    position = torch.zeros_like(table, dtype=torch.long)
    position[group[order], column] = order
    rounds = -(-n // len(classes))
    chances = send(torch.rand(rounds, len(classes), generator=generator, dtype=torch.float64), y.device)
    drawn = []
    for chance in chances:
        total = (1 / (table + 1e-7)).cumsum(1)
        choice = (total > (chance * total[:, -1]).view(-1, 1)).to(torch.uint8).argmax(1, keepdim=True)
        drawn.append(position.gather(1, choice).view(-1))
        largest = table.masked_fill(table.isinf(), 0).amax(1, keepdim=True)
        table.scatter_add_(1, choice, largest)
    return torch.cat(drawn)[:n]


# --- by prediction and loss ---------------------------------------------------------------------


def entropy(logits: Tensor, k: int) -> Tensor:
    """The `k` samples whose predictions (n, C) are the most uncertain, most uncertain first.

    Source: Chaudhry et al. 2018, RWalk (arXiv 1801.10112), section 4.2: entropy of the softmax.
    """
    log_p = logits.log_softmax(1)
    return (log_p.exp() * log_p).sum(1).sort(stable=True).indices[:k]


def loss_aware(loss: Tensor) -> Tensor:
    """(n,) chances of eviction up to a factor: the largest loss minus the sample's own (LARS).

    All alike when all losses are. Source: Buzzega et al. 2021 (arXiv 2010.05595), section IV, as in mammoth.
    """
    spared = loss.max() - loss
    return spared + (spared.sum() == 0)


def loss_aware_balanced(loss: Tensor, y: Tensor, n_classes: int) -> Tensor:
    """(n,) chances of eviction up to a factor, from the size of a sample's class and its loss (LABRS).

    s = n(y) / mean n − loss / mean |loss|, shifted so that the smallest is 0. Source: as `loss_aware`;
    there the two terms are added after a scaling by both means at once, which lets either vanish.
    """
    size = class_counts(y, n_classes)[y].to(loss.dtype)
    score = size / size.mean() - loss / loss.abs().mean().clamp_min(1e-12)
    return loss_aware(-score)


def class_counts(y: Tensor, n_classes: int) -> Tensor:
    """(n_classes,) how often each label occurs, without reading the device as `bincount` does."""
    return torch.zeros(n_classes, dtype=torch.long, device=y.device).index_add_(0, y, torch.ones_like(y))


# --- by gradient --------------------------------------------------------------------------------


def gss_by_sample(held: Tensor, offered: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(k,) slots drawn for the first k = min(b, M) of b offered samples, and the row of each new holder.

    A score c is 1 + the largest cosine similarity of the sample's gradient with those of some samples in
    the memory. A sample with c < 1, which points away from them, is a candidate; its slot i is drawn with
    probability ∝ C_i (`held`, (M,)) and given up with probability C_i / (C_i + c); row −1 where it is not.
    Source: Aljundi et al. 2019, "Gradient based sample selection for online continual learning" (arXiv
    1903.08671), Algorithm 2; the slots of a batch are drawn together, without replacement (so at most M
    samples of a batch can enter).
    """
    b = min(len(offered), len(held))
    keys = send(torch.rand(len(held), generator=generator, dtype=torch.float64), held.device)
    # log u / C, u uniform: its largest are a draw without replacement ∝ C (Efraimidis & Spirakis 2006)
    slots = (keys.log() / held.double().clamp_min(1e-12)).topk(b).indices
    coins = send(torch.rand(b, generator=generator), held.device)
    old, new = held[slots], offered[:b]
    wins = (new < 1) & (coins < old / (old + new).clamp_min(1e-12))
    return slots, torch.where(wins, torch.arange(b, device=held.device), -1)


def gss_by_batch(
    held: Tensor, offered: Tensor, batch_score: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """(b,) slots drawn for b offered samples, and the row of the new holder of each; −1 for the old one.

    held: (M,) scores C of the memory, offered: (b,) scores c of the samples, batch_score: () that of the
    gradient of the whole batch. If it is below 1, every sample competes, one after the other: its slot i is
    drawn with probability ∝ C_i and given up with probability C_i / (C_i + c), and C_i becomes c. A slot
    may be drawn and given up again; all its draws then name the row that holds it in the end. Source: the
    code with which Buzzega et al. 2020 (DER, arXiv 2004.07211) ran GSS, mammoth's `utils/gss_buffer.py`.
    """
    held = held.double().clamp_min(1e-12)
    offered, allowed = offered.double().clamp_min(1e-12), batch_score < 1
    chances, coins = send(torch.rand(2, len(offered), generator=generator, dtype=torch.float64), held.device)
    holder = torch.full((len(held),), -1, device=held.device)
    rows = torch.arange(len(offered), device=held.device)
    slots = []
    # A loop, since every draw depends on the replacements before it; nothing in it reads the device.
    for chance, coin, score, row in zip(*(t.split(1) for t in (chances, coins, offered, rows)), strict=True):
        total = held.cumsum(0)
        slot = torch.searchsorted(total, chance * total[-1], right=True).clamp_max(len(held) - 1)
        old = held[slot]
        wins = allowed & (coin < old / (old + score))
        held[slot] = torch.where(wins, score, old)
        holder[slot] = torch.where(wins, row, holder[slot])
        slots.append(slot)
    drawn = torch.cat(slots)
    return drawn, holder[drawn]


def _cat(chosen: list[Tensor], like: Tensor) -> Tensor:
    return torch.cat(chosen) if chosen else torch.zeros(0, dtype=torch.long, device=like.device)
