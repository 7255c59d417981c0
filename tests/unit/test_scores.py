"""Score files: both formats, and every way in which one can be wrong."""

import math

import numpy as np
import pytest
import torch
from sklearn.model_selection import train_test_split

from engram.utils.scores import load, order_hash, read, share_of, write
from tests.conftest import synthetic_source, tiny_config, tiny_method
from tests.contract.test_methods import train

LABELS = torch.tensor([3, 1, 2, 2])
HASH = order_hash(LABELS)


def test_npy_and_npz(tmp_path):
    values = np.array([0.1, 0.2, 0.9, 0.4], dtype=np.float32)
    np.save(tmp_path / "a.npy", values)
    np.savez(tmp_path / "a.npz", scores=values, stderr=values, dataset="tiny", order_hash=HASH)
    for name in ("a.npy", "a.npz"):
        assert read(str(tmp_path / name), LABELS).tolist() == values.astype(np.float64).tolist()


def with_numpy(write, *args, **kwargs):
    def make(path):
        with path.open("wb") as file:
            write(file, *args, **kwargs)

    return make


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "no such file"),
        (lambda path: path.write_bytes(b"not numpy"), r"cannot be read \(numpy does not know this format\)"),
        (with_numpy(np.save, np.array([{}], dtype=object), allow_pickle=True), r"save numbers, .*float"),
        (with_numpy(np.save, np.zeros(5)), r"has shape \(5,\).*needs \(4,\)"),
        (with_numpy(np.save, np.array([0, np.inf, 0, 0])), r"infinite in 1 of 4 places; .* in \[-1, 1\]"),
        (with_numpy(np.save, np.array([np.nan, -np.inf, 0, 0])), "infinite in 1 of 4"),
        (with_numpy(np.save, np.full(4, np.nan)), "the values are all NaN; memorization scores are numbers"),
        (with_numpy(np.save, np.array([np.nan, -1.01, 1.5, 0])), "between -1.01 and 1.5, 2 of 4 outside"),
        (
            with_numpy(np.save, np.array([0.5, -1.01, 1.5, 0])),
            "between -1.01 and 1.5, 2 of 4 outside; memoriz",
        ),
        (with_numpy(np.save, np.arange(4.0)), r"between 0 and 3, 2 of 4 outside.*not of labels or ranks"),
        (
            with_numpy(np.save, np.zeros(4, dtype=np.int64)),
            "the values are of type int64; memorization scores",
        ),
        (with_numpy(np.save, np.zeros(4, dtype=bool)), "the values are of type bool"),
        (with_numpy(np.savez, scores=np.zeros(2, np.uint8), index=np.arange(2)), "are of type uint8"),
        (with_numpy(np.save, np.zeros((4, 1))), r"has shape \(4, 1\)"),
        (with_numpy(np.save, np.zeros(2)), r"needs \(4,\): .*--memorization_fraction \(here 0\.5\)"),
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
        read(str(path), LABELS)


def test_the_hash_tells_orders_apart():
    assert order_hash(LABELS) != order_hash(LABELS.flip(0))
    assert order_hash(LABELS) == order_hash(LABELS.clone())


def test_a_study_of_a_part_leaves_the_rest_unknown(tmp_path):
    path = write(
        tmp_path / "new" / "part.npz", {"lr": 0.1}, scores=np.array([0.5, 0.1]), index=np.array([3, 0])
    )
    found = read(str(path), LABELS).tolist()
    assert found[0] == 0.1 and found[3] == 0.5 and np.isnan(found[1:3]).all()
    assert str(load(path)["settings"]) == '{"lr": 0.1}'
    assert [p.name for p in path.parent.iterdir()] == ["part.npz"], "nothing unfinished is left"


