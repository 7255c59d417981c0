"""Tables of the rehearsal methods, with time and memory, and the DER paper's numbers beside them.

Called by `scripts/report.py rehearsal FOLDER`; scripts/reproduce/rehearsal.sh makes
the runs. The published numbers: published_der.yaml. Peak memory is the whole process's on a CPU.
"""

from pathlib import Path

import numpy as np
import yaml

from engram.scripts.analysis.run_set import one_per_seed
from engram.scripts.analysis.tables import shown as spread

PUBLISHED = Path(__file__).with_name("published_der.yaml")
# Flags that tell two settings of one method apart, and the value that goes without saying.
VARIANTS = {"memory": "reservoir", "order": "uniform", "buffer_policy": "min"}
HEAD = ["method", "class-IL accuracy", "task-IL accuracy", "forgetting"]
HEAD_BY_SIZE = ["method", "buffer", "accuracy", "published", "forgetting"]
COST = ["seconds", "peak MB", "seeds"]


def key(document: dict) -> tuple[str, str, int]:
    """(benchmark, method, buffer size) of a run."""
    config = document["config"]
    own = [str(config[flag]) for flag, usual in VARIANTS.items() if config.get(flag, usual) != usual]
    return config["dataset"], " ".join([config["model"], *own]), config.get("buffer_size", 0)


def cost(runs: list[dict]) -> list[str]:
    """Median seconds of a run, median peak memory, number of seeds."""
    seconds = np.median([run["seconds"]["total"] for run in runs])
    peak = np.median([run["peak_memory_bytes"] for run in runs]) / 2**20
    return [f"{seconds:.0f}", f"{peak:.0f}", str(len(runs))]


def accuracy(runs: list[dict]) -> float:
    """What rows are ordered by; what has no class-IL accuracy comes first."""
    return float(np.mean([run["class_il"]["average_accuracy"] or 0 for run in runs]))


def line(name: str, size: int, runs: list[dict], published: dict | None) -> list[str]:
    """The cells of one setting; published: method → buffer size → accuracy, where a paper has them."""
    class_il, task_il = (spread([r[v]["average_accuracy"] for r in runs]) for v in ("class_il", "task_il"))
    forgetting = spread([run["class_il"]["forgetting"] for run in runs])
    if published is not None:
        known = str(published.get(name, {}).get(size, "–"))
        return [name, str(size or "–"), class_il, known, forgetting, *cost(runs)]
    return [name, class_il, task_il, forgetting, *cost(runs)]


def markdown(documents: list[dict]) -> str:
    """One Markdown table for each benchmark, by accuracy; beside published numbers first by buffer size."""
    published = yaml.safe_load(PUBLISHED.read_text(encoding="utf-8"))
    settings, parts = one_per_seed(documents, map(key, documents)), []
    for benchmark in sorted({name for name, _, _ in settings}, reverse=True):
        own = [(method, size, runs) for (name, method, size), runs in settings.items() if name == benchmark]
        known = published.get(benchmark)
        own.sort(key=lambda row: (row[1] if known else 0, accuracy(row[2])))
        head = (HEAD_BY_SIZE if known else HEAD) + COST
        rows = [head, ["---"] * len(head)]
        rows += [line(*row, known) for row in own]
        sizes = {size for _, size, _ in own if size}
        title = f"**{benchmark}**" + ("" if known else f", buffer {', '.join(map(str, sorted(sizes)))}")
        parts.append("\n".join([title, "", *(f"| {' | '.join(row)} |" for row in rows)]))
    return "\n\n".join(parts)
