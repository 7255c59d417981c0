"""Training samples without a label or with a wrong one, and tasks that end early on the loss."""

import numpy as np
import pytest
import torch

from engram.datasets import scenarios
from engram.utils.config.config import TrainOptions
from engram.utils.errors import UserError
from engram.utils.training.early_stopping import EarlyStopping
from engram.utils.training.evaluation import mean_loss
from tests.conftest import built, tiny_config


def test_a_share_of_each_class_keeps_its_labels():
    y = np.repeat([0, 1, 2], [100, 40, 1])
    positions = np.arange(141)[::-1]
    labelled = scenarios.labelled(positions, y, 0.25, seed=0, task=0)
    assert np.bincount(y[labelled]).tolist() == [25, 10, 1], "at least one of every class"
    assert (np.diff(labelled) < 0).all(), "in the order they had"
    assert not np.array_equal(labelled, scenarios.labelled(positions, y, 0.25, seed=1, task=0))
    assert np.array_equal(labelled, scenarios.labelled(positions, y, 0.25, seed=0, task=0))


def test_a_run_learns_from_labelled_samples_alone():
    whole, half = (built(tiny_config("sgd", n_tasks=5, label_perc=share)).benchmark for share in (1, 0.5))
    for all_samples, labelled in zip(whole.tasks, half.tasks, strict=True):
        counts = [whole.source_labels[t.train_index].bincount(minlength=10) for t in (all_samples, labelled)]
        assert counts[1].tolist() == [round(0.5 * n) for n in counts[0].tolist()]
        assert torch.equal(all_samples.test_index, labelled.test_index)


@pytest.mark.parametrize("scenario", ["class-il", "domain-il"])
def test_label_noise_gives_a_share_of_each_class_another_class_of_its_task(scenario):
    clean, noisy = (
        built(tiny_config("sgd", n_tasks=5, noise_rate=rate, scenario=scenario)).benchmark
        for rate in (0.0, 0.4)
    )
    for before, after in zip(clean.tasks, noisy.tasks, strict=True):
        y, changed = clean.train(before).y, noisy.train(after).y
        assert set(changed.tolist()) <= set(after.classes)
        counts = [(changed != y)[y == c].sum().item() for c in before.classes]
        assert counts == [round(0.4 * n) for n in (y.bincount()[list(before.classes)].tolist())]
        assert torch.equal(clean.test_of(before).y, noisy.test_of(after).y), "test labels stay"
    wrong = noisy.transforms["wrong_labels"][0]
    assert noisy.notes == [f"{wrong} of {clean.n_train} training labels are wrong (--noise_rate 0.4)"]
    again = built(tiny_config("sgd", n_tasks=5, noise_rate=0.4, scenario=scenario)).benchmark
    other = built(tiny_config("sgd", n_tasks=5, noise_rate=0.4, scenario=scenario, seed=1)).benchmark
    labels = [benchmark.train(benchmark.tasks[0]).y for benchmark in (noisy, again, other)]
    assert torch.equal(*labels[:2]) and not torch.equal(*labels[::2])
    with pytest.raises(UserError, match="task 0 has one class"):
        built(tiny_config("sgd", n_tasks=10, noise_rate=0.4))


def test_early_stopping_on_the_loss_goes_on_while_the_loss_falls(monkeypatch):
    """The network says the task's first class, less and less surely: only the loss gets better."""
    method = built(tiny_config("sgd", n_tasks=5))
    task = method.benchmark.tasks[1]
    logits = torch.full((method.benchmark.n_classes,), 99.0)  # of other tasks' classes, which do not count
    monkeypatch.setattr(method, "predict", lambda x, task_id: logits.expand(len(x), -1))
    stopping = {
        metric: EarlyStopping(TrainOptions(early_stopping_patience=1, early_stopping_metric=metric))
        for metric in ("accuracy", "loss")
    }
    for lead, ended in ((1.0, []), (0.5, ["accuracy"]), (2.0, ["accuracy", "loss"])):
        logits[list(task.classes)] = torch.tensor([lead, 0.0])
        n_first, n_second = torch.bincount(method.benchmark.test_of(task).y - task.classes[0]).tolist()
        wanted = (n_first * np.log1p(np.exp(-lead)) + n_second * np.log1p(np.exp(lead))) / (
            n_first + n_second
        )
        assert mean_loss(method, task.parts) == pytest.approx(wanted, abs=1e-6)
        assert [metric for metric, by in stopping.items() if by.ends(method, task)] == ended
