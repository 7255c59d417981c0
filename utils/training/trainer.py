"""Training: the one loop that takes a method through a stream of tasks, measures it and can be resumed."""

import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from engram.utils import checkpoint
from engram.utils.checkpoint import CheckpointError
from engram.utils.config.config import OPERATIONAL, Config, up_to_date
from engram.utils.training import interleaved, memorization_groups
from engram.utils.training.accuracy_log import AccuracyLog
from engram.utils.training.evaluation import accuracies, memory_counts
from engram.utils.training.optimizers import build_optimizer, build_scheduler, carry_over
from engram.utils.training.progress import DivergedError, LossLog, Progress
from engram.utils.training.signals import InterruptedRunError, StoppedRunError

DEBUG_STEPS = 5


@dataclass
class Position:
    """The next step to run: index in the stream, epoch, step in the epoch, steps done in the whole run."""

    task: int = 0
    epoch: int = 0
    step: int = 0
    total: int = 0


class Trainer:
    """Runs the stream; calls `on_task(row)` after each task and keeps a checkpoint in `folder`."""

    interrupts = staticmethod(interleaved.interrupts)  # what a signal does

    def __init__(
        self, config: Config, method: Any, folder: Path, on_task=lambda row: None, quiet: bool = False
    ):
        self.config, self.method, self.folder, self.on_task = config, method, folder, on_task
        self.benchmark = method.setup.benchmark
        streams = {"joint": self.benchmark.joint, "cumulative": self.benchmark.cumulative}
        self.tasks = streams[method.stream]() if method.stream in streams else self.benchmark.tasks
        self.results = AccuracyLog(len(self.benchmark.tasks), self.benchmark.scenario)
        scores = method.setup.scores
        self.groups = (
            None if scores is None else memorization_groups.assign(scores, config.log.mem_thresholds)
        )
        self.position = Position()
        self.losses = LossLog(self.benchmark.device)
        self.quiet = quiet
        self.best, self.n_worse = -1.0, 0  # early stopping
        self._resumed: dict[str, Any] | None = None
        self._saved_at = time.monotonic()
        self._unshown = 0

    # --- the stream ------------------------------------------------------------------------------

    def run(self) -> AccuracyLog:
        """Train on what is left of the stream; raises `InterruptedRunError` or `DivergedError`."""
        self.progress = Progress(self._count_steps(), self.position.total, self.quiet)
        if self.config.run.compile:
            self.progress.say(self.method.capture(self._count_steps()))
        # a finished run that is resumed takes no step: its numbers stay those of who did
        if self.position.task < len(self.tasks) or not self.results.environments:
            self.results.record_environment(self.benchmark.device)
        try:
            with self.interrupts() as self.interrupt:
                self._measure_untrained()
                while self.position.task < len(self.tasks):
                    self._run_task(self.tasks[self.position.task])
        finally:
            self.progress.close()
        return self.results

    def _run_task(self, task: Any) -> None:
        with self.results.timed("data"):
            self.benchmark.train(task)
        with self.results.timed("train"):
            scheduler = self._begin(task)
        while self.position.epoch < self._n_epochs(task):
            with self.results.timed("train"):
                self._run_epoch(task)
                if scheduler:
                    scheduler.step()
            self.position.epoch, self.position.step = self.position.epoch + 1, 0
            if self._stopped_early(task):
                break
        with self.results.timed("train"):
            self.method.end_task(task)
        self._finish(task)

    def _begin(self, task: Any) -> Any:
        """Optimizer and scheduler for the task: new, or as the checkpoint left them."""
        method, train, resumed = self.method, self.config.train, self._resumed
        method.enter(task)
        method.net.train()
        begun = resumed is not None and (self.position.epoch or self.position.step)
        if not begun:
            method.begin_task(task)
            self.best, self.n_worse = -1.0, 0
        before = resumed["optimizer"] if resumed else method.optimizer and method.optimizer.state_dict()
        method.optimizer = build_optimizer(method.trainable().items(), train)
        self.scheduler = build_scheduler(method.optimizer, train, self._n_epochs(task))
        if begun:
            method.optimizer.load_state_dict(before)
            if self.scheduler:
                self.scheduler.load_state_dict(resumed["scheduler"])
        elif train.keep_optimizer and before:
            carry_over(method.optimizer, before)
        self._resumed = None
        return self.scheduler

    def _run_epoch(self, task: Any) -> None:
        size, place = self.config.train.batch_size, self._place(task)
        batches = self.benchmark.batches(task, self.position.epoch, size, self.position.step)
        self.method.epoch = self.position.epoch
        for batch in islice(batches, self._n_steps(task, self.position.epoch) - self.position.step):
            if self.config.run.compile:
                self.method.begin_step()
            with self._precision():
                out = self.method.observe(batch)
            self.losses.add(self.position.total, out["loss"])
            self.position.step += 1
            self.position.total += 1
            self._unshown += len(batch.y)
            if self.losses.full or self.progress.due:
                self._show(place)
            self._between_steps(task, place)
            interleaved.yield_turn()
        self._show(place)

    def _between_steps(self, task: Any, place: str) -> None:
        every = self.config.log.eval_every
        if every and self.position.total % every == 0:
            self._show(place)  # waits for the steps queued on a GPU, whose time is the training's
            self._evaluate_inside(task)
        overdue = time.monotonic() - self._saved_at >= 60 * self.config.log.checkpoint_every
        if overdue or self.interrupt.requested:
            self._show(place)  # also makes sure that what is saved is finite
            self.save()
        if self.interrupt.requested:
            raise InterruptedRunError(self.interrupt.requested)

    def _finish(self, task: Any) -> None:
        """Evaluate after the task, save, report."""
        self._evaluate_row(task)
        counts = memory_counts(self.method, task.id)
        if counts is not None:
            self.results.memory.append(counts)
        self.position = Position(self.position.task + 1, 0, 0, self.position.total)
        self.save()
        self.on_task(task.id)
        if self.interrupt.requested:
            raise InterruptedRunError(self.interrupt.requested)
        # only right after that task: a run that is resumed there goes on
        if self.position.task == self.config.log.stop_after < len(self.tasks):
            raise StoppedRunError(self.position.task)

    # --- measuring -------------------------------------------------------------------------------

    def _measure_untrained(self) -> None:
        """b[j], before the first step of the run."""
        if self.config.log.ignore_other_metrics or self.position != Position():
            return
        with self.results.timed("eval"):
            n_tasks = len(self.benchmark.tasks)
            self.results.b[:] = accuracies(self.method, n_tasks, n_seen=0)[:, 1].numpy()

    def _evaluate_row(self, task: Any) -> None:
        seen = task.id + 1
        n_tasks = seen if self.config.log.ignore_other_metrics else len(self.benchmark.tasks)
        with self.results.timed("eval"):
            found = accuracies(self.method, n_tasks, seen).numpy()
            if self.groups is not None:
                self.results.set_groups(
                    task.id, memorization_groups.accuracies(self.method, seen, self.groups).numpy()
                )
        self.results.set_row(task.id, found)
        if self.config.log.eval_every:
            self.results.add_point(self.position.total, task.id, found)

    def _evaluate_inside(self, task: Any) -> None:
        with self.results.timed("eval"):
            found = accuracies(self.method, task.id + 1, task.id + 1).numpy()
        self.results.add_point(self.position.total, task.id, found)

    def _stopped_early(self, task: Any) -> bool:
        """Whether the task's validation accuracy has stopped rising (`with_validation`: never test data)."""
        patience = self.config.train.early_stopping_patience
        if not patience:
            return False
        with self.results.timed("eval"):
            found = accuracies(self.method, task.id + 1, task.id + 1)[list(task.parts), 1].mean().item()
        self.n_worse = 0 if found > self.best else self.n_worse + 1
        self.best = max(self.best, found)
        return self.n_worse >= patience

    def _show(self, place: str) -> None:
        """Read the losses; stop the run if one is not finite."""
        try:
            losses = self.losses.read_finite()
        except DivergedError as error:
            raise DivergedError(f"{error} ({place}); {self._last_good()}") from None
        self.progress.show(place, losses, self._unshown)
        self.results.n_images += self._unshown
        self._unshown = 0

    def _last_good(self) -> str:
        path = self.folder / "checkpoint.pt"
        if not path.exists():
            return "no checkpoint had been written yet; try a smaller --lr or a weaker penalty"
        return f"last good checkpoint: {path}; try a smaller --lr or a weaker penalty"

    # --- saving ----------------------------------------------------------------------------------

    def save(self) -> None:
        """Write the checkpoint from which this run continues exactly."""
        method = self.method
        content = {
            "config": self.config.flat(),
            "classes": self.benchmark.class_names,
            "position": asdict(self.position),
            "results": self.results.state_dict(),
            "early_stopping": [self.best, self.n_worse],
            "method": method.state_dict(),
            "optimizer": method.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict() if self.scheduler else None,
        }
        checkpoint.write(content, self.folder / "checkpoint.pt")
        self._saved_at = time.monotonic()

    def load(self) -> None:
        """Continue from the folder's checkpoint; a folder without one starts at the beginning."""
        path = self.folder / "checkpoint.pt"
        if not path.exists():
            return
        saved = checkpoint.read(path)
        check_same_run(saved, self.config, self.benchmark.class_names, path)
        self.position = Position(**saved["position"])
        self.results.load_state_dict(saved["results"])
        self.best, self.n_worse = saved["early_stopping"]
        self.method.load_state_dict(saved["method"])
        self._resumed = saved

    # --- small things ----------------------------------------------------------------------------

    def _n_epochs(self, task: Any) -> int:
        """Passes over the task's data, the last one cut short by --n_iters."""
        train = self.config.train
        if not train.n_iters:
            return train.n_epochs
        return -(-train.n_iters // self.benchmark.n_steps(task, train.batch_size))

    def _n_steps(self, task: Any, epoch: int) -> int:
        """Steps of one pass over the task's data."""
        train = self.config.train
        n_steps = self.benchmark.n_steps(task, train.batch_size)
        if train.n_iters:
            n_steps = min(n_steps, train.n_iters - epoch * n_steps)
        return min(n_steps, DEBUG_STEPS) if self.config.run.debug_mode else n_steps

    def _count_steps(self) -> int:
        return sum(self._n_steps(task, epoch) for task in self.tasks for epoch in range(self._n_epochs(task)))

    def _place(self, task: Any) -> str:
        epoch = f"epoch {self.position.epoch + 1}/{self._n_epochs(task)}"
        return f"task {task.id} ({self.position.task + 1}/{len(self.tasks)}) {epoch}"

    def _precision(self):
        if self.config.run.precision != "bf16":
            return nullcontext()
        return torch.autocast(self.benchmark.device.type, torch.bfloat16)


def check_same_run(saved: dict[str, Any], config: Config, classes: list[str], path: Path) -> None:
    """Refuse a checkpoint of another configuration, or of other classes or another order of them."""
    own, other = config.flat(), up_to_date(saved.get("config", {}))
    names = [k for k in own if k not in OPERATIONAL and own[k] != other.get(k)]
    if names:
        differ = ", ".join(f"--{k} is {own[k]}, there {other.get(k)}" for k in names[:3])
        raise CheckpointError(f"{path} belongs to another run: {differ}")
    if saved.get("classes") != classes:
        raise CheckpointError(
            f"{path}: the classes of the data, or their order, were others when it was written (images "
            "changed, or another version of this program); bring those back, or start the run again"
        )
