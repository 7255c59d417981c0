"""Train a continual-learning method on a benchmark: parse, build, train, report."""

import sys
from typing import TYPE_CHECKING

from engram.utils import garbage
from engram.utils.config import cli
from engram.utils.config.config import Config
from engram.utils.door import guarded
from engram.utils.tracking.background_tracker import prepared

if TYPE_CHECKING:
    from engram.utils.runs.run_dir import RunDir


@guarded
def main(argv: list[str] | None = None) -> int:
    """Run what the command line asks for; returns the exit code."""
    with garbage.paused():  # the method that is named imports torch
        request = cli.parse(sys.argv[1:] if argv is None else argv)
    if request.config:
        return run(request.config)[0]
    from engram.utils.runs import resume  # numpy is not for --help to wait for

    return run(*resume.find_run(request), resumed=True)[0]


def run(
    config: Config, run_dir: "RunDir | None" = None, resumed: bool = False, wait: bool = False
) -> tuple[int, "RunDir | None"]:
    """Build, train and report one run; returns its exit code and its folder (None: another process has it).

    run_dir: where the run lies, a new folder by default. wait: as a sweep does, for another process that runs
    it now and, at the end, for figures and MLflow.
    """
    if resumed and run_dir and run_dir.ended_without_checkpoint:
        leave_as_it_is(config, run_dir, wait)
        return 0, run_dir
    with prepared(config) as tracking:  # MLflow is imported while this process imports torch
        # The one late import: parsing, and so --help, needs no torch.
        from engram.memorization import proxies
        from engram.models.build import build_method
        from engram.utils import distributed
        from engram.utils.runs.session import Session

        with distributed.process_group(config.run.device) as device:
            method = build_method(config, device, proxies.create)
            with Session(config, method, run_dir, resumed, wait, tracking) as session:
                session.train()
                session.report()
    return session.exit_code, session.run_dir


def leave_as_it_is(config: Config, run_dir: "RunDir", wait: bool) -> None:
    """A finished run whose checkpoint is gone: nothing is trained, what MLflow lacks of it is sent."""
    print(f"{run_dir.path}: the run is finished; its checkpoint is gone, so it is left as it is")
    if run_dir.logged:
        return
    with prepared(config) as tracking:
        if tracking:
            from engram.utils.runs import pending  # as above

            pending.send(config, run_dir, tracking, wait)


if __name__ == "__main__":
    sys.exit(main())
