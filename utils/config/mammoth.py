"""Coming from mammoth: what its flags, values and names are called here. Pure data; imports nothing of ours.

One table answers a person who types a flag of mammoth (`answer`) and fills the page of the documentation.
Source: github.com/aimagelab/mammoth, its utils/args.py and documentation (e75a491, May 2026), and flags of
its older versions, which papers still print.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Counterpart:
    """A flag of mammoth, or one value of it.

    ours: the flags that replace it, empty where none does. note: why, or what differs. value: the row is for
    this value alone (a bare flag has "1"); a row without one, which each flag has, is for all others.
    accepted: what it asks for holds anyway, so that it is left out with the note.
    """

    flag: str
    ours: str
    note: str
    value: str = ""
    accepted: bool = False


_WANDB = "runs are logged to MLflow, nothing is sent to Weights & Biases"

_SAFE = "checkpoints hold no code and are always safe to load"
_SAVED = "an interrupted run is always saved; go on with --resume RUN"
_DRAWN = "wrong labels are drawn from the seed at every start, never stored"

COUNTERPARTS = (
    Counterpart("--joint", "--model joint", "joint training is a method"),
    Counterpart("--joint", "", "tasks come one after the other unless --model is joint", "0", True),
    Counterpart("--base_path", "--data_dir DIR", "data sets; results go to --output_dir DIR"),
    Counterpart("--results_path", "--output_dir DIR", "every run makes a folder of its own below it"),
    Counterpart("--checkpoint_path", "--output_dir DIR", "checkpoint.pt, weights/ are in the run's folder"),
    Counterpart("--ckpt_name", "--output_dir DIR", "files of a run lie in its own folder under fixed names"),
    Counterpart("--save_checkpoint_mode", "", _SAFE, "safe", True),
    Counterpart("--save_checkpoint_mode", "", _SAFE),
    Counterpart("--save_after_interrupt", "", _SAVED, "1", True),
    Counterpart("--save_after_interrupt", "", _SAVED),
    Counterpart("--nowand", "", f"{_WANDB}: there is nothing to turn off", "1", True),
    Counterpart("--nowand", "", f"{_WANDB} (--disable_log: no MLflow either)"),
    Counterpart("--wandb_name", "--run_name TEXT", _WANDB),
    Counterpart("--wandb_project", "--experiment_name TEXT", _WANDB),
    Counterpart("--wandb_entity", "--tracking_uri URI", f"{_WANDB}; a shared server is named so"),
    Counterpart("--tensorboard", "", "there is no TensorBoard, so nothing to turn off", "0", True),
    Counterpart("--tensorboard", "", "curves are in MLflow and in the run's folder; leave it out"),
    Counterpart("--csv_log", "", "each run's folder always holds its tables", "1", True),
    Counterpart("--csv_log", "", "each run's folder always holds its tables; leave it out"),
    Counterpart("--notes", "--run_name TEXT", "a run is told apart by its name or --experiment_name"),
    Counterpart("--model_config", "", "without a preset the method's defaults count", "default", True),
    Counterpart("--model_config", "", "without a preset the method's defaults count", "base", True),
    Counterpart("--model_config", "--load_best_args", "presets: models/presets/"),
    Counterpart(
        "--dataset_config", "--config FILE",
        "write --n_tasks, --lr_scheduler, --lr_milestones, ... out, or in a YAML file of flags",
    ),
    Counterpart("--fitting_mode", "--n_epochs N", "passes over each task's data", "epochs"),
    Counterpart("--fitting_mode", "--n_iters N", "steps on each task", "iters"),
    Counterpart(
        "--fitting_mode", "--early_stopping_patience N --validation 10", "by validation accuracy",
        "early_stopping",
    ),
    Counterpart("--fitting_mode", "", "a task ends after epochs (--n_epochs) or steps (--n_iters)"),
    Counterpart("--early_stopping_freq", "--early_stopping_patience N", "looked at after every epoch"),
    Counterpart("--early_stopping_epsilon", "--early_stopping_patience N", "any improvement counts"),
    Counterpart("--validation_mode", "--validation PERCENT", "the share is held out of every task"),
    Counterpart("--eval_epochs", "--eval_every STEPS", "evaluations inside a task are counted in steps"),
    Counterpart("--eval_future", "", "later tasks are evaluated by default: R's upper triangle", "1", True),
    Counterpart("--eval_future", "--ignore_other_metrics", "off"),
    Counterpart("--enable_other_metrics", "", "they are measured by default", "1", True),
    Counterpart("--enable_other_metrics", "--ignore_other_metrics", "off"),
    Counterpart("--fwt", "", "forward transfer is measured by default", "1", True),
    Counterpart("--fwt", "--ignore_other_metrics", "off"),
    Counterpart("--distributed", "", "one process is the default", "no", True),
    Counterpart(
        "--distributed", "torchrun --nproc_per_node N main.py ...",
        "torchrun starts the processes; methods that take several are named where one does not",
    ),
    Counterpart("-O", "--precision fp32", "no shortcuts", "0"),
    Counterpart("-O", "--precision tf32", "the default on CUDA", "1"),
    Counterpart("-O", "--precision bf16", "bfloat16 in the network alone", "2"),
    Counterpart("-O", "--precision bf16 --compile", "bfloat16 and compiled passes", "3"),
    Counterpart("-O", "--precision fp32|tf32|bf16", "the levels have names; with --compile as well"),
    Counterpart("--gpu_id", "--device cuda:N", "by its number"),
    Counterpart(
        "--num_workers", "", "batches are made where the run computes, without loader processes",
        accepted=True,
    ),
    Counterpart("--drop_last", "", "the last batch of an epoch is always learned", "0", True),
    Counterpart("--drop_last", "", "the last batch of an epoch is always learned"),
    Counterpart("--non_verbose", "", "there is a bar on a terminal only; send standard error elsewhere"),
    Counterpart("--scheduler_mode", "", "schedules go by epochs", "epoch", True),
    Counterpart("--scheduler_mode", "--lr_scheduler multistep|cosine", "by epochs, not by steps"),
    Counterpart("--custom_task_order", "--class_order C,C,...", "all classes in the order of their tasks"),
    Counterpart("--custom_class_order", "--class_order C,C,...", "all classes, by commas, no ranges"),
    Counterpart("--noise_type", "", "--noise_rate SHARE is symmetric", "symmetric", True),
    Counterpart("--noise_type", "", "no asymmetric noise; --noise_rate SHARE is symmetric"),
    Counterpart("--disable_noisy_labels_cache", "", _DRAWN, "1", True),
    Counterpart("--disable_noisy_labels_cache", "", _DRAWN),
    Counterpart("--cache_path_noisy_labels", "", _DRAWN),
    Counterpart("--mlp_hidden_size", "--hidden_sizes 100,100", "one number for each hidden layer"),
    Counterpart("--num_filters", "--width X", "the filters of the first layer divided by 64, 0.3125 for 20"),
    Counterpart("--num_classes", "", "the benchmark says how many outputs there are; leave it out"),
)  # fmt: skip
OTHER_NAMES = {"--code_optimization": "-O", "--wandb_run": "--wandb_name"}

# Flags with the same name and meaning in both.
SAME = (
    "model", "dataset", "backbone", "lr", "batch_size", "n_epochs", "n_iters", "seed", "optimizer",
    "optim_wd", "optim_mom", "optim_nesterov", "lr_scheduler", "lr_milestones", "sched_multistep_lr_gamma",
    "permute_classes", "validation", "early_stopping_patience", "early_stopping_metric",
    "label_perc", "noise_rate", "start_from", "inference_only", "device", "debug_mode",
    "disable_log", "ignore_other_metrics", "savecheck", "loadcheck", "stop_after", "load_best_args",
)  # fmt: skip

# Backbones that are another one here with some of its flags set.
BACKBONES: dict[str, dict[str, Any]] = {
    "mnistmlp": {"backbone": "mlp", "hidden_sizes": "100,100"},
    "reduced-resnet18": {"backbone": "resnet18", "width": "0.3125"},  # 20 filters of 64
}

# Methods that are here under another name, or as a flag.
METHODS = {
    "ewc_on": "ewc_online; its penalty has ½, so take twice the --e_lambda (and mammoth weighs its Fisher)",
    "joint_gcl": "joint",
    "er_tricks": "labrs, the tricks' memory",
}
NOT_HERE = frozenset(
    {
        "attriclip", "ccic", "cgil", "clip", "cnll", "dap", "derpp_casper", "derpp_cscct",
        "derpp_lider", "derpp_star", "er_ace_aer_abs", "er_ace_casper", "er_ace_cscct",
        "er_ace_lider", "er_ace_star", "er_ace_tricks", "er_star", "first_stage_starprompt", "gdumb_lider",
        "icarl_casper", "icarl_cscct", "icarl_lider", "idefics", "llava", "lws", "moe_adapters",
        "puridiver", "second_order", "second_stage_starprompt", "spr", "starprompt", "tak",
        "twf", "xder_ce", "xder_rpc", "xder_rpc_casper", "xder_rpc_cscct", "xder_rpc_star", "zscl",
    }
)  # fmt: skip


def counterpart(flag: str, value: str | None = None) -> Counterpart | None:
    """The table's row for a flag of mammoth with its value (None: none was given); None for other flags."""
    if flag.startswith("-O") and flag[2:].isdigit():
        flag, value = "-O", flag[2:]
    name = OTHER_NAMES.get(flag, flag)
    rows = [row for row in COUNTERPARTS if row.flag == name and row.value in ("", value or "1")]
    return max(rows, key=lambda row: row.value, default=None)


