"""MAS's forms: how tasks are merged, consistent weights, and whose images the importance is taken on."""

import io
import itertools

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from engram.models.parts import importance
from engram.models.parts.norms import NORMS
from engram.utils.errors import UserError
from tests.conftest import tiny_method


def omegas(method, n_tasks: int = 3) -> list[dict[str, Tensor]]:
    """Random importances of very different sizes, one per task."""
    generator = torch.Generator().manual_seed(0)
    shapes = method.quadratic.parameters
    return [
        {name: 10**t * torch.rand(p.shape, generator=generator) for name, p in shapes.items()}
        for t in range(n_tasks)
    ]


def total(omega: dict[str, Tensor]) -> float:
    return sum(value.double().sum().item() for value in omega.values())


def shift(method) -> None:
    with torch.no_grad():
        for p in method.net.parameters():
            p.add_(0.1 * torch.sin(torch.arange(p.numel())).view_as(p))


def penalty(method) -> Tensor:
    """λ Σ Ω (θ − θ*)², whose gradient a step adds."""
    return method.strength * method.quadratic.value()


def by_hand(method, omega: dict[str, Tensor], anchor: dict[str, Tensor]) -> Tensor:
    """Σ Ω (θ − θ*)²."""
    parameters = method.quadratic.parameters
    return sum((omega[n] * (parameters[n] - anchor[n]) ** 2).sum() for n in omega)


MERGES = {
    "sum": lambda o: o[0] + o[1] + o[2],
    "mean": lambda o: (o[0] + o[1] + o[2]) / 3,
    "decay": lambda o: 0.3 * (0.3 * o[0] + 0.7 * o[1]) + 0.7 * o[2],
}


@pytest.mark.parametrize("merge", MERGES)
def test_merging_by_hand(merge):
    method, _ = tiny_method("mas", mas_merge=merge, mas_alpha=0.3, mas_lambda=1.5)
    given = omegas(method)
    for omega in given:
        shift(method)
        method.consolidate(omega)
    anchor = {n: p.detach().clone() for n, p in method.quadratic.parameters.items()}
    shift(method)
    merged = {n: MERGES[merge]([omega[n] for omega in given]) for n in anchor}
    for name, value in merged.items():
        torch.testing.assert_close(method.quadratic.importance[name], value)
    torch.testing.assert_close(penalty(method), 1.5 * by_hand(method, merged, anchor))


def alphas(given: list[dict[str, Tensor]], strength: float) -> list[float]:
    """The weights as defined: α_t S_t equal for all t, Σ α_t = λ; S_t the total importance of task t."""
    totals = [total(omega) for omega in given]
    each = strength / sum(1 / s for s in totals)
    return [each / s for s in totals]


def test_consistent_weights_give_every_task_the_same_total_and_sum_to_lambda():
    method, _ = tiny_method("mas", mas_consistent=True, mas_lambda=1.5)
    given = omegas(method)
    for n_tasks, omega in enumerate(given, 1):  # renewed as tasks arrive
        method.consolidate(omega)
        weights = alphas(given[:n_tasks], 1.5)
        assert sum(weights) == pytest.approx(1.5)
        shares = [w * total(o) for w, o in zip(weights, given, strict=False)]
        assert shares == pytest.approx([shares[0]] * n_tasks)
        for name in omega:
            expected = sum(w * o[name] for w, o in zip(weights, given, strict=False))
            found = method.strength * method.quadratic.importance[name]
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)
    anchor = {n: p.detach().clone() for n, p in method.quadratic.parameters.items()}
    shift(method)
    penalties = [w * by_hand(method, o, anchor) for w, o in zip(alphas(given, 1.5), given, strict=True)]
    torch.testing.assert_close(penalty(method), sum(penalties), rtol=1e-5, atol=0)


def test_consistent_weights_do_not_depend_on_the_order_of_tasks():
    penalties, plain = [], []
    for order in itertools.permutations(range(3)):
        for found, flags in ((penalties, {"mas_consistent": True}), (plain, {"mas_merge": "decay"})):
            method, _ = tiny_method("mas", **flags)
            given = omegas(method)
            for i in order:
                method.consolidate(given[i])
            shift(method)
            found.append(penalty(method).item())
    assert penalties == pytest.approx([penalties[0]] * 6, rel=1e-5)
    assert max(plain) > 1.5 * min(plain), "the test can tell an order"


