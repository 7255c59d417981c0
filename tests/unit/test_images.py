"""Image folders: listing, decoding, cache, and what is said about each kind of damage."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from engram.datasets import image_files, images, sources, user_images
from engram.datasets.storage import Storage
from engram.utils.errors import DataError


def colour(seed: int, side: int = 8, mode: str = "RGB") -> Image.Image:
    shape = (side, side, 3) if mode == "RGB" else (side, side)
    return Image.fromarray(np.random.RandomState(seed).randint(0, 256, shape, dtype=np.uint8))


def write(path: Path, image: Image.Image) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return np.asarray(image.convert("RGB"))


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Two classes, three training and one test image each, as lossless PNG."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for c, name in enumerate(("cat", "dog")):
        for i in range(3):
            write(tmp_path / f"own/train/{name}/{i}.png", colour(10 * c + i))
        write(tmp_path / f"own/test/{name}/0.png", colour(100 + c))
    return tmp_path / "own"


def read(folder: Path, img_size: int | None = None) -> sources.Source:
    listed = user_images.list_images(folder, 0.2, 0)
    return user_images.read(listed, img_size, Storage(data_dir=str(folder.parent)))


def test_a_folder_of_classes_becomes_tensors_pixel_for_pixel(folder):
    source = read(folder)
    assert source.classes == ("cat", "dog")
    assert source.train_x.shape == (6, 3, 8, 8) and source.train_x.dtype == torch.uint8
    assert source.train_y.tolist() == [0, 0, 0, 1, 1, 1] and source.test_y.tolist() == [0, 1]
    for row, seed in enumerate((0, 1, 2, 10, 11, 12)):
        expected = np.asarray(colour(seed)).transpose(2, 0, 1)
        assert np.array_equal(source.train_x[row].numpy(), expected)


def test_a_table_fixes_the_order_and_the_labels(folder):
    (folder / "train.csv").write_text("label,path\nx,train/dog/1.png\ny,train/cat/2.png\n")
    (folder / "test.csv").write_text("path,label\ntest/cat/0.png,y\ntest/dog/0.png,x\n")
    source = read(folder)
    assert source.classes == ("x", "y")
    assert source.train_y.tolist() == [0, 1] and source.test_y.tolist() == [1, 0]
    assert np.array_equal(source.train_x[0].numpy(), np.asarray(colour(11)).transpose(2, 0, 1))


def test_more_images_than_a_chunk_keep_their_order(folder):
    n = 2 * images.CHUNK + 5
    seeds = np.random.RandomState(0).permutation(n)
    for seed in range(n):
        write(folder / f"many/{seed}.png", colour(seed))
    (folder / "train.csv").write_text("path,label\n" + "".join(f"many/{s}.png,cat\n" for s in seeds))
    (folder / "test.csv").write_text("path,label\ntest/cat/0.png,cat\n")
    expected = np.stack([np.asarray(colour(s)).transpose(2, 0, 1) for s in seeds])
    assert np.array_equal(read(folder).train_x.numpy(), expected)


def test_classes_that_are_numbers_are_sorted_as_numbers(tmp_path):
    listing = image_files.Listing(["a", "b", "c"], ["10", "9", "0"])
    assert image_files.class_names(tmp_path, listing, listing) == ("0", "9", "10")


def test_grey_and_jpeg_images_become_rgb(folder):
    expected = write(folder / "train/cat/0.png", colour(5, mode="L"))
    write(folder / "train/cat/1.JPEG", colour(6))
    source = read(folder)
    assert np.array_equal(source.train_x[0].numpy(), expected.transpose(2, 0, 1))
    assert len(source.train_x) == 7


def test_img_size_scales_the_shorter_side_and_crops_the_centre(folder):
    wide = np.zeros((8, 16, 3), dtype=np.uint8)
    wide[:, 4:12] = 255  # the centre square
    write(folder / "train/cat/0.png", Image.fromarray(wide))
    source = read(folder, img_size=8)
    assert source.train_x.shape == (6, 3, 8, 8) and bool((source.train_x[0] == 255).all())
    assert read(folder, img_size=4).test_x.shape == (2, 3, 4, 4)


def test_decoding_happens_once(folder, monkeypatch, capsys):
    first = read(folder)
    assert "decoding 8 images" in capsys.readouterr().err
    monkeypatch.setattr(images, "decode", lambda *_, **__: pytest.fail("decoded again"))
    second = read(folder)
    assert capsys.readouterr().err == ""
    assert torch.equal(first.train_x, second.train_x) and torch.equal(first.test_y, second.test_y)
    assert first.classes == second.classes


@pytest.mark.parametrize("change", ["image", "time", "label", "size"])
def test_changed_files_or_settings_are_decoded_again(folder, change):
    table = folder / "train.csv"
    table.write_text("path,label\ntrain/cat/0.png,cat\ntrain/dog/0.png,dog\n")
    before = read(folder)
    if change == "image":
        write(folder / "train/cat/0.png", colour(77))
    elif change == "time":
        os.utime(folder / "train/cat/0.png", ns=(1, 1))
    elif change == "label":
        table.write_text("path,label\ntrain/cat/0.png,dog\ntrain/dog/0.png,cat\n")
    after = read(folder, img_size=4 if change == "size" else None)
    assert len(list((folder.parent / "decoded").iterdir())) == 2
    same = torch.equal(before.train_x, after.train_x) and torch.equal(before.train_y, after.train_y)
    assert same == (change == "time")


@pytest.mark.parametrize(
    "damage", ["empty", "text", "half", "no end", "flipped", "other object", "other key"]
)
def test_a_damaged_cache_is_made_anew(folder, damage):
    good = read(folder)
    (file,) = (folder.parent / "decoded").iterdir()
    content = file.read_bytes()
    damaged = {
        "empty": b"", "text": b"hello", "half": content[: len(content) // 2], "no end": content[:-20],
        "flipped": content[:70] + bytes(255 - b for b in content[70:170]) + content[170:],
    }  # fmt: skip
    if damage in damaged:
        file.write_bytes(damaged[damage])
    elif damage == "other object":
        torch.save([1, 2], file)
    else:
        torch.save(torch.load(file, weights_only=True) | {"key": "another"}, file)
    again = read(folder)
    assert torch.equal(good.train_x, again.train_x) and torch.equal(good.train_y, again.train_y)
    assert [f.name for f in (folder.parent / "decoded").iterdir()] == [file.name]
    assert torch.load(file, weights_only=True)["train_x"].shape == (6, 3, 8, 8)


def test_a_data_folder_that_cannot_be_written_uses_the_users_cache(folder):
    (folder.parent / "decoded").write_text("a file where the folder should be")
    read(folder)
    assert len(list((folder.parent / "home/.cache/engram/decoded").iterdir())) == 1


def test_a_cache_that_cannot_be_written_costs_nothing_but_a_line(folder, monkeypatch, capsys):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(images.os, "replace", full)
    assert len(read(folder).train_x) == 6
    assert "not cached" in capsys.readouterr().err
    assert list((folder.parent / "decoded").iterdir()) == []


def remove(path: Path) -> None:
    for file in path.iterdir():
        file.unlink()


ERRORS = {
    "no train": (lambda f: (f / "train").rename(f / "t"), r"own/train: no such folder; expected train/"),
    "no test": (lambda f: (f / "test").rename(f / "t"), r"own/test: no such folder; expected test/<class>"),
    "empty class": (lambda f: remove(f / "train/cat"), r"own/train/cat: no image \(\.jpg .*\); add"),
    "empty split": (lambda f: [remove(f / "test" / c) or (f / "test" / c).rmdir() for c in ("cat", "dog")],
                    r"own/test: empty; expected"),
    "untested": (lambda f: remove(f / "test/cat") or (f / "test/cat").rmdir(), r"'cat' has no test images"),
    "unlearned": (lambda f: remove(f / "train/cat") or (f / "train/cat").rmdir(), r"'cat' has no training"),
    "text": (lambda f: (f / "train/cat/1.png").write_text("x"), r"cat/1\.png: not a readable image"),
    "size": (lambda f: write(f / "test/dog/0.png", colour(0, side=9)),
             r"dog/0\.png: 9x9 pixels where 8x8 is expected; give --img_size"),
    "empty table": (lambda f: (f / "train.csv").write_text("path,label\n"), r"train\.csv: empty"),
    "column": (lambda f: (f / "train.csv").write_text("path,class\na,b\n"), r"column 'label' is missing"),
    "no header": (lambda f: (f / "train.csv").write_text(""), r"column 'label' is missing"),
    "short row": (lambda f: (f / "train.csv").write_text("path,label\na\n"), r"line 2: path or label is"),
    "parent": (lambda f: (f / "train.csv").write_text("path,label\ntrain/../../x.png,cat\n"),
               r"line 2: 'train/\.\./\.\./x\.png' lies outside"),
    "absolute": (lambda f: (f / "train.csv").write_text("path,label\n/etc/x.png,cat\n"), r"lies outside"),
    "lost": (lambda f: (f / "train.csv").write_text("path,label\nx.png,cat\ny.png,dog\n"),
             r"own/x\.png: no such file, though"),
    "binary": (lambda f: (f / "train.csv").write_bytes(b"path,label\n\xff\xfe,cat\n"), r"csv: unreadable"),
    "NUL": (lambda f: (f / "train.csv").write_bytes(b"path,label\nx\0y,cat\nz,dog\n"),
            r"x.y: unreadable \(embedded null byte\)|csv: unreadable"),
    "loop in a class": (lambda f: (f / "train/cat/9.png").symlink_to("9.png"),
                        r"cat/9\.png: .*Too many levels"),
    "loop of classes": (lambda f: (f / "train/x").symlink_to("x"), r"train/x: Too many levels"),
    "loop to the top": (lambda f: (f / "train/x").symlink_to(".."), r"own/train/x: no image"),
    "broken link": (lambda f: (f / "train/cat/9.png").symlink_to("lost"),
                    r"cat/9\.png: not a file \(a broken"),
    "folder": (lambda f: (f / "train/cat/9.png").mkdir(), r"cat/9\.png: not a file \(a broken link, a fold"),
    "file not UTF-8": (lambda f: write(f / os.fsdecode(b"train/cat/\xe9.png"), colour(0)),
                       r"cat/\\xe9\.png: its name is not UTF-8; rename it"),
    "class not UTF-8": (lambda f: (f / os.fsdecode(b"train/\xe9")).mkdir(), r"train/\\xe9: its name is not"),
    "animation": (lambda f: colour(0).save(f / "train/cat/9.gif", save_all=True, append_images=[colour(1)]),
                  r"cat/9\.gif: holds several images"),
}  # fmt: skip


@pytest.mark.parametrize("case", ERRORS)
def test_every_fault_of_a_folder_is_one_clear_error(folder, case):
    harm, message = ERRORS[case]
    harm(folder)
    with pytest.raises(DataError, match=message) as caught:
        read(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("locked", ["train", "train/cat"])
def test_a_folder_that_cannot_be_read_is_named(folder, locked, monkeypatch):
    scandir = os.scandir

    def denied(path):
        if os.fspath(path) == os.fspath(folder / locked):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)
    with pytest.raises(DataError, match=rf"own/{locked}: the folder cannot be read \(Permission denied\)"):
        read(folder)


@pytest.mark.parametrize("ending", [".BMP", ".webp", ".tif", ".TIFF", ".Jpg", ".PPM", ".gif", ".pgm"])
def test_every_kind_of_image_is_found_in_a_class_folder(folder, ending):
    write(folder / f"train/cat/9{ending}", colour(0, mode="L" if ending == ".pgm" else "RGB"))
    assert len(read(folder).train_x) == 7


def test_what_is_skipped_is_counted_and_said_in_one_line(folder, capsys):
    for name in ("train/cat/a.txt", "test/dog/b.TXT", "train/dog/film.mov"):
        (folder / name).write_text("no image")
    assert len(read(folder).train_x) == 6
    first = capsys.readouterr().err.splitlines()
    assert first[0] == f"{folder}: 3 files skipped: 2 .txt, 1 .mov" and len(first) == 2
    write(folder / "train/9.png", colour(0))
    write(folder / "train/cat/more/9.png", colour(0))
    (folder / "train/cat/.DS_Store").write_text("no image")
    (folder / os.fsdecode(b"train/cat/\xe9")).write_text("no image")
    read(folder)
    (again,) = capsys.readouterr().err.splitlines()
    kinds = again.removeprefix(f"{folder}: 7 files skipped: ").split(", ")
    assert set(kinds) == {
        "2 .txt", "1 .mov", "1 .png outside a class folder", "1 subfolder", "1 .DS_Store", "1 \\xe9"
    }  # fmt: skip


def test_what_older_rules_decoded_is_not_trusted(folder, monkeypatch):
    key = {}
    for decoder in (images.DECODER - 1, images.DECODER):
        monkeypatch.setattr(images, "DECODER", decoder)
        read(folder)
        key[decoder] = images.decoding_key(folder, image_files.list_folder(folder), None)
    assert len(list((folder.parent / "decoded").iterdir())) == 2 and len(set(key.values())) == 2
    before = image_files.fingerprint(folder, image_files.list_folder(folder), None)
    assert before not in key.values()  # the key of caches from before there were rules


def test_images_that_no_memory_holds_are_refused(folder, monkeypatch):
    def full(*sizes, **_):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(images.torch, "empty", full)
    with pytest.raises(DataError, match=r"6 images of 8x8 pixels do not fit into memory; give --images disk"):
        read(folder)


def test_a_folder_that_is_not_there_names_the_flag(tmp_path):
    with pytest.raises(DataError, match=r"--image_dir .*nowhere: no such folder"):
        user_images.list_images(tmp_path / "nowhere", 0.2, 0)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_an_image_damaged_anywhere_is_an_error_or_still_an_image(tmp_path, suffix):
    file = tmp_path / f"image.{suffix}"
    write(file, colour(0, side=16))
    content = file.read_bytes()
    draw = np.random.RandomState(0)
    for _ in range(150):
        damaged = bytearray(content[: draw.randint(len(content))] if draw.rand() < 0.5 else content)
        for place in draw.randint(0, len(damaged), 3) if damaged else ():
            damaged[place] = draw.randint(256)
        file.write_bytes(damaged)
        try:
            assert images.read_image(file).shape[2] == 3
        except DataError as error:
            assert str(file) in str(error)
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match="not a readable image"):
        images.read_image(file)
