"""Tables of the three scenarios from run folders: average accuracy beside the published, and the strength.

Called by `scripts/report.py scenarios FOLDER`. The published values: published_scenarios.yaml.
"""

from collections import defaultdict
from pathlib import Path

import numpy as np
import yaml

from engram.scripts.analysis.run_set import one_per_seed

BENCHMARKS = {"seq-mnist": "Split MNIST", "perm-mnist": "Permuted MNIST"}
SCENARIOS = ("task-il", "domain-il", "class-il")
STRENGTHS = ("e_lambda", "mas_lambda", "si_c", "rwalk_lambda", "imm_lambda", "lwf_lambda", "ebll_alpha")
PUBLISHED = Path(__file__).with_name("published_scenarios.yaml")


def name_of(config: dict) -> str:
    """`ewc online`: the method, and its form where it has two."""
    online = config["model"] == "ewc" and config["ewc_mode"] == "online"
    return f"{config['model']} online" if online else config["model"]


def collect(documents: list[dict]) -> dict[str, dict[str, dict[str, list[dict]]]]:
    """Benchmark → method → scenario → runs that differ in the seed alone."""
    shown = [document for document in documents if document["config"]["dataset"] in BENCHMARKS]
    keys = [(d["config"]["dataset"], name_of(d["config"]), d["scenario"]) for d in shown]
    found = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for (benchmark, name, scenario), runs in one_per_seed(shown, keys).items():
        found[benchmark][name][scenario] = runs
    return found


def cell(runs: list[dict], published: str) -> str:
    """`98.70 ± 0.10 (98.64 ± 0.22), λ 1e+05`."""
    if not runs:
        return f"– ({published})"
    view = "class_il" if runs[0]["scenario"] == "class-il" else "task_il"
    values = 100 * np.array([run[view]["average_accuracy"] for run in runs])
    deviation = f" ± {values.std(ddof=1):.2f}" if len(values) > 1 else ""
    config = runs[0]["config"]
    strength = ", ".join(f"{config[name]:g}" for name in STRENGTHS if name in config)
    return f"{values.mean():.2f}{deviation} ({published})" + (f", λ {strength}" if strength else "")


def table(methods: dict[str, dict[str, list[dict]]], published: dict[str, list]) -> str:
    """One benchmark: a row per method, those of the paper first and in its order."""
    head = ["method", *(f"{scenario} (published)" for scenario in SCENARIOS), "seeds"]
    lines = [head, ["---"] * len(head)]
    for name in [*(n for n in published if n in methods), *sorted(methods.keys() - published.keys())]:
        theirs = published.get(name, ["–"] * len(SCENARIOS))
        cells = [cell(methods[name][s], given) for s, given in zip(SCENARIOS, theirs, strict=True)]
        seeds = {run["seed"] for runs in methods[name].values() for run in runs}
        lines.append([name, *cells, str(len(seeds))])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def settings(methods: dict[str, dict[str, list[dict]]]) -> str:
    """What all runs of a benchmark share."""
    # joint has one task, as long as the others' all together
    several = [scenarios for name, scenarios in methods.items() if name != "joint"] or methods.values()
    runs = [run for scenarios in several for runs in scenarios.values() for run in runs]
    units, steps, batch, lr, on = (
        {str(read(run)) for run in runs}
        for read in (
            lambda run: "-".join(map(str, run["config"]["hidden_sizes"])),
            lambda run: run["config"]["n_iters"],
            lambda run: run["config"]["batch_size"],
            lambda run: run["config"]["lr"],
            lambda run: run["evaluated_on"],
        )
    )
    said = [", ".join(sorted(values)) for values in (units, steps, batch, lr, on)]
    return "{} units, {} steps per task of {} samples, Adam {}; {} data".format(*said)


def markdown(documents: list[dict]) -> str:
    """The tables, one per benchmark."""
    found, known = collect(documents), yaml.safe_load(PUBLISHED.read_text(encoding="utf-8"))
    parts = [
        f"**{title}**: {settings(found[benchmark])}\n\n{table(found[benchmark], known[benchmark])}"
        for benchmark, title in BENCHMARKS.items()
        if benchmark in found
    ]
    return "\n\n".join(parts)
