"""Rehearsal methods against naive transcriptions: lists, loops over samples, the same draws; three tasks.

Every transcription trains a fresh network of its own on the batches that the method saw and must end with
the same parameters.
"""

import copy

import pytest
import torch
import torch.nn.functional as F

from datasets.augment import Augment
from models.er_aml import supcon
from models.parts.replay import augmented
from tests.conftest import tiny_method
from tests.contract.test_methods import train
from tests.reference.test_mer_baselines import assert_equal_networks, descend, vector
from utils.buffer import distinct, rows_where
from utils.optimizers import build_optimizer
from utils.options import OptionError

SCENARIOS = ["class-il", "domain-il"]
LR, SIZE, K = 0.05, 15, 6
FLAGS = {"buffer_size": SIZE, "minibatch_size": K}


class Doubles(Augment):
    """No augmentation, images in float64: sums in another order then agree to many digits."""

    def normalise(self, raw: torch.Tensor) -> torch.Tensor:
        return super().normalise(raw).double()


def trained(model: str, scenario: str, **flags):
    """A method after three tasks in float64, an untrained twin, the steps (task, batch)."""
    method, config = tiny_method(model, scenario, **flags)
    twin, _ = tiny_method(model, scenario, **flags)
    for each in (method, twin):
        each.net.double()
        each.setup.benchmark.augment = Doubles()
    benchmark, steps = method.setup.benchmark, []
    for task in benchmark.tasks:
        method.enter(task)
        method.begin_task(task)
        method.optimizer = build_optimizer(method.trainable().values(), config.train)
        for batch in benchmark.batches(task, 0, config.train.batch_size):
            method.observe(batch)
            steps.append((task.id, batch))
        method.end_task(task)
    return method, twin, steps


class Reservoir(list):
    """Vitter's algorithm R on tuples, with the buffer's draws."""

    def __init__(self, generator: torch.Generator, size: int = SIZE):
        super().__init__()
        self.generator, self.size, self.n_seen = generator, size, 0

    def offer(self, samples) -> None:
        samples = list(samples)
        draws = torch.rand(len(samples), generator=self.generator, dtype=torch.float64).tolist()
        for sample, draw in zip(samples, draws, strict=True):
            self.n_seen += 1
            if len(self) < self.size:
                self.append(sample)
            elif (slot := int(draw * self.n_seen)) < self.size:
                self[slot] = sample

    def draw(self, n: int = K) -> list:
        rows = distinct(len(self), min(n, len(self)), self.generator).tolist()
        return [self[row] for row in rows]


def columns(samples) -> list[torch.Tensor]:
    """Samples as one tensor for each of their parts."""
    return [torch.stack(part) for part in zip(*samples, strict=True)]


# --- ER and its memories --------------------------------------------------------------------------


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_er_equals_a_naive_transcription(scenario):
    method, twin, steps = trained("er", scenario, **FLAGS)
    memory = Reservoir(twin.buffer.generator)
    for _, batch in steps:
        samples = [*zip(batch.x, batch.y, strict=True), *(memory.draw() if memory else [])]
        x, y = columns(samples)
        descend(list(twin.net.parameters()), F.cross_entropy(twin.net(x), y), LR)
        memory.offer(samples[: len(batch.y)])
    assert_equal_networks(method.net, twin.net)