def answer(flag: str, value: str | None = None) -> str | None:
    """What to write instead of a flag of mammoth, in one line; None for a flag that is not mammoth's."""
    row = counterpart(flag, value)
    if row is None:
        return None
    given = f"{flag} {value}" if value else flag
    if row.accepted:
        return f"{given} is mammoth's and changes nothing here: {row.note}"
    if row.ours:
        return f"{given} is mammoth's; here: {row.ours} ({row.note})"
    return f"{given} is mammoth's and has no counterpart here: {row.note}"


def is_accepted(flag: str, value: str | None = None) -> bool:
    """Whether a flag of mammoth asks for what holds anyway, so that it can be left out."""
    row = counterpart(flag, value)
    return row is not None and row.accepted


def method_answer(name: str) -> str:
    """A clause about a method's name in mammoth, to be put into an error; empty for any other name."""
    name = name.strip().lower().replace("-", "_")
    if name in METHODS:
        return f"; mammoth's {name} is here: {METHODS[name]}"
    return f"; mammoth has {name}, this project does not" if name in NOT_HERE else ""


def expanded(flags: Mapping[str, Any]) -> dict[str, Any]:
    """The flags with a backbone of mammoth's as ours; what else is given wins over what it stands for."""
    name = str(flags.get("backbone") or "").strip().lower().replace("_", "-")
    if name not in BACKBONES:
        return dict(flags)
    return {**BACKBONES[name], **{k: v for k, v in flags.items() if k != "backbone"}}


