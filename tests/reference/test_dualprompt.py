"""DualPrompt against loops over samples: each gets the prompts of its own choice, alone and in a batch."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from engram.models.method import Method
from engram.utils.errors import UserError
from tests.conftest import small_batch, tiny_benchmark, tiny_method
from tests.contract.test_batch_independence import assert_independent
from tests.contract.test_methods import steps, train
from tests.reference.test_l2p import cosine

WIDE = {"prompt_init": "wide", "depth": 3, "g_layers": (2,), "e_layers": (0, 1), "g_length": 2, "e_length": 3}


def learned(n_tasks: int = 3, **flags):
    """A method after some tasks; keys differ as the queries of test images do, so that choices differ."""
    method, config = tiny_method("dualprompt", lr=0.01, **WIDE, **flags)
    train(method, config, tasks=n_tasks)
    samples = tiny_benchmark(config).test(3)
    x = method.benchmark.augment.normalise(samples.x_raw)
    queries = method.query(x)
    with torch.no_grad():
        for key, query in zip(method.prompts.keys, (queries - queries.mean(0))[:: len(x) // 3], strict=False):
            key.copy_(query)
    return method, x, samples.task_id


def features(method: Method, image: Tensor, task: int) -> Tensor:
    """f(x; g, e_m) of one image (1, C, H, W): blocks with keys and values before their own."""
    net, prompts = method.net, method.prompts
    z = net.embedded(net.prepared(image))
    for i, block in enumerate(net.blocks):
        pair = {2: prompts.g[0], 0: prompts.e[task][0], 1: prompts.e[task][1]}[i]
        z = block(z, (pair[0][None], pair[1][None]))
    return net.body.norm(z)[0, 0]


def test_predictions_against_a_loop_and_alone_as_in_a_batch():
    method, x, task_id = learned()
    expected, chosen = [], []
    for n in range(len(x)):
        query = method.net.features(x[n : n + 1])[0].detach()
        similarity = [cosine(query, key).item() for key in method.prompts.keys]
        chosen.append(similarity.index(max(similarity)))
        expected.append(method.net.head(features(method, x[n : n + 1], chosen[-1])[None])[0])
    assert len(set(chosen)) == 3, "else this shows nothing"
    torch.testing.assert_close(method.predict(x, task_id), torch.stack(expected), rtol=1e-4, atol=1e-5)
    assert_independent(method, x, task_id)


def test_keys_and_values_are_not_mixed_up_as_by_a_reshape():
    """The fault of a public port: (blocks, 2, N, ...) reshaped to (blocks, N, 2, ...)."""
    prompts = tiny_method("dualprompt", **WIDE)[0].prompts
    choices = torch.tensor([2, 0, 1, 1])
    prefixes = prompts(choices).prefixes
    wrong = torch.stack(list(prompts.e))[choices].permute(1, 2, 0, 3, 4).reshape(2, 4, 2, 3, -1)
    for block in (0, 1):
        for n, task in enumerate(choices):
            for part in (0, 1):
                assert torch.equal(prefixes[block][part][n], prompts.e[task][block, part])
    assert not torch.equal(wrong[0, :, 0], prefixes[0][0]), "the test tells the two apart"
    assert torch.equal(prefixes[2][1], prompts.g[0, 1].expand(4, -1, -1))


def test_the_loss_and_what_it_moves_against_a_loop():
    method, config = tiny_method("dualprompt", lr=0.01, pull_lambda=0.7, **WIDE)
    train(method, config, tasks=1)
    task = method.benchmark.tasks[1]
    method.enter(task)
    method.begin_task(task)
    batch, terms = small_batch(method, task), []
    for image, y in zip(batch.x, batch.y, strict=True):
        logits = method.net.head(features(method, image[None], 1)[None])[0, 2:4]
        query = method.net.features(image[None])[0].detach()
        terms.append(F.cross_entropy(logits, y - 2) - 0.7 * cosine(query, method.prompts.keys[1]))
    expected = torch.stack(terms).mean()
    torch.testing.assert_close(method.loss(batch), expected)
    parameters = method.trainable()
    assert set(parameters) == {"prompts.g", "prompts.e.1", "prompts.keys.1", "head.weight", "head.bias"}
    for one, other in zip(
        torch.autograd.grad(method.loss(batch), list(parameters.values())),
        torch.autograd.grad(expected, list(parameters.values())),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)


def test_a_tasks_prompt_starts_as_the_last_ones_and_then_goes_its_own_way():
    method, config = tiny_method("dualprompt", optimizer="adam", lr=0.01, optim_wd=0.1, **WIDE)
    before = [key.detach().clone() for key in method.prompts.keys]
    train(method, config, tasks=1)
    first = [p.detach().clone() for p in (method.prompts.e[0], method.prompts.keys[0])]
    task = method.benchmark.tasks[1]
    method.enter(task)
    method.begin_task(task)
    assert torch.equal(method.prompts.e[1], first[0]) and torch.equal(method.prompts.keys[1], before[1])
    steps(method, config)
    assert torch.equal(method.prompts.e[0], first[0]) and torch.equal(method.prompts.keys[0], first[1])
    assert not torch.equal(method.prompts.e[1], first[0])


def test_prompts_of_tasks_to_come_are_not_chosen():
    method, x, task_id = learned(n_tasks=2)
    with torch.no_grad():
        method.prompts.keys[2].copy_(method.query(x).mean(0))  # the nearest of all
        before = method.predict(x, task_id)
        method.prompts.e[2].add_(1)
        assert torch.equal(method.predict(x, task_id), before)
        method.prompts.e[1].add_(1)
        assert not torch.equal(method.predict(x, task_id), before)


def test_with_a_vote_predictions_depend_on_the_batch():
    method, x, task_id = learned(batchwise_prompt=True)
    assert any("batchwise_prompt" in note for note in method.benchmark.notes)
    with pytest.raises(AssertionError):
        assert_independent(method, x, task_id)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"e_layers": (1, 7)}, "--e_layers 1,7: the network has 3 blocks; give 0 to 2"),
        ({"e_layers": (1, 2)}, "--g_layers 2 --e_layers 1,2: a block takes one prompt; name each block once"),
    ],
)
def test_blocks_that_do_not_fit_are_refused(flags, said):
    with pytest.raises(UserError, match=said):
        tiny_method("dualprompt", **{**WIDE, **flags})


def test_uneven_tasks_in_any_order():
    """Prompts belong to tasks, wherever their classes lie."""
    order = (5, 0, 3, 1, 4, 2)
    method, config = tiny_method("dualprompt", half_classes_in_first_task=True, class_order=order, **WIDE)
    assert [len(task.classes) for task in method.benchmark.tasks] == [3, 2, 1]
    _, results = train(method, config)
    assert (results.R["class_il"][-1] >= 0).all() and method.n_seen == 3
