"""The experiments of the two MAS repositories, as scripts: on made-up images of the official layout."""

import itertools
import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from engram import main as program
from engram.datasets import sources
from engram.scripts.studies import mas_adaptation
from engram.scripts.trained_run import open_trained_run
from tests.conftest import ROOT
from tests.unit.test_sources import mnist_folder
from tests.waiting import LIMIT

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def tiny_imagenet(tmp_path_factory) -> Path:
    """A data folder with `tiny-imagenet-200/` as the archive has it: one training and test image a class."""
    data = tmp_path_factory.mktemp("data")
    root, draws = data / "tiny-imagenet-200", np.random.RandomState(0)
    names = [f"n{i:08}" for i in draws.permutation(200)]
    (root / "val" / "images").mkdir(parents=True)
    (root / "wnids.txt").write_text("\n".join(names) + "\n")

    def draw(path: Path) -> None:
        Image.fromarray(draws.randint(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)

    rows = []
    for i, name in enumerate(names):
        folder = root / "train" / name / "images"
        folder.mkdir(parents=True)
        draw(folder / f"{name}_0.JPEG")
        draw(root / "val" / "images" / f"val_{i}.JPEG")
        rows.append(f"val_{i}.JPEG\t{name}\t0\t0\t62\t62\n")
    (root / "val" / "val_annotations.txt").write_text("".join(rows))
    return data


def test_tinyimagenet_through_the_script(tiny_imagenet, folder):
    environment = {
        **os.environ, "OMP_NUM_THREADS": "1", "PRETRAINED": "0", "INPUT_SIZE": "0", "EPOCHS": "1",
        "OUTPUT_DIR": str(folder), "EXTRA": "--width 0.03 --dropout 0.2 --disable_log",
    }  # fmt: skip
    done = subprocess.run(
        [ROOT / "scripts" / "reproduce" / "mas_tinyimagenet.sh", tiny_imagenet],
        env=environment, capture_output=True, text=True, timeout=LIMIT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = folder.glob("seq-tinyimg/mas/*")
    document = json.loads((path / "results.json").read_text())
    assert document["scenario"] == "task-il" and np.array(document["task_il"]["R"]).shape == (4, 4)
    assert document["config"]["num_freeze_layers"] == 2 and document["config"]["lr_milestones"] == [20]
    assert "average forgetting, right after minus at the end" in done.stdout
    for k in range(1, 5):
        assert (path / "models" / f"Task_{k}" / "classes.txt").read_text() == "50\n"
    parameters = torch.load(path / "models" / "reg_params", weights_only=True)
    assert "body.features.6.weight" in parameters and "body.features.3.weight" not in parameters


def test_frozen_layers_are_what_they_were_after_a_resume(tiny_imagenet, folder):
    flags = [
        "--model", "mas", "--dataset", "seq-tinyimg", "--data_dir", str(tiny_imagenet), "--n_tasks", "4",
        "--multi_head", "--backbone", "alexnet", "--num_freeze_layers", "2", "--width", "0.03", "--n_epochs",
        "1", "--lr", "0.01", "--optim_wd", "0.1", "--disable_log", "--savecheck", "task",
        "--output_dir", str(folder),
    ]  # fmt: skip
    assert program.main([*flags, "--stop_after", "2"]) == 0
    (path,) = folder.glob("seq-tinyimg/mas/*")
    assert program.main(["--resume", str(path)]) == 0
    weights = [torch.load(path / "weights" / f"task_{t}.pt", weights_only=True)["net"] for t in range(4)]
    for layer, frozen in ((0, True), (3, True), (6, False), (10, False)):
        name = f"body.features.{layer}.weight"
        for earlier, later in itertools.pairwise(weights):
            assert torch.equal(earlier[name], later[name]) == frozen, name


def test_pretrained_weights_that_are_not_there_end_the_run_with_one_line(
    tiny_imagenet, folder, monkeypatch, capsys
):
    monkeypatch.setenv("TORCH_HOME", str(folder / "hub"))

    def no_network(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    code = program.main([
        "--model", "mas", "--dataset", "seq-tinyimg", "--data_dir", str(tiny_imagenet), "--backbone",
        "alexnet", "--pretrained", "--disable_log", "--output_dir", str(folder),
    ])  # fmt: skip
    said = capsys.readouterr()
    assert code == 2 and said.err.splitlines()[-1].startswith(
        "error: --pretrained: AlexNet's weights could not be loaded"
    )
    assert not list(folder.glob("seq-tinyimg/*"))


def test_the_adaptation_study_measures_what_it_says(folder, capsys, monkeypatch):
    """On made-up digits: the table is the mean of what the runs' own networks get right."""
    mnist_folder(folder / "data")
    monkeypatch.setenv("HOME", str(folder / "home"))
    arguments = [
        "--data_dir",
        str(folder / "data"),
        "--seeds",
        "0,1",
        "--angle",
        "90",
        "--output_dir",
        str(folder / "out"),
    ]
    assert mas_adaptation.main(arguments) == 0
    said = capsys.readouterr().out
    source, forgotten = sources.mnist(folder / "data"), {"training": [], "adapted": []}
    images, y = source.test_x.rot90(1, (2, 3))[1::2], source.test_y[1::2]
    for seed in (0, 1):
        place = folder / "out" / f"angle90-seed{seed}"
        written = sorted((place / "images").iterdir())
        assert len(written) == len(source.test_x[::2])
        assert np.array_equal(
            np.asarray(Image.open(written[1])), source.test_x[2, 0].rot90(1, (0, 1)).numpy()
        )

        def right(run: Path) -> float:
            net = open_trained_run(str(run), "", "cpu").method.net.eval()
            return (net(images / 255).argmax(1) == y).double().mean().item()

        start = [torch.load(place / f"{c}_start.pt", weights_only=True)["method"] for c in forgotten]
        assert all(torch.equal(start[0]["net"][n], t) for n, t in start[1]["net"].items())
        omegas = [s["quadratic"]["importance"]["layers.1.weight"] for s in start]
        assert not torch.allclose(*omegas, rtol=0.01)
        for copy, values in forgotten.items():
            values.append(100 * (right(place / "base") - right(place / copy)))
    for line, values in zip(said.splitlines()[2:4], forgotten.values(), strict=True):
        assert f"| {np.mean(values):.2f} ± {np.std(values, ddof=1):.2f} |" in line
    saved = np.subtract(forgotten["training"], forgotten["adapted"])
    assert f"forgets {saved.mean():.2f} ± {saved.std(ddof=1):.2f} points less, paired by seed" in said
    monkeypatch.setattr(program, "main", None)
    assert mas_adaptation.main(arguments) == 0 and capsys.readouterr().out == said, "finished runs are kept"
