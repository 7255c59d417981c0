"""Values that no machine or file system takes are refused in one line, or made to fit."""

import importlib
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from engram.scripts.analysis.run_set import collect
from engram.scripts.dev import check_store
from engram.utils import device, scores
from engram.utils.config.config import resolve
from engram.utils.config.consistency import MAX_NAME
from engram.utils.errors import UserError
from engram.utils.runs.legacy_runs import write_run_dir
from engram.utils.tracking import legacy_file_store, mlflow_store
from engram.utils.training.step_plan import StepPlan
from tests.conftest import ROOT, built, tiny_config, tiny_method
from tests.unit.test_file_store import old, write_run  # noqa: F401  a fixture and its writer

SWEEP_PROCESS = """
from engram.utils.sweeps.process_pool import start_server
if __name__ == "__main__":
    start_server([])
"""


@pytest.mark.parametrize(
    "flags",
    [
        {"num_threads": "10000"}, {"num_threads": str(10**12)},
        {"output_dir": "a\0b"}, {"data_dir": "~nouser/x"},
        {"experiment_name": "x" * 300}, {"run_name": "x" * 300},
        {"n_epochs": 10**18}, {"buffer_size": 10**12}, {"hidden_sizes": f"100,{10**10}"}, {"n_iters": -1},
        {"exclude": "a/" + "x" * 256},
        {"loadcheck": "a\udcff"}, {"lr": "nan"}, {"lr": "inf"}, {"n_tasks": "9" * 5000}, {"seed": 2**63},
        {"batch_size": 10**9 + 1},
        {"seed": 2**32, "permute_classes": "1"}, {"backbone": "alexnet", "input_size": "1000000"},
        {"backbone": "resnet18", "width": 1e300},
    ],
)  # fmt: skip
def test_values_beyond_sense_are_refused(flags):
    name = "width" if "width" in flags else "input_size" if "input_size" in flags else next(iter(flags))
    with pytest.raises(UserError, match=f"--{name}"):
        resolve([("test", {"model": "er", **flags})])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--writers", "501"], "--writers 501: must be <= 500"),
        (["--rounds", "0"], "--rounds 0: must be >= 1"),
        (["--tracking_uri", "a\0b"], "--tracking_uri"),
    ],
)
def test_the_check_of_stores_refuses_them_before_it_starts_a_process(flags, message, monkeypatch, capsys):
    monkeypatch.setattr(check_store, "check", lambda *_: 0)
    assert check_store.main(flags) == 2
    assert message in capsys.readouterr().err


# Program → the flags of its own that say how many. Its other flags are fields of option sets, with bounds.
COUNTS = {
    "scripts/bench/__main__.py": ["batch_size", "n_steps"],
    "scripts/bench/importance.py": ["threads"],
    "scripts/bench/memorization.py": ["rounds"],
    "scripts/bench/mer.py": ["rounds"],
    "scripts/bench/shards.py": ["n_tasks", "batch_size"],
    "scripts/dev/check_store.py": ["writers", "rounds"],
    "scripts/dev/fuzz.py": ["trials"],
    "scripts/dev/mutation_check.py": ["jobs"],
    "scripts/interop/sample_arrays.py": ["train", "test"],
    "scripts/studies/stream_forgetting.py": ["n_networks", "buffer_size"],
    "scripts/sweep.py": ["jobs", "runs_per_gpu", "seeds_together", "cpus_per_run"],
    "scripts/tune.py": ["tries"],
}
NEEDED = {"scripts/interop/sample_arrays.py": ["few.npz", "fmnist"]}  # what a program does not run without
MAY_BE_ZERO = {"seed", "first_tasks", "retries"}


@pytest.mark.parametrize(("path", "flag"), [(path, flag) for path, flags in COUNTS.items() for flag in flags])
def test_a_program_refuses_to_do_nothing(path, flag, capsys):
    program = importlib.import_module("engram." + path.removesuffix(".py").replace("/", "."))
    assert program.main([*NEEDED.get(path, []), f"--{flag}=0"]) == 2
    assert re.search(rf"error: --{flag} 0: must be >= [1-9]", capsys.readouterr().err)


def test_the_counts_of_all_programs_are_in_the_table():
    flags = re.compile(r'add(?:_argument)?\(\s*"--(\w+)", type=int')
    counts = {
        str(path.relative_to(ROOT)): [f for f in flags.findall(path.read_text()) if f not in MAY_BE_ZERO]
        for path in ROOT.glob("scripts/**/*.py")
    }
    assert {path: names for path, names in counts.items() if names} == COUNTS


