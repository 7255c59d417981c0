"""A compiled CPU kernel for fully connected ReLU networks: single-sample SGD steps in microseconds.

An eager step of MER's network (784-100-100-10) costs hundreds of microseconds, nearly all of it dispatch;
here it costs about five, equal to autograd up to float32 rounding. The methods' own files stay the
reference: this takes their place where `fits` says that it can.
"""

import torch
from torch import Tensor, nn

from backbones.heads import SharedHead
from backbones.mlp import MLP

FLOAT_BYTES = 4


class MLPKernel:
    """Plain SGD on the parameters of an MLP, in place, in the calling thread alone.

    Everywhere x is (n, ...), normalised float32 or raw uint8, and y is (n,) int64. Raw pixels are
    normalised by `lookup`, (256,) float32: what each pixel value becomes; by default value · (1 / 255),
    bit for bit `Augment().normalise`. Zero inputs cost nothing. A call ends with the network's own
    tensors up to date and keeps nothing for the next: parameters may be loaded, changed or moved
    (`p.data = ...`) between calls, and a checkpoint needs nothing of the kernel.
    """

    def __init__(self, net: MLP, lookup: Tensor | None = None):
        from models.parts import compiled  # loads Numba, so only where it is used

        self.compiled, self.parameters = compiled, list(net.parameters())
        weights = self.parameters[::2]
        self.sizes = torch.tensor([weights[0].shape[1], *(len(w) for w in weights)]).numpy()
        lengths = torch.tensor([p.numel() for p in self.parameters])
        self.n_inputs, self.n_parameters = weights[0].shape[1], int(lengths.sum())
        self.offsets = (FLOAT_BYTES * (lengths.cumsum(0) - lengths)).numpy()
        lookup = torch.arange(256) * (1 / torch.tensor(255.0)) if lookup is None else lookup
        self.lookup, self.no_lookup = lookup.to(torch.float32).contiguous().numpy(), torch.empty(0).numpy()
        if len(self.lookup) != 256:
            raise ValueError(f"a lookup table has 256 entries, this one {len(self.lookup)}")
        self.space = torch.empty(3, self.n_parameters).numpy()
        self.located: list[int] = []

    @staticmethod
    def fits(net: nn.Module, device: torch.device | str) -> bool:
        """Whether the kernel can train `net`: an MLP with a shared head, all of it float32 on the CPU."""
        return (
            torch.device(device).type == "cpu"
            and type(net) is MLP  # a subclass may compute something else
            and type(net.head) is SharedHead
            and all(p.is_cpu and p.dtype == torch.float32 for p in net.parameters())
            and all(p.is_contiguous() and p.requires_grad for p in net.parameters())
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
        data = (x.data_ptr(), y.data_ptr(), scale_address, losses.data_ptr())
        self.compiled.sequence(
            self._addresses(), self.sizes, self.space, data, len(y), lookup,
            float(lr), n_batches, float(beta), float(gamma),
        )  # fmt: skip
        return losses

    def step(self, x: Tensor, y: Tensor, weights: Tensor, lr: float) -> Tensor:
        """One SGD step on Σ_i weights_i CE_i, `weights` (n,); returns that loss, before the step."""
        return self._accumulate(x, y, weights, self.offsets[:0], float(lr))

    def gradient(self, x: Tensor, y: Tensor, weights: Tensor, out: Tensor | None = None) -> Tensor:
        """(P,) gradient of Σ_i weights_i CE_i in the order of `net.parameters()`; `out` is overwritten."""
        out = torch.zeros(self.n_parameters) if out is None else out.zero_()
        if out.shape != (self.n_parameters,) or out.dtype != torch.float32 or not out.is_contiguous():
            raise ValueError(f"out must be contiguous float32 of shape ({self.n_parameters},)")
        self._accumulate(x, y, weights, self.offsets + out.data_ptr(), 0.0)
        return out

    def state_dict(self) -> dict:
        """Empty: the parameters are the network's."""
        return {}

    def load_state_dict(self, state: dict) -> None:
        """Nothing to load."""

    def _accumulate(self, x: Tensor, y: Tensor, weights: Tensor, outputs, lr: float) -> Tensor:
        x, y, weights, lookup = self._checked(x, y, weights)
        data = (x.data_ptr(), y.data_ptr(), weights.data_ptr())
        loss = self.compiled.accumulate(
            self._addresses(), outputs, self.sizes, self.space, data, len(y), lookup, lr
        )
        return torch.tensor(loss)

    def _checked(self, x: Tensor, y: Tensor, weights: Tensor | None):
        """The tensors, laid out as compiled code reads them, and the table for x; it takes bare addresses.

        The caller holds on to what is returned until the call is over.
        """
        n, raw = len(y), x.dtype == torch.uint8
        if not (raw or x.dtype == torch.float32) or y.dtype != torch.int64:
            raise ValueError(f"x must be float32 or uint8 and y int64, not {x.dtype} and {y.dtype}")
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

    def _addresses(self):
        """(2L,) int64 places of the parameters now: `load_state_dict` keeps them, `p.data = ...` does not."""
        located = [p.data_ptr() for p in self.parameters]
        if located != self.located:
            self.located, self.addresses = located, torch.tensor(located).numpy()
        return self.addresses
