"""Method: the contract of every continual-learning method.

Seven hooks with working defaults and one step, `observe`, that fixes their order. A paper overrides
one to three of them; only methods with an inner loop (MER) override `observe`.
"""

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from engram.backbones import compiled
from engram.backbones.backbone import Backbone
from engram.datasets.benchmark import Batch, Benchmark, Task
from engram.models.parts.inference import allowed_classes, evaluating
from engram.utils import compat, distributed, precision, seeding, state
from engram.utils.batching import CHUNK, evaluation_chunk
from engram.utils.config import registry
from engram.utils.config.config import TrainOptions
from engram.utils.config.options import OptionSet
from engram.utils.device import OneThread
from engram.utils.errors import UserError
from engram.utils.training.ports import State


@dataclass(frozen=True)
class Setup:
    """What a method may know about its run besides its own options."""

    benchmark: Benchmark
    train: TrainOptions
    seed: int
    # (n_train,) given memorization scores, NaN where unknown; and a maker of proxies by name
    scores: Tensor | None = None
    proxy: Callable[[str], Any] | None = None
    precision: str = "fp32"  # of the network's passes, resolved

    @property
    def device(self) -> torch.device:
        """The device that the method trains on."""
        return self.benchmark.device

    def n_steps(self, task: Task) -> int:
        """Training steps of a task, in all its epochs."""
        train = self.train
        return train.n_iters or train.n_epochs * self.benchmark.n_steps(task, train.batch_size)

    def generator(self, purpose: str, device: torch.device | str = "cpu") -> torch.Generator:
        """A random stream of the run; name the purpose."""
        return seeding.generator(self.seed, purpose, device=device)


