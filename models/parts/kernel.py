"""A compiled CPU kernel for fully connected ReLU networks: single-sample SGD steps in microseconds.

An eager step of MER's network (784-100-100-10) costs hundreds of microseconds, nearly all of it dispatch;
here it costs a few, equal to autograd up to float32 rounding. The methods' own files stay the reference:
the kernel replaces them where `fits` says that it can.
"""

import torch
from torch import Tensor, nn

from engram.backbones.heads import SharedHead
from engram.backbones.mlp import MLP
from engram.models.parts import kernel_layout


class MLPKernel:
    """Plain SGD on the parameters of an MLP, in place, in the calling thread alone.

    The network's parameters become views of one vector (see `models.parts.kernel_layout`), in which each
    layer's weights lie input by input: same shapes and values, other strides. Parameters may be loaded,
    changed or replaced (`p.data = ...`) between calls, and a checkpoint needs nothing of the kernel.

    Everywhere x is (n, ...), normalised float32 or, with a `lookup`, raw uint8, and y is (n,) int64.
    lookup: (256,) float32, what each pixel value becomes. Zero inputs cost nothing.
    """

    def __init__(self, net: MLP, lookup: Tensor | None = None):
        from engram.models.parts import kernel_loops  # loads Numba, so only where it is used

        self.loops, self.parameters = kernel_loops, list(net.parameters())
        weights = self.parameters[::2]
        self.layers = kernel_layout.layout([weights[0].shape[1], *(len(w) for w in weights)])
        self.n_inputs = weights[0].shape[1]
        self.n_parameters = sum(p.numel() for p in self.parameters)
        if lookup is not None and (lookup.shape != (256,) or lookup.dtype != torch.float32):
            raise ValueError(f"a lookup table has 256 float32 entries, this one {tuple(lookup.shape)}")
        self.takes_raw, self.no_lookup = lookup is not None, torch.empty(0).numpy()
        self.lookup = self.no_lookup if lookup is None else lookup.contiguous().numpy()
        self.vector, self.copies = torch.empty(self.n_parameters), torch.empty(2, self.n_parameters).numpy()
        self.room, self.located = 0, []

    @staticmethod
    def fits(net: nn.Module, device: torch.device | str) -> bool:
        """Whether the kernel can train `net`: an MLP with a shared head, all of it float32 on the CPU."""
        return (
            torch.device(device).type == "cpu"
            and type(net) is MLP  # a subclass may compute something else
            and type(net.head) is SharedHead
            and all(p.is_cpu and p.dtype == torch.float32 and p.requires_grad for p in net.parameters())
        )

    def sequence(self, x: Tensor, y: Tensor, lr: float, scale: Tensor | None = None) -> Tensor:
        """n single-sample steps, one after the other: θ ← θ − lr · scale_i · ∇CE(f(x_i), y_i).

        `scale` (n,) multiplies the losses, by default 1. Returns the (n,) losses, unscaled, each before
        its step.
        """
        return self.reptile(x, y, lr, scale=scale)

    def reptile(
        self,
        x: Tensor,
        y: Tensor,
        lr: float,
        n_batches: int = 1,
        beta: float = 1.0,
        gamma: float = 1.0,
        scale: Tensor | None = None,
    ) -> Tensor:
        """MER for one example: `n_batches` equal runs of `sequence`, each followed by a Reptile step.

        θ ← θ' + beta (θ − θ') after each batch, θ' being its start; after all of them the same with
        gamma and the start of the first. Returns the (n,) losses.
        """
        if n_batches < 1 or len(y) % n_batches:
            raise ValueError(f"{len(y)} samples do not make {n_batches} batches of equal size")
        x, y, scale, lookup = self._checked(x, y, scale)
        losses = torch.empty(len(y))
        scale_address = 0 if scale is None else scale.data_ptr()
        addresses = (x.data_ptr(), y.data_ptr(), scale_address, losses.data_ptr())
        self.loops.reptile(
            self._parameters(), self.copies, self.layers, self._work(1), *addresses, len(y), lookup,
            float(lr), n_batches, float(beta), float(gamma),
        )  # fmt: skip
        return losses

    def step(self, x: Tensor, y: Tensor, weights: Tensor, lr: float) -> Tensor:
        """One SGD step on Σ_i weights_i CE_i, `weights` (n,); returns that loss, before the step."""
        x, y, weights, lookup = self._checked(x, y, weights)
        addresses = (x.data_ptr(), y.data_ptr(), weights.data_ptr())
        vector, space = self._parameters(), self._work(len(y))
        loss = self.loops.step(vector, self.layers, space, *addresses, len(y), lookup, float(lr))
        return torch.tensor(loss, dtype=torch.float32)

    def gradients(self, x: Tensor, y: Tensor, weights: Tensor, counts: list[int]) -> Tensor:
        """(T, P) gradients of Σ_i weights_i CE_i over T parts, of `counts` samples, one after the other.

        P in the order of `net.parameters()`, each tensor row by row.
        """
        x, y, weights, lookup = self._checked(x, y, weights)
        if sum(counts) != len(y) or min(counts, default=0) < 0:
            raise ValueError(f"parts of {counts} samples do not make {len(y)}")
        out = torch.empty(len(counts), self.n_parameters)
        addresses = (x.data_ptr(), y.data_ptr(), weights.data_ptr())
        vector, space, parts = self._parameters(), self._work(max(counts, default=0)), torch.tensor(counts)
        self.loops.gradients(
            vector, self.copies[0], self.layers, space, *addresses, len(y), lookup,
            parts.long().numpy(), out.numpy(),
        )  # fmt: skip
        return out

    def state_dict(self) -> dict:
        """Empty: the parameters are the network's."""
        return {}

    def load_state_dict(self, state: dict) -> None:
        """Do nothing: the parameters are loaded with the network."""

    def _checked(self, x: Tensor, y: Tensor, weights: Tensor | None):
        """The tensors, laid out as compiled code reads them, and the table for x; it takes bare addresses.

        The caller holds on to what is returned until the call is over.
        """
        n, raw = len(y), x.dtype == torch.uint8
        if not (x.dtype == torch.float32 or (raw and self.takes_raw)) or y.dtype != torch.int64:
            allowed = "float32 or uint8" if self.takes_raw else "float32 (there is no lookup table)"
            raise ValueError(f"x must be {allowed} and y int64, not {x.dtype} and {y.dtype}")
        if x.numel() != n * self.n_inputs or len(x) != n or y.dim() != 1:
            shapes = f"{tuple(x.shape)} and {tuple(y.shape)}"
            raise ValueError(f"x and y must be (n, {self.n_inputs}) and (n,), not {shapes}")
        if weights is not None:
            if weights.shape != y.shape or weights.dtype != torch.float32:
                raise ValueError(f"one float32 weight per sample: ({n},), not {tuple(weights.shape)}")
            weights = weights.contiguous()
        if not (x.is_cpu and y.is_cpu and (weights is None or weights.is_cpu)):
            raise ValueError("the kernel reads the CPU's memory only")
        return x.contiguous(), y.contiguous(), weights, self.lookup if raw else self.no_lookup

    def _parameters(self):
        """The vector of all parameters; where a parameter was replaced, they are put into it again."""
        if self.located != [p.data_ptr() for p in self.parameters]:
            at = 0
            for p in self.parameters:
                view = self.vector[at : at + p.numel()].view(p.shape[::-1]).t()
                p.data = view.copy_(p.data.clone())  # it may lie in the vector already, as an old view
                at += p.numel()
            self.located = [p.data_ptr() for p in self.parameters]
        return self.vector.numpy()

    def _work(self, n: int) -> tuple:
        """Space for `n` samples at once, kept between calls: the fields of a `Work`."""
        if n > self.room or not self.room:
            self.room = max(n, 1, 2 * self.room)
            self.work = tuple(kernel_layout.space(self.layers, self.room))
        return self.work
