"""Direct layers: a perceptron's layers called without the modules around them.

For a batch of ten, `nn.Module.__call__` takes longer than a small layer's arithmetic: with it a training step
is a tenth longer. `DirectLayers` calls the same operations on the same parameters, so outputs and gradients
are equal bit for bit. One node of autograd for all layers, in Python, was slower than PyTorch's own graph.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engram.backbones.heads import SharedHead
from engram.utils import compat


class DirectLayers:
    """`net.layers`, a Sequential of Flatten, Linear, ReLU, Linear, ReLU, ..., and `net.head`.

    Where a module is of another kind or watched by hooks, the modules are to be called. Hooks, replaced
    modules and parameters are noticed at the next call; a `forward` that is set on a module later is not.
    """

    def __init__(self, net: nn.Module):
        self.of_net, self.of_layers = compat.submodules(net), compat.submodules(net.get_submodule("layers"))
        self.hooks = compat.hook_counter()
        self.checked: list[nn.Module | None] = []
        self.checked_at = 0
        self.hidden: list[dict[str, Tensor]] | None = None  # parameters by layer; None: call the modules
        self.head: dict[str, Tensor] | None = None

    def features(self, x: Tensor) -> Tensor | None:
        """(N, ...) → (N, last hidden size), or None where the modules are to be called."""
        if self._modules() != self.checked or self.checked_at != self.hooks.next_id:
            self._check()
        if self.hidden is None:
            return None
        x = x.flatten(1)
        for layer in self.hidden:
            x = torch.relu(F.linear(x, layer["weight"], layer["bias"]))
        return x

    def logits(self, x: Tensor, task_id: Tensor | None) -> Tensor | None:
        """(N, ...), (N,) → (N, C), or None where the modules are to be called."""
        features = self.features(x)
        if features is None:
            return None
        if self.head is None:
            logits: Tensor = self.of_net["head"](features, task_id)
            return logits
        return F.linear(features, self.head["weight"], self.head["bias"])

    def _modules(self) -> list[nn.Module | None]:
        return [*self.of_layers.values(), self.of_net["layers"], self.of_net.get("head")]

    def _check(self) -> None:
        """Look at the kinds of all modules and for hooks on them."""
        self.of_layers = compat.submodules(self.of_net["layers"])
        self.checked, self.checked_at = self._modules(), self.hooks.next_id
        *layers, sequence, head = self.checked
        kinds = [type(layer) for layer in layers]
        known = kinds == [nn.Flatten, *[nn.Linear, nn.ReLU] * (len(layers) // 2)]
        plain = known and all(map(compat.runs_as_written, [*layers, sequence]))
        self.hidden = [compat.parameters(layer) for layer in layers[1::2]] if plain else None
        plain = type(head) is SharedHead and compat.runs_as_written(head)
        self.head = compat.parameters(head) if plain else None