@pytest.mark.parametrize(
    ("name", "flag", "value"),
    [
        ("bench.gpu_check", "device", "abc"), ("bench.gpu_check", "minutes", "nan"),
        ("bench.gpu_check", "minutes", "0"), ("bench.shards", "gb", "inf"), ("bench.shards", "gb", "-1"),
        ("studies.mas_orders", "seeds", "0,x"), ("studies.mas_adaptation", "seeds", ""),
        ("studies.mas_adaptation", "angle", "nan"),
    ],
)  # fmt: skip
def test_a_long_program_refuses_a_value_before_its_work(name, flag, value, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    program = importlib.import_module(f"engram.scripts.{name}")
    assert program.main([f"--{flag}={value}"]) == 2
    assert f"error: --{flag} {value}" in capsys.readouterr().err
    assert os.listdir() == []


@pytest.mark.parametrize("name", ["train_splits", "eval_splits", "train_stream"])
def test_programs_of_random_subsets_need_the_same_number_of_networks(name, tmp_path, capsys):
    program = importlib.import_module(f"engram.memorization.{name}")
    with pytest.raises(SystemExit):
        program.run(["--help"])
    assert "at least 4" in capsys.readouterr().out
    flags = ["--weights_dir", str(tmp_path / "networks"), "--n_repeats", "3"]
    if name != "train_splits":
        flags += ["--out_filename", str(tmp_path / "scores.npz")]
    with pytest.raises(UserError, match=r"--n_repeats 3: (must be >= 4|scores need at least 4)"):
        program.run(flags)
    assert os.listdir(tmp_path) == []


def test_a_home_that_is_not_there(monkeypatch):
    def no_home(self):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", no_home)
    resolve([("test", {"model": "er"})])  # the default folder need not be used
    with pytest.raises(UserError, match="--data_dir ~/data: there is no such home"):
        resolve([("test", {"model": "er", "data_dir": "~/data"})])


@pytest.mark.parametrize("name", ["中" * MAX_NAME, "ż" * MAX_NAME])  # of 750 and 500 bytes
def test_a_long_experiment_has_a_folder(name):
    folder = mlflow_store.artifact_location("sqlite:////tmp/a/mlflow.db", name).rpartition("/")[2]
    other = mlflow_store.artifact_location("sqlite:////tmp/a/mlflow.db", name + "y").rpartition("/")[2]
    assert folder != other
    path = Path(mlflow_store.artifact_location("sqlite:////tmp/a/mlflow.db", name).removeprefix("file://"))
    assert path.parent.name == "mlruns"
    from urllib.parse import unquote

    assert len(os.fsencode(unquote(path.name))) < 255


def test_a_long_tmpdir_takes_the_sweeps_sockets(tmp_path):
    long = tmp_path / ("t" * 100)
    long.mkdir()
    script = tmp_path / "sweep.py"
    script.write_text(SWEEP_PROCESS)
    environment = os.environ | {"TMPDIR": str(long), "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_of_imported_runs_of_a_seed_the_one_that_ended_last_counts(old, tmp_path):  # noqa: F811
    later, earlier = f"{1:032x}", write_run(old / "7", 9, end_time=1600000000000, run_name="maer seed 1")
    (old / "7" / earlier / "params" / "seed").write_text("1")
    (old / "7" / earlier / "params" / "conf_jobnum").write_text("job1")
    runs = {run.id: run for run in legacy_file_store.read(old)}
    for run_id in (later, earlier):  # the file of the earlier run is written last
        assert write_run_dir(runs[run_id], tmp_path / "out")
    run_set = collect([tmp_path / "out"])
    assert [run.imported_run for run in run_set.runs] == [later]
    assert [run.imported_run for run in run_set.repeated] == [earlier]


@pytest.mark.parametrize(
    "flags",
    [
        {"buffer_size": 10**9}, {"hidden_sizes": (10**9,)}, {"backbone": "cnn", "channels": (10**6, 10**6)},
        {"backbone": "resnet18", "width": 1000.0},
    ],
    ids=str,
)  # fmt: skip
def test_what_takes_more_memory_than_there_is_is_refused_before_it_is_taken(flags, monkeypatch):
    monkeypatch.setattr(device, "memory_bytes", lambda on: 10**10)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match=f"--{list(flags)[-1]} .*: takes .* GB, all memory is 10 GB"):
        built(tiny_config("er", **flags))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 10**6  # in kB


def test_the_memory_of_this_machine():
    assert 10**8 < device.memory_bytes(torch.device("cpu")) < 10**14


@pytest.mark.parametrize("flags", [{"n_epochs": 10**9}, {"n_iters": 10**9}, {"n_epochs": 3}, {"n_iters": 31}])
def test_steps_are_counted_without_a_loop_over_epochs(flags):
    method, config = tiny_method("sgd", **flags)
    steps = sum(-(-method.benchmark.n_samples(task) // 4) for task in method.benchmark.tasks)
    expected = 3 * flags["n_iters"] if "n_iters" in flags else flags["n_epochs"] * steps
    assert StepPlan(config, method).count_steps(method.benchmark.tasks) == expected


@pytest.mark.parametrize("n", [10**12, 2 * 10**9])
def test_a_bare_vector_whose_header_promises_more_than_there_is(n, tmp_path):
    path = tmp_path / "scores.npy"
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f8", "fortran_order": False, "shape": (n,)})
        file.write(bytes(80))
    with pytest.raises(UserError, match=r"scores\.npy: cannot be read"):
        scores.load(path)
