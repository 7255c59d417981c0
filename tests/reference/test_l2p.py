"""L2P against loops over samples; with a vote of the batch a prediction depends on its neighbours."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from engram.models.method import Method
from engram.models.parts.prompted import INITS, by_vote, cosines
from engram.utils.config.options import OptionError
from engram.utils.errors import UserError
from engram.utils.tracking.mlflow_tracker import run_tags
from tests.conftest import built, small_batch, tiny_benchmark, tiny_config, tiny_method
from tests.contract.test_batch_independence import assert_independent
from tests.contract.test_methods import train

WIDE = {"prompt_init": "wide", "pool_size": 6, "n_prompts": 2, "prompt_length": 3}


def in_first_task(model: str = "l2p", **flags):
    """A method about to learn its first task, and that task's first batch."""
    method, _ = tiny_method(model, **flags)
    method.enter(method.benchmark.tasks[0])
    method.begin_task(method.task)
    batch = small_batch(method, method.task)
    call_for_different_prompts(method, batch.x)
    return method, batch


def call_for_different_prompts(method: Method, x: Tensor) -> None:
    """Let keys differ as the queries do; those of a random network nearly have one direction."""
    queries = method.query(x)
    rows = torch.arange(len(method.pool.keys)) * (len(x) // len(method.pool.keys))
    with torch.no_grad():
        method.pool.keys.copy_((queries - queries.mean(0))[rows])


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return a @ b / (a.norm() * b.norm())


def one_by_one(method: Method, x: Tensor, chosen: list[list[int]] | None = None):
    """z(x) (N, D) and Σ cos(q, k) of each image, with loops over images, keys and prompts."""
    net, pool, features, sums = method.net, method.pool, [], []
    for n in range(len(x)):
        image = x[n : n + 1]
        query = net.features(image)[0].detach()
        similarity = [cosine(query, key) for key in pool.keys]
        nearest = sorted(range(len(pool.keys)), key=lambda m: -similarity[m].item())
        nearest = nearest[: method.options.n_prompts] if chosen is None else chosen[n]
        z = net.embedded(net.prepared(image))
        prompts = torch.cat([pool.prompts[m] for m in nearest])
        z = torch.cat([z[:, :1], prompts[None], z[:, 1:]], 1)
        for block in net.blocks:
            z = block(z)
        outputs = net.body.norm(z)[0, 1 : 1 + len(prompts)]
        features.append(sum(outputs) / len(outputs))
        sums.append(sum(similarity[m] for m in nearest))
    return torch.stack(features), torch.stack(sums)


def test_the_loss_and_its_gradients_against_loops():
    method, batch = in_first_task(pull_lambda=0.7, **WIDE)
    features, sums = one_by_one(method, batch.x)
    logits = method.net.head(features)[:, :2]  # of the task's classes alone
    expected = F.cross_entropy(logits, batch.y) - 0.7 * sums.mean()
    torch.testing.assert_close(method.loss(batch), expected)
    parameters = method.trainable()
    assert {name.partition(".")[0] for name in parameters} == {"prompts", "head"}
    for one, other in zip(
        torch.autograd.grad(method.loss(batch), list(parameters.values())),
        torch.autograd.grad(expected, list(parameters.values())),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_images_of_a_batch_get_different_prompts():
    method, batch = in_first_task(**WIDE)
    choices, _ = method.selected(method.query(batch.x))
    assert len(choices.unique(dim=0)) > 1, "else the tests of this file show nothing"


def test_the_vote_takes_what_most_images_call_for():
    choices = torch.tensor([[0, 1], [1, 2], [1, 3], [3, 0], [3, 4]])
    voted = by_vote(choices, 6)
    assert voted.shape == choices.shape and all(set(row.tolist()) == {1, 3} for row in voted)
    method, batch = in_first_task(batchwise_prompt=True, **WIDE)
    chosen, similarity = method.selected(method.query(batch.x))
    assert len(chosen.unique(dim=0)) == 1
    features, sums = one_by_one(method, batch.x, chosen.tolist())
    torch.testing.assert_close(method.prompted_features(batch.x, chosen), features)
    torch.testing.assert_close(similarity.sum(1), sums)


@pytest.mark.parametrize("votes", [False, True])
def test_with_a_vote_predictions_depend_on_the_batch(votes):
    method, config = tiny_method("l2p", batchwise_prompt=votes, lr=0.01, **WIDE)
    train(method, config)
    samples = tiny_benchmark(config).test(3)
    x = method.benchmark.augment.normalise(samples.x_raw)
    call_for_different_prompts(method, x)
    if not votes:
        assert_independent(method, x, samples.task_id)
        return
    with pytest.raises(AssertionError):
        assert_independent(method, x, samples.task_id)


def test_a_vote_is_said_and_recorded(tmp_path):
    method, config = tiny_method("l2p", batchwise_prompt=True)
    assert any(note.startswith("WARNING: --batchwise_prompt") for note in method.benchmark.notes)
    assert config.flat()["batchwise_prompt"] is True
    assert run_tags(config.flat(), tmp_path)["batchwise_prompt"] == "True"
    assert not any("batchwise" in note for note in tiny_method("l2p")[0].benchmark.notes)


@pytest.mark.parametrize("init", INITS)
def test_first_values_lie_between_their_bounds(init):
    pool = tiny_method("l2p", prompt_init=init)[0].pool
    low, high = INITS[init]
    for values in (pool.prompts, pool.keys):
        assert (
            low <= values.min() < low + 0.1 * (high - low) < high - 0.1 * (high - low) < values.max() <= high
        )


def test_gradients_are_clipped_together():
    for limit in (1e-3, 0.0):
        method, batch = in_first_task(grad_clip=limit)
        method.loss(batch).backward()
        before = torch.cat([p.grad.flatten() for p in method.trainable().values()])
        method.edit_gradients(batch)
        after = torch.cat([p.grad.flatten() for p in method.trainable().values()])
        expected = before * limit / before.norm() if limit else before
        torch.testing.assert_close(after, expected, rtol=1e-3, atol=1e-9)


def test_cosines_of_each_pair():
    draws = torch.Generator().manual_seed(0)
    queries, keys = torch.randn(3, 5, generator=draws), torch.randn(4, 5, generator=draws)
    expected = torch.tensor([[cosine(q, k).item() for k in keys] for q in queries])
    torch.testing.assert_close(cosines(queries, keys), expected)


def test_other_networks_and_too_many_prompts_are_refused():
    with pytest.raises(UserError, match="--model l2p needs a vision transformer"):
        tiny_method("l2p", backbone="mlp", hidden_sizes=(4,))
    with pytest.raises(OptionError, match="--n_prompts 5: the pool has 4; give at most"):
        tiny_method("l2p", pool_size=4)


def test_compile_says_that_it_changes_nothing():
    method, _ = tiny_method("l2p", compile=True)
    plain = method.net.features
    assert method.capture(10**6).endswith("its network runs as it is") and method.net.features == plain


def test_features_are_not_stored_for_it():
    """Prompts change them in the encoder."""
    with pytest.raises(UserError, match="--cache_features on: the method reaches into the encoder's passes"):
        built(tiny_config("l2p", dataset="seq-digits", cache_features="on"))


def test_the_control_without_prompts_trains_the_head_alone():
    """--model sgd --tune head on the same network: the same frozen body."""
    vit = {k: v for k, v in type(tiny_method("l2p")[0]).quick_flags.items() if k != "batch_size"}
    control, config = tiny_method("sgd", tune="head", train_classes="task", **vit)
    assert set(control.trainable()) == {"head.weight", "head.bias"}
    body, prompted = (m.net.body.state_dict() for m in (control, tiny_method("l2p")[0]))
    assert all(torch.equal(body[name], prompted[name]) for name in body)
    train(control, config, tasks=1)
    assert all(torch.equal(control.net.body.state_dict()[name], prompted[name]) for name in body)
