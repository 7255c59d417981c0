"""The methods built on maer's choice: what their memories hold after a task, by their own definitions."""

import numpy as np
import pytest
import torch

from engram.models.maer_bic import best_first
from engram.models.parts.memorization import first_outputs
from engram.utils.buffers.selection import POLICIES, pick
from engram.utils.buffers.weighted_reservoirs import ProtectedBuffer
from tests.conftest import small_batch, synthetic_source, tiny_method
from tests.contract.test_methods import train


@pytest.fixture
def scores(tmp_path) -> str:
    """A file of scores, so that every sample can be chosen whatever was learned."""
    np.save(tmp_path / "scores.npy", np.random.default_rng(0).permutation(90) / 90)
    return str(tmp_path / "scores.npy")


def watched_choice(method) -> dict:
    """Keeps what the chooser knew at the end of the last task: scores and samples."""
    kept, ask = {}, method.chooser.memorization

    def asked(samples, task):
        kept["scores"], kept["samples"] = ask(samples, task), samples
        return kept["scores"]

    method.chooser.memorization = asked
    return kept


def by_class(kept: dict) -> dict[int, list[int]]:
    """Label → positions in the training set, lowest memorization first, never learned ones left out."""
    scores, samples = kept["scores"], kept["samples"]
    found = {}
    for c in samples.y.unique().tolist():
        mine = [i for i in range(len(scores)) if samples.y[i] == c and scores[i].isfinite()]
        found[c] = [int(samples.index[i]) for i in sorted(mine, key=lambda i: scores[i].item())]
    return found


def held(method, label: int) -> list[int]:
    stored = method.buffer.stored()
    return sorted(stored["index"][stored["y"] == label].tolist())


@pytest.mark.parametrize("model", ["maer_derpp", "maer_er_ace"])
@pytest.mark.parametrize("policy", ["min", "max"])
def test_other_rehearsal_methods_hold_the_policys_choice(model, policy):
    method, config = tiny_method(model, buffer_policy=policy, buffer_size=12, n_epochs=4, lr=0.1)
    kept = watched_choice(method)
    train(method, config, tasks=1)
    for label, order in by_class(kept).items():
        assert len(order) > 6
        assert held(method, label) == sorted(order[:6] if policy == "min" else order[-6:])


def test_the_protected_methods_random_policy_draws_by_memorization_as_maers(tmp_path):
    """All of a class's memorization on four of its 15 samples: 13 may be drawn, so two of them; no tail."""
    memorization = np.zeros(90)
    source = synthetic_source().train_y.numpy()
    chosen = {label: np.flatnonzero(source == label)[3:7].tolist() for label in range(6)}
    memorization[np.concatenate(list(chosen.values()))] = 0.5
    np.save(tmp_path / "scores.npy", memorization)
    flags = {"buffer_policy": "randomized", "memorization_scores": str(tmp_path / "scores.npy")}
    for model, more in (("maer", {}), ("maer_high", {"longtail_fraction": 0.0})):
        method, config = tiny_method(model, buffer_size=4, **flags, **more)
        train(method, config, tasks=1)
        for label in (0, 1):
            assert held(method, label) == chosen[label][:2], model


@pytest.mark.parametrize("model", ["maer_derpp", "maer_er_ace", "maer_bic"])
def test_watching_changes_nothing_and_sees_the_stream(model):
    """The learning order is that of predictions on the batches, taken by a hook beside the step."""
    flags = {"buffer_size": 12, "n_epochs": 3, "lr": 0.1}
    method, config = tiny_method(model, **flags)
    plain, _ = tiny_method(model.removeprefix("maer_"), **flags)
    seen, note = [], method.chooser.proxy.update

    def noting(index, logits, y):
        seen.append((index.clone(), logits.clone(), y))
        note(index, logits, y)

    method.chooser.proxy.update = noting
    train(method, config, tasks=1)
    train(plain, config, tasks=1)
    for a, b in zip(method.net.parameters(), plain.net.parameters(), strict=True):
        assert torch.equal(a, b)
    samples = method.setup.benchmark.train(method.setup.benchmark.tasks[0])
    labels = dict(zip(samples.index.tolist(), samples.y.tolist(), strict=True))
    assert sum(len(index) for index, _, _ in seen) == 3 * len(labels)
    for index, logits, y in seen:
        assert logits.shape == (len(index), 6) and not logits.requires_grad
        assert [labels[i] for i in index.tolist()] == y.tolist()


