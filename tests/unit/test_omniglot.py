"""Omniglot: read from its public layout; alphabets are tasks, whatever their size."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from engram.datasets import scenarios, sources
from engram.utils.errors import DataError, UserError
from tests.unit.test_streams import alphabet_folder, build

ALPHABETS = {"images_background": {"Latin": 3, "Greek": 2}, "images_evaluation": {"Angelic": 1}}
IN_ORDER = ["Greek/character01", "Greek/character02", "Latin/character01", "Latin/character02",
            "Latin/character03", "Angelic/character01"]  # fmt: skip


def omniglot_layout(root: Path) -> Path:
    """torchvision's folder: black strokes on white, drawing d of the k-th character of height 5 k + d."""
    files = 0
    for part, alphabets in ALPHABETS.items():
        for alphabet, size in alphabets.items():
            for c in range(1, size + 1):
                folder = root / part / alphabet / f"character{c:02}"
                folder.mkdir(parents=True)
                files += 1
                for drawing in range(1, 21):
                    image = Image.new("1", (105, 105), 1)
                    image.paste(0, (0, 0, 105, 5 * IN_ORDER.index(f"{alphabet}/{folder.name}") + drawing))
                    image.save(folder / f"{files:04}_{drawing:02}.png")
    return root


@pytest.fixture
def omniglot(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(sources, "OMNIGLOT_CLASSES", 6)
    omniglot_layout(tmp_path / "omniglot-py")
    return tmp_path


def test_omniglot_in_torchvisions_layout(omniglot):
    source = sources.omniglot(omniglot)
    assert list(source.classes) == IN_ORDER, "background before evaluation, then alphabetical"
    assert source.train_x.shape == (90, 1, 28, 28) and source.test_x.shape == (30, 1, 28, 28)
    assert source.train_y.tolist() == [c for c in range(6) for _ in range(15)]
    assert source.test_y.tolist() == [c for c in range(6) for _ in range(5)]
    for x, y, drawings in ((source.train_x, source.train_y, range(1, 16)),
                           (source.test_x, source.test_y, range(16, 21))):  # fmt: skip
        ink = x.double().mean((1, 2, 3)) / 255 * 105
        expected = torch.tensor([5.0 * c + d for c in range(6) for d in drawings])
        assert (ink - expected).abs().max() < 0.5, "ink is 255, paper 0, and drawings 16 to 20 test"
        assert len(y) == len(expected)


def test_alphabets_are_tasks_of_unequal_size(omniglot):
    stream, _ = build("seq-omniglot", omniglot, n_tasks=3)
    assert [task.classes for task in stream.tasks] == [(0, 1), (2, 3, 4), (5,)]
    assert [len(task.train_index) for task in stream.tasks] == [30, 45, 15]
    assert stream.test_ends.tolist() == [10, 25, 30] and stream.scenario == "class-il"
    first, _ = build("seq-omniglot", omniglot, n_tasks=2)
    assert first.n_classes == 5 and first.class_names == IN_ORDER[:5] and first.n_train == 90
    assert first.class_masks.tolist() == [[1, 1, 0, 0, 0], [0, 0, 1, 1, 1]]


def test_alphabets_are_not_put_into_an_order_of_ones_own(omniglot):
    with pytest.raises(UserError, match="--class_order: not for seq-omniglot"):
        build("seq-omniglot", omniglot, class_order=(5, 4, 3, 2, 1, 0))


def test_permuted_alphabets_stay_whole(omniglot):
    stream, _ = build("seq-omniglot", omniglot, n_tasks=2, permute_classes=True, seed=3)
    order = [["Greek", "Latin", "Angelic"][i] for i in np.argsort(np.random.RandomState(3).permutation(3))]
    names = sources.omniglot(omniglot)
    for task, alphabet in zip(stream.tasks, order, strict=False):
        assert {stream.class_names[c].split("/")[0] for c in task.classes} == {alphabet}
        samples = stream.train(task)
        for y, i in zip(samples.y, samples.index, strict=True):
            assert stream.class_names[y] == names.classes[names.train_y[i]]


def test_an_incomplete_omniglot_is_refused(omniglot, monkeypatch):
    (omniglot / "omniglot-py/images_background/Greek/character02/0005_07.png").unlink()
    with pytest.raises(DataError, match=r"Greek/character02: 19 drawings, 20 expected; delete .*omniglot-py"):
        sources.omniglot(omniglot)
    monkeypatch.undo()
    omniglot_layout(omniglot / "other/omniglot-py")
    with pytest.raises(DataError, match="1623 classes expected, 6 found"):
        sources.omniglot(omniglot / "other")


def test_omniglot_as_an_image_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    alphabet_folder(tmp_path / "omniglot", [2, 1])
    source = sources.omniglot(tmp_path)
    assert source.classes[1:] == ("Alphabet00/character01", "Alphabet01/character00")
    assert source.train_x[:, 0, 9, 9].tolist() == [255, 255, 254, 254, 251, 251]
    (tmp_path / "omniglot/train/plain").mkdir()
    for split in ("train", "test"):
        folder = tmp_path / "omniglot" / split / "plain"
        folder.mkdir(exist_ok=True)
        Image.new("L", (28, 28)).save(folder / "0.png")
    with pytest.raises(DataError, match=r"class 'plain' is not called ALPHABET\.CHARACTER"):
        sources.omniglot(tmp_path)


def test_omniglot_is_downloaded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(sources, "OMNIGLOT_CLASSES", 6)
    calls = []

    def download(reader):
        calls.append(reader.background)
        if len(calls) == 2:
            omniglot_layout(Path(reader.root))

    monkeypatch.setattr(torchvision.datasets.Omniglot, "download", download)
    monkeypatch.setattr(torchvision.datasets.Omniglot, "_check_integrity", lambda _: True)
    monkeypatch.setattr(torchvision.datasets.omniglot, "list_dir", lambda *_: [])
    assert len(sources.omniglot(tmp_path / "data").train_y) == 90 and calls == [True, False]


def test_a_failed_download_of_omniglot_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(torchvision.datasets.Omniglot, "download_url_prefix", "http://127.0.0.1:1")
    with pytest.raises(DataError, match=r"omniglot: the download failed .*omniglot-py/ .*--data_dir DIR"):
        sources.omniglot(tmp_path)


# Groups of classes


def test_groups_are_tasks_in_order_of_appearance_or_permuted():
    groups = ["b", "b", "a", "c", "c", "c"]
    assert scenarios.group_order(groups, 0, permute=False).tolist() == list(range(6))
    assert scenarios.split_groups(groups, 3) == [(0, 1), (2,), (3, 4, 5)]
    assert scenarios.split_groups(groups, 2) == [(0, 1), (2,)]
    for seed in range(30):
        order = scenarios.group_order(groups, seed, permute=True)
        place = np.random.RandomState(seed).permutation(3)  # of b, a and c, as of classes
        names = ["bac"[i] for i in np.argsort(place)]
        assert "".join(groups[c] for c in order) == "".join(n * groups.count(n) for n in names)
        assert all(a < b for a, b in itertools.pairwise(order) if groups[a] == groups[b])


@pytest.mark.parametrize("n_tasks", [0, 4])
def test_more_tasks_than_groups_are_refused(n_tasks):
    with pytest.raises(UserError, match=f"--n_tasks {n_tasks}: there are 3 groups"):
        scenarios.split_groups(["b", "a", "c"], n_tasks)
