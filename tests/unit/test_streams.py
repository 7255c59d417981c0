"""The benchmark files: each builds from data in its public layout, and its tasks are what its name says."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from engram.datasets import perm_mnist, rot_mnist, rotation
from engram.utils.config import registry
from engram.utils.config.config import resolve
from tests.unit.test_sources import MNIST_DIR, image_folder, mnist_folder, tiny_layout

PRETRAINED = {  # tasks, classes, scenario; built here with a small network and images
    "seq-cifar10-224": (5, 10, "class-il"),
    "seq-cifar100-224": (10, 100, "class-il"),
    "seq-cub200": (10, 200, "class-il"),
    "seq-imagenet-r": (10, 200, "class-il"),
    "seq-imagenet-a": (10, 200, "class-il"),
    "seq-cars196": (10, 196, "class-il"),
    "seq-mit67": (10, 67, "class-il"),
    "seq-core50": (8, 50, "domain-il"),
    "seq-domainnet": (6, 345, "domain-il"),
}
EXPECTED = {  # name: tasks, classes, image, scenario, backbone
    "seq-digits": (5, 10, (1, 8, 8), "class-il", "mlp"),
    "seq-mnist": (5, 10, (1, 28, 28), "class-il", "mlp"),
    "seq-fmnist": (5, 10, (1, 28, 28), "class-il", "mlp"),
    "perm-mnist": (20, 10, (1, 28, 28), "domain-il", "mlp"),
    "rot-mnist": (20, 10, (1, 28, 28), "domain-il", "mlp"),
    "seq-cifar10": (5, 10, (3, 32, 32), "class-il", "resnet18"),
    "seq-cifar100": (10, 100, (3, 32, 32), "class-il", "resnet18"),
    "seq-tinyimg": (20, 200, (3, 64, 64), "class-il", "resnet18"),
    "seq-imagefolder": (5, 10, (3, 16, 16), "class-il", "resnet18"),
    "seq-omniglot": (50, 52, (1, 28, 28), "class-il", "mlp"),
    "mnist-rotations": (20, 10, (1, 28, 28), "domain-il", "mlp"),
    "mnist-permutations": (20, 10, (1, 28, 28), "domain-il", "mlp"),
    "mnist-manypermutations": (100, 10, (1, 28, 28), "domain-il", "mlp"),
    "mnist-360": (1, 9, (1, 28, 28), "class-il", "mlp"),
    "gem-file": (20, 10, (1, 28, 28), "domain-il", "mlp"),
    "seq-arrays": (5, 10, (1, 28, 28), "class-il", "mlp"),
    "seq-dataset": (5, 10, (1, 28, 28), "class-il", "mlp"),
    **{name: (*counts, (3, 16, 16), scenario, "cnn") for name, (*counts, scenario) in PRETRAINED.items()},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A few images of every set."""
    root = tmp_path_factory.mktemp("data")
    mnist_folder(root, "MNIST")
    mnist_folder(root, "FashionMNIST")
    image_folder(root / "cifar10", 10, 32)
    image_folder(root / "cifar100", 100, 32)
    image_folder(root / "own", 10, 20)
    tiny_layout(root / "tiny-imagenet-200")
    alphabet_folder(root / "omniglot", [1] * 48 + [2, 2])
    for name, (n_tasks, n_classes, scenario) in PRETRAINED.items():
        n_domains = n_tasks if scenario == "domain-il" else 0
        named_tables(root / name.removeprefix("seq-"), n_classes, n_domains)
    torch.save([[[0, torch.zeros(2, 784), torch.tensor([0, 9])] for _ in range(20)]] * 2, root / "gem.pt")
    return root


