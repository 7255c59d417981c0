"""ER-ACE whose memory is chosen by memorization when a task ends (maer_er_ace).

Source: Kozal et al. 2025 (arXiv 2505.17664), section 5.2, official code `maer_er_ace`: ER-ACE (see
`er_ace`) with a plain reservoir; at the end of a task its slots go to the samples that `--buffer_policy`
takes, see `maer`.
"""

from dataclasses import dataclass

from engram.models import er_ace
from engram.models.parts.memorization import MemorizationOptions, WatchedReplay


@dataclass(frozen=True)
class Options(er_ace.Options, MemorizationOptions):
    """These are the flags of maer_er_ace."""


class MAERERACE(WatchedReplay, er_ace.ERACE):
    """ER-ACE whose memory goes to the samples that the policy chooses."""

    options: Options
    eager_step = ""
