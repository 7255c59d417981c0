"""Cluster: the jobs of `utils/sweeps/process_pool.py` on the nodes of a Ray cluster.

Ray places jobs, gives each its cores and its part of a GPU, lets nodes join and starts the jobs of a lost
node on another one, where they go on from their checkpoints. Project, output and data folders must be the
same paths on every node (a shared file system). What trains knows nothing of Ray: on its node a job is a
fork of a warm process, as on one machine.
"""

import dataclasses
import os
from typing import Any

from engram.utils.config.registry import ROOT
from engram.utils.errors import UserError
from engram.utils.sweeps import process_pool
from engram.utils.sweeps.process_pool import Job, JobExit

LOST_NODES = 10  # times that a job is started again because its node or Ray's worker was lost
STOP_SECONDS = 120  # that running jobs have to save
LOOK_SECONDS = 0.2


class RayRunner:
    """Jobs on a running cluster; Ray queues those for which there is no place yet."""

    def __init__(self, address: str, cpus_per_run: int, runs_per_gpu: int, preload: list[str]):
        ray = self.ray = import_ray()
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        try:
            ray.init(address, log_to_driver=False, runtime_env={"env_vars": {"PYTHONPATH": path}})
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise UserError(f"--address {address}: no Ray cluster answers there ({error})") from None
        self.preload = preload
        self.options = {"num_cpus": cpus_per_run, "max_retries": LOST_NODES}
        self.gpu_share = 1 / runs_per_gpu if ray.cluster_resources().get("GPU") else 0
        self.do = ray.remote(do)
        self._open: dict[Any, Job] = {}

    def submit(self, job: Job) -> None:
        """Hand the job to Ray."""
        options = self.options | {"num_gpus": self.gpu_share if job.gpu else 0, "name": job.name}
        self._open[self.do.options(**options).remote(dataclasses.asdict(job), self.preload)] = job

    def n_running(self) -> int:
        """Jobs that have not ended; Ray does not tell the waiting ones apart."""
        return len(self._open)

    def finished(self, timeout: float) -> list[JobExit]:
        """Jobs that ended; one that lost its node too often counts as killed."""
        ready, _ = self.ray.wait(list(self._open), timeout=timeout) if self._open else ([], [])
        outcomes = []
        for reference in ready:
            try:
                code = self.ray.get(reference)
            except self.ray.exceptions.RayError:
                code = -9
            outcomes.append(JobExit(self._open.pop(reference), code))
        return outcomes

    def stop(self) -> None:
        """Cancel: running jobs save and end (`do`), waiting ones never start."""
        for reference in self._open:
            self.ray.cancel(reference)
        if self._open:
            self.ray.wait(list(self._open), num_returns=len(self._open), timeout=STOP_SECONDS)

    def kill(self) -> None:
        """End Ray's workers and with them the jobs."""
        for reference in self._open:
            self.ray.cancel(reference, force=True)


def do(fields: dict[str, Any], preload: list[str]) -> int:
    """On a node, in a worker of Ray's: the job in a process of its own; returns its exit code."""
    job = Job(**fields)
    process_pool.start_server(preload)
    process = process_pool.start_process(job, os.environ.get("CUDA_VISIBLE_DEVICES") if job.gpu else None)
    try:
        while process.exitcode is None:
            process.join(LOOK_SECONDS)
    except KeyboardInterrupt:  # the way in which Ray cancels
        process.terminate()
        process.join()
        raise
    return process.exitcode


def import_ray() -> Any:
    """Ray, or what to do without it."""
    try:
        import ray
    except ImportError:
        raise UserError(
            "--address needs Ray: pip install 'ray[default]' (the project's extra `cluster`)"
        ) from None
    return ray
