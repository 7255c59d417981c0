"""A-GEM-R, MIR and GSS against naive transcriptions: lists, loops, the same draws."""

import copy

import pytest
import torch
import torch.nn.functional as F

from engram.models.parts.similarity import GradientSimilarity
from engram.models.rehearsal import Examples
from engram.utils.buffers.reservoir import distinct
from engram.utils.errors import UserError
from tests.conftest import tiny_method
from tests.contract.test_methods import train
from tests.reference.naive import FLAGS, LR, SCENARIOS, SIZE, K, Reservoir, columns, trained
from tests.reference.test_mer_baselines import assert_equal_networks, descend, vector


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_agem_r_equals_a_naive_transcription(scenario):
    method, twin, steps = trained("agem_r", scenario, **FLAGS)
    memory, parameters, n_projected = Reservoir(twin.buffer.generator), list(twin.net.parameters()), 0
    for _, batch in steps:
        g = vector(torch.autograd.grad(F.cross_entropy(twin.net(batch.x), batch.y), parameters))
        if memory:
            x, y = columns(memory.draw())
            ref = vector(torch.autograd.grad(F.cross_entropy(twin.net(x), y), parameters))
            if g @ ref < 0:
                g, n_projected = g - (g @ ref) / (ref @ ref) * ref, n_projected + 1
        with torch.no_grad():
            for p, piece in zip(parameters, g.split([p.numel() for p in parameters]), strict=True):
                p -= LR * piece.view_as(p)
        memory.offer(zip(batch.x, batch.y, strict=True))
    assert n_projected > 3
    assert_equal_networks(method.net, twin.net)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_mir_equals_a_naive_transcription(scenario):
    """The virtual step is made on a copy of the network."""
    method, twin, steps = trained("mir", scenario, subsample=10, buffer_size=SIZE, minibatch_size=4)
    memory, n_chosen = Reservoir(twin.buffer.generator), 0
    for _, batch in steps:
        loss = F.cross_entropy(twin.net(batch.x), batch.y)
        if memory:
            candidates = memory.draw(10)
            virtual = copy.deepcopy(twin.net)
            descend(list(virtual.parameters()), F.cross_entropy(virtual(batch.x), batch.y), LR)
            rises = []
            for x, y in candidates:
                before, after = (F.cross_entropy(net(x[None]), y[None]).item() for net in (twin.net, virtual))
                rises.append(after - before)
            order = sorted(range(len(candidates)), key=lambda i: -rises[i])[:4]
            n_chosen += len(candidates) > 4
            x, y = columns([candidates[i] for i in order])
            loss = loss + F.cross_entropy(twin.net(x), y)
        descend(list(twin.net.parameters()), loss, LR)
        memory.offer(zip(batch.x, batch.y, strict=True))
    assert n_chosen > 10
    assert_equal_networks(method.net, twin.net)


def test_judging_candidates_moves_no_batch_norm_statistics():
    method, config = tiny_method("mir", backbone="resnet18", width=0.05, buffer_size=20)
    train(method, config, tasks=1)
    method.net.train()
    candidates = method.replay(10)
    before = {name: b.clone() for name, b in method.net.named_buffers()}
    assert len(before) > 10
    method.interference(candidates)
    assert all(torch.equal(b, before[name]) for name, b in method.net.named_buffers())


def test_candidates_are_five_times_what_is_replayed():
    assert tiny_method("mir", minibatch_size=10)[0].n_candidates == 50, "the paper's numbers"
    assert tiny_method("mir", batch_size=128)[0].n_candidates == 640
    assert tiny_method("mir", batch_size=4, subsample=7)[0].n_candidates == 7
    with pytest.raises(UserError, match=r"--subsample 4: 4 of the candidates .* give more than 4"):
        tiny_method("mir", batch_size=4, subsample=4)


@pytest.mark.parametrize("scenario", ["class-il", "domain-il", "task-il"])
def test_cosines_of_gradients_equal_one_backward_pass_per_sample(scenario):
    """Heads per task put their layers' weights together, past the hooks of the layers."""
    method, config = tiny_method("gss", scenario, buffer_size=SIZE)
    train(method, config)
    method.net.double()
    benchmark, parameters = method.setup.benchmark, list(method.trainable().values())
    parts = [benchmark.train(task) for task in benchmark.tasks]
    x, y, task_id = (torch.cat([getattr(p, n)[:4] for p in parts]) for n in ("x_raw", "y", "task_id"))
    x = benchmark.augment.normalise(x).double()
    gradients = []
    for i in range(len(y)):
        loss = F.cross_entropy(method.logits(x[i : i + 1], task_id[i : i + 1]), y[i : i + 1])
        gradients.append(vector(torch.autograd.grad(loss, parameters, materialize_grads=True)))
    unit = F.normalize(torch.stack(gradients), dim=1)
    samples, others = Examples(x[:5], y[:5], task_id[:5]), Examples(x[5:], y[5:], task_id[5:])
    found = GradientSimilarity(method).cosines(samples, others)
    torch.testing.assert_close(found.double(), unit[:5] @ unit[5:].T, rtol=0, atol=1e-6)


def naive_gradient(net, x, y) -> torch.Tensor:
    return vector(torch.autograd.grad(F.cross_entropy(net(x[None]), y[None]), list(net.parameters())))


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_gss_equals_a_naive_transcription(scenario):
    """Scores from one backward pass per sample; places by the exponential race that the draws define."""
    method, twin, steps = trained("gss", scenario, gss_minibatch_size=5, **FLAGS)
    memory, source, n_replaced = [], twin.buffer.generator, 0
    for _, batch in steps:
        offered = list(zip(batch.x, batch.y, strict=True))
        drawn = [memory[r] for r in distinct(len(memory), min(K, len(memory)), source)] if memory else []
        x, y = columns([*offered, *(s[:2] for s in drawn)])
        descend(list(twin.net.parameters()), F.cross_entropy(twin.net(x), y), LR)
        if memory:
            rows = distinct(len(memory), min(5, len(memory)), source).tolist()
            others = [naive_gradient(twin.net, *memory[r][:2]) for r in rows]
            scores = [
                1 + max(F.cosine_similarity(naive_gradient(twin.net, *s), g, dim=0).item() for g in others)
                for s in offered
            ]
        else:
            scores = [0.1] * len(offered)
        free = SIZE - len(memory)
        memory += [(*s, c) for s, c in zip(offered[:free], scores, strict=False)]
        if free > 0:
            torch.rand(len(offered[:free]), generator=source, dtype=torch.float64)  # the reservoir's, unused
        rest = list(zip(offered[max(free, 0) :], scores[max(free, 0) :], strict=True))
        if rest:
            u = torch.rand(SIZE, generator=twin.draws, dtype=torch.float64)
            race = [u[i].log().item() / memory[i][2] for i in range(SIZE)]
            slots = sorted(range(SIZE), key=lambda i: -race[i])[: len(rest)]
            coins = torch.rand(len(rest), generator=twin.draws).tolist()
            for slot, coin, (sample, c) in zip(slots, coins, rest, strict=True):
                if c < 1 and coin < memory[slot][2] / (memory[slot][2] + c):
                    memory[slot] = (*sample, c)
                    n_replaced += 1
    assert n_replaced > 3
    assert_equal_networks(method.net, twin.net)
    expected = torch.tensor([s[2] for s in memory])
    torch.testing.assert_close(method.buffer.stored()["score"], expected, rtol=1e-4, atol=1e-5)
