"""Stores and disks that fail while runs write to them: real runs, real faults, one table.

    python scripts/dev/store_faults.py                      all parts; takes minutes
    python scripts/dev/store_faults.py --only server disk

writers: eight runs at once into one SQLite file. server: `mlflow server` that is down, that hangs, that dies
in the middle, and comes back. postgres: eight runs at once into PostgreSQL, killed in the middle and started
again (needs PostgreSQL and psycopg). disk: a tmpfs of 4 kB to 1 MB as output folder (needs root). After
every fault the run is started again: MLflow must then hold each run once, every task once, and its end.
The last line counts trials and failures.
"""

import argparse
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path

from engram.utils.config.flags import CheckedParser
from engram.utils.config.registry import ROOT
from engram.utils.door import guarded
from engram.utils.runs.run_dir import RunDir
from engram.utils.tracking import mlflow_store

N_WRITERS, N_TASKS = 8, 5
LIMIT = 900.0  # seconds after which a process counts as one that hangs
SIZES = {"4 kB": "4k", "16 kB": "16k", "64 kB": "64k", "256 kB": "256k", "1 MB": "1m"}
SHORT = ["--model", "er", "--dataset", "seq-digits", "--n_epochs", "1"]
LONG = ["--model", "er", "--dataset", "seq-digits", "--n_epochs", "30"]
# Long after MLflow is imported, which takes 20 s on a busy machine, there is still something to log.
LASTING = [*LONG[:-1], "300"]
Trial = tuple[str, list[str]]  # what was done, and what went wrong


class Run:
    """A run of main.py in a process of its own, in a folder of its own."""

    def __init__(self, folder: Path, uri: str, *flags: str, output_dir: Path | None = None):
        self.folder, self.output_dir = folder, output_dir or folder / "runs"
        self.flags = ["--tracking_uri", uri, "--wait_for_log"]
        folder.mkdir(parents=True, exist_ok=True)
        self.start(*flags, "--output_dir", str(self.output_dir))

    def start(self, *flags: str) -> None:
        """Start the program; what it prints is appended to `out.txt`."""
        command = [sys.executable, str(ROOT / "main.py"), *flags, *self.flags]
        with open(self.folder / "out.txt", "ab") as out:
            environment = os.environ | {"OMP_NUM_THREADS": "1"}
            self.process = subprocess.Popen(command, stdout=out, stderr=out, cwd=ROOT, env=environment)

    def end(self) -> int | None:
        """The exit code; None for a run that hangs, which is killed."""
        try:
            return self.process.wait(LIMIT)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return None

    @property
    def dir(self) -> RunDir | None:
        """The folder of the run, once it is there."""
        paths = sorted(self.output_dir.glob("*/*/*"))
        return RunDir(paths[0]) if paths else None

    def open_in_mlflow(self) -> bool:
        """Whether the run knows its id in MLflow; also true when it has ended."""
        return self.process.poll() is not None or bool(self.dir and self.dir.tracking_id)

    def send(self) -> list[str]:
        """Start the run again, as a user would after "pending"; what went wrong."""
        if self.dir is None:
            return ["no run folder"]
        self.start("--resume", str(self.dir.path))
        code = self.end()
        return ([f"exit code {code} of the second start"] if code else []) + (
            [] if self.dir.logged else ["still pending"]
        )


def ended_well(runs: list[Run]) -> list[str]:
    """Runs that did not exit with 0, and those that printed a traceback."""
    codes = Counter(run.end() for run in runs)
    faults = [f"{n} runs ended with {code}" for code, n in codes.items() if code != 0]
    n_tracebacks = sum("Traceback" in (run.folder / "out.txt").read_text(errors="replace") for run in runs)
    return faults + ([f"{n_tracebacks} tracebacks"] if n_tracebacks else [])


