"""The quadratic penalty by hand: its value, its gradients, sums of quadratics in the memory of one."""

import io

import pytest
import torch
from torch import nn

from engram.models.parts.quadratic import Quadratic


def penalty(**values: list[float]) -> Quadratic:
    """An empty penalty on parameters with these values, in double precision."""
    return Quadratic({n: nn.Parameter(torch.tensor(v, dtype=torch.float64)) for n, v in values.items()})


def tensors(**values: list[float]) -> dict[str, torch.Tensor]:
    return {n: torch.tensor(v, dtype=torch.float64) for n, v in values.items()}


def move(quadratic: Quadratic, **values: list[float]) -> None:
    with torch.no_grad():
        for name, value in values.items():
            quadratic.parameters[name].copy_(torch.tensor(value))


@pytest.fixture
def one() -> Quadratic:
    """2 (w₀ − 1)² + 0 (w₁ − 2)² + 3 (v − 5)², now at w = (2, 0), v = 3: value 2 + 12."""
    quadratic = penalty(w=[1.0, 2.0], v=[5.0], other=[9.0])
    quadratic.set(tensors(w=[2.0, 0.0], v=[3.0]))
    move(quadratic, w=[2.0, 0.0], v=[3.0])
    return quadratic


def test_value_and_gradient(one):
    value = one.value()
    assert value.shape == () and value.item() == 14
    (5 * value).backward()
    w, v, other = one.parameters.values()
    assert w.grad.tolist() == [5 * 4, 0] and v.grad.tolist() == [5 * -12] and other.grad is None


def test_gradients_are_added_to_those_that_are_there(one):
    w, v, _ = one.parameters.values()
    w.grad = torch.tensor([1.0, 1.0], dtype=torch.float64)
    one.add_gradients(0.25)
    assert w.grad.tolist() == [1 + 0.25 * 4, 1.0] and v.grad is None
    v.grad = torch.zeros(1, dtype=torch.float64)
    one.add_gradients(1.5)
    assert w.grad.tolist() == [1 + 1.75 * 4, 1.0] and v.grad.tolist() == [-18]


def test_without_gradients_there_is_nothing_to_add(one):
    one.add_gradients(1.0)
    assert all(p.grad is None for p in one.parameters.values())


def test_empty_until_something_is_set():
    quadratic = penalty(w=[1.0])
    assert bool(quadratic) is False and quadratic.constant is None
    quadratic.add(tensors(w=[2.0]))
    assert bool(quadratic) is True and quadratic.value().item() == 0
    assert quadratic.constant.item() == 0 and quadratic.constant.shape == ()


def test_the_anchor_and_the_table_of_importance_are_copies(one):
    """The parameters move on, and whoever made the table may go on with it."""
    importance = tensors(w=[2.0, 2.0])
    one.set(importance)
    importance["v"] = torch.ones(1)
    move(one, w=[3.0, 1.0])
    assert one.value().item() == 2 + 2 and list(one.importance) == ["w"]
    assert one.anchor["w"].tolist() == [2, 0] and not one.anchor["w"].requires_grad


def test_a_sum_is_that_of_its_terms_everywhere():
    """Three quadratics with parts of importance zero, at several points; also its gradient."""
    generator = torch.Generator().manual_seed(0)

    def draw() -> torch.Tensor:
        return torch.rand(6, generator=generator, dtype=torch.float64)

    together, terms = penalty(w=[0.0] * 6), []
    for i in range(3):
        importance = draw() * (0.2, 3.0, 0.5)[i]  # sums below and above one
        importance[i:4] = 0  # the fourth is never important, others are once or twice
        move(together, w=draw().tolist())
        single = penalty(w=together.parameters["w"].tolist())
        single.set({"w": importance.clone()})
        together.add({"w": importance})
        terms.append(single)
    assert together.constant.item() > 0.01
    for _ in range(4):
        point = draw().tolist()
        for quadratic in (together, *terms):
            move(quadratic, w=point)
        expected = sum(term.value() for term in terms)
        torch.testing.assert_close(together.value(), expected)
        gradients = [torch.autograd.grad(q.value(), q.parameters["w"])[0] for q in (together, *terms)]
        torch.testing.assert_close(gradients[0], sum(gradients[1:]))
    assert together.importance["w"][3] == 0 and together.anchor["w"].isfinite().all()


def test_what_was_never_important_keeps_its_first_anchor():
    quadratic = penalty(w=[1.0, 1.0])
    quadratic.add(tensors(w=[0.0, 1.0]))
    move(quadratic, w=[3.0, 3.0])
    quadratic.add(tensors(w=[0.0, 3.0]))
    assert quadratic.anchor["w"].tolist() == [1, 1 + 3 / 4 * 2]
    assert quadratic.importance["w"].tolist() == [0, 4] and quadratic.constant.item() == 1 * 3 / 4 * 4


def test_state(one):
    one.add(tensors(w=[1.0, 1.0], v=[1.0]))
    for original in (one, penalty(w=[1.0, 2.0], v=[5.0])):
        file = io.BytesIO()
        torch.save(original.state_dict(), file)
        file.seek(0)
        restored = penalty(w=[2.0, 0.0], v=[3.0])
        restored.load_state_dict(torch.load(file, weights_only=True))
        assert bool(restored) == bool(original)
        assert (restored.constant is None) == (original.constant is None)
        if original:
            assert restored.value() == original.value() > 0 and restored.constant == original.constant > 0
