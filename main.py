"""Train a continual-learning method on a benchmark: parse, build, train, report."""

import functools
import os
import sys
import time
from contextlib import suppress

from engram.utils.config import cli
from engram.utils.config.config import OPERATIONAL, Config, resolve
from engram.utils.errors import UserError


def main(argv: list[str] | None = None) -> int:
    """Run what the command line asks for; returns the exit code."""
    try:
        request = cli.parse(sys.argv[1:] if argv is None else argv)
        config, folder = prepare(request)
        return run(config, folder, resume=request.resume is not None)[0]
    except UserError as error:
        if os.environ.get("LOCAL_RANK", "0") == "0":  # of torchrun's processes one on each machine says it
            print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def prepare(request: cli.Request):
    """The resolved configuration and the run's folder (None: made once data and method are built)."""
    from engram.utils.runs.run_dir import RunDir

    if not request.resume:
        return request.config, None
    output_dir = request.overrides.get("output_dir", "runs")
    folder = RunDir.find(request.resume, output_dir)
    flags = cli.flags_to_resume(folder.load_config(), request.overrides)
    return resolve([(str(folder.config), flags)]), folder


def work(path: str, flags: dict) -> int:
    """Start the run of these flags in the folder `path`, or continue it: what a sweep's worker calls."""
    from pathlib import Path

    from engram.utils.runs.run_dir import RunDir

    try:
        folder = RunDir.at(Path(path), flags)
        if folder.finished:
            return 0
        stored = folder.load_config() | {name: flags[name] for name in OPERATIONAL if name in flags}
        return run(resolve([(str(folder.config), stored)]), folder, resume=True, wait=True)[0]
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def work_together(runs: list[tuple[str, dict]]) -> int:
    """As `work` for several runs, which share this process and take turns; returns one exit code for all."""
    from engram.utils.training.interleaved import InterleavedJob, run_interleaved

    return run_interleaved(
        [
            InterleavedJob(
                functools.partial(work, path, flags), os.path.join(path, "output.txt"), flags["device"]
            )
            for path, flags in runs
        ]
    )


def build(config: Config):
    """Benchmark, network and method of a configuration, on its device."""
    from engram.backbones import row_parallel
    from engram.backbones.backbone import build_network, load_weights
    from engram.models.method import Method, check_parallel, check_scenario
    from engram.utils import checkpoint, device, distributed
    from engram.utils.config import registry
    from engram.utils.runs import excluded_samples

    where = device.choose(distributed.local_device(config.run.device))
    device.set_threads(config.run.num_threads, config.run.backbone)
    device.set_precision(config.run.precision)
    method_class = registry.plugin_class(registry.load("models", config.run.model), Method)
    check_parallel(method_class, config.run.model)
    started = time.monotonic()
    with distributed.local_main_process_first():
        benchmark = registry.load("datasets", config.run.dataset).build(config, where)
    benchmark.build_seconds = time.monotonic() - started
    if config.stream.exclude:
        left_out = excluded_samples.read(config.stream.exclude, benchmark.n_train, benchmark.order_hash)
        benchmark.exclude(left_out)
    half = config.stream.half_classes_in_first_task
    if half and len(benchmark.tasks[0].classes) != benchmark.n_classes // 2:
        raise UserError(
            f"--half_classes_in_first_task: {config.run.dataset} does not split its classes equally"
        )
    check_scenario(method_class, config.run.model, benchmark)
    net = build_network(config.run.backbone, config.architecture, benchmark, config.run.seed)
    if config.log.loadcheck:
        load_weights(net, checkpoint.read_weights(config.log.loadcheck))
    row_parallel.divide(net)
    return method_class(net, config.method, setup(config, benchmark))


def setup(config: Config, benchmark):
    """What the method may know: the stream, how it is trained, and what is known of memorization."""
    from engram.memorization.proxies import create
    from engram.models.method import Setup
    from engram.utils import scores

    given, n_train = config.log.memorization_scores, benchmark.n_train
    if given:
        given = scores.read(given, n_train, benchmark.order_hash).to(benchmark.device)
    proxy = functools.partial(create, n_train=n_train, device=benchmark.device)
    return Setup(benchmark, config.train, config.run.seed, given, proxy)


def train(**flags):
    """For notebooks: a run with main.py's flags as keywords; returns its results."""
    from engram.utils.config.run_key import arguments
    from engram.utils.runs.run_result import RunResult

    config = cli.parse(arguments(flags)).config
    return RunResult(run(config)[1].path)


def run(config: Config, folder=None, resume: bool = False, wait: bool = False):
    """Train, measure and report one run; returns (exit code, folder). `wait`: for who runs it now."""
    from engram.utils.tracking.background_tracker import prepared

    with prepared(config) as tracking:  # MLflow is imported while this process imports torch
        from engram.utils import distributed

        with distributed.process_group(config.run.device):
            method = build(config)
            if distributed.rank():
                return follow(config, method, folder, resume), folder
            return lead(config, method, folder, resume, wait, tracking)


def lead(config: Config, method, folder, resume: bool, wait: bool, tracking=None):
    """`run` of a method that is built, in the only process or the first of several."""
    from engram.utils import distributed
    from engram.utils.runs.recorder import Recorder
    from engram.utils.runs.run_dir import RunDir
    from engram.utils.training.progress import DivergedError
    from engram.utils.training.signals import InterruptedRunError
    from engram.utils.training.trainer import Trainer

    folder = folder or RunDir.create(config.flat())
    with folder.claimed(wait):
        trainer = Trainer(config, method, folder.path)  # its clock starts after the wait
        if resume:
            trainer.load()
        distributed.barrier()
        trainer.results.add_data_seconds(method.setup.benchmark.build_seconds)
        with Recorder(config, folder, trainer, resume, tracking) as recorder:
            trainer.on_task = recorder.after_task
            try:
                trainer.run()
            except InterruptedRunError as stop:
                recorder.interrupted(stop)
                return stop.code, folder
            except DivergedError as error:
                recorder.failed(str(error))
                return 1, folder
            recorder.finished()
    return 0, folder


def follow(config: Config, method, folder, resume: bool) -> int:
    """`run` in every other process: the same steps; returns the exit code."""
    from engram.utils import distributed
    from engram.utils.training.distributed_trainer import FollowerTrainer
    from engram.utils.training.signals import StoppedRunError

    follower = FollowerTrainer(config, method, folder and folder.path, quiet=True)
    if resume:
        follower.load()
    distributed.barrier()
    with suppress(StoppedRunError):
        follower.run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