class Method:
    """Plain fine-tuning; subclass it and override what the paper changes.

    Every attribute that a method sets is saved in checkpoints: tensors, numbers, dicts and lists of
    them, generators, and objects with a `state_dict` (buffers, modules). Key tensors by parameter
    name, never by parameter. Hooks must not read values back from the device inside a step.
    """

    # Scenarios the paper's algorithm is defined for; a mismatch is refused before training.
    scenarios: ClassVar[tuple[str, ...]] = ("class-il", "task-il", "domain-il")
    # True: begin_task / end_task carry part of the algorithm, so task-free streams are refused.
    needs_boundaries: ClassVar[bool] = False
    # True: old tasks' samples are trained on again, so per-task heads stay trainable.
    rehearses: ClassVar[bool] = False
    # True: a batch of one is learned together with replayed samples, or not at all: batch norm takes it.
    joins_replay: ClassVar[bool] = False
    # "sequential"; for upper bounds "joint" (all tasks at once) or "cumulative" (all up to the current one).
    stream: ClassVar[str] = "sequential"
    # True: the network but for its head stays as it is, from the first task to the last.
    frozen_encoder: ClassVar[bool] = False
    # False: everything is learned in `end_task`, and the trainer takes no step.
    takes_steps: ClassVar[bool] = True
    # True: may be run in several processes, which find what one would (tests/integration/test_parallel.py).
    data_parallel: ClassVar[bool] = False
    # True: the method's own loss says which classes compete, so --train_classes is refused.
    chooses_classes: ClassVar[bool] = False
    # The --train_classes that the paper trains with, where the user gives none.
    train_classes: ClassVar[str] = "all"
    # The --encoder_lr_scale of the paper, likewise.
    encoder_lr_scale: ClassVar[float] = 1.0
    # True: the network must be a vision transformer with hooks (models/parts/vision_transformer.py).
    needs_vit: ClassVar[bool] = False
    # True: gradients of gradients are taken in a step, which compiled passes do not have.
    second_derivatives: ClassVar[bool] = False
    # Why a step cannot be captured as one CUDA graph, or "" where it can (tests/contract/test_step_graph.py).
    # Subclasses inherit a reason; where there is none, one with functions of its own must say so anew.
    eager_step: str = "nobody has shown that it can be captured"
    # For the contract tests: the flags that make the method plain SGD, bit for bit, or a sentence that says
    # why there are none; and flags under which a test of it is quick.
    off_switch: ClassVar[dict[str, Any] | str] = ""
    quick_flags: ClassVar[dict[str, Any]] = {}

    # Attributes that are not the method's state: the trainer provides them, or they hold none.
    _PROVIDED = (
        "eager_step", "inner", "options", "setup", "device", "task", "epoch", "optimizer", "allowed_classes",
    )  # fmt: skip

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if not cls.eager_step and "eager_step" not in vars(cls) and any(map(callable, vars(cls).values())):
            cls.eager_step = Method.eager_step

    def __init__(self, net: Backbone, options: OptionSet, setup: Setup):
        self.net, self.options, self.setup, self.device = net, options, setup, setup.device
        precision.use(setup.precision, net)
        self.task: Task | None = None
        self.epoch = 0
        self.optimizer: torch.optim.Optimizer | None = None
        self.replay_draws = setup.generator("replay augmentation", self.device)
        self.allowed_classes = allowed_classes(net, setup.benchmark, setup.benchmark.tasks[0])

    # --- hooks -----------------------------------------------------------------------------------

    def begin_task(self, task: Task) -> None:
        """Called before the task's optimizer is built."""

    def loss(self, batch: Batch) -> Tensor:
        """Scalar data loss; cross-entropy by default."""
        return F.cross_entropy(self.logits(batch.x, batch.task_id), batch.y)

    def penalty(self) -> Tensor | None:
        """Scalar term that needs no data, added to the loss; None when there is nothing to add."""
        return None

    def edit_gradients(self, batch: Batch) -> None:
        """Change `.grad` after backward and before the optimizer's step."""

    def after_step(self, batch: Batch) -> None:
        """Store samples or accumulate statistics after the optimizer's step."""

    def end_task(self, task: Task) -> None:
        """Consolidate what was learned: importances, teachers, exemplars."""

    def predict(self, x: Tensor, task_id: Tensor) -> Tensor:
        """(N, C) unmasked logits for evaluation; `x` is normalised, the network in eval mode."""
        logits: Tensor = self.net(x, task_id)
        return logits

    # --- the step --------------------------------------------------------------------------------

    def observe(self, batch: Batch) -> dict[str, Tensor]:
        """One training step; returns detached scalars on the device."""
        assert self.optimizer is not None, "the trainer builds one for each task"
        self.optimizer.zero_grad()
        loss = self.loss(batch)
        if not isinstance(loss, Tensor):
            raise UserError(f"{type(self).__name__}.loss returned {loss!r}; it must return a scalar tensor")
        penalty = self.penalty()
        compat.backward(loss if penalty is None else loss + penalty)
        self.edit_gradients(batch)
        self.optimizer.step()
        self.after_step(batch)
        return {"loss": loss.detach()}

    # --- for subclasses --------------------------------------------------------------------------

    def logits(self, x: Tensor, task_id: Tensor) -> Tensor:
        """(N, C) training logits; classes that may not compete (`allowed_classes`) are −inf."""
        return self.mask_classes(self.net(x, task_id), task_id)

    def mask_classes(self, logits: Tensor, task_id: Tensor) -> Tensor:
        """(N, C) logits, −inf outside the classes allowed to samples of these tasks (N,).

        The others are of other tasks' heads, or left out by `--train_classes`.
        """
        if self.allowed_classes is None:
            return logits
        return logits.masked_fill(~self.allowed_classes[task_id], -torch.inf)

    def logit_distance(self, outputs: Tensor, stored: Tensor, task_id: Tensor) -> Tensor:
        """Scalar mean of (outputs − stored)² over (N, C); with `--train_classes` over the classes allowed."""
        if self.benchmark.train_classes == "all" or self.allowed_classes is None:
            return F.mse_loss(outputs, stored)
        allowed = self.allowed_classes[task_id]
        return (outputs - stored).masked_fill(~allowed, 0).square().sum() / allowed.sum()

    def augment(self, x_raw: Tensor) -> Tensor:
        """Replayed uint8 images, augmented and normalised exactly as the stream's."""
        with OneThread():
            return self.setup.benchmark.augment(x_raw, self.replay_draws)

    @torch.no_grad()
    def evaluate(self, function: Callable[..., Tensor], x_raw: Tensor, *others: Tensor) -> Tensor:
        """(N, ...) function(x, *others) of un-augmented images (N, C, H, W), the network in eval mode.

        The images are normalised and taken a chunk at a time, and so are the `others` (N, ...).
        """
        size = CHUNK[x_raw.device.type]
        if self.net.side or self.benchmark.augment.side:  # images that grow
            size = evaluation_chunk(self.net, self.benchmark.input_shape, x_raw.device)
        with evaluating(self.net):
            chunks = zip(*(field.split(size) for field in (x_raw, *others)), strict=True)
            return torch.cat(
                [function(self.benchmark.augment.normalise(raw), *rest) for raw, *rest in chunks]
            )

    def features(self, x_raw: Tensor) -> Tensor:
        """(N, D) penultimate activations of un-augmented images, in eval mode."""
        return self.evaluate(lambda x: self.net.features(x).flatten(1), x_raw)

    @property
    def benchmark(self) -> Benchmark:
        """The stream that is learned."""
        return self.setup.benchmark

    def trainable(self) -> dict[str, torch.nn.Parameter]:
        """Name → parameter of everything that learns in the current task."""
        return {name: p for name, p in self.net.named_parameters() if p.requires_grad}

    # --- for the trainer -------------------------------------------------------------------------

    @classmethod
    def keeps_encoder(cls, options: OptionSet) -> bool:
        """Whether with these options the network but for its head stays as it is."""
        return cls.frozen_encoder

    def takes_steps_in(self, task: Task) -> bool:
        """Whether the trainer presents the task's batches, or `end_task` learns it alone."""
        return self.takes_steps

    def enter(self, task: Task) -> None:
        """Make `task` the current one; `begin_task` follows unless a checkpoint is resumed."""
        self.task = task
        self.allowed_classes = allowed_classes(self.net, self.benchmark, task)
        everything = tuple(range(len(self.benchmark.tasks)))
        self.net.head.select(everything if self.rehearses else task.parts)

    def capture(self, n_steps: int) -> str:
        """`--compile` for a run of so many steps: what was done, and why."""
        if self.second_derivatives:
            return "--compile: the method takes second derivatives; its network runs as it is"
        return compiled.compile_if_worthwhile(self.net, n_steps)

    def step_form(self) -> Hashable:
        """What the operations of the next step depend on besides the batch's size; None: on too much to list.

        As long as it stays the same, a captured step may be replayed: every Python condition on what changes
        from step to step or from epoch to epoch must be told apart here.
        """
        return ()

    def begin_step(self) -> None:
        """Called before each `observe` of a run with `--compile`."""
        compiled.begin_step(self.net)

    def stored_samples(self) -> Mapping[str, Tensor]:
        """Field → (N, ...) tensor of what the method's memory, `self.buffer`, holds; empty without one."""
        buffer = getattr(self, "buffer", None)
        return {} if buffer is None else buffer.stored()

    def state_dict(self) -> State:
        """Network and every attribute set by the method, fit for `weights_only` loading."""
        attributes = {k: v for k, v in vars(self).items() if k not in self._PROVIDED}
        return {k: state.pack(v, f"{type(self).__name__}.{k}") for k, v in attributes.items()}

    def load_state_dict(self, saved: State) -> None:
        """Continue exactly where `saved` was taken."""
        for name, value in saved.items():
            current = getattr(self, name, None)
            setattr(self, name, state.unpack(current, value, self.device, name))


