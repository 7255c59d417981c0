"""Networks trained as one against the same networks trained alone, by a plain loop written here."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from engram.datasets.augment import Augment
from engram.memorization import cli
from engram.memorization.outputs import outputs
from engram.memorization.settings import StudyConfig
from engram.memorization.stacked_networks import (
    SingleNetwork,
    StackedNetworks,
    StackedPerceptrons,
    stack_networks,
)
from engram.memorization.store import NetworkStore
from engram.memorization.study_data import StudyData
from engram.memorization.train_splits import SplitsConfig
from engram.memorization.training import (
    CohortTraining,
    build_network,
    epoch_order,
    fastest_stack_size,
    learning_rate,
    stack_size,
    train_to_end,
)
from engram.utils import checkpoint
from engram.utils.errors import UserError
from engram.utils.scores import order_hash
from tests.conftest import synthetic_source

NETS = {
    "mlp": ["--backbone", "mlp", "--hidden_sizes", "8"],
    "cnn": ["--backbone", "cnn", "--channels", "4,5"],
    "resnet": ["--backbone", "resnet18", "--model_width", "0.0625"],
}


def tiny_data(augment: Augment | None = None) -> StudyData:
    source = synthetic_source()
    return StudyData(
        "tiny", source.train_x, source.train_y, np.arange(90), source.test_x, source.test_y, 6,
        source.classes, augment or Augment(crop_padding=1, flip=True), 90, order_hash(source.train_y),
    )  # fmt: skip


def options(*flags: str) -> StudyConfig:
    return cli.parse("test", "", StudyConfig, list(flags))


def examples_of(repeats: list[int], n: int = 21) -> tuple[list[int], torch.Tensor]:
    """The repeats, and the rows of their examples."""
    rows = [torch.randperm(90, generator=torch.Generator().manual_seed(r))[:n] for r in repeats]
    return repeats, torch.stack(rows)


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("shared", [False, True])
def test_a_stack_gives_what_its_networks_give(name, shared):
    settings, data = options(*NETS[name]), tiny_data()
    nets = [build_network(settings, data, r).eval() for r in range(3)]
    x = torch.rand(3, 5, 1, 6, 6) if not shared else torch.rand(5, 1, 6, 6)
    expected = torch.stack([net(x if shared else x[k]) for k, net in enumerate(nets)])
    stacked = stack_networks(nets).train(False)
    assert type(stacked) is (StackedPerceptrons if name == "mlp" else StackedNetworks)
    torch.testing.assert_close(stacked.logits(x, shared), expected, rtol=1e-4, atol=1e-5)
    alone = stack_networks(nets[:1]).train(False)
    assert type(alone) is SingleNetwork
    torch.testing.assert_close(
        alone.logits(x if shared else x[:1], shared), expected[:1], rtol=1e-4, atol=1e-5
    )


def plain_training(settings, data: StudyData, repeat: int, rows: torch.Tensor) -> dict[str, torch.Tensor]:
    """One network, one image at a time into the batch, torch's own schedule; of ours the draws."""
    net, recipe = build_network(settings, data, repeat), settings.recipe
    optimizer = torch.optim.SGD(
        net.parameters(), lr=recipe.lr, momentum=recipe.optim_mom, weight_decay=recipe.optim_wd
    )
    schedule = torch.optim.lr_scheduler.MultiStepLR(
        optimizer, [round(0.7 * recipe.n_epochs), round(0.9 * recipe.n_epochs)], gamma=0.1
    )
    padding = data.augment.crop_padding
    for epoch in range(recipe.n_epochs):
        order = epoch_order(rows, recipe.seed, repeat, epoch).tolist()
        draws = data.draws(len(order), recipe.seed, repeat, epoch)
        for start in range(0, len(order), recipe.batch_size):
            images = []
            for position in range(start, min(start + recipe.batch_size, len(order))):
                image = F.pad(data.images[order[position]], (padding,) * 4)
                top, left = draws.top[position], draws.left[position]
                image = image[:, top : top + 6, left : left + 6]
                images.append((image.flip(2) if draws.mirrored[position] else image) / 255)
            y = data.labels[order[start : start + recipe.batch_size]]
            optimizer.zero_grad()
            F.cross_entropy(net(torch.stack(images)), y).backward()
            optimizer.step()
        schedule.step()
    return net.state_dict()


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("repeats", [[4], [3, 0, 7]])
def test_a_cohort_ends_where_its_networks_end_alone(name, repeats):
    """The same weights and running statistics up to rounding, after 10 epochs with both rate changes.

    Normalisation over a handful of values blows up rounding: the ResNet goes slower and less far.
    """
    pace = ["--n_epochs", "2", "--lr", "0.001"] if name == "resnet" else ["--n_epochs", "10", "--lr", "0.02"]
    flags = [*pace, "--batch_size", "8", "--optim_wd", "0.01"]
    settings, data, group = options(*NETS[name], *flags), tiny_data(), examples_of(repeats)
    training = CohortTraining(settings, data, *group)
    while not training.finished:
        training.run_epoch()
    for k, (repeat, found) in enumerate(zip(repeats, training.stack.state_dicts(), strict=True)):
        expected = plain_training(settings, data, repeat, group[1][k])
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize("name", NETS)
def test_a_training_continues_bit_for_bit(name, tmp_path):
    settings, data, group = options(*NETS[name], "--n_epochs", "4"), tiny_data(), examples_of([0, 1])
    whole = CohortTraining(settings, data, *group)
    train_to_end(whole, tmp_path / "none.pt", 99, lambda share: None)

    class KilledError(Exception):
        pass

    def stop(share):
        stop.left -= 1
        if not stop.left:
            raise KilledError

    stop.left = 3
    with pytest.raises(KilledError):
        train_to_end(CohortTraining(settings, data, *group), tmp_path / "part.pt", 0, stop)
    resumed, shares = CohortTraining(settings, data, *group), []
    train_to_end(resumed, tmp_path / "part.pt", 0, shares.append)
    assert shares == [0.5, 0.25, 0.25], "two epochs were in the checkpoint"
    checkpoint.write({"weights": {}}, tmp_path / "foreign.pt")
    with pytest.raises(UserError, match=r"foreign\.pt: not a checkpoint of these networks"):
        train_to_end(CohortTraining(settings, data, *group), tmp_path / "foreign.pt", 0, shares.append)
    for a, b in zip(whole.stack.state_dicts(), resumed.stack.state_dicts(), strict=True):
        for key in a:
            assert torch.equal(a[key], b[key])


