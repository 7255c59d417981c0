"""Learning rate of a method, and its strength by the stability-decay rule, on validation data alone.

    python scripts/tune.py --model mas --dataset seq-mnist --multi_head --hidden_sizes 256,256
    python scripts/tune.py --model ewc --dataset seq-cifar100 --first_tasks 3 --seeds 0,1 --write
    python scripts/tune.py --model er --buffer_size 500 --dataset seq-mnist --rates 0.1,0.03,0.01

Flags not listed below are those of main.py and hold for every run. Each run holds out --validation % of the
training data (10 unless given) and is measured on that; the test set is never read.

1. Fine-tuning (sgd) with each rate of --rates; A* is the highest learning accuracy, the mean over tasks of
   the accuracy on a task right after it was learned (class-IL: among all classes seen so far).
2. The method at that rate, its strength first high, then halved until its learning accuracy is at least
   (1 - p) A*, p = --drop: the most stability that costs at most that share of plasticity.

A method without a known strength, as er, has its rate alone tuned: the one of --rates at which the method
itself has the highest average accuracy after the last task. Methods whose --lr has no effect are refused.

Source: De Lange et al. 2021, "A continual learning survey" (arXiv 1909.08383), section 4. Differs from it:
there both phases are gone through for every task anew, here once, over the whole stream or its
--first_tasks, which gives one value to publish and needs later tasks' training data; strengths are not
raised above where they start, so a start that is accepted at once is said to be low. Runs lie under
OUTPUT_DIR/tune; finished ones are not repeated, others are resumed, failed ones too. IMM is refused: what
it predicts with after a task is merged, and no measure of plasticity.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from engram.models.method import Method
from engram.scripts.strengths import START_STRENGTHS
from engram.scripts.trials import Trials, flags_of_method
from engram.utils import files
from engram.utils.config import cli, registry
from engram.utils.config import config as settings
from engram.utils.config.config import Config, resolve
from engram.utils.config.flags import COUNT, CheckedParser, check_bounds
from engram.utils.config.options import SEEDS
from engram.utils.config.version import version
from engram.utils.destinations import check_folder
from engram.utils.door import guarded
from engram.utils.errors import UserError

RATES = (0.1, 0.05, 0.01, 0.005, 0.001, 0.0005, 0.0001)
HEADER = "# benchmark → buffer size → flags. `source` says where the values come from.\n"
# Flags that are no part of a preset: how a run is executed, measured and named.
APART = {*settings.OPERATIONAL, *settings.LogOptions.__dataclass_fields__, "model", "dataset", "seed",
         "validation", "buffer_size", "debug_mode"}  # fmt: skip
MERGING = ("imm_mean", "imm_mode")  # methods whose R[k, k] is the accuracy of a mean over tasks
WITH_A_RATE_OF_ITS_OWN = ("gdumb",)  # trained at --maxlr to --minlr
DROP, TRIES = 0.2, 10

# (method, flags) → the accuracy that is chosen by, None where training diverged.
Measure = Callable[[str, dict[str, float]], float | None]


class Choice(NamedTuple):
    """The chosen rate and strengths, and the accuracies by which they were accepted.

    best: the highest of all rates. strengths, accuracy: of the method, None where no strength was accepted.
    """

    lr: float
    best: float
    strengths: dict[str, float] | None
    accuracy: float | None
    n_tries: int


def choose(
    measure: Measure, model: str, rates: tuple[float, ...], start: dict[str, float], drop: float, tries: int
) -> Choice:
    """Choose a rate and strengths by the stability-decay rule; `tries` strengths are tried at most.

    Without a strength to start from the rate is the best one of the method itself.
    """
    baseline = "sgd" if start else model
    accuracies = {lr: measure(baseline, {"lr": lr}) for lr in rates}
    learned = {lr: accuracy for lr, accuracy in accuracies.items() if accuracy is not None}
    if not learned:
        raise UserError(f"--rates {','.join(map(str, rates))}: {baseline} diverged at all of them")
    lr = max(learned, key=lambda rate: learned[rate])
    if not start:
        return Choice(lr, learned[lr], {}, learned[lr], 0)
    for n in range(tries):
        strengths = {flag: value / 2**n for flag, value in start.items()}
        accuracy = measure(model, {"lr": lr, **strengths})
        if accuracy is not None and accuracy >= (1 - drop) * learned[lr]:
            return Choice(lr, learned[lr], strengths, accuracy, n + 1)
    return Choice(lr, learned[lr], None, None, tries)


def preset(config: Config, choice: Choice, source: str) -> tuple[str, Any, dict[str, Any]]:
    """(benchmark, buffer size or `any`, flags): all that differs from the defaults, and what was tuned."""
    flat = config.flat()
    plain = resolve([("defaults", {"model": flat["model"], "dataset": flat["dataset"]})]).flat()
    given = {k: v for k, v in flat.items() if k not in APART and v != plain.get(k)}
    flags = given | {"lr": choice.lr, **choice.strengths, "source": source}
    return flat["dataset"], flat.get("buffer_size", "any"), flags


class Plain(yaml.SafeDumper):
    """A YAML writer without anchors: every entry stands for itself."""

    def ignore_aliases(self, data: Any) -> bool:
        """Write a value again where it occurs again."""
        return True


def write_preset(path: Path, dataset: str, size: Any, flags: dict[str, Any]) -> None:
    """Put the entry into the method's file; entries of other benchmarks and sizes stay."""
    presets = yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else {}
    presets[dataset] = presets.get(dataset, {}) | {size: flags}
    text = yaml.dump(presets, Dumper=Plain, sort_keys=False, allow_unicode=True, width=110)
    files.write_text(HEADER + text, path)


