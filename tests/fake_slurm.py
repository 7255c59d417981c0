"""Slurm's commands as shell scripts that run jobs on this machine: they let tests use the real submitit."""

import os
from pathlib import Path

# $FAKE_SLURM is the folder of the jobs' files: ID.sh was submitted, ID.task holds the process id of its srun.
SBATCH = """#!/bin/bash
if grep -q -- "--partition=closed" "$1"; then echo "sbatch: error: invalid partition" >&2; exit 1; fi
id=$(( $(ls "$FAKE_SLURM" | grep -c "sh$") + 1 ))
cp "$1" "$FAKE_SLURM/$id.sh"
SLURM_JOB_ID=$id setsid bash "$FAKE_SLURM/$id.sh" > "$FAKE_SLURM/$id.out" 2>&1 &
echo "Submitted batch job $id"
"""
SRUN = """#!/bin/bash
shift  # --unbuffered
while [[ $1 == --* ]]; do shift 2; done
export SLURM_PROCID=0 SLURM_LOCALID=0 SLURM_NTASKS=1 SLURM_JOB_NUM_NODES=1 SLURM_NODEID=0
echo $$ > "$FAKE_SLURM/$SLURM_JOB_ID.task"
exec "$@"
"""
# As Slurm's: a job that it no longer runs has ended, whatever became of its result.
SACCT = """#!/bin/bash
echo "JobID|State|NodeList"
for task in "$FAKE_SLURM"/*.task; do
    id=$(basename "$task" .task)
    if kill -0 "$(cat "$task")" 2> /dev/null; then echo "$id|RUNNING|here"; else echo "$id|FAILED|here"; fi
done
"""
SCANCEL = """#!/bin/bash
kill -TERM "$(cat "$FAKE_SLURM/$1.task")"
"""
SCONTROL = """#!/bin/bash
[[ $1 == requeue ]] || exit 1
task=$(cat "$FAKE_SLURM/$2.task")
touch "$FAKE_SLURM/$2.requeued"
(
    while kill -0 "$task" 2> /dev/null; do sleep 0.1; done
    SLURM_JOB_ID=$2 exec bash "$FAKE_SLURM/$2.sh"
) > "$FAKE_SLURM/$2.out" 2>&1 &
"""
COMMANDS = {"sbatch": SBATCH, "srun": SRUN, "sacct": SACCT, "scancel": SCANCEL, "scontrol": SCONTROL}


def install(folder: Path, monkeypatch) -> Path:
    """Put the commands first on PATH for the duration of a test; returns the folder of the jobs' files."""
    commands, jobs = folder / "commands", folder / "jobs"
    commands.mkdir()
    jobs.mkdir()
    for name, text in COMMANDS.items():
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_SLURM", str(jobs))
    return jobs