def named_tables(root: Path, n_classes: int, n_domains: int) -> None:
    """`train.csv` and `test.csv` of one image that has every class in turn; test images have no domain."""
    root.mkdir(exist_ok=True)
    Image.new("RGB", (7, 9), (100, 50, 0)).save(root / "0.png")
    labelled = [f"0.png,c{c}" for c in range(n_classes)]
    of_domains = [f"{row},d{d}" for d in range(n_domains) for row in labelled]
    rows = {"train": of_domains or labelled, "test": labelled}
    for split in ("train", "test"):
        header = "path,label,domain" if split == "train" and n_domains else "path,label"
        (root / f"{split}.csv").write_text("\n".join([header, *rows[split]]) + "\n")


def alphabet_folder(root: Path, sizes: list[int]) -> None:
    """Alphabets of so many characters, two drawings of each to train on and one to test with."""
    for i, size in enumerate(sizes):
        for c in range(size):
            for split, n in (("train", 2), ("test", 1)):
                folder = root / split / f"Alphabet{i:02}.character{c:02}"
                folder.mkdir(parents=True)
                for k in range(n):
                    Image.new("L", (105, 105), 4 * i + c).save(folder / f"{k}.png")


def build(name: str, data_dir: Path, **flags):
    config = resolve([("test", {"model": "sgd", "dataset": name, "data_dir": str(data_dir), **flags})])
    return registry.load("datasets", name).build(config, torch.device("cpu")), config


def test_every_benchmark_is_expected():
    assert set(registry.names("datasets")) == set(EXPECTED)
    assert all(0 < len(line) < 100 and line.endswith(".") for line in registry.summaries("datasets").values())


def own_data() -> dict[str, list]:
    """A function such as `--dataset_from` names."""
    return {
        split: [(np.full((28, 28), 200, np.uint8), y % 10) for y in range(20)] for split in ("train", "test")
    }


@pytest.mark.parametrize("name", EXPECTED)
def test_every_benchmark_builds_with_its_defaults(name, data):
    own = {"image_dir": str(data / "own"), "img_size": 16}
    arrays = {"x": np.full((20, 28, 28), 200, dtype=np.uint8), "y": np.arange(20) % 10}
    np.savez(
        data / "own.npz", **{f"{s}_{field}": a for s in ("train", "test") for field, a in arrays.items()}
    )
    flags = {
        "seq-imagefolder": own,
        "gem-file": {"gem_file": str(data / "gem.pt")},
        "seq-dataset": {"dataset_from": f"{__name__}:own_data"},
        "seq-arrays": {"arrays": str(data / "own.npz")},
    }.get(name, {})
    if name in PRETRAINED:
        flags = {"backbone": "cnn", "img_size": 16, "test_resize": 0}
    stream, config = build(name, data, **flags)
    n_tasks, n_classes, shape, scenario, backbone = EXPECTED[name]
    assert (len(stream.tasks), stream.n_classes, stream.input_shape) == (n_tasks, n_classes, shape)
    assert (stream.name, stream.scenario, config.run.backbone) == (name, scenario, backbone)
    x = stream.augment(stream.test(1).x_raw, torch.Generator())
    assert x.shape[1:] == shape and bool(x.isfinite().all())
    boxes = name in PRETRAINED
    assert stream.augment.crop_padding == (0 if boxes else {28: 0, 8: 0, 16: 2, 32: 4, 64: 4}[shape[1]])
    assert stream.augment.crop_scale == ((0.05, 1.0) if boxes else ())


def test_the_image_folder_defaults_to_the_data_folder(data):
    stream, _ = build("seq-imagefolder", data / "own", n_tasks=2)
    assert stream.input_shape == (3, 20, 20) and stream.name == "seq-imagefolder"


def test_permuted_tasks_hold_the_same_pixels_in_drawn_orders(data):
    stream, _ = build("perm-mnist", data, n_tasks=3, seed=4)
    orders = stream.transforms["permutations"]
    assert [sorted(order) for order in orders] == [list(range(784))] * 3
    assert len({tuple(order) for order in orders}) == 3 and orders[0] != list(range(784))
    plain, _ = build("seq-mnist", data, n_tasks=1)
    images = plain.train(plain.tasks[0]).x_raw.flatten(1)
    for task, order in zip(stream.tasks, orders, strict=True):
        assert torch.equal(stream.train(task).x_raw.flatten(1), images[:, order])


