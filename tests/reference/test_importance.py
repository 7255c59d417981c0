"""Importances against one backward pass per sample and against closed forms."""

import pytest
import torch
from torch import Tensor, nn

from engram.backbones import resnet
from engram.backbones.backbone import Backbone
from engram.backbones.cnn import CNN
from engram.backbones.heads import SharedHead, TaskHeads
from engram.backbones.mlp import MLP
from engram.datasets.lazy_images import LazyImages
from engram.models.method import Method
from engram.models.parts import importance, layers
from engram.models.parts.fisher import log_likelihood, log_probabilities
from engram.models.parts.norms import squared_norm
from engram.models.parts.quadratic import Quadratic
from engram.utils import distributed
from tests.conftest import tiny_method

KINDS = {"fisher": (log_probabilities, 2), "mas": (squared_norm, 1)}


def resnet_body(in_channels: int) -> Backbone:
    """Width 1/16, with batch-norm statistics and affine parameters that are not at their start values."""
    net = resnet.build(resnet.Options(width=1 / 16), (in_channels, 8, 8), "resnet18")
    generator = torch.Generator().manual_seed(3)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.bias.data, module.running_mean, module.running_var):
                tensor += 0.3 * torch.rand(tensor.shape, generator=generator)
    return net


def network(name: str, n_classes: int = 4) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if name == "mlp":
            net = MLP(3 * 8 * 8, (10, 7)).attach(SharedHead(7, n_classes))
            nn.init.normal_(net.head.bias)
        elif name == "cnn":
            net = CNN(3, (4, 6)).attach(SharedHead(6, n_classes))
        else:
            net = resnet_body(3).attach(SharedHead(32, n_classes))
    return net.double().eval()


def images(n: int) -> tuple[Tensor, Tensor]:
    x = torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return x, torch.zeros(n, dtype=torch.long)


def zeros(net: nn.Module) -> dict[str, Tensor]:
    return {n: torch.zeros_like(p) for n, p in net.named_parameters()}


def brute_force(
    net: nn.Module, x: Tensor, task_id: Tensor, quantities, power: int, *given: Tensor
) -> dict[str, Tensor]:
    """One backward pass per sample and quantity."""
    totals = zeros(net)
    for i in range(len(x)):
        values, weights = quantities(net(x[i : i + 1], task_id[i : i + 1]), *(g[i : i + 1] for g in given))
        for value, weight in zip(values[0], weights[0].detach(), strict=True):
            gradients = torch.autograd.grad(value, list(net.parameters()), retain_graph=True)
            for name, g in zip(totals, gradients, strict=True):
                totals[name] += weight * g.abs() ** power
    return totals


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["mlp", "cnn", "resnet"])
@pytest.mark.parametrize("accumulate", [importance.accumulate, importance.accumulate_any])
def test_equals_one_backward_per_sample(name, kind, accumulate):
    quantities, power = KINDS[kind]
    net, (x, task_id) = network(name), images(9)
    buffers = {n: b.clone() for n, b in net.named_buffers()}
    found = zeros(net)
    for part in (slice(0, 5), slice(5, 9)):
        accumulate(found, net, x[part], task_id[part], quantities, power)
    expected = brute_force(net, x, task_id, quantities, power)
    for parameter, value in expected.items():
        assert value.abs().max() > 0, parameter
        torch.testing.assert_close(found[parameter], value, rtol=1e-6, atol=1e-12)
    for n, b in net.named_buffers():
        assert torch.equal(b, buffers[n]), n
    assert all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize("accumulate", [importance.accumulate, importance.accumulate_any])
def test_every_sample_has_what_is_given_of_it(accumulate):
    net, (x, task_id) = network("mlp"), images(9)
    labels, scale = torch.arange(9) % 4, torch.linspace(1, 2, 27, dtype=torch.float64).view(9, 3)

    def quantities(logits: Tensor, labels: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        values, weights = log_likelihood(logits, labels)
        return values * scale.prod(1, keepdim=True), weights

    found = zeros(net)
    accumulate(found, net, x, task_id, quantities, 2, labels, scale)
    for name, value in brute_force(net, x, task_id, quantities, 2, labels, scale).items():
        assert value.abs().max() > 0, name
        torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-12)


def test_single_precision_agrees_with_double():
    quantities, power = KINDS["fisher"]
    net, (x, task_id) = network("mlp"), images(40)
    exact = zeros(net)
    importance.accumulate(exact, net, x, task_id, quantities, power)
    single = net.float()
    found = zeros(single)
    importance.accumulate(found, single, x.float(), task_id, quantities, power)
    for name, value in exact.items():
        assert (found[name] - value).abs().max() <= 1e-5 * value.max()