def check_parallel(method: type[Method], name: str) -> None:
    """Refuse several processes where nobody has shown that they compute what one would."""
    if distributed.world_size() == 1 or method.data_parallel:
        return
    classes = {n: registry.plugin_class(registry.load("models", n), Method) for n in registry.names("models")}
    able = ", ".join(n for n, method_class in classes.items() if method_class.data_parallel)
    raise UserError(
        f"--model {name} runs in one process: start it without torchrun (in several processes: {able})"
    )


def check_scenario(method: type[Method], name: str, benchmark: Benchmark, flag: str = "") -> None:
    """Refuse a benchmark that the method is not defined for, before anything is trained.

    flag: the one that chose the scenario, as the user gave it; empty where the benchmark's own is in force.
    """
    if method.needs_boundaries and benchmark.task_free:
        raise UserError(
            f"--model {name} needs to know where tasks end; {benchmark.name} is a stream without tasks. "
            f"Choose a method that does not, such as er or derpp ({registry.command()} --list)"
        )
    if method.chooses_classes and benchmark.train_classes != "all":
        raise UserError(
            f"--model {name} chooses the classes of its loss itself; leave --train_classes "
            f"{benchmark.train_classes} out"
        )
    if benchmark.scenario not in method.scenarios:
        advice = f"give --scenario {' or '.join(method.scenarios)}{' instead' if flag else ''}"
        raise UserError(
            f"{flag or f'--dataset {benchmark.name}'}: {name} is defined for {', '.join(method.scenarios)}, "
            f"not for {benchmark.scenario}; {'choose another benchmark' if benchmark.task_free else advice}"
        )