def test_loss_aware_er_keeps_every_samples_last_known_loss():
    """The scores in the memory, sample by sample, and the parameters they lead to."""
    method, twin, steps = trained("er", "class-il", memory="loss_aware", **FLAGS)
    known, kept, n_seen, source = {}, [], 0, twin.buffer.generator
    for task, batch in steps:
        rows = distinct(len(kept), min(K, len(kept)), source).tolist() if kept else []
        samples = [*zip(batch.x, batch.y, [(task, i) for i in batch.index.tolist()], strict=True)]
        samples += [kept[row] for row in rows]
        x, y = columns([s[:2] for s in samples])
        losses = F.cross_entropy(twin.net(x), y, reduction="none")
        known |= {s[2]: v for s, v in zip(samples, losses.tolist(), strict=True)}
        descend(list(twin.net.parameters()), losses.mean(), LR)
        draws = torch.rand(len(batch.y), generator=source, dtype=torch.float64).tolist()
        entering = []
        for sample, draw in zip(samples[: len(batch.y)], draws, strict=True):
            n_seen += 1
            if len(kept) < SIZE:
                kept.append(sample)
            elif int(draw * n_seen) < SIZE:
                entering.append(sample)
        chances = torch.rand(len(entering), generator=source).tolist() if entering else []
        for sample, chance in zip(entering, chances, strict=True):
            losses = [known[s[2]] for s in kept]
            weights = torch.tensor([max(losses) - v for v in losses], dtype=torch.float64).cumsum(0)
            kept[int((weights > chance * weights[-1]).to(torch.uint8).argmax())] = sample
    assert_equal_networks(method.net, twin.net)
    stored = method.buffer.stored()
    assert stored["index"].tolist() == [s[2][1] for s in kept]
    expected = torch.tensor([known[s[2]] for s in kept], dtype=torch.float64)
    torch.testing.assert_close(stored["score"], expected)


def test_er_with_a_ring_per_class_replays_from_it():
    method, twin, steps = trained("er", "class-il", memory="class_ring", buffer_size=12, minibatch_size=K)
    rings, counts, source = {c: [None, None] for c in range(6)}, [0] * 6, twin.buffer.generator
    for _, batch in steps:
        samples = list(zip(batch.x, batch.y, strict=True))
        places = [sample for c in range(6) for sample in rings[c]]
        mask = torch.tensor([p is not None for p in places])
        if mask.any():
            drawn = rows_where(torch.cat((mask, torch.tensor([False])))[:12], K, source)
            samples += [places[row] for row in drawn.tolist()]
        x, y = columns(samples)
        descend(list(twin.net.parameters()), F.cross_entropy(twin.net(x), y), LR)
        for sample in samples[: len(batch.y)]:
            c = int(sample[1])
            rings[c][counts[c] % 2] = sample
            counts[c] += 1
    assert_equal_networks(method.net, twin.net)


@pytest.mark.parametrize("memory", ["balanced", "class_ring", "task_ring", "fifo", "loss_aware_balanced"])
@pytest.mark.parametrize("scenario", [*SCENARIOS, "task-il"])
def test_every_memory_serves_er(memory, scenario):
    """Never over size, all filled at the end, replayed in the next task, and continued after saving."""
    flags = {"memory": memory, "buffer_size": 12}
    method, results = train(*tiny_method("er", scenario, **flags))
    again, restored = train(*tiny_method("er", scenario, **flags))[0], tiny_method("er", scenario, **flags)[0]
    assert_equal_networks(method.net, again.net)
    stored = method.buffer.stored()
    assert len(stored["y"]) == len(method.buffer) == 12
    assert results.memory[-1]["per_class"] == stored["y"].bincount(minlength=6).tolist()
    restored.load_state_dict(method.state_dict())
    assert torch.equal(method.buffer.sample(5)["x"], restored.buffer.sample(5)["x"])
    if memory == "balanced":
        assert stored["y"].bincount().max() <= 3
    if memory == "task_ring":
        assert stored["task_id"].bincount().tolist() == [4, 4, 4]
    if memory == "class_ring" and scenario != "domain-il":
        assert stored["y"].bincount().tolist() == [2] * 6


def test_a_memory_of_its_own_excludes_flags_of_the_reservoir():
    for flags in ({"er_variant": "alg4"}, {"draws": "replacement"}, {"reservoir": "original"}):
        with pytest.raises(OptionError, match="belong to --memory reservoir"):
            tiny_method("er", memory="balanced", **flags)


