"""Trackers: proxies that watch training: when a sample was learned, how often it was forgotten.

They cost next to nothing, since they read the logits of the training step itself (augmented images,
training mode), and they know a sample as of its last appearance.
"""

from functools import partial

import torch
from torch import Tensor

from engram.memorization.proxies import Proxy, View
from engram.utils.transfer import decide


class LearningOrder(Proxy):
    """Time since which a sample has been predicted right; never: +inf.

    Source: Kozal et al. 2025 (arXiv 2505.17664), Algorithm 1: append to a list when right, remove when
    wrong; late means memorized. Times count samples from 1, so those of one batch are ordered as
    it is.
    """

    summary = "training iteration since which the sample is right (the memorization paper's)"

    def reset(self) -> None:
        """Forget all times: no sample has been learned."""
        self.when = torch.full((self.n_train,), torch.inf, dtype=torch.float64, device=self.device)
        self.n_samples = 0

    def update(self, index: Tensor, logits: Tensor, y: Tensor) -> None:
        """Note the time of samples that are right and were not; forget it where they are wrong."""
        self.note(index, logits.argmax(1) == y)

    def note(self, index: Tensor, correct: Tensor) -> None:
        """After predictions on `index` (n,): `correct` (n,) bool."""
        now = decide(partial(self._times, len(index)), self.device)
        since = self.when.index_select(0, index).minimum(now)  # what was known is earlier, or +inf
        self.when.index_copy_(0, index, since.masked_fill_(correct.logical_not(), torch.inf))

    def _times(self, n: int) -> Tensor:
        """(n,) the times of the next samples, which are counted."""
        self.n_samples += n
        return torch.arange(self.n_samples - n + 1, self.n_samples + 1, dtype=torch.float64)

    def rate(self, view: View) -> Tensor:
        """(n,) times since which the samples are right."""
        return self.when[view.index]


class FirstLearnt(Proxy):
    """Epoch (the sample's own appearances, from 0) at which a sample is first right; never: +inf."""

    summary = "epoch at which the sample is first right"

    def reset(self) -> None:
        """Forget all appearances: no sample has been seen."""
        self.seen = torch.zeros(self.n_train, dtype=torch.float64, device=self.device)
        self.first = torch.full_like(self.seen, torch.inf)

    def update(self, index: Tensor, logits: Tensor, y: Tensor) -> None:
        """Count appearances; keep the first that is right."""
        right = logits.argmax(1) == y
        self.first[index] = torch.where(right, self.first[index].minimum(self.seen[index]), self.first[index])
        self.seen[index] += 1

    def rate(self, view: View) -> Tensor:
        """(n,) epochs at which the samples were first right."""
        return self.first[view.index]


class ForgettingEvents(Proxy):
    """Number of times a sample goes from right to wrong; never right: +inf.

    Source: Toneva et al. 2019 (arXiv 1812.05159), section 3.
    """

    summary = "times the sample goes from right to wrong (Toneva)"

    def reset(self) -> None:
        """Forget all appearances: no sample has been seen."""
        self.events = torch.zeros(self.n_train, dtype=torch.float64, device=self.device)
        self.right = torch.zeros(self.n_train, dtype=torch.bool, device=self.device)
        self.ever = self.right.clone()

    def update(self, index: Tensor, logits: Tensor, y: Tensor) -> None:
        """Compare with the sample's previous appearance."""
        right = logits.argmax(1) == y
        self.events[index] += self.right[index] & ~right
        self.right[index] = right
        self.ever[index] |= right

    def rate(self, view: View) -> Tensor:
        """(n,) numbers of times that samples were forgotten."""
        return torch.where(self.ever[view.index], self.events[view.index], torch.inf)


class CumulativeCorrectness(Proxy):
    """Share of a sample's appearances at which it was predicted wrong.

    Source: Jiang et al. 2021 (C-score, arXiv 2002.03206), section 5: learning speed as cumulative
    accuracy along training, their cheap stand-in for the C-score; here 1 minus it.
    """

    summary = "share of appearances at which the sample is wrong (C-score's learning speed)"

    def reset(self) -> None:
        """Forget all appearances: no sample has been seen."""
        self.seen = torch.zeros(self.n_train, dtype=torch.float64, device=self.device)
        self.wrong = torch.zeros_like(self.seen)

    def update(self, index: Tensor, logits: Tensor, y: Tensor) -> None:
        """Count the appearances of the samples and how many of them were wrong."""
        self.seen[index] += 1
        self.wrong[index] += (logits.argmax(1) != y).double()

    def rate(self, view: View) -> Tensor:
        """(n,) shares of wrong appearances; 1 for samples that never appeared."""
        seen = self.seen[view.index]
        return torch.where(seen > 0, self.wrong[view.index] / seen.clamp_min(1), 1.0)
