"""Own images without a split, and as a CSV file with domains: what is tested, and what a line says."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from engram.datasets import user_images
from engram.datasets.user_images import list_images
from engram.main import main
from engram.models.build import build_benchmark
from engram.utils.config.cli import parse
from engram.utils.errors import DataError
from engram.utils.runs.run_record import RunRecord


def write(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8, 3), value, dtype=np.uint8)).save(path)


@pytest.fixture
def flat(tmp_path, monkeypatch) -> Path:
    """Ten images of a cat, five of a dog, in class folders alone."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name, n in (("cat", 10), ("dog", 5)):
        for i in range(n):
            write(tmp_path / "flat" / name / f"{i}.png", 10 * i)
    return tmp_path / "flat"


def table(folder: Path, *rows: str) -> Path:
    path = folder / "all.csv"
    path.write_text("\n".join(rows) + "\n")
    return path


def benchmark(image_dir: Path, tmp_path: Path, *flags: str):
    own = ["--image_dir", str(image_dir), "--data_dir", str(tmp_path)]
    config = parse(["--model", "sgd", "--dataset", "seq-imagefolder", *own, *flags]).config
    return build_benchmark(config, torch.device("cpu"))


def test_a_share_of_each_class_is_held_out_by_a_seed_that_is_said(flat):
    listed = list_images(flat, 0.2, 0)
    assert [listed.test.labels.count(name) for name in ("cat", "dog")] == [2, 1]
    assert [listed.train.labels.count(name) for name in ("cat", "dog")] == [8, 4]
    assert not set(listed.train.paths) & set(listed.test.paths)
    assert listed.train.paths == sorted(listed.train.paths) and listed.train.paths[0].startswith("cat/")
    assert listed.notes == ("12 training and 3 test images: 20 % of each class held out by --split_seed 0",)
    assert list_images(flat, 0.2, 0) == listed != list_images(flat, 0.2, 1)


def test_other_classes_do_not_change_which_images_of_a_class_are_tested(flat):
    before = [path for path in list_images(flat, 0.2, 0).test.paths if path.startswith("cat/")]
    for i in range(4):
        write(flat / "ant" / f"{i}.png", i)
    assert [path for path in list_images(flat, 0.2, 0).test.paths if path.startswith("cat/")] == before


def test_the_split_is_the_same_for_every_seed_of_a_run(flat, tmp_path):
    first, second = (
        benchmark(flat, tmp_path, "--n_tasks", "2", "--seed", seed, "--img_size", "8") for seed in ("0", "1")
    )
    images = [stream.test(2).x_raw.flatten(1)[:, 0].tolist() for stream in (first, second)]
    assert sorted(images[0]) == sorted(images[1]) and len(images[0]) == 3
    assert "held out by --split_seed 0" in " ".join(first.notes)


def test_a_csv_says_what_is_tested(flat):
    rows = [f"cat/{i}.png,cat,{'test' if i == 3 else 'train'}" for i in range(10)]
    rows += [f"dog/{i}.png,dog,{'test' if i else 'train'}" for i in range(5)]
    listed = list_images(table(flat, "path,label,split", *rows), 0.2, 0)
    assert listed.test.paths == ["cat/3.png", *(f"dog/{i}.png" for i in range(1, 5))] and not listed.notes
    assert listed.domains is None and len(listed.train.paths) == 10
    unsplit = list_images(table(flat, "path,label", *(row.rpartition(",")[0] for row in rows)), 0.2, 0)
    assert sorted(unsplit.test.labels) == ["cat", "cat", "dog"]


def test_a_domain_is_a_task_of_its_own(flat, tmp_path):
    domains = ("art", "photo")
    rows = [f"{name}/{i}.png,{name},{domains[i % 2]}" for name in ("cat", "dog") for i in range(4)]
    path = table(flat, "path,label,domain", *rows)
    stream = benchmark(path, tmp_path, "--n_tasks", "2", "--img_size", "8")
    assert stream.scenario == "domain-il" and len(stream.tasks) == 2
    art, both = (set(stream.test(n).x_raw.flatten(1)[:, 0].tolist()) for n in (1, 2))
    assert art <= {0, 20} and both - art <= {10, 30}, "art, the images 0 and 2, comes before photo"
    assert [len(task.test_index) for task in stream.tasks] == [2, 2], "one of each class"
    with pytest.raises(DataError, match="has 2 domains; give that"):
        benchmark(path, tmp_path, "--n_tasks", "5", "--img_size", "8")


