"""LwF, LwF-MC and EBLL against their losses written out; what warms up, what is looked up, what grows."""

import copy
import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from engram.datasets.augment import Augment
from engram.models.method import Method
from engram.models.parts.teacher import Answers, columns, distillation
from engram.utils.errors import UserError
from tests.conftest import tiny_method
from tests.reference.test_ewc_mas import enter, learn

SCENARIOS = ["class-il", "task-il", "domain-il"]
FAST = {"ebll_epochs": 2, "ebll_code": 3}


def test_distillation_by_hand():
    """Two classes at T = 2: p = σ(Δ/2) with Δ the difference of the logits."""
    student, teacher = torch.tensor([[1.0, 0.0], [0.0, 4.0]]), torch.tensor([[3.0, 1.0], [0.0, 0.0]])

    def sigmoid(z: float) -> float:
        return 1 / (1 + math.exp(-z))

    q, p = (sigmoid(1.0), 0.5), (sigmoid(0.5), sigmoid(-2.0))
    losses = [-a * math.log(b) - (1 - a) * math.log(1 - b) for a, b in zip(q, p, strict=True)]
    assert distillation(student, teacher, 2.0).item() == pytest.approx(sum(losses) / 2, rel=1e-6)


def test_distillation_is_least_where_student_and_teacher_agree():
    teacher = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    student = teacher.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(distillation(student, teacher, 2.0), student)
    assert gradient.abs().max() < 1e-7
    q = F.softmax(teacher / 2, 1)
    entropy = -(q * q.log()).sum(1).mean()
    torch.testing.assert_close(distillation(student, teacher, 2.0), entropy)


def trained(model: str, scenario: str, n_tasks: int = 2, **flags) -> tuple[Method, Tensor, list]:
    """A method after `n_tasks` tasks and a step, its last teacher as it should be, and batches to come."""
    method, config = tiny_method(model, scenario, **flags)
    learn(method, config, n_tasks)
    old = copy.deepcopy(method.net).eval()
    _, batches = enter(method, config, n_tasks)
    method.observe(batches[0])
    return method, old, batches[1:]


def heads_outputs(method: Method, net, x: Tensor) -> list[Tensor]:
    """Logits for each old task, by the meaning of the scenario."""
    features, tasks = net.features(x), method.setup.benchmark.tasks[: method.n_old]
    if method.setup.benchmark.scenario == "task-il":
        return [net.head.heads[task.id](features) for task in tasks]
    return [net.head(features)[:, list(task.classes)] for task in tasks]


def cross_entropy(method: Method, batch) -> Tensor:
    if method.setup.benchmark.scenario == "task-il":
        head = method.net.head.heads[method.task.id]
        return F.cross_entropy(head(method.net.features(batch.x)), batch.y - method.task.classes[0])
    return F.cross_entropy(method.net(batch.x, batch.task_id), batch.y)


def kd(method: Method, old, x: Tensor, joint: bool, temperature: float) -> Tensor:
    """Li & Hoiem's eq. 2-3 over old tasks, or once over all their classes times the number of old tasks."""
    new, past = heads_outputs(method, method.net, x), heads_outputs(method, old, x)
    if joint and method.setup.benchmark.scenario != "domain-il":
        new, past = [torch.cat(new, 1)] * method.n_old, [torch.cat(past, 1)] * method.n_old
    total = 0
    for z, z_old in zip(new, past, strict=True):
        powers, old_powers = z.softmax(1) ** (1 / temperature), z_old.softmax(1) ** (1 / temperature)
        p, q = powers / powers.sum(1, keepdim=True), old_powers / old_powers.sum(1, keepdim=True)
        total = total - (q.detach() * p.log()).sum(1).mean()
    return total


