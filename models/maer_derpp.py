"""DER++ whose memory is chosen by memorization when a task ends (maer_derpp).

Source: Kozal et al. 2025 (arXiv 2505.17664), section 5.2, official code `maer_derpp`: DER++ (see `derpp`)
with a plain reservoir; at the end of a task its places go to the samples that `--buffer_policy` takes, see
`maer`, with the logits that the network, in evaluation mode, gives them then.
Differs from the paper's code: these logits are those of clean images (there of augmented ones).
"""

from dataclasses import dataclass

from engram.models import derpp
from engram.models.parts.inference import outputs
from engram.models.parts.memorization import (
    MemorizationOptions,
    MemorizationSelector,
    observe_watched,
    replace_task_samples,
)


@dataclass(frozen=True)
class Options(derpp.Options, MemorizationOptions):
    """Flags of maer_derpp."""


class MAERDERpp(derpp.DERpp):
    """DER++, watched."""

    needs_boundaries = True

    def __init__(self, net, options, setup):
        super().__init__(net, options, setup)
        self.chooser = MemorizationSelector(self, options.buffer_policy)

    def begin_task(self, task):
        """Memorization is the task's own."""
        self.chooser.begin()

    def observe(self, batch):
        """DER++'s step."""
        return observe_watched(self, batch, super().observe)

    def end_task(self, task):
        """Give the task's places in the memory to the samples that the policy chooses."""
        replace_task_samples(self, task, self.chooser, logits=self.logits_of)

    def logits_of(self, chosen):
        """(k, C) raw outputs, as DER stores them."""
        return outputs(self, chosen.x_raw, chosen.task_id, self.net).float()
