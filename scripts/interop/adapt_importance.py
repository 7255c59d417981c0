"""Re-estimate what a MAS run protects, on your own unlabeled images, before it learns its next task.

    python main.py --model mas --dataset seq-mnist --multi_head --stop_after 2
    python scripts/interop/adapt_importance.py RUN IMAGES_DIR
    python main.py --resume RUN-adapted

MAS needs no labels, so importance can come from where the network is used instead of from its training data
(Aljundi et al. 2018, arXiv 1711.09601, "adaptive"). IMAGES_DIR is any folder with JPEG or PNG files in it or
below it. The importance of each task learned is taken anew on all these images (with the task's own head,
where tasks have heads), by the norm and merging of the run; nothing of the old importance is left, and the
total is of the same scale, so λ keeps its meaning. The result is a run of its own, RUN-adapted or --out,
that goes on from the same step; only its importance differs from that of RUN, which stays as it is.
"""

import argparse
import shutil
import sys
from pathlib import Path

from engram.datasets import unlabeled
from engram.models.mas import MAS
from engram.scripts.trained_run import TrainedRun, add_num_threads, open_trained_run
from engram.utils import checkpoint
from engram.utils.config import registry
from engram.utils.config.flags import CheckedParser
from engram.utils.destinations import check_folder
from engram.utils.door import guarded
from engram.utils.errors import UserError


def adapt(run: TrainedRun, images_dir: str) -> int:
    """Replace the importance of the tasks learned; returns the number of images."""
    method, benchmark = run.method, run.trainer.benchmark
    if not isinstance(method, MAS):
        raise UserError(
            f"{run.run_dir.path}: --model {run.name}; only mas takes its importance without labels"
        )
    if not method.quadratic:
        raise UserError(f"{run.run_dir.path}: has no importance yet (--mas_lambda 0, or no task learned)")
    images = unlabeled.read(unlabeled.files(images_dir), benchmark.stored_shape).to(method.device)
    method.totals, method.quadratic.importance = [], {}
    for task in benchmark.tasks[: run.n_learned]:
        method.enter(task)
        method.consolidate(method.importance_of(images, task))
    return len(images)


def save(run: TrainedRun, out: Path) -> None:
    """Write a run folder that continues from the same step with the new importance."""
    try:
        out.mkdir(parents=True)
    except FileExistsError:
        raise UserError(f"{out}: exists already; give another --out") from None
    shutil.copy(run.run_dir.config, out)
    checkpoint.write(run.saved | {"method": run.method.state_dict()}, out / "checkpoint.pt")


@guarded
def main(argv: list[str] | None = None) -> int:
    """Adapt the run that the command line names; returns the exit code."""
    parser = CheckedParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="folder of a run, or its id under --output_dir")
    parser.add_argument("images_dir", help="folder of images")
    parser.add_argument("--out", type=Path, help="the new run's folder (default: RUN-adapted)")
    parser.add_argument("--output_dir", default="runs", help="where runs are looked for (default: runs)")
    parser.add_argument("--device", default="auto", help="auto (CUDA when there is one), cpu, cuda or cuda:N")
    add_num_threads(parser)
    args = parser.parse_args(argv)
    run = open_trained_run(args.run, args.output_dir, args.device, args.num_threads)
    out = args.out or run.run_dir.path.with_name(f"{run.run_dir.id}-adapted")
    if out.exists():
        raise UserError(f"{out}: exists already; give another --out")
    check_folder(out, "--out")
    n_images = adapt(run, args.images_dir)
    save(run, out)
    left = len(run.trainer.tasks) - run.n_learned
    print(f"{out}: importance of {run.n_learned} tasks from {n_images} images; {left} tasks left")
    if left:
        print(f"continue with\n  {registry.command()} --resume {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
