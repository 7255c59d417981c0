"""Path integral: how much each parameter's moves have lowered the loss, ω_i = −Σ_steps g_i Δθ_i."""

import torch
from torch import Tensor, nn

from engram.utils.compat import foreach_addcmul_, foreach_sub, foreach_zero_


class PathIntegral:
    """Running ω by parameter name; `note` after the backward pass, `add` after the optimizer's step.

    g is the gradient that `.grad` holds at `note`: call it before a penalty's gradient is added.
    """

    def __init__(self, parameters: dict[str, nn.Parameter]):
        self.parameters = parameters
        self.value = {name: torch.zeros_like(p) for name, p in parameters.items()}
        self._noted: tuple[list[str], list[Tensor], list[Tensor]] | None = None

    def reset(self) -> None:
        """Set ω to zero: a new path begins."""
        foreach_zero_(list(self.value.values()))

    @torch.no_grad()
    def note(self) -> None:
        """Keep gradients and parameters as they are before the step; frozen parameters have none."""
        names = [name for name, p in self.parameters.items() if p.grad is not None]
        gradients = [self.parameters[name].grad.clone() for name in names]
        self._noted = names, gradients, [self.parameters[name].detach().clone() for name in names]

    @torch.no_grad()
    def add(self) -> None:
        """Add −g Δθ of the step that was made since `note`."""
        names, gradients, before = self._noted
        moves = foreach_sub(before, [self.parameters[name].detach() for name in names])
        foreach_addcmul_([self.value[name] for name in names], gradients, moves)
        self._noted = None

    def state_dict(self) -> dict:
        """For the checkpoint: tensors by parameter name."""
        return dict(self.value)

    def load_state_dict(self, state: dict) -> None:
        """Continue where `state` was taken."""
        self.value = {name: t.to(self.value[name].device) for name, t in state.items()}
