"""ER-ACE whose memory is chosen by memorization when a task ends (maer_er_ace).

Source: Kozal et al. 2025 (arXiv 2505.17664), section 5.2, official code `maer_er_ace`: ER-ACE (see
`er_ace`) with a plain reservoir; at the end of a task its places go to the samples that `--buffer_policy`
takes, see `maer`.
"""

from dataclasses import dataclass

from engram.models import er_ace
from engram.models.parts.memorization import (
    MemorizationOptions,
    MemorizationSelector,
    observe_watched,
    replace_task_samples,
)


@dataclass(frozen=True)
class Options(er_ace.Options, MemorizationOptions):
    """Flags of maer_er_ace."""


class MAERERACE(er_ace.ERACE):
    """ER-ACE, watched."""

    needs_boundaries = True

    def __init__(self, net, options, setup):
        super().__init__(net, options, setup)
        self.chooser = MemorizationSelector(self, options.buffer_policy)

    def begin_task(self, task):
        """Memorization is the task's own."""
        self.chooser.begin()

    def observe(self, batch):
        """ER-ACE's step."""
        return observe_watched(self, batch, super().observe)

    def end_task(self, task):
        """Give the task's places in the memory to the samples that the policy chooses."""
        replace_task_samples(self, task, self.chooser)
