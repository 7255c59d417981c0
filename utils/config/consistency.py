"""Flags that are each valid and contradict one another, or the seed, or a limit of MLflow."""

import os
from typing import TYPE_CHECKING

from engram.utils.config.options import OptionError
from engram.utils.config.stream_options import UNSCORED

if TYPE_CHECKING:
    from engram.utils.config.config import Config

NUMPY_SEEDS = 2**32  # of numpy's RandomState, which permutes the classes
MAX_NAME = 250  # characters of an experiment's or run's name in MLflow's tables


def check(config: "Config") -> None:
    """Raise `OptionError` for a resolved configuration that cannot be run as it is."""
    _check_names(config)
    _check_stream(config)
    _check_training(config)
    _check_learned(config)


def _check_names(config: "Config") -> None:
    for flag in ("experiment_name", "run_name"):
        given = getattr(config.log, flag)
        if given and len(given) > MAX_NAME:
            raise OptionError(f"--{flag}: {len(given)} characters; MLflow's databases take {MAX_NAME}")
    uri = config.log.tracking_uri
    if uri and os.path.isfile(uri):
        raise OptionError(
            f"--tracking_uri {uri}: is a file's path; expected an address: http://HOST:5000 for a server, "
            f"sqlite:///{os.path.abspath(uri)} for a database of MLflow"
        )


def _check_stream(config: "Config") -> None:
    stream, log = config.stream, config.log
    if stream.permute_classes and config.run.seed >= NUMPY_SEEDS:
        raise OptionError(f"--seed {config.run.seed}: --permute_classes takes seeds below {NUMPY_SEEDS}")
    if stream.multi_head and stream.scenario not in (None, "task-il"):
        raise OptionError(f"--multi_head is task-il; leave it or --scenario {stream.scenario} out")
    if stream.test_resize and not (stream.img_size and stream.img_size <= stream.test_resize):
        raise OptionError(
            f"--test_resize {stream.test_resize}: the centre of --img_size is cut from it; give an "
            "--img_size of at most that"
        )
    if len(stream.crop_scale) != 2 or stream.crop_scale[0] > stream.crop_scale[1]:
        given = ",".join(map(str, stream.crop_scale))
        raise OptionError(f"--crop_scale {given}: expected two numbers that do not fall, e.g. 0.08,1")
    if log.memorization_fraction != 1 and not log.memorization_scores:
        raise OptionError(
            "--memorization_fraction needs the vector of that fraction: --memorization_scores FILE"
        )
    if log.memorization_classes and not log.memorization_scores:
        raise OptionError("--memorization_classes needs the vector of these: --memorization_scores FILE")
    if stream.exclude == UNSCORED and not log.memorization_scores:
        raise OptionError("--exclude unscored needs the scores: --memorization_scores FILE")
    low_high = log.mem_thresholds
    if len(low_high) != 2 or low_high[0] >= low_high[1]:
        given = ",".join(map(str, low_high))
        raise OptionError(f"--mem_thresholds {given}: expected two rising numbers, e.g. 0.1,0.25")


def _check_training(config: "Config") -> None:
    train = config.train
    if train.optim_nesterov and not (train.optimizer == "sgd" and train.optim_mom):
        raise OptionError("--optim_nesterov is a momentum of sgd: add e.g. --optim_mom 0.9")
    if train.early_stopping_patience and not config.stream.validation:
        raise OptionError("--early_stopping_patience needs validation data: add e.g. --validation 10")
    if train.lr_scheduler == "multistep" and not train.lr_milestones:
        raise OptionError("--lr_scheduler multistep needs --lr_milestones, e.g. --lr_milestones 35,45")


def _check_learned(config: "Config") -> None:
    """--start_from and --inference_only begin with what a run has learned."""
    log = config.log
    for flag in ("start_from", "inference_only"):
        if getattr(log, flag) and not log.loadcheck:
            raise OptionError(f"--{flag} needs what was learned: --loadcheck RUN/checkpoint.pt")
    if log.start_from and log.inference_only:
        raise OptionError("--inference_only trains nothing, so leave --start_from out")
    if log.start_from and config.train.keep_optimizer:
        raise OptionError("--start_from begins with a new optimizer; leave --keep_optimizer out")
