"""Similarity of samples: cosines between the gradients of their losses, exact and vectorised."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from engram.backbones.heads import TaskHeads
from engram.models.method import Method
from engram.models.parts.inference import evaluating
from engram.models.parts.inner_steps import Logits
from engram.models.parts.layers import fits, known_layers, watching
from engram.models.rehearsal import Examples
from engram.utils.precision import in_float32

# Floats of per-sample gradients that are held at once.
CHUNK_FLOATS = {"cpu": 16 << 20, "cuda": 1 << 28}


class GradientSimilarity:
    """Cosines between the gradients of single samples' losses, for the network of one method as it is."""

    def __init__(self, method: Method) -> None:
        self.net, self.logits, self.parameters = method.net, method.logits, method.trainable()

    def cosines(self, samples: Examples, others: Examples) -> Tensor:
        """(n + 1, m) cosine similarity of ∇θ CE of n samples with that of each of m others, in eval mode.

        The last row belongs to the mean of the n gradients, which is that of the batch. 0 where a gradient
        is 0.
        """
        layers = known_layers(self.net, self.parameters) or {}
        called = not isinstance(self.net.head, TaskHeads)  # these put their layers' weights together instead
        with evaluating(self.net), in_float32(self.net):
            if called and layers and all(isinstance(layer, nn.Linear) for layer in layers.values()):
                cosines = self.cosines_linear(layers, samples, others)
                if cosines is not None:
                    return cosines
            return self.cosines_any(samples, others)

    def cosines_any(self, samples: Examples, others: Examples) -> Tensor:
        """For any architecture: gradients by `vmap(grad)`, those of the others a chunk at a time."""
        network = Logits(self.net, self.logits)
        values = {f"net.{name}": p.detach() for name, p in self.parameters.items()}

        def loss(values: dict[str, Tensor], x: Tensor, y: Tensor, task_id: Tensor) -> Tensor:
            return F.cross_entropy(functional_call(network, values, (x[None], task_id[None])), y[None])

        def gradients(chunk: tuple[Tensor, ...]) -> Tensor:
            of_name = vmap(grad(loss), in_dims=(None, 0, 0, 0))(values, *chunk)
            return torch.cat([of_name[name].flatten(1) for name in values], 1)

        n_parameters = sum(p.numel() for p in self.parameters.values())
        size = max(1, CHUNK_FLOATS[samples.y.device.type] // n_parameters)
        rows, total = [], torch.zeros(1, n_parameters, device=samples.y.device)
        for chunk in zip(*(field.split(size) for field in samples), strict=True):
            rows.append(gradients(chunk))
            total = total + rows[-1].sum(0)
        rows = [F.normalize(row, dim=1) for row in (*rows, total)]
        columns = (gradients(chunk) for chunk in zip(*(f.split(size) for f in others), strict=True))
        columns = (F.normalize(column, dim=1) for column in columns)
        return torch.cat([torch.cat([row @ column.T for row in rows]) for column in columns], 1)

    def cosines_linear(
        self, layers: dict[str, nn.Linear], samples: Examples, others: Examples
    ) -> Tensor | None:
        """For fully connected networks, without making the gradients; None where layers see several tokens.

        A layer z = W a + b has the gradients δ aᵀ and δ, δ = ∂CE/∂z: the inner product of two samples' is
        (δ · δ')(a · a' + 1), summed over layers. Those among the n samples give the norm of their sum.
        """
        n = len(samples.y)
        x, y, task_id = (torch.cat(pair) for pair in zip(samples, others, strict=True))
        inputs, outputs = {}, {}

        def note(name: str, layer: nn.Module, args: tuple, output: Tensor) -> None:
            assert name not in inputs, f"{name}: the rank-one rule needs one plain use"
            inputs[name], outputs[name] = args[0].detach(), output

        with watching(layers, note):
            loss = F.cross_entropy(self.logits(x, task_id), y, reduction="sum")
        if not all(fits(layers[name], a) for name, a in inputs.items()):
            return None
        deltas = torch.autograd.grad(loss, list(outputs.values()))
        inner, square = torch.zeros(n, len(y) - n, device=x.device), torch.zeros(len(y), device=x.device)
        among = torch.zeros((), device=x.device)
        for name, delta in zip(outputs, deltas, strict=True):
            a, bias = inputs[name], layers[name].bias is not None
            inner += (delta[:n] @ delta[n:].T) * (a[:n] @ a[n:].T + bias)
            among += ((delta[:n] @ delta[:n].T) * (a[:n] @ a[:n].T + bias)).sum()
            square += delta.square().sum(1) * (a.square().sum(1) + bias)
        norm = square.sqrt().clamp_min(1e-12)
        norm_of_sum = among.clamp_min(0).sqrt().clamp_min(1e-12)
        return torch.cat((inner / norm[:n].view(-1, 1), inner.sum(0, keepdim=True) / norm_of_sum)) / norm[n:]
