"""Learning order: when each sample became correctly predicted and stayed so."""

import torch
from torch import Tensor

NEVER = torch.iinfo(torch.int64).max


class LearningOrder:
    """The memorization paper's proxy: late means memorized (Kozal et al. 2025, Algorithm 1).

    `when` (N,) int64 by position in the training set: the time a sample was first predicted right
    without having been predicted wrong since; NEVER otherwise. Times count samples, so that samples
    of one batch are ordered as the batch is.
    """

    def __init__(self, n_train: int, device: torch.device):
        self.when = torch.full((n_train,), NEVER, device=device)
        self.n_samples = 0

    def reset(self) -> None:
        """Forget everything: a new task begins."""
        self.when.fill_(NEVER)
        self.n_samples = 0

    def update(self, index: Tensor, correct: Tensor) -> None:
        """After a prediction on samples `index` (n,): `correct` (n,) bool."""
        now = torch.arange(self.n_samples, self.n_samples + len(index), device=index.device)
        before = self.when[index]
        since = torch.where(before == NEVER, now, before)
        self.when[index] = torch.where(correct, since, NEVER)
        self.n_samples += len(index)

    def state_dict(self) -> dict:
        """For the checkpoint."""
        return {"when": self.when, "n_samples": self.n_samples}

    def load_state_dict(self, state: dict) -> None:
        """Continue from `state`."""
        self.when = state["when"].to(self.when.device)
        self.n_samples = state["n_samples"]
