"""Stream: networks that follow a stream of tasks, each leaving out its own half of every task.

What in-stream memorization is measured from: the networks that saw an example of task t in its task
and those that did not are compared after task t and after every later one. Class-incremental tasks, a
new optimizer for each, and replay from a reservoir of the network's own examples if wanted (ER).
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from engram.datasets.augment import Windows
from engram.memorization.cli import Options
from engram.memorization.stacked_networks import Stack, stack
from engram.memorization.study_data import StudyData
from engram.memorization.training import check_finite, epoch_order, network, rate, sgd, stacked_windows, step
from engram.utils import seeding

Parts = list[Tensor]  # for each task: (K, n) rows of the pool that the networks see in it


class Reservoirs:
    """A reservoir for each of K networks, (K, size) rows of the pool, all having seen as many examples.

    Draws come ready-made, so that a network's memory depends on its own stream alone. The last place of
    `held` is where what is not kept goes.
    """

    def __init__(self, n_networks: int, size: int, device: torch.device):
        self.size, self.n_seen = size, 0
        self.held = torch.zeros(n_networks, size + 1, dtype=torch.long, device=device)

    def __len__(self) -> int:
        return min(self.n_seen, self.size)

    def add(self, rows: Tensor, chances: Tensor) -> None:
        """Offer rows (K, n) one after the other; chances (K, n) in [0, 1): Vitter's algorithm R."""
        position = torch.arange(self.n_seen, self.n_seen + rows.shape[1], device=rows.device)
        drawn = (chances * (position + 1)).long()
        slots = torch.where(position < self.size, position, drawn).clamp_max(self.size)
        same = slots.unsqueeze(2) == slots.unsqueeze(1)
        replaced = same.triu(1).any(2)  # a later row of the batch takes the same place
        self.held.scatter_(1, slots.masked_fill(replaced, self.size), rows)
        self.n_seen += rows.shape[1]

    def take(self, chances: Tensor) -> Tensor:
        """(K, m) rows held, drawn with replacement by chances (K, m) in [0, 1)."""
        return self.held.gather(1, (chances * len(self)).long())


