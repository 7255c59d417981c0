"""Command line: flags in, a `Config` (or a folder to resume) out; help and version without torch."""

import argparse
import dataclasses
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import yaml

from engram.utils.config import config as settings
from engram.utils.config import mammoth, option_names, registry, version
from engram.utils.config.config import GROUPS, PLUGINS, Config
from engram.utils.config.flags import Parser, fields_of, read_config_file
from engram.utils.config.options import OptionError, OptionSet, convert
from engram.utils.terminal import say_start

TITLES = {
    "run": "run", "stream": "stream of tasks", "train": "training", "log": "measuring, logging, saving",
    "method": "method {model}", "benchmark": "benchmark {dataset}", "architecture": "backbone {backbone}",
}  # fmt: skip


@dataclass(frozen=True)
class Request:
    """What the user asked for: a new run, or a run to resume with some flags given again."""

    config: Config | None = None
    resume: str | None = None
    overrides: dict[str, Any] = dataclasses.field(default_factory=dict)


def parse(argv: list[str]) -> Request:
    """Read the command line; prints and exits for --help and --version."""
    chooser = _chooser()
    given, rest = chooser.parse_known_args(argv)
    if given.list:
        from engram.utils.config import plugin_docs

        print(plugin_docs.listing())
        sys.exit(0)
    if given.version:
        print(version.version())
        sys.exit(0)
    file = _config_file(given, rest) if given.config else {}
    named = _chosen(given)
    chosen = {f: named.get(f) or file.get(f) for f in ("model", "dataset", "backbone")}
    if given.help and not any(chosen.values()):
        print(general_help(chooser))
        sys.exit(0)
    if not given.help:
        refuse_unknown(rest, chosen)
        announce(chosen, given.resume)
    sets = _option_sets(chosen)
    if given.help:
        print(_help_of_choice(sets, chosen, chooser))
        sys.exit(0)
    flags = named | _given_flags(rest, sets)
    if given.resume:
        return Request(resume=given.resume, overrides=flags)
    layers = [(f"--config {given.config}", file), (settings.COMMAND_LINE, flags)]
    if given.load_best_args:
        given_flags = {**file, **flags}
        layers.insert(0, best_args(chosen["model"], chosen["dataset"], given_flags, given.load_best_args))
    return Request(config=settings.resolve(layers))


def _chooser() -> Parser:
    """The flags that decide which other flags exist."""
    parser = Parser(prog=registry.command())
    parser.add_argument(
        "-h", "--help", action="store_true", help="this text; with --model X, X's own flags too"
    )
    parser.add_argument("--version", action="store_true", help="version and commit")
    parser.add_argument(
        "--list", action="store_true", help="methods, benchmarks, backbones with paper and scenarios"
    )
    parser.add_argument("--model", metavar="NAME", help="continual-learning method (required)")
    parser.add_argument("--dataset", metavar="NAME", help="benchmark (default: seq-digits)")
    parser.add_argument("--backbone", metavar="NAME", help="architecture (default: the benchmark's)")
    parser.add_argument("--config", metavar="FILE", help="YAML file of flags; the command line wins over it")
    parser.add_argument(
        "--load_best_args", nargs="?", const="1", default="0", type=_preset, metavar="0|1|NAME",
        help="take the method's preset for this benchmark and buffer size, or the one of this name, such as "
        "l2p_jax (models/presets/)",
    )  # fmt: skip
    parser.add_argument(
        "--resume", metavar="RUN", help="continue a run: its folder or its id under --output_dir"
    )
    return parser


def _preset(text: str) -> str:
    """What --load_best_args asks for: nothing, the preset that fits (`any`), or one by its name."""
    return {"0": "", "false": "", "1": "any", "true": "any"}.get(text.lower(), text)


def _chosen(given: argparse.Namespace) -> dict[str, Any]:
    """The plugins that the command line names, with what a backbone of mammoth's stands for."""
    flags = {f: getattr(given, f) for f in ("model", "dataset", "backbone")}
    return mammoth.expanded({name: value for name, value in flags.items() if value is not None})