@pytest.mark.parametrize("distill", [None, "head", "joint"])
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_lwfs_loss_written_out(scenario, distill):
    method, old, batches = trained("lwf", scenario, lwf_lambda=0.7, lwf_temperature=3.0, lwf_distill=distill)
    joint = distill == "joint" or (distill is None and scenario != "task-il")
    for batch in batches[:3]:
        found = method.loss(batch)
        part = kd(method, old, batch.x, joint, 3.0)
        assert part > 0.1
        torch.testing.assert_close(found, cross_entropy(method, batch) + 0.7 * part, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scenario", ["class-il", "task-il"])
def test_distilled_over_all_seen_classes_new_ones_are_pushed_down(scenario):
    """van de Ven & Tolias: 0 is the old network's probability of new classes; a mean over classes too."""
    method, old, batches = trained("lwf", scenario, lwf_lambda=0.7, lwf_temperature=3.0, lwf_distill="seen")
    for batch in batches[:3]:
        past = torch.cat(heads_outputs(method, old, batch.x), 1)
        method.n_old += 1  # the student's softmax is over the new task's classes too
        new = torch.cat(heads_outputs(method, method.net, batch.x), 1)
        method.n_old -= 1
        assert new.shape[1] == past.shape[1] + len(method.task.classes)
        padded = F.pad(F.softmax(past / 3, 1), (0, len(method.task.classes))).detach()
        part = (-padded * F.log_softmax(new / 3, 1)).mean() * method.n_old
        found = method.loss(batch)
        torch.testing.assert_close(found, cross_entropy(method, batch) + 0.7 * part, rtol=1e-5, atol=1e-6)


def test_with_domains_no_class_is_new_and_the_mean_is_over_all():
    method, old, batches = trained(
        "lwf", "domain-il", lwf_lambda=0.7, lwf_temperature=3.0, lwf_distill="seen"
    )
    for batch in batches[:3]:
        found = method.loss(batch)
        part = kd(method, old, batch.x, True, 3.0) / method.setup.benchmark.n_classes
        torch.testing.assert_close(found, cross_entropy(method, batch) + 0.7 * part, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_lwf_mcs_loss_written_out(scenario):
    method, old, batches = trained("lwf_mc", scenario)
    for batch in batches[:3]:
        net, classes = method.net, list(method.task.classes)
        if scenario == "task-il":
            own = net.head.heads[method.task.id](net.features(batch.x))
        else:
            own = net(batch.x, batch.task_id)[:, classes]
        one_hot = F.one_hot(batch.y - classes[0], len(classes)).float()
        outputs, targets = [own], [one_hot]
        if scenario == "domain-il":
            outputs, targets = [own, own], [one_hot, old(batch.x, batch.task_id).sigmoid()]
        else:
            outputs += heads_outputs(method, net, batch.x)
            targets += [z.sigmoid() for z in heads_outputs(method, old, batch.x)]
        g, q = torch.cat(outputs, 1).sigmoid(), torch.cat(targets, 1).detach()
        expected = -(q * g.log() + (1 - q) * (1 - g).log()).sum(1).mean()
        torch.testing.assert_close(method.loss(batch), expected, rtol=1e-5, atol=1e-6)


def test_lwf_mc_leaves_classes_to_come_alone():
    method, config = tiny_method("lwf_mc")
    before = method.net.head.weight.detach().clone()
    learn(method, config, 2)
    after = method.net.head.weight.detach()
    assert torch.equal(after[4:], before[4:]) and not torch.equal(after[:4], before[:4])


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("model", ["lwf", "lwf_mc", "ebll"])
def test_answers_looked_up_are_those_of_the_old_network(model, scenario):
    """Without augmentation a table answers; with it the network does; both say what the old network says."""
    flags = FAST if model == "ebll" else {}
    method, config = tiny_method(model, scenario, **flags)
    method.setup.benchmark.augment = Augment()
    learn(method, config, 2)
    task, batches = enter(method, config, 2)
    method.observe(batches[0])
    assert method.answers.table is not None
    for batch in batches:
        looked_up, asked = method.answers.of(task, batch), method.answers.function(batch.x)
        assert not looked_up.requires_grad
        torch.testing.assert_close(looked_up, asked, rtol=1e-5, atol=1e-6)
    method.setup.benchmark.augment = Augment(flip=True)
    method.answers.reset()
    method.answers.of(task, batches[0])
    assert method.answers.table is None


def test_answers_of_a_resumed_run_are_the_same_bit_for_bit():
    method, config = tiny_method("lwf")
    method.setup.benchmark.augment = Augment()
    learn(method, config, 1)
    task, batches = enter(method, config, 1)
    whole = Answers(method.setup.benchmark, method.answers.function)
    found = [whole.of(task, batch) for batch in batches]
    resumed = Answers(method.setup.benchmark, method.answers.function)
    resumed.load_state_dict(whole.state_dict())
    for batch, expected in zip(batches[2:], found[2:], strict=True):
        assert torch.equal(resumed.of(task, batch), expected)


@pytest.mark.parametrize("model", ["lwf", "lwf_mc", "ebll"])
def test_old_heads_learn_with_the_rest_from_what_is_distilled(model):
    """Figure 3 of the paper: θ_s, θ_o and θ_n are optimised together; heads to come stay as they are."""
    method, config = tiny_method(model, "task-il", **(FAST if model == "ebll" else {}))
    learn(method, config, 1)
    _, batches = enter(method, config, 1)
    method.observe(batches[0])  # away from the teacher
    before = copy.deepcopy(method.net)
    loss = method.loss(batches[1])
    expected = torch.autograd.grad(loss, method.net.head.heads[0].weight)[0]
    assert expected.abs().max() > 1e-4
    method.observe(batches[1])
    moved = method.net.head.heads[0].weight - before.head.heads[0].weight
    torch.testing.assert_close(moved, -config.train.lr * expected)
    assert torch.equal(method.net.head.heads[2].weight, before.head.heads[2].weight)


def test_old_heads_stay_as_they_are_where_nothing_is_distilled():
    method, config = tiny_method("lwf", "task-il", lwf_lambda=0.0, optim_wd=0.1)
    learn(method, config, 1)
    before = copy.deepcopy(method.net.head.heads[0])
    _, batches = enter(method, config, 1)
    method.observe(batches[0])
    assert torch.equal(method.net.head.heads[0].weight, before.weight)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_warm_up_moves_the_new_outputs_alone(scenario):
    method, config = tiny_method("lwf", scenario, lwf_warmup=2)
    learn(method, config, 1)
    before = {n: p.detach().clone() for n, p in method.net.named_parameters()}
    enter(method, config, 1)
    moved = {n for n, p in method.net.named_parameters() if not torch.equal(p, before[n])}
    if scenario == "domain-il":
        assert not moved
    elif scenario == "task-il":
        assert moved == {"head.heads.1.weight", "head.heads.1.bias"}
    else:
        assert moved == {"head.weight", "head.bias"}
        rows = (method.net.head.weight != before["head.weight"]).any(1)
        assert rows.tolist() == [False, False, True, True, False, False]


def test_warm_up_is_plain_sgd_on_frozen_features():
    method, config = tiny_method("lwf", "task-il", lwf_warmup=1)
    learn(method, config, 1)
    method.enter(method.setup.benchmark.tasks[1])
    head = copy.deepcopy(method.net.head.heads[1])
    optimizer = torch.optim.SGD(head.parameters(), lr=config.train.lr)
    for batch in method.setup.benchmark.batches(method.setup.benchmark.tasks[1], 0, 4):
        optimizer.zero_grad()
        with torch.no_grad():
            features = method.net.features(batch.x)
        F.cross_entropy(head(features), batch.y - 2).backward()
        optimizer.step()
    method.begin_task(method.setup.benchmark.tasks[1])
    torch.testing.assert_close(method.net.head.heads[1].weight, head.weight)


def test_columns_are_a_slice():
    method, _ = tiny_method("lwf")
    assert [columns(task) for task in method.setup.benchmark.tasks] == [slice(0, 2), slice(2, 4), slice(4, 6)]


# --- EBLL ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_ebll_without_codes_is_lwf(scenario):
    nets = []
    for model, flags in (("lwf", {}), ("ebll", {"ebll_alpha": 0.0})):
        method, config = tiny_method(model, scenario, lwf_lambda=0.7, **flags)
        learn(method, config, 3)
        nets.append(method.net.state_dict())
    assert all(torch.equal(value, nets[1][name]) for name, value in nets[0].items())


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_eblls_loss_written_out(scenario):
    method, old, batches = trained("ebll", scenario, lwf_lambda=0.7, ebll_alpha=2.0, **FAST)
    assert method.weight.shape == (6, 8) and method.bias.shape == (6,)
    for batch in batches[:3]:
        codes = 0
        for part in (slice(0, 3), slice(3, 6)):
            new, past = (
                torch.sigmoid(net.features(batch.x) @ method.weight[part].T + method.bias[part])
                for net in (method.net, old)
            )
            codes = codes + (new - past.detach()).square().mean()
        assert codes > 0
        distilled = kd(method, old, batch.x, scenario != "task-il", 2.0)
        expected = cross_entropy(method, batch) + 0.7 * distilled + 2 * codes
        torch.testing.assert_close(method.loss(batch), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_the_code_loss_of_the_unchanged_network_is_zero(scenario):
    method, config = tiny_method("ebll", scenario, **FAST)
    learn(method, config, 2)
    _, batches = enter(method, config, 2)
    method.net.eval()

    def code_loss() -> float:
        values = []
        for alpha in (0.0, 1e4):
            method.options = dataclasses.replace(method.options, ebll_alpha=alpha)
            values.append(method.loss(batches[0]).item())
        return values[1] - values[0]

    assert code_loss() == 0
    with torch.no_grad():
        method.net.layers[1].weight.add_(0.1)
    assert code_loss() > 1


def autoencoder(monkeypatch, **flags) -> tuple[float, float]:
    """Reconstruction error and the head's loss on reconstructions of the first task's features."""
    method, config = tiny_method("ebll", ebll_code=3, **flags)
    task, batches = enter(method, config, 0)
    for batch in batches * 4:
        method.observe(batch)
    made, linear = {}, torch.nn.Linear
    monkeypatch.setattr(torch.nn, "Linear", lambda *sizes: made.setdefault(sizes, linear(*sizes)))
    method.end_task(task)
    monkeypatch.undo()
    samples = method.setup.benchmark.train(task)
    features = method.net.features(method.setup.benchmark.augment.normalise(samples.x_raw))
    rebuilt = made[3, 8](method.codes(features))
    loss = F.cross_entropy(method.net.head(rebuilt), samples.y)
    return F.mse_loss(rebuilt, features).item(), loss.item()


def test_an_autoencoder_learns_what_the_task_needs(monkeypatch):
    """More epochs serve the head better; a larger ρ lowers the reconstruction error."""
    short, long = (autoencoder(monkeypatch, ebll_epochs=epochs) for epochs in (1, 300))
    assert long[1] < 0.8 * short[1]
    rebuilding = autoencoder(monkeypatch, ebll_epochs=300, ebll_rho=1000.0)
    assert rebuilding[0] < 0.8 * long[0]


def test_the_network_stays_as_it_is_while_an_autoencoder_learns():
    method, config = tiny_method("ebll", **FAST)
    task, batches = enter(method, config, 0)
    method.observe(batches[0])
    before = {n: t.clone() for n, t in method.net.state_dict().items()}
    gradients = [p.grad.clone() for p in method.net.parameters()]
    method.end_task(task)
    assert all(torch.equal(t, before[n]) for n, t in method.net.state_dict().items())
    assert all(torch.equal(p.grad, g) for p, g in zip(method.net.parameters(), gradients, strict=True))
    assert method.net.training


def size_of(state) -> int:
    """Bytes of all tensors in a nested state."""
    if isinstance(state, Tensor):
        return state.numel() * state.element_size()
    parts = state.values() if isinstance(state, dict) else state if isinstance(state, list | tuple) else ()
    return sum(map(size_of, parts))


def memory(model: str, **flags) -> list[int]:
    """Bytes of the method's state after each task."""
    method, config = tiny_method(model, **flags)
    sizes = []
    for i in range(3):
        task, batches = enter(method, config, i)
        method.observe(batches[0])
        method.end_task(task)
        sizes.append(size_of(method.state_dict()))
    return sizes


def test_memory_grows_by_one_encoder_per_task():
    one, two, three = memory("ebll", **FAST)
    encoder = 4 * (3 * 8 + 3)  # float32 weights and biases
    assert two - one == three - two == encoder


@pytest.mark.parametrize("model", ["imm_mean", "imm_mode", "lwf", "lwf_mc", "si", "rwalk", "ewc"])
def test_memory_does_not_grow_with_tasks(model):
    one, two, three = memory(model)
    assert two == three and one <= two


def test_a_code_as_large_as_the_features_is_refused():
    with pytest.raises(UserError, match="--ebll_code 8: the code must be smaller than the 8 features"):
        tiny_method("ebll", ebll_code=8)
    assert tiny_method("ebll", hidden_sizes=(40,))[0].n_units == 4