def test_frozen_layers_have_an_importance_too():
    quantities, power = KINDS["mas"]
    net, (x, task_id) = network("mlp"), images(5)
    expected = brute_force(net, x, task_id, quantities, power)
    net.requires_grad_(False)
    found = zeros(net)
    importance.accumulate(found, net, x, task_id, quantities, power)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-12)


def linear(n_classes: int = 4) -> nn.Module:
    """One linear layer on 12 inputs: the head, with nothing below."""
    net = MLP(12, ()).attach(SharedHead(12, n_classes))
    with torch.no_grad():
        net.head.weight.copy_(torch.linspace(-1, 1, 12 * n_classes).view(n_classes, 12).sin())
        net.head.bias.copy_(torch.linspace(-0.5, 0.5, n_classes))
    return net.double().eval()


def linear_inputs(n: int) -> tuple[Tensor, Tensor]:
    x = torch.randn(n, 12, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return x, torch.zeros(n, dtype=torch.long)


@pytest.mark.parametrize("accumulate", [importance.accumulate, importance.accumulate_any])
def test_fisher_of_a_linear_softmax_is_p_one_minus_p_x_squared(accumulate):
    """E_c[(1{c=j} − p_j)²] x_i² = p_j (1 − p_j) x_i²."""
    net, (x, task_id) = linear(), linear_inputs(20)
    found = zeros(net)
    accumulate(found, net, x, task_id, log_probabilities, 2)
    p = net(x).softmax(1)
    variance = p * (1 - p)
    torch.testing.assert_close(found["head.weight"], variance.T @ x.square(), rtol=1e-9, atol=0)
    torch.testing.assert_close(found["head.bias"], variance.sum(0), rtol=1e-9, atol=0)


@pytest.mark.parametrize("accumulate", [importance.accumulate, importance.accumulate_any])
def test_mas_of_a_linear_network_is_twice_output_times_input(accumulate):
    """∂‖Wx + b‖² / ∂W_ji = 2 y_j x_i."""
    net, (x, task_id) = linear(), linear_inputs(20)
    found = zeros(net)
    accumulate(found, net, x, task_id, squared_norm, 1)
    y = net(x).detach()
    torch.testing.assert_close(found["head.weight"], 2 * y.abs().T @ x.abs(), rtol=1e-9, atol=0)
    torch.testing.assert_close(found["head.bias"], 2 * y.abs().sum(0), rtol=1e-9, atol=0)


class Scaled(nn.Module):
    """A linear layer times a learned number, for which there is no rule."""

    def __init__(self, inner: nn.Linear):
        super().__init__()
        self.inner, self.scale = inner, nn.Parameter(torch.tensor(1.5))

    def forward(self, x: Tensor) -> Tensor:
        """(N, D) → (N, K)."""
        return self.scale * self.inner(x)


def test_a_network_without_rules_takes_the_general_way():
    net = MLP(12, (5,)).attach(SharedHead(5, 4))
    net.layers[1] = Scaled(net.layers[1])
    net = net.double().eval()
    x, task_id = linear_inputs(6)
    found = zeros(net)
    importance.accumulate(found, net, x, task_id, log_probabilities, 2)
    for name, value in brute_force(net, x, task_id, log_probabilities, 2).items():
        assert value.abs().max() > 0, name
        torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-12)


def test_as_many_samples_are_held_as_there_is_room_for(monkeypatch):
    x, task_id = images(1)
    net = network("mlp")
    held = layers.floats_per_sample(net, zeros(net), x, task_id)
    for room, size in ((100 * held, 100), (20 * held - 1, 19), (3 * held, importance.FEW)):
        monkeypatch.setitem(importance.CHUNK_FLOATS, "cpu", room)
        assert importance.chunk_size(net, zeros(net), x, task_id) == size
    general = MLP(12, ()).attach(Scaled(nn.Linear(12, 4)))  # 53 gradients of each sample
    x, task_id = linear_inputs(1)
    for room, size in ((53 * 7, 7), (53 * 7 - 1, 6), (10, 1)):
        monkeypatch.setitem(importance.CHUNK_FLOATS, "cpu", room)
        assert importance.chunk_size(general, zeros(general), x.float(), task_id) == size


