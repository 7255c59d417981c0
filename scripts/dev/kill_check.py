"""Does a run that is killed and resumed end with the same bits? SIGKILL every method at every point.

    python scripts/dev/kill_check.py                                       every method of the registry
    python scripts/dev/kill_check.py --only er,mer_alg7 --points checkpoint --seed 3

Points: at a step, in end_task, in the write of a checkpoint, in the write of another file (results.json,
the order of the classes), and in MLflow's calls that start, log to and end a run (a real SQLite store, with
a few methods or those of --only). Which step, which call, how far it had come and the scenario are drawn
from --seed. The run is resumed by --resume FOLDER, or with the whole command typed again besides. R of both
views, the final weights and the whole state of the method are compared with those of a run that nobody
disturbed, and with MLflow's points all that the store holds. The last line counts kills and failures.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from engram.models.method import Method
from engram.scripts.dev import record_r
from engram.scripts.dev.kill_points import (
    CALL_STAGES,
    FILE_STAGES,
    FILES,
    MLFLOW_POINTS,
    RUN_POINTS,
    Kill,
    Saboteur,
    run_in_child,
)
from engram.scripts.dev.stored_metrics import comparable_metrics
from engram.utils import checkpoint
from engram.utils.config import registry
from engram.utils.config.flags import CheckedParser
from engram.utils.door import guarded
from engram.utils.errors import UserError
from engram.utils.runs.run_dir import RunDir
from engram.utils.runs.run_record import RunRecord
from engram.utils.tracking import mlflow_store

POINTS = (*RUN_POINTS, *MLFLOW_POINTS)
WITH_MLFLOW = ("er", "ewc_online", "joint", "mer_alg7")
COMMON = ["--dataset=seq-digits", "--device=cpu", "--num_threads=1", "--n_epochs=2", "--batch_size=40"]
SHORT = {
    "mer": ["--n_iters=12"],
    "mer_alg6": ["--n_iters=4"],
    "mer_alg7": ["--n_iters=6"],
    "er_alg4": ["--n_iters=12"],
}


@dataclass(frozen=True)
class Case:
    """A method in a scenario and the folder for all of its runs. database: an empty MLflow store, or None."""

    model: str
    scenario: str
    every: int  # steps between two checkpoints
    folder: Path
    database: Path | None = None

    @property
    def flags(self) -> list[str]:
        """What a user would type, without the folders."""
        quick = [f"--{name}={value}" for name, value in method_class(self.model).quick_flags.items()]
        short = [*quick, *SHORT.get(self.model, [])]
        return [f"--model={self.model}", *COMMON, *short, *record_r.SCENARIOS[self.scenario]]

    def place(self, name: str) -> tuple[Path, list[str]]:
        """A new output folder and the flags that send a run, and its MLflow run, there."""
        output = self.folder / name
        output.mkdir(parents=True)
        if self.database is None:
            return output, [f"--output_dir={output}", "--disable_log"]
        shutil.copyfile(self.database, output / "mlflow.db")
        uri = f"sqlite:///{output}/mlflow.db"
        return output, [f"--output_dir={output}", f"--tracking_uri={uri}", "--wait_for_log"]


def method_class(model: str) -> type[Method]:
    """The class of the method of this name."""
    return registry.plugin_class(registry.load("models", model), Method)


def drawn_case(model: str, seed: int, folder: Path, database: Path | None = None) -> Case:
    """The method in one of its scenarios, with checkpoints at an interval of steps."""
    draw = random.Random(f"{seed} {model}")
    scenarios = method_class(model).scenarios
    kind = "mlflow" if database else "plain"
    return Case(model, draw.choice(list(scenarios)), draw.randint(2, 9), folder / model / kind, database)


def drawn_kill(model: str, point: str, seed: int, n_events: int) -> Kill:
    """One of the events of this point, of which the undisturbed run had `n_events`."""
    draw = random.Random(f"{seed} {model} {point}")
    stages = FILE_STAGES if point in FILES else CALL_STAGES[:1] if point == "step" else CALL_STAGES
    return Kill(point, draw.randint(1, n_events), draw.choice(stages), draw.random())


# --- what a run leaves ------------------------------------------------------------------------------


def left_behind(output: Path) -> dict[str, Any]:
    """Name → what must be the same after a kill, of the one finished run in the folder."""
    (path,) = output.glob("seq-digits/*/*/")
    record, saved = RunRecord.read(path), checkpoint.read(path / "checkpoint.pt")
    left = {"status": record.status, "sent to MLflow": RunDir(path).logged}
    left |= {f"R of {view}": json.dumps(record.to_json()[view]) for view in record.views}
    left |= {"b and fwt": json.dumps([record.to_json()["b"], record.to_json()["fwt"]])}
    left |= {"training curve": json.dumps([(point.step, point.loss, point.lr) for point in record.training])}
    left |= {"weights": digest(saved["method"]["net"]), "state of the method": digest(saved["method"])}
    left |= {"half-written files": sorted(str(file) for file in path.rglob("*.tmp"))}
    return left | (stored_run(output / "mlflow.db") if (output / "mlflow.db").exists() else {})


def digest(state: Any) -> str:
    """A hash of nested tensors, numbers and texts, bit for bit."""
    hashed = hashlib.sha256()

    def add(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            data = value.detach().contiguous()
            hashed.update(f"{data.dtype} {tuple(data.shape)}".encode())
            hashed.update(data.flatten().view(torch.uint8).numpy().tobytes() if data.numel() else b"")
        elif isinstance(value, dict):
            for key in sorted(value, key=repr):
                hashed.update(repr(key).encode())
                add(value[key])
        elif isinstance(value, list | tuple):
            hashed.update(f"{len(value)} items".encode())
            for item in value:
                add(item)
        else:
            hashed.update(repr(value).encode())

    add(state)
    return hashed.hexdigest()


def stored_run(database: Path) -> dict[str, Any]:
    """What the store says of its runs: how many, their state, every metric at every step, the files."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{database}")
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    told: dict[str, Any] = {"runs in MLflow": len(runs)}
    for run in runs:
        told["MLflow's state"] = run.info.status
        told["MLflow's files"] = sorted(f.path for f in client.list_artifacts(run.info.run_id))
        for name, points in comparable_metrics(client, run.info.run_id).items():
            told[f"MLflow's {name}"] = points
    return told


