"""Config: every setting of a run, from the command line, a file, a preset and the benchmark's defaults.

Precedence: defaults < benchmark < method < preset < file < command line. A flag is a field of one of the
groups below or of a plugin's `Options`; its type, default, bounds and help live there and nowhere
else. Nothing here imports torch, so `--help` is quick.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

from engram.utils.config import consistency, registry
from engram.utils.config.flags import build_sets, convert_layer, fields_of, flatten
from engram.utils.config.options import SEEDS, OptionError, OptionSet, option
from engram.utils.config.stream_options import StreamOptions
from engram.utils.credentials import redact
from engram.utils.errors import UserError


@dataclass(frozen=True)
class RunOptions(OptionSet):
    """What is run, where, and where its files go."""

    model: str | None = option(None, "continual-learning method (required)")
    dataset: str = option("seq-digits", "benchmark")
    backbone: str = option("mlp", "architecture")
    seed: int = option(0, "every random stream of the run derives from it", ge=0, lt=SEEDS)
    device: str = option("auto", "auto (CUDA when there is one), cpu, cuda, cuda:N or N")
    precision: str = option(
        "auto", "arithmetic of the network: fp32, tf32 (CUDA), bf16 (often twice as fast; a start-up line "
        "says where), or auto: tf32 on CUDA, fp32 on a CPU",
        choices=("auto", "fp32", "tf32", "bf16"),
    )  # fmt: skip
    compile: bool = option(
        False, "on a GPU: a CUDA graph of each training step, or of the network's passes in long runs"
    )
    num_threads: int = option(
        0,
        "CPU threads; 0: 1 for a fully connected net, otherwise all cores or OMP_NUM_THREADS",
        ge=0,
        le=1024,
    )
    data_dir: str = option("~/.cache/engram", "where data sets lie or are downloaded to")
    images: str = option(
        "auto", "decoded images: in memory, on disk (read ahead), or auto, by what is free",
        choices=("auto", "memory", "disk"),
    )  # fmt: skip
    cache_features: str = option(
        "auto", "encode each image once ever: auto, for methods that never change the encoder; on, for every "
        "method, which then trains the head alone; off", choices=("auto", "on", "off"),
    )  # fmt: skip
    cache_views: int = option(
        0, "of each training image also encode so many augmented views; a method that trains a head draws "
        "one at each visit; 0: un-augmented features", ge=0, le=1000,
    )  # fmt: skip
    output_dir: str = option("runs", "run folders are made under OUTPUT_DIR/DATASET/MODEL/")
    debug_mode: bool = option(False, "try-out: at most 5 steps per epoch, nothing sent to MLflow")


@dataclass(frozen=True)
class TrainOptions(OptionSet):
    """The optimizer and its schedule."""

    n_epochs: int = option(1, "passes over each task's data", ge=1)
    n_iters: int = option(
        0, "steps on each task, in as many passes as that takes, instead of --n_epochs; 0: off", ge=0
    )
    batch_size: int = option(10, "samples of the stream per step", ge=1)
    lr: float = option(0.1, "learning rate", gt=0)
    encoder_lr_scale: float = option(1.0, "what lies below the head learns at so many times --lr", gt=0)
    optimizer: str = option(
        "sgd", "sgd, adam or adamw", choices=("sgd", "adam", "adamw"), spellings={"adamW": "adamw"}
    )
    keep_optimizer: bool = option(
        False, "begin each task with the last one's momentum and Adam moments instead of none"
    )
    optim_wd: float = option(0.0, "weight decay", ge=0)
    optim_mom: float = option(0.0, "momentum (sgd)", ge=0, lt=1)
    optim_nesterov: bool = option(False, "Nesterov's momentum (sgd)", aliases=("nesterov",))
    lr_scheduler: str = option(
        "none", "per task: none, multistep, cosine (half a wave) or cosine_quarter (a quarter of one, as the "
        "codes of coda_prompt and inflora)", choices=("none", "multistep", "cosine", "cosine_quarter"),
        spellings={"multisteplr": "multistep"},
    )  # fmt: skip
    lr_milestones: tuple[int, ...] = option(
        (), "epochs at which multistep multiplies the rate, e.g. 35,45", ge=1
    )
    sched_multistep_lr_gamma: float = option(0.1, "factor of the multistep scheduler", gt=0)
    early_stopping_patience: int = option(
        0, "end a task after so many epochs without a better --early_stopping_metric on validation samples "
        "(needs --validation); 0: off", ge=0,
    )  # fmt: skip
    early_stopping_metric: str = option(
        "accuracy", "accuracy or loss among the task's classes", choices=("accuracy", "loss")
    )


@dataclass(frozen=True)
class LogOptions(OptionSet):
    """What is measured, logged and saved."""

    ignore_other_metrics: bool = option(False, "skip evaluations of future tasks and forward transfer")
    eval_every: int = option(
        0, "also evaluate the seen tasks every so many steps (stability gap); 0: off", ge=0
    )
    eval_tasks: int = option(
        0, "for long streams: after a task evaluate it, the next one and so many earlier ones (2 or more), "
        "drawn anew each time; only after the last task all. The mean is then an estimate with a standard "
        "error, forgetting knows only what was measured, other cells of R are empty; 0: all", ge=0,
    )  # fmt: skip
    eval_samples: int = option(
        0, "until the last task is learned evaluate each task on so many of its test samples, the same "
        "each time, the untrained network too; accuracies have a standard error, and their largest, of "
        "which forgetting is made, lies a little too high; 0: all",
        ge=0,
    )  # fmt: skip
    disable_log: bool = option(False, "no MLflow; results.json is written all the same")
    tracking_uri: str | None = option(
        None,
        "MLflow server or database (default: mlflow.db in the project folder, or here if installed)",
    )
    wait_for_log: bool = option(False, "return when figures and MLflow are complete (always in a Slurm job)")
    experiment_name: str | None = option(None, "MLflow experiment (default: the benchmark's name)")
    run_name: str | None = option(None, "MLflow run name (default: method, benchmark and seed)")
    checkpoint_every: float = option(
        10.0, "minutes between checkpoints inside a task; 0: after every step", ge=0
    )
    stop_after: int = option(
        0, "stop when so many tasks are learned, to go on with --resume; 0: run to the end", ge=0
    )
    savecheck: str | None = option(
        None, "keep network weights: last (at the end) or task (after every task)", choices=("last", "task")
    )
    memorization_scores: str | None = option(
        None,
        "scores of training samples (.npz, or .npy, which has no checksum): logs the accuracy on groups of "
        "them, chooses in maer, which never takes a sample without a score (--exclude unscored leaves those "
        "out)",
    )
    memorization_fraction: float = option(
        1.0, "share of the training set that bare scores are of, drawn as in the memorization paper; "
        "other samples then have no score",
        gt=0, le=1,
    )  # fmt: skip
    memorization_classes: str | None = option(
        None,
        "classes a to b−1 that bare scores are of, given as a,b; the fraction is drawn of these",
    )
    mem_thresholds: tuple[float, ...] = option(
        (0.1, 0.25), "low memorization is up to the first, high is above the second", ge=-1, le=1
    )
    loadcheck: str | None = option(
        None, "start from the network weights in this file (made by --savecheck, or a run's checkpoint.pt)"
    )
    start_from: int = option(
        0, "with --loadcheck: that file has learned so many tasks, go on with the next; 0: off", ge=0
    )
    inference_only: bool = option(False, "with --loadcheck: train nothing, evaluate all tasks")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.eval_tasks == 1:
            raise OptionError(
                "--eval_tasks 1: a standard error takes two tasks; give 2 or more, or 0 for all"
            )

    @property
    def samples_evaluation(self) -> bool:
        """Whether evaluations before the end of the run are of some tasks or some samples only."""
        return bool(self.eval_tasks or self.eval_samples)


GROUPS: dict[str, type[OptionSet]] = {
    "run": RunOptions,
    "stream": StreamOptions,
    "train": TrainOptions,
    "log": LogOptions,
}
# Plugin folder → the flag that chooses the plugin and the name of its options in `Config`.
PLUGINS = {
    "models": ("model", "method"),
    "datasets": ("dataset", "benchmark"),
    "backbones": ("backbone", "architecture"),
}
COMMAND_LINE = "command line"  # the layer of flags that `resolve` takes from there
# These say where and how a run is executed, not what it computes: a resumed run may change them.
OPERATIONAL = {
    "device", "num_threads", "data_dir", "images", "output_dir", "tracking_uri", "disable_log",
    "wait_for_log", "checkpoint_every", "stop_after",
}  # fmt: skip


@dataclass(frozen=True)
class Config:
    """Resolved settings of one run: the common groups and the chosen plugins' own options."""

    run: RunOptions
    stream: StreamOptions
    train: TrainOptions
    log: LogOptions
    method: OptionSet
    benchmark: OptionSet
    architecture: OptionSet

    def flat(self) -> dict[str, Any]:
        """Flag name → value, tuples as lists: what is saved, logged and read back, so without passwords."""
        flags = flatten(getattr(self, group.name) for group in dataclasses.fields(self))
        return flags | {"tracking_uri": flags["tracking_uri"] and redact(flags["tracking_uri"])}


