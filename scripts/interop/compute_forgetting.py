"""Forgetting from the tree that scripts/interop/export_tasks.py writes.

    python scripts/interop/compute_forgetting.py DIR

Forgetting of a task is its accuracy right after it was learned (performance.txt) minus its accuracy after
the last task (performance_at_end.txt), in points of percent; negative where later tasks helped. Two
means: over all T tasks, the last one's 0 included (the MAS authors'); over the first T − 1 (then minus
GEM's backward transfer). results.json has Chaudhry's, from the best earlier accuracy instead of the first.
Differs from MAS-PyTorch: there the sign is the other way round, and its README gives this one.
"""

import argparse
import sys
from pathlib import Path

from engram.utils.config.flags import CheckedParser
from engram.utils.door import guarded
from engram.utils.errors import UserError


def read(folder: Path) -> list[tuple[float, float]]:
    """(right after the task, at the end) of each task, as fractions."""
    pairs = []
    while (task_folder := folder / f"Task_{len(pairs) + 1}").is_dir():
        try:
            texts = [
                (task_folder / f"{name}.txt").read_text() for name in ("performance", "performance_at_end")
            ]
            pairs.append((float(texts[0]), float(texts[1])))
        except (OSError, ValueError) as error:
            raise UserError(f"{task_folder}: unreadable ({error}); export the run again") from None
    if not pairs:
        raise UserError(f"{folder}: no Task_1; give a folder that scripts/interop/export_tasks.py wrote")
    return pairs


def table(pairs: list[tuple[float, float]]) -> str:
    """A line for each task, then the means."""
    forgotten = [100 * (after - at_end) for after, at_end in pairs]
    lines = ["in %        after it   at the end   forgetting"]
    for k, ((after, at_end), lost) in enumerate(zip(pairs, forgotten, strict=True), 1):
        lines.append(f"Task_{k:<6} {100 * after:8.2f} {100 * at_end:12.2f} {lost:12.3f}")
    n = len(pairs)
    lines.append(f"average accuracy at the end: {100 * sum(at_end for _, at_end in pairs) / n:.2f}")
    lines.append(
        f"average forgetting, right after minus at the end: {sum(forgotten) / n:.3f} over all {n} tasks"
    )
    if n > 1:
        lines[-1] += f"; {sum(forgotten) / (n - 1):.3f} over the first {n - 1}"
    return "\n".join(lines)


@guarded
def main(argv: list[str] | None = None) -> None:
    """Print the table of the folder that the command line names."""
    parser = CheckedParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dir", type=Path, help="folder that scripts/interop/export_tasks.py wrote")
    print(table(read(parser.parse_args(argv).dir)))


if __name__ == "__main__":
    sys.exit(main())
