"""Sweeps on a real Ray cluster, one node of which is killed, and under a stand-in for Slurm."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from engram.utils.errors import UserError
from tests import fake_slurm
from tests.conftest import ROOT
from tests.integration.test_resume import measured
from tests.waiting import exit_code, wait_until

pytestmark = pytest.mark.slow

GRID = ["--model", "er", "--seed", "0", "1", "2", "3"]
FIXED = ["--", "--dataset", "seq-digits", "--n_epochs", "6", "--batch_size", "10", "--disable_log"]
SAVING = ["--checkpoint_every", "0.0005"]


def results(folder: Path) -> dict[int, dict]:
    found = {}
    for path in folder.glob("*/*/*/results.json"):
        seed = json.loads(path.read_text())["seed"]
        assert seed not in found, f"seed {seed} was run twice"
        found[seed] = measured(path.parent)
    return found


def test_ray_missing_is_said(monkeypatch):
    from engram.utils.sweeps import ray_pool

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"pip install 'ray\[default\]'"):
        ray_pool.import_ray()


@pytest.fixture
def nodes():
    """A cluster: a head without places for runs, and two nodes with one place each."""
    pytest.importorskip("ray", reason="the optional package ray is not installed")
    from ray.cluster_utils import Cluster

    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    os.environ["PYTHONPATH"] = path
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    added = [cluster.add_node(num_cpus=1) for _ in range(2)]
    yield cluster, added
    import ray

    ray.shutdown()
    cluster.shutdown()


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_node_is_lost_another_joins_and_the_results_are_those_of_one_machine(nodes, tmp_path):
    cluster, added = nodes
    flags = [*GRID, "--address", cluster.address, "--output_dir", str(tmp_path / "ray"), *FIXED, *SAVING]
    command = [sys.executable, str(ROOT / "scripts" / "sweep.py")]
    sweep = subprocess.Popen([*command, *flags], cwd=ROOT)  # Ray starts nodes in a main thread only: here
    lose_a_node(cluster, added, tmp_path / "ray")
    assert exit_code(sweep) == 0
    local = [*GRID, "--jobs", "2", "--output_dir", str(tmp_path / "local"), *FIXED, *SAVING]
    subprocess.run([*command, *local], check=True, cwd=ROOT)
    assert results(tmp_path / "ray") == results(tmp_path / "local")
    moved = [
        path for path in (tmp_path / "ray").glob("*/*/*/output.txt") if path.read_text().count("run:") > 1
    ]
    assert moved, "the run of the lost node went on elsewhere"


def lose_a_node(cluster, added: list, folder: Path) -> None:
    """When both nodes have saved something, kill one and let another join."""
    wait_until(lambda: len(list(folder.glob("*/*/*/checkpoint.pt"))) == 2)
    cluster.remove_node(added[0], allow_graceful=False)
    cluster.add_node(num_cpus=1)


def test_under_slurm_the_results_are_those_of_one_machine(tmp_path, monkeypatch):
    """Through the real submitit; Slurm's commands are scripts that run jobs here. One run meets its limit."""
    pytest.importorskip("submitit", reason="the optional package submitit is not installed")
    jobs = fake_slurm.install(tmp_path, monkeypatch)
    grid = ["--model", "er", "--seed", "0", "1"]
    flags = [
        *grid,
        "--output_dir",
        str(tmp_path / "slurm"),
        "--slurm",
        "partition=cpu,time=60",
        *FIXED,
        *SAVING,
    ]
    sweep = subprocess.Popen([sys.executable, str(ROOT / "scripts" / "sweep.py"), *flags], cwd=ROOT)
    wait_until(lambda: list((tmp_path / "slurm").glob("*/*/*/checkpoint.pt")))
    os.kill(int((jobs / "1.task").read_text()), signal.SIGUSR2)
    assert exit_code(sweep) == 0
    local = [*grid, "--output_dir", str(tmp_path / "local"), "--jobs", "2", *FIXED, *SAVING]
    subprocess.run([sys.executable, str(ROOT / "scripts" / "sweep.py"), *local], check=True, cwd=ROOT)
    assert set(results(tmp_path / "slurm")) == {0, 1}
    assert results(tmp_path / "slurm") == results(tmp_path / "local")
