"""GDumb: store a balanced memory greedily; when asked, train a network from scratch on it alone.

Source: Prabhu et al. 2020, "GDumb: A Simple Approach that Questions Our Progress in Continual Learning"
(ECCV), Algorithm 1 and section 4: a sample enters while its class has fewer than K / |classes seen|
slots, and when the memory is full a random sample of the largest class leaves. The learner: SGD,
momentum 0.9, weight decay 1e-6, gradients clipped at norm 10, one epoch at a tenth of the largest rate,
then cosine annealing with warm restarts after 1, 2, 4, ... epochs; CutMix on half of the batches (not on
MNIST: --cutmix_prob 0). Nothing is trained during the stream; a network is when a task ends, from the
run's initial weights. Task-free. Stored: uint8 images.
Differs from the paper: batches of --minibatch_size or --batch_size (there 16), images augmented as the
stream's.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from engram.backbones.backbone import Backbone
from engram.datasets.benchmark import Batch, Task
from engram.models.method import Setup
from engram.models.parts.inputs import require_images
from engram.models.parts.teacher import frozen_copy
from engram.models.rehearsal import RehearsalMethod, ReplayOptions
from engram.utils.buffers.reservoir import Buffer
from engram.utils.config.options import option
from engram.utils.training import optimizers
from engram.utils.transfer import send

MOMENTUM, WEIGHT_DECAY, CLIP = 0.9, 1e-6, 10.0


@dataclass(frozen=True)
class Options(ReplayOptions):
    """Flags of GDumb; --lr and --n_epochs of the stream have no effect."""

    fitting_epochs: int = option(
        256, "passes over the memory for the network (the authors' code: MNIST 128)", ge=1
    )
    maxlr: float = option(0.05, "largest learning rate", gt=0)
    minlr: float = option(0.0005, "smallest learning rate", gt=0)
    cutmix_prob: float = option(
        0.5, "chance that a batch is mixed by CutMix (the paper: MNIST 0)", ge=0, le=1
    )


class GreedyBuffer(Buffer):
    """Algorithm 1's greedy sampler; fields must include `y`. Its decisions are made on the host."""

    def __init__(self, size: int, generator: torch.Generator, device: torch.device | str):
        super().__init__(size, generator, device)
        self.members: dict[int, list[int]] = {}  # label → slots

    def add(self, *, y_on_host: Tensor | None = None, **fields: Tensor) -> None:
        """Offer a batch; each field is (N, ...)."""
        if not self.size:
            return
        labels = fields["y"] if y_on_host is None else y_on_host
        slots = [self._slot(label) for label in labels.tolist()]
        entering = [(row, slot) for row, slot in enumerate(slots) if slot is not None]
        self._write(lambda: ([row for row, _ in entering], [slot for _, slot in entering]), fields)

    def _slot(self, label: int) -> int | None:
        """The slot that a sample of this class is written to; None where the sample is dropped."""
        members = self.members.setdefault(label, [])
        if len(members) >= self.size / len(self.members):
            return None
        if self.n_seen < self.size:
            slot, self.n_seen = self.n_seen, self.n_seen + 1
        else:
            largest = max(self.members.values(), key=len)
            slot = largest.pop(int(torch.randint(len(largest), (1,), generator=self.generator)))
        members.append(slot)
        return slot

    def state_dict(self) -> dict:
        """Contents, counters and the generator."""
        return super().state_dict() | {"members": {label: list(s) for label, s in self.members.items()}}

    def load_state_dict(self, state: dict) -> None:
        """Continue exactly where `state` was taken."""
        super().load_state_dict(state)
        self.members = {label: list(slots) for label, slots in state["members"].items()}


class GDumb(RehearsalMethod):
    """A sampler during the stream, a learner at the end of a task."""

    options: Options
    joins_replay = True
    off_switch = "it trains on the memory alone"
    quick_flags: ClassVar = {"fitting_epochs": 2}
    eager_step = "a step trains nothing: labels decide on the host which samples are stored"

    def __init__(self, net: Backbone, options: Options, setup: Setup) -> None:
        if options.cutmix_prob:
            require_images(setup.benchmark, f"--cutmix_prob {options.cutmix_prob:g}", of_bytes=False)
        super().__init__(net, options, setup)
        self.initial = frozen_copy(net)
        self.draws = setup.generator("method")

    def make_buffer(self) -> GreedyBuffer:
        """An empty memory that Algorithm 1 fills greedily."""
        return GreedyBuffer(self.options.buffer_size, self.setup.generator("buffer"), self.device)

    def observe(self, batch: Batch) -> dict[str, Tensor]:
        """Offer the batch to the memory; nothing is trained."""
        self.remember(batch)
        return {"loss": torch.zeros((), device=self.device)}

    def end_task(self, task: Task) -> None:
        """The dumb learner: from the initial weights, on the memory alone."""
        stored, n = self.buffer.stored(), len(self.buffer)
        if not n:
            return
        self.net.load_state_dict(self.initial.state_dict())
        learner = optimizers.SGD(self.net.parameters(), lr=1.0, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
        for epoch in range(self.options.fitting_epochs):
            learner.param_groups[0]["lr"] = rate(epoch, self.options.maxlr, self.options.minlr)
            for rows in torch.randperm(n, generator=self.draws).split(self.n_replayed):
                drawn = {
                    name: field.index_select(0, send(rows, self.device)) for name, field in stored.items()
                }
                learner.zero_grad()
                self.mixed_loss(*self.augmented(drawn)).backward()
                torch.nn.utils.clip_grad_norm_(self.net.parameters(), CLIP)
                learner.step()

    def mixed_loss(self, x: Tensor, y: Tensor, task_id: Tensor) -> Tensor:
        """Cross-entropy, of a mixed batch by chance; images whose classes do not compete do not mix."""
        apart = self.benchmark.scenario == "task-il" or self.benchmark.train_classes == "task"
        if apart or torch.rand((), generator=self.draws) >= self.options.cutmix_prob:
            return F.cross_entropy(self.logits(x, task_id), y)
        x, other, share = cutmix(x, y, self.draws)
        logits = self.logits(x, task_id)
        return share * F.cross_entropy(logits, y) + (1 - share) * F.cross_entropy(logits, other)


def rate(epoch: int, largest: float, smallest: float) -> float:
    """Learning rate of an epoch: warm start, then cosine cycles of 1, 2, 4, ... epochs."""
    if epoch == 0:
        return 0.1 * largest
    cycle = 1 << (epoch.bit_length() - 1)  # epochs 1; 2, 3; 4-7; ...
    return smallest + (largest - smallest) * (1 + math.cos(math.pi * (epoch - cycle) / cycle)) / 2


def cutmix(x: Tensor, y: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, float]:
    """Images with a box from a permutation of them, its labels (N,), and the share of pixels that stay.

    Yun et al. 2019 (arXiv 1905.04899) with λ uniform: a box of 1 − λ of the area around a random centre.
    """
    height, width = x.shape[2:]
    side, *centre = torch.rand(3, generator=generator, dtype=torch.float64).tolist()
    side = math.sqrt(1 - side)
    box = []
    for length, middle in zip((height, width), centre, strict=True):
        half, middle = int(length * side) // 2, int(length * middle)
        box.append(slice(max(0, middle - half), min(length, middle + half)))
    order = send(torch.randperm(len(x), generator=generator), x.device)
    mixed = x.clone()
    mixed[:, :, box[0], box[1]] = x[order][:, :, box[0], box[1]]
    area = (box[0].stop - box[0].start) * (box[1].stop - box[1].start)
    return mixed, y[order], 1 - area / (height * width)
