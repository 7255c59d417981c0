"""Ray pool: jobs on the nodes of a Ray cluster.

Ray assigns jobs to nodes, gives each its cores and its share of a GPU, lets nodes join and starts the jobs of
a lost node on another one, where they go on from their checkpoints. Project, output and data folders must be
the same paths on every node (a shared file system). What trains knows nothing of Ray: on its node a job is a
fork of a warm process, as on one machine.
"""

import os
from types import ModuleType

from engram.utils.errors import UserError
from engram.utils.processes import python_path
from engram.utils.sweeps import process_pool
from engram.utils.sweeps.job_pool import Job, JobPool

LOST_NODES = 10  # times that a job is started again because its node or Ray's worker was lost
POLL_SECONDS = 0.2

ObjectRef = object  # ray.ObjectRef; Ray is an optional package


class RayPool(JobPool[ObjectRef]):
    """Jobs on a running cluster; Ray itself queues those for which no node has room."""

    stop_seconds = 120.0

    def __init__(self, address: str, cpus_per_run: int, runs_per_gpu: int, preload: list[str]):
        super().__init__()
        ray = self.ray = import_ray()
        try:
            ray.init(address, log_to_driver=False, runtime_env={"env_vars": {"PYTHONPATH": python_path()}})
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise UserError(f"--address {address}: no Ray cluster answers there ({error})") from None
        self.preload = preload
        self.options = {"num_cpus": cpus_per_run, "max_retries": LOST_NODES}
        self.gpu_share = 1 / runs_per_gpu if ray.cluster_resources().get("GPU") else 0
        self.remote = ray.remote(execute_on_node)

    def has_room(self) -> bool:
        """Always true: Ray has a queue of its own."""
        return True

    def start(self, job: Job) -> ObjectRef:
        """Hand the job to Ray."""
        options = self.options | {"num_gpus": self.gpu_share if job.gpu else 0, "name": job.name}
        return self.remote.options(**options).remote(job, self.preload)

    def ended(self, timeout: float) -> dict[ObjectRef, int]:
        """Exit codes of the jobs that have ended; one that lost its node too often counts as killed."""
        references = list(self.running)
        ready, _ = self.ray.wait(references, timeout=timeout) if references else ([], [])
        return {reference: self._exit_code(reference) for reference in ready}

    def _exit_code(self, reference: ObjectRef) -> int:
        try:
            return self.ray.get(reference)
        except self.ray.exceptions.RayError:
            return -9

    def interrupt(self, handle: ObjectRef) -> None:
        """Cancel the job: a running one saves and ends (`execute_on_node`), a queued one never starts."""
        self.ray.cancel(handle)

    def kill_job(self, handle: ObjectRef) -> None:
        """End the Ray worker and with it the job."""
        self.ray.cancel(handle, force=True)


def execute_on_node(job: Job, preload: list[str]) -> int:
    """Execute a job on a node, in a process that a Ray worker starts; returns its exit code."""
    process_pool.start_server(preload)
    process = process_pool.start_process(job, os.environ.get("CUDA_VISIBLE_DEVICES") if job.gpu else None)
    try:
        while process.exitcode is None:
            process.join(POLL_SECONDS)
    except KeyboardInterrupt:  # the way in which Ray cancels
        process.terminate()
        process.join()
        raise
    return process.exitcode


def import_ray() -> ModuleType:
    """The package ray; `UserError` with the command that installs it when it is missing."""
    try:
        import ray
    except ImportError:
        raise UserError(
            "--address needs Ray: pip install 'ray[default]' (the project's extra `cluster`)"
        ) from None
    return ray