def test_the_papers_schedule():
    recipe = options("--n_epochs", "50", "--lr", "0.1").recipe
    assert [learning_rate(recipe, e) for e in (0, 34, 35, 44, 45, 49)] == pytest.approx(
        [0.1, 0.1, 0.01, 0.01, 1e-3, 1e-3]
    )


def test_outputs_are_losses_and_hits_of_clean_images():
    settings, data = options(*NETS["mlp"]), tiny_data()
    nets = [build_network(settings, data, r) for r in range(2)]
    loss, hits = outputs(stack_networks(nets), data.images, data.labels, data.augment)
    for k, net in enumerate(nets):
        logits = net.eval()(data.images / 255)
        torch.testing.assert_close(loss[k], F.cross_entropy(logits, data.labels, reduction="none"))
        assert torch.equal(hits[k], logits.argmax(1) == data.labels)


@pytest.mark.parametrize("margin", [5.0, 18.0, 25.0])
def test_losses_of_confident_networks_are_told_apart(margin):
    """Against the closed form for two classes, log(1 + exp(-margin)); float32 has 0 from 17 on."""

    class Sure(torch.nn.Module):
        def forward(self, x):
            return torch.tensor([margin, 0.0]).expand(len(x), 2)

    raw = torch.zeros(3, 1, 2, 2, dtype=torch.uint8)
    loss, _ = outputs(stack_networks([Sure()]), raw, torch.zeros(3, dtype=torch.long), Augment())
    assert loss.dtype == torch.float32
    assert loss.tolist() == [[pytest.approx(np.log1p(np.exp(-margin)), rel=1e-4, abs=0)] * 3]


# --- dropout ----------------------------------------------------------------------------------------


def alexnet(dropout: float, *flags: str) -> StudyConfig:
    small = ["--backbone", "alexnet", "--width", "0.03", "--lr", "0.01", "--batch_size", "8"]
    return options(*small, "--dropout", str(dropout), *flags)


def test_alexnets_without_dropout_are_stacked_and_taken_apart():
    settings, data, group = alexnet(0, "--n_epochs", "1"), tiny_data(), examples_of([3, 0], 16)
    training = CohortTraining(settings, data, *group)
    training.run_epoch()
    for k, weights in enumerate(training.stack.state_dicts()):
        net = build_network(settings, data, group[0][k])
        net.load_state_dict(weights)
        expected = plain_training(settings, data, group[0][k], group[1][k])
        for name, value in expected.items():
            torch.testing.assert_close(net.state_dict()[name], value, rtol=1e-3, atol=2e-4)


