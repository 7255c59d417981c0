"""Bring the runs of an old MLflow file store (`mlruns/`) next to ours, in the same tables.

    python scripts/interop/import_mlruns.py mlruns
    python scripts/interop/import_mlruns.py mlruns --output_dir runs/paper --tracking_uri sqlite:///mlflow.db
    python scripts/report.py runs/paper

Reads the files themselves (meta.yaml, params/, metrics/, tags/): MLflow no longer opens such stores, and its
own `mlflow migrate-filestore` copies a whole store, steps as they are, into a new and empty SQLite database
alone, so not next to runs that are there, and writes no run folders. Every
run becomes one in our store, with its name, times, parameters, metrics and tags, and, where it logged
accuracies of single tasks, a run folder with results.json for report.py. A run that is there already is
left alone, so the command can be repeated. Steps that the memorization paper's logs count from the task's
own beginning become the index of the task just learned.
"""

import argparse
import sys
from pathlib import Path

from engram.utils.config.flags import CheckedParser
from engram.utils.destinations import check_folder
from engram.utils.door import guarded
from engram.utils.runs import legacy_runs
from engram.utils.tracking import legacy_file_store, legacy_import


@guarded
def main(argv: list[str] | None = None) -> int:
    """Import what the command line names; returns the exit code."""
    parser = CheckedParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the file store, or one experiment's folder in it")
    parser.add_argument("--output_dir", default="runs/imported", help="run folders (default: runs/imported)")
    parser.add_argument("--tracking_uri", help="MLflow server or database (default: mlflow.db here)")
    parser.add_argument("--disable_log", action="store_true", help="run folders only, no MLflow")
    args = parser.parse_args(argv)
    check_folder(args.output_dir, "--output_dir")
    runs = legacy_file_store.read(args.folder)
    output_dir = Path(args.output_dir).expanduser()
    n_folders = sum(legacy_runs.write_run_dir(run, output_dir) for run in runs)
    n_runs = 0 if args.disable_log else legacy_import.write(runs, args.tracking_uri)
    print(f"{len(runs)} runs found; new: {n_runs} in MLflow, {n_folders} run folders in {args.output_dir}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
