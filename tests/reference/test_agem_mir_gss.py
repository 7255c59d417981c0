"""A-GEM-R, MIR and GSS against naive transcriptions: lists, loops, the same draws."""

import copy
from collections import Counter
from itertools import accumulate, chain

import pytest
import torch
import torch.nn.functional as F

from engram.models.parts.inference import evaluating
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
    cosines = GradientSimilarity(method).cosines(samples, others)[:5]
    torch.testing.assert_close(cosines.double(), unit[:5] @ unit[5:].T, rtol=0, atol=1e-6)


def naive_gradient(net, x, y) -> torch.Tensor:
    return vector(torch.autograd.grad(F.cross_entropy(net(x), y), list(net.parameters())))


# What only the rule of the batch does to single samples and slots.
OF_THE_BATCH = ("entered from 1 on", "refused below 1", "a slot taken twice")


class NaiveGSS:
    """The memory of GSS as a list of samples and one of their scores, sample by sample.

    Written after the behaviour of the code that Buzzega et al. 2020 ran (rule "batch") and after Algorithm 2
    of Aljundi et al. 2019 (rule "sample"). `gradient(samples)` is that of the mean loss of several samples.
    """

    def __init__(self, rule, size, n, gradient, source, draws):
        self.rule, self.size, self.n, self.gradient = rule, size, n, gradient
        self.source, self.draws = source, draws
        self.samples, self.scores = [], []
        self.events = Counter()

    def offer(self, batch: list) -> None:
        """The scores of all come first; then the samples enter free slots or compete, one after the other."""
        single, whole = [0.1] * len(batch), 0.1
        if self.samples:
            rows = distinct(len(self.samples), min(self.n, len(self.samples)), self.source).tolist()
            others = [self.gradient([self.samples[r]]) for r in rows]
            single = [self.score(self.gradient([sample]), others) for sample in batch]
            whole = self.score(self.gradient(batch), others)
        n_free = min(self.size - len(self.samples), len(batch))
        self.samples += batch[:n_free]
        self.scores += [whole] * n_free if self.rule == "batch" else single[:n_free]
        if n_free:
            torch.rand(n_free, generator=self.source, dtype=torch.float64)  # the reservoir's, unused
            self.events["filled and competed"] += n_free < len(batch)
        if n_free < len(batch):
            {"batch": self.compete, "sample": self.compete_apart}[self.rule](
                batch[n_free:], single[n_free:], whole
            )

    @staticmethod
    def score(gradient, others) -> float:
        return max(0.0, 1 + max(F.cosine_similarity(gradient, g, dim=0).item() for g in others))

    def compete(self, batch, single, whole) -> None:
        """Slots drawn ∝ the scores as they are at that moment, by inverting their cumulative sum."""
        chances, coins = torch.rand(2, len(batch), generator=self.draws, dtype=torch.float64).tolist()
        taken = []
        for sample, c, chance, coin in zip(batch, single, chances, coins, strict=True):
            total = list(accumulate(self.scores))
            slot = next(i for i, upto in enumerate(total) if chance * total[-1] < upto)
            if whole < 1 and coin < self.scores[slot] / (self.scores[slot] + c):
                self.samples[slot], self.scores[slot] = sample, c
                taken.append(slot)
                self.events["entered from 1 on"] += c >= 1
            self.events["refused below 1"] += whole >= 1 and c < 1
        self.events["a slot taken twice"] += len(taken) > len(set(taken))
        self.events["entered"] += len(taken)

    def compete_apart(self, batch, single, _) -> None:
        """Slots by the exponential race that the draws define, all before the first replacement."""
        u = torch.rand(self.size, generator=self.draws, dtype=torch.float64)
        race = [u[i].log().item() / self.scores[i] for i in range(self.size)]
        slots = sorted(range(self.size), key=lambda i: -race[i])[: len(batch)]
        coins = torch.rand(len(batch), generator=self.draws).tolist()
        for slot, coin, sample, c in zip(slots, coins, batch, single, strict=False):
            if c < 1 and coin < self.scores[slot] / (self.scores[slot] + c):
                self.samples[slot], self.scores[slot] = sample, c
                self.events["entered"] += 1


