"""Record R of every method, scenario and choice of an option on seq-digits; compare two such records.

    python scripts/dev/record_r.py before.json              on the commit before a change (about two minutes)
    python scripts/dev/record_r.py after.json --against before.json

A record holds R of both views and a hash of the final weights, all on the CPU with one thread. A change that
cannot move numbers leaves both as they are, bit for bit; the comparison prints what moved and exits with 1.
"""

import argparse
import dataclasses
import hashlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from engram.memorization import proxies
from engram.models.build import build_method
from engram.models.method import Method
from engram.utils import files
from engram.utils.config import cli, registry
from engram.utils.config.flags import CheckedParser
from engram.utils.destinations import check_file
from engram.utils.door import guarded
from engram.utils.errors import UserError
from engram.utils.training.progress import DivergedError
from engram.utils.training.trainer import Trainer

COMMON = [
    "--dataset=seq-digits",
    "--disable_log",
    "--device=cpu",
    "--num_threads=1",
    "--n_epochs=2",
    "--lr=0.05",
]
# Methods whose defaults take long.
SHORT = {
    "mer": ["--n_epochs=1", "--batches_per_example=2"],
    "pbcs": ["--coreset_steps=3"],
    "bcsr": ["--coreset_steps=3"],
    "hal": ["--anchor_steps=3"],
    "gdumb": ["--fitting_epochs=2"],
    "ranpac": ["--rp_size=200"],
    "acil": ["--acil_size=200"],
}  # fmt: skip
SCENARIOS = {"class-il": [], "task-il": ["--multi_head"], "domain-il": ["--scenario=domain-il"]}
# Methods that also run on networks with convolutions and batch norm.
DEEP = (
    "sgd", "er", "der", "derpp", "maer", "ewc", "mas", "agem", "gem", "lwf", "icarl", "bic", "er_ace", "xder",
    "gss", "mir",
)  # fmt: skip
BACKBONES = {
    "cnn": ["--backbone=cnn", "--n_iters=20"],
    "resnet18": ["--backbone=resnet18", "--n_iters=4", "--batch_size=8", "--width=0.25"],
}
TRAINED_OTHERWISE = {
    "validation": ["--validation=10", "--permute_classes", "--optim_mom=0.9"],
    "joint-options": ["--optimizer=adam", "--lr=0.001", "--keep_optimizer"],
}


def cases() -> Iterator[tuple[str, list[str]]]:
    """Name and flags of every run: a method in a scenario, with a choice of its own, or on a backbone."""
    for model in registry.names("models"):
        module = registry.load("models", model)
        scenarios = registry.plugin_class(module, Method).scenarios
        base = [f"--model={model}", *COMMON, *SHORT.get(model, [])]
        for scenario in scenarios:
            yield f"{model}/{scenario}", [*base, *SCENARIOS[scenario]]
        for flag, value in choices(getattr(module, "Options", None)):
            yield f"{model}/{flag}={value}", [*base, *SCENARIOS[scenarios[0]], f"--{flag}={value}"]
    for model in DEEP:
        for name, extra in BACKBONES.items():
            yield f"{model}/{name}", [f"--model={model}", *COMMON, *extra]
    for model in ("er", "derpp", "maer", "mas", "ewc"):
        for name, extra in TRAINED_OTHERWISE.items():
            yield f"{model}/{name}", [f"--model={model}", *COMMON, *extra]


def choices(options: type | None) -> Iterator[tuple[str, object]]:
    """(flag, value) for every value of a method's own flags that is not its default, where they are few."""
    for field in dataclasses.fields(options) if options else ():
        values = field.metadata.get("choices") or ()
        if isinstance(field.default, bool):
            values = (int(not field.default),)
        yield from ((field.name, value) for value in values if value != field.default)


def run(flags: list[str]) -> dict[str, object]:
    """R of both views and the weights' hash after a run; or the refusal's first words."""
    try:
        config = cli.parse(flags).config
        method = build_method(config, torch.device(config.run.device), proxies.create)
        trainer = Trainer(config, method, folder=None, quiet=True)
        trainer.save = lambda: None
        trainer.run()
    except (UserError, DivergedError) as error:
        return {"refused": str(error)[:60]}
    digest = hashlib.sha256()
    for _, tensor in sorted(trainer.method.net.state_dict().items()):
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return {"R": {view: R.tolist() for view, R in trainer.results.R.items()}, "weights": digest.hexdigest()}


def records_in(path: Path) -> dict[str, dict]:
    """What an earlier call wrote: name of a case → its numbers, or the words of its refusal."""
    try:
        records = json.loads(path.read_text(encoding="utf-8"))
        if all(case.keys() & {"R", "refused"} for case in records.values()):
            return records
        raise ValueError("other entries than those of cases")
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: no record of R ({error}); give a file that this program wrote") from None


def moved(before: dict, after: dict) -> list[str]:
    """A line for every case of `before` whose numbers differ in `after`, or that is missing there."""
    lines = []
    for name, old in before.items():
        new = after.get(name)
        # a refusal's wording may change; as text, since NaN does not equal itself
        kinds = [
            {k: json.dumps(v) for k, v in case.items() if k in ("R", "weights")} for case in (old, new or {})
        ]
        if new is None:
            lines.append(f"missing: {name}")
        elif kinds[0] != kinds[1]:
            lines.append(f"moved: {name}" + (" (the weights alone)" if old.get("R") == new.get("R") else ""))
    return lines


@guarded
def main(argv: list[str] | None = None) -> int:
    """The program; returns its exit code."""
    parser = CheckedParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="file to write, .json")
    parser.add_argument("--against", type=Path, metavar="FILE", help="an earlier record to compare with")
    parser.add_argument("--only", default="", metavar="TEXT", help="cases whose name contains this")
    args = parser.parse_args(argv)
    check_file(args.out, "", (".json",), lambda file: bool(records_in(file)))
    before = records_in(args.against) if args.against else {}
    torch.set_num_threads(1)
    records = {}
    for name, flags in cases():
        if args.only in name:
            records[name] = run(flags)
            if sys.stderr.isatty():
                print(f"\r{len(records)} runs, {name:<50}", end="", file=sys.stderr)
    files.write_text(json.dumps(records), args.out)
    print(f"{len(records)} runs recorded in {args.out}")
    if args.against is None:
        return 0
    before = {name: case for name, case in before.items() if args.only in name}
    lines = moved(before, records)
    print("\n".join([*lines, f"{len(before) - len(lines)} of {len(before)} identical, bit for bit"]))
    return 1 if lines else 0


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