def test_dropout_continues_with_the_mask_that_comes_next(tmp_path):
    settings, data, group = alexnet(0.5, "--n_epochs", "2"), tiny_data(), examples_of([0], 16)
    whole, half = CohortTraining(settings, data, *group), CohortTraining(settings, data, *group)
    train_to_end(whole, tmp_path / "none.pt", 99, lambda share: None)
    half.run_epoch()
    checkpoint.write(half.state_dict(), tmp_path / "half.pt")
    resumed = CohortTraining(settings, data, *group)
    train_to_end(resumed, tmp_path / "half.pt", 99, lambda share: None)
    (expected,), (found,) = whole.stack.state_dicts(), resumed.stack.state_dicts()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_networks_with_dropout_are_not_trained_as_one():
    data = tiny_data()
    assert stack_size(alexnet(0.5), data, 20, 16) == 1
    assert stack_size(alexnet(0.5, "--stack", "1"), data, 20, 16) == 1
    assert stack_size(alexnet(0, "--stack", "3"), data, 20, 16) == 3
    message = "--stack 3: networks with dropout are trained one by one.* add --dropout 0"
    with pytest.raises(UserError, match=message):
        stack_size(alexnet(0.5, "--stack", "3"), data, 20, 16)
    with pytest.raises(UserError, match=message):
        stack_networks([build_network(alexnet(0.5), data, repeat) for repeat in range(3)])


def test_the_number_to_stack_is_measured(monkeypatch):
    settings, data = options(*NETS["mlp"]), tiny_data()
    costs = {1: 1.0, 4: 2.0, 16: 20.0}
    monkeypatch.setattr("engram.memorization.training.SLOW_STEP", 5.0)
    monkeypatch.setattr("engram.memorization.training.seconds_per_step", lambda o, p, n, size: costs[size])
    assert fastest_stack_size(settings, data, 20, 16) == 4
    assert fastest_stack_size(settings, data, 20, 3) == 1
    costs[1] = 0.4
    assert fastest_stack_size(settings, data, 20, 16) == 1


def test_the_measurement_itself_runs():
    assert fastest_stack_size(options(*NETS["mlp"]), tiny_data(), 20, 4) in (1, 4)


def test_a_diverging_network_is_named():
    settings = options(*NETS["mlp"], "--lr", "1e9", "--n_epochs", "9")
    training = CohortTraining(settings, tiny_data(), *examples_of([5, 6]))
    with pytest.raises(ValueError, match=r"network 5: the loss became nan in epoch \d; try a smaller --lr"):
        while not training.finished:
            training.run_epoch()


@pytest.mark.parametrize(("name", "size"), [("mlp", 1), ("mlp", 3), ("cnn", 1), ("resnet", 1)])
def test_networks_compute_in_the_precision_asked_for_and_answer_in_float32(name, size):
    def logits(precision: str) -> torch.Tensor:
        settings, data = options(*NETS[name], "--precision", precision, "--device", "cpu"), tiny_data()
        stacked = stack_networks([build_network(settings, data, r) for r in range(size)]).train(False)
        with torch.no_grad():
            return stacked.logits(torch.linspace(-1, 1, 180).view(5, 1, 6, 6), shared=True)

    exact, lowered = logits("fp32"), logits("bf16")
    assert torch.equal(exact, logits("auto")), "on a CPU"
    assert lowered.dtype == torch.float32
    assert not torch.equal(exact, lowered)
    torch.testing.assert_close(exact, lowered, rtol=0.1, atol=0.05)


def test_convolutions_in_bf16_are_not_stacked():
    settings, data = options(*NETS["cnn"], "--precision", "bf16", "--device", "cpu"), tiny_data()
    assert stack_size(settings, data, 21, at_most=16) == 1
    with pytest.raises(UserError, match="--stack 4: convolutional networks are trained one by one with"):
        stack_size(options(*NETS["cnn"], "--precision", "bf16", "--stack", "4"), data, 21, at_most=16)


def test_the_precision_of_a_study_is_kept_and_cannot_be_changed(tmp_path):
    """`auto` stays in the settings; what it meant on the device stands beside it, and in score files."""
    flags = ["--weights_dir", str(tmp_path), "--n_repeats", "4", "--device", "cpu"]
    settings = cli.parse("train_splits", "", SplitsConfig, flags)
    kept = NetworkStore(str(tmp_path)).claim(settings, "n_repeats", stack=1)
    assert (kept["precision"], kept["computed_in"]) == ("auto", "fp32")
    assert "num_threads" not in kept
    cli.parse("train_splits", "", SplitsConfig, [*flags, "--precision", "auto", "--num_threads", "2"])
    with pytest.raises(UserError, match="--precision bf16: the networks in --weights_dir were trained with"):
        cli.parse("train_splits", "", SplitsConfig, [*flags, "--precision", "bf16"])
