"""IMM's running sums against T stored checkpoints, batch-norm statistics, and which network predicts."""

import copy
import io

import pytest
import torch
from torch import Tensor, nn

from engram.models.method import Method
from engram.models.parts import fisher
from engram.models.parts.merging import Merge
from tests.conftest import tiny_method
from tests.reference.test_ewc_mas import enter
from tests.reference.test_importance import method_with, resnet_body

SCENARIOS = ["class-il", "task-il", "domain-il"]


def learn(method: Method, config, n_tasks: int) -> list[tuple[dict, dict]]:
    """Weights and Fisher diagonal that every task leaves, kept as T checkpoints."""
    kept = []
    for i in range(n_tasks):
        task, batches = enter(method, config, i)
        for batch in batches:
            method.observe(batch)
        parameters = method.quadratic.parameters
        found = fisher.of_task(method.net, method.benchmark, parameters, task, 0, torch.Generator(), "all")
        kept.append(({n: p.detach().clone() for n, p in parameters.items()}, found))
        method.end_task(task)
    return kept


def merged_by_hand(kept: list[tuple[dict, dict]], model: str) -> dict[str, Tensor]:
    names = kept[0][0]
    if model == "imm_mean":
        return {n: sum(theta[n] for theta, _ in kept) / len(kept) for n in names}
    weights = {n: [f[n].double() + 1e-8 for _, f in kept] for n in names}
    thetas = {n: [theta[n].double() for theta, _ in kept] for n in names}
    pairs = {n: zip(weights[n], thetas[n], strict=True) for n in names}
    return {n: (sum(w * t for w, t in pairs[n]) / sum(weights[n])).float() for n in names}


def of(model: str, scenario: str, **flags):
    return tiny_method(model, scenario, **({"fisher_n": 0} if model == "imm_mode" else {}), **flags)


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("model", ["imm_mean", "imm_mode"])
def test_running_sums_equal_stored_checkpoints(model, scenario):
    method, config = of(model, scenario)
    kept = learn(method, config, 3)
    expected = merged_by_hand(kept, model)
    found = method.merge.merged()
    assert found.keys() == expected.keys()
    assert any(n.startswith("head.") for n in found) == (scenario != "task-il")
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6, msg=name)
    net = copy.deepcopy(method.net)  # as it would be with the checkpoints
    net.load_state_dict({**net.state_dict(), **expected})
    samples = method.setup.benchmark.test(3)
    x = method.setup.benchmark.augment.normalise(samples.x_raw)
    for each in (method.net, net):
        each.eval()
    assert not torch.allclose(method.net(x, samples.task_id), net(x, samples.task_id), atol=1e-3)
    torch.testing.assert_close(
        method.predict(x, samples.task_id), net(x, samples.task_id), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("model", ["imm_mean", "imm_mode"])
def test_inside_a_task_the_network_in_training_predicts(model):
    method, config = of(model, "class-il")
    learn(method, config, 2)
    samples = method.setup.benchmark.test(2)
    x = method.setup.benchmark.augment.normalise(samples.x_raw)
    assert not torch.equal(method.predict(x, samples.task_id), method.net(x, samples.task_id))
    enter(method, config, 2)
    assert torch.equal(method.predict(x, samples.task_id), method.net(x, samples.task_id))


@pytest.mark.parametrize("model", ["imm_mean", "imm_mode"])
def test_training_goes_on_from_the_unmerged_network(model):
    """With L2-transfer off the network that is trained is that of plain SGD; λ Σ (θ − θ*)² otherwise."""
    method, config = of(model, "class-il", imm_lambda=0.5)
    kept = learn(method, config, 1)
    enter(method, config, 1)
    assert method.quadratic.value() == 0
    with torch.no_grad():
        for p in method.net.parameters():
            p.add_(0.25)
            p.grad = torch.zeros_like(p)
    count = sum(theta.numel() for theta in kept[0][0].values())
    torch.testing.assert_close(method.quadratic.value(), torch.tensor(count * 0.25**2), rtol=1e-4, atol=0)
    method.edit_gradients(None)
    for p in method.net.parameters():  # 2 λ (θ − θ*)
        torch.testing.assert_close(p.grad, torch.full_like(p, 2 * 0.5 * 0.25), rtol=1e-4, atol=0)


def test_the_merge_survives_saving():
    method, config = of("imm_mode", "class-il")
    learn(method, config, 2)
    file = io.BytesIO()
    torch.save(method.state_dict(), file)
    file.seek(0)
    restored, _ = of("imm_mode", "class-il")
    restored.load_state_dict(torch.load(file, weights_only=True))
    for each in (method, restored):
        learn_third(each, config)
    for name, value in method.merge.merged().items():
        assert torch.equal(value, restored.merge.merged()[name]), name


def learn_third(method: Method, config) -> None:
    task, batches = enter(method, config, 2)
    method.observe(batches[0])
    method.end_task(task)


def test_batch_norm_statistics_are_those_of_the_mixture():
    """Mean and variance of equally many samples of each of three Gaussians with those moments."""
    net = resnet_body(3)
    merge, drawn = Merge(net), []
    generator = torch.Generator().manual_seed(0)
    for k in range(3):
        net.bn1.running_mean.fill_(k - 1.0)
        net.bn1.running_var.fill_(0.5 + k)
        noise = torch.randn(200_000, generator=generator).double()
        drawn.append(k - 1 + noise / noise.std() * (0.5 + k) ** 0.5 - noise.mean() * (0.5 + k) ** 0.5)
        merge.add({})
    mixture, found = torch.cat(drawn), merge.merged()
    assert {n for n in found} == {
        f"{name}.{kind}"
        for name, module in net.named_modules()
        if isinstance(module, nn.BatchNorm2d)
        for kind in ("running_mean", "running_var")
    }
    torch.testing.assert_close(found["bn1.running_mean"][0].double(), mixture.mean(), atol=1e-2, rtol=0)
    torch.testing.assert_close(found["bn1.running_var"][0].double(), mixture.var(), atol=1e-2, rtol=0)


def test_one_merged_network_is_the_network():
    """Batch norm included; and its own statistics are not written."""
    method = method_with("resnet", "class-il")
    merge = Merge(method.net)
    merge.add({n: torch.rand_like(p) + 0.1 for n, p in method.net.named_parameters()})
    x = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    buffers = {n: b.clone() for n, b in method.net.named_buffers()}
    method.net.eval()
    found = torch.func.functional_call(method.net, merge.merged(), (x, torch.zeros(5, dtype=torch.long)))
    torch.testing.assert_close(found, method.net(x), rtol=1e-4, atol=1e-5)
    assert all(torch.equal(b, buffers[n]) for n, b in method.net.named_buffers())