def _config_file(given: argparse.Namespace, rest: list[str]) -> dict[str, Any]:
    """The flags of --config; of a preset file of mammoth's those for this benchmark and buffer size."""
    file = read_config_file(given.config)
    if mammoth.is_preset(file):
        reader = Parser(argument_default=None)
        reader.add_argument("--buffer_size")
        size = reader.parse_known_args(rest)[0].buffer_size
        try:
            file = mammoth.preset(file, given.dataset or settings.RunOptions().dataset, size)
        except LookupError as error:
            raise OptionError(f"--config {given.config}: {error.args[0]}") from None
    return mammoth.expanded(file)


def refuse_unknown(argv: list[str], chosen: dict[str, Any]) -> None:
    """Raise `OptionError` for a flag that the chosen plugins do not have, before any of them is imported."""
    dataset = chosen["dataset"] or settings.RunOptions().dataset
    backbone = chosen["backbone"] or registry.default_backbone(dataset)
    kinds = [("models", chosen["model"]), ("datasets", dataset), ("backbones", backbone)]
    names = [option_names.of_plugin(kind, name) for kind, name in kinds if name]
    parser = _parser(GROUPS, {}, None)
    for name in sorted(frozenset().union(*names)):
        parser.add_argument(f"--{name}", nargs="*")
    parser.read(argv, other_flags=_chooser().flags)


def announce(chosen: dict[str, Any], resume: str | None) -> None:
    """Say on a terminal what is starting: the plugins that are loaded next import torch, in seconds."""
    if resume:
        say_start(f"resuming {resume}: loading PyTorch")
    elif chosen["model"]:
        dataset = chosen["dataset"] or settings.RunOptions().dataset
        say_start(f"starting {chosen['model']} on {dataset}: loading PyTorch")


def _help_of_choice(sets: dict[str, type[OptionSet]], chosen: dict[str, Any], chooser: Parser) -> str:
    """Usage, the flags of the chosen method, benchmark and backbone, then those that every run has."""
    named, dataset = chosen, chosen["dataset"] or settings.RunOptions().dataset
    backbone = chosen["backbone"] or registry.default_backbone(dataset)
    chosen = {**chosen, "dataset": dataset, "backbone": backbone}
    plugins = {group: sets[group] for _, group in PLUGINS.values() if group in sets}
    first, rest = _parser(plugins, chosen, None), _parser(GROUPS, chosen, chooser)
    if named["dataset"]:
        first.description = registry.docstring("datasets", dataset)
    first.usage = f"{registry.command()} --model {chosen['model'] or 'NAME'} [flags]"
    rest.usage = argparse.SUPPRESS
    return f"{first.format_help()}\n{rest.format_help()}"


def _option_sets(chosen: dict[str, str | None]) -> dict[str, type[OptionSet]]:
    """Dataclasses of the flags for a choice of plugins; without a method only the common ones count."""
    sets = dict(GROUPS)
    dataset = chosen["dataset"] or settings.RunOptions().dataset
    wanted = {"models": chosen["model"], "datasets": dataset, "backbones": chosen["backbone"]}
    wanted["backbones"] = wanted["backbones"] or settings.benchmark_defaults(dataset).get("backbone", "mlp")
    for kind, (_, group) in PLUGINS.items():
        if wanted[kind]:
            sets[group] = getattr(registry.load(kind, wanted[kind]), "Options", OptionSet)
    return sets


def _given_flags(argv: list[str], sets: dict[str, type[OptionSet]]) -> dict[str, Any]:
    """Flag → raw string for everything given; unknown flags are refused with near matches."""
    return _parser(sets, {}, None).read(argv, other_flags=_chooser().flags)


def _parser(sets: dict[str, type[OptionSet]], chosen: dict, chooser: Parser | None) -> Parser:
    parents = [chooser] if chooser else []
    parser = Parser(prog=registry.command(), argument_default=argparse.SUPPRESS, parents=parents)
    dataset, backbone = chosen.get("dataset"), chosen.get("backbone")
    defaults = settings.benchmark_defaults(dataset, backbone) if dataset else {}
    defaults |= registry.method_defaults(chosen["model"]) if chosen.get("model") else {}
    names = {flag: chosen.get(flag) or "" for flag, _ in PLUGINS.values()}
    for group, options in sets.items():
        fields = [f for f in dataclasses.fields(options) if f.name not in {"model", "dataset", "backbone"}]
        if fields:
            parser.add_section(TITLES[group].format(**names).strip(), fields, defaults)
    return parser


