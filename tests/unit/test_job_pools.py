"""Jobs in processes of their own: endings, output, slots, retries, a parent that dies."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from engram.utils.sweeps import process_pool
from engram.utils.sweeps.job_pool import Job, run_jobs
from engram.utils.sweeps.process_pool import ProcessPool
from tests.conftest import ROOT
from tests.waiting import wait_until


def job(tmp_path, name: str, function: str, *arguments: str, **more) -> Job:
    return Job(name, f"tests.unit.jobs:{function}", arguments, str(tmp_path / f"{name}.txt"), **more)


def text_of(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def test_endings_output_and_no_trace(tmp_path):
    wanted = {"a": ("0", 0), "b": ("3", 3), "c": ("kill", -9), "d": ("raise", 1), "e": ("0", 0)}
    jobs = [job(tmp_path, name, "ending", how, cwd=str(tmp_path)) for name, (how, _) in wanted.items()]
    found = {o.job.name: o.code for o, _ in run_jobs(ProcessPool([None, None]), jobs, retries=0)}
    assert found == {name: code for name, (_, code) in wanted.items()}
    for name in wanted:
        assert text_of(tmp_path / f"{name}.txt").startswith(
            f"here 1 {os.environ.get('CUDA_VISIBLE_DEVICES')}"
        )
        assert tmp_path.name in text_of(tmp_path / f"{name}.txt")
    assert "RuntimeError: told to" in text_of(tmp_path / "d.txt")


def test_slots_are_handed_on(tmp_path):
    jobs = [job(tmp_path, str(i), "ending", "0", gpu=i < 4) for i in range(5)]
    outcomes = list(run_jobs(ProcessPool(["7", "8"]), jobs, retries=0))
    seen = [text_of(tmp_path / f"{i}.txt").split()[2] for i in range(5)]
    assert len(outcomes) == 5 and set(seen[:4]) == {"7", "8"} and seen[4] not in ("7", "8")


def test_failed_jobs_are_tried_again_but_not_those_that_were_refused(tmp_path):
    jobs = [
        job(tmp_path, "mended", "second_time", str(tmp_path / "mark")),
        job(tmp_path, "broken", "ending", "5"),
        job(tmp_path, "refused", "ending", "2"),
    ]
    told = [(o.job.name, o.code, left) for o, left in run_jobs(ProcessPool([None]), jobs, retries=2)]
    broken = [("broken", 5, left) for left in (2, 1, 0)]
    assert sorted(told) == sorted([("mended", 1, 2), ("mended", 0, 0), ("refused", 2, 0), *broken])
    assert text_of(tmp_path / "broken.txt").count("here") == 3, "the output of every try is kept"


def test_stop_asks_once_and_waits(tmp_path):
    pool = ProcessPool([None])
    for name in ("first", "second"):
        pool.submit(job(tmp_path, name, "long", str(tmp_path / f"{name}.mark")))
    wait_until(lambda: "begun" in text_of(tmp_path / "first.mark"))
    exits = pool.stop()
    assert text_of(tmp_path / "first.mark").startswith("asked")
    assert [(o.job.name, o.code) for o in exits] == [("first", 143)]
    assert pool.n_running() == 0 and not (tmp_path / "second.mark").exists(), "the queued one never starts"


def test_jobs_end_with_their_parent_even_if_it_is_killed(tmp_path):
    code = (
        "import signal\n"
        "from engram.utils.sweeps.job_pool import Job\n"
        "from engram.utils.sweeps.process_pool import ProcessPool\n"
        f"mark, output = {str(tmp_path / 'mark')!r}, {str(tmp_path / 'output')!r}\n"
        "job = Job('orphan', 'tests.unit.jobs:long', (mark,), output)\n"
        "ProcessPool([None]).submit(job); signal.pause()"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    wait_until(lambda: "begun" in text_of(tmp_path / "mark"))
    parent.kill()
    parent.wait()
    wait_until(lambda: "asked" in text_of(tmp_path / "mark"))
    pid = int(text_of(tmp_path / "mark").split()[1])
    wait_until(lambda: not Path(f"/proc/{pid}").exists())


def test_a_job_without_an_output_file_prints_where_its_caller_does():
    code = (
        "from engram.utils.sweeps.job_pool import Job, run_jobs\n"
        "from engram.utils.sweeps.process_pool import ProcessPool\n"
        "jobs = [Job('a', 'tests.unit.jobs:ending', ('3',))]\n"
        "print([e.code for e, _ in run_jobs(ProcessPool([None]), jobs, retries=0)])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "here 1" in done.stdout and done.stdout.endswith("[3]\n")


def test_slots(monkeypatch):
    monkeypatch.setattr(process_pool, "visible_gpus", lambda: ["0", "3"])
    assert process_pool.default_slots(None, 2) == ["0", "3", "0", "3"]
    assert process_pool.default_slots(3, 1) == ["0", "3", "0"]
    monkeypatch.setattr(process_pool, "visible_gpus", lambda: [])
    assert process_pool.default_slots(3, 1) == [None] * 3
    assert process_pool.default_slots(None, 1) == [None] * len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("named", "n", "found"),
    [(None, 2, ["0", "1"]), ("2, 5", 2, ["2", "5"]), ("", 0, []), ("GPU-abc", 1, ["GPU-abc"])],
)
def test_gpus_that_may_be_used(named, n, found, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: n)
    if named is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    assert process_pool.visible_gpus() == found
