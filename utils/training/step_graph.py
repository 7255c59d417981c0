"""Step graph: a whole training step as one CUDA graph, captured once and replayed (`--compile` on a GPU).

A step of a small network is a few hundred kernels that take less time than their launches. A graph launches
them all at once: forward, loss, backward, the penalty's gradient and the optimizer. What PyTorch asks of a
captured step (docs.pytorch.org, notes on CUDA semantics, "CUDA graphs"):

- the same tensors at every replay: the batch is copied into fixed ones, and parameters, optimizer state and
  memory are written in place. A new task brings new ones, and with them a new graph (`forget`).
- the same sizes and the same Python branches: `Learner.step_form` names what they depend on.
- no value that the host reads, and none that it decides: decisions come from `HostPlan` (utils/transfer.py).
- the learning rate in a tensor, generators of the device registered, an optimizer that is `capturable`.
- a few steps on a side stream first, in which libraries and the optimizer allocate what they keep. They are
  steps of the run like all others, and so nothing is computed twice.

A batch of another size, a step without a form, and a step that PyTorch refuses to capture run eagerly.
"""

import functools
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any, Generic

import torch
from torch import Tensor

from engram.utils import distributed
from engram.utils.training.ports import BatchT, Learner, TaskT
from engram.utils.transfer import HostPlan, decide

N_WARM_UP = 3  # steps on the side stream before a capture, as PyTorch's examples have


def build(
    method: Learner[TaskT, BatchT], batch_size: int, n_steps: int, say: Callable[[str], None]
) -> "StepGraph[TaskT, BatchT] | None":
    """`--compile` for a run of `n_steps`: graphs of whole steps, or None: the network's passes alone, if any.

    The whole step replaces the compiled network: it leaves a single launch, whatever the network, and it
    needs no compiler, which takes about a minute, so that short runs have it too. `say` shows which it is.
    """
    if method.setup.benchmark.device.type != "cuda":  # where no graph is to be had, nobody asks why
        say(method.capture(n_steps))
        return None
    reason = "several processes divide it" if distributed.world_size() > 1 else method.eager_step
    if reason:
        say(f"{method.capture(n_steps)} (not the whole step: {reason})")
        return None
    say("--compile: every training step is one CUDA graph")
    return StepGraph(method, batch_size, say)


class StepGraph(Generic[TaskT, BatchT]):
    """Takes a method's training steps, by replay where it can; `say` shows a line to the user."""

    def __init__(self, method: Learner[TaskT, BatchT], batch_size: int, say: Callable[[str], None]):
        self.method, self.batch_size, self.say = method, batch_size, say
        self.stream = torch.cuda.Stream(method.setup.benchmark.device)
        self.refused = False  # PyTorch could not capture the step
        self.forget()

    def forget(self) -> None:
        """Drop the graph: the next task has other tensors."""
        self.form: Hashable = None
        self.n_warm_up = 0
        self.captured: CapturedStep[TaskT, BatchT] | None = None

    def observe(self, batch: BatchT) -> dict[str, Tensor]:
        """Take one training step; returns detached scalars on the device, valid until the next."""
        form = self.method.step_form()
        if self.refused or form is None or len(batch.y) != self.batch_size:
            return self.method.observe(batch)
        if form != self.form:
            self.forget()
            self.form = form
        if self.n_warm_up < N_WARM_UP:
            self.n_warm_up += 1
            return self._warm_up(batch)
        if self.captured is None and not self._capture(batch):
            return self.method.observe(batch)
        assert self.captured is not None
        return self.captured.replay(batch)

    def _warm_up(self, batch: BatchT) -> dict[str, Tensor]:
        """An eager step on the stream of the capture."""
        current = torch.cuda.current_stream(self.stream.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            out = self.method.observe(batch)
        current.wait_stream(self.stream)
        return out

    def _capture(self, batch: BatchT) -> bool:
        """Capture the step, which computes nothing yet; False, and all as before, where that is refused."""
        saved = self.method.state_dict()
        try:
            self.captured = CapturedStep(self.method, batch, self.stream)
        except Exception as error:  # whatever it is, an eager step either does without or raises it again
            reason = " ".join(str(error.__context__ or error).split()).split(". ")[0]
            self.say(f"--compile: the step cannot be captured ({reason}); steps run eagerly")
            self.refused = True
            self.method.load_state_dict(saved)
        return not self.refused


class CapturedStep(Generic[TaskT, BatchT]):
    """One form of a method's step as a graph, with the tensors that it reads and writes."""

    def __init__(self, method: Learner[TaskT, BatchT], batch: BatchT, stream: torch.cuda.Stream):
        assert method.optimizer is not None, "the trainer builds one for each task"
        self.batch = type(batch)(*(field.clone() for field in batch))
        self.plan = HostPlan(method.setup.benchmark.device)
        self.graph = torch.cuda.CUDAGraph()
        for value in vars(method).values():
            if isinstance(value, torch.Generator) and value.device.type == "cuda":
                self.graph.register_generator_state(value)
        capture = torch.cuda.graph(self.graph, stream=stream, capture_error_mode="thread_local")
        with self.plan.collecting(), capturable(method.optimizer), capture:
            self.out = method.observe(self.batch)

    def replay(self, batch: BatchT) -> dict[str, Tensor]:
        """Take the step on another batch of the same sizes."""
        for static, field in zip(self.batch, batch, strict=True):
            static.copy_(field)
        self.plan.deliver()
        self.graph.replay()
        return self.out


@contextmanager
def capturable(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Inside, the learning rates are tensors, renewed at every replay, and Adam may be captured.

    Outside they are numbers: schedulers and checkpoints know nothing of it.
    """

    def rate(group: dict[str, Any]) -> Tensor:
        return torch.tensor(group["lr"])

    before = [dict(group) for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = decide(functools.partial(rate, group), group["params"][0].device)
        group["capturable"] = True
    try:
        yield
    finally:
        for group, settings in zip(optimizer.param_groups, before, strict=True):
            group.clear()
            group.update(settings)
