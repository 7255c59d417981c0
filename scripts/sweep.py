"""Run a study: a grid or a list of flags, on this machine, on a Ray cluster or under Slurm.

    python scripts/sweep.py study.yaml --jobs 4
    python scripts/sweep.py --model maer er --buffer_size 500 2000 --seed 0 1 2 -- --dataset seq-digits
    python scripts/sweep.py study.yaml --dry_run
    python scripts/sweep.py study.yaml --address auto --runs_per_gpu 4
    python scripts/sweep.py study.yaml --slurm partition=gpu,gpus=1,time=240
    python scripts/sweep.py study.yaml --seeds_together 4

Flags of main.py take one or more values and form a grid; after -- stand those that are the same for all
runs. A study file holds `fixed`, `grid` and `runs` (sweep_spec.py); flags on the command line replace
the file's. Runs whose resolved configuration is finished under the output folder are skipped, begun ones
go on from their checkpoint: stop the sweep in any way and start it again. Exit code 1 when a run failed.
"""

import argparse
import os
import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from tqdm import tqdm

from engram.utils import files
from engram.utils.config.flags import COUNT, CheckedParser, check_bounds
from engram.utils.config.options import MAX_COUNT, check_text
from engram.utils.credentials import redact
from engram.utils.destinations import check_folder
from engram.utils.door import guarded
from engram.utils.errors import UserError
from engram.utils.processes import threads_at_most
from engram.utils.sweeps import process_pool, slurm_pool
from engram.utils.sweeps.job_pool import JobPool
from engram.utils.sweeps.run_index import RunIndex
from engram.utils.sweeps.sweep import Sweep, ending, failure, preload
from engram.utils.sweeps.sweep_spec import PlannedRun, SweepSpec, read_spec
from engram.utils.tracking.mlflow_store import BROWSE


def parser() -> argparse.ArgumentParser:
    """The sweep's own flags; every other one belongs to the runs."""
    made = CheckedParser(
        usage="python scripts/sweep.py [STUDY.yaml] [--FLAG VALUE ...] [-- FIXED FLAGS]",
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
    )  # fmt: skip
    add = made.add_argument
    add("--name", help="of the study: its MLflow experiment (default: the file's name)")
    add("--output_dir", help="where runs lie and are looked for (default: runs/NAME, or runs)")
    add("--dry_run", action="store_true", help="print the runs and what they will cost, and stop")
    add("--jobs", type=int, metavar="N", help="runs at a time (default: every GPU, else every core)")
    add("--runs_per_gpu", type=int, default=1, metavar="N", help="runs that share a GPU (default: 1)")
    add("--seeds_together", type=int, default=1, metavar="N",
        help="seeds of one setting that share a process and, step by step, a GPU (default: 1)")  # fmt: skip
    add("--retries", type=int, default=1, metavar="N", help="further tries of a failed run (default: 1)")
    add("--address", help="Ray cluster: auto, or HOST:PORT; its nodes share the project and output folders")
    add("--slurm", metavar="OPTION=VALUE,...",
        help="submit every run to Slurm with these options of sbatch; time is needed, e.g. "
        "partition=gpu,gpus=1,time=240: a run that takes longer is saved and queued again; --jobs limits "
        "the runs in Slurm's queue; the project and output folders must be shared")  # fmt: skip
    add("--cpus_per_run", type=int, metavar="N",
        help="cores of a run (default: cores / jobs; 1 on Ray and Slurm)")  # fmt: skip
    return made


def split(argv: list[str]) -> tuple[str | None, dict[str, list[str]], list[str]]:
    """(study file, flag → values, what follows --)."""
    end = argv.index("--") if "--" in argv else len(argv)
    words, fixed = argv[:end], argv[end + 1 :]
    file = words.pop(0) if words and not words[0].startswith("-") else None
    return file, grouped(words), fixed


def grouped(words: list[str]) -> dict[str, list[str]]:
    """Flag → the values that follow it."""
    flags: dict[str, list[str]] = {}
    for word in words:
        if word == "-h":
            word = "--help"
        if word.startswith("--"):
            name, equals, value = word.removeprefix("--").partition("=")
            if name in flags:
                raise UserError(f"--{name} is given twice; write its values one after the other")
            flags[name] = [value] if equals else []
        elif flags:
            flags[next(reversed(flags))].append(word)
        else:
            raise UserError(f"'{word}': expected a flag; the study file comes first")
    return flags


