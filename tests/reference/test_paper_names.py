"""Papers that share a file: a name of their own is the shared method with some flags fixed, bit for bit."""

import dataclasses

import pytest
import torch

from engram.utils.config import registry
from engram.utils.errors import UserError
from tests.conftest import tiny_method
from tests.contract.test_methods import assert_same, classes_of, train, weights

# The name, the model that it shares a file with, and the flags that the name stands for.
NAMES = {
    "lars": ("er", {"memory": "loss_aware"}),
    "labrs": ("er", {"memory": "loss_aware_balanced"}),
    "cbrs": ("er", {"memory": "balanced"}),
    "er_ring": ("er", {"memory": "class_ring"}),
    "er_alg4": ("er", {"er_variant": "alg4"}),
    "er_alg5": ("er", {"er_variant": "alg5"}),
    "mer_alg6": ("mer", {"mer_variant": "alg6"}),
    "mer_alg7": ("mer", {"mer_variant": "alg7"}),
    "ewc_online": ("ewc", {"ewc_mode": "online"}),
    "ewc_separate": ("ewc", {"ewc_mode": "separate"}),
    "mas_local": ("mas", {"mas_local": True}),
    "mas_consistent": ("mas", {"mas_consistent": True}),
    "grasp": ("full_buffer", {"order": "grasp"}),
}


@pytest.mark.parametrize("name", NAMES)
def test_a_papers_name_is_the_shared_method_with_its_flags(name):
    model, flags = NAMES[name]
    common = {"buffer_size": 12} if model in ("er", "mer") else {}
    named, results = train(*tiny_method(name, **common))
    shared, expected = train(*tiny_method(model, **common, **flags))
    assert_same(weights(named), weights(shared))
    for view, R in expected.R.items():
        torch.testing.assert_close(results.R[view], R, rtol=0, atol=0, equal_nan=True)
    plain, _ = train(*tiny_method(model, **common))
    if name != "ewc_online":  # the model's default
        assert any(not torch.equal(p, weights(plain)[n]) for n, p in weights(named).items())
    assert named.state_dict().keys() == shared.state_dict().keys(), "checkpoints hold the same"


@pytest.mark.parametrize("name", NAMES)
def test_what_a_name_fixes_is_no_flag_of_it(name):
    model, flags = NAMES[name]
    options = registry.load("models", name).Options
    shared = {field.name for field in dataclasses.fields(registry.load("models", model).Options)}
    assert {field.name for field in dataclasses.fields(options)} < shared
    for flag, value in flags.items():
        assert getattr(options(), flag) == value
        with pytest.raises(UserError, match=f"--{flag}"):
            tiny_method(name, **{flag: value})
    assert issubclass(classes_of(name), classes_of(model))
