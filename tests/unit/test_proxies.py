"""Proxies of memorization against their definitions written as loops over samples."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from engram.datasets.augment import Augment
from engram.datasets.benchmark import Samples
from engram.memorization.proxies import NAMES, Proxy, create
from engram.utils.config.options import OptionError
from tests.conftest import tiny_method

CPU = torch.device("cpu")


def history(seed: int = 0, steps: int = 200):
    """Random steps: positions, logits over two classes, labels 1; right is a logit for 1 that is larger."""
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        index, right = rng.permutation(30)[:5], rng.random(5) < 0.6
        logits = torch.stack([torch.zeros(5), torch.from_numpy(np.where(right, 1.0, -1.0)).float()], 1)
        yield torch.from_numpy(index), logits, torch.ones(5, dtype=torch.long), right.tolist()


def rated(proxy: Proxy, n: int = 30) -> list[float]:
    """Scores of all samples; trackers look at positions alone."""
    zeros = torch.zeros(n, dtype=torch.long)
    return proxy.scores(None, Augment(), Samples(zeros, zeros, zeros, torch.arange(n))).tolist()


def test_learning_order_equals_the_papers_list():
    """Algorithm 1 as the paper writes it: append when right, remove when wrong."""
    proxy, listed = create("learning_order", 30, CPU), []
    for index, logits, y, right in history():
        proxy.update(index, logits, y)
        for i, now in zip(index.tolist(), right, strict=True):
            if now and i not in listed:
                listed.append(i)
            if not now and i in listed:
                listed.remove(i)
    scores = rated(proxy)
    known = [i for i in range(30) if np.isfinite(scores[i])]
    assert sorted(known, key=lambda i: scores[i]) == listed and 0 < len(listed) < 30
    proxy.reset()
    assert set(rated(proxy)) == {np.inf}


def test_trackers_equal_each_samples_history():
    proxies = {n: create(n, 30, CPU) for n in ("first_learnt", "forgetting_events", "cumulative_correctness")}
    seen: dict[int, list[bool]] = {i: [] for i in range(30)}
    for index, logits, y, right in history(1, steps=25):
        for proxy in proxies.values():
            proxy.update(index, logits, y)
        for i, now in zip(index.tolist(), right, strict=True):
            seen[i].append(now)
    seen[4], found = [], {name: rated(proxy) for name, proxy in proxies.items()}
    for i, past in seen.items():
        if i == 4:
            continue
        never = not any(past)
        assert found["first_learnt"][i] == (np.inf if never else past.index(True))
        falls = sum(a and not b for a, b in itertools.pairwise(past))
        assert found["forgetting_events"][i] == (np.inf if never else falls)
        assert found["cumulative_correctness"][i] == pytest.approx(1 - np.mean(past))
    assert len(set(found["first_learnt"])) > 2 and len(set(found["forgetting_events"])) > 2
    assert rated(create("cumulative_correctness", 30, CPU)) == [1.0] * 30


@pytest.mark.parametrize("name", [n for n, module in NAMES.items() if module == "trackers"])
def test_trackers_continue_from_a_checkpoint(name):
    one, two = create(name, 30, CPU), create(name, 30, CPU)
    for step, (index, logits, y, _) in enumerate(history(2)):
        if step == 100:
            two.load_state_dict(
                {k: v.clone() if torch.is_tensor(v) else v for k, v in one.state_dict().items()}
            )
        one.update(index, logits, y)
        if step >= 100:
            two.update(index, logits, y)
    assert rated(one) == rated(two)


@pytest.fixture(scope="module", params=["class-il", "task-il"])
def looked_at(request):
    """A method on the tiny stream, its second task's samples, what it allows, and their logits."""
    method, _ = tiny_method("sgd", request.param, backbone="cnn", channels=(3, 4))
    benchmark = method.setup.benchmark
    samples = benchmark.train(benchmark.tasks[1])
    allowed = None if method.allowed_classes is None else method.allowed_classes[samples.task_id]
    method.net.eval()
    logits = method.logits(benchmark.augment.normalise(samples.x_raw), samples.task_id)
    method.net.train()
    return method, samples, allowed, logits.detach()


def score(name: str, looked_at) -> torch.Tensor:
    method, samples, allowed, _ = looked_at
    benchmark = method.setup.benchmark
    found = create(name, benchmark.n_train, CPU).scores(method.net, benchmark.augment, samples, allowed)
    assert method.net.training, "the network's mode is restored"
    assert found.dtype == torch.float64 and found.shape == samples.y.shape
    return found


def test_losses_margins_and_errors(looked_at):
    _, samples, _, logits = looked_at
    for i, y in enumerate(samples.y.tolist()):
        p = logits[i].softmax(0)
        assert score("final_loss", looked_at)[i] == pytest.approx(-p[y].log().item(), abs=1e-5)
        others = [v for c, v in enumerate(logits[i].tolist()) if c != y]
        assert score("margin", looked_at)[i] == pytest.approx(max(others) - logits[i, y].item(), abs=1e-5)
        error = p.clone()
        error[y] -= 1
        assert score("el2n", looked_at)[i] == pytest.approx(error.norm().item(), abs=1e-5)