def test_a_task_without_importance_weighs_nothing():
    method, _ = tiny_method("mas", mas_consistent=True)
    first, second, _ = omegas(method)
    zero = {name: torch.zeros_like(value) for name, value in first.items()}
    method.consolidate(zero)
    shift(method)
    assert penalty(method) == 0
    for omega in (first, zero, second):
        method.consolidate(omega)
    shift(method)
    other, _ = tiny_method("mas", mas_consistent=True)
    other.net.load_state_dict(method.net.state_dict())
    for omega in (first, second):
        other.consolidate(omega)
    assert other.strength == method.strength and penalty(method).isfinite()


def test_consistent_weights_survive_saving():
    method, _ = tiny_method("mas", mas_consistent=True)
    first, second, third = omegas(method)
    for omega in (first, second):
        method.consolidate(omega)
    file = io.BytesIO()
    torch.save(method.state_dict(), file)
    file.seek(0)
    restored, _ = tiny_method("mas", mas_consistent=True)
    restored.load_state_dict(torch.load(file, weights_only=True))
    for each in (method, restored):
        each.consolidate(third)
        shift(each)
    assert penalty(restored) > 0
    assert torch.equal(penalty(restored), penalty(method))


@pytest.mark.parametrize("norm", NORMS)
def test_the_norm_asked_for_is_used(norm):
    method, _ = tiny_method("mas", mas_norm=norm)
    task = method.setup.benchmark.tasks[0]
    raw = method.setup.benchmark.train(task).x_raw
    parameters = method.quadratic.parameters
    expected = importance.of_images(method.net, method.benchmark, parameters, raw, task, NORMS[norm], 1)
    method.end_task(task)
    for name, value in expected.items():
        assert torch.equal(method.quadratic.importance[name], value)


# --- images -------------------------------------------------------------------------------------


def test_test_images_are_used_without_their_labels():
    method, _ = tiny_method("mas", mas_data="test")
    benchmark = method.setup.benchmark
    task = benchmark.tasks[1]
    assert torch.equal(method.images(task), benchmark.test_of(task).x_raw)
    expected = method.importance_of(benchmark.test_of(task).x_raw, task)
    benchmark._test_y.fill_(-1)
    method.end_task(task)
    for name, value in method.quadratic.importance.items():
        assert torch.equal(value, expected[name])


def write_images(folder, n: int, size=(6, 6)) -> np.ndarray:
    pixels = np.random.RandomState(0).randint(0, 256, (n, *size), dtype=np.uint8)
    for i, image in enumerate(pixels):
        path = folder / f"part{i % 2}" / f"{i:03}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(image).save(path)
    return pixels[[*range(0, n, 2), *range(1, n, 2)]]  # by path


def test_images_of_a_folder(tmp_path):
    pixels = write_images(tmp_path, 9)
    method, _ = tiny_method("mas", mas_data=str(tmp_path))
    task = method.setup.benchmark.tasks[0]
    assert method.images(task).dtype == torch.uint8
    assert np.array_equal(method.images(task).numpy(), pixels[:, None])
    method.end_task(task)
    expected = method.importance_of(torch.from_numpy(pixels[:, None]), task)
    for name, value in method.quadratic.importance.items():
        assert torch.equal(value, expected[name])
    few, _ = tiny_method("mas", mas_data=str(tmp_path), mas_n=4)
    chosen = few.images(task).flatten(1)
    assert len(chosen) == len(chosen.unique(dim=0)) == 4


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"mas_data": "nowhere"}, "nowhere: no such folder"),
        ({"mas_consistent": True, "mas_merge": "mean"}, "leave out --mas_merge mean"),
        ({"mas_local": True, "mas_norm": "l1"}, "leave out --mas_norm l1"),
    ],
)
def test_wrong_settings_are_errors_before_training(flags, message):
    with pytest.raises(UserError, match=message):
        tiny_method("mas", **flags)
