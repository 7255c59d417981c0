"""eXtended DER (X-DER): DER++ whose stored logits learn of the classes that came after them.

Source: Boschini et al. 2022, "Class-Incremental Continual Learning into the eXtended DER-verse" (arXiv
2201.00766), section 4, with what the official code adds. Included: cross-entropy of the stream among the
task's own classes; α MSE to stored logits of all classes; β cross-entropy of memory samples among past
classes; η times two hinges with margin m, that the stream's past probabilities, and everybody's logits of
classes to come, stay below those of the sample's own task; and the rectification of stored logits: those
of the task's classes and later ones are overwritten by what the network says now, times γ z_y / max where
that max exceeds the stored logit z_y of the label. When a task ends this is done for all old samples; in
a step, for each replayed one with probability 1/n at its n-th replay in the task. Not included: the
contrastive preparation of future classes (L_FP). The memory is class-balanced, a random choice of each
task's samples at its end. Stored: uint8 images, and the logits of the un-augmented image in eval mode,
those of past classes rectified in the same way.
Differs from the paper: the two draws of a step have no sample in common and are one pass; where z_y is not
positive, γ z_y / max has any sign and size (7,291 in a run that then ended in NaN), so logits are lowered by
max − z_y there. Differs from the code, which scales there too: when a task ends, logits to store and to
rectify with are those of un-augmented images in eval mode (there of augmented ones in train mode).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from engram.backbones.backbone import Backbone
from engram.datasets.benchmark import Batch, Task
from engram.models import derpp
from engram.models.method import Setup
from engram.models.parts.exemplars import ExemplarMethod, at_random
from engram.utils.config.options import option
from engram.utils.transfer import send


@dataclass(frozen=True)
class Options(derpp.Options):
    """These are the flags of X-DER."""

    gamma: float = option(0.85, "largest rectified logit, as a share of the label's", gt=0, le=1)
    eta: float = option(0.1, "weight η of the two hinges", ge=0)
    m: float = option(0.3, "margin of the hinges", ge=0)


class XDER(ExemplarMethod):
    """DER++ on separate groups of classes, with stored logits that are kept up to date."""

    options: Options
    scenarios = ("class-il",)
    chooses_classes = True
    off_switch = "it has another loss: among the task's own classes"

    def __init__(self, net: Backbone, options: Options, setup: Setup) -> None:
        super().__init__(net, options, setup)
        self.draws = setup.generator("method")

    def loss(self, batch: Batch) -> Tensor:
        """CE(stream) + η hinge(past) + α MSE(h(x'), z') + β CE(h(x''), y'') + η hinge(future)."""
        n_old, n_seen = self.buffer.n_groups[self.task.id : self.task.id + 2]
        logits = self.net(batch.x, batch.task_id)
        stream = F.cross_entropy(logits[:, n_old:n_seen], batch.y - n_old)  # among the task's own classes
        past = self.past_hinge(logits, n_old, n_seen)
        distance, entropy, outputs, task_id = self.replay_terms(batch, logits, n_old)
        future = self.future_hinge(outputs, task_id, n_seen)
        return stream + past + self.options.alpha * distance + self.options.beta * entropy + future

    def past_hinge(self, logits: Tensor, n_old: int, n_seen: int) -> Tensor | float:
        """η hinge: probabilities of past classes stay below those of the task's own; 0 in the first."""
        if not n_old:
            return 0.0
        p = logits[:, :n_seen].softmax(1)
        return self.hinge(p[:, :n_old].amax(1).detach(), p[:, n_old:].amax(1))

    def replay_terms(
        self, batch: Batch, logits: Tensor, n_old: int
    ) -> tuple[Tensor | float, Tensor | float, Tensor, Tensor]:
        """MSE on one half of what is drawn, CE among past classes on the other; stored logits are rectified.

        Both are 0 without a memory. Also the outputs (N, C) of stream and replay, and the task of each.
        """
        if not len(self.buffer):
            return 0.0, 0.0, logits, batch.task_id
        slots = self.buffer.slots(2 * self.n_replayed)
        sample = self.buffer.at(slots)
        x, y, task_id = self.augmented(sample)
        replayed, half = self.net(x, task_id), (len(slots) + 1) // 2
        distance, entropy = F.mse_loss(replayed[:half], sample["logits"][:half]), 0.0
        if half < len(slots):
            entropy = F.cross_entropy(replayed[half:, :n_old], y[half:])
        self.rectify_some(slots, sample, replayed.detach(), n_old)
        return distance, entropy, torch.cat((logits, replayed)), torch.cat((batch.task_id, task_id))

    def future_hinge(self, outputs: Tensor, task_id: Tensor, n_seen: int) -> Tensor | float:
        """η hinge: logits of classes to come stay below those of each sample's task; 0 in the last."""
        if n_seen == outputs.shape[1]:
            return 0.0
        true = outputs.masked_fill(~self.benchmark.class_masks[task_id], -torch.inf).amax(1)
        return self.hinge(outputs[:, n_seen:].amax(1), true)

    def hinge(self, bad: Tensor, good: Tensor) -> Tensor:
        """η times the mean of bad + m − good over the samples (n,) for which it is positive."""
        excess = (bad + self.options.m - good).clamp_min(0)
        return self.options.eta * excess.sum() / (excess > 0).sum().clamp_min(1)

    def rectify_some(self, slots: Tensor, sample: dict[str, Tensor], now: Tensor, first: int) -> None:
        """In a step: rectify a replayed sample with probability 1/n at its n-th replay in the task."""
        times = sample["replays"] + 1
        heads = send(torch.rand(len(slots), generator=self.draws), self.device) * times < 1
        new = rectified(sample["logits"], now, sample["y"], slice(first, None), self.options.gamma)
        chosen = torch.where(heads.unsqueeze(1), new, sample["logits"])
        self.buffer.replace(slots, logits=chosen, replays=times)

    def end_task(self, task: Task) -> None:
        """Rectify what is stored; add the task's share, with its logits."""
        if not self.buffer.size:
            return
        first, gamma, stored = self.buffer.n_groups[task.id], self.options.gamma, self.buffer.stored()
        if len(self.buffer):
            now = self.evaluate(self.net, stored["x"], stored["task_id"])
            logits = rectified(stored["logits"], now, stored["y"], slice(first, None), gamma)
            every = torch.arange(len(self.buffer), device=self.device)
            self.buffer.replace(every, logits=logits, replays=torch.zeros_like(stored["replays"]))
        samples = self.task_samples(task)
        now = self.evaluate(self.net, samples["x"], samples["task_id"])
        logits = rectified(now, now, samples["y"], slice(0, first), gamma) if first else now
        samples |= {"logits": logits, "replays": torch.zeros_like(samples["y"])}
        self.buffer.renew(task.id, at_random(self.draws), **samples)


def rectified(stored: Tensor, now: Tensor, y: Tensor, columns: slice, gamma: float) -> Tensor:
    """Stored logits (N, C) with those columns as they are now, scaled to γ z_y where they exceed z_y.

    No share of a z_y that is not positive lies below it: the columns are lowered until their largest is z_y.
    """
    new, true = now[:, columns], stored.gather(1, y.unsqueeze(1))
    largest = new.amax(1, keepdim=True)
    below = torch.where(true > 0, gamma * true / largest * new, new - (largest - true))
    result = stored.clone()
    result[:, columns] = torch.where(largest > true, below, new)
    return result
