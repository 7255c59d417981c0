"""Methods of frozen features against closed forms, numpy and loops over samples, in float64."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.svm import LinearSVC

from engram.models import acil, ridge
from engram.models.parts.least_squares import held_out_errors, solve
from engram.models.ridge import STRENGTHS
from tests.conftest import tiny_method
from tests.contract.test_methods import train
from tests.pretended_device import PretendedDevice

EXPANDED = {"ridge": {}, "ranpac": {"rp_size": 40}, "acil": {"acil_size": 40}}


def learned(model, *, order=(0, 1, 2), split=False, **flags):
    """A method that has learned three tasks in an order, whole or in two pieces each; features, labels."""
    method, _ = tiny_method(model, **flags)
    features, labels = [], []
    for task in (method.benchmark.tasks[i] for i in order):
        samples = method.benchmark.train(task)
        rows = method.features(samples.x_raw)
        method.enter(task)
        for part in torch.arange(len(rows)).split(7 if split else len(rows)):
            method.counts += method.one_hot(samples.y[part]).sum(0)
            method.learn(rows[part], samples.y[part])
        features.append(rows)
        labels.append(samples.y)
    return method, torch.cat(features).double(), torch.cat(labels)


def joint_ridge(inputs, y, n_classes, strength):
    """W of all samples at once, by least squares of the system with √λ I below."""
    above = np.concatenate([inputs, np.sqrt(strength) * np.eye(inputs.shape[1])])
    below = np.concatenate([np.eye(n_classes)[y], np.zeros((inputs.shape[1], n_classes))])
    return np.linalg.lstsq(above, below, rcond=None)[0]


@pytest.mark.parametrize("model", EXPANDED)
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
@pytest.mark.parametrize("split", [False, True])
def test_regressions_are_joint_ridge_regression(model, order, split):
    strength = 0.3
    name = "acil_gamma" if model == "acil" else "ridge_lambda"
    method, features, y = learned(model, order=order, split=split, **EXPANDED[model], **{name: strength})
    inputs = method.expand(features).numpy()
    expected = joint_ridge(inputs, y.numpy(), method.benchmark.n_classes, strength)
    np.testing.assert_allclose(method.weights.numpy(), expected, rtol=0, atol=1e-6 * np.abs(expected).max())


@pytest.mark.own_device
def test_acil_is_joint_ridge_regression_on_a_gpu(monkeypatch):
    """λ_max / γ is 1e8 here, as for many samples or a wide expansion: float32 keeps no digit of R."""
    monkeypatch.setattr(acil, "BLOCK", 128)
    draws = torch.Generator().manual_seed(0)
    features = 40 * torch.rand(1536, 8, generator=draws)
    y = torch.randint(6, (1536,), generator=draws)
    with PretendedDevice() as gpu, gpu.unwatched():
        method, _ = tiny_method("acil", device="cuda", acil_size=100)
        method.learn(features.to("cuda"), y.to("cuda"))
        sums = (method.inverse, method.weights, method.expansion, method.counts)
        assert {(t.dtype, t.device.type) for t in sums} == {(torch.float64, "cuda")}
        inputs = method.expand(features.to("cuda").double()).cpu().numpy()
        weights = method.weights.cpu().numpy()
    expected = joint_ridge(inputs, y.numpy(), 6, 0.1)
    np.testing.assert_allclose(inputs @ weights, inputs @ expected, rtol=0, atol=1e-5)


def test_random_projections_are_drawn_by_the_seed_and_kept():
    (a, *_), (b, *_), (c, *_) = (tiny_method("ranpac", rp_size=9, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(a.projection, b.projection) and not torch.equal(a.projection, c.projection)
    assert abs(float(tiny_method("ranpac", rp_size=5000)[0].projection.std()) - 1) < 0.02
    bound = tiny_method("acil", acil_size=5000)[0].expansion.abs().max()
    assert 0.99 < float(bound) * 8**0.5 <= 1  # features are 8 wide


def test_the_errors_of_all_strengths_are_those_of_single_solves():
    draws = np.random.RandomState(0)
    inputs, targets = torch.tensor(draws.randn(30, 12)), torch.tensor(draws.randn(30, 4))
    rest, rest_targets = torch.tensor(draws.randn(9, 12)), torch.tensor(draws.randn(9, 4))
    gram, cross = inputs.T @ inputs, inputs.T @ targets
    errors = held_out_errors(gram, cross, rest, rest_targets, STRENGTHS)
    for strength, error in zip(STRENGTHS, errors, strict=True):
        expected = (rest @ solve(gram, cross, strength) - rest_targets).square().mean()
        torch.testing.assert_close(error, expected, rtol=1e-9, atol=0)


def test_a_singular_gram_matrix_has_the_solution_of_least_norm():
    draws = np.random.RandomState(1)
    inputs, targets = draws.randn(5, 12), draws.randn(5, 3)
    found = solve(torch.tensor(inputs.T @ inputs), torch.tensor(inputs.T @ targets), 0.0)
    np.testing.assert_allclose(found.numpy(), np.linalg.pinv(inputs) @ targets, atol=1e-9)


@pytest.mark.parametrize("width", [8, 300])  # of the inputs: fewer, and more, than the 160 samples fitted
def test_lambda_is_the_one_of_least_error_on_a_fifth(width, monkeypatch):
    method, _ = tiny_method("ranpac", rp_size=width)
    draws = torch.Generator().manual_seed(0)
    features = torch.randn(200, 8, generator=draws)
    y = (features @ torch.randn(8, 6, generator=draws)).argmax(1)
    targets, inputs = method.one_hot(y), method.expand(features.double()).numpy()
    order = torch.randperm(200, generator=method.setup.generator("method"))
    held_out, fitted = order[:40].numpy(), order[40:].numpy()
    expected = []
    for strength in STRENGTHS:
        w = joint_ridge(inputs[fitted], y[fitted].numpy(), 6, strength)
        expected.append(np.square(inputs[held_out] @ w - targets[held_out].numpy()).mean())
    found = []
    compute = held_out_errors
    monkeypatch.setattr(ridge, "held_out_errors", lambda *args: found.append(compute(*args)) or found[0])
    assert method.choose_strength(features, targets) == STRENGTHS[int(np.argmin(expected))]
    sensible = slice(4, None)  # λ = 1e-4 and above: below, rounding decides where the system is singular
    np.testing.assert_allclose(found[0][sensible], expected[sensible], rtol=1e-4)


def test_ncm_is_the_largest_cosine_to_a_mean():
    method, features, y = learned("ncm")
    means = np.stack([features[y == c].numpy().mean(0) for c in range(6)])
    expected = [
        [float(np.dot(z, m) / (np.linalg.norm(z) * np.linalg.norm(m))) for m in means]
        for z in features.numpy()
    ]
    np.testing.assert_allclose(method.scores(features).numpy(), expected, atol=1e-9)


@pytest.mark.parametrize("split", [False, True])
def test_sldas_covariance_is_numpys(split):
    method, features, y = learned("slda", split=split, slda_shrinkage=0.01)
    rows = features.numpy()
    means = np.stack([rows[y == c].mean(0) for c in range(6)])
    covariance = np.cov(rows - means[y], rowvar=False, bias=True)
    np.testing.assert_allclose(method.means.numpy(), means, atol=1e-10)
    np.testing.assert_allclose(method.scatter.numpy() / len(rows), covariance, atol=1e-10)
    inverse = np.linalg.inv(0.99 * covariance + 0.01 * np.eye(8))
    expected = rows @ inverse @ means.T - np.einsum("cd,de,ce->c", means, inverse, means) / 2
    np.testing.assert_allclose(method.scores(features).numpy(), expected, rtol=1e-7)


@pytest.mark.parametrize("tukey", [0.5, 1.0])
def test_fecams_distance_is_that_of_a_loop(tukey):
    method, features, y = learned("fecam", tukey=tukey, shrink_diagonal=0.7, shrink_rest=0.4)
    rows = features.numpy() ** tukey  # features of the MLP are not negative
    expected = np.zeros((len(rows), 6))
    for c in range(6):
        covariance = np.cov(rows[y == c], rowvar=False)
        diagonal = np.diag(covariance).mean()
        rest = (covariance.sum() - np.trace(covariance)) / (8 * 7)
        shrunk = covariance + 0.7 * diagonal * np.eye(8) + 0.4 * rest * (1 - np.eye(8))
        deviations = np.sqrt(np.diag(shrunk))
        inverse = np.linalg.inv(shrunk / np.outer(deviations, deviations))
        mean = rows[y == c].mean(0)
        for i, z in enumerate(rows):
            offset = z / np.linalg.norm(z) - mean / np.linalg.norm(mean)
            expected[i, c] = -offset @ inverse @ offset
    np.testing.assert_allclose(method.scores(features).numpy(), expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("rest", [0.0, 0.4])
def test_fecams_distance_without_shrinkage_is_by_the_pseudo_inverse(rest):
    """15 samples a class of 30 features: no correlation matrix has an inverse."""
    flags = {"shrink_diagonal": 0.0, "shrink_rest": rest, "hidden_sizes": (30,)}
    method, features, y = learned("fecam", **flags)
    transformed = features.numpy() ** 0.5
    found = method.scores(features).numpy()
    for c in range(6):
        rows, correlations = transformed[y == c], method.correlations(c).numpy()
        varies = np.ptp(rows, axis=0) > 1e-9
        assert 15 < varies.sum() < 30, "features that vary, and some that do not"
        if not rest:
            among = correlations[np.ix_(varies, varies)]
            np.testing.assert_allclose(among, np.corrcoef(rows[:, varies], rowvar=False), atol=1e-9)
        assert np.array_equal(correlations[~varies], np.eye(30)[~varies])
        values, vectors = np.linalg.eigh(correlations)
        inverse = np.divide(1, values, out=np.zeros(30), where=values > 1e-8)
        mean = rows.mean(0)
        unit = transformed / np.linalg.norm(transformed, axis=1, keepdims=True)
        expected = -np.square((unit - mean / np.linalg.norm(mean)) @ vectors) @ inverse
        np.testing.assert_allclose(found[:, c], expected, rtol=1e-6, atol=1e-9)


def test_fecam_takes_a_class_of_one_sample():
    method, features, _ = learned("fecam")
    method.counts.zero_(), method.sums.zero_(), method.squares.zero_()
    method.counts[3] = 1
    method.learn(features[:1], torch.tensor([3]))
    assert torch.equal(method.correlations(3), torch.eye(8, dtype=torch.float64))
    assert torch.isfinite(method.scores(features)[:, 3]).all()


def test_knn_counts_the_votes_of_the_nearest():
    method, features, y = learned("knn", knn_k=3, knn_temperature=0.2)
    unit = F.normalize(features).numpy()
    expected = np.zeros((len(unit), 6))
    for i, z in enumerate(unit):
        similarities = unit @ z
        for j in np.argsort(-similarities, kind="stable")[:3]:
            expected[i, y[j]] += np.exp((similarities[j] - 1) / 0.2)
    np.testing.assert_allclose(method.scores(features).numpy(), expected, atol=1e-4)


def test_fetril_translates_features_to_the_nearest_old_mean(monkeypatch):
    method, features, y = learned("fetril")
    given = []
    monkeypatch.setattr(type(method), "fit", lambda self, rows, labels: given.extend((rows, labels)))
    task = method.benchmark.tasks[2]
    samples = method.benchmark.train(task)
    new_features = method.features(samples.x_raw).double()
    method.learn(new_features, samples.y)
    rows, labels = given
    means = np.stack([features[y == c].numpy().mean(0) for c in range(6)])
    unit = means / np.linalg.norm(means, axis=1, keepdims=True)
    new = sorted(task.classes)
    for old in set(range(6)) - set(new):
        source = max(new, key=lambda c: float(unit[old] @ unit[c]))
        moved = new_features[samples.y == source].numpy() + means[old] - means[source]
        expected = moved / np.linalg.norm(moved, axis=1, keepdims=True)
        np.testing.assert_allclose(rows[labels == old].numpy(), expected, atol=1e-9)
    torch.testing.assert_close(rows[: len(new_features)], F.normalize(new_features))


def test_fetrils_classifiers_are_scikit_learns():
    """Seen after the first task, where nothing is translated; C counts."""
    weights = {}
    for c in (0.01, 1.0):
        method, features, y = learned("fetril", order=(0,), svm_c=c)
        rows = F.normalize(features).numpy()
        for label in y.unique().tolist():
            svm = LinearSVC(C=c, tol=1e-4, dual=False).fit(rows, y.numpy() == label)
            np.testing.assert_allclose(method.weights[label].numpy(), svm.coef_[0])
            np.testing.assert_allclose(float(method.bias[label]), svm.intercept_[0])
        weights[c] = method.weights
    assert not torch.equal(weights[0.01], weights[1.0])


def test_the_probes_leave_the_encoder_as_it_is():
    for model in ("linear_probe", "linear_probe_joint"):
        method, config = tiny_method(model)
        before = {k: v.clone() for k, v in method.net.state_dict().items()}
        train(method, config)
        changed = {k for k, v in method.net.state_dict().items() if not torch.equal(v, before[k])}
        assert changed == {k for k in before if k.startswith("head.")}