def test_labels_of_other_examples_are_refused(tmp_path):
    own = LABELS[[3, 0]].numpy()
    for labels, fits in ((own, True), (own + 1, False), (own[:1], False), (own.astype(str), True)):
        path = write(
            tmp_path / "s.npz", {}, scores=np.array([0.5, 0.1]), index=np.array([3, 0]), labels=labels
        )
        if fits:
            read(str(path), LABELS)
        else:
            with pytest.raises(ValueError, match="examples have another class than the file's 'labels'"):
                read(str(path), LABELS)


def test_a_bare_vector_can_be_written(tmp_path):
    path = write(tmp_path / "bare.npy", {}, scores=np.arange(4) / 4, stderr=np.ones(4))
    assert read(str(path), LABELS).tolist() == [0, 0.25, 0.5, 0.75]
    with pytest.raises(ValueError, match=r"ends in \.npz"):
        write(tmp_path / "scores.txt", {}, scores=np.arange(4.0))
    with pytest.raises(ValueError, match="holds no array called 'stderr'; it has scores"):
        load(path, "stderr")


def test_rounding_does_not_count(tmp_path):
    np.save(tmp_path / "a.npy", np.array([1 + 1e-7, -1 - 1e-7, 1, -1]))
    np.save(tmp_path / "b.npy", np.array([1, -1, 0.5, 0], dtype=np.float16))
    for name in ("a.npy", "b.npy"):
        assert len(read(str(tmp_path / name), LABELS)) == 4


def test_nan_means_not_measured(tmp_path):
    np.save(tmp_path / "a.npy", np.array([np.nan, 0.5, 0, np.nan]))
    np.savez(tmp_path / "b.npz", scores=np.array([np.nan, 0.5]), index=np.array([2, 0]))
    for name, expected in {"a.npy": [np.nan, 0.5, 0, np.nan], "b.npz": [0.5, *[np.nan] * 3]}.items():
        np.testing.assert_equal(read(str(tmp_path / name), LABELS).numpy(), np.array(expected))


def test_every_reader_refuses_what_cannot_be_scores(tmp_path):
    path = tmp_path / "labels.npy"
    np.save(path, np.arange(4))
    with pytest.raises(ValueError, match=f"^{path}: the values are of type int64; memorization scores are"):
        load(path, "scores")
    assert load(path)["scores"].tolist() == [0, 1, 2, 3]  # positions of --exclude are read so


MANY = torch.from_numpy(np.random.default_rng(0).integers(0, 5, 203))


def test_a_vector_of_a_fraction_belongs_to_the_samples_that_were_drawn(tmp_path):
    """As in the memorization paper's code; samples that were not drawn have no score."""
    _, drawn = train_test_split(list(range(203)), test_size=0.1, random_state=42, stratify=MANY.numpy())
    values = np.linspace(-1, 1, len(drawn))
    np.save(tmp_path / "a.npy", values)
    whole = read(str(tmp_path / "a.npy"), MANY, 0.1)
    assert whole[drawn].tolist() == values.tolist() and sorted(drawn) != drawn
    assert whole.isnan().sum() == 203 - len(drawn) == 182


@pytest.mark.parametrize("fraction", [1.0, 0.4])
def test_a_vector_of_a_range_of_classes_belongs_to_their_samples(tmp_path, fraction):
    """Classes 1 to 3 of five, in order, and then a fraction of these."""
    positions = np.flatnonzero((MANY >= 1) & (MANY < 4))
    if fraction < 1:
        kept = train_test_split(
            positions, test_size=fraction, random_state=42, stratify=MANY.numpy()[positions]
        )
        positions = kept[1]
    values = np.linspace(-1, 1, len(positions))
    np.save(tmp_path / "a.npy", values)
    whole = read(str(tmp_path / "a.npy"), MANY, fraction, "1,4")
    assert whole[positions].tolist() == values.tolist() and int(whole.isfinite().sum()) == len(values)
    with pytest.raises(ValueError, match="--memorization_classes 1,6: must satisfy 0 <= a < b <= 5"):
        read(str(tmp_path / "a.npy"), MANY, fraction, "1,6")
    np.savez(tmp_path / "b.npz", scores=values, index=positions)
    with pytest.raises(ValueError, match=r"leave --memorization_.* out"):
        read(str(tmp_path / "b.npz"), MANY, fraction, "1,4")