WRONG = {
    "one image": (
        ["path,label", "cat/0.png,cat", "dog/0.png,dog"],
        "class 'cat' has one image, and needs one",
    ),
    "word": (["path,label,split", "cat/0.png,cat,val"], "column split has 'val'; expected train or test"),
    "no test": (["path,label,split", "cat/0.png,cat,train"], "no image is for test"),
    "empty": (["path,label,domain", "cat/0.png,cat,"], "line 2: domain is empty; fill it in"),
    "column": (["file,label", "cat/0.png,cat"], "column 'path' is missing"),
    "domain": (
        ["path,label,split,domain", "cat/0.png,cat,train,a", "cat/1.png,cat,test,b"],
        "domain 'a' has no training or no test image",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_with_a_csv_is_one_line(flat, case):
    rows, message = WRONG[case]
    with pytest.raises(DataError, match=message):
        list_images(table(flat, *rows), 0.2, 0)


def test_a_folder_without_class_folders_is_refused(tmp_path):
    write(tmp_path / "own" / "0.png", 1)
    with pytest.raises(DataError, match=r"no folder in it; expected a folder that holds train/<class>/"):
        user_images.list_images(tmp_path / "own", 0.2, 0)


@pytest.fixture
def domains(tmp_path, monkeypatch) -> Path:
    """`train/<domain>/<class>/` and `test/` of two domains with two classes, a pixel value for each image."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for d, domain in enumerate(("photo", "sketch")):
        for c, name in enumerate(("cat", "dog")):
            for i in range(3):
                write(tmp_path / "own" / "train" / domain / name / f"{i}.png", 100 * d + 10 * c + i)
            write(tmp_path / "own" / "test" / domain / name / "9.png", 100 * d + 10 * c + 9)
    return tmp_path / "own"


def test_folders_of_class_folders_are_domains_and_are_named(domains, tmp_path):
    stream = benchmark(domains, tmp_path, "--n_tasks", "2")
    assert stream.scenario == "domain-il" and "2 domains: photo, sketch" in stream.notes
    assert stream.class_names == ["cat", "dog"] and stream.tasks[1].classes == (0, 1)
    photo, sketch = (stream.train(task) for task in stream.tasks)
    assert photo.x_raw[:, 0, 0, 0].tolist() == [0, 1, 2, 10, 11, 12] and photo.y.tolist() == [0] * 3 + [1] * 3
    assert sketch.x_raw[:, 0, 0, 0].tolist() == [100, 101, 102, 110, 111, 112]
    assert stream.test_of(stream.tasks[1]).x_raw[:, 0, 0, 0].tolist() == [109, 119]


def test_test_images_without_domains_are_shared_out(domains, tmp_path):
    shutil.rmtree(domains / "test")
    for c, name in enumerate(("cat", "dog")):
        for i in range(4):
            write(domains / "test" / name / f"{i}.png", 200 + 10 * c + i)
    stream = benchmark(domains, tmp_path, "--n_tasks", "2")
    assert any("test images have no domain" in note for note in stream.notes)
    first, second = (stream.test_of(task).x_raw[:, 0, 0, 0].tolist() for task in stream.tasks)
    assert first == [200, 202, 210, 212] and second == [201, 203, 211, 213]


def test_domains_are_a_column_of_both_tables_too(domains):
    for split, name in (("train", "0.png"), ("test", "9.png")):
        rows = [
            f"{split}/{domain}/{c}/{name},{c},{domain}"
            for domain in ("sketch", "photo")
            for c in ("cat", "dog")
        ]
        (domains / f"{split}.csv").write_text("\n".join(["path,label,domain", *rows]) + "\n")
    listed = list_images(domains, 0.2, 0)
    assert listed.domains.names == ("photo", "sketch") and listed.domains.train.tolist() == [1, 1, 0, 0]


def test_domains_that_share_no_class_are_no_domains(domains):
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (domains / split / "sketch" / name).rename(domains / split / "sketch" / f"big{name}")
    with pytest.raises(
        DataError, match=r"domain 'photo' shares no class with the others \(it has cat, dog\)"
    ):
        list_images(domains, 0.2, 0)


def test_a_class_that_a_domain_lacks_is_said(domains):
    shutil.rmtree(domains / "train" / "sketch" / "dog")
    assert "domain sketch lacks 1 of 2 classes: dog" in list_images(domains, 0.2, 0).notes


def test_domains_of_test_images_alone_are_refused(domains):
    shutil.rmtree(domains / "train")
    write(domains / "train" / "cat" / "0.png", 1)
    with pytest.raises(DataError, match="test images have domains and training images have none"):
        list_images(domains, 0.2, 0)


def test_the_hash_stands_for_the_split_and_not_for_how_it_is_stored(flat, tmp_path):
    table(flat, "path,label,split", *(f"cat/{i}.png,cat,{'test' if i < 2 else 'train'}" for i in range(10)))
    by_table = list_images(flat / "all.csv", 0.2, 0).split_hash
    for i in range(10):
        write(tmp_path / "own" / ("test" if i < 2 else "train") / "cat" / f"{i}.png", i)
    by_folder = list_images(tmp_path / "own", 0.2, 0).split_hash
    assert by_table == by_folder and len(by_table) == 16
    (tmp_path / "own" / "test" / "cat" / "0.png").rename(tmp_path / "own" / "train" / "cat" / "0.png")
    assert list_images(tmp_path / "own", 0.2, 0).split_hash != by_table


def test_domains_change_the_hash(domains):
    before = list_images(domains, 0.2, 0).split_hash
    for split in ("train", "test"):
        (domains / split / "photo").rename(domains / split / "drawing")
    assert list_images(domains, 0.2, 0).split_hash != before


def test_a_run_records_which_split_it_learned(flat, tmp_path):
    flags = ["--model", "ncm", "--dataset", "seq-imagefolder", "--image_dir", str(flat), "--backbone", "mlp"]
    folders = ["--data_dir", str(tmp_path), "--output_dir", str(tmp_path / "runs"), "--disable_log"]
    assert main([*flags, *folders, "--n_tasks", "2", "--hidden_sizes", "2"]) == 0
    (path,) = (tmp_path / "runs").glob("*/*/*")
    assert RunRecord.read(path).split_hash == list_images(flat, 0.2, 0).split_hash
