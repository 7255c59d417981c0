"""Images on disk: the same runs as from memory, read ahead by threads that end; damaged files are refused."""

import fcntl
import json
import mmap
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from engram.datasets import benchmark as module
from engram.datasets import images, lazy_images, shards, storage
from engram.datasets.lazy_images import ConcatenatedImages, DiskImages
from engram.main import main
from engram.utils.config.config import resolve
from engram.utils.errors import DataError
from engram.utils.training.trainer import Trainer
from tests.conftest import ROOT, built, synthetic_source, tiny_benchmark, tiny_config, tiny_method
from tests.waiting import LIMIT


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Seven tiny images to a file, two batches of four to a block, test images in chunks."""
    monkeypatch.setattr(shards, "SHARD_BYTES", 7 * 36)
    monkeypatch.setattr(module, "BLOCK_BYTES", {"cpu": 4 * 36 * 8})
    monkeypatch.setattr(module, "STACK_BYTES", {"cpu": 0})


@pytest.fixture
def no_threads_left():
    """Readers end with what they read for."""
    yield
    assert not readers()


def readers() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("images")]


def pair(tmp_path, scenario: str = "class-il", **flags):
    """The tiny benchmark from memory and from disk."""
    return [
        tiny_benchmark(tiny_config(images=where, data_dir=str(tmp_path), **flags), scenario)
        for where in ("memory", "disk")
    ]


def written(tmp_path, n: int = 20) -> tuple[torch.Tensor, DiskImages]:
    """Images (n, 1, 6, 6), and the same on disk."""
    raw = torch.arange(n * 36).view(n, 1, 6, 6).to(torch.uint8)
    labels = {"train": torch.arange(n), "test": torch.arange(2)}
    parts = {"train": raw.numpy(), "test": raw[:2].numpy()}
    folder = tmp_path / "a.shards"
    shards.write(folder, "key", (1, 6, 6), ("a", "b"), labels, lambda split, put: put(0, parts[split]))
    return raw, shards.read(folder, "key")["train_x"]


# --- what a method sees --------------------------------------------------------------------------


@pytest.mark.parametrize("scenario", ["class-il", "domain-il"])
@pytest.mark.parametrize("stream", ["tasks", "joint", "cumulative"])
@pytest.mark.parametrize("start", [0, 3])
def test_batches_are_those_from_memory_bit_for_bit(tmp_path, scenario, stream, start, no_threads_left):
    held, on_disk = pair(tmp_path, scenario, permute_classes=scenario == "class-il")
    assert held.on_disk is None and "--images disk" in on_disk.on_disk
    streams = [b.tasks if stream == "tasks" else getattr(b, stream)() for b in (held, on_disk)]
    for ours, theirs in zip(*streams, strict=True):
        batches = [b.batches(t, 1, 4, start) for b, t in ((held, ours), (on_disk, theirs))]
        for a, b in zip(*batches, strict=True):
            assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("scenario", ["class-il", "domain-il"])
@pytest.mark.parametrize("validation", [0, 20])
def test_evaluation_sees_the_same_samples(tmp_path, scenario, validation):
    held, on_disk = pair(tmp_path, scenario, validation=validation)
    for name in ("test_chunks", "train_chunks"):
        for a, b in zip(getattr(held, name)(3, 7), getattr(on_disk, name)(3, 7), strict=True):
            assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    for a, b in zip(held.train(held.tasks[1]), on_disk.train(on_disk.tasks[1]), strict=True):
        assert torch.equal(a, b[:]) and a.shape == b.shape


def test_indexing_is_a_tensors(tmp_path):
    raw, on_disk = written(tmp_path)
    rows, mask = torch.tensor([19, 3, 3, 6, 7, 13]), torch.arange(20) % 3 == 1
    assert [len(file) for file in on_disk.files] == [7, 7, 6]
    assert torch.equal(on_disk.index_select(0, rows), raw[rows])
    for key in (rows, mask, slice(None), slice(5, 15, 3), slice(0, 0), slice(-3, None)):
        assert torch.equal(on_disk[key], raw[key])
    for part, expected in zip(on_disk.split(6), raw.split(6), strict=True):
        assert torch.equal(part, expected)
    part = on_disk.subset(rows, lambda x: 255 - x)
    assert torch.equal(part[torch.tensor([0, 5])], 255 - raw[[19, 13]]) and len(part) == 6
    with pytest.raises(IndexError, match="indices 0 to 20 of 20"):
        on_disk[torch.tensor([0, 20])]
    with pytest.raises(AttributeError, match=r"no 'flatten': read some with \[rows\]"):
        on_disk.flatten(1)
    with pytest.raises(TypeError, match="stack"):
        torch.stack([on_disk, on_disk])


def test_large_images_are_fetched_all_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(lazy_images, "LARGE", 36)
    raw, on_disk = written(tmp_path)
    rows = torch.tensor([19, 0, 6, 7, 13])
    assert torch.equal(on_disk[rows], raw[rows])


def test_joined_images_stay_unread_until_they_are_taken(tmp_path):
    raw, on_disk = written(tmp_path)
    both, rows = torch.cat((raw[:5], on_disk)), torch.tensor([24, 0, 5, 4, 11])
    assert isinstance(both, ConcatenatedImages) and both.shape == (25, 1, 6, 6)
    assert torch.equal(both.index_select(0, rows), torch.cat((raw[:5], raw))[rows])
    alike = torch.cat([on_disk.subset(torch.tensor([3, 1])), on_disk.subset(torch.tensor([19]))])
    assert isinstance(alike, DiskImages) and torch.equal(alike[:], raw[[3, 1, 19]])
    changed = torch.cat([on_disk.subset(rows[1:2], change) for change in (torch.neg, torch.bitwise_not)])
    assert torch.equal(changed[:], torch.cat([raw[:1].neg(), raw[:1].bitwise_not()]))


# --- whole runs ----------------------------------------------------------------------------------


def trained(model: str, **flags):
    method, config = tiny_method(model, **flags)
    trainer = Trainer(config, method, folder=None, quiet=True)
    trainer.save = lambda: None
    return trainer.run().R, method


@pytest.mark.parametrize("model", ["er", "icarl"])
def test_buffers_hold_copies_of_their_own(tmp_path, model, no_threads_left):
    flags = {"images": "disk", "data_dir": str(tmp_path), "buffer_size": 12}
    method = trained(model, **flags)[1]
    stored, source = method.buffer.stored(), synthetic_source()
    assert type(stored["x"]) is torch.Tensor and torch.equal(stored["x"], source.train_x[stored["index"]])


def test_digits_from_disk_give_the_same_matrix(tmp_path, capsys):
    found = []
    for where in ("memory", "disk"):
        flags = (
            f"--model er --buffer_size 50 --n_epochs 1 --images {where} --data_dir {tmp_path} --disable_log"
        )
        assert main([*flags.split(), "--output_dir", str(tmp_path / where)]) == 0
        told = capsys.readouterr().out
        document = json.loads(Path(told.split("results: ")[1].strip()).read_text())
        found.append({view: document[view]["R"] for view in ("class_il", "task_il")})
        assert ("images:  on disk, 0.115 MB in " in told) == (where == "disk")
    assert found[0] == found[1]


def image_folder(tmp_path, n: int = 9):
    draws = np.random.RandomState(0)
    for split, per_class in (("train", n), ("test", 3)):
        for name in ("ant", "bee", "cat", "dog"):
            (tmp_path / f"own/{split}/{name}").mkdir(parents=True)
            for i in range(per_class):
                image = Image.fromarray(draws.randint(0, 256, (8, 8, 3), dtype=np.uint8))
                image.save(tmp_path / f"own/{split}/{name}/{i}.png")
    return tmp_path / "own"


def folder_config(tmp_path, where: str, **flags):
    flags |= {"images": where, "data_dir": str(tmp_path), "image_dir": str(tmp_path / "own"), "n_tasks": 2}
    small_net = {"backbone": "mlp", "hidden_sizes": (8,), "n_epochs": 2, "lr_scheduler": "none"}
    return resolve([("test", {"model": "er", "dataset": "seq-imagefolder", **small_net, **flags})])


def test_an_image_folder_is_decoded_to_disk_and_gives_the_same_matrix(tmp_path, monkeypatch, capsys):
    image_folder(tmp_path)
    found = []
    for where in ("memory", "disk", "disk"):
        if where == "disk":
            monkeypatch.setattr(images, "decode", lambda *_, **__: pytest.fail("all images in memory"))
        method = built(folder_config(tmp_path, where))
        trainer = Trainer(folder_config(tmp_path, where), method, folder=None, quiet=True)
        trainer.save = lambda: None
        found.append(trainer.run().R)
    for view in found[0]:
        assert np.array_equal(found[0][view], found[1][view], equal_nan=True)
        assert np.array_equal(found[0][view], found[2][view], equal_nan=True)
    assert capsys.readouterr().err.count("train images of") == 1, "decoded once"


def test_auto_takes_the_disk_where_memory_is_short(tmp_path, monkeypatch):
    image_folder(tmp_path)
    n_bytes = (4 * 9 + 4 * 3) * 8 * 8 * 3
    monkeypatch.setattr(storage, "free_bytes", lambda device: 2 * n_bytes)
    assert built(folder_config(tmp_path, "auto")).setup.benchmark.on_disk is None
    monkeypatch.setattr(storage, "free_bytes", lambda device: 2 * n_bytes - 1)
    told = built(folder_config(tmp_path, "auto")).setup.benchmark.on_disk
    assert "more than half of the 0.0184 MB that are free on cpu" in told


def test_free_memory_is_what_the_system_and_the_container_grant(tmp_path, monkeypatch):
    assert 1 << 20 < storage.free_bytes("cpu") < 1 << 50
    (tmp_path / "max").write_text("max\n")
    monkeypatch.setattr(storage, "LIMITS", (str(tmp_path / "max"),))
    unlimited = storage.free_bytes("cpu")
    (tmp_path / "max").write_text("12345\n")
    assert storage.free_bytes("cpu") == 12345 < unlimited


# --- files ---------------------------------------------------------------------------------------


def test_what_is_written_in_any_order_is_read_back(tmp_path):
    raw = torch.randint(0, 256, (20, 1, 6, 6), dtype=torch.uint8)
    labels = {"train": torch.arange(20) % 2, "test": torch.arange(20) % 3}

    def fill(split, put):
        for start in (16, 0, 8, 4, 12):  # parts of four lie across files of seven
            put(start, raw[start : start + 4].numpy())

    shards.write(tmp_path / "a.shards", "key", (1, 6, 6), ("x", "y", "z"), labels, fill)
    data = shards.read(tmp_path / "a.shards", "key")
    assert data["classes"] == ("x", "y", "z")
    for split in ("train", "test"):
        assert torch.equal(data[f"{split}_x"][:], raw) and torch.equal(data[f"{split}_y"], labels[split])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.shards", "a.shards.lock"]


def truncate(path):
    os.truncate(path, path.stat().st_size - 1)


def zero(path):
    path.write_bytes(bytes(path.stat().st_size))


def rewrite(**change):
    def damage(path):
        header = path.parent / "header.json"
        header.write_text(json.dumps(json.loads(header.read_text()) | change))

    return damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, "train-0001.u8: 251 bytes where 252 are expected"),
        (lambda path: path.unlink(), "train-0001.u8: 0 bytes where 252 are expected"),
        (zero, "train-0001.u8: damaged, its bytes are not those that were written"),
        (lambda path: truncate(path.parent / "header.json"), "header.json: missing or damaged"),
        (lambda path: (path.parent / "header.json").unlink(), "header.json: missing or damaged"),
        (lambda path: zero(path.parent / "train_y.npy"), "train_y.npy: damaged"),
        (rewrite(version=shards.VERSION + 1), "of version 3"),
        (rewrite(key="other"), "other images"),
    ],
)
def test_damaged_shards_are_refused_with_what_to_do(tmp_path, damage, message):
    written(tmp_path)
    damage(tmp_path / "a.shards/train-0001.u8")
    with pytest.raises(DataError, match=f"{message}.*; delete .*a.shards and run again"):
        shards.read(tmp_path / "a.shards", "key")


def test_a_failed_decode_leaves_nothing(tmp_path):
    image_folder(tmp_path)
    (tmp_path / "own/train/dog/8.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"8\.png: not a readable image"):
        built(folder_config(tmp_path, "disk"))
    assert [p.suffix for p in (tmp_path / "decoded").iterdir()] == [".lock"]


def test_a_full_disk_is_said(tmp_path, monkeypatch):
    def full(path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shards, "_sync", full)
    with pytest.raises(DataError, match=r"No space left on device\); it takes 0.0 GB: free them, or give"):
        written(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["a.shards.lock"]


def test_a_disk_that_is_too_small_is_said_before_anything_is_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr(shards.shutil, "disk_usage", lambda path: SimpleNamespace(free=100))
    monkeypatch.setattr(shards, "_write_images", lambda *_: pytest.fail("decoded"))
    with pytest.raises(DataError, match=r"0\.0 GB are free on that disk\); it takes 0\.0 GB: free them"):
        written(tmp_path)


KILLED = """
import os, sys, torch
from pathlib import Path
from engram.datasets import shards
def fill(split, put):
    put(0, torch.ones(4, 1, 6, 6, dtype=torch.uint8).numpy())
    if split == "test":
        os.kill(os.getpid(), 9)
