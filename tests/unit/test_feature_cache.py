"""Features on disk: equal to those encoded, encoded once, and again where a block is missing or damaged."""

import pytest
import torch

from engram.utils import feature_cache
from engram.utils.feature_cache import key_of, read_or_encode

N, DIM = 500, 3  # two whole blocks and half of one


@pytest.fixture
def encoder():
    """Features, and an encoder of them that notes which rows it was asked for."""
    features = torch.randn(N, DIM, generator=torch.Generator().manual_seed(0))
    asked = []

    def encode(rows: slice) -> torch.Tensor:
        asked.append((rows.start, rows.stop))
        return features[rows]

    return features, encode, asked


def test_every_image_is_encoded_once(encoder, tmp_path, capsys):
    features, encode, asked = encoder
    for _ in range(2):
        assert torch.equal(read_or_encode(tmp_path / "f", N, DIM, encode, "encoding"), features)
    assert asked == [(0, 200), (200, 400), (400, 500)]
    assert capsys.readouterr().err == "encoding: 500 of 500, once\n"


def test_an_encoding_that_was_stopped_goes_on(encoder, tmp_path):
    features, encode, asked = encoder

    def stopped(rows: slice) -> torch.Tensor:
        if rows.start == 200:
            raise KeyboardInterrupt
        return encode(rows)

    with pytest.raises(KeyboardInterrupt):
        read_or_encode(tmp_path, N, DIM, stopped, "encoding")
    assert torch.equal(read_or_encode(tmp_path, N, DIM, encode, "encoding"), features)
    assert asked == [(0, 200), (200, 400), (400, 500)]


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "remove"])
def test_a_damaged_block_is_encoded_again(encoder, tmp_path, damage, capsys):
    features, encode, asked = encoder
    read_or_encode(tmp_path, N, DIM, encode, "encoding")
    path = feature_cache.path_of(tmp_path, 200)
    content = bytearray(path.read_bytes())
    content[17] ^= 1
    path.unlink()
    if damage in ("flip", "cut", "empty"):
        path.write_bytes({"flip": content, "cut": content[:-20], "empty": b""}[damage])
    asked.clear()
    assert torch.equal(read_or_encode(tmp_path, N, DIM, encode, "encoding"), features)
    assert asked == [(200, 400)]
    assert ("1 damaged blocks are encoded again" in capsys.readouterr().err) == (damage != "remove")


def test_the_key_changes_with_everything_that_features_depend_on():
    weights = {"a": torch.ones(2, 3), "b": torch.zeros(4)}
    keys = {key_of("fp32", weights.values()), key_of("bf16", weights.values())}
    keys.add(key_of("fp32", [torch.ones(3, 2), weights["b"]]))
    keys.add(key_of("fp32", [weights["a"], torch.zeros(4, dtype=torch.float64)]))
    changed = weights["b"].clone()
    changed[3] = 1e-30
    keys.add(key_of("fp32", [weights["a"], changed]))
    assert len(keys) == 5
    assert key_of("fp32", weights.values()) in keys
