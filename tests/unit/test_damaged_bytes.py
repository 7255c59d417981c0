"""One byte that changed anywhere in a file that a run reads: refused, made anew, or the same numbers."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from engram.datasets import gem_file, images, shards, storage
from engram.memorization.store import NetworkStore
from engram.utils import checkpoint, scores
from engram.utils.errors import DataError, UserError

N_FLIPS = 150
VALUES = torch.rand(300, generator=torch.Generator().manual_seed(0))
RAW = torch.randint(0, 256, (20, 3, 6, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
LABELS = {"train": torch.arange(20), "test": torch.arange(4)}


def write_checkpoint(folder: Path) -> Path:
    checkpoint.write({"method": {"net": {"weight": VALUES}}, "position": [1, 2.5]}, folder / "c.pt")
    return folder / "c.pt"


def read_checkpoint(path: Path) -> Tensor:
    content = checkpoint.read(path)
    assert content["position"] == [1, 2.5]
    return content["method"]["net"]["weight"]


def write_network(folder: Path) -> Path:
    store = NetworkStore(str(folder))
    store.save(7, {"weight": VALUES})
    return store.path(7)


def write_scores(folder: Path) -> Path:
    return scores.write(folder / "s.npz", {"seed": 1}, scores=VALUES.numpy(), index=np.arange(300))


def write_stored_scores(folder: Path) -> Path:
    np.savez(folder / "s.npz", scores=VALUES.numpy(), index=np.arange(300))  # another program's, uncompressed
    return folder / "s.npz"


def read_scores(path: Path) -> Tensor:
    content = scores.load(path, "scores", "index")
    assert np.array_equal(content["index"], np.arange(300))
    return torch.from_numpy(content["scores"])


def write_gem_file(folder: Path) -> Path:
    torch.save([[[None, VALUES, 0]], [[None, VALUES, 0]]], folder / "g.pt")
    return folder / "g.pt"


# kind → writes the file in a folder and returns its path; reads it
REFUSED: dict[str, tuple[Callable[[Path], Path], Callable[[Path], Tensor]]] = {
    "checkpoint": (write_checkpoint, read_checkpoint),
    "weights for --loadcheck": (write_checkpoint, lambda p: checkpoint.read_weights(str(p))["weight"]),
    "network of a study": (write_network, lambda p: NetworkStore(str(p.parent.parent)).load(7)["weight"]),
    "scores": (write_scores, read_scores),
    "scores, not compressed": (write_stored_scores, read_scores),
    "GEM file": (write_gem_file, lambda p: gem_file.read(p)[0][0][1]),
}


def flipped(path: Path, n: int = N_FLIPS, seed: int = 0) -> Iterator[int]:
    """The positions of bytes, one of which is another in the file at each step; it is whole at the end."""
    whole = path.read_bytes()
    draw = np.random.default_rng(seed)
    for position in draw.choice(len(whole), min(n, len(whole)), replace=False).tolist():
        damaged = bytearray(whole)
        damaged[position] ^= 1 << int(draw.integers(8))
        path.write_bytes(damaged)
        yield position
    path.write_bytes(whole)


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_made_again_is_refused_or_has_the_same_numbers(tmp_path, kind):
    write, read = REFUSED[kind]
    path, refused = write(tmp_path), 0
    for position in flipped(path):
        try:
            values = read(path)
        except UserError as error:
            assert str(path) in str(error) and "\n" not in str(error), position
            refused += 1
        else:
            assert torch.equal(values, VALUES), position
    assert refused > N_FLIPS / 2
    assert torch.equal(read(path), VALUES)


def test_a_damaged_cache_is_decoded_again(tmp_path):
    path, calls = tmp_path / "cache.pt", []

    def decode() -> images.Decoded:
        calls.append(1)
        y = LABELS["train"]
        return {
            "train_x": RAW,
            "train_y": y,
            "test_x": RAW,
            "test_y": y,
            "classes": tuple(map(str, range(20))),
        }

    images.cached(path, "key", decode)
    for position in flipped(path):
        data = images.cached(path, "key", decode)
        for split in ("train", "test"):
            assert torch.equal(data[f"{split}_x"], RAW), position
            assert torch.equal(data[f"{split}_y"], LABELS["train"]), position
    assert len(calls) > N_FLIPS / 2


SHARD_FILES = ("header.json", "train-0000.u8", "train-0001.u8", "train_y.npy", "train_crc.npy")


@pytest.mark.parametrize("name", SHARD_FILES)
def test_damaged_shards_are_refused_once_and_then_made_anew(tmp_path, monkeypatch, name):
    monkeypatch.setattr(shards, "SHARD_BYTES", 10 * 108)
    monkeypatch.setattr(shards, "_sync", lambda path: None)  # the folder is written a hundred times
    monkeypatch.setattr(shards, "CHECKED", (2, 4))  # what is hashed of many GB: next to nothing

    def fill(split, put):
        put(0, RAW[: len(LABELS[split])].numpy())

    def open_folder() -> images.Decoded:
        classes = tuple(map(str, range(20)))
        return storage.on_disk(tmp_path / "a.shards", "key", (3, 6, 6), classes, LABELS, fill, "why")

    open_folder()
    refused = 0
    for position in flipped(tmp_path / "a.shards" / name, n=40):
        data = open_folder()
        assert torch.equal(data["train_y"], LABELS["train"]), position
        assert data["classes"] == tuple(map(str, range(20))), position
        try:
            found = data["train_x"][:]
        except DataError as error:
            assert "a.shards: damaged, an image's bytes" in str(error)
            refused += 1
            found = open_folder()["train_x"][:]
        assert torch.equal(found, RAW), position
    assert (refused > 20) == name.endswith(".u8")


@pytest.mark.parametrize("old", [True, False])
def test_a_format_without_checksums_is_told(tmp_path, caplog, old):
    path = tmp_path / "x.pt"
    torch.save({"a": torch.ones(3)}, path, _use_new_zipfile_serialization=not old)
    assert checkpoint.read(path)["a"].tolist() == [1, 1, 1]
    assert ("without checksums; damage goes unnoticed" in caplog.text) == old
