"""Networks that follow a stream: reservoirs, and training against a plain loop for one network."""

import io
import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from engram.memorization import cli, stream_scores
from engram.memorization.store import NetworkStore
from engram.memorization.stream import Reservoirs, StreamTraining, halves, task_of
from engram.memorization.train_stream import StreamConfig
from engram.memorization.training import build_network, epoch_order, learning_rate, train_to_end
from engram.utils import checkpoint, seeding
from engram.utils.errors import UserError
from tests.unit.test_stacked_networks import tiny_data

CLASSES = [(3, 0), (1, 5), (4, 2)]


def options(*flags: str) -> StreamConfig:
    return cli.parse("test", "", StreamConfig, ["--backbone", "mlp", "--hidden_sizes", "8", *flags])


def keep_half(labels: np.ndarray, seed: int) -> np.ndarray:
    return np.random.RandomState(seed).permutation(len(labels))[: len(labels) // 2]


def test_each_network_leaves_out_its_own_half_of_every_task():
    data = tiny_data()
    task_rows = halves(data, [0, 1], CLASSES, keep_half)
    for task, rows in enumerate(task_rows):
        assert rows.shape == (2, 15)
        assert set(data.labels[rows.flatten()].tolist()) == set(CLASSES[task])
        assert rows[0].tolist() != rows[1].tolist()
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
        assert memory.slots[:, : len(memory)].tolist() == lists
    assert len(memory) == min(size, 40)
    taken = memory.sample(torch.tensor([[0.0, 0.999]] * 3))
    assert taken.tolist() == [[own[0], own[-1]] for own in lists]


@pytest.mark.parametrize("buffer_size", [0, 7])
def test_a_cohort_follows_the_stream_as_its_networks_alone(buffer_size):
    """The same outputs after each task as one network trained in a plain loop with its own memory."""
    settings = options(
        "--n_epochs", "3", "--batch_size", "6", "--buffer_size", str(buffer_size), "--lr", "0.05"
    )
    data, repeats = tiny_data(), [2, 0]
    task_rows = halves(data, repeats, CLASSES, keep_half)
    training = StreamTraining(settings, data, repeats, task_rows, CLASSES)
    while not training.finished:
        training.run_epoch()
    for k, repeat in enumerate(repeats):
        expected = plain_stream(settings, data, repeat, [rows[k] for rows in task_rows], buffer_size)
        for name, values in expected.items():
            torch.testing.assert_close(
                training.outputs[name][:, k], values, rtol=1e-3, atol=1e-3, equal_nan=True
            )


def plain_stream(settings, data, repeat, task_rows, buffer_size):
    """One network, one image at a time into the batch, its memory a list."""
    net, recipe, held, n_seen = build_network(settings, data, repeat), settings.recipe, [], 0
    out = {name: torch.full((3, 90), torch.nan) for name in ("loss", "task_loss", "correct")}

    def draws(purpose, n, *keys):
        generator = seeding.generator(recipe.seed, purpose, repeat, *keys)
        return torch.rand(n, generator=generator, dtype=torch.float64).tolist()

    for task, epoch in itertools.product(range(3), range(recipe.n_epochs)):
        if not epoch:
            optimizer = torch.optim.SGD(net.parameters(), lr=recipe.lr, momentum=0.9, weight_decay=1e-6)
            entering = draws("buffer", len(task_rows[task]), task)
        optimizer.param_groups[0]["lr"] = learning_rate(recipe, epoch)
        order = epoch_order(task_rows[task], recipe.seed, repeat, task, epoch).tolist()
        n, n_steps = len(order), -(-len(order) // 6)
        replay = draws("replay", n_steps * 6, task, epoch)
        cut = data.draws(n + n_steps * 6 * bool(buffer_size), recipe.seed, repeat, task, epoch)
        for start in range(0, n, 6):
            chosen = list(enumerate(order))[start : start + 6]
            replayed = [held[int(u * len(held))] for u in replay[start : start + 6]] if held else []
            chosen += [(n + start + j, row) for j, row in enumerate(replayed)]
            x = torch.stack([augmented(data, row, cut, position) for position, row in chosen])
            optimizer.zero_grad()
            F.cross_entropy(net(x), data.labels[[row for _, row in chosen]]).backward()
            optimizer.step()
            for position in range(start, min(start + 6, n)) if buffer_size and not epoch else ():
                slot = n_seen if n_seen < buffer_size else int(entering[position] * (n_seen + 1))
                held[slot : slot + 1] = [order[position]] if slot < buffer_size else []
                n_seen += 1
        if epoch == recipe.n_epochs - 1:
            look(net, data, task, out)
    return out


def augmented(data, row, cut, position):
    image = F.pad(data.images[row], (1, 1, 1, 1))
    top, left = cut.top[position], cut.left[position]
    image = image[:, top : top + 6, left : left + 6]
    return (image.flip(2) if cut.mirrored[position] else image) / 255


@torch.no_grad()
def look(net, data, task, out):
    for i in range(90):
        label = int(data.labels[i])
        own = next(t for t, classes in enumerate(CLASSES) if label in classes)
        if own > task:
            continue
        logits = net(data.images[i : i + 1] / 255)[0]
        seen = [c for classes in CLASSES[: task + 1] for c in classes]
        out["loss"][task, i] = -logits[seen].log_softmax(0)[seen.index(label)]
        out["task_loss"][task, i] = -logits[list(CLASSES[own])].log_softmax(0)[CLASSES[own].index(label)]
        out["correct"][task, i] = float(max(seen, key=logits.tolist().__getitem__) == label)


def test_a_stream_continues_bit_for_bit():
    settings, data = options("--n_epochs", "2", "--buffer_size", "5"), tiny_data()
    task_rows = halves(data, [0, 1], CLASSES, keep_half)
    whole = StreamTraining(settings, data, [0, 1], task_rows, CLASSES)
    resumed = StreamTraining(settings, data, [0, 1], task_rows, CLASSES)
    for _ in range(3):
        whole.run_epoch()
    file = io.BytesIO()
    torch.save(whole.state_dict(), file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed.load_state_dict(saved)
    while not whole.finished:
        whole.run_epoch()
        resumed.run_epoch()
    for name, values in whole.outputs.items():
        assert torch.equal(torch.nan_to_num(values, -1), torch.nan_to_num(resumed.outputs[name], -1)), name


def test_scores_over_time_are_the_estimator_at_each_time():
    rng = np.random.default_rng(0)
    outputs = {name: rng.random((3, 8, 4)).astype(np.float32) for name in ("loss", "task_loss", "correct")}
    outputs["loss"][0, :, 2:] = np.nan
    member = np.array([rng.permutation(8) < 4 for _ in range(4)]).T
    found = stream_scores.scores_over_time(outputs, member)
    p = np.exp(-outputs["loss"][1].astype(float))
    expected = [p[member[:, i], i].mean() - p[~member[:, i], i].mean() for i in range(4)]
    assert found["in_stream"][1] == pytest.approx(np.array(expected))
    assert np.isnan(found["in_stream"][0, 2:]).all() and np.isfinite(found["in_stream"][0, :2]).all()
    assert found["task_il_in_stream"].shape == (3, 4)


def test_a_floor_is_said():
    """Two tasks of two examples: at the end those of the first are given to the second's classes."""
    task, scores = np.array([0, 0, 1, 1]), np.array([[0.4, 0.2, np.nan, np.nan], [0.0, 0.0, 0.3, 0.1]])
    arrays = {"in_stream": scores, "task_il_in_stream": scores + 0.1}
    for lowest, n_warnings in ((1e-6, 1), (0.2, 0)):
        mean_in = np.array([[0.9, 0.8, np.nan, np.nan], [lowest, lowest, 0.9, 0.9]])
        text = stream_scores.summary(arrays | {"mean_in": mean_in}, task)
        assert text.count("WARNING: at the end networks give the labels of earlier tasks") == n_warnings
        assert text.splitlines()[1:3] == ["   0   30.0", "   1    0.0   20.0"]
        assert text.splitlines()[4:6] == ["   0   40.0", "   1   10.0   30.0"]
    at_the_end = np.where(task == 0, np.nan, 0.2)
    views = dict.fromkeys(("in_stream", "task_il_in_stream"), np.stack([np.full(4, np.nan), at_the_end]))
    text = stream_scores.summary(views | {"mean_in": at_the_end[None]}, task)
    assert text.splitlines()[1:3] == ["   0      –", "   1      –   20.0"], "nobody measured the first task"
    one = stream_scores.floor_warning(np.array([0.0, 0.0]), np.array([0, 0]))
    assert one == [], "a single task has no earlier ones"


def test_an_interrupted_stream_goes_on_from_its_checkpoint(tmp_path):
    """As its job does it: stopped after two epochs, then called again with the same file."""
    settings, data = options("--n_epochs", "2", "--buffer_size", "5"), tiny_data()
    task_rows = halves(data, [0, 1], CLASSES, keep_half)

    class KilledError(Exception):
        pass

    shares: list[float] = []

    def stop(share: float) -> None:
        shares.append(share)
        if len(shares) == 3:
            raise KilledError

    with pytest.raises(KilledError):
        train_to_end(StreamTraining(settings, data, [0, 1], task_rows, CLASSES), tmp_path / "c.pt", 0, stop)
    whole, resumed = (StreamTraining(settings, data, [0, 1], task_rows, CLASSES) for _ in range(2))
    train_to_end(resumed, tmp_path / "c.pt", 0, shares.append)
    assert shares[3:] == pytest.approx([2 / 6, *[1 / 6] * 4]), "two of six epochs were in the checkpoint"
    train_to_end(whole, tmp_path / "none.pt", 99, lambda share: None)
    for name, values in whole.outputs.items():
        assert torch.equal(torch.nan_to_num(values, -1), torch.nan_to_num(resumed.outputs[name], -1)), name


def test_outputs_of_another_network_are_refused(tmp_path):
    path, shape = tmp_path / "3.pt", (2, 5)
    outputs = {name: torch.rand(shape) for name in stream_scores.OUTPUTS}
    for content in (outputs, outputs | {"repeat": 3}):  # the first is of before files named their repeat
        checkpoint.write(content, path)
        assert stream_scores.read_outputs(path, 3, shape)["loss"].tolist() == outputs["loss"].tolist()
    for wrong in ({"repeat": 4}, {"loss": torch.rand(2, 4)}, {"correct": None}, {"task_loss": "x"}):
        checkpoint.write(outputs | wrong, path)
        with pytest.raises(UserError, match=r"3\.pt: not the outputs of network 3"):
            stream_scores.read_outputs(path, 3, shape)


def test_outputs_of_another_network_are_refused_before_the_others_are_trained(tmp_path, monkeypatch):
    flags = ("--dataset", "digits", "--weights_dir", str(tmp_path), "--n_repeats", "4", "--stack", "4")
    config = options(*flags, "--out_filename", str(tmp_path / "out.npz"))
    monkeypatch.setattr(stream_scores.worker_pool, "run_jobs", lambda *arguments: pytest.fail("trained"))
    (tmp_path / "stream").mkdir()
    checkpoint.write({"repeat": 1}, tmp_path / "stream" / "0002.pt")
    with pytest.raises(UserError, match=r"0002\.pt: not the outputs of network 2"):
        stream_scores.train_and_write(config)
    (tmp_path / "stream" / "0002.pt").unlink()
    (tmp_path / "stream" / "0001.pt").symlink_to(tmp_path / "a disk that is not mounted.pt")
    with pytest.raises(UserError, match=r"0001\.pt"):  # not trained over
        stream_scores.train_and_write(config)
    assert NetworkStore(str(tmp_path)).missing(2) == [0, 1]
    (tmp_path / "networks").mkdir()
    (tmp_path / "networks" / "0001.pt").symlink_to("0001.pt")
    assert NetworkStore(str(tmp_path)).missing(2) == [0]
