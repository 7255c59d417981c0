"""Random streams: independent by name and key, repeatable, and never the global generator."""

import torch

from engram.utils import seeding


def test_streams_differ_and_repeat():
    draws = {
        key: torch.rand(4, generator=seeding.generator(*key)).tolist()
        for key in [
            (0, "init"),
            (0, "order"),
            (1, "init"),
            (0, "order", 1),
            (0, "order", 1, 2),
            (0, "order", 12),
        ]
    }
    assert len({tuple(v) for v in draws.values()}) == len(draws)
    assert torch.rand(4, generator=seeding.generator(0, "init")).tolist() == draws[(0, "init")]


def test_isolated_leaves_the_global_generator_alone():
    before = torch.random.get_rng_state()
    with seeding.isolated(0, "init"):
        first = torch.rand(3)
    assert torch.equal(torch.random.get_rng_state(), before)
    with seeding.isolated(0, "init"):
        assert torch.equal(torch.rand(3), first)


def test_a_whole_run_never_touches_the_global_generators():
    import numpy as np

    from tests.conftest import tiny_method
    from tests.contract.test_methods import train

    torch_before, numpy_before = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    for model in ("er", "maer"):
        train(*tiny_method(model))
    assert torch.equal(torch.random.get_rng_state(), torch_before)
    assert np.array_equal(np.random.get_state()[1], numpy_before)
