"""What a run says when it starts: where it lies and what it computes on what."""

from collections.abc import Iterator
from pathlib import Path

from engram.utils import bf16_speed, precision
from engram.utils.config.config import Config
from engram.utils.config.outside import label
from engram.utils.training.environment import device_name
from engram.utils.training.ports import BatchT, Stream, TaskT
from engram.utils.training.step_plan import DEBUG_STEPS
from engram.utils.training.trainer import Trainer


def introduction(config: Config, folder: Path, trainer: Trainer[TaskT, BatchT]) -> Iterator[str]:
    """Yield the lines one by one: the first are printed before the speed of the device is measured."""
    benchmark = trainer.benchmark
    yield f"run:     {folder}"
    yield f"device:  {_device(config, trainer)}"
    if advice := _advice(config, trainer):
        yield f"speed:   {advice}"
    yield f"stream:  {_stream(config, benchmark)}"
    if benchmark.on_disk:
        yield f"images:  {benchmark.on_disk}"
    for note in benchmark.notes:
        yield f"data:    {note}"
    if config.run.debug_mode:
        yield f"debug:   at most {DEBUG_STEPS} steps per epoch, nothing is sent to MLflow"


def _device(config: Config, trainer: Trainer[TaskT, BatchT]) -> str:
    """The device, who chose it, and the precision it computes in."""
    auto = " (chosen by --device auto)" if config.run.device == "auto" else ""
    arithmetic = precision.described(config.run.precision, trainer.method.setup.precision)
    return f"{device_name(trainer.benchmark.device)}{auto}, {arithmetic}"


def _advice(config: Config, trainer: Trainer[TaskT, BatchT]) -> str | None:
    """The precision that would be faster, if one would."""
    method = trainer.method
    long_run = config.run.compile or trainer.plan.count_steps(trainer.tasks) >= bf16_speed.LONG_RUN
    return bf16_speed.advice(method.setup.precision, method.net, trainer.benchmark.device, long_run)


def _stream(config: Config, benchmark: Stream[TaskT, BatchT]) -> str:
    """What is learned, by which method, on which network."""
    learner = f"{label(str(config.run.model))} on {label(str(config.run.backbone))}"
    tasks = f"{benchmark.scenario}, {len(benchmark.tasks)} tasks"
    return f"{label(config.run.dataset)}, {tasks}, {learner}, seed {config.run.seed}"
