"""Write a run as the folder tree that users of MAS-PyTorch know.

    python scripts/interop/export_tasks.py RUN DIR

    DIR/shared_model.pth            network without its head: a state dict
    DIR/reg_params                  {"lambda": λ, parameter name: {"omega": Ω, "init_val": θ*}, ...}
    DIR/Task_1/head.pth             {"fc.weight", "fc.bias"}: the task's head, or its rows of a shared one
    DIR/Task_1/classes.txt          number of classes; class_names.txt has their names
    DIR/Task_1/performance.txt      accuracy right after the task, a fraction
    DIR/Task_1/performance_at_end.txt   accuracy after the last task learned; compute_forgetting.py

Tasks count from 1, as there. Every file but the texts loads with `torch.load(weights_only=True)`; names are
those of our networks (AlexNet's, less the prefix `body.`, are torchvision's). Accuracies are the
run's own: among all classes seen in class-IL, else within the task. Only methods with a quadratic
penalty have reg_params: λ Σ omega (θ − init_val)² is the penalty in force when the run ended, so λ is half
of EWC's --e_lambda, --gamma times that online, and what --mas_consistent has made of --mas_lambda; of EWC's
separate and MER's forms it is the penalty up to a constant. Differs from that code: there reg_params is a
pickle keyed by parameters, which no longer names anything once it is loaded. Heads are as the run ended; of
IMM, too, the network in training is written, not the merged one that predicts.
"""

import argparse
import json
import sys
from pathlib import Path

from torch import Tensor

from engram.backbones.heads import SharedHead, TaskHeads
from engram.scripts.strengths import START_STRENGTHS
from engram.scripts.trained_run import TrainedRun, add_num_threads, open_trained_run
from engram.utils import checkpoint, files
from engram.utils.config.flags import CheckedParser
from engram.utils.destinations import check_folder
from engram.utils.door import guarded
from engram.utils.errors import UserError


def shared_model(run: TrainedRun) -> dict[str, Tensor]:
    """Weights and buffers of all but the head."""
    state = run.method.net.state_dict()
    return {n: t for n, t in state.items() if not n.startswith("head.") and not n.endswith("_extra_state")}


def head(run: TrainedRun, task) -> dict[str, Tensor]:
    """Take the weights of the task's classifier: its own head, or its rows of the shared one."""
    heads = run.method.net.head
    if isinstance(heads, TaskHeads):
        layer, rows = heads.heads[task.id], slice(None)
    elif isinstance(heads, SharedHead):
        layer, rows = heads, list(task.classes)
    else:
        raise UserError(f"{run.run_dir.path}: the tasks of --model {run.name} share no network")
    return {"fc.weight": layer.weight.detach()[rows].clone(), "fc.bias": layer.bias.detach()[rows].clone()}


def reg_params(run: TrainedRun) -> dict | None:
    """Importance and anchor by parameter name; None where the method has none."""
    quadratic = getattr(run.method, "quadratic", None)
    if not quadratic:
        return None
    named = {n: {"omega": w, "init_val": quadratic.anchor[n]} for n, w in quadratic.importance.items()}
    if hasattr(run.method, "strength"):  # the flag alone is not what is in force
        return {"lambda": float(run.method.strength), **named}
    strength = [getattr(run.method.options, flag) for flag in START_STRENGTHS.get(run.name, {})]
    return {"lambda": strength[0], **named} if strength else named


def accuracies(run: TrainedRun) -> tuple[list[float], list[float]]:
    """Of each task learned: right after it, and after the last one."""
    results = run.trainer.results
    R = results.R["class_il" if results.scenario == "class-il" else "task_il"]
    last = run.n_learned - 1
    return [float(R[k, k]) for k in range(run.n_learned)], [float(R[last, k]) for k in range(run.n_learned)]


def export(run: TrainedRun, folder: Path) -> None:
    """Write the tree into an empty folder."""
    benchmark = run.trainer.benchmark
    if run.method.stream == "joint" or not run.n_learned:
        raise UserError(f"{run.run_dir.path}: no sequence of tasks to be exported")
    heads = [head(run, task) for task in benchmark.tasks[: run.n_learned]]
    checkpoint.write(shared_model(run), folder / "shared_model.pth")
    if penalty := reg_params(run):
        checkpoint.write(penalty, folder / "reg_params")
    for task, weights, after, at_end in zip(benchmark.tasks, heads, *accuracies(run), strict=False):
        task_folder = folder / f"Task_{task.id + 1}"
        checkpoint.write(weights, task_folder / "head.pth")
        names = "\n".join(benchmark.class_names[c - task.label_shift] for c in task.classes)
        texts = {
            "classes": str(len(task.classes)), "class_names": names, "performance": json.dumps(after),
            "performance_at_end": json.dumps(at_end),
        }  # fmt: skip
        for name, text in texts.items():
            files.write_text(text + "\n", task_folder / f"{name}.txt")


@guarded
def main(argv: list[str] | None = None) -> int:
    """Export the run that the command line names; returns the exit code."""
    parser = CheckedParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="folder of a run, or its id under --output_dir")
    parser.add_argument("dir", type=Path, help="the folder to write")
    parser.add_argument("--output_dir", default="runs", help="where runs are looked for (default: runs)")
    add_num_threads(parser)
    args = parser.parse_args(argv)
    check_folder(args.dir, "")
    if args.dir.exists() and any(args.dir.iterdir()):
        raise UserError(f"{args.dir}: holds files already; give a new folder")
    run = open_trained_run(args.run, args.output_dir, "cpu", args.num_threads)
    export(run, args.dir)
    print(f"{args.dir}: {run.n_learned} tasks")
    return 0


if __name__ == "__main__":
    sys.exit(main())
