"""Baselines of the MER and GEM papers against naive transcriptions: plain loops, 50 steps, the same draws."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from engram.backbones.heads import PerTask
from engram.models.agem import project
from engram.models.er import per_task_mean_weights
from engram.models.method import check_scenario
from engram.utils.buffers.reservoir import distinct
from engram.utils.errors import UserError
from engram.utils.training.evaluation import accuracies
from engram.utils.training.optimizers import build_optimizer
from tests.conftest import tiny_method

SCENARIOS = ["class-il", "domain-il"]
TASK_IS_GIVEN = ["task-il", "domain-il"]


def trained(model: str, scenario: str = "domain-il", n_steps: int = 17, **flags):
    """A method after `n_steps` steps on each of three tasks, an untrained twin, the steps (task, batch)."""
    method, config = tiny_method(model, scenario, **flags)
    twin, _ = tiny_method(model, scenario, **flags)
    benchmark, steps = method.setup.benchmark, []
    method.augment = benchmark.augment.normalise
    for task in benchmark.tasks:
        method.enter(task)
        method.begin_task(task)
        method.optimizer = build_optimizer(method.trainable().values(), config.train)
        batches = benchmark.batches(task, 0, config.train.batch_size)
        for _, batch in zip(range(n_steps), batches, strict=False):
            batch = batch._replace(x=benchmark.augment.normalise(batch.x_raw))
            method.observe(batch)
            steps.append((task.id, batch))
        method.end_task(task)
    return method, twin, steps


def assert_equal_networks(net, other) -> None:
    for (name, a), b in zip(net.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6, msg=name)


def descend(parameters, loss, lr: float) -> None:
    """θ ← θ − lr ∇loss."""
    gradients = torch.autograd.grad(loss, parameters)
    with torch.no_grad():
        for p, g in zip(parameters, gradients, strict=True):
            p -= lr * g


def vector(tensors) -> torch.Tensor:
    return torch.cat([t.flatten() for t in tensors])


def of_the_task(logits, method, task: int) -> torch.Tensor:
    """(N, C) logits, in task-IL −inf for classes of other tasks."""
    if method.benchmark.scenario != "task-il":
        return logits
    classes = list(method.benchmark.tasks[task].classes)
    masked = torch.full_like(logits, -torch.inf)
    masked[:, classes] = logits[:, classes]
    return masked


# --- online, task input, independent --------------------------------------------------------------


def test_online_takes_a_step_per_example():
    method, twin, steps = trained("online", batch_size=1)
    for _, batch in steps:
        descend(list(twin.net.parameters()), F.cross_entropy(twin.net(batch.x), batch.y), 0.05)
    assert len(steps) == 51
    assert_equal_networks(method.net, twin.net)


@pytest.mark.parametrize("model", ["taskinput", "independent"])
def test_networks_per_task_are_refused_where_the_task_is_not_given(model):
    method, _ = tiny_method(model, "class-il", hidden_sizes=(9,))
    with pytest.raises(UserError, match=f"{model} is defined for task-il, domain-il, not for class-il; give"):
        check_scenario(type(method), model, method.benchmark)


@pytest.mark.parametrize("scenario", TASK_IS_GIVEN)
def test_taskinput_has_a_first_layer_per_task(scenario):
    method, twin, steps = trained("taskinput", scenario, hidden_sizes=(8, 7))
    first = list(twin.net.inputs.copies)
    _, hidden, _ = twin.net.layers
    for task, batch in steps:
        h = F.relu(F.linear(batch.x.flatten(1), first[task].weight, first[task].bias))
        h = F.relu(F.linear(h, hidden.weight, hidden.bias))
        logits = of_the_task(twin.net.head(h), twin, task)
        learning = [*first[task].parameters(), *hidden.parameters(), *twin.net.head.parameters()]
        descend(learning, F.cross_entropy(logits, batch.y), 0.05)
    assert len(first) == 3
    assert_equal_networks(method.net, twin.net)


def test_taskinput_starts_from_pytorchs_weights_and_zero_biases():
    net = tiny_method("taskinput", "domain-il", hidden_sizes=(50, 50))[0].net
    for layer in [m for m in net.modules() if isinstance(m, nn.Linear)]:
        bound = layer.in_features**-0.5
        assert 0.9 * bound < layer.weight.abs().max() <= bound
        assert not layer.bias.any()
    a, b, c = (copy_.weight for copy_ in net.inputs.copies)
    assert not torch.equal(a, b) and not torch.equal(b, c)


@pytest.mark.parametrize("scenario", TASK_IS_GIVEN)
@pytest.mark.parametrize("warm_start", [True, False])
def test_independent_is_a_network_per_task(warm_start, scenario):
    method, twin, steps = trained("independent", scenario, hidden_sizes=(9, 10), warm_start=warm_start)
    networks, old = list(twin.net.head.copies), 0
    for task, batch in steps:
        if warm_start and task != old:
            for a, b in zip(networks[old].parameters(), networks[task].parameters(), strict=True):
                b.data.copy_(a.data)
        old = task
        loss = F.cross_entropy(of_the_task(networks[task](batch.x), twin, task), batch.y)
        descend(list(networks[task].parameters()), loss, 0.05)
    assert [m.out_features for m in networks[0].modules() if isinstance(m, nn.Linear)] == [3, 3, 6]
    assert_equal_networks(method.net, twin.net)


@pytest.mark.parametrize("model", ["taskinput", "independent"])
def test_networks_per_task_do_not_forget_their_own_part(model):
    """What a task has for itself is untouched by later tasks; accuracies mix samples of all tasks."""
    method, twin, _ = trained(model, n_steps=30, hidden_sizes=(30, 30), lr=0.1)
    own = method.net.inputs if model == "taskinput" else method.net.head
    before = copy.deepcopy(own.copies[0].state_dict())
    task = method.setup.benchmark.tasks[2]
    assert not any(p.requires_grad for p in own.copies[0].parameters())
    for batch in method.setup.benchmark.batches(task, 1, 4):
        method.observe(batch)
    assert all(torch.equal(before[n], v) for n, v in own.copies[0].state_dict().items())
    assert (accuracies(method, 3, 3)[:, 1] > accuracies(twin, 3, 3)[:, 1]).all()


def test_each_sample_goes_through_its_own_tasks_copy():
    torch.manual_seed(0)
    layers = PerTask(nn.Linear(4, 2) for _ in range(3))
    x, task_id = torch.randn(9, 4), torch.tensor([2, 0, 2, 2, 0, 0, 2, 0, 2])  # none of task 1
    expected = torch.stack([layers.copies[t](row) for row, t in zip(x, task_id, strict=True)])
    torch.testing.assert_close(layers(x, task_id), expected)
    with layers.only(1):
        torch.testing.assert_close(layers(x, task_id), layers.copies[1](x))
    torch.testing.assert_close(layers(x, task_id), expected)


@pytest.mark.parametrize(
    "flags", [{"backbone": "cnn", "channels": (6, 9)}, {"backbone": "resnet18", "width": 0.1}]
)
@pytest.mark.parametrize("warm_start", [True, False])
def test_convolutional_networks_per_task_have_their_share_of_the_channels(warm_start, flags):
    """Three tasks: 6 // 3 and 9 // 3 channels, or 6 // 3 of a narrow ResNet, with its batch norm."""
    method, twin, steps = trained("independent", n_steps=1, warm_start=warm_start, **flags)
    networks, old = list(twin.net.train().head.copies), 0
    for task, batch in steps:
        if warm_start and task != old:
            networks[task].load_state_dict(networks[old].state_dict())
        old = task
        loss = F.cross_entropy(networks[task](batch.x), batch.y)
        descend(list(networks[task].parameters()), loss, 0.05)
    first, *_ = (m.out_channels for m in networks[0].modules() if isinstance(m, nn.Conv2d))
    assert first == 2 and len(networks) == 3
    for (name, a), b in zip(method.net.named_parameters(), twin.net.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4, msg=name)  # batch norm of 2 channels: rounding