def lacking(uri: str, n_runs: int) -> list[str]:
    """What the store does not hold exactly once."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("seq-digits")
    stored = client.search_runs([experiment.experiment_id]) if experiment else []
    faults = [] if len(stored) == n_runs else [f"{len(stored)} runs in MLflow instead of {n_runs}"]
    for run in stored:
        history = client.get_metric_history(run.info.run_id, "mean_acc_class_il")
        steps = sorted(metric.step for metric in history)
        if run.info.status != "FINISHED" or steps != list(range(N_TASKS)):
            faults.append(f"{run.info.status} with tasks {steps}")
    n_metrics = {len([m for m in run.data.metrics if not m.startswith("system/")]) for run in stored}
    return faults + ([f"between {min(n_metrics)} and {max(n_metrics)} metrics"] if len(n_metrics) > 1 else [])


def wait_for(condition: Callable[[], bool]) -> None:
    """Until the condition holds, LIMIT seconds at most; a fault that comes too late shows in the table."""
    end = time.monotonic() + LIMIT
    while not condition() and time.monotonic() < end:
        time.sleep(0.1)


# --- the parts ---------------------------------------------------------------------------------------


def writers(folder: Path) -> Iterator[Trial]:
    """Eight runs at once into one SQLite file."""
    uri = f"sqlite:///{folder}/mlflow.db"
    runs = [Run(folder / str(seed), uri, *SHORT, "--seed", str(seed)) for seed in range(N_WRITERS)]
    yield f"{N_WRITERS} writers, one SQLite file", ended_well(runs) + lacking(uri, N_WRITERS)


class Server:
    """`mlflow server` on a port of its own, with a SQLite file behind it."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start the server and wait until it takes connections."""
        store = f"sqlite:///{self.folder}/mlflow.db"
        command = [sys.executable, "-m", "mlflow", "server", "--port", str(self.port), "--workers", "1"]
        command += ["--backend-store-uri", store, "--artifacts-destination", str(self.folder / "files")]
        with open(self.folder / "server.txt", "ab") as out:
            self.process = subprocess.Popen(
                command, stdout=out, stderr=out, cwd=self.folder, start_new_session=True
            )
        wait_for(self.answers)

    def answers(self) -> bool:
        """Whether something takes connections at its port."""
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
            return True
        return False

    def signal(self, number: int) -> None:
        """Send a signal to the server and all its workers."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)


def server(folder: Path) -> Iterator[Trial]:
    """A tracking server that is down, hangs, hangs or dies in the middle, and comes back."""
    yield "server down at the start, back later", faulty_server(folder / "down", None, 0)
    yield "server hangs at the start, goes on later", faulty_server(folder / "hangs", None, signal.SIGSTOP)
    yield "server hangs in the middle, goes on later", faulty_server(folder / "halts", signal.SIGSTOP, 0)
    yield "server dies in the middle, back later", faulty_server(folder / "dies", signal.SIGKILL, 0)


def faulty_server(folder: Path, in_the_middle: int | None, before: int) -> list[str]:
    """One run beside a server that gets the signal `before` it, or `in_the_middle` (before=0: it is down)."""
    tracking = Server(folder / "server")
    if in_the_middle or before:
        tracking.start()
    if before:
        tracking.signal(before)
    run, too_late = Run(folder / "run", tracking.uri, *(LASTING if in_the_middle else SHORT)), False
    if in_the_middle:
        wait_for(run.open_in_mlflow)
        tracking.signal(in_the_middle)
        too_late = run.process.poll() is not None
    faults = ended_well([run]) + ["the fault came too late"] * too_late
    if run.dir and run.dir.logged:
        faults.append("nothing pending")
    if signal.SIGSTOP in (in_the_middle, before):
        tracking.signal(signal.SIGCONT)
    else:
        tracking.start()
    try:
        return faults + run.send() + lacking(tracking.uri, 1)
    finally:
        tracking.signal(signal.SIGKILL)


def postgres(folder: Path) -> Iterator[Trial]:
    """Eight runs at once into PostgreSQL, which is killed in the middle and started again."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"))
    if not programs or find_spec("psycopg") is None or os.getuid():
        print("postgres: left out; it needs PostgreSQL, the package psycopg[binary] and root", flush=True)
        return
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    data = folder / "data"
    for path in (folder.parent, folder):
        path.chmod(0o755)
    data.mkdir()
    shutil.chown(data, "postgres")
    options = f"-p {port} -k {data} -c listen_addresses=127.0.0.1"

    def control(*words: str) -> None:
        command = ["setpriv", "--reuid", "postgres", "--clear-groups", str(programs[-1]), "-D", str(data)]
        subprocess.run([*command, *words], cwd=data, check=True, stdout=subprocess.DEVNULL)

    control("init", "-o", "-A trust")
    control("start", "-w", "-o", options, "-l", str(data / "log"))
    uri = f"postgresql://postgres@127.0.0.1:{port}/postgres"
    Run(folder / "first", uri, *SHORT, "--experiment_name", "first").end()  # which creates the tables
    runs = [Run(folder / str(seed), uri, *LONG, "--seed", str(seed)) for seed in range(N_WRITERS)]
    wait_for(lambda: all(run.open_in_mlflow() for run in runs))
    control("stop", "-m", "immediate")
    faults = ended_well(runs)
    n_pending = sum(not run.dir.logged for run in runs if run.dir)
    control("start", "-w", "-o", options, "-l", str(data / "log"))
    faults += [fault for run in runs for fault in run.send()] + lacking(uri, N_WRITERS)
    control("stop", "-m", "immediate")
    yield f"{N_WRITERS} writers, PostgreSQL killed and back ({n_pending} were pending)", faults


