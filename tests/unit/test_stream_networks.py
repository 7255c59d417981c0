"""Networks that follow a stream: reservoirs, and training against a plain loop for one network."""

import io
import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from engram.memorization import cli, train_stream
from engram.memorization.cli import MACHINE, STUDY
from engram.memorization.stream import Reservoirs, StreamTraining, halves, task_of
from engram.memorization.training import epoch_order, network, rate
from engram.utils import seeding
from tests.unit.test_stack import tiny_pool

CLASSES = [(3, 0), (1, 5), (4, 2)]


def options(*flags: str) -> cli.Options:
    groups = {"stream": train_stream.StreamOptions, **STUDY, **MACHINE}
    return cli.parse("test", "", groups, ["--model_name", "mlp", "--hidden_sizes", "8", *flags])


def keep_half(labels: np.ndarray, seed: int) -> np.ndarray:
    return np.random.RandomState(seed).permutation(len(labels))[: len(labels) // 2]


def test_each_network_leaves_out_its_own_half_of_every_task():
    pool = tiny_pool()
    parts = halves(pool, [0, 1], CLASSES, keep_half)
    for task, part in enumerate(parts):
        assert part.shape == (2, 15)
        assert set(pool.labels[part.flatten()].tolist()) == set(CLASSES[task])
        assert part[0].tolist() != part[1].tolist()
    assert task_of(torch.tensor([0, 1, 2, 3, 4, 5]), CLASSES).tolist() == [0, 1, 2, 0, 2, 1]


@pytest.mark.parametrize("size", [1, 4, 50])
def test_reservoirs_are_algorithm_r_one_by_one(size):
    """In batches, with the same draws, as Vitter's loop for each network alone."""
    rng = np.random.default_rng(size)
    memory, lists = Reservoirs(3, size, torch.device("cpu")), [[], [], []]
    offered, n_seen = 0, 0
    for n in (5, 1, 7, 7, 20):
        rows = torch.arange(offered, offered + 3 * n).view(3, n)
        chances = torch.from_numpy(rng.random((3, n)))
        offered += 3 * n
        memory.add(rows, chances)
        for k in range(3):
            for i in range(n):
                count = n_seen + i
                if count < size:
                    lists[k].append(rows[k, i].item())
                elif (slot := int(chances[k, i] * (count + 1))) < size:
                    lists[k][slot] = rows[k, i].item()
        n_seen += n
        assert memory.held[:, : len(memory)].tolist() == lists
    assert len(memory) == min(size, 40)
    taken = memory.take(torch.tensor([[0.0, 0.999]] * 3))
    assert taken.tolist() == [[own[0], own[-1]] for own in lists]


@pytest.mark.parametrize("buffer_size", [0, 7])
def test_a_cohort_follows_the_stream_as_its_networks_alone(buffer_size):
    """The same outputs after each task as one network trained in a plain loop with its own memory."""
    settings = options(
        "--n_epochs", "3", "--batch_size", "6", "--buffer_size", str(buffer_size), "--lr", "0.05"
    )
    pool, repeats = tiny_pool(), [2, 0]
    parts = halves(pool, repeats, CLASSES, keep_half)
    training = StreamTraining(settings, pool, repeats, parts, CLASSES)
    while not training.finished:
        training.run_epoch()
    for k, repeat in enumerate(repeats):
        expected = plain_stream(settings, pool, repeat, [part[k] for part in parts], buffer_size)
        for name, values in expected.items():
            torch.testing.assert_close(
                training.outputs[name][:, k], values, rtol=1e-3, atol=1e-3, equal_nan=True
            )


def plain_stream(settings, pool, repeat, parts, buffer_size):
    """One network, one image at a time into the batch, its memory a list."""
    net, recipe, held, n_seen = network(settings, pool, repeat), settings.recipe, [], 0
    out = {name: torch.full((3, 90), torch.nan) for name in ("loss", "task_loss", "correct")}

    def draws(purpose, n, *keys):
        generator = seeding.generator(recipe.seed, purpose, repeat, *keys)
        return torch.rand(n, generator=generator, dtype=torch.float64).tolist()

    for task, epoch in itertools.product(range(3), range(recipe.n_epochs)):
        if not epoch:
            optimizer = torch.optim.SGD(net.parameters(), lr=recipe.lr, momentum=0.9, weight_decay=1e-6)
            entering = draws("buffer", len(parts[task]), task)
        optimizer.param_groups[0]["lr"] = rate(recipe, epoch)
        order = epoch_order(parts[task], recipe.seed, repeat, task, epoch).tolist()
        n, n_steps = len(order), -(-len(order) // 6)
        replay = draws("replay", n_steps * 6, task, epoch)
        cut = pool.draws(n + n_steps * 6 * bool(buffer_size), recipe.seed, repeat, task, epoch)
        for start in range(0, n, 6):
            chosen = list(enumerate(order))[start : start + 6]
            again = [held[int(u * len(held))] for u in replay[start : start + 6]] if held else []
            chosen += [(n + start + j, row) for j, row in enumerate(again)]
            x = torch.stack([augmented(pool, row, cut, place) for place, row in chosen])
            optimizer.zero_grad()
            F.cross_entropy(net(x), pool.labels[[row for _, row in chosen]]).backward()
            optimizer.step()
            for place in range(start, min(start + 6, n)) if buffer_size and not epoch else ():
                slot = n_seen if n_seen < buffer_size else int(entering[place] * (n_seen + 1))
                held[slot : slot + 1] = [order[place]] if slot < buffer_size else []
                n_seen += 1
        if epoch == recipe.n_epochs - 1:
            look(net, pool, task, out)
    return out


def augmented(pool, row, cut, place):
    image = F.pad(pool.images[row], (1, 1, 1, 1))
    top, left = cut.top[place], cut.left[place]
    image = image[:, top : top + 6, left : left + 6]
    return (image.flip(2) if cut.mirrored[place] else image) / 255


@torch.no_grad()
def look(net, pool, task, out):
    for i in range(90):
        label = int(pool.labels[i])
        own = next(t for t, classes in enumerate(CLASSES) if label in classes)
        if own > task:
            continue
        logits = net(pool.images[i : i + 1] / 255)[0]
        seen = [c for classes in CLASSES[: task + 1] for c in classes]
        out["loss"][task, i] = -logits[seen].log_softmax(0)[seen.index(label)]
        out["task_loss"][task, i] = -logits[list(CLASSES[own])].log_softmax(0)[CLASSES[own].index(label)]
        out["correct"][task, i] = float(max(seen, key=logits.tolist().__getitem__) == label)


def test_a_stream_continues_bit_for_bit():
    settings, pool = options("--n_epochs", "2", "--buffer_size", "5"), tiny_pool()
    parts = halves(pool, [0, 1], CLASSES, keep_half)
    whole = StreamTraining(settings, pool, [0, 1], parts, CLASSES)
    again = StreamTraining(settings, pool, [0, 1], parts, CLASSES)
    for _ in range(3):
        whole.run_epoch()
    file = io.BytesIO()
    torch.save(whole.state_dict(), file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    again.load_state_dict(saved)
    while not whole.finished:
        whole.run_epoch()
        again.run_epoch()
    for name, values in whole.outputs.items():
        assert torch.equal(torch.nan_to_num(values, -1), torch.nan_to_num(again.outputs[name], -1)), name


def test_scores_over_time_are_the_estimator_at_each_time():
    rng = np.random.default_rng(0)
    outputs = {name: rng.random((3, 8, 4)).astype(np.float32) for name in ("loss", "task_loss", "correct")}
    outputs["loss"][0, :, 2:] = np.nan
    member = np.array([rng.permutation(8) < 4 for _ in range(4)]).T
    found = train_stream.over_time(outputs, member)
    p = np.exp(-outputs["loss"][1].astype(float))
    expected = [p[member[:, i], i].mean() - p[~member[:, i], i].mean() for i in range(4)]
    assert found["in_stream"][1] == pytest.approx(np.array(expected))
    assert np.isnan(found["in_stream"][0, 2:]).all() and np.isfinite(found["in_stream"][0, :2]).all()
    assert found["task_il_in_stream"].shape == (3, 4)
