"""Methods on an encoder of which something small learns (`--tune`): all else stays as it was, bit for bit."""

import io

import pytest
import torch

from engram.backbones.backbone import load_weights
from engram.models.parts.importance import shared_parameters
from engram.utils.errors import UserError
from tests.conftest import tiny_benchmark, tiny_method
from tests.contract.test_batch_independence import assert_independent
from tests.contract.test_methods import assert_same, classes_of, flags_of, steps, train, weights

pytest.importorskip("timm")
MODELS = ("sgd", "er", "ewc", "mas", "lwf", "maer", "derpp", "gem")
KINDS = {"adapter": ".adapter.", "lora": ".lora.", "ssf": ".scale_shift.", "vpt": "visual_prompts."}


def tuned(model, kind, **flags):
    """A method on timm's smallest transformer, two tokens an image, at few steps a task."""
    if "buffer_size" in flags_of(model):
        flags = {"buffer_size": 12, **flags}
    flags = {"n_iters": 2, "n_tasks": 2, **classes_of(model).quick_flags, **flags}
    return tiny_method(model, backbone="timm:test_vit", input_size=16, tune=kind, tune_size=8, **flags)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("model", MODELS)
def test_what_is_frozen_stays_and_what_is_attached_learns(model, kind):
    method, config = tuned(model, kind)
    before = {name: p.detach().clone() for name, p in method.net.named_parameters()}
    train(method, config)
    for name, after in method.net.named_parameters():
        learns = KINDS[kind] in name or name.startswith("head.")
        assert torch.equal(after, before[name]) != learns, name


@pytest.mark.parametrize("model", ["ewc", "mas", "si"])
def test_importances_are_of_what_learns(model):
    method, _ = tuned(model, "adapter")
    assert all(".adapter." in name or name.startswith("head.") for name in method.quadratic.parameters)
    assert shared_parameters(method.net, head=False).keys() < method.trainable().keys()


@pytest.mark.parametrize("kind", KINDS)
def test_predictions_depend_on_their_image_alone(kind):
    method, config = tuned("sgd", kind)
    train(method, config)
    samples = tiny_benchmark(config).test(2)
    assert_independent(method, method.benchmark.augment.normalise(samples.x_raw), samples.task_id)


def test_frozen_running_statistics_stay():
    """A network with batch norm whose head alone learns is in eval mode below it."""
    method, config = tiny_method(
        "sgd", backbone="torchvision:resnet18", input_size=32, tune="head", n_iters=2
    )
    before = {name: value.clone() for name, value in method.net.body.state_dict().items()}
    train(method, config)
    after = method.net.body.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_sgd_whose_head_alone_learns_is_the_linear_probe():
    (tuned_method, config), (probe, _) = tuned("sgd", "head"), tuned("linear_probe", "full")
    (_, results), (_, expected) = train(tuned_method, config), train(probe, config)
    assert_same(weights(tuned_method), weights(probe))
    for view, R in results.R.items():
        torch.testing.assert_close(R, expected.R[view], rtol=0, atol=0, equal_nan=True)


def test_gradients_are_compared_where_layers_see_tokens():
    """The rule of one vector a sample does not hold there."""
    method, config = tuned("gss", "adapter")
    train(method, config)


def test_second_derivatives_pass_through_attention():
    method, config = tuned("hal", "adapter")
    steps(method, config, n=1)
    method.end_task(method.benchmark.tasks[1])
    steps(method, config, n=1)
    assert method.anchors


@pytest.mark.parametrize("kind", KINDS)
def test_an_encoders_weights_are_loaded_into_one_with_something_attached(kind):
    """As --loadcheck does; what is attached stays as it begins, or is loaded where the file has it."""
    plain, attached = (tuned("sgd", k, seed=s)[0].net for k, s in (("full", 1), (kind, 0)))
    begins = {name: p.detach().clone() for name, p in attached.attached().items()}
    load_weights(attached, plain.state_dict(), attached.attached())
    state = attached.state_dict()
    assert all(torch.equal(state[name], value) for name, value in {**plain.state_dict(), **begins}.items())
    changed = {name: torch.ones_like(value) for name, value in begins.items()}
    load_weights(attached, {**plain.state_dict(), **changed}, attached.attached())
    assert begins and all(torch.equal(attached.state_dict()[name], changed[name]) for name in changed)
    for network, weights_of_another in ((plain, state), (attached, plain.state_dict())):
        with pytest.raises(UserError, match="the weights belong to another network"):
            load_weights(network, weights_of_another)


def test_what_cannot_be_is_said():
    with pytest.raises(UserError, match="see the tokens of a transformer"):
        train(*tuned("mas_local", "adapter"))
    with pytest.raises(UserError, match="this network takes no lora"):
        tiny_method("sgd", backbone="torchvision:resnet18", tune="lora")


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_method_goes_on_as_if_nothing_had_happened(kind):
    method, config = tuned("er", kind)
    train(method, config, tasks=1)
    file = io.BytesIO()
    torch.save(method.state_dict(), file)
    file.seek(0)
    restored, _ = tuned("er", kind)
    restored.load_state_dict(torch.load(file, weights_only=True))
    for learner in (method, restored):
        steps(learner, config, n=1)
    assert_same(weights(method), weights(restored))