# --- of a task ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backbone", ["mlp", "cnn", "resnet"])
@pytest.mark.parametrize("scenario", ["class-il", "domain-il", "task-il"])
def test_of_a_task_is_the_mean_over_its_samples_in_eval_mode(kind, backbone, scenario, monkeypatch):
    """Un-augmented; with heads of their own, over the task's classes and without the heads."""
    quantities, power = KINDS[kind]
    method = method_with(backbone, scenario)
    benchmark = method.setup.benchmark
    task = benchmark.tasks[1]
    monkeypatch.setitem(importance.CHUNK_FLOATS, "cpu", 3000)  # several chunks, the last one smaller
    method.net.train()
    buffers = {n: b.clone() for n, b in method.net.named_buffers()}
    samples = benchmark.train(task)
    shared = importance.shared_parameters(method.net)
    found = importance.of_images(method.net, method.benchmark, shared, samples.x_raw, task, quantities, power)
    assert method.net.training
    for n, b in method.net.named_buffers():
        assert torch.equal(b, buffers[n]), n
    x = benchmark.augment.normalise(samples.x_raw)
    method.net.eval()

    def own(logits: Tensor) -> tuple[Tensor, Tensor]:
        return quantities(logits[:, list(task.classes)] if scenario == "task-il" else logits)

    expected = brute_force(method.net, x, samples.task_id, own, power)
    heads = {n for n in expected if n.startswith("head.")} if scenario == "task-il" else set()
    assert found.keys() == expected.keys() - heads
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name] / len(x), rtol=2e-5, atol=1e-7)


class Counted(LazyImages):
    """Images that are read as those on disk are, and how many at a time."""

    def __init__(self, images: Tensor):
        super().__init__(images.shape, images.device)
        self.images, self.reads = images, []

    def prefetch(self, rows, submit):
        self.reads.append(len(rows))
        return lambda: self.images[torch.from_numpy(rows)]


@pytest.mark.parametrize("first", [0, 10])
def test_images_on_disk_are_read_a_chunk_at_a_time(first, monkeypatch):
    """Bit for bit as from memory, of what is this process's; the first one read tells the chunk's size."""
    monkeypatch.setitem(importance.CHUNK_FLOATS, "cpu", 0)  # chunks of FEW
    monkeypatch.setattr(distributed, "row_shard", lambda n: slice(first, n))
    method, _ = tiny_method("ewc")
    task = method.setup.benchmark.tasks[1]
    samples, shared = method.setup.benchmark.train(task), importance.shared_parameters(method.net)
    images = Counted(samples.x_raw)
    n, few = len(images) - first, importance.FEW
    rest = (task, log_likelihood, 2, samples.y)
    found, expected = (
        importance.of_images(method.net, method.benchmark, shared, x, *rest) for x in (images, samples.x_raw)
    )
    assert images.reads == [1, *[few] * (n // few), n % few]
    assert all(torch.equal(found[name], value) and value.any() for name, value in expected.items())


def method_with(backbone: str, scenario: str) -> Method:
    """`tiny_method`, with a convolutional network in place of the MLP if so wanted."""
    method, _ = tiny_method("ewc", scenario)
    if backbone == "mlp":
        return method
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        body = CNN(1, (3, 4)) if backbone == "cnn" else resnet_body(in_channels=1)
        method.net = body.attach(_head_like(method.net.head, body.feature_dim))
    return method


def _head_like(head: nn.Module, feature_dim: int) -> nn.Module:
    if isinstance(head, SharedHead):
        return SharedHead(feature_dim, head.out_features)
    return TaskHeads(feature_dim, [tuple(range(2 * i, 2 * i + 2)) for i in range(len(head.heads))])


def test_a_subset_is_drawn_without_repetition_from_the_generator_given():
    method, _ = tiny_method("ewc")
    samples = method.setup.benchmark.train(method.setup.benchmark.tasks[0])

    def draw(n: int, seed: int):
        return importance.subset(samples, n, torch.Generator().manual_seed(seed))

    assert torch.equal(draw(5, 0).index, draw(5, 0).index)
    assert not torch.equal(draw(5, 0).index, draw(5, 1).index)
    assert len(draw(5, 0).index.unique()) == 5
    source = torch.Generator().manual_seed(7)
    for n in (0, len(samples.y), 10**6):
        assert importance.subset(samples, n, source) is samples
    assert torch.equal(source.get_state(), torch.Generator().manual_seed(7).get_state())


def test_per_task_heads_over_shared_classes():
    """Domains with a head each: every sample goes through its own task's head."""
    net = MLP(3 * 8 * 8, (10, 7)).attach(TaskHeads(7, [(0, 1, 2)] * 3)).double().eval()
    x, _ = images(6)
    task_id = torch.full((6,), 2)
    expected = brute_force(net, x, task_id, log_probabilities, 2)
    shared = importance.shared_parameters(net)
    assert set(shared) == {n for n in expected if n.startswith("layers.")}
    for accumulate in (importance.accumulate, importance.accumulate_any):
        found = {n: torch.zeros_like(p) for n, p in shared.items()}
        accumulate(found, net, x, task_id, log_probabilities, 2)
        for name, value in found.items():
            torch.testing.assert_close(value, expected[name], rtol=1e-6, atol=1e-12)


def test_of_a_task_whose_domain_has_a_head_of_its_own():
    """The mean over the samples of the task, each through that head, of all that lies below the heads."""
    method, _ = tiny_method("ewc", "domain-il")
    benchmark = method.setup.benchmark
    task, samples = benchmark.tasks[1], benchmark.train(benchmark.tasks[1])
    net = MLP(36, (5,)).attach(TaskHeads(5, [tuple(range(6))] * 3)).eval()
    shared = importance.shared_parameters(net)
    found = importance.of_images(net, benchmark, shared, samples.x_raw, task, log_probabilities, 2)
    x = benchmark.augment.normalise(samples.x_raw)
    expected = brute_force(net, x, samples.task_id, log_probabilities, 2)
    assert found.keys() == {"layers.1.weight", "layers.1.bias"}
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name] / len(x), rtol=2e-5, atol=1e-7)