def option_sets(model: str, dataset: str, backbone: str) -> dict[str, type[OptionSet]]:
    """Name of each part of `Config` → its dataclass; imports the three plugins."""
    sets = dict(GROUPS)
    chosen = {"models": model, "datasets": dataset, "backbones": backbone}
    for kind, (_, group) in PLUGINS.items():
        module = registry.load(kind, chosen[kind])
        sets[group] = getattr(module, "Options", OptionSet)
    fields_of(sets)  # refuses a flag that two of them define
    return sets


def benchmark_defaults(dataset: str, backbone: str | None = None) -> dict[str, Any]:
    """Flags that a benchmark sets (epochs, batch size, backbone, ...).

    backbone: the one that is used, if not the benchmark's own: then what it sets for its own is left out.
    """
    defaults = dict(registry.load("datasets", dataset).DEFAULTS)
    if backbone is None or backbone == defaults.get("backbone"):
        return defaults
    replaced = getattr(registry.load("backbones", defaults.get("backbone", "mlp")), "Options", OptionSet)
    its_flags = {field.name for field in dataclasses.fields(replaced)}
    return {name: value for name, value in defaults.items() if name not in its_flags}


def resolve(layers: list[tuple[str, dict[str, Any]]]) -> Config:
    """Merge layers of raw values, (name for errors, flag → value), lowest precedence first.

    Raises `OptionError` for unknown keys and invalid values, naming the layer, and `UnknownPluginError`
    for unknown names.
    """
    chosen = {f: _last(layers, f, GROUPS["run"]) for f in ("model", "dataset", "backbone")}
    if chosen["model"] is None:
        raise OptionError(f"--model is missing; choose one of {', '.join(registry.names('models'))}")
    layers = [(f"method {chosen['model']}", registry.method_defaults(chosen["model"])), *layers]
    defaults = benchmark_defaults(chosen["dataset"])
    chosen["backbone"] = _last([("benchmark", defaults), *layers], "backbone", GROUPS["run"])
    defaults = benchmark_defaults(chosen["dataset"], chosen["backbone"])
    layers = [(f"benchmark {chosen['dataset']}", defaults), *layers]
    names = {flag: registry.canonical(kind, chosen[flag]) for kind, (flag, _) in PLUGINS.items()}
    sets = option_sets(**names)
    fields, values = fields_of(sets), {}
    for source, layer in layers:
        given = convert_layer(source, layer, fields)
        if source == COMMAND_LINE and given.get("class_order") and given.get("permute_classes"):
            raise OptionError("--class_order and --permute_classes: give one of them")
        values |= given
    if values.get("class_order"):  # takes the place of a benchmark's own permutation
        values["permute_classes"] = False
    config = Config(**build_sets(sets, values | names))
    consistency.check(config)
    return config


def up_to_date(stored: dict[str, Any]) -> dict[str, Any]:
    """A stored configuration with today's defaults for the flags that it is too old to have.

    What no longer resolves, say because a flag is gone, comes back as it is.
    """
    try:
        return resolve([("stored configuration", stored)]).flat()
    except UserError:
        return stored


def _last(layers: list[tuple[str, dict[str, Any]]], key: str, options: type[OptionSet]) -> Any:
    given = [layer[key] for _, layer in layers if key in layer]
    default = next(f.default for f in dataclasses.fields(options) if f.name == key)
    return given[-1] if given else default
