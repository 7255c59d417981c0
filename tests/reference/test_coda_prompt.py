"""CODA-Prompt against loops over images, blocks and components; new components are orthogonal to old ones."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from engram.backbones.vit import Prompts
from engram.models.coda_prompt import alpha
from engram.models.method import Method
from engram.models.parts.components import Components, orthonormal
from engram.utils.config.options import OptionError
from engram.utils.errors import UserError
from tests.conftest import small_batch, tiny_method
from tests.contract.test_methods import steps, train
from tests.reference.test_l2p import cosine

FLAGS = {"depth": 3, "coda_layers": (2, 0), "coda_components": 7, "coda_length": 4, "lr": 0.05}


def in_second_task(**flags):
    """A method about to learn its second task, and that task's first batch."""
    method, config = tiny_method("coda_prompt", **{**FLAGS, **flags})
    train(method, config, tasks=1)
    method.enter(method.benchmark.tasks[1])
    method.begin_task(method.task)
    return method, small_batch(method, method.task)


def prefix(method: Method, query: Tensor, block: int) -> Tensor:
    """(L, D): Σ_m cos(q ⊙ A_m, K_m) P_m of one image and block, over the components of both tasks."""
    total = torch.zeros(method.options.coda_length, method.net.width)
    for task in (0, 1):
        keys, attention, prompts = (slices[task][block] for slices in method.components.slices())
        for k, a, p in zip(keys, attention, prompts, strict=True):
            total = total + cosine(query * a, k) * p
    return total


def logits_of(method: Method, image: Tensor) -> Tensor:
    """(C,) of one image, block by block."""
    net = method.net
    query = net.features(image[None])[0].detach()
    z = net.embedded(net.prepared(image[None]))
    for i, block in enumerate(net.blocks):
        if i == 1:
            z = block(z)
            continue
        p = prefix(method, query, {2: 0, 0: 1}[i])
        z = block(z, (p[None, :2], p[None, 2:]))
    return net.head(net.body.norm(z)[:, 0])[0]


def test_attention_against_a_loop():
    draws = torch.Generator().manual_seed(0)
    query, keys, attention = (torch.randn(shape, generator=draws) for shape in ((3, 5), (2, 4, 5), (2, 4, 5)))
    measured = alpha(query, attention, keys)
    for n in range(3):
        for block in range(2):
            for m in range(4):
                expected = cosine(query[n] * attention[block, m], keys[block, m])
                torch.testing.assert_close(measured[n, block, m], expected)


def test_the_loss_and_what_it_moves_against_a_loop():
    method, batch = in_second_task(ortho_lambda=0)
    terms = [
        F.cross_entropy(logits_of(method, image)[2:4], y - 2)
        for image, y in zip(batch.x, batch.y, strict=True)
    ]
    expected = torch.stack(terms).mean()
    torch.testing.assert_close(method.loss(batch), expected)
    assert method.penalty() is None
    parameters = method.trainable()
    own = {f"prompts.{name}.1" for name in ("keys", "attention", "prompts")}
    assert set(parameters) == own | {"head.weight", "head.bias"}
    for one, other in zip(
        torch.autograd.grad(method.loss(batch), list(parameters.values())),
        torch.autograd.grad(expected, list(parameters.values())),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)


def test_new_components_are_orthonormal_and_orthogonal_to_trained_ones():
    method, _ = in_second_task(optimizer="adam", ortho_lambda=0)
    for slices in method.components.slices():
        for block in range(2):
            old, new = (slices[task][block].flatten(1).detach() for task in (0, 1))
            assert not torch.allclose(old @ old.T, torch.eye(len(old)), atol=1e-3), "they have been trained"
            assert (new @ old.T).abs().max() < 1e-5
            torch.testing.assert_close(new @ new.T, torch.eye(len(new)), rtol=0, atol=1e-5)


def test_gram_schmidt_by_its_textbook_loop():
    """The span of old and new vectors is that of old vectors and the same draws, up to signs."""
    old = torch.randn(2, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    drawn = torch.randn(6, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64).T
    basis = []
    for vector in [*old, *drawn]:
        for u in basis:
            vector = vector - (vector @ u) * u
        basis.append(vector / vector.norm())
    new = orthonormal(old, 3, torch.Generator().manual_seed(2))
    expected = torch.stack(basis[2:])
    signs = (new * expected).sum(1, keepdim=True).sign()
    torch.testing.assert_close(new * signs, expected)


def test_frozen_components_stay_bit_for_bit():
    method, config = tiny_method("coda_prompt", optimizer="adam", optim_wd=0.1, **FLAGS)
    train(method, config, tasks=1)
    first = [slices[0].detach().clone() for slices in method.components.slices()]
    steps(method, config)
    for slices, before in zip(method.components.slices(), first, strict=True):
        assert torch.equal(slices[0], before) and not torch.equal(slices[1], torch.zeros_like(slices[1]))


def test_components_of_zeros_are_a_prefix_of_zeros():
    """Which is attended to, so it is not the network without prompts."""
    method, batch = in_second_task()
    with torch.no_grad():
        for parameter in method.components.prompts:
            parameter.zero_()
    zeros = torch.zeros(len(batch.x), 2, method.net.width)
    features = method.net.features(batch.x, Prompts(prefixes={0: (zeros, zeros), 2: (zeros, zeros)}))
    assert torch.equal(method.prompted(batch.x, batch.task_id), method.net.head(features))
    assert not torch.equal(features, method.net.features(batch.x))


def test_the_penalty_against_a_loop():
    method, _ = in_second_task(ortho_lambda=0.3)
    expected = torch.zeros(())
    for slices in method.components.slices():
        for block in range(2):
            x = torch.cat([slices[0][block].flatten(1), slices[1][block].flatten(1)])
            squares = [(x[i] @ x[j] - float(i == j)) ** 2 for i in range(len(x)) for j in range(len(x))]
            expected = expected + sum(squares) / len(squares)
    torch.testing.assert_close(method.penalty(), 0.3 * expected)
    assert method.penalty().requires_grad


def test_there_is_no_penalty_by_default_as_in_the_released_code():
    method, _ = in_second_task()
    assert method.options.ortho_lambda == 0 and method.penalty() is None


def test_components_are_shared_out_among_tasks():
    components = tiny_method("coda_prompt", **FLAGS)[0].components
    assert [keys.shape[1] for keys in components.keys] == [2, 2, 3]
    assert isinstance(components, Components) and components.prompts[2].shape == (2, 3, 4, 16)


@pytest.mark.parametrize(
    ("flags", "error", "said"),
    [
        (
            {"coda_components": 17},
            UserError,
            r"--coda_components 17: .* 3 \(one a task\) to 16 \(",
        ),
        ({"coda_components": 2}, UserError, r"--coda_components 2: give a number from 3 \("),
        ({"coda_length": 3}, OptionError, "--coda_length 3: must be even"),
        ({"coda_layers": (0, 3)}, UserError, "--coda_layers 0,3: the network has 3 blocks; give 0 to 2"),
    ],
)
def test_what_does_not_fit_is_refused(flags, error, said):
    with pytest.raises(error, match=said):
        tiny_method("coda_prompt", **{**FLAGS, **flags})
