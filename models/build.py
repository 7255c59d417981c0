"""Benchmark, network and method of a configuration."""

import functools
import time
from collections.abc import Callable

import torch
from torch import Tensor

from engram.backbones import row_parallel
from engram.backbones.backbone import build_network, load_weights
from engram.datasets import training_samples
from engram.datasets.benchmark import Benchmark
from engram.datasets.streams import scenario_flag
from engram.models.method import Method, Setup, check_parallel, check_scenario
from engram.models.parts import learned
from engram.models.parts.single_samples import refuse_last_batch_of_one
from engram.models.parts.stored_features import with_features
from engram.utils import checkpoint, distributed, precision, scores
from engram.utils import device as devices
from engram.utils.config import registry
from engram.utils.config.config import Config
from engram.utils.config.stream_options import UNSCORED
from engram.utils.errors import UserError
from engram.utils.runs import excluded_samples

# (name, n_train=, device=) → a proxy of memorization; models may not import `memorization.proxies.create`
CreateProxy = Callable[..., object]


def build_method(config: Config, device: torch.device, create_proxy: CreateProxy) -> Method:
    """The method on its network, ready to learn its benchmark; its `setup.benchmark` holds that."""
    devices.set_threads(config.run.num_threads, config.run.backbone)
    precision.configure(precision.resolve(config.run.precision, device))
    method_class = registry.plugin_class(registry.load("models", config.run.model), Method)
    check_parallel(method_class, config.run.model)
    benchmark = build_benchmark(config, device)
    check_scenario(method_class, config.run.model, benchmark, scenario_flag(config))
    _refuse_buffer_beyond_memory(config, benchmark)
    side, architecture = config.stream.img_size, config.architecture
    architecture = architecture.for_side(side) if side else architecture
    net = build_network(config.run.backbone, architecture, benchmark, config.run.seed)
    if config.log.loadcheck and not learned.is_continued(config):
        load_weights(net, checkpoint.read_weights(config.log.loadcheck), net.attached())
    benchmark.notes += net.notes
    net = with_features(benchmark, net, config, method_class)
    precision.time_convolutions(net, device)
    row_parallel.shard_rows(net)
    method = method_class(net, config.method, build_setup(config, benchmark, create_proxy))
    refuse_last_batch_of_one(method, config)
    if learned.is_continued(config):
        learned.restore(method, config)
    return method


def _refuse_buffer_beyond_memory(config: Config, benchmark: Benchmark) -> None:
    """Raise `UserError` for a memory whose images alone would not fit, though it were never full."""
    size = getattr(config.method, "buffer_size", 0) or 0
    devices.refuse_beyond_memory(f"--buffer_size {size}", size * benchmark.sample_bytes, benchmark.device)


def build_benchmark(config: Config, device: torch.device) -> Benchmark:
    """The stream of tasks, with the samples of --exclude left out."""
    started = time.monotonic()
    with distributed.local_main_process_first():  # it downloads what the others then find
        benchmark: Benchmark = registry.load("datasets", config.run.dataset).build(config, device)
    benchmark.build_seconds = time.monotonic() - started
    if config.stream.exclude:
        training_samples.exclude(benchmark, excluded_positions(config, benchmark))
    if config.stream.label_perc < 1:
        training_samples.keep_labelled(benchmark, config.stream.label_perc)
    if config.stream.noise_rate:
        training_samples.add_label_noise(benchmark, config.stream.noise_rate)
    half = config.stream.half_classes_in_first_task
    if half and len(benchmark.tasks[0].classes) != benchmark.n_classes // 2:
        raise UserError(
            f"--half_classes_in_first_task: {config.run.dataset} does not split its classes equally"
        )
    return benchmark


def excluded_positions(config: Config, benchmark: Benchmark) -> Tensor:
    """(k,) positions in the training set that --exclude leaves out."""
    path = str(config.stream.exclude)
    given = given_scores(config, benchmark) if path == UNSCORED else None
    if given is not None:
        return given.isnan().nonzero().view(-1).cpu()
    return excluded_samples.read(path, benchmark.n_train, benchmark.order_hash)


def given_scores(config: Config, benchmark: Benchmark) -> Tensor | None:
    """(n_train,) scores of --memorization_scores, NaN where the file has none; None without the flag."""
    path, fraction = config.log.memorization_scores, config.log.memorization_fraction
    if not path:
        return None
    labels, classes = benchmark.source_labels, config.log.memorization_classes
    return scores.read(path, labels, fraction, classes).to(benchmark.device)


def scored(given: Tensor, benchmark: Benchmark) -> str:
    """A sentence: how many of the training samples have a score, and what becomes of the others.

    given: (n_train,) scores, NaN where unknown; samples that are left out of the run do not count.
    """
    index = torch.cat([task.train_index for task in benchmark.tasks]).unique()
    n_scored = int(given.isfinite().cpu()[index].sum())
    sentence = f"{n_scored:,} of {len(index):,} training samples have a score"
    if n_scored == len(index):
        return sentence
    alone = "(--exclude unscored trains on them alone)"
    return f"{sentence}; only these are in its groups, or chosen by score {alone}"


def build_setup(config: Config, benchmark: Benchmark, create_proxy: CreateProxy) -> Setup:
    """What the method may know: the stream, how it is trained, and what is known of memorization."""
    given = given_scores(config, benchmark)
    if given is not None:
        benchmark.notes.append(scored(given, benchmark))
    proxy = functools.partial(create_proxy, n_train=benchmark.n_train, device=benchmark.device)
    arithmetic = precision.resolve(config.run.precision, benchmark.device)
    return Setup(benchmark, config.train, config.run.seed, given, proxy, arithmetic)
