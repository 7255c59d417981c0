"""`--train_classes`: which classes compete in the training softmax of a class-IL stream, for every method."""

import re
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from engram.models.method import check_scenario
from engram.models.parts import fisher
from engram.models.sgd import SGD
from engram.utils.config import cli
from engram.utils.errors import UserError
from tests.conftest import built, methods_with_code, tiny_config, tiny_method
from tests.contract.test_methods import assert_same, classes_of, small_method, train, weights

METHODS = [m for m in methods_with_code() if "class-il" in classes_of(m).scenarios]
FREE = [m for m in METHODS if not classes_of(m).chooses_classes]
LIMITED = ("seen", "task")
CHOOSING = [m for m in METHODS if classes_of(m).train_classes != "all"]
# All classes are seen in a joint stream, and in the memory that gdumb is trained on after the last task.
SAME = {("joint", "seen"), ("gdumb", "seen")}
# The classes of a sample of the second of three tasks of two classes, under each choice.
COLUMNS = {"all": slice(0, 6), "seen": slice(0, 4), "task": slice(2, 4)}


@pytest.mark.parametrize("classes", LIMITED)
@pytest.mark.parametrize("model", FREE)
def test_a_run_completes_and_all_weights_stay_finite(model, classes):
    """The classes left out cost no NaN, and the flag is not ignored: the weights are others than without."""
    method, results = train(*small_method(model, "class-il", train_classes=classes))
    assert all(torch.isfinite(v).all() for v in weights(method).values() if v.is_floating_point())
    assert (results.R["class_il"][-1] >= 0).all()
    plain = weights_without_flag(model)
    moved = max((v.double() - plain[n].double()).abs().max() for n, v in weights(method).items())
    assert (moved > 1e-3) == ((model, classes) not in SAME)  # another order of sums moves less


@cache
def weights_without_flag(model: str) -> dict[str, Tensor]:
    return weights(train(*small_method(model, "class-il", train_classes="all"))[0])


@pytest.mark.parametrize("model", CHOOSING)
def test_a_methods_own_choice_holds_where_none_is_given(model):
    assert small_method(model, "class-il")[0].benchmark.train_classes == classes_of(model).train_classes


@pytest.fixture
def choosing(monkeypatch) -> None:
    """Plain SGD chooses the classes of its task."""
    monkeypatch.setattr(SGD, "train_classes", "task")


def test_a_method_may_choose_the_classes(choosing):
    assert tiny_config("sgd").flat()["train_classes"] == "task"
    method, batch = in_second_task("sgd", None)
    logits = method.net(batch.x, batch.task_id)[:, COLUMNS["task"]]
    torch.testing.assert_close(method.loss(batch), F.cross_entropy(logits, batch.y - 2))


@pytest.mark.parametrize("given", [{"train_classes": "all"}, {"train_classes": "seen"}])
def test_a_flag_wins_over_what_the_method_chooses(choosing, given):
    assert tiny_config("sgd", **given).flat()["train_classes"] == given["train_classes"]
    assert tiny_method("sgd", **given)[0].benchmark.train_classes == given["train_classes"]


@pytest.mark.parametrize("scenario", ["domain-il", "task-il"])
def test_outside_class_il_what_the_method_chooses_is_no_error(choosing, scenario):
    assert tiny_method("sgd", scenario)[0].benchmark.train_classes == "all"
    with pytest.raises(UserError, match="--train_classes seen chooses"):
        tiny_method("sgd", scenario, train_classes="seen")