# --- DER, DER++ -----------------------------------------------------------------------------------


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("model", ["der", "derpp"])
def test_der_equals_a_naive_transcription(model, scenario):
    weights = {"der": {"alpha": 0.7}, "derpp": {"alpha": 0.7, "beta": 0.4}}[model]
    method, twin, steps = trained(model, scenario, **weights, **FLAGS)
    memory = Reservoir(twin.buffer.generator)
    for _, batch in steps:
        outputs = twin.net(batch.x)
        loss = F.cross_entropy(outputs, batch.y)
        if memory:
            x, _, z = columns(memory.draw())
            loss = loss + 0.7 * ((twin.net(x) - z) ** 2).sum() / z.numel()
            if model == "derpp":
                x, y, _ = columns(memory.draw())
                loss = loss + 0.4 * F.cross_entropy(twin.net(x), y)
        descend(list(twin.net.parameters()), loss, LR)
        memory.offer(zip(batch.x, batch.y, outputs.detach(), strict=True))
    assert_equal_networks(method.net, twin.net)
    torch.testing.assert_close(method.buffer.stored()["logits"], columns(memory)[2].float())


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_stored_logits_are_renewed_by_the_coin_of_the_epoch(scenario):
    """Every (task, index) held has the outputs of the last epoch whose coin said so, written as a loop."""
    method, config = tiny_method("der", scenario, buffer_size=20, n_epochs=3)
    coins, expected, seen = method.setup.generator("method"), {}, {}
    observe = method.observe

    def noting(batch):
        out = observe(batch)
        keys = [(method.task.id, i) for i in batch.index.tolist()]
        tossed = torch.rand(len(keys), generator=coins).tolist() if method.epoch else [0.0] * len(keys)
        for key, coin, z in zip(keys, tossed, method.outputs, strict=True):
            seen.setdefault(key, []).append(z)
            if coin * (method.epoch + 1) < 1:
                expected[key] = z
        return out

    method.observe = noting
    train(method, config)
    held = method.buffer.stored()
    keys = list(zip(held["task_id"].tolist(), held["index"].tolist(), strict=True))
    for key, z in zip(keys, held["logits"], strict=True):
        assert torch.equal(z, expected[key])
    pairs = zip(keys, held["logits"], strict=True)
    epochs = [[torch.equal(z, s) for s in seen[key]].index(True) for key, z in pairs]
    assert len(set(epochs)) == 3 and all(len(seen[key]) == 3 for key in keys)


def test_dark_logits_of_per_task_heads_are_finite():
    method, _ = train(*tiny_method("derpp", "task-il", buffer_size=20))
    assert method.buffer.stored()["logits"].isfinite().all()


# --- ER-ACE and ER-AML ----------------------------------------------------------------------------


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_er_ace_equals_a_naive_transcription(scenario):
    method, twin, steps = trained("er_ace", scenario, **FLAGS)
    memory, met = Reservoir(twin.buffer.generator), set()
    for _, batch in steps:
        present = set(batch.y.tolist())
        if not memory:
            loss = F.cross_entropy(twin.net(batch.x), batch.y)
        else:
            x, y = columns(memory.draw())
            loss = F.cross_entropy(twin.net(x), y)
            allowed = [c for c in range(6) if c in present or c not in met]
            for logits, label in zip(twin.net(batch.x), batch.y.tolist(), strict=True):
                loss = loss + (torch.logsumexp(logits[allowed], 0) - logits[label]) / len(batch.y)
        descend(list(twin.net.parameters()), loss, LR)
        memory.offer(zip(batch.x, batch.y, strict=True))
        met |= present
    assert_equal_networks(method.net, twin.net)


def test_er_ace_masks_old_classes_only():
    method, _ = tiny_method("er_ace", buffer_size=5)
    method.seen[:4] = True
    assert method.absent(torch.tensor([3, 3, 4])).tolist() == [True, True, True, False, False, False]