@pytest.mark.parametrize("rule", ["batch", "sample"])
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_gss_equals_a_naive_transcription(scenario, rule):
    """Gradients from one backward pass per sample and per batch; two steps on every batch."""
    flags = FLAGS | {"gss_minibatch_size": 5, "gss_rule": rule, "batch_num": 2}
    method, twin, steps = trained("gss", scenario, **flags)

    def gradient(samples):
        return naive_gradient(twin.net, *columns(samples))

    memory = NaiveGSS(rule, SIZE, 5, gradient, twin.buffer.generator, twin.draws)
    for _, batch in steps:
        offered = list(zip(batch.x, batch.y, strict=True))
        for _ in range(2):
            held = memory.samples
            rows = distinct(len(held), min(K, len(held)), twin.buffer.generator) if held else []
            x, y = columns([*offered, *(held[r] for r in rows)])
            descend(list(twin.net.parameters()), F.cross_entropy(twin.net(x), y), LR)
        memory.offer(offered)
    assert memory.events["entered"] > 3
    assert_equal_networks(method.net, twin.net)
    stored, expected = method.buffer.stored(), torch.tensor(memory.scores)
    torch.testing.assert_close(stored["score"], expected, rtol=1e-4, atol=1e-5)
    assert stored["y"].tolist() == [y.item() for _, y in memory.samples]


@pytest.mark.parametrize("rule", ["batch", "sample"])
def test_gss_fills_the_slots_that_the_rule_says(monkeypatch, rule):
    """A fixed stream with planted gradients: after every batch each slot holds the same sample and score."""
    size, n = 7, 2
    flags = {"buffer_size": size, "gss_minibatch_size": n, "batch_size": 5, "gss_rule": rule}
    method, _ = tiny_method("gss", **flags)
    twin, _ = tiny_method("gss", **flags)
    benchmark = method.benchmark
    samples = [benchmark.train(task) for task in benchmark.tasks]
    x_raw, index = (torch.cat([getattr(s, name) for s in samples]) for name in ("x_raw", "index"))
    images = benchmark.augment.normalise(x_raw).flatten(1)
    source = torch.Generator().manual_seed(9)
    planted = torch.randn(int(index.max()) + 1, 3, generator=source, dtype=torch.float64)

    def directions(samples):
        return planted[index[torch.cdist(samples.x.flatten(1), images).argmin(1)]]

    def cosines(_, samples, others):
        g = directions(samples)
        g = torch.cat((g, g.mean(0, keepdim=True)))
        return F.normalize(g, dim=1) @ F.normalize(directions(others), dim=1).T

    monkeypatch.setattr(GradientSimilarity, "cosines", cosines)
    memory = NaiveGSS(rule, size, n, lambda rows: planted[rows].mean(0), twin.buffer.generator, twin.draws)
    for batch in chain.from_iterable(benchmark.batches(task, 0, 5) for task in benchmark.tasks):
        method.select(batch)
        memory.offer(batch.index.tolist())
        stored = method.buffer.stored()
        assert stored["index"].tolist() == memory.samples
        torch.testing.assert_close(stored["score"], torch.tensor(memory.scores), rtol=0, atol=1e-5)
        rows = torch.searchsorted(index.sort().values, stored["index"])
        assert torch.equal(stored["x"], x_raw[index.argsort()[rows]])
    method.epoch = 1
    method.select(batch)
    assert method.buffer.stored()["index"].tolist() == memory.samples, "a sample is offered once"
    happened = {event for event, count in memory.events.items() if count}
    assert happened == {"entered", "filled and competed", *(OF_THE_BATCH if rule == "batch" else ())}


@pytest.mark.parametrize("backbone", ["mlp", "cnn"])
def test_the_batch_is_judged_by_the_mean_of_its_gradients(backbone):
    """Both ways, with and without the gradients themselves, against one backward pass of the batch."""
    method, config = tiny_method("gss", backbone=backbone, buffer_size=SIZE)
    train(method, config, tasks=1)
    benchmark = method.setup.benchmark
    samples = benchmark.train(benchmark.tasks[0])
    x, y, task_id = (field[:9] for field in (samples.x_raw, samples.y, samples.task_id))
    x = benchmark.augment.normalise(x)
    batch, others = Examples(x[:5], y[:5], task_id[:5]), Examples(x[5:], y[5:], task_id[5:])
    with evaluating(method.net):
        whole = naive_gradient(method.net, x[:5], y[:5])
        singles = [naive_gradient(method.net, x[i : i + 1], y[i : i + 1]) for i in range(5, 9)]
    expected = torch.stack([F.cosine_similarity(whole, g, dim=0) for g in singles])
    torch.testing.assert_close(
        GradientSimilarity(method).cosines(batch, others)[-1], expected, rtol=0, atol=1e-4
    )