def test_the_help_shows_what_the_method_chooses(choosing, capsys):
    with pytest.raises(SystemExit):
        cli.parse(["--model", "sgd", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert re.search(r"--train_classes .*? of prompts choose task \(default: task\)", text)


@pytest.mark.parametrize("model", [m for m in METHODS if m not in FREE])
def test_a_method_with_classes_of_its_own_refuses_in_one_line(model):
    for classes in LIMITED:
        method, _ = small_method(model, "class-il", train_classes=classes)
        with pytest.raises(UserError, match=rf"{model} chooses .* leave --train_classes {classes} out$"):
            check_scenario(type(method), model, method.benchmark)


@pytest.mark.parametrize("classes", LIMITED)
@pytest.mark.parametrize("scenario", ["domain-il", "task-il"])
def test_it_is_refused_outside_class_il(scenario, classes):
    with pytest.raises(UserError, match=f"--train_classes {classes} .* {scenario}; leave it out"):
        tiny_method("sgd", scenario, train_classes=classes)


def test_a_stream_without_tasks_refuses_it():
    with pytest.raises(UserError, match="--train_classes seen: mnist-360 is one stream"):
        built(tiny_config("sgd", dataset="mnist-360", n_tasks=1, train_classes="seen"))


# Not those whose head learns nothing, or with weight decay.
# A joint stream has one task with all classes.
SHARED_HEAD = [m for m in FREE if m not in ("rpc", "gdumb", "joint")]


@pytest.mark.parametrize("model", SHARED_HEAD)
def test_seen_leaves_the_outputs_of_unseen_classes_untouched_bit_for_bit(model):
    method, config = small_method(model, "class-il", train_classes="seen")
    before = outputs(method)
    train(method, config, tasks=1)
    for old, new in zip(before, outputs(method), strict=True):
        assert torch.equal(new[2:], old[2:])
        assert not torch.equal(new[:2], old[:2])


def outputs(method) -> tuple[Tensor, ...]:
    """(C, D) weights and (C,) biases of a linear head, or of one for each task side by side.

    Of a cosine head the (C, D) embeddings.
    """
    if hasattr(method.net.head, "embeddings"):
        return (torch.cat(list(method.net.head.embeddings)),)
    layers = getattr(method.net.head, "heads", [method.net.head])
    return torch.cat([layer.weight for layer in layers]), torch.cat([layer.bias for layer in layers])


@pytest.mark.parametrize("model", ["joint", "sgd"])
def test_all_classes_are_seen_where_nothing_is_still_to_come(model):
    flags = {"n_tasks": 1} if model == "sgd" else {}
    runs = [train(*small_method(model, "class-il", train_classes=c, **flags))[0] for c in ("all", "seen")]
    assert_same(weights(runs[0]), weights(runs[1]))


def in_second_task(model: str, classes: str | None, **flags):
    """A method that is about to learn the second task, and that task's first batch."""
    given = {} if classes is None else {"train_classes": classes}
    method, config = tiny_method(model, **given, **flags)
    train(method, config, tasks=1)
    method.enter(method.benchmark.tasks[1])
    return method, next(method.benchmark.batches(method.task, 0, 8))


@pytest.mark.parametrize("classes", COLUMNS)
def test_the_loss_is_the_cross_entropy_of_sliced_logits(classes):
    method, batch = in_second_task("sgd", classes)
    columns = COLUMNS[classes]
    logits = method.net(batch.x, batch.task_id)[:, columns]
    torch.testing.assert_close(method.loss(batch), F.cross_entropy(logits, batch.y - columns.start))


@pytest.mark.parametrize(("classes", "expected"), [("seen", [0, 1, 2, 3]), ("task", [0, 1])])
def test_a_replayed_sample_of_an_old_task(classes, expected):
    """Under `seen` it competes with the classes of the current task too, under `task` with its own alone."""
    method, batch = in_second_task("er", classes)
    logits = method.logits(batch.x, torch.zeros_like(batch.task_id))
    assert logits.isfinite().all(0).nonzero().view(-1).tolist() == expected
    assert logits.isfinite().any(0).sum() == len(expected)


@pytest.mark.parametrize("classes", COLUMNS)
def test_stored_logits_are_compared_over_the_classes_allowed(classes):
    method, batch = in_second_task("derpp", classes)
    outputs = method.net(batch.x, batch.task_id)
    stored = torch.linspace(-1, 1, outputs.numel()).view_as(outputs).to(outputs)
    distance = method.logit_distance(outputs, stored, batch.task_id)
    columns = COLUMNS[classes]
    torch.testing.assert_close(distance, F.mse_loss(outputs[:, columns], stored[:, columns]))
    gradients = torch.autograd.grad(distance, list(method.net.parameters()))
    assert all(g.isfinite().all() for g in gradients)


def normalised(method, raw: Tensor) -> Tensor:
    return method.benchmark.augment.normalise(raw)


def gradients(value: Tensor, parameters: dict) -> dict[str, Tensor]:
    return dict(zip(parameters, torch.autograd.grad(value, list(parameters.values())), strict=True))


@pytest.mark.parametrize("classes", COLUMNS)
@pytest.mark.parametrize("kind", ["argmax", "true", "all"])
def test_the_fisher_information_against_a_loop(kind, classes):
    """One sample, and one label among the allowed classes, at a time."""
    method, _ = in_second_task("ewc", classes)
    task, parameters = method.task, dict(method.net.named_parameters())
    samples, columns = method.benchmark.train(task), COLUMNS[classes]
    expected = {name: torch.zeros_like(p) for name, p in parameters.items()}
    for raw, label in zip(samples.x_raw, samples.y, strict=True):
        log_p = method.net(normalised(method, raw[None]), torch.tensor([1]))[0, columns].log_softmax(0)
        chosen = {"argmax": int(log_p.argmax()), "true": int(label) - columns.start}.get(kind)
        for y in range(len(log_p)) if chosen is None else [chosen]:
            weight = log_p[y].exp().detach() if chosen is None else 1.0
            value = method.net(normalised(method, raw[None]), torch.tensor([1]))[0, columns].log_softmax(0)[y]
            for name, g in gradients(value, parameters).items():
                expected[name] += weight * g.square() / len(samples.y)
    measured = fisher.of_task(method.net, method.benchmark, parameters, task, 0, method.draws, kind)
    for name, value in expected.items():
        torch.testing.assert_close(measured[name], value, rtol=1e-4, atol=1e-8)
    unseen = measured["head.weight"][4:]
    assert (unseen == 0).all() == (classes != "all")


@pytest.mark.parametrize("classes", LIMITED)
def test_labels_of_the_fisher_are_drawn_among_the_allowed_classes(classes):
    method, _ = in_second_task("ewc", classes)
    samples, columns = method.benchmark.train(method.task), COLUMNS[classes]
    drawn = fisher.sample_labels(method.net, method.benchmark, method.task, samples, method.draws)
    assert 0 <= drawn.min() < drawn.max() < columns.stop - columns.start


@pytest.mark.parametrize("classes", COLUMNS)
def test_the_importance_of_mas_is_that_of_the_allowed_outputs(classes):
    method, _ = in_second_task("mas", classes)
    parameters, columns = dict(method.net.named_parameters()), COLUMNS[classes]
    raw, expected = method.benchmark.train(method.task).x_raw, {}
    for image in raw:
        norm = method.net(normalised(method, image[None]), torch.tensor([1]))[0, columns].square().sum()
        for name, g in gradients(norm, parameters).items():
            expected[name] = expected.get(name, 0) + g.abs() / len(raw)
    measured = method.importance_of(raw, method.task)
    for name in measured:
        torch.testing.assert_close(measured[name], expected[name], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("classes", COLUMNS)
def test_local_mas_counts_the_allowed_outputs(classes):
    """Ω of the head: the mean of |output · feature|, 0 for an output outside."""
    method, _ = in_second_task("mas_local", classes)
    raw = method.benchmark.train(method.task).x_raw
    outputs = method.net(normalised(method, raw), torch.ones(len(raw), dtype=torch.long))
    kept = torch.zeros_like(outputs)
    kept[:, COLUMNS[classes]] = outputs[:, COLUMNS[classes]]
    features = method.net.features(normalised(method, raw))
    expected = kept.abs().T @ features.abs() / len(raw)
    measured = method.importance_of(raw, method.task)["head.weight"]
    torch.testing.assert_close(measured, expected.detach(), rtol=1e-4, atol=1e-7)


def test_old_tasks_are_distilled_apart_where_their_classes_do_not_compete():
    assert tiny_method("lwf", train_classes="task")[0].distill == "head"
    assert tiny_method("lwf", train_classes="seen")[0].distill == "joint"
    assert tiny_method("lwf", train_classes="task", lwf_distill="joint")[0].distill == "joint"
