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
Differs from the paper: the two draws of a step have no sample in common and are one pass.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from engram.models import derpp
from engram.models.method import Method
from engram.models.parts import exemplars
from engram.models.parts.replay import augmented, replayed_per_step
from engram.utils.buffers.exemplar_memory import ExemplarMemory
from engram.utils.config.options import option


@dataclass(frozen=True)
class Options(derpp.Options):
    """Flags of X-DER."""

    gamma: float = option(0.85, "largest rectified logit, as a share of the label's", gt=0, le=1)
    eta: float = option(0.1, "weight η of the two hinges", ge=0)
    m: float = option(0.3, "margin of the hinges", ge=0)


class XDER(Method):
    """DER++ on separate groups of classes, with stored logits that are kept up to date."""

    scenarios = ("class-il",)
    needs_boundaries = True
    rehearses = True

    def __init__(self, net, options, setup):
        super().__init__(net, options, setup)
        self.buffer = ExemplarMemory(options.buffer_size, setup)
        self.draws = setup.generator("method")

    def loss(self, batch):
        """The stream's terms, then the memory's; what is replayed may be rectified on the way."""
        n_old, n_seen = self.buffer.n_groups[self.task.id : self.task.id + 2]
        logits = self.net(batch.x, batch.task_id)
        loss = F.cross_entropy(logits[:, n_old:n_seen], batch.y - n_old)
        if n_old:
            p = logits[:, :n_seen].softmax(1)
            loss = loss + self.hinge(p[:, :n_old].amax(1).detach(), p[:, n_old:].amax(1))
        outputs, owner = logits, batch.task_id
        if len(self.buffer):
            slots = self.buffer.slots(2 * replayed_per_step(self))
            sample = self.buffer.at(slots)
            replayed = augmented(self, sample)
            again = self.net(replayed.x, replayed.task_id)
            half = (len(slots) + 1) // 2
            loss = loss + self.options.alpha * F.mse_loss(again[:half], sample["logits"][:half])
            if half < len(slots):
                entropy = F.cross_entropy(again[half:, :n_old], replayed.y[half:])
                loss = loss + self.options.beta * entropy
            self.rectify_some(slots, sample, again.detach(), n_old)
            outputs, owner = torch.cat((logits, again)), torch.cat((owner, replayed.task_id))
        if n_seen < outputs.shape[1]:
            own = outputs.masked_fill(~self.setup.benchmark.class_masks[owner], -torch.inf).amax(1)
            loss = loss + self.hinge(outputs[:, n_seen:].amax(1), own)
        return loss

    def hinge(self, bad: Tensor, good: Tensor) -> Tensor:
        """η times the mean of bad + m − good over the samples (n,) for which it is positive."""
        excess = (bad + self.options.m - good).clamp_min(0)
        return self.options.eta * excess.sum() / (excess > 0).sum().clamp_min(1)

    def rectify_some(self, slots: Tensor, sample: dict[str, Tensor], now: Tensor, first: int) -> None:
        """In a step: rectify a replayed sample with probability 1/n at its n-th replay in the task."""
        times = sample["replays"] + 1
        heads = torch.rand(len(slots), generator=self.draws).to(self.device) * times < 1
        new = rectified(sample["logits"], now, sample["y"], slice(first, None), self.options.gamma)
        chosen = torch.where(heads.unsqueeze(1), new, sample["logits"])
        self.buffer.replace(slots, logits=chosen, replays=times)

    def end_task(self, task):
        """Rectify what is stored; add the task's share, with its logits."""
        if not self.buffer.size:
            return
        first, gamma, stored = self.buffer.n_groups[task.id], self.options.gamma, self.buffer.stored()
        if len(self.buffer):
            now = exemplars.evaluated(self, self.net, stored["x"], stored["task_id"])
            logits = rectified(stored["logits"], now, stored["y"], slice(first, None), gamma)
            every = torch.arange(len(self.buffer), device=self.device)
            self.buffer.replace(every, logits=logits, replays=torch.zeros_like(stored["replays"]))
        samples = exemplars.samples_of(self, task)
        now = exemplars.evaluated(self, self.net, samples["x"], samples["task_id"])
        logits = rectified(now, now, samples["y"], slice(0, first), gamma) if first else now
        own = {"logits": logits, "replays": torch.zeros_like(samples["y"])}
        self.buffer.renew(task.id, exemplars.at_random(self.draws), **samples, **own)


def rectified(stored: Tensor, now: Tensor, y: Tensor, columns: slice, gamma: float) -> Tensor:
    """Stored logits (N, C) with those columns as they are now, scaled to γ z_y where they exceed z_y."""
    new, own = now[:, columns], stored.gather(1, y.unsqueeze(1))
    largest = new.amax(1, keepdim=True)
    scale = torch.where(largest > own, gamma * own / largest, 1.0)
    result = stored.clone()
    result[:, columns] = scale * new
    return result