def disk(folder: Path) -> Iterator[Trial]:
    """A small tmpfs as output folder: one line of error and its exit code, or a run that is finished."""
    for name, size in SIZES.items():
        output_dir = folder / size
        output_dir.mkdir(parents=True)
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(output_dir)]
        if os.getuid() or subprocess.run(mount, capture_output=True).returncode:
            print("disk: left out; it needs root and the right to mount", flush=True)
            return
        try:
            store = f"sqlite:///{folder}/mlflow.db"
            run = Run(folder / f"run {size}", store, *SHORT, output_dir=output_dir)
            code = run.end()
            yield f"output folder of {name}: exit code {code}", full_disk_faults(run, code)
        finally:
            subprocess.run(["umount", "-l", str(output_dir)], check=False)


def full_disk_faults(run: Run, code: int | None) -> list[str]:
    """What is wrong with the end of a run whose disk may be full."""
    lines = (run.folder / "out.txt").read_text(errors="replace").splitlines()
    faults = ["a traceback"] if any("Traceback" in line for line in lines) else []
    n_errors = sum(line.startswith("error: ") for line in lines)
    finished = any(line.startswith("results: ") for line in lines)
    if code not in ((0,) if finished and not n_errors else (1, 2)):
        faults.append(f"exit code {code} of a run that is {'' if finished else 'not '}finished")
    if code and n_errors != 1:
        faults.append(f"{n_errors} lines of error")
    return faults


PARTS = {"writers": writers, "server": server, "postgres": postgres, "disk": disk}


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder that every user may enter, removed at the end."""
    with tempfile.TemporaryDirectory(prefix="store-faults-", ignore_cleanup_errors=True) as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


@guarded
def main(argv: list[str] | None = None) -> int:
    """Run the parts that the command line names; exit code 1 when a trial failed."""
    parser = CheckedParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="parts to run")
    args = parser.parse_args(argv)
    mlflow_store.import_mlflow("sqlite://")
    n_trials = n_failed = 0
    with scratch() as folder:
        for part in args.only:
            (folder / part).mkdir()
            for what, faults in PARTS[part](folder / part):
                n_trials, n_failed = n_trials + 1, n_failed + bool(faults)
                print(f"{part:<9} {what:<66} {'; '.join(faults) or 'ok'}", flush=True)
    print(f"{n_trials} trials, {n_failed} failed")
    return 1 if n_failed else 0


if __name__ == "__main__":
    sys.exit(main())