def parse(argv: list[str]) -> tuple[argparse.Namespace, SweepSpec]:
    """The sweep's own options and the study."""
    file, flags, fixed_words = split(argv)
    made = parser()
    own_names = {"help", *vars(made.parse_args([]))}
    options = made.parse_args(
        [word for name in flags if name in own_names for word in (f"--{name}", *flags[name])]
    )
    study = read_spec(Path(file)) if file else SweepSpec()
    fixed = {name: one_value(name, values) for name, values in grouped(fixed_words).items()}
    grid = {name: values or ["1"] for name, values in flags.items() if name not in own_names}
    name = options.name or study.name
    given = study.fixed | fixed
    output_dir = options.output_dir or given.get("output_dir") or (f"runs/{name}" if name else "runs")
    named = {"output_dir": output_dir} | ({"experiment_name": name} if name else {})
    grid_of_file = {name: values for name, values in study.grid.items() if name not in fixed}
    runs = tuple({k: v for k, v in run.items() if k not in fixed | grid} for run in study.runs)
    settled = {k: v for k, v in given.items() if k not in grid} | {"output_dir": output_dir}
    return options, SweepSpec(name, named | settled, grid_of_file | grid, runs)


def one_value(name: str, values: list[str]) -> Any:
    """The value of a flag that has one; a flag without a value is switched on."""
    if len(values) > 1:
        raise UserError(
            f"--{name} {' '.join(values)}: one value is expected after --; a grid stands before it"
        )
    return values[0] if values else "1"


def refuse_missing_values(argv: list[str], runs: list[PlannedRun]) -> None:
    """Raise `UserError` for a flag without a value that is no switch: `--seed $SEEDS`, which is not set."""
    _, grid, fixed_words = split(argv)
    alone = [name for name, values in (grid | grouped(fixed_words)).items() if not values]
    for run in runs:
        flags = run.config.flat()
        for name in alone:
            if not isinstance(flags.get(name, True), bool):
                raise UserError(
                    f"--{name}: its value is missing; only switches, such as --disable_log, stand alone"
                )


