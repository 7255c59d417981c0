"""The speed of MER's methods: a row for those with a compiled kernel and for those without."""

import itertools

import pytest

from engram.scripts.bench import mer
from engram.utils.training.optimizers import build_optimizer
from tests.contract.test_methods import small_method


def prepared(flags: str, data_dir: str):
    """The method of these flags at the start of the tiny stream, in place of the middle of MNIST's."""
    words = flags.replace("--", "").split()
    values = dict(zip(words[::2], words[1::2], strict=True))
    method, config = small_method(values["model"], batch_size=1)
    task = method.benchmark.tasks[0]
    method.enter(task)
    method.begin_task(task)
    method.optimizer = build_optimizer(method.trainable().values(), config.train)
    return method, itertools.cycle(list(method.benchmark.batches(task, 0, 1)))


@pytest.mark.parametrize(
    ("name", "has_kernel"),
    [("independent", False), ("taskinput", False), ("ewc", False), ("agem", False), ("online", True)],
)
def test_a_row_has_the_eager_figure_where_there_is_a_kernel(name, has_kernel, monkeypatch):
    monkeypatch.setattr(mer, "prepared", prepared)
    flags, _, original = mer.CASES[name]
    monkeypatch.setitem(mer.CASES, name, (flags, 2, original))
    row = mer.measure(name, "", rounds=1)
    assert row[0] == name and row[-1] == original and float(row[1].replace(",", "")) > 0
    assert ("–" not in row[2:4]) == has_kernel and len(row) == 5
