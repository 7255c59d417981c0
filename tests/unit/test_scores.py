"""Score files: both formats, and every way in which one can be wrong."""

import numpy as np
import pytest
import torch

from engram.utils.scores import load, order_hash, read, write

LABELS = torch.tensor([3, 1, 2, 2])
HASH = order_hash(LABELS)


def test_npy_and_npz(tmp_path):
    values = np.array([0.1, 0.2, 0.9, 0.4], dtype=np.float32)
    np.save(tmp_path / "a.npy", values)
    np.savez(tmp_path / "a.npz", scores=values, stderr=values, dataset="tiny", order_hash=HASH)
    for name in ("a.npy", "a.npz"):
        assert read(str(tmp_path / name), 4, HASH).tolist() == values.astype(np.float64).tolist()


def with_numpy(write, *args, **kwargs):
    def make(path):
        with path.open("wb") as file:
            write(file, *args, **kwargs)

    return make


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "no such file"),
        (lambda path: path.write_bytes(b"not numpy"), "cannot be read"),
        (with_numpy(np.save, np.array([{}], dtype=object), allow_pickle=True), "cannot be read"),
        (with_numpy(np.save, np.zeros(5)), r"has shape \(5,\).*needs \(4,\)"),
        (with_numpy(np.save, np.array([0, np.nan, 0, 0])), "finite"),
        (with_numpy(np.savez, other=np.zeros(4)), "no array called 'scores'"),
        (with_numpy(np.savez, scores=np.zeros(4), order_hash="ff"), "another data set or sample"),
        (with_numpy(np.savez, scores=np.zeros(2), index=np.array([0, 4])), "does not fit 4 training samples"),
        (with_numpy(np.savez, scores=np.zeros(2), index=np.array([0.0, 1.0])), "does not fit"),
        (with_numpy(np.savez, scores=np.zeros(3), index=np.array([0, 1])), "does not fit"),
    ],
)
def test_wrong_files(tmp_path, make, message):
    path = tmp_path / "scores.bin"
    make(path)
    with pytest.raises(ValueError, match=message):
        read(str(path), 4, HASH)


def test_the_hash_tells_orders_apart():
    assert order_hash(LABELS) != order_hash(LABELS.flip(0))
    assert order_hash(LABELS) == order_hash(LABELS.clone())


def test_a_study_of_a_part_leaves_the_rest_unknown(tmp_path):
    path = write(
        tmp_path / "new" / "part.npz", {"lr": 0.1}, scores=np.array([0.5, 0.1]), index=np.array([3, 0])
    )
    found = read(str(path), 4, HASH).tolist()
    assert found[0] == 0.1 and found[3] == 0.5 and np.isnan(found[1:3]).all()
    assert str(load(path)["settings"]) == '{"lr": 0.1}'
    assert [p.name for p in path.parent.iterdir()] == ["part.npz"], "nothing unfinished is left"


def test_a_bare_vector_can_be_written(tmp_path):
    path = write(tmp_path / "bare.npy", {}, scores=np.arange(4.0), stderr=np.ones(4))
    assert read(str(path), 4, HASH).tolist() == [0, 1, 2, 3]
    with pytest.raises(ValueError, match=r"ends in \.npz"):
        write(tmp_path / "scores.txt", {}, scores=np.arange(4.0))
    with pytest.raises(ValueError, match="holds no array called 'stderr'; it has scores"):
        load(path, "stderr")
