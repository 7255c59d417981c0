"""Networks per hour of train_splits at R = 32, against one after another with a torchvision DataLoader.

    python scripts/bench/memorization.py                    MLP and small cnn (about six minutes on two cores)
    python scripts/bench/memorization.py cnn --device cuda  one part; parts: mlp cnn resnet18

Each network is trained on 2,500 random images (half of the paper's 10 % subset) at batch 32, SGD with
momentum. Ours: the plan of train_splits with all its processes, their start included, data and stack as
it would choose them. Theirs: PIL images, transforms one by one, a DataLoader with 0 workers and with 4
(the memorization paper's default), torch's own number of threads; scaled to the same number of epochs.
Rounds alternate, so that other work on the machine slows both; processor time is printed too, which
other work hardly touches.
"""

import argparse
import functools
import os
import platform
import resource
import statistics
import sys
import time
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from engram.datasets.augment import Augment
from engram.memorization import cli, training, worker_pool
from engram.memorization.settings import StudyConfig
from engram.memorization.study_data import StudyData
from engram.memorization.worker_pool import JobFunction, NetworkProgress, Report
from engram.scripts.bench.buffer import CIFAR, pil_transform
from engram.scripts.bench.timing import Names, cpu_name, random_source
from engram.utils import device as devices
from engram.utils.config.flags import COUNT, CheckedParser, check_bounds
from engram.utils.door import guarded

N, R = 5000, 32


@dataclass(frozen=True)
class Part:
    """What is trained, and for how many epochs on either side."""

    shape: tuple[int, ...]
    augment: Augment
    epochs: int
    their_epochs: int


PARTS = {
    "mlp": Part((1, 28, 28), Augment(), 30, 3),
    "cnn": Part((3, 32, 32), CIFAR, 3, 1),
    "resnet18": Part((3, 32, 32), CIFAR, 1, 1),
}


def data_of(case: Part, device: torch.device) -> StudyData:
    """Random images in ten classes."""
    source = random_source(N, 10, case.shape)
    return StudyData(
        "random", source.train_x.to(device), source.train_y.to(device), np.arange(N), source.test_x,
        source.test_y, 10, source.classes, case.augment, N, "",
    )  # fmt: skip


def halves(repeats: list[int]) -> torch.Tensor:
    """(K, N/2) a random half for each network."""
    draws = [torch.randperm(N, generator=torch.Generator().manual_seed(r))[: N // 2] for r in repeats]
    return torch.stack(draws)


@dataclass(frozen=True)
class Bench:
    """A plan like that of train_splits, without files."""

    name: str
    config: StudyConfig
    stack: int

    def prepare(self, device: torch.device) -> JobFunction:
        """Make the random images once for all jobs of a process."""
        return functools.partial(self.run_job, data_of(PARTS[self.name], device))

    def run_job(self, data: StudyData, job: int, report: Report) -> None:
        """Train the networks of a job."""
        repeats = worker_pool.job_members(job, self.stack, R)
        learner = training.CohortTraining(self.config, data, repeats, halves(repeats))
        while not learner.finished:
            learner.run_epoch()
            report(len(repeats) / learner.n_epochs)


def options_of(name: str, device: str) -> StudyConfig:
    """The flags that train_splits would have."""
    flags = ["--backbone", name, "--device", device, "--lr", "0.01", "--n_epochs", str(PARTS[name].epochs)]
    return cli.parse("bench", "", StudyConfig, flags)


def ours(name: str, options: StudyConfig, stack: int, n: int = R) -> tuple[float, float]:
    """Seconds and processor seconds for `n` networks."""
    workers = worker_pool.worker_devices(options.machine, name)
    plan, jobs = Bench(name, options, stack), worker_pool.jobs_of(range(n), stack)
    started, cpu = time.perf_counter(), processor_seconds()
    worker_pool.run_jobs(plan, jobs, workers, NetworkProgress(name, n))
    return time.perf_counter() - started, processor_seconds() - cpu


def theirs(name: str, options: StudyConfig, workers: int) -> tuple[float, float]:
    """The same for one network, scaled to R networks and our number of epochs."""
    torch.set_num_threads(os.cpu_count())
    case, device = PARTS[name], devices.choose(options.machine.device)
    source = random_source(N, 10, case.shape)
    change = pil_transform(case.augment, case.shape[1])

    class Images(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return N

        def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
            return change(source.train_x[i]), int(source.train_y[i])

    subset = torch.utils.data.Subset(Images(), halves([0])[0].tolist())
    loader = torch.utils.data.DataLoader(subset, batch_size=32, shuffle=True, num_workers=workers)
    net = training.build_network(options, data_of(case, device), 0)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-6)
    started, cpu = time.perf_counter(), processor_seconds()
    for _ in range(case.their_epochs):
        for x, y in loader:
            optimizer.zero_grad()
            F.cross_entropy(net(x.to(device)), y.to(device)).backward()
            optimizer.step()
    scale = R * case.epochs / case.their_epochs
    return scale * (time.perf_counter() - started), scale * (processor_seconds() - cpu)


def processor_seconds() -> float:
    """Of this process and of the processes that it has waited for."""
    here, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return here.ru_utime + here.ru_stime + children.ru_utime + children.ru_stime


def compare(name: str, device: str, rounds: int) -> str:
    """The line for one part."""
    options = options_of(name, device)
    workers = worker_pool.worker_devices(options.machine, name)
    data = data_of(PARTS[name], devices.choose(device))
    stack = training.fastest_stack_size(options, data, N // 2, -(-R // len(workers)))
    sides = {"ours": lambda: ours(name, options, stack)}
    sides |= {f"{workers} workers": lambda w=workers: theirs(name, options, w) for workers in (0, 4)}
    times_of: dict[str, list[tuple[float, float]]] = {side: [] for side in sides}
    for _ in range(rounds):
        for side, run in sides.items():
            times_of[side].append(run())
    wall = {side: statistics.median(a for a, _ in times) for side, times in times_of.items()}
    cpu = {side: statistics.median(b for _, b in times) for side, times in times_of.items()}
    hourly = {side: 3600 * R / seconds for side, seconds in wall.items()}
    what = f"{name}, {N // 2} images, {PARTS[name].epochs} epochs, R = {R}, {stack} as one"
    load = os.getloadavg()[0]
    lines = [f"{what}, {len(workers)} processes: {hourly['ours']:,.0f} networks/h (load {load:.0f})"]
    for side in [side for side in sides if side != "ours"]:
        ratios = [times[side] / times["ours"] for times in (wall, cpu)]
        lines.append(
            f"    {ratios[0]:.1f}x a DataLoader with {side} ({hourly[side]:,.0f} networks/h); "
            f"by processor time {ratios[1]:.1f}x"
        )
    return "\n".join(lines)


@guarded
def main(argv: list[str] | None = None) -> None:
    """Measure the parts asked for and print their lines."""
    parser = CheckedParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "parts",
        nargs="*",
        choices=Names(PARTS),
        metavar="PART",
        help=f"of {', '.join(PARTS)} (default: mlp cnn)",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--rounds", type=int, default=1, help="rounds, both sides in turn (default: 1)")
    args = parser.parse_args(argv)
    check_bounds(args, rounds=COUNT)
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, {cpu_name()}; torch {torch.__version__}", flush=True
    )
    for name in args.parts or ["mlp", "cnn"]:
        print(compare(name, args.device, args.rounds), flush=True)


if __name__ == "__main__":
    # under its import name: worker processes are sent a plan of a class that they can import
    from engram.scripts.bench import memorization

    sys.exit(memorization.main())