# --- killing ----------------------------------------------------------------------------------------


def undisturbed(case: Case) -> tuple[dict[str, Any], dict[str, int]]:
    """What a run leaves that nobody kills, and how many events of each point it had."""
    output, folders = case.place("undisturbed")
    log = case.folder / "undisturbed.log"
    code, counts = run_in_child([*case.flags, *folders], log, Saboteur(None, case.every))
    if code:
        raise UserError(f"{case.model}: the undisturbed run ended with {code}: {log.read_text()[-300:]}")
    return left_behind(output), counts


def fault_of(case: Case, kill: Kill, expected: dict[str, Any], typed_again: bool) -> str | None:
    """Kill one run, resume it, compare; what is wrong, or None. typed_again: the command, beside --resume."""
    name = kill.point + (" typed" if typed_again else "")
    output, folders = case.place(name)
    log = case.folder / f"{name}.log"
    code, _ = run_in_child([*case.flags, *folders], log, Saboteur(kill, case.every))
    if code != -signal.SIGKILL:
        return f"was not killed: it ended with {code}; {log.read_text()[-300:]}"
    (path,) = output.glob("seq-digits/*/*/")
    again = [*case.flags, *folders] if typed_again else folders[1:]
    code, _ = run_in_child([f"--resume={path}", *again], log, Saboteur(None, case.every))
    if code:
        return f"resuming ended with {code}: {log.read_text()[-300:]}"
    left = left_behind(output)
    differ = [name for name in expected | left if expected.get(name) != left.get(name)]
    return f"differ from the undisturbed run: {', '.join(differ)}" if differ else None


def check_method(model: str, points: list[str], seed: int, folder: Path, database: Path | None) -> list[str]:
    """One line for every point (a kill and a resume) of this method: empty where all is well."""
    faults = []
    kinds = [
        (None, [p for p in points if p in RUN_POINTS]),
        (database, [p for p in points if p in MLFLOW_POINTS]),
    ]
    for store, of_kind in kinds:
        if not of_kind or (store is None and of_kind[0] in MLFLOW_POINTS):
            continue
        case = drawn_case(model, seed, folder, store)
        expected, counts = undisturbed(case)
        for point in of_kind:
            if not counts.get(point):  # gdumb and its kin take no step
                continue
            kill = drawn_kill(model, point, seed, counts[point])
            typed_again = random.Random(f"{seed} {model} {point} typed").random() < 0.5
            fault = fault_of(case, kill, expected, typed_again)
            faults.append("" if fault is None else f"{model} ({case.scenario}), killed at {kill}: {fault}")
        shutil.rmtree(case.folder)
    return faults


def warm_up() -> None:
    """Train one method here, so that every fork has what torch and sklearn import when first used."""
    torch.set_num_threads(1)  # threads do not survive a fork
    record_r.run(["--model=bic", *COMMON, "--disable_log"])


def prepare_store(folder: Path) -> Path:
    """An empty database with MLflow's tables; MLflow is imported here, once for all forks."""
    path = folder / "empty.db"
    mlflow_store.import_mlflow(f"sqlite:///{path}")
    with mlflow_store.quiet():
        mlflow_store.create_database(path)
    return path


def parser() -> argparse.ArgumentParser:
    """The command line of this program."""
    parser = CheckedParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="NAMES", help="methods, separated by commas")
    parser.add_argument("--points", default=",".join(POINTS), help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of the draws")
    return parser


def chosen(names: str, valid: list[str], what: str) -> list[str]:
    """The names in a list with commas; all where it is empty."""
    given = [name for name in names.split(",") if name] or valid
    if unknown := [name for name in given if name not in valid]:
        raise UserError(f"{what} {unknown[0]}: there are {', '.join(valid)}")
    return given


@guarded
def main(argv: list[str] | None = None) -> int:
    """The exit code: 1 when a killed run did not come back as it was."""
    args = parser().parse_args(argv)
    models = chosen(args.only, list(registry.names("models")), "--only")
    points = chosen(args.points, list(POINTS), "--points")
    warm_up()
    n_kills, n_faults = 0, 0
    with tempfile.TemporaryDirectory(prefix="kills-") as temporary:
        folder = Path(temporary)
        database = prepare_store(folder) if any(point in MLFLOW_POINTS for point in points) else None
        for model in models:
            logs = args.only or model in WITH_MLFLOW
            lines = check_method(model, points, args.seed, folder, database if logs else None)
            n_kills += len(lines)
            for line in filter(None, lines):
                n_faults += 1
                point = line.split("killed at ")[1].split()[0]
                replay = f"--only {model} --points {point} --seed {args.seed}"
                print(f"{line}\n    python scripts/dev/kill_check.py {replay}", flush=True)
    print(f"{n_kills} kills of {len(models)} methods, {n_faults} failures")
    return 1 if n_faults else 0


if __name__ == "__main__":
    # one thread and no GPU, whose threads a fork would not have
    os.environ |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    sys.exit(main())
