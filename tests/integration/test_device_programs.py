"""Whole programs on a pretended CUDA device: the numbers of the CPU, and no wait inside a training step."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from engram.memorization import eval_splits, train_proxies, train_splits, train_stream, train_whole
from engram.scripts import worker
from engram.utils.training import interleaved
from engram.utils.training.interleaved import InterleavedJob
from tests.integration.test_interleaved import flags_of, measured
from tests.pretended_device import PretendedDevice

pytestmark = pytest.mark.slow

SMALL = "--dataset_size 0.1 --n_epochs 2 --use_multiprocessing 0".split()
MLP = ["--hidden_sizes", "10"]
CNN = "--backbone cnn --channels 4,5 --batch_size 50".split()


def scores(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as content:
        numbers = {name: content[name] for name in content.files if content[name].dtype.kind == "f"}
    return {name: values for name, values in numbers.items() if name != "cost"}  # seconds


def splits(folder: Path, *flags: str) -> dict[str, np.ndarray]:
    train_splits.run(
        ["--weights_dir", str(folder), *SMALL, "--n_repeats", "24", "--stack", "12", *MLP, *flags]
    )
    eval_splits.run(
        ["--weights_dir", str(folder), "--n_repeats", "24", "--out_filename", str(folder / "s.npz"), *flags]
    )
    return scores(folder / "s.npz")


def whole(folder: Path, *flags: str) -> dict[str, np.ndarray]:
    more = ["--n_examples", "8", "--n_repeats", "2"]
    out = ["--out_filename", str(folder / "s.npz")]
    train_whole.run(["--weights_dir", str(folder), *out, *SMALL, *more, *CNN, *flags])
    return scores(folder / "s.npz")


def proxies(folder: Path, *flags: str) -> dict[str, np.ndarray]:
    train_proxies.run(["--out_filename", str(folder / "s.npz"), *SMALL, "--n_networks", "2", *CNN, *flags])
    return scores(folder / "s.npz")


def stream(folder: Path, *flags: str) -> dict[str, np.ndarray]:
    more = "--n_repeats 24 --n_tasks 2 --buffer_size 20".split()
    out = ["--out_filename", str(folder / "s.npz")]
    train_stream.run(["--weights_dir", str(folder), *out, *SMALL, *more, *MLP, *flags])
    return scores(folder / "s.npz")


@pytest.mark.parametrize("program", [splits, whole, proxies, stream])
def test_memorization_computes_the_same_on_the_device(program, tmp_path):
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cuda").mkdir()
    expected = program(tmp_path / "cpu", "--device", "cpu")
    with PretendedDevice() as gpu:
        found = program(tmp_path / "cuda", "--device", "cuda")
    assert sum(gpu.launches.values()) > 500, "the device was used"
    assert found.keys() == expected.keys() and expected
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=2e-2, atol=2e-3, err_msg=name)


def test_interleaved_runs_on_the_device(tmp_path, monkeypatch):
    """Each in its thread and on its stream; modes of PyTorch belong to a thread, so each enters its own."""
    gpu = PretendedDevice()
    monkeypatch.setattr(interleaved, "cuda_stream", lambda name: gpu.in_thread())
    models = ("er", "maer")
    runs = [
        (str(tmp_path / model), flags_of(model, 0, "--n_tasks", "2", "--device", "cuda")) for model in models
    ]
    jobs = [
        InterleavedJob(partial(worker.execute_run, folder, flags), str(tmp_path / f"{i}.log"), "cuda")
        for i, (folder, flags) in enumerate(runs)
    ]
    with gpu:
        assert interleaved.run_interleaved(jobs) == 0, (tmp_path / "0.log").read_text()
    assert not torch.cuda.is_available() or torch.cuda.get_device_name() != "pretended"
    for model, (folder, _) in zip(models, runs, strict=True):
        alone = str(tmp_path / f"{model} alone")
        assert worker.execute_run(alone, flags_of(model, 0, "--n_tasks", "2", "--device", "cpu")) == 0
        found, expected = (measured(Path(f)) for f in (folder, alone))
        assert found.keys() == expected.keys()
        for view in ("class_il", "task_il"):
            np.testing.assert_allclose(found[view]["R"], expected[view]["R"], atol=0.05)
