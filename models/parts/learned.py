"""What --start_from and --inference_only begin with, what a run had learned: in the file of --loadcheck."""

from pathlib import Path
from typing import Any

from engram.backbones.backbone import load_weights
from engram.models.method import Method
from engram.utils import checkpoint
from engram.utils.config.config import Config
from engram.utils.config.flags import flatten
from engram.utils.errors import UserError

# What a method has besides the network that is no memory of earlier tasks.
NO_MEMORY = {"net", "replay_draws"}
SPLIT_OF_CLASSES = {"n_tasks", "half_classes_in_first_task"}


def is_continued(config: Config) -> bool:
    """Whether the run goes on from what another has learned, instead of starting from its weights alone."""
    return bool(config.log.start_from) or config.log.inference_only


def restore(method: Method, config: Config) -> None:
    """Give a new method what the file holds: a run's checkpoint everything, a file of weights the network.

    Raises `UserError` where that is another method's, another stream's or another number of tasks', and for
    weights alone where the method needs more.
    """
    path = Path(str(config.log.loadcheck)).expanduser()
    saved = checkpoint.read(path)
    if "method" not in saved:
        _refuse_weights_alone(method, config)
        load_weights(method.net, checkpoint.read_weights(str(path)))
        return
    try:
        with checkpoint.reading_parts(path):
            _check_origin(saved, method, config)
            method.load_state_dict(saved["method"])
    except checkpoint.CheckpointError as error:
        names = {"backbone", *flatten((config.stream, config.method, config.architecture))}
        settings = saved.get("config")  # a damaged file has anything there
        if isinstance(settings, dict) and (differ := checkpoint.differences(settings, config, names)):
            raise UserError(
                f"--loadcheck {path}: does not fit, {', '.join(differ)}; give the flags as its run had them "
                f"({error})"
            ) from error
        raise


def _check_origin(saved: dict[str, Any], method: Method, config: Config) -> None:
    """Refuse the checkpoint of another method or stream, or after another number of tasks."""
    path, position = config.log.loadcheck, saved["position"]
    if saved["config"]["model"] != config.run.model:
        raise UserError(
            f"--loadcheck {path}: learned by {saved['config']['model']}, not by {config.run.model}"
        )
    if saved["classes"] != method.benchmark.class_names:
        raise UserError(f"--loadcheck {path}: learned other classes, or in another order")
    splits_classes = method.stream != "joint" and method.benchmark.scenario != "domain-il"
    if splits_classes and (differ := checkpoint.differences(saved["config"], config, SPLIT_OF_CLASSES)):
        raise UserError(f"--loadcheck {path}: learned tasks of other classes, {', '.join(differ)}")
    n_tasks = 1 if method.stream == "joint" else len(method.benchmark.tasks)
    wanted = config.log.start_from or n_tasks
    if position["epoch"] or position["step"]:
        raise UserError(f"--loadcheck {path}: stopped inside task {position['task']}; --resume its run first")
    if position["task"] != wanted:
        flag = f"--start_from {wanted}" if config.log.start_from else "--inference_only"
        raise UserError(f"{flag}: {path} has learned {position['task']} of {n_tasks} tasks, not {wanted}")
    if config.log.start_from == n_tasks:
        raise UserError(f"--start_from {wanted}: all {n_tasks} tasks are learned (--inference_only)")


def _refuse_weights_alone(method: Method, config: Config) -> None:
    path, model = config.log.loadcheck, config.run.model
    n_tasks = 1 if method.stream == "joint" else len(method.benchmark.tasks)
    if config.log.start_from >= n_tasks:
        raise UserError(f"--start_from {config.log.start_from}: the stream has {n_tasks} tasks")
    memory = sorted(method.state_dict().keys() - NO_MEMORY)
    predicts_by_network = config.log.inference_only and type(method).predict is Method.predict
    if memory and not predicts_by_network:
        raise UserError(
            f"--loadcheck {path}: holds weights alone, and {model} keeps more than the network "
            f"({', '.join(memory)}); give the checkpoint.pt of a run"
        )
