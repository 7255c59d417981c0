"""Linear probe: SGD on the last layer alone, on the features of an encoder that stays as it is.

The bound that methods of frozen features are read against: trained task by task it forgets as fine-tuning of
the last layer does; `linear_probe_joint` trains it on all tasks at once. Source: McDonnell et al. 2023
(arXiv 2307.02251), "joint linear probe" of its tables. Images are augmented as the stream's; the encoder is
in eval mode, so that its running statistics stay. `--model sgd --tune head` takes the same steps; --tune head
puts any other method, such as er or derpp, on a frozen encoder.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engram.datasets.benchmark import Batch
from engram.models.method import Method
from engram.models.parts.inference import evaluating


class LinearProbe(Method):
    """Cross-entropy of the head over features without gradients."""

    frozen_encoder = True
    off_switch = "it trains the head alone"

    def trainable(self) -> dict[str, nn.Parameter]:
        """The head's parameters, of those that learn in the task."""
        return {name: p for name, p in super().trainable().items() if name.startswith("head.")}

    def loss(self, batch: Batch) -> Tensor:
        """Cross-entropy; the encoder takes no part in the gradient."""
        with torch.no_grad(), evaluating(self.net):
            features = self.net.features(batch.x).flatten(1)
        logits = self.mask_classes(self.net.head(features, batch.task_id), batch.task_id)
        return F.cross_entropy(logits, batch.y)