def strengths(text: str) -> dict[str, float]:
    """Flag → start of a text such as `lwf_lambda=10,ebll_alpha=1`."""
    try:
        return {flag: float(value) for flag, value in (item.split("=") for item in text.split(","))}
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text or 'nothing'}: expected e.g. e_lambda=1000") from None


def numbers(kind: type) -> Callable[[str], tuple]:
    """A type for argparse: the function that makes (1, 2) of `1,2`."""

    def read(text: str) -> tuple:
        return tuple(kind(item) for item in text.split(","))

    read.__name__ = f"{kind.__name__},..."  # argparse names it in its message of a wrong value
    return read


def parser() -> argparse.ArgumentParser:
    """The parser of the flags that main.py does not have."""
    made = CheckedParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    made.add_argument("--rates", type=numbers(float), default=RATES, help="learning rates, e.g. 0.1,0.01")
    made.add_argument(
        "--strength", type=strengths, metavar="FLAG=START,...",
        help="flags that are halved together, and where they start (default: scripts/strengths.py; "
        "without one the rate alone is tuned)",
    )  # fmt: skip
    made.add_argument(
        "--drop", type=float, help=f"p, share of A* that may be lost, below 1 (default: {DROP})"
    )
    made.add_argument("--tries", type=int, help=f"strengths that are tried (default: {TRIES})")
    made.add_argument("--first_tasks", type=int, default=0, help="tune on so many tasks; 0: the whole stream")
    made.add_argument("--seeds", type=numbers(int), help="accuracies are means over these (default: --seed)")
    made.add_argument("--write", action="store_true", help="put the result into models/presets/METHOD.yaml")
    return made


@guarded
def main(argv: list[str] | None = None) -> int:
    """Tune what the command line asks for; returns the exit code."""
    args, rest = parser().parse_known_args(argv)
    check_bounds(args, tries=COUNT, seeds=(0, SEEDS - 1))
    config = cli.parse(rest).config
    if config is None:
        raise UserError("--resume: not for tuning, which resumes its runs by itself")
    check_folder(config.run.output_dir, "--output_dir")
    return tune(args, config)


