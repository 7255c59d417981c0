"""Tables from run folders: mean ± standard deviation over seeds, as Markdown.

    python scripts/report.py runs/mnist                         print the table
    python scripts/report.py runs/mnist --update README.md      put it between the file's markers
    python scripts/report.py mer runs/mer [--update README.md]  the MER paper's tables; also CSV and a figure
    python scripts/report.py scenarios runs/scenarios           van de Ven & Tolias's three scenarios

Reads every results.json below the folders given; numbers are never typed. Standard deviations are
over seeds, ddof = 1. The markers are `<!-- table NAME -->` and `<!-- end NAME -->`, NAME being the
first folder's name.
"""

import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts import mer_report, scenario_report

# Flags that tell runs of one method apart.
DISTINGUISHING = (
    "buffer_size", "buffer_policy", *scenario_report.STRENGTHS, "memory_strength", "multi_head", "scenario"
)  # fmt: skip


def load(folders: list[Path]) -> list[dict]:
    """The finished results below the folders; says how many were not finished."""
    documents = [
        json.loads(p.read_text()) for folder in folders for p in sorted(folder.rglob("results.json"))
    ]
    finished = [d for d in documents if d["status"] == "finished"]
    if not finished:
        sys.exit(f"error: no finished run below {', '.join(map(str, folders))}; run the sweep first")
    if len(finished) < len(documents):
        print(f"left out: {len(documents) - len(finished)} runs that did not finish", file=sys.stderr)
    return finished


def label(config: dict) -> str:
    """`er, buffer 500`: the method and what distinguishes this setting of it."""
    words = {
        "buffer_size": "buffer",
        "buffer_policy": "policy",
        **dict.fromkeys(scenario_report.STRENGTHS, "λ"),
    }
    words |= {"si_c": "c", "ebll_alpha": "α"}
    parts = [config["model"]]
    for flag in DISTINGUISHING:
        if flag in config and config[flag] not in (None, False):
            parts.append(f"{words.get(flag, flag)} {config[flag]}" if config[flag] is not True else flag)
    return ", ".join(parts)


def groups(documents: list[dict]) -> dict[tuple[str, str], list[dict]]:
    """(benchmark, label) → runs, one per seed; two runs of one seed are an error."""
    found = defaultdict(list)
    for document in documents:
        found[document["config"]["dataset"], label(document["config"])].append(document)
    for key, runs in found.items():
        seeds = [run["seed"] for run in runs]
        if len(set(seeds)) < len(seeds):
            sys.exit(f"error: {key} has several runs of one seed ({sorted(seeds)}); remove all but one")
    return found


def spread(values: list[float | None]) -> str:
    """`86.40 ± 0.52`, or `–` where a run has no such number."""
    if any(v is None for v in values):
        return "–"
    numbers = 100 * np.array(values)
    deviation = f" ± {numbers.std(ddof=1):.2f}" if len(numbers) > 1 else ""
    return f"{numbers.mean():.2f}{deviation}"


def row(runs: list[dict]) -> list[str]:
    """The cells of one setting."""
    views = [runs[0]["scenario"] != "domain-il" and "class_il", "task_il"]
    cells = [spread([r[v]["average_accuracy"] for r in runs]) if v else "–" for v in views]
    cells.append(spread([r[views[0] or "task_il"]["forgetting"] for r in runs]))
    return [*cells, str(len(runs))]


def mean_accuracy(runs: list[dict]) -> float:
    """What rows are ordered by."""
    return float(np.mean([r["class_il"]["average_accuracy"] for r in runs]))


def table(documents: list[dict]) -> str:
    """One Markdown table per benchmark, ordered by accuracy."""
    parts = []
    by_benchmark = defaultdict(dict)
    for (benchmark, name), runs in groups(documents).items():
        by_benchmark[benchmark][name] = runs
    for _, settings in sorted(by_benchmark.items(), reverse=True):
        config = next(iter(settings.values()))[0]["config"]
        lines = [
            "**{dataset}**: {n_tasks} tasks, {backbone}, {length}, batch {batch_size}, "
            "learning rate {lr}".format(**config, length=length(config)),
            "",
            "| method | class-IL accuracy | task- or domain-IL accuracy | forgetting | seeds |",
            "| --- | --- | --- | --- | --- |",
        ]
        for name, members in sorted(settings.items(), key=lambda item: mean_accuracy(item[1])):
            lines.append("| " + " | ".join([name, *row(members)]) + " |")
        parts.append("\n".join(lines))
    return "\n\n".join([*parts, footer(documents)])


def length(config: dict) -> str:
    """How long a task was trained on."""
    steps = config.get("n_iters")
    return f"{steps} steps per task" if steps else "{n_epochs} epoch(s)".format(**config)


def footer(documents: list[dict]) -> str:
    """Where the numbers come from."""
    known = {
        "devices": {d["device"] for d in documents},
        "torch": {d["versions"]["torch"] for d in documents},
        "commits": {(d["git_commit"] or "unknown")[:10] for d in documents},
    }
    listed = "; ".join(f"{name}: {', '.join(sorted(values))}" for name, values in known.items())
    return f"In %, mean ± standard deviation over seeds (ddof = 1). {listed}."


def update(path: Path, name: str, text: str) -> None:
    """Replace what stands between the file's markers for `name`."""
    start, end = f"<!-- table {name} -->", f"<!-- end {name} -->"
    content = path.read_text(encoding="utf-8")
    if start not in content or end not in content:
        sys.exit(f"error: {path} has no markers '{start}' and '{end}'")
    before, after = content.split(start)[0], content.split(end)[1]
    path.write_text(f"{before}{start}\n{text}\n{end}{after}", encoding="utf-8")


def main() -> None:
    """Print the table or put it into a file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "folders",
        nargs="+",
        help="folders that hold run folders; first `mer` or `scenarios` for their tables",
    )
    parser.add_argument("--update", type=Path, metavar="FILE", help="file whose marked part is replaced")
    args = parser.parse_args()
    kinds = {"mer": mer_report.markdown, "scenarios": scenario_report.markdown}
    kind = args.folders[0] if args.folders[0] in kinds else None
    folders = [Path(folder) for folder in args.folders[kind is not None :]]
    if not folders:
        parser.error("no folder given")
    documents = load(folders)
    text = "\n\n".join([kinds[kind](documents), footer(documents)]) if kind else table(documents)
    if kind == "mer":
        mer_report.write_csv(documents, folders[0] / "mer.csv")
        mer_report.plot(documents, folders[0] / "mer.png")
    if args.update:
        update(args.update, folders[0].name, text)
    else:
        print(text)


if __name__ == "__main__":
    main()
