"""The one loop that takes a method through a stream of tasks, measures it and can be resumed."""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Generic

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from engram.utils import checkpoint, single_samples
from engram.utils.config.config import Config
from engram.utils.training import interleaved, memorization_groups, step_graph
from engram.utils.training.accuracy_log import AccuracyLog
from engram.utils.training.early_stopping import EarlyStopping
from engram.utils.training.evaluation import accuracies, memory_counts
from engram.utils.training.evaluation_subset import draw_subset, standard_errors
from engram.utils.training.optimizers import build_optimizer, build_scheduler, carry_over
from engram.utils.training.ports import BatchT, Learner, State, Stream, TaskT
from engram.utils.training.position import Position
from engram.utils.training.progress import DivergedError, LossLog, Progress
from engram.utils.training.signals import InterruptedRunError, SignalHandler, StoppedRunError
from engram.utils.training.step_plan import StepPlan


class Trainer(Generic[TaskT, BatchT]):
    """Runs the stream; calls `on_task(row)` after each task and keeps a checkpoint in `folder`."""

    def __init__(
        self,
        config: Config,
        method: Learner[TaskT, BatchT],
        folder: Path,
        on_task: Callable[[int], None] = lambda row: None,
        quiet: bool = False,
    ):
        self.config, self.method, self.folder, self.on_task = config, method, folder, on_task
        self.benchmark: Stream[TaskT, BatchT] = method.setup.benchmark
        streams = {"joint": self.benchmark.joint, "cumulative": self.benchmark.cumulative}
        self.tasks: Sequence[TaskT] = streams.get(method.stream, lambda: self.benchmark.tasks)()
        if config.log.inference_only:  # all that is left of the stream is its last row of R
            self.tasks = self.tasks[-1:]
        self.plan = StepPlan(config, method)
        held_out = bool(config.stream.validation)
        n_tasks, sampled = len(self.benchmark.tasks), config.log.samples_evaluation
        self.results = AccuracyLog(n_tasks, self.benchmark.scenario, held_out, sampled)
        scores, thresholds = method.setup.scores, config.log.mem_thresholds
        self.groups = None if scores is None else memorization_groups.assign(scores, thresholds)
        self.position = Position(config.log.start_from)
        self.losses = LossLog(self.benchmark.device)
        self.quiet, self.signals = quiet, SignalHandler()  # replaced when the run begins
        self.early_stopping = EarlyStopping(config.train)
        self.scheduler: LRScheduler | None = None
        self.graph: step_graph.StepGraph[TaskT, BatchT] | None = None  # --compile: of a whole step
        self._resumed: State | None = None
        self._saved_at, self._unshown = time.monotonic(), 0

    # --- the stream ------------------------------------------------------------------------------

    def run(self) -> AccuracyLog:
        """Train on what is left of the stream; raises `InterruptedRunError` or `DivergedError`."""
        n_steps = self.plan.count_steps(self.tasks)
        self.progress = Progress(n_steps, self.position.total, self.quiet)
        self.results.training.plan(n_steps)
        if self.config.run.compile:
            size = self.config.train.batch_size
            self.graph = step_graph.build(self.method, size, n_steps, self.progress.say)
        # a finished run that is resumed takes no step: its numbers stay those of who did
        if self.position.task < len(self.tasks) or not self.results.environments:
            self.results.record_environment(self.benchmark.device, self.method.setup.precision)
        try:
            with self.handle_signals() as self.signals, single_samples.explained():
                self._measure_untrained()
                while self.position.task < len(self.tasks):
                    self._run_task(self.tasks[self.position.task])
        finally:
            self.progress.close()
        return self.results

    def handle_signals(self) -> AbstractContextManager[SignalHandler]:
        """What SIGTERM and SIGINT do while the stream is learned: ask for an end between two steps."""
        return interleaved.handle_signals()

    def _run_task(self, task: TaskT) -> None:
        if self.config.log.inference_only:
            self.method.enter(task)
        else:
            self._learn(task)
        self._finish(task)

    def _learn(self, task: TaskT) -> None:
        with self.results.timed("data"):
            self.benchmark.train(task)
        with self.results.timed("train"):
            self._begin(task)
        while self.position.epoch < self.plan.n_epochs(task):
            with self.results.timed("train"):
                self._run_epoch(task)
                if self.scheduler:
                    self.scheduler.step()
            self.position.epoch, self.position.step = self.position.epoch + 1, 0
            if self._stopped_early(task):
                break
        with self.results.timed("train"):
            self.method.end_task(task)

    def _begin(self, task: TaskT) -> None:
        """Make the method, an optimizer and a scheduler ready for the next step, which is in this task."""
        if self.graph:
            self.graph.forget()
        self.method.enter(task)
        self.method.net.train()
        saved, self._resumed = self._resumed, None
        if saved is None:
            self._begin_task(task)
        elif self.position.inside_task:
            self._resume_inside(task, saved)
        else:
            self._resume_before(task, saved)

    def _begin_task(self, task: TaskT) -> None:
        """Begin the first task of a run, or one that follows another in this process."""
        self._prepare(task)
        last = self.method.optimizer
        self._build_after(task, last.state_dict() if last else None)

    def _resume_before(self, task: TaskT, saved: State) -> None:
        """Begin a task whose first step the checkpoint stands before."""
        self._prepare(task)
        self._build_after(task, saved["optimizer"])

    def _resume_inside(self, task: TaskT, saved: State) -> None:
        """Go on in a task that had begun when the checkpoint was written."""
        self._build_optimizer(task).load_state_dict(saved["optimizer"])
        if self.scheduler:
            self.scheduler.load_state_dict(saved["scheduler"])

    def _prepare(self, task: TaskT) -> None:
        self.method.begin_task(task)
        self.early_stopping.begin()

    def _build_after(self, task: TaskT, before: State | None) -> None:
        """Build the task's optimizer, which `--keep_optimizer` lets go on from `before`, the last task's."""
        optimizer = self._build_optimizer(task)
        if self.config.train.keep_optimizer and before:
            carry_over(optimizer, before)

    def _build_optimizer(self, task: TaskT) -> Optimizer:
        """The task's new optimizer, which the method has from here on, with its scheduler."""
        method, train = self.method, self.config.train
        method.optimizer = optimizer = build_optimizer(method.trainable().items(), train)
        self.scheduler = build_scheduler(optimizer, train, self.plan.n_epochs(task))
        return optimizer

    def _run_epoch(self, task: TaskT) -> None:
        size, label = self.config.train.batch_size, self._epoch_label(task)
        batches = self.benchmark.batches(task, self.position.epoch, size, self.position.step)
        self.method.epoch = self.position.epoch
        for batch in islice(batches, self.plan.n_steps(task, self.position.epoch) - self.position.step):
            if self.config.run.compile:
                self.method.begin_step()
            out = self.graph.observe(batch) if self.graph else self.method.observe(batch)
            self.losses.add(self.position.total, out["loss"])
            self.position.step += 1
            self.position.total += 1
            self._unshown += len(batch.y)
            if self.losses.full or self.progress.due:
                self._show(label)
            self._between_steps(task, label)
            interleaved.yield_turn()
        self._show(label)

    def _between_steps(self, task: TaskT, label: str) -> None:
        every = self.config.log.eval_every
        if every and self.position.total % every == 0:
            self._show(label)  # waits for the steps queued on a GPU, whose time is the training's
            self._evaluate_inside(task)
        overdue = time.monotonic() - self._saved_at >= 60 * self.config.log.checkpoint_every
        if overdue or self.signals.requested:
            self._show(label)  # also makes sure that what is saved is finite
            self.save()
        if self.signals.requested:
            raise InterruptedRunError(self.signals.requested)

    def _finish(self, task: TaskT) -> None:
        """Evaluate the row of R, count the memory, save, report; stop where that is asked for."""
        self._evaluate_row(task)
        if (counts := memory_counts(self.method, task.id)) is not None:
            self.results.memory.append(counts)
        self.position = Position(self.position.task + 1, 0, 0, self.position.total)
        self.save()
        self.on_task(task.id)
        if self.signals.requested:
            raise InterruptedRunError(self.signals.requested)
        # only right after that task: a run that is resumed there goes on
        if self.position.task == self.config.log.stop_after < len(self.tasks):
            raise StoppedRunError(self.position.task)

    # --- measuring -------------------------------------------------------------------------------

    def _measure_untrained(self) -> None:
        """b[j], before the first step of the run."""
        log, tasks = self.config.log, self.benchmark.tasks
        if log.ignore_other_metrics or log.inference_only or self.position != Position():
            return
        with self.results.timed("eval"):
            subset = draw_subset(tasks, self.config, 0, len(tasks))
            self.results.b[:] = accuracies(self.method, len(tasks), 0, subset)[:, 1].numpy()

    def _evaluate_row(self, task: TaskT) -> None:
        seen, tasks = task.id + 1, self.benchmark.tasks
        n_tasks = seen if self.config.log.ignore_other_metrics else len(tasks)
        with self.results.timed("eval"):
            subset = draw_subset(tasks, self.config, seen, n_tasks) if seen < len(tasks) else None
            row = accuracies(self.method, n_tasks, seen, subset).numpy()
            if self.groups is not None:
                of_groups, sizes = memorization_groups.accuracies(self.method, seen, self.groups)
                self.results.set_groups(task.id, of_groups, sizes)
        self.results.set_row(task.id, row, standard_errors(row, tasks, subset))
        if self.config.log.eval_every:
            self.results.add_point(self.position.total, task.id, row)

    def _evaluate_inside(self, task: TaskT) -> None:
        with self.results.timed("eval"):
            subset = draw_subset(self.benchmark.tasks, self.config, task.id + 1, task.id + 1)
            row = accuracies(self.method, task.id + 1, task.id + 1, subset).numpy()
        self.results.add_point(self.position.total, task.id, row)

    def _stopped_early(self, task: TaskT) -> bool:
        """Whether validation says that the task is learned; it is read after each epoch."""
        if not self.config.train.early_stopping_patience:
            return False
        with self.results.timed("eval"):
            return self.early_stopping.ends(self.method, task)

    def _show(self, label: str) -> None:
        """Read the losses; stop the run if one is not finite."""
        try:
            losses = self.losses.read_finite()
        except DivergedError as error:
            raise DivergedError(f"{error} ({label}); {self._last_good()}") from None
        n_steps = self.plan.n_steps(self.tasks[self.position.task], self.position.epoch)
        self.progress.show(f"{label} step {self.position.step}/{n_steps}", losses, self._unshown)
        self.results.n_images += self._unshown
        self._unshown = 0
        self.results.add_losses(self.position.total, losses, self.method.optimizer)

    def _last_good(self) -> str:
        path = self.folder / "checkpoint.pt"
        last = f"last good checkpoint: {path}" if path.exists() else "no checkpoint had been written yet"
        return f"{last}; try a smaller --lr or a weaker penalty"

    # --- saving ----------------------------------------------------------------------------------

    def save(self) -> None:
        """Write the checkpoint from which this run continues exactly."""
        method = self.method
        content = {
            "config": self.config.flat(),
            "classes": self.benchmark.class_names,
            "position": asdict(self.position),
            "results": self.results.state_dict(),
            "early_stopping": self.early_stopping.state_dict(),
            "method": method.state_dict(),
            "optimizer": method.optimizer.state_dict() if method.optimizer else None,
            "scheduler": self.scheduler.state_dict() if self.scheduler else None,
        }
        checkpoint.write(content, self.folder / "checkpoint.pt")
        self._saved_at = time.monotonic()

    def load(self) -> None:
        """Continue from the folder's checkpoint; a folder without one starts at the beginning."""
        path = self.folder / "checkpoint.pt"
        if not (path.exists() or path.is_symlink()):  # a link that leads nowhere is a damaged checkpoint
            return
        saved = checkpoint.read(path)
        checkpoint.check_same_run(saved, self.config, self.benchmark.class_names, path)
        with checkpoint.reading_parts(path):
            self.position = Position(**saved["position"])
            self.results.load_state_dict(saved["results"])
            self.early_stopping.load_state_dict(saved["early_stopping"])
            self.method.load_state_dict(saved["method"])
        self._resumed = saved

    # --- small things ----------------------------------------------------------------------------

    def _epoch_label(self, task: TaskT) -> str:
        epoch = f"epoch {self.position.epoch + 1}/{self.plan.n_epochs(task)}"
        return f"task {task.id} ({self.position.task + 1}/{len(self.tasks)}) {epoch}"
