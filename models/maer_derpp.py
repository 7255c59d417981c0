"""DER++ whose memory is chosen by memorization when a task ends (maer_derpp).

Source: Kozal et al. 2025 (arXiv 2505.17664), section 5.2, official code `maer_derpp`: DER++ (see `derpp`)
with a plain reservoir; at the end of a task its slots go to the samples that `--buffer_policy` takes, see
`maer`, with the logits that the network, in evaluation mode, gives them then.
Differs from the paper's code: these logits are those of clean images (there of augmented ones).
"""

from dataclasses import dataclass

from torch import Tensor

from engram.datasets.benchmark import Samples
from engram.models import derpp
from engram.models.parts.memorization import MemorizationOptions, WatchedReplay


@dataclass(frozen=True)
class Options(derpp.Options, MemorizationOptions):
    """These are the flags of maer_derpp."""


class MAERDERpp(WatchedReplay, derpp.DERpp):
    """DER++ whose memory goes to the samples that the policy chooses."""

    options: Options
    eager_step = ""

    def extra_fields(self, chosen: Samples) -> dict[str, Tensor]:
        """(k, C) raw outputs, as DER stores them."""
        return {"logits": self.evaluate(self.net, chosen.x_raw, chosen.task_id).float()}
