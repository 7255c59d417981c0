"""Jobs through the real submitit and Slurm's commands as scripts of this machine (tests/fake_slurm.py)."""

import os
import signal
import sys

import pytest

from engram.scripts import sweep as program
from engram.utils.errors import UserError
from engram.utils.sweeps import slurm_pool
from engram.utils.sweeps.job_pool import run_jobs
from engram.utils.sweeps.slurm_pool import SlurmPool, minutes, parse_options
from tests import fake_slurm
from tests.unit.test_job_pools import job, text_of
from tests.waiting import wait_until

OPTIONS = {"time": "60", "partition": "gpu", "gpus": "1"}


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    pytest.importorskip("submitit", reason="the optional package submitit is not installed")
    return fake_slurm.install(tmp_path, monkeypatch)


def test_exit_codes_and_what_sbatch_is_asked_for(slurm, tmp_path):
    jobs = [job(tmp_path, "a", "ending", "3", gpu=True), job(tmp_path, "b", "ending", "kill")]
    pool = SlurmPool(tmp_path / "slurm", OPTIONS, cpus_per_run=2)
    codes = {job_exit.job.name: job_exit.code for job_exit, _ in run_jobs(pool, jobs, retries=0)}
    assert codes == {"a": 3, "b": -signal.SIGKILL}
    assert text_of(tmp_path / "a.txt").startswith("here 1"), "a job prints to its own file, as in every pool"
    script = (slurm / "1.sh").read_text()
    wanted = ("job-name=a", "partition=gpu", "gpus=1", "cpus-per-task=2", "time=60")
    assert all(f"#SBATCH --{option}\n" in script for option in wanted)
    assert "gpus=" not in (slurm / "2.sh").read_text(), "a job that needs no GPU does not wait for one"


def test_no_more_jobs_than_asked_for_are_in_the_queue(slurm, tmp_path):
    pool = SlurmPool(tmp_path / "slurm", OPTIONS, 1, max_jobs=1)
    for name in ("a", "b"):
        pool.submit(job(tmp_path, name, "ending", "0"))
    assert pool.n_running() == 1 and len(pool.waiting) == 1
    exits = []
    wait_until(lambda: exits.extend(pool.finished(1)) or len(exits) == 2)
    assert [e.code for e in exits] == [0, 0]


def test_stop_lets_jobs_save(slurm, tmp_path):
    pool = SlurmPool(tmp_path / "slurm", OPTIONS, 1)
    pool.submit(job(tmp_path, "a", "long", str(tmp_path / "mark")))
    wait_until(lambda: "begun" in text_of(tmp_path / "mark"))
    assert [job_exit.code for job_exit in pool.stop()] == [143]
    assert text_of(tmp_path / "mark").startswith("asked")


def test_a_job_at_its_time_limit_saves_and_is_queued_again(slurm, tmp_path):
    """Slurm sends SIGUSR2 ahead of the limit; the second time the job comes to its own end."""
    pool = SlurmPool(tmp_path / "slurm", OPTIONS, 1)
    pool.submit(job(tmp_path, "a", "long_then_short", str(tmp_path / "mark")))
    wait_until(lambda: "begun" in text_of(tmp_path / "mark"))
    os.kill(int((slurm / "1.task").read_text()), signal.SIGUSR2)
    exits = []
    wait_until(lambda: exits.extend(pool.finished(1)) or exits)
    assert [job_exit.code for job_exit in exits] == [0] and (slurm / "1.requeued").exists()


@pytest.mark.slow
def test_a_job_that_slurm_ends_without_a_result_counts_as_killed(slurm, tmp_path):
    pool = SlurmPool(tmp_path / "slurm", OPTIONS, 1)
    pool.submit(job(tmp_path, "a", "long", str(tmp_path / "mark")))
    wait_until(lambda: "begun" in text_of(tmp_path / "mark"))
    os.kill(int((slurm / "1.task").read_text()), signal.SIGKILL)
    exits = []
    wait_until(lambda: exits.extend(pool.finished(1)) or exits)
    assert [job_exit.code for job_exit in exits] == [-signal.SIGKILL]


def test_a_refused_submission_is_the_user_s_to_mend(slurm, tmp_path):
    pool = SlurmPool(tmp_path / "slurm", OPTIONS | {"partition": "closed"}, 1)
    with pytest.raises(UserError, match=r"sbatch refused the job: .*invalid partition"):
        pool.submit(job(tmp_path, "a", "ending", "0"))


def test_what_is_missing_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    pytest.importorskip("submitit", reason="the optional package submitit is not installed")
    with pytest.raises(UserError, match="no sbatch and srun here"):
        SlurmPool(tmp_path, OPTIONS, 1)
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(UserError, match="pip install submitit"):
        slurm_pool.import_submitit()


def test_options():
    assert parse_options("partition=gpu,time=01:30:00,gres=gpu:a100:2,mem_per_cpu=4G") == {
        "partition": "gpu", "time": "01:30:00", "gres": "gpu:a100:2", "mem-per-cpu": "4G",
    }  # fmt: skip
    times = {"90": 90, "01:30:00": 90, "1-00:00:00": 1440, "00:00:30": 1}
    assert {text: minutes(text) for text in times} == times


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("partition=gpu", "time=240"), ("time=1:30", "expected minutes"), ("time=soon", "expected minutes"),
        ("time=2-30", "expected minutes"),
        ("time=0", "at least one minute"), ("gpu,time=5", "'gpu' is no option"),
    ],
)  # fmt: skip
def test_bad_options(text, message, capsys):
    assert program.main(["--model", "sgd", "--slurm", text]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [(["--address", "auto"], "give one of"), (["--runs_per_gpu", "2"], "--seeds_together")],
)
def test_flags_that_exclude_each_other(more, message, capsys):
    assert program.main(["--model", "sgd", "--slurm", "time=5", *more]) == 2
    assert message in capsys.readouterr().err