def test_gradient_norms_are_those_of_one_backward_per_sample(looked_at):
    method, samples, _, _ = looked_at
    net, benchmark = method.net, method.setup.benchmark
    found = score("grand", looked_at)
    net.eval()
    for i in range(len(samples.y)):
        net.zero_grad()
        x = benchmark.augment.normalise(samples.x_raw[i : i + 1])
        F.cross_entropy(method.logits(x, samples.task_id[i : i + 1]), samples.y[i : i + 1]).backward()
        expected = sum(p.grad.square().sum() for p in net.parameters() if p.grad is not None).sqrt()
        assert found[i] == pytest.approx(expected.item(), rel=1e-4, abs=1e-6)
    net.zero_grad()
    net.train()


def test_curvature_is_the_trace_of_the_squared_hessian(monkeypatch):
    """A linear softmax classifier: H = Wᵀ (diag p − p pᵀ) W in closed form; 400 directions.

    The relative deviation of the Hutchinson estimate of tr H² is below sqrt(2 / 400) = 7 %.
    """
    method, _ = tiny_method("sgd", hidden_sizes=())
    benchmark = method.setup.benchmark
    samples = Samples(*(field[:5] for field in benchmark.train(benchmark.tasks[0])))
    monkeypatch.setattr("engram.memorization.snapshots.Curvature.n_directions", 400)
    monkeypatch.setattr("engram.memorization.snapshots.Curvature.h", 1e-2)  # the float32 of the gradients
    found = create("curvature", 90, CPU).scores(method.net, benchmark.augment, samples)
    W = method.net.head.weight.detach().double()
    for i in range(5):
        p = method.net(benchmark.augment.normalise(samples.x_raw[i : i + 1]))[0].softmax(0).detach().double()
        H = W.T @ (torch.diag(p) - torch.outer(p, p)) @ W
        assert found[i] == pytest.approx((H @ H).trace().item(), rel=0.3)


def test_distances_to_the_class_mean(looked_at):
    method, samples, _, _ = looked_at
    x = method.setup.benchmark.augment.normalise(samples.x_raw)
    features = method.net.features(x).detach().double().numpy()
    y = samples.y.numpy()
    means = {c: features[y == c].mean(0) for c in set(y.tolist())}
    away = np.array([f - means[c] for f, c in zip(features, y, strict=True)])
    covariance = away.T @ away / len(y)
    covariance += 1e-3 * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
    maha = np.array([np.sqrt(d @ np.linalg.inv(covariance) @ d) for d in away])
    cosine = [
        1 - f @ means[c] / np.linalg.norm(f) / np.linalg.norm(means[c])
        for f, c in zip(features, y, strict=True)
    ]
    assert score("l2_distance", looked_at).numpy() == pytest.approx(np.linalg.norm(away, axis=1), abs=1e-6)
    assert score("mahalanobis_distance", looked_at).numpy() == pytest.approx(maha, rel=1e-4)
    assert score("cosine_distance", looked_at).numpy() == pytest.approx(np.array(cosine), abs=1e-6)
    normalised = [m / maha[y == c].mean() for m, c in zip(maha, y, strict=True)]
    assert score("normalised_mahalanobis", looked_at).numpy() == pytest.approx(np.array(normalised), rel=1e-4)
    ranks = score("herding_rank", looked_at).numpy()
    for c in means:
        assert sorted(ranks[y == c].tolist()) == pytest.approx(np.arange((y == c).sum()) / (y == c).sum())
        unit = features[y == c] / np.linalg.norm(features[y == c], axis=1, keepdims=True)
        first = np.linalg.norm(unit - unit.mean(0), axis=1).argmin()
        assert ranks[y == c].argmin() == first


def test_unknown_proxies_are_refused():
    with pytest.raises(ValueError, match="--mem_proxy el2: unknown; did you mean el2n"):
        create("el2", 3, CPU)
    with pytest.raises(ValueError, match="--mem_proxy scores: give the file of scores"):
        tiny_method("maer", mem_proxy="scores")
    with pytest.raises(OptionError, match=r"--mem_thresholds 0.5,0.1: expected two rising numbers"):
        tiny_method("maer", mem_thresholds=(0.5, 0.1))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scenario", ["class-il", "task-il"])
def test_maer_can_choose_by_every_proxy(name, scenario):
    """The samples kept of the first task are the lowest of each class by the proxy's own scores."""
    from tests.contract.test_methods import train

    method, config = tiny_method("maer", scenario, mem_proxy=name, buffer_size=12, n_epochs=2, lr=0.1)
    kept, choose = {}, method.chooser.memorization

    def watched(samples, task):
        kept["scores"], kept["samples"] = choose(samples, task), samples
        return kept["scores"]

    method.chooser.memorization = watched
    train(method, config, tasks=1)
    scores, samples = kept["scores"], kept["samples"]
    held = set(method.buffer.stored()["index"].tolist())
    for c in samples.y.unique():
        mine = torch.nonzero((samples.y == c) & scores.isfinite()).view(-1)
        lowest = mine[scores[mine].argsort(stable=True)][:6]
        assert set(samples.index[lowest].tolist()) <= held