def best_args(
    model: str | None, dataset: str | None, given: dict[str, Any], name: str
) -> tuple[str, dict[str, Any]]:
    """The preset for (method, benchmark, buffer size or name) in models/presets/METHOD.yaml, as a layer.

    name: of the preset; `any` for the one of the buffer size. A preset called by its size sets the size too.
    """
    if model is None:
        raise OptionError("--load_best_args needs --model")
    model = registry.canonical("models", model)
    dataset = registry.canonical("datasets", dataset or settings.RunOptions().dataset)
    path = registry.ROOT / "models" / "presets" / f"{model}.yaml"
    presets = yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else {}
    wanted = str(given.get("buffer_size", "any")) if name == "any" else name
    by_name = {str(key): flags for key, flags in presets.get(dataset, {}).items()}
    if wanted not in by_name:
        raise OptionError(f"--load_best_args: {_without_preset(model, dataset, wanted, presets)}")
    size = {"buffer_size": int(wanted)} if wanted.isdigit() else {}
    flags = size | {key: value for key, value in by_name[wanted].items() if key != "source"}
    return f"preset {path.name}", flags


def _without_preset(model: str, dataset: str, wanted: str, presets: dict[str, dict[Any, Any]]) -> str:
    """Why a method has no preset called `wanted` on a benchmark, which it has, and what to give."""
    if not presets:
        return f"{model} has no presets; leave the flag out, or tune the method's flags (scripts/tune.py)"
    if dataset not in presets:
        have = [f"{name} ({called(presets[name])})".removesuffix(" ()") for name in presets]
        return f"{model} has no preset for --dataset {dataset}; it has some for {'; '.join(have)}"
    have, first = called(presets[dataset]), next(iter(presets[dataset]))
    if wanted != "any":
        one = have or "one that needs neither name nor size: give --load_best_args alone"
        return f"{model} has no preset for {called([wanted])} on {dataset}; it has {one}"
    flag = "--buffer_size" if isinstance(first, int) else "--load_best_args"
    return f"the presets of {model} on {dataset} are for {have}; give one of them, such as {flag} {first}"


def called(presets: Iterable[Any]) -> str:
    """How presets of a benchmark are told apart: `buffer_size 200, 500` or `l2p_jax`; not at all for one."""
    names = [str(name) for name in presets if name != "any"]
    sizes = all(map(str.isdigit, names))
    return ("buffer_size " if names and sizes else "") + ", ".join(names)


def general_help(chooser: Parser) -> str:
    """Usage, and every method, benchmark and backbone with one line each; imports no plugin."""
    parser = _parser(GROUPS, {}, chooser)
    parser.usage = f"{registry.command()} --model NAME [--dataset NAME] [flags]"
    parts = [parser.format_help()]
    for kind, title in (("models", "methods"), ("datasets", "benchmarks"), ("backbones", "backbones")):
        lines = registry.summaries(kind)
        width = max(map(len, lines), default=0)
        parts.append(
            "\n".join([f"{title}:", *(f"  {name:<{width}}  {text}" for name, text in lines.items())])
        )
    parts.append(
        "Defaults of --n_epochs, --batch_size, --lr, --n_tasks, --backbone, --permute_classes and the\n"
        f"scheduler depend on the benchmark: {registry.command()} --model er --dataset seq-cifar100 --help\n"
        "shows the values in force. "
        f"Example: {registry.command()} --model er --buffer_size 500 --dataset seq-mnist"
    )
    return "\n\n".join(parts)


def flags_to_resume(saved: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """The flags of a run to resume; of those given again only operational ones may differ."""
    fields = fields_of(
        _option_sets({flag: given.get(flag) or saved.get(flag) for flag, _ in PLUGINS.values()})
    )
    kinds = {flag: kind for kind, (flag, _) in PLUGINS.items()}
    changed = {}
    for name, raw in given.items():
        value = registry.canonical(kinds[name], raw) if name in kinds else convert(fields[name], raw)
        same = list(value) == saved.get(name) if isinstance(value, tuple) else value == saved.get(name)
        if not same and name not in settings.OPERATIONAL:
            raise OptionError(
                f"--{name} {raw}: the run to resume has {saved.get(name)}; leave the flag out, or start a "
                f"new run (only {', '.join('--' + n for n in sorted(settings.OPERATIONAL))} may change)"
            )
        changed[name] = value
    return saved | changed