def test_a_shared_head_is_protected_by_default_and_heads_of_tasks_never_are():
    assert importance.ProtectionOptions().protect_head is True
    body = {"layers.1.weight", "layers.1.bias"}
    heads = {"head.weight", "head.bias"}
    shared, per_task = (MLP(4, (3,)).attach(h) for h in (SharedHead(3, 2), TaskHeads(3, [(0,), (1,)])))
    assert importance.shared_parameters(shared).keys() == body | heads
    assert importance.shared_parameters(shared, head=False).keys() == body
    assert importance.shared_parameters(per_task).keys() == body


# --- the quadratic ------------------------------------------------------------------------------


def parameters() -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(4)
    shapes = {"a": (3, 4), "b": (5,), "c": ()}
    draw = {n: torch.randn(s, generator=generator, dtype=torch.float64) for n, s in shapes.items()}
    return {n: nn.Parameter(t) for n, t in draw.items()}


def random_like(tensors: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {n: torch.rand(t.shape, generator=generator, dtype=t.dtype) for n, t in tensors.items()}


def test_value_and_gradient_equal_autograd():
    theta = parameters()
    quadratic, omega = Quadratic(theta), random_like(theta, 5)
    quadratic.set(omega)
    anchor = {n: p.detach().clone() for n, p in theta.items()}
    with torch.no_grad():
        for p in theta.values():
            p.add_(0.7)
    value = 3.5 * quadratic.value()
    found = torch.autograd.grad(value, list(theta.values()))
    expected_value = 3.5 * sum((omega[n] * (theta[n] - anchor[n]) ** 2).sum() for n in theta)
    expected = torch.autograd.grad(expected_value, list(theta.values()))
    torch.testing.assert_close(value, expected_value, rtol=1e-12, atol=0)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=0)
    assert torch.autograd.gradcheck(lambda *_: quadratic.value(), tuple(theta.values()))


def test_a_sum_of_quadratics_is_one_quadratic():
    """Value and gradient equal those of the separate terms, also where an importance is zero."""
    theta = parameters()
    quadratic, terms = Quadratic(theta), []
    for seed in range(5):
        with torch.no_grad():
            for name, noise in random_like(theta, 10 + seed).items():
                theta[name].add_(noise - 0.5)
        omega = random_like(theta, 20 + seed)
        omega["a"][0] = 0  # never important
        omega["a"][1] *= seed > 2  # important late
        quadratic.add(omega)
        terms.append((omega, {n: p.detach().clone() for n, p in theta.items()}))
    with torch.no_grad():
        for p in theta.values():
            p.add_(0.3)
    expected = sum((o[n] * (theta[n] - a[n]) ** 2).sum() for o, a in terms for n in theta)
    found = quadratic.value()
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    gradients = zip(*(torch.autograd.grad(v, list(theta.values())) for v in (found, expected)), strict=True)
    for a, b in gradients:
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-13)


def test_a_quadratic_survives_saving():
    theta = parameters()
    quadratic = Quadratic(theta)
    assert not quadratic
    quadratic.add(random_like(theta, 5))
    quadratic.add(random_like(theta, 6))
    restored = Quadratic(theta)
    restored.load_state_dict(quadratic.state_dict())
    with torch.no_grad():
        theta["a"].add_(1)
    assert restored and restored.value() > 0
    assert torch.equal(restored.value(), quadratic.value())
    empty = Quadratic(theta)
    empty.load_state_dict(Quadratic(theta).state_dict())
    assert not empty