def naive_contrast(net, batch, memory, draws: torch.Generator, temperature: float):
    """The stream's loss, sample by sample; None where no sample has a positive and a negative."""
    pool = [*((x, int(y)) for x, y in memory), *((x, int(y)) for x, y in zip(batch.x, batch.y, strict=True))]
    n, first, labels = len(batch.y), len(memory), batch.y.tolist()
    chances = torch.rand(2 * n, generator=draws).tolist()
    pairs = []
    for i, label in enumerate(labels):
        positives = [j for j, (_, y) in enumerate(pool) if y == label and j != first + i]
        negatives = [j for j, (_, y) in enumerate(pool) if y != label and y in labels]
        if positives and negatives:
            p, q = int(chances[i] * len(positives)), int(chances[n + i] * len(negatives))
            pairs.append((i, [positives[p], negatives[q]]))
    if not pairs:
        return torch.tensor(0.0)
    others = [pool[chosen[k]] for k in (0, 1) for _, chosen in pairs]
    f = [F.normalize(net.features(x[None])[0], dim=0) for x, _ in others]
    total = 0.0
    for i, _ in pairs:
        h = F.normalize(net.features(batch.x[i][None])[0], dim=0)
        similar = torch.stack([h @ g for g in f]) / temperature
        log_p = similar - torch.logsumexp(similar, 0)
        mine = [j for j, (_, y) in enumerate(others) if y == labels[i]]
        total = total - sum(log_p[j] for j in mine) / len(mine)
    return temperature / 0.07 * total / len(pairs)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_er_aml_equals_a_naive_transcription(scenario):
    method, twin, steps = trained("er_aml", scenario, supcon_temperature=0.3, **FLAGS)
    memory = Reservoir(twin.buffer.generator)
    for _, batch in steps:
        if not memory:
            loss = F.cross_entropy(twin.net(batch.x), batch.y)
        else:
            x, y = columns(memory.draw())
            loss = F.cross_entropy(twin.net(x), y)
            loss = loss + naive_contrast(twin.net, batch, memory, twin.draws, 0.3)
        descend(list(twin.net.parameters()), loss, LR)
        memory.offer(zip(batch.x, batch.y, strict=True))
    assert_equal_networks(method.net, twin.net)


def test_supcon_counts_valid_anchors_and_their_pairs_only():
    """With some anchors out, the loss is that of the others alone; with all out it is 0, gradient and all."""
    draws = torch.Generator().manual_seed(0)
    h, f = (F.normalize(torch.randn(n, 3, generator=draws, dtype=torch.float64), dim=1) for n in (4, 8))
    y, y_f = torch.tensor([0, 1, 0, 1]), torch.tensor([0, 1, 0, 1, 1, 0, 1, 0])
    valid, kept = torch.tensor([True, False, True, True]), torch.tensor([0, 2, 3])
    pairs = torch.cat((kept, 4 + kept))
    alone = supcon(h[kept], f[pairs], y[kept], y_f[pairs], torch.ones(3, dtype=torch.bool), 0.3)
    torch.testing.assert_close(supcon(h, f, y, y_f, valid, 0.3), alone)
    h.requires_grad_()
    nothing = supcon(h, f, y, y_f, torch.zeros(4, dtype=torch.bool), 0.3)
    nothing.backward()
    assert nothing == 0 and not h.grad.any()


def test_er_aml_draws_pairs_uniformly():
    """Each possible positive and negative about as often: 4.5 standard errors, false alarm < 1e-4."""
    method, _ = tiny_method("er_aml", buffer_size=5)
    pool = torch.tensor([0, 1, 1, 2, 0, 1, 0])  # the last two are the batch
    counts = torch.zeros(4, len(pool))
    for _ in range(4000):
        places, valid = method.pairs(pool, 2)
        assert valid.all()
        counts[torch.arange(4), places] += 1
    for row, allowed in zip(counts, ([1, 2], [0, 4], [0, 4, 6], [1, 2, 5]), strict=True):
        assert row.sum() == row[allowed].sum()
        p = 1 / len(allowed)
        assert ((row[allowed] / 4000 - p).abs() < 4.5 * (p * (1 - p) / 4000) ** 0.5).all()


