"""Speed, as ratios taken in one process: trainer and bare loop, data path and PIL, buffer and loop.

    python scripts/bench.py                  everything (about a quarter of an hour on two cores)
    python scripts/bench.py trainer-mlp      one part: trainer-mlp trainer-resnet data buffer methods-mlp
                                             methods-resnet scaling startup overhead
    python scripts/bench.py --update README.md    and put the lines between the file's markers

Rounds alternate between the two sides, so that a machine whose speed drifts slows both. Images are
random: their content does not change the time. Prints the machine, medians and their ratio.
"""

import argparse
import os
import platform
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import torch.nn.functional as F

from backbones.backbone import build_network
from datasets.augment import Augment
from datasets.benchmark import Benchmark, class_incremental
from datasets.sources import Source
from models.method import Setup
from models.sgd import SGD
from scripts.bench_buffer import CIFAR, buffer_speed
from scripts.bench_methods import methods_mlp, methods_resnet, scaling
from scripts.bench_startup import overhead, startup
from scripts.timing import alternate, cpu_name, random_source
from utils.config import Config, resolve
from utils.results import versions
from utils.training import Trainer


def build(config: Config, source: Source, augment: Augment) -> tuple[Benchmark, SGD]:
    """Benchmark and method as main.py would build them."""
    benchmark = class_incremental("bench", source, augment, config, "cpu")
    net = build_network(config.run.backbone, config.architecture, benchmark, seed=0)
    return benchmark, SGD(net, config.method, Setup(benchmark, config.train, 0))


def trainer_run(config: Config, source: Source, augment: Augment) -> float:
    """Seconds of a whole run of the trainer: data, steps, evaluations, checkpoints, progress."""
    _, method = build(config, source, augment)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(config, method, Path(folder), quiet=True)
        started = time.perf_counter()
        trainer.run()
        return time.perf_counter() - started


def bare_run(config: Config, source: Source, augment: Augment) -> float:
    """Seconds of the same steps and evaluations, written out plainly over float tensors in memory."""
    benchmark, method = build(config, source, augment)
    net, size = method.net, config.train.batch_size
    test = benchmark.test(len(benchmark.tasks))
    test_x, test_y = augment.normalise(test.x_raw), test.y
    tasks = [(augment.normalise(benchmark.train(t).x_raw), benchmark.train(t).y) for t in benchmark.tasks]
    started = time.perf_counter()
    bare_accuracy(net, test_x, test_y)
    for x, y in tasks:
        optimizer = torch.optim.SGD(net.parameters(), lr=config.train.lr)
        for i in range(0, len(y), size):
            optimizer.zero_grad()
            loss = F.cross_entropy(net(x[i : i + size]), y[i : i + size])
            loss.backward()
            optimizer.step()
        bare_accuracy(net, test_x, test_y)
    return time.perf_counter() - started


