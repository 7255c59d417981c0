"""Benchmarks of published image sets: what is said of a folder that is missing, or of another set."""

from pathlib import Path

import pytest
import torch

from engram.models.build import build_benchmark
from engram.utils.config import config as settings
from engram.utils.config.cli import parse
from engram.utils.config.config import resolve
from engram.utils.errors import DataError
from tests.unit.test_streams import named_tables

SMALL = ("--backbone", "cnn", "--img_size", "16", "--test_resize", "20")


def benchmark(dataset: str, data_dir: Path, *flags: str):
    argv = ["--model", "sgd", "--dataset", dataset, "--data_dir", str(data_dir), *SMALL, *flags]
    return build_benchmark(parse(argv).config, torch.device("cpu"))


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (
            "seq-cub200",
            r"cub200: no such folder; get CUB-200-2011 .* in train/<class>/ and test/<class>/, or",
        ),
        ("seq-core50", r"core50: no such folder; get CORe50 .* in train/<domain>/<class>/ and"),
    ],
)
def test_a_missing_folder_is_one_line_with_its_layout(dataset, message, folder):
    with pytest.raises(DataError, match=message) as error:
        benchmark(dataset, folder)
    assert "\n" not in str(error.value) and "--help --dataset" in str(error.value)


def test_another_set_of_images_is_refused(folder):
    named_tables(folder / "mit67", 66, 0)
    with pytest.raises(DataError, match="66 classes, seq-mit67 has 67; another set of images is seq-image"):
        benchmark("seq-mit67", folder)


def test_domains_are_wanted_where_they_are_the_tasks(folder):
    named_tables(folder / "core50", 50, 0)
    with pytest.raises(DataError, match="has no domains; seq-core50 needs train/<domain>/<class>/"):
        benchmark("seq-core50", folder)
    named_tables(folder / "mit67", 67, 2)
    with pytest.raises(DataError, match="holds domains; seq-mit67 has classes in train/"):
        benchmark("seq-mit67", folder)
    named_tables(folder / "core50", 50, 5)
    with pytest.raises(DataError, match=r"--n_tasks 8: .*core50 has 5 domains; give that number"):
        benchmark("seq-core50", folder)


def test_each_session_is_tested_on_an_equal_part(folder):
    named_tables(folder / "core50", 50, 8)
    stream = benchmark("seq-core50", folder)
    assert sorted(len(task.test_index) for task in stream.tasks) == [6] * 6 + [7] * 2
    assert stream.stored_shape == (3, 20, 20) and stream.input_shape == (3, 16, 16)
    assert len(stream.split_hash) == 16


def test_what_a_benchmark_sets_for_its_backbone_goes_with_it():
    """alexnet has a flag --pretrained as well, of another kind."""
    defaults = settings.benchmark_defaults("seq-cub200")
    assert defaults["pretrained"] == "default" and defaults["img_size"] == 224
    for backbone in ("alexnet", "resnet18", "timm:vit_tiny_patch16_224"):
        config = resolve([("test", {"model": "sgd", "dataset": "seq-cub200", "backbone": backbone})])
        assert not getattr(config.architecture, "pretrained", None) and config.stream.img_size == 224
    assert resolve([("test", {"model": "sgd", "dataset": "seq-cub200"})]).architecture.pretrained == "default"


def test_help_shows_the_layout_of_the_benchmark_that_is_named(capsys):
    with pytest.raises(SystemExit):
        parse(["--help", "--dataset", "seq-imagenet-r"])
    assert "DATA_DIR/imagenet-r/" in capsys.readouterr().out
