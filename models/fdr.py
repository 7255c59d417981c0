"""Function Distance Regularisation (FDR): old samples keep the predictions of their task's end.

Source: Benjamin, Rolnick & Kording 2019, "Measuring and Regularizing Networks in Function Space" (arXiv
1805.08289), as the baseline of Buzzega et al. 2020 (DER, arXiv 2004.07211): L = CE(stream) + α · mean over
replayed samples of ‖softmax f(x') − p‖₂. When a task ends, the memory is shared equally by the tasks so
far: older ones keep a random part, the new one adds random samples with p, the softmax of the network's
outputs for the un-augmented image in eval mode. Images are stored raw.
α is 1 here, since that is what its results were made with: mammoth takes an --alpha, never uses it, and
makes a second step on the distance alone. Differs from mammoth: one step on the sum; p is of the image
itself, not of a random view in train mode; slots that do not divide equally are used too.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from engram.backbones.backbone import Backbone
from engram.datasets.benchmark import Batch, Task
from engram.models.method import Setup
from engram.models.rehearsal import RehearsalMethod, ReplayOptions
from engram.utils.buffers import selection
from engram.utils.config.options import option

# Under the root: where predictions have not moved the norm's gradient would point along rounding errors.
EPS = 1e-12


@dataclass(frozen=True)
class Options(ReplayOptions):
    """These are the flags of FDR."""

    alpha: float = option(1.0, "weight α of the distance to the stored predictions", ge=0)


class FDR(RehearsalMethod):
    """Cross-entropy on the stream, and the old predictions on what is replayed."""

    options: Options
    needs_boundaries = True
    eager_step = ""

    def __init__(self, net: Backbone, options: Options, setup: Setup) -> None:
        super().__init__(net, options, setup)
        self.draws = setup.generator("method")

    def loss(self, batch: Batch) -> Tensor:
        """CE(stream) + α mean ‖softmax f(x') − p‖₂."""
        stream = F.cross_entropy(self.logits(batch.x, batch.task_id), batch.y)
        if not self.buffer:
            return stream
        sample = self.buffer.sample(self.n_replayed)
        x, _, task_id = self.augmented(sample)
        gap = self.logits(x, task_id).softmax(1) - sample["p"]
        return (
            stream
            + self.options.alpha * (gap.square().sum(1) + EPS).sqrt().mean()
        )  # fmt: skip

    def end_task(self, task: Task) -> None:
        """Divide the memory equally among all tasks so far, the new one among them."""
        if not self.options.buffer_size:
            return
        stored, samples = self.buffer.stored(), self.benchmark.train(task)
        past = stored["task_id"].unique().tolist() if stored else []
        *shares, new = selection.quotas(self.buffer.size, len(past) + 1)
        slots = [
            torch.nonzero(stored["task_id"] == t).view(-1)[:n] for t, n in zip(past, shares, strict=True)
        ]
        rows = selection.random(samples.y, new, self.draws)
        x, y, task_id, index = (field[rows] for field in samples)
        p = F.softmax(self.evaluate(self.logits, x, task_id), 1)
        fresh = {"x": x, "y": y, "task_id": task_id, "index": index, "p": p}
        old = self.buffer.at(torch.cat(slots)) if past else {name: f[:0] for name, f in fresh.items()}
        self.buffer.fill(**{name: torch.cat((old[name], f)) for name, f in fresh.items()})
