"""Function Distance Regularisation (FDR): old samples keep the predictions of their task's end.

Source: Benjamin, Rolnick & Kording 2019, "Measuring and Regularizing Networks in Function Space" (arXiv
1805.08289), as the baseline of Buzzega et al. 2020 (DER, arXiv 2004.07211): L = CE(stream) + α · mean over
replayed samples of ‖softmax f(x') − p‖₂. When a task ends, the memory is shared equally by the tasks so
far: older ones keep a random part, the new one adds random samples with p, the softmax of the network's
outputs for the un-augmented image in eval mode. Images are stored raw.
Differs from mammoth: one step on the weighted sum (there two steps, and α is not used); p is of the image
itself, not of a random view in train mode; places that do not divide equally are used too.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from engram.models.method import Method
from engram.models.parts.inference import outputs
from engram.models.parts.replay import ReplayOptions, augmented, replayed_per_step
from engram.utils.buffers import selection
from engram.utils.buffers.reservoir import Buffer
from engram.utils.config.options import option

# Under the root: where predictions have not moved the norm's gradient would point along rounding errors.
EPS = 1e-12


@dataclass(frozen=True)
class Options(ReplayOptions):
    """Flags of FDR."""

    alpha: float = option(0.3, "weight α of the distance to the stored predictions", ge=0)


class FDR(Method):
    """Cross-entropy on the stream, and the old predictions on what is replayed."""

    needs_boundaries = True
    rehearses = True

    def __init__(self, net, options, setup):
        super().__init__(net, options, setup)
        self.buffer = Buffer(options.buffer_size, setup.generator("buffer"), self.device)
        self.draws = setup.generator("method")

    def loss(self, batch):
        """CE + α ‖p' − p‖."""
        loss = super().loss(batch)
        if not self.buffer:
            return loss
        sample = self.buffer.sample(replayed_per_step(self))
        x, _, task_id = augmented(self, sample)
        gap = self.logits(x, task_id).softmax(1) - sample["p"]
        return loss + self.options.alpha * (gap.square().sum(1) + EPS).sqrt().mean()

    def end_task(self, task):
        """Share the memory anew."""
        if not self.options.buffer_size:
            return
        held, samples = self.buffer.stored(), self.setup.benchmark.train(task)
        past = held["task_id"].unique().tolist() if held else []
        *shares, new = selection.quotas(self.buffer.size, len(past) + 1)
        slots = [torch.nonzero(held["task_id"] == t).view(-1)[:n] for t, n in zip(past, shares, strict=True)]
        rows = selection.random(samples.y, new, self.draws)
        x, y, task_id, index = (field[rows] for field in samples)
        p = F.softmax(outputs(self, x, task_id), 1)
        fresh = {"x": x, "y": y, "task_id": task_id, "index": index, "p": p}
        kept = self.buffer.at(torch.cat(slots)) if past else {name: f[:0] for name, f in fresh.items()}
        self.buffer.fill(**{name: torch.cat((kept[name], f)) for name, f in fresh.items()})