# --- A-GEM-R, MIR, GSS ----------------------------------------------------------------------------


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
    candidates = augmented(method, method.buffer.sample(10))
    before = {name: b.clone() for name, b in method.net.named_buffers()}
    assert len(before) > 10
    method.interference(candidates)
    assert all(torch.equal(b, before[name]) for name, b in method.net.named_buffers())


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


# --- FDR, full buffer, cumulative -----------------------------------------------------------------


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_fdr_equals_a_naive_transcription(scenario):
    method, twin, steps = trained("fdr", scenario, alpha=0.8, buffer_size=16, minibatch_size=K)
    benchmark, memory = twin.setup.benchmark, []
    for number, (task, batch) in enumerate(steps):
        loss = F.cross_entropy(twin.net(batch.x), batch.y)
        if memory:
            rows = distinct(len(memory), min(K, len(memory)), twin.buffer.generator).tolist()
            gaps = [twin.net(memory[r][0][None]).softmax(1)[0] - memory[r][1] for r in rows]
            loss = loss + 0.8 * sum(((gap**2).sum() + 1e-12).sqrt() for gap in gaps) / len(gaps)
        descend(list(twin.net.parameters()), loss, LR)
        if number + 1 == len(steps) or steps[number + 1][0] != task:
            share = {0: [16], 1: [8, 8], 2: [6, 5, 5]}[task]
            samples = benchmark.train(benchmark.tasks[task])
            rows = distinct(len(samples.y), share[-1], twin.draws)
            x = benchmark.augment.normalise(samples.x_raw[rows])
            p = twin.net(x).softmax(1).detach()
            kept = [s for t in range(task) for s in [m for m in memory if m[2] == t][: share[t]]]
            memory = [*kept, *((a, b, task) for a, b in zip(x, p, strict=True))]
    assert_equal_networks(method.net, twin.net)
    assert method.buffer.stored()["task_id"].bincount().tolist() == [6, 5, 5]
    torch.testing.assert_close(method.buffer.stored()["p"], torch.stack([m[1] for m in memory]))


@pytest.mark.parametrize("order", ["uniform", "grasp"])
def test_the_full_buffer_holds_all_past_tasks_and_replays_them(order):
    method, config = tiny_method("full_buffer", order=order, n_epochs=2)
    replayed, queued, replay = [], [], method.replay

    def noting():
        queued.append(len(method.queue))
        found = replay()
        replayed.append((method.task.id, None if found is None else found.task_id.tolist()))
        return found

    method.replay = noting
    train(method, config)
    stored, benchmark = method.buffer.stored(), method.setup.benchmark
    assert sorted(stored["index"].tolist()) == list(range(benchmark.n_train))
    assert all(found is None for task, found in replayed if task == 0)
    later = [(task, found) for task, found in replayed if task > 0]
    assert all(len(found) == config.train.batch_size and max(found) < task for task, found in later)
    assert {t for task, found in later if task == 2 for t in found} == {0, 1}
    steps = 2 * 8  # epochs × steps: as many are queued as are needed
    assert queued == [0] * steps + 2 * [4 * n * (order == "grasp") for n in range(steps, 0, -1)]
    assert train(*tiny_method("full_buffer", order=order, n_epochs=2))[1].memory[1]["per_task"] == [30, 30, 0]


def test_cumulative_presents_all_tasks_so_far():
    method, config = tiny_method("cumulative")
    met = []
    observe = method.observe
    method.observe = lambda batch: met.append((method.task.id, batch.task_id.tolist())) or observe(batch)
    _, results = train(method, config)
    for task in range(3):
        drawn = [t for own, ids in met if own == task for t in ids]
        assert [drawn.count(t) for t in range(3)] == [30 if t <= task else 0 for t in range(3)]
    assert torch.tensor(results.R["class_il"]).isfinite().tril().sum() == 6