@pytest.mark.parametrize(
    ("arrays", "fraction", "message"),
    [
        ({"scores": np.zeros(20)}, 0.1, r"shape \(20,\), that part of 203 training samples needs \(21,\)"),
        ({"scores": np.zeros(203)}, 0.1, r"shape \(203,\), that part of 203 training samples needs"),
        ({"scores": np.zeros(21), "index": np.arange(21)}, 0.1, "leave --memorization_fraction out"),
        ({"scores": np.zeros(1)}, 0.001, "--memorization_fraction 0.001: 203 examples cannot be split so"),
    ],
)
def test_fractions_that_do_not_fit(tmp_path, arrays, fraction, message):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        read(str(tmp_path / "a.npz"), MANY, fraction)


def test_a_share_that_is_named_draws_as_many_samples():
    """Of every length of some data sets, and of some lengths of CIFAR-10."""
    cases = [(length, n) for n in (4, 90, 1437) for length in range(1, n)]
    cases += [(length, 50_000) for length in (1, 499, 5000, 12_345, 16_667, 49_999)]
    for length, n in cases:
        assert math.ceil(n * float(share_of(length, n))) == length, (length, n)
    assert [share_of(430, 1437), share_of(432, 1437), share_of(5000, 50_000)] == ["0.299", "0.3", "0.1"]


def test_the_share_that_a_refusal_names_is_taken(tmp_path):
    labels = torch.arange(1437) % 3
    np.save(tmp_path / "a.npy", np.zeros(430))
    with pytest.raises(ValueError, match=r"--memorization_fraction \(here 0\.299\)"):
        read(str(tmp_path / "a.npy"), labels)
    assert int(read(str(tmp_path / "a.npy"), labels, 0.299).isfinite().sum()) == 430
    np.save(tmp_path / "a.npy", np.zeros(100))  # of the 958 samples of two classes
    with pytest.raises(ValueError, match=r"--memorization_fraction \(here 0\.104\)"):
        read(str(tmp_path / "a.npy"), labels, classes="0,2")
    assert int(read(str(tmp_path / "a.npy"), labels, 0.104, "0,2").isfinite().sum()) == 100


def test_the_flag_of_a_fraction(tmp_path):
    _, drawn = train_test_split(
        np.arange(90), test_size=0.4, random_state=42, stratify=synthetic_source().train_y.numpy()
    )
    np.save(tmp_path / "a.npy", np.linspace(0, 1, 36))
    flags = {"memorization_scores": str(tmp_path / "a.npy"), "memorization_fraction": 0.4}
    method, config = tiny_method("maer", permute_classes=True, buffer_size=12, **flags)
    found = method.setup.scores
    assert found[drawn].tolist() == np.linspace(0, 1, 36).tolist() and int(found.isnan().sum()) == 54
    train(method, config)
    assert set(method.buffer.stored()["index"].tolist()) <= set(drawn.tolist())
    for flag, value in {"memorization_fraction": 0.4, "memorization_classes": "0,2"}.items():
        with pytest.raises(ValueError, match=f"--{flag} needs the vector"):
            tiny_config("maer", **{flag: value})


def test_the_flag_of_a_range_of_classes(tmp_path):
    """Original classes, though the stream's are permuted."""
    labels = synthetic_source().train_y
    positions = torch.nonzero((labels >= 2) & (labels < 4)).view(-1)
    np.save(tmp_path / "a.npy", np.linspace(0, 1, len(positions)))
    flags = {"memorization_scores": str(tmp_path / "a.npy"), "memorization_classes": "2,4"}
    method, _ = tiny_method("er", permute_classes=True, seed=3, buffer_size=12, **flags)
    assert torch.nonzero(method.setup.scores.isfinite()).view(-1).tolist() == positions.tolist()