def checked(args: argparse.Namespace, config: Config) -> dict[str, float]:
    """The strengths to start from, which may be none; refuses, before the first run, what cannot be tuned."""
    model, n_tasks, method_flags = config.run.model, config.stream.n_tasks, flags_of_method(config)
    if model in MERGING:
        raise UserError(
            f"--model {model}: right after a task its merged network is measured, which merging alone makes "
            "worse, so no strength would be accepted; compare a grid on held-out data instead: python "
            f"scripts/sweep.py --model {model} --imm_lambda 1 0.1 0.01 -- --dataset {config.run.dataset} "
            "--validation 10"
        )
    method = registry.plugin_class(registry.load("models", model), Method)
    takes_steps = method.takes_steps or not method.keeps_encoder(config.method)
    if not takes_steps or model in WITH_A_RATE_OF_ITS_OWN:
        instead = (
            f"compare its own flags (python main.py --model {model} --help) on held-out data instead: "
            "scripts/sweep.py with --validation 10"
        )
        raise UserError(
            f"--model {model}: --lr has no effect on it, so no rate of it can be tuned; "
            + (instead if method_flags else "it has no flags of its own either")
        )
    if not 0 <= args.first_tasks <= n_tasks:
        raise UserError(
            f"--first_tasks {args.first_tasks}: the stream has {n_tasks} tasks; "
            f"give 1 to {n_tasks}, or 0 for all of them"
        )
    if args.drop is not None and not 0 <= args.drop < 1:
        raise UserError(f"--drop {args.drop:g}: a share from 0 to below 1 is expected, e.g. 0.2 for 20 %")
    start = args.strength or START_STRENGTHS.get(model, {})
    if alien := sorted(set(start) - method_flags):
        hint = registry.suggest(alien[0], sorted(method_flags))
        raise UserError(f"--strength {alien[0]}: not a flag of {model}{hint}")
    without_effect = [f"--{name}" for name in ("drop", "tries") if getattr(args, name) is not None]
    if without_effect and not start:
        raise UserError(
            f"{', '.join(without_effect)}: without effect, since no strength of {model} is known and its "
            "rate alone is tuned; leave out what is named here, or name a strength (--strength FLAG=START)"
        )
    return start


def tune(args: argparse.Namespace, config: Config) -> int:
    """Choose, say what was chosen, and write it down."""
    if args.write:
        registry.checkout()  # refused before the first run
    model, start = config.run.model, checked(args, config)
    if not start:
        print(
            f"no strength of {model} is known: its rate alone is tuned; --strength FLAG=START names one",
            file=sys.stderr,
        )
    measured = "learning accuracy" if start else "average accuracy"
    trials = Trials(config, args.seeds or (config.run.seed,), args.first_tasks, measured)
    drop = DROP if args.drop is None else args.drop
    choice = choose(trials.measure, model, args.rates, start, drop, args.tries or TRIES)
    if choice.strengths is None:
        raise UserError(
            f"none of {choice.n_tries} strengths reached {1 - drop:g} of {100 * choice.best:.2f} %; "
            "start lower (--strength FLAG=START) or try more (--tries)"
        )
    rule = f"stability decay with p = {drop:g}" if start else "the best rate"
    compared = f" (fine-tuning {choice.best:.4f})" if start else ""
    source = (
        f"scripts/tune.py, {rule}: {measured} {choice.accuracy:.4f}{compared} on {trials.validation:g} % "
        f"held-out training data, {args.first_tasks or 'all'} tasks, "
        f"seeds {','.join(map(str, trials.seeds))}; {version()}"
    )
    dataset, size, flags = preset(config, choice, source)
    print(yaml.safe_dump({dataset: {size: flags}}, sort_keys=False, allow_unicode=True, width=110), end="")
    if choice.n_tries == 1:
        print("the first strength was accepted at once: a higher start may be accepted too", file=sys.stderr)
    if args.write:
        path = registry.checkout() / "models" / "presets" / f"{model}.yaml"
        write_preset(path, dataset, size, flags)
        print(f"written to {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