labels = {"train": torch.arange(4), "test": torch.arange(4)}
shards.write(Path(sys.argv[1]), "key", (1, 6, 6), ("a",), labels, fill)
"""


def test_a_killed_decode_is_not_taken_for_whole_and_is_made_anew(tmp_path):
    folder = tmp_path / "a.shards"
    done = subprocess.run([sys.executable, "-c", KILLED, str(folder)], cwd=ROOT, timeout=LIMIT)
    assert done.returncode == -9 and not folder.exists() and (tmp_path / "a.shards.partial").is_dir()
    raw, on_disk = written(tmp_path)
    assert torch.equal(on_disk[:], raw) and not (tmp_path / "a.shards.partial").exists()


def test_of_several_that_decode_at_once_all_but_one_wait(tmp_path, monkeypatch):
    calls, asked, flock = [], threading.Semaphore(0), fcntl.flock
    monkeypatch.setattr(fcntl, "flock", lambda *args: asked.release() or flock(*args))

    def fill(split, put):
        calls.append(split)
        if len(calls) == 1:  # until all three want to write
            assert all([asked.acquire(timeout=LIMIT) for _ in range(3)])
        put(0, np.ones((4, 1, 6, 6), dtype=np.uint8))

    labels = {"train": torch.arange(4), "test": torch.arange(4)}
    args = tmp_path / "a.shards", "key", (1, 6, 6), ("a",), labels, fill
    threads = [threading.Thread(target=shards.write, args=args) for _ in range(3)]
    for step in ("start", "join"):
        for thread in threads:
            getattr(thread, step)()
    assert calls == ["train", "test"] and bool((shards.read(args[0], "key")["train_x"][:] == 1).all())


# --- reading ahead -------------------------------------------------------------------------------


def test_reading_runs_ahead_by_so_many_blocks_and_no_further(tmp_path, monkeypatch, no_threads_left):
    _, on_disk = pair(tmp_path)
    started, prefetch = [], DiskImages.prefetch
    monkeypatch.setattr(
        DiskImages, "prefetch", lambda self, *args: started.append(1) or prefetch(self, *args)
    )
    monkeypatch.setattr(lazy_images, "N_PREFETCHED", 2)
    batches = on_disk.batches(on_disk.tasks[0], 0, 4)  # blocks of two batches: 30 samples are four blocks
    next(batches)
    assert len(started) == 3 and readers()
    next(batches)
    assert len(started) == 3
    next(batches)
    assert len(started) == 4
    batches.close()


def test_an_error_of_a_reader_is_raised_at_its_batch(tmp_path, monkeypatch, no_threads_left):
    _, on_disk = pair(tmp_path)
    copy, calls = DiskImages._copy, []

    def broken(self, images, rows):
        calls.append(1)
        if len(calls) == 3:
            raise OSError("the disk is gone")
        copy(self, images, rows)

    monkeypatch.setattr(DiskImages, "_copy", broken)
    monkeypatch.setattr(lazy_images, "N_READERS", 1)
    seen = 0
    with pytest.raises(OSError, match="the disk is gone"):
        for _ in on_disk.batches(on_disk.tasks[0], 0, 4):
            seen += 1
    assert seen == 4


@pytest.mark.parametrize("stop", [KeyboardInterrupt, ValueError])
def test_threads_end_when_training_is_stopped(tmp_path, stop):
    """By Ctrl-C or by an error in a step; while readers are at work."""
    method, config = tiny_method("er", images="disk", data_dir=str(tmp_path))
    trainer = Trainer(config, method, folder=None, quiet=True)
    observe, steps = method.observe, []

    def observe_some(batch):
        steps.append(readers())
        if len(steps) == 3:
            raise stop
        return observe(batch)

    method.observe = observe_some
    try:
        trainer.run()
    except stop:
        pass
    assert steps[0] and not readers()


def test_no_thread_outlives_an_epoch_or_a_pass_cut_short(tmp_path, no_threads_left):
    _, on_disk = pair(tmp_path)
    before = threading.active_count()
    for epoch in range(20):
        for i, _ in enumerate(on_disk.batches(on_disk.tasks[0], epoch, 4)):
            if epoch % 2 and i == 3:
                break
    assert threading.active_count() == before


def test_a_task_holds_places_not_images(tmp_path):
    """What a task holds of images on disk is their places."""
    _, on_disk = pair(tmp_path)
    samples = on_disk.train(on_disk.tasks[0])
    assert all(isinstance(file.base, mmap.mmap) for file in samples.x_raw.files)
    shutil.rmtree(tmp_path / "decoded")  # still mapped
    assert len(samples.x_raw[:3]) == 3