@guarded
def main(argv: list[str] | None = None) -> int:
    """Run or print the study that the command line asks for; returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    options, study = parse(argv)
    _check(options)
    if not options.dry_run:
        for folder in {str(point["output_dir"]) for point in study.points()}:
            check_text("output_dir", folder)
            check_folder(folder, "--output_dir")
    here = not (options.dry_run or options.address or options.slurm)
    if here:  # the fork server imports torch while this process resolves the runs
        process_pool.start_server(preload(study.points()))
    runs = study.resolved()
    refuse_missing_values(argv, runs)
    index = RunIndex({run.config.run.output_dir for run in runs})
    sweep = Sweep(runs, index, options.seeds_together)
    for line in sweep.changed_files():
        print(line, file=sys.stderr)
    if options.dry_run:
        print(sweep.plan(n_at_a_time(options, sweep)))
        return 0
    Path(study.fixed["output_dir"]).expanduser().mkdir(parents=True, exist_ok=True)
    keep(study)
    code = carry_out(sweep, study.name or "study", options)
    if code > 128:
        print(f"to go on:\n  python scripts/sweep.py {redact(shlex.join(argv))}", file=sys.stderr)
    return code


def _check(options: argparse.Namespace) -> None:
    check_bounds(options, jobs=COUNT, runs_per_gpu=COUNT, seeds_together=COUNT, cpus_per_run=COUNT)
    check_bounds(options, retries=(0, MAX_COUNT))
    if options.slurm:
        slurm_pool.parse_options(options.slurm)
        if options.address:
            raise UserError("--slurm and --address: give one of them")
        if options.runs_per_gpu > 1:
            raise UserError("--runs_per_gpu: Slurm gives every run a GPU of its own; see --seeds_together")


def n_at_a_time(options: argparse.Namespace, sweep: Sweep) -> int:
    """How many runs are executed at the same time, as far as this machine knows."""
    if options.slurm:
        return options.jobs or len(sweep.runs)
    return len(process_pool.default_slots(options.jobs, options.runs_per_gpu))


def keep(study: SweepSpec) -> None:
    """The study beside its runs, for the report and for another start."""
    path = Path(study.fixed["output_dir"]).expanduser() / "study.yaml"
    try:
        files.write_text(yaml.safe_dump(study.document(), sort_keys=False), path)
    except OSError as error:
        raise UserError(f"--output_dir {path.parent}: cannot be written: {error}") from None


def carry_out(sweep: Sweep, name: str, options: argparse.Namespace) -> int:
    """Do what is left of the study; 0, 1 when a run failed, 128 + signal when it was stopped."""
    n_runs, n_before = len(sweep.runs), len(sweep.runs) - len(sweep.open)
    n_done, failed = n_before, []
    pool, n_threads = job_pool(options, sweep)
    with interruptible(), tqdm(
        total=n_runs, initial=n_done, unit="run", dynamic_ncols=True, smoothing=0, disable=None
    ) as bar:  # fmt: skip
        try:
            for run, job_exit, tries_left in sweep.execute(pool, n_threads, options.retries):
                n_done += not tries_left
                line = ending(run, job_exit, sweep.paths[run.key])
                line += "; trying again" if tries_left else ""
                tqdm.write(f"[{n_done}/{n_runs}] {line}", file=sys.stderr)
                bar.update(not tries_left)
                if job_exit.code and not tries_left:
                    failed.append(failure(run, job_exit))
                    bar.set_postfix_str(f"{len(failed)} failed", refresh=False)
            to_browse = write_parents(sweep, pool, name)
        except KeyboardInterrupt as stop:
            end(pool)
            return 128 + (stop.args[0] if stop.args else signal.SIGINT)
    print("\n".join(failed), file=sys.stderr, end="\n" * bool(failed))
    n_now = n_done - n_before - len(failed)
    line = f"{n_runs} runs: {n_before} finished before, {n_now} now, {len(failed)} failed"
    n_unlogged = sweep.n_unlogged()
    print(line + (f"; {n_unlogged} not in MLflow: start the sweep again to send them" if n_unlogged else ""))
    if n_done > len(failed):
        folder = Path(sweep.runs[0].config.run.output_dir).expanduser()
        print("\n".join([f"report:  python scripts/report.py {shlex.quote(str(folder))}", *to_browse]))
    return 1 if failed else 0


def write_parents(sweep: Sweep, pool: JobPool, name: str) -> list[str]:
    """Seeds below their setting in MLflow; a job like the runs, because it imports as much.

    Returns the lines that say how to open them there.
    """
    to_browse: dict[str, None] = {}
    for job in sweep.parent_jobs(name):
        pool.submit(job)
    while pool.n_running():
        for job_exit in pool.finished(timeout=1.0):
            if job_exit.code:
                print(f"MLflow has no parent runs of this study: {job_exit.job.output}", file=sys.stderr)
            else:
                to_browse |= dict.fromkeys(printed(job_exit.job.output, BROWSE))
    return list(to_browse)


def printed(output: str | None, beginning: str) -> list[str]:
    """The lines of a job's output that begin so."""
    text = Path(output).read_text(encoding="utf-8", errors="replace") if output else ""
    return [line for line in text.splitlines() if line.startswith(beginning)]


def job_pool(options: argparse.Namespace, sweep: Sweep) -> tuple[JobPool, int]:
    """The pool that executes the runs, and the CPU threads of each run."""
    if options.address:
        from engram.utils.sweeps.ray_pool import RayPool

        n_threads = options.cpus_per_run or 1
        modules = preload([run.config.flat() for run in sweep.runs])
        return RayPool(options.address, n_threads, options.runs_per_gpu, modules), n_threads
    if options.slurm:
        n_threads = options.cpus_per_run or 1
        folder = Path(sweep.runs[0].config.run.output_dir) / "slurm"
        given = slurm_pool.parse_options(options.slurm)
        return slurm_pool.SlurmPool(folder, given, n_threads, options.jobs), n_threads
    slots = process_pool.default_slots(options.jobs, options.runs_per_gpu)
    n_threads = options.cpus_per_run or max(
        1, min(len(os.sched_getaffinity(0)) // len(slots), threads_at_most())
    )
    return process_pool.ProcessPool(slots), n_threads


def end(pool: JobPool) -> None:
    """Let the runs save; a second Ctrl-C does not wait for them."""
    tqdm.write(f"stopping: {pool.n_running()} runs save their state (again: end at once)", file=sys.stderr)
    try:
        pool.stop()
    except KeyboardInterrupt:
        pool.kill()


@contextmanager
def interruptible() -> Iterator[None]:
    """SIGTERM, which cluster schedulers send, is taken like Ctrl-C."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt(number)

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    sys.exit(main())