@pytest.mark.parametrize(
    ("model", "flags", "message"),
    [("taskinput", {"backbone": "cnn"}, "--backbone mlp"),
     ("independent", {"backbone": "cnn", "channels": (2,)}, "--channels 2 split over 3 tasks"),
     ("independent", {"backbone": "resnet18", "width": 0.03}, "2 channels split over 3 tasks"),
     ("independent", {"backbone": "alexnet", "width": 0.01}, "AlexNet has no narrower form")],
)  # fmt: skip
def test_networks_that_cannot_be_divided_are_refused(model, flags, message):
    with pytest.raises(UserError, match=message):
        tiny_method(model, "domain-il", **flags)


def test_too_few_hidden_units_to_divide_are_refused():
    with pytest.raises(UserError, match="--hidden_sizes 2"):
        tiny_method("independent", "domain-il", hidden_sizes=(2,))


# --- EWC in MER's form ----------------------------------------------------------------------------


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("n_memories", [6, 10])
def test_ewc_of_mer_equals_a_naive_transcription(n_memories, scenario):
    method, twin, steps = trained(
        "ewc", scenario, ewc_variant="mer", n_memories=n_memories, e_lambda=3.0, batch_size=2
    )
    parameters = list(twin.net.parameters())
    fishers, anchors, current, memory = [], [], 0, []
    for task, batch in steps:
        if task != current:
            x, y = (torch.stack(part) for part in zip(*memory, strict=True))
            gradients = torch.autograd.grad(F.cross_entropy(twin.net(x), y), parameters)
            fishers.append([g**2 for g in gradients])
            anchors.append([p.detach().clone() for p in parameters])
            current, memory = task, []
        memory = [*memory, *zip(batch.x, batch.y, strict=True)][:n_memories]
        loss = F.cross_entropy(twin.net(batch.x), batch.y)
        for fisher, anchor in zip(fishers, anchors, strict=True):
            for f, a, p in zip(fisher, anchor, parameters, strict=True):
                loss = loss + (3.0 * f * (p - a) ** 2).sum()
        descend(parameters, loss, 0.05)
    assert len(fishers) == 2
    assert_equal_networks(method.net, twin.net)
    plain, _, _ = trained("sgd", scenario, batch_size=2)
    assert not torch.equal(plain.net.head.weight, method.net.head.weight)  # the penalty counts