def test_padding_is_a_black_border_whose_pixels_are_permuted_too(data):
    stream, _ = build("perm-mnist", data, n_tasks=2, padding=2)
    assert stream.input_shape == (1, 32, 32)
    plain, _ = build("seq-mnist", data, n_tasks=1)
    for split in ("train", "test"):
        whole = getattr(plain, split)(plain.tasks[0] if split == "train" else 1).x_raw
        bordered = torch.zeros(len(whole), 1, 32, 32, dtype=torch.uint8)
        bordered[:, :, 2:-2, 2:-2] = whole
        for task, order in zip(stream.tasks, stream.transforms["permutations"], strict=True):
            samples = stream.train(task) if split == "train" else stream.test_of(task)
            assert torch.equal(samples.x_raw.flatten(1), bordered.flatten(1)[:, order])


@pytest.mark.parametrize("size", [(28, 28), (20, 31)])
def test_rotation_is_pillows_pixel_for_pixel(size):
    generator = torch.Generator().manual_seed(0)
    angles = torch.cat((torch.arange(-360, 361, 45.0), 360 * torch.rand(1500, generator=generator)))
    raw = torch.randint(0, 256, (len(angles), 1, *size), generator=generator, dtype=torch.uint8)
    expected = [
        np.asarray(Image.fromarray(image[0].numpy()).rotate(angle.item()))
        for image, angle in zip(raw, angles, strict=True)
    ]
    assert np.array_equal(rotation.turned(raw, angles)[:, 0].numpy(), np.stack(expected))


def test_rotated_tasks_use_the_angles_that_are_saved(data):
    stream, _ = build("rot-mnist", data, n_tasks=4, seed=1)
    angles = stream.transforms["angles"]
    assert len(set(angles)) == 4 and all(0 <= angle < 180 for angle in angles)
    plain, _ = build("seq-mnist", data, n_tasks=1)
    image = plain.test(1).x_raw[3, 0].numpy()
    index = plain.test(1).index[3]
    for task, angle in zip(stream.tasks, angles, strict=True):
        whole = stream.test(4)
        turned = whole.x_raw[(whole.task_id == task.id) & (whole.index == index)][0, 0].numpy()
        assert np.array_equal(turned, np.asarray(Image.fromarray(image).rotate(angle)))


def test_draws_depend_on_the_seed_and_the_task_alone():
    """A longer stream begins like a shorter one. Angles are uniform: Kolmogorov-Smirnov, alarm below 1e-6."""
    assert torch.equal(perm_mnist.draw(784, 3, 5), perm_mnist.draw(784, 3, 5))
    assert not torch.equal(perm_mnist.draw(784, 3, 5), perm_mnist.draw(784, 4, 5))
    angles = np.sort([rot_mnist.draw(seed, task) for seed in range(50) for task in range(20)]) / 180
    distance = np.abs(angles - (np.arange(1000) + 0.5) / 1000).max()
    assert distance < np.sqrt(np.log(2e6) / 2000)


@pytest.mark.skipif(MNIST_DIR is None, reason="the real MNIST is not here")
def test_the_real_mnist_as_streams():
    stream, _ = build("seq-mnist", MNIST_DIR)
    assert [len(task.train_index) for task in stream.tasks] == [12665, 12089, 11263, 12183, 11800]
    assert stream.test_ends.tolist() == [2115, 4157, 6031, 8017, 10000]
    stream, _ = build("rot-mnist", MNIST_DIR, n_tasks=2)
    assert len(stream.test(2).y) == 20000 and stream.n_steps(stream.tasks[0], 128) == 469