def test_the_first_pass_of_a_step_is_kept():
    method, _ = tiny_method("sgd")
    batch = small_batch(method, method.setup.benchmark.tasks[0])
    with first_outputs(method.net) as kept:
        first = method.net(batch.x)
        method.net(2 * batch.x)
    assert torch.equal(kept[0], first) and len(kept) == 1
    method.net(batch.x)
    assert len(kept) == 1


def test_stored_logits_are_those_of_the_samples_chosen(scores):
    method, config = tiny_method("maer_derpp", buffer_size=12, lr=0.1, memorization_scores=scores)
    train(method, config, tasks=1)
    stored = method.buffer.stored()
    expected = method.evaluate(method.net, stored["x"], stored["task_id"])
    torch.testing.assert_close(stored["logits"], expected)


@pytest.mark.parametrize("policy", ["min", "max", "middle"])
def test_bic_keeps_longest_what_its_policy_takes(scores, policy):
    """12 places: 6 for each class of task 0, then 3 for each of four classes: what its policy takes stays."""
    flags = {"buffer_size": 12, "lr": 0.1, "memorization_scores": scores}
    method, config = tiny_method("maer_bic", buffer_policy=policy, **flags)
    kept, after = watched_choice(method), {}
    renew = method.renew

    def renewed(task):
        renew(task)
        after[task.id] = (by_class(kept), {c: held(method, c) for c in range(6)})

    method.renew = renewed
    train(method, config, tasks=2)
    orders, first = after[0]
    later = after[1][1]
    for label, order in orders.items():
        n = len(order)
        middle = order[(n - 6) // 2 : (n - 6) // 2 + 6]
        kept_later = {"min": order[:3], "max": order[-3:]}.get(policy, middle[1:5])
        assert first[label] == sorted({"min": order[:6], "max": order[-6:], "middle": middle}[policy])
        assert set(later[label]) <= set(kept_later) and len(later[label]) == 3


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(("n", "k"), [(500, 200), (37, 36), (20, 20)])
def test_a_class_that_gives_up_slots_keeps_what_its_policy_takes_of_that_size(policy, n, k):
    """To the rank; only the window of high_middle slides, by one at every tenth size."""
    draws = torch.Generator().manual_seed(0)
    ranking, weights = torch.randperm(n, generator=draws), torch.rand(n, generator=draws)
    rank, start = ranking.argsort(), draws.get_state()
    ordered = best_first(ranking, k, policy, weights, draws)
    assert len(ordered) == k
    for size in {k, k // 2, k // 3 + 1, k // 10, 7, 1}:
        expected = pick(ranking, size, policy, weights, draws.set_state(start))
        apart = rank[ordered[:size]].sort().values - rank[expected].sort().values
        assert apart.abs().max() <= (policy == "high_middle" and size < k), size


def test_slots_given_up_at_random_leave_no_low_end():
    """Of a class of 500 with 200 slots, 20 stay: their mean rank is the policy's, not that of a low end."""
    draws = torch.Generator().manual_seed(0)
    orders = [best_first(torch.arange(500), 200, "randomized", torch.ones(500), draws) for _ in range(50)]
    means = torch.stack([order[:20].double().mean() for order in orders])
    assert means.mean() == pytest.approx(449 / 2, abs=3 * 130 / (20 * 50) ** 0.5)


def test_the_most_memorized_exemplar_of_a_mix_stays(scores):
    """24 places: 12 for each class of task 0, one at the upper end; then 6, and still that one."""
    flags = {"buffer_size": 24, "lr": 0.1, "memorization_scores": scores}
    method, config = tiny_method("maer_bic", buffer_policy="high_min", **flags)
    kept, first = watched_choice(method), {}
    renew = method.renew

    def renewed(task):
        renew(task)
        if task.id == 0:
            first.update(by_class(kept))

    method.renew = renewed
    train(method, config, tasks=2)
    for label, order in first.items():
        assert held(method, label) == sorted([*order[:5], order[-1]])


@pytest.mark.parametrize("model", ["maer_bic", "maer_derpp"])
def test_the_choice_has_draws_of_its_own_beside_those_of_the_method(model):
    """maer's own stay under the name that they had, so its runs are those of before."""
    method, _ = tiny_method(model, buffer_size=12)
    own = method.draws if model == "maer_bic" else method.coins
    assert not torch.equal(own.get_state(), method.chooser.draws.get_state())
    maer, _ = tiny_method("maer", buffer_size=12)
    assert torch.equal(maer.chooser.draws.get_state(), own.get_state())


def test_the_protected_tail_survives_the_stream():
    """24 places, a quarter of them for the tail: one most memorized sample of each class, for good."""
    method, config = tiny_method("maer_high", buffer_size=24, longtail_fraction=0.25, n_epochs=4, lr=0.1)
    kept, tails, end_task = watched_choice(method), {}, method.end_task

    def ended(task):
        end_task(task)
        tails.update({c: order[-1] for c, order in by_class(kept).items()})

    method.end_task = ended
    train(method, config)
    stored = method.buffer.stored()
    assert len(stored["y"]) == 24
    for label, position in tails.items():
        mine = (stored["y"] == label) & stored["protected"]
        assert stored["index"][mine].tolist() == [position]
        others = stored["index"][(stored["y"] == label) & ~stored["protected"]].tolist()
        assert position not in others


def test_protected_samples_are_never_evicted():
    buffer = ProtectedBuffer(6, 3, torch.Generator().manual_seed(0), "cpu")
    buffer.add(x=torch.arange(6), y=torch.zeros(6, dtype=torch.long))
    buffer.replace(torch.arange(3), protected=torch.ones(3, dtype=torch.bool))
    for i in range(60):
        buffer.add(x=torch.tensor([100 + i]), y=torch.tensor([i % 2 + 1]))
    stored = buffer.stored()
    assert sorted(stored["x"][stored["protected"]].tolist()) == [0, 1, 2]
    assert (stored["x"] >= 100).sum() == 3


@pytest.mark.parametrize(("size", "hard"), [(4, 0), (8, 1), (20, 3), (28, 7)])
def test_the_share_of_hard_samples_follows_the_memory(scores, size, hard):
    """hard_share 0.5: of k places for a class of 15 samples round(k · k / 30) are at the upper end."""
    method, config = tiny_method("maer_adaptive", buffer_size=size, memorization_scores=scores)
    kept = watched_choice(method)
    assert sum("maer_adaptive is experimental" in note for note in method.benchmark.notes) == 1
    train(method, config, tasks=1)
    for label, order in by_class(kept).items():
        k = size // 2
        assert len(order) == 15 and hard == round(k * k / 30)
        assert held(method, label) == sorted(order[: k - hard] + order[15 - hard :])


def test_in_the_papers_main_setting_the_adaptive_rule_takes_nothing_hard():
    """CIFAR-100 with 500 slots: 5 of a class's 500 samples; it takes 23 for one that is hard."""
    method, _ = tiny_method("maer_adaptive", buffer_size=4)
    assert [method.n_hard(k, 500) for k in (5, 22, 23, 31, 500)] == [0, 0, 1, 1, 250]
