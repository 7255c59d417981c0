"""Quadratic penalty Σ_i Ω_i (θ_i − θ*_i)² around an anchor: the regulariser of EWC, MAS and their kin."""

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

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
        """Scalar Σ Ω (θ − θ*)² + constant, differentiable once in the parameters."""
        names = self.importance
        quadratic = _Quadratic.apply(
            list(self.importance.values()),
            [self.anchor[name] for name in names],
            *(self.parameters[name] for name in names),
        )
        return quadratic + self.constant

    @torch.no_grad()
    def add_gradients(self, strength: float) -> None:
        """Add strength · ∂value/∂θ = 2 strength Ω (θ − θ*) to `.grad` of the parameters that have one."""
        names = [name for name in self.importance if self.parameters[name].grad is not None]
        if names:
            shift = foreach_sub([self.parameters[n].detach() for n in names], [self.anchor[n] for n in names])
            slopes = foreach_mul(shift, [self.importance[n] for n in names])
            foreach_add_([self.parameters[n].grad for n in names], slopes, alpha=2 * strength)

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


class _Quadratic(torch.autograd.Function):
    """Σ Ω (θ − θ*)² over lists of tensors; its gradient 2 Ω (θ − θ*) is kept from the forward pass."""

    @staticmethod
    def forward(ctx, importance: list[Tensor], anchor: list[Tensor], *parameters: Tensor) -> Tensor:
        shift = foreach_sub(parameters, anchor)
        ctx.slopes = foreach_mul(shift, importance)
        parts = [s.flatten().dot(d.flatten()) for s, d in zip(ctx.slopes, shift, strict=True)]
        return torch.stack(parts).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *foreach_mul(ctx.slopes, 2 * grad_output)