def test_ewc_of_mer_keeps_the_first_epochs_samples_only():
    method, _, steps = trained("ewc", ewc_variant="mer", n_memories=7, n_steps=1)
    method.begin_task(method.task)
    batch = steps[-1][1]
    for method.epoch in (0, 1):
        method.observe(batch)
    assert torch.equal(method.first["y"], batch.y)


# --- ER, algorithms 4 and 5 -----------------------------------------------------------------------


def naive_er(net, options, k: int, steps: list, generator: torch.Generator) -> None:
    """`eralg4` and `eralg5` with lists; draws and reservoir from the buffer's generator."""
    memory, age = [], 0
    for task, batch in steps:
        age += 1
        current = (batch.x[0], batch.y[0], task)
        n = min(k, len(memory))
        if options.draws == "distinct":
            rows = distinct(len(memory), n, generator).tolist() if n else []
        else:
            rows = torch.randint(len(memory), (n,), generator=generator).tolist() if n else []
        groups = {}
        for x, y, t in [*(memory[row] for row in rows), current]:
            groups.setdefault(t if options.er_variant == "alg5" else 0, []).append((x, y))
        loss = 0.0
        for group in groups.values():
            x, y = (torch.stack(part) for part in zip(*group, strict=True))
            loss = loss + F.cross_entropy(net(x), y)
        descend(list(net.parameters()), loss, 0.05)
        draw = torch.rand(1, generator=generator, dtype=torch.float64).item()
        inclusive = options.reservoir != "uniform"
        if len(memory) < options.buffer_size:
            memory.append(current)
        elif (slot := int(draw * (age + inclusive))) < options.buffer_size:
            memory[slot] = current


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("paper", [{}, {"draws": "distinct", "reservoir": "uniform"}])
@pytest.mark.parametrize("variant", ["alg4", "alg5"])
def test_er_of_mer_equals_a_naive_transcription(variant, paper, scenario):
    flags = {"er_variant": variant, "buffer_size": 12, "minibatch_size": 6, "batch_size": 1, **paper}
    method, twin, steps = trained("er", scenario, **flags)
    naive_er(twin.net, twin.options, 6, steps, twin.buffer.generator)
    assert_equal_networks(method.net, twin.net)


