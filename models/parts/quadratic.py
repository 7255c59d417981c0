"""Quadratic penalty Σ_i Ω_i (θ_i − θ*_i)² around an anchor: the regulariser of EWC, MAS and their kin."""

import torch
from torch import Tensor, nn

from engram.utils.compat import foreach_add_, foreach_mul, foreach_sub


class Quadratic:
    """One weighted quadratic, or a sum of several in the memory of one.

    importance, anchor: name → tensor like the parameter. constant: scalar, the part of a sum of
    quadratics that does not depend on θ. Empty until the first `set` or `add`.
    """

    def __init__(self, parameters: dict[str, nn.Parameter]):
        self.parameters = parameters
        self.importance: dict[str, Tensor] = {}
        self.anchor: dict[str, Tensor] = {}
        self.constant: Tensor | None = None

    def __bool__(self) -> bool:
        return bool(self.importance)

    def value(self) -> Tensor:
        """Scalar Σ Ω (θ − θ*)² + constant; a step takes `add_gradients`, which needs far fewer kernels."""
        terms = [
            (omega * (self.parameters[name] - self.anchor[name]).square()).sum()
            for name, omega in self.importance.items()
        ]
        return torch.stack(terms).sum() + self.constant

    @torch.no_grad()
    def add_gradients(self, strength: float | Tensor, fused: bool = False) -> None:
        """Add strength · ∂value/∂θ = 2 strength Ω (θ − θ*) to `.grad` of the parameters that have one.

        strength: a number, or a scalar on the device. fused: multiply by the number and add in one operation,
        which rounds once: the published numbers of SI and RWalk are made so, those of EWC, MAS and IMM not.
        """
        names = [name for name in self.importance if self.parameters[name].grad is not None]
        if not names:
            return
        shift = foreach_sub([self.parameters[n].detach() for n in names], [self.anchor[n] for n in names])
        slopes = foreach_mul(shift, [self.importance[n] for n in names])
        gradients = [self.parameters[n].grad for n in names]
        if fused:
            foreach_add_(gradients, slopes, alpha=2 * strength)
        else:
            foreach_add_(gradients, foreach_mul(slopes, 2 * strength))

    @torch.no_grad()
    def set(self, importance: dict[str, Tensor]) -> None:
        """The quadratic with this importance, anchored at the current parameters."""
        self.importance = dict(importance)
        self.anchor = {name: self.parameters[name].detach().clone() for name in importance}
        self.constant = torch.zeros((), device=next(iter(importance.values())).device)

    @torch.no_grad()
    def add(self, importance: dict[str, Tensor]) -> None:
        """Add the quadratic with this importance, anchored at the current parameters.

        A sum of quadratics is one around the mean of the anchors, weighted by importance:
        Ω(θ−a)² + Ω'(θ−a')² = (Ω+Ω')(θ−m)² + ΩΩ'/(Ω+Ω') (a−a')², m = (Ωa + Ω'a')/(Ω+Ω').
        """
        if not self:
            return self.set(importance)
        for name, new in importance.items():
            old, anchor = self.importance[name], self.anchor[name]
            total = old + new
            share = torch.where(total > 0, new / total.clamp_min(torch.finfo(new.dtype).tiny), 0)
            shift = self.parameters[name] - anchor
            self.constant = self.constant + (old * share * shift.square()).sum()
            self.anchor[name] = anchor + share * shift
            self.importance[name] = total

    def state_dict(self) -> dict:
        """For the checkpoint: tensors by parameter name."""
        return {
            "importance": dict(self.importance),
            "anchor": dict(self.anchor),
            "constant": self.constant,
        }

    def load_state_dict(self, state: dict) -> None:
        """Continue where `state` was taken."""
        for name in ("importance", "anchor"):
            saved = {n: t.to(self.parameters[n].device) for n, t in state[name].items()}
            setattr(self, name, saved)
        constant = state["constant"]
        self.constant = constant if constant is None else constant.to(next(iter(self.anchor.values())).device)