class StreamTraining:
    """A cohort on its way through the stream; can be saved between two epochs.

    `outputs[name]`: (T, K, N) at the time after each task, NaN for examples of later tasks. loss: among
    the classes met so far; task_loss: among those of the example's own task; correct: among those met.
    """

    def __init__(
        self, options: Options, pool: StudyData, repeats: list[int], parts: Parts, classes: list[tuple]
    ):
        self.options, self.pool, self.repeats, self.parts, self.classes = (
            options,
            pool,
            repeats,
            parts,
            classes,
        )
        self.recipe = options.recipe
        self.stack: Stack = stack([network(options, pool, repeat) for repeat in repeats]).train()
        self.memory = Reservoirs(len(repeats), options.stream.buffer_size, pool.device)
        self.optimizer = sgd(self.stack, self.recipe)
        self.epoch = 0
        shape = (len(parts), len(repeats), len(pool))
        self.outputs = {name: torch.full(shape, torch.nan) for name in ("loss", "task_loss", "correct")}

    @property
    def n_epochs(self) -> int:
        """Epochs of the whole stream."""
        return len(self.parts) * self.recipe.n_epochs

    @property
    def finished(self) -> bool:
        """Whether the stream has ended."""
        return self.epoch == self.n_epochs

    def run_epoch(self) -> None:
        """One pass over the current task; at the task's end outputs are taken."""
        task, epoch = divmod(self.epoch, self.recipe.n_epochs)
        if not epoch:
            self.optimizer = sgd(self.stack, self.recipe)
        self.optimizer.param_groups[0]["lr"] = rate(self.recipe, epoch)
        self._pass(task, epoch)
        self.epoch += 1
        if epoch == self.recipe.n_epochs - 1:
            self._look(task)

    def _pass(self, task: int, epoch: int) -> None:
        seed, size, repeats, n = (
            self.recipe.seed,
            self.recipe.batch_size,
            self.repeats,
            self.parts[task].shape[1],
        )
        pairs = zip(self.parts[task], repeats, strict=True)
        rows = torch.stack([epoch_order(own, seed, r, task, epoch) for own, r in pairs]).to(self.pool.device)
        entering = self._chances("buffer", n, task) if not epoch and self.memory.size else None
        m = self.options.stream.minibatch_size or size
        n_steps = -(-n // size)
        drawn = self._chances("replay", n_steps * m, task, epoch) if self.memory.size else None
        windows = stacked_windows(
            self.pool, n + n_steps * m * bool(self.memory.size), seed, repeats, task, epoch
        )
        total = torch.zeros(len(repeats), device=self.pool.device)
        for i in range(n_steps):
            part = slice(i * size, min((i + 1) * size, n))
            own, cut = rows[:, part], windows and Windows(*(w[:, part] for w in windows))
            if drawn is not None and len(self.memory):
                again = slice(i * m, (i + 1) * m)
                own = torch.cat((own, self.memory.take(drawn[:, again])), 1)
                later = slice(n + i * m, n + (i + 1) * m)
                cut = cut and Windows(
                    *(torch.cat((a, w[:, later]), 1) for a, w in zip(cut, windows, strict=True))
                )
            total += step(self.optimizer, self.stack.logits(self.pool.batch(own, cut)), self.pool.labels[own])
            if entering is not None:
                self.memory.add(rows[:, part], entering[:, part])
        check_finite(total, repeats, f"task {task}, epoch {epoch + 1}")

    def _chances(self, purpose: str, n: int, *keys: int) -> Tensor:
        """(K, n) uniform draws, each network's from its own stream."""
        draws = [
            torch.rand(
                n, generator=seeding.generator(self.recipe.seed, purpose, repeat, *keys), dtype=torch.float64
            )
            for repeat in self.repeats
        ]
        return torch.stack(draws).to(self.pool.device)

    @torch.no_grad()
    def _look(self, task: int) -> None:
        """Outputs on all examples of the tasks so far: clean images, evaluation mode."""
        pool, device = self.pool, self.pool.device
        own_task = task_of(pool.labels, self.classes)
        masks = torch.zeros(len(self.classes), pool.n_classes, dtype=torch.bool, device=device)
        for i, own in enumerate(self.classes):
            masks[i, list(own)] = True
        seen = masks[: task + 1].any(0)
        rows = torch.nonzero(own_task <= task).view(-1)
        self.stack.train(False)
        for chosen in rows.split(250):
            y = pool.labels[chosen].expand(self.stack.size, -1)
            logits = self.stack.logits(pool.augment.normalise(pool.images[chosen]), shared=True)
            among_seen = logits.masked_fill(~seen, -torch.inf)
            among_own = logits.masked_fill(~masks[own_task[chosen]], -torch.inf)
            for name, values in (("loss", among_seen), ("task_loss", among_own)):
                loss = F.cross_entropy(values.flatten(0, 1), y.flatten(), reduction="none")
                self.outputs[name][task, :, chosen.cpu()] = loss.view(y.shape).cpu()
            self.outputs["correct"][task, :, chosen.cpu()] = (among_seen.argmax(2) == y).float().cpu()
        self.stack.train()

    def state_dict(self) -> dict[str, Any]:
        """Fit for a checkpoint."""
        return {
            "repeats": self.repeats, "epoch": self.epoch, "stack": self.stack.state_dict(),
            "optimizer": self.optimizer.state_dict(), "held": self.memory.held, "n_seen": self.memory.n_seen,
            "outputs": self.outputs,
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`."""
        self.epoch, self.outputs = state["epoch"], state["outputs"]
        self.stack.load_state_dict(state["stack"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.memory.held, self.memory.n_seen = state["held"].to(self.pool.device), state["n_seen"]


def task_of(labels: Tensor, classes: list[tuple[int, ...]]) -> Tensor:
    """(N,) the task to which each label belongs."""
    place = {label: task for task, own in enumerate(classes) for label in own}
    table = torch.tensor([place.get(label, -1) for label in range(1 + max(place))], device=labels.device)
    return table[labels]


def halves(pool: StudyData, repeats: list[int], classes: list[tuple[int, ...]], split: Callable) -> Parts:
    """Each task's rows for each network: `split(labels, seed)` gives the places it keeps."""
    own_task = task_of(pool.labels, classes).cpu()
    parts = []
    for task in range(len(classes)):
        rows = torch.nonzero(own_task == task).view(-1)
        labels = pool.labels.cpu()[rows].numpy()
        kept = [rows[torch.from_numpy(split(labels, repeat * len(classes) + task))] for repeat in repeats]
        parts.append(torch.stack(kept))
    return parts