def is_preset(content: Mapping[str, Any]) -> bool:
    """Whether a YAML file is one of mammoth's models/config/: flags below a data set or `default`."""
    return bool(content) and all(isinstance(value, Mapping) for value in content.values())


def preset(content: Mapping[str, Any], dataset: str, buffer_size: str | None) -> dict[str, Any]:
    """The flags of such a file for a data set and a memory: its defaults, the data set's, the size's.

    Without a size the only one of the file is taken. Raises `LookupError` that says what the file has.
    """
    by_dataset = {str(name).replace("_", "-"): flags for name, flags in content.items()}
    dataset = dataset.replace("_", "-")
    default = dict(by_dataset.pop("default", {}))
    if dataset not in by_dataset:
        if default and not by_dataset:
            return default
        raise LookupError(f"nothing for {dataset}; it has {', '.join(by_dataset)}")
    sizes = {str(k): flags for k, flags in by_dataset[dataset].items() if isinstance(flags, Mapping)}
    common = {k: v for k, v in by_dataset[dataset].items() if not isinstance(v, Mapping)}
    if not sizes:
        return default | common
    if buffer_size is None and len(sizes) == 1:
        buffer_size = next(iter(sizes))
    if buffer_size not in sizes:
        given = "" if buffer_size is None else f", not {buffer_size}"
        raise LookupError(f"for {dataset} it needs --buffer_size {' or '.join(sizes)}{given}")
    return default | common | {"buffer_size": buffer_size} | dict(sizes[buffer_size])