def test_defaults_of_er_follow_its_variant():
    chosen = {v: tiny_method("er", er_variant=v)[0] for v in ("batch", "alg4", "alg5")}
    assert [m.with_replacement for m in chosen.values()] == [False, True, True]
    assert [m.buffer.n_extra_slots for m in chosen.values()] == [0, 1, 1]


def test_balanced_weights_sum_the_means_of_the_tasks():
    generator = torch.Generator().manual_seed(0)
    losses, task_id = torch.rand(40, generator=generator), torch.randint(6, (40,), generator=generator)
    expected = sum(losses[task_id == t].mean() for t in task_id.unique())
    torch.testing.assert_close((per_task_mean_weights(task_id) * losses).sum(), expected)
    assert torch.equal(per_task_mean_weights(torch.zeros(5)), torch.full((5,), 0.2))


# --- A-GEM ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_agem_equals_a_naive_transcription(scenario):
    """Three tasks with a list of the last 5 samples each; the gradient is projected many times."""
    method, twin, steps = trained("agem", scenario, buffer_size=15, minibatch_size=6)
    memory, parameters, n_projected = [[], [], []], list(twin.net.parameters()), 0
    counts = [0, 0, 0]
    for task, batch in steps:
        g = vector(torch.autograd.grad(F.cross_entropy(twin.net(batch.x), batch.y), parameters))
        past = [sample for t in range(3) if t != task for sample in memory[t]]
        if past:
            rows = distinct(len(past), min(6, len(past)), twin.buffer.generator).tolist()
            x, y = (torch.stack(part) for part in zip(*(past[r] for r in rows), strict=True))
            ref = vector(torch.autograd.grad(F.cross_entropy(twin.net(x), y), parameters))
            if g @ ref < 0:
                g, n_projected = g - (g @ ref) / (ref @ ref) * ref, n_projected + 1
        with torch.no_grad():
            for p, piece in zip(parameters, g.split([p.numel() for p in parameters]), strict=True):
                p -= 0.05 * piece.view_as(p)
        for sample in zip(batch.x, batch.y, strict=True):
            if len(memory[task]) < 5:
                memory[task].append(sample)
            else:
                memory[task][counts[task] % 5] = sample
            counts[task] += 1
    assert 5 < n_projected < len(steps)
    assert_equal_networks(method.net, twin.net)


@pytest.mark.parametrize("seed", range(10))
def test_agems_gradient_does_not_point_against_the_reference(seed):
    generator = torch.Generator().manual_seed(seed)
    g, reference = torch.randn(2, 30, generator=generator, dtype=torch.float64)
    found = project(g, reference)
    assert found @ reference >= -1e-12
    assert torch.equal(found, g) == bool(g @ reference >= 0)
    assert (found - g).norm() <= g.norm()
    assert torch.equal(project(g, torch.zeros_like(g)), g)


def test_agem_refuses_a_memory_smaller_than_the_number_of_tasks():
    with pytest.raises(UserError, match="at least 3"):
        tiny_method("agem", buffer_size=2)
    assert tiny_method("agem", buffer_size=11)[0].buffer.per_task == 3


# --- gradients of several memories ----------------------------------------------------------------


@pytest.mark.parametrize("scenario", ["class-il", "task-il", "domain-il"])
@pytest.mark.parametrize("counts", [[6, 6], [5, 3]])
def test_gradients_by_part_are_those_of_each_part(counts, scenario):
    """Equal parts (one batched pass) and unequal ones."""
    method, _, _ = trained("gem", scenario, buffer_size=18)
    samples, _ = method.memories([0, 1])
    samples = type(samples)(*(torch.cat((f[: counts[0]], f[6 : 6 + counts[1]])) for f in samples))
    found = method.inner.gradients_by_part(method.trainable(), samples, counts)
    for row, *part in zip(found, *(field.split(counts) for field in samples), strict=True):
        x, y, task_id = part
        loss = F.cross_entropy(method.logits(x, task_id), y)
        expected = torch.autograd.grad(loss, list(method.net.parameters()), materialize_grads=True)
        torch.testing.assert_close(row, vector(expected), rtol=1e-5, atol=1e-6)