@torch.no_grad()
def bare_accuracy(net: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    """Accuracy in chunks of 500."""
    net.eval()
    hits = sum((net(a).argmax(1) == b).sum() for a, b in zip(x.split(500), y.split(500), strict=True))
    net.train()
    return hits.item() / len(y)


def compare_trainer(title: str, flags: dict, source: Source, augment: Augment, rounds: int) -> str:
    """The overhead of the trainer over the bare loop."""
    config = resolve([("bench", {"model": "sgd", "n_epochs": 1, "n_tasks": 2, "lr": 0.01, **flags})])
    sides = [lambda run=run: run(config, source, augment) for run in (trainer_run, bare_run)]
    ours, bare, ratio = alternate(*sides, rounds)
    n_steps = -(-len(source.train_y) // config.train.batch_size)
    return (
        f"{title}: trainer / bare loop = {ratio:.3f}  ({n_steps} steps + 3 evaluations of "
        f"{len(source.test_y)} images; medians of {rounds} rounds: {ours:.2f} s, {bare:.2f} s)"
    )


def trainer_mlp() -> str:
    """The 784-100-100-10 MLP at batch 10, one thread."""
    torch.set_num_threads(1)
    source = random_source(12_000, 2_000, (1, 28, 28))
    flags = {"backbone": "mlp", "batch_size": 10}
    return compare_trainer("MLP, 28x28, batch 10, 1 thread", flags, source, Augment(), rounds=7)


def trainer_resnet() -> str:
    """ResNet-18 on CIFAR-sized images at batch 32, all cores; ours also crops and flips."""
    torch.set_num_threads(os.cpu_count())
    source = random_source(1024, 64, (3, 32, 32))
    flags = {"backbone": "resnet18", "batch_size": 32}
    return compare_trainer("ResNet-18, 32x32, batch 32", flags, source, CIFAR, rounds=3)


def data_path() -> str:
    """Images/s of augmented CIFAR batches: ours against torchvision's PIL transforms in a DataLoader."""
    source = random_source(10_000, 10, (3, 32, 32))
    config = resolve([("bench", {"model": "sgd", "dataset": "seq-cifar10", "n_tasks": 1})])
    benchmark = class_incremental("bench", source, CIFAR, config, "cpu")
    loaders = {workers: pil_loader(source, workers) for workers in (0, 2)}

    def ours() -> float:
        return seconds_to_drain(benchmark.batches(benchmark.tasks[0], 0, 32))

    lines = []
    for workers, loader in loaders.items():
        mine, theirs, ratio = alternate(ours, lambda loader=loader: seconds_to_drain(loader), rounds=3)
        n = len(source.train_y)
        lines.append(
            f"data path, CIFAR crop + flip + normalise, batch 32: {1 / ratio:.1f}x the images/s of a "
            f"torchvision-PIL DataLoader with {workers} workers ({n / mine:,.0f} against {n / theirs:,.0f})"
        )
    return "\n".join(lines)


def seconds_to_drain(batches) -> float:
    """Time to produce every batch."""
    started = time.perf_counter()
    for _ in batches:
        pass
    return time.perf_counter() - started


def pil_loader(source: Source, workers: int) -> torch.utils.data.DataLoader:
    """The usual data path: PIL image, crop, flip, tensor, normalise, one sample at a time."""
    from torchvision import transforms

    steps = [transforms.ToPILImage(), transforms.RandomCrop(32, 4), transforms.RandomHorizontalFlip()]
    change = transforms.Compose([*steps, transforms.ToTensor(), transforms.Normalize(CIFAR.mean, CIFAR.std)])

    class Images(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(source.train_y)

        def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
            return change(source.train_x[i]), source.train_y[i]

    return torch.utils.data.DataLoader(Images(), batch_size=32, shuffle=True, num_workers=workers)


PARTS = {
    "trainer-mlp": trainer_mlp,
    "trainer-resnet": trainer_resnet,
    "data": data_path,
    "buffer": buffer_speed,
    "methods-mlp": methods_mlp,
    "methods-resnet": methods_resnet,
    "scaling": scaling,
    "startup": startup,
    "overhead": overhead,
}


def main() -> None:
    """Run the parts asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", help=f"parts to run: {', '.join(PARTS)} (default: all)")
    parser.add_argument("--update", type=Path, metavar="FILE", help="file whose marked part is replaced")
    args = parser.parse_args()
    if unknown := set(args.parts) - set(PARTS):
        parser.error(f"unknown part {', '.join(unknown)}; choose from {', '.join(PARTS)}")
    listed = ", ".join(f"{k} {v}" for k, v in versions().items())
    lines = [f"{platform.machine()}, {os.cpu_count()} cores, {cpu_name()}; {listed}"]
    print(lines[0], flush=True)
    for part in args.parts or PARTS:
        lines.append(PARTS[part]())
        print(lines[-1], flush=True)
    if args.update:
        update(args.update, "\n".join(lines))


def update(path: Path, text: str) -> None:
    """Replace what stands between the file's markers."""
    before, rest = path.read_text(encoding="utf-8").split("<!-- bench -->")
    after = rest.split("<!-- end bench -->")[1]
    block = f"<!-- bench -->\n```text\n{text}\n```\n<!-- end bench -->"
    path.write_text(before + block + after, encoding="utf-8")


if __name__ == "__main__":
    main()
