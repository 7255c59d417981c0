"""Refusing, before training, a stream whose last batch is one sample, which batch norm cannot take."""

import torch

from engram.models.method import Method
from engram.utils import single_samples
from engram.utils.config.config import Config
from engram.utils.training.step_plan import DEBUG_STEPS


def refuse_last_batch_of_one(method: Method, config: Config) -> None:
    """Raise `UserError` where a step of the run could not be taken (`Method.joins_replay`)."""
    if method.joins_replay and getattr(method.options, "buffer_size", 1):
        return
    benchmark, size = method.benchmark, config.train.batch_size
    whole_streams = {"joint": benchmark.joint, "cumulative": benchmark.cumulative}
    tasks = whole_streams[method.stream]() if method.stream in whole_streams else benchmark.tasks
    limit = DEBUG_STEPS if config.run.debug_mode else config.train.n_iters or float("inf")
    counts = [benchmark.n_samples(task) for task in tasks if benchmark.n_steps(task, size) <= limit]
    if single_samples.leaves_one(counts, size) and single_samples.cannot_learn(
        method.net, torch.zeros(benchmark.input_shape, device=method.device)
    ):
        single_samples.refuse(counts, size)
