"""Snapshots: proxies computed from a network as it stands: losses, margins, gradients, curvature."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call, grad, vmap

from engram.memorization.proxies import Proxy, View, evaluating
from engram.utils import seeding

GRADIENTS_AT_ONCE = 32  # samples whose gradients of all weights are held together


class FinalLoss(Proxy):
    """Cross-entropy of a sample at its label."""

    summary = "cross-entropy"

    def rate(self, view: View) -> Tensor:
        """(n,) losses of the samples."""
        return view.losses.double()


class Margin(Proxy):
    """Largest logit of another class minus the logit of the label."""

    summary = "largest other logit minus the label's"

    def rate(self, view: View) -> Tensor:
        """(n,) margins of the samples, negated."""
        label = view.y.view(-1, 1)
        others = view.logits.scatter(1, label, -torch.inf).amax(1)
        return (others - view.logits.gather(1, label).squeeze(1)).double()


class El2n(Proxy):
    """‖softmax − one-hot label‖₂.

    Source: Paul et al. 2021, "Deep Learning on a Data Diet" (arXiv 2107.07075), definition 2.2; there
    at an early epoch, averaged over networks.
    """

    summary = "norm of the error vector (EL2N)"

    def rate(self, view: View) -> Tensor:
        """(n,) norms of the error vectors."""
        errors = view.logits.softmax(1) - F.one_hot(view.y, view.logits.shape[1])
        norms: Tensor = errors.norm(dim=1)
        return norms.double()


class Grand(Proxy):
    """Norm of the loss gradient with respect to all weights.

    Source: Paul et al. 2021 (arXiv 2107.07075), definition 2.1.
    """

    summary = "norm of the gradient of all weights (GraNd)"

    def rate(self, view: View) -> Tensor:
        """(n,) norms, exact, a few samples at a time."""
        weights = {name: p.detach() for name, p in view.net.named_parameters() if p.requires_grad}

        def loss(
            weights: dict[str, Tensor], x: Tensor, y: Tensor, task_id: Tensor, allowed: Tensor | None
        ) -> Tensor:
            logits = functional_call(view.net, weights, (x.unsqueeze(0), task_id.unsqueeze(0)))
            if allowed is not None:
                logits = logits.masked_fill(~allowed.unsqueeze(0), -torch.inf)
            return F.cross_entropy(logits, y.unsqueeze(0))

        gradients_of = vmap(grad(loss), in_dims=(None, 0, 0, 0, None if view.allowed is None else 0))
        norms = []
        with evaluating(view.net):
            for chunk in view.chunks(GRADIENTS_AT_ONCE):
                allowed = None if view.allowed is None else view.allowed[chunk]
                gradients = gradients_of(
                    weights, view.images(chunk), view.y[chunk], view.task_id[chunk], allowed
                )
                squares = [g.flatten(1).square().sum(1) for g in gradients.values()]
                norms.append(sum(squares[1:], squares[0]).sqrt())
        return torch.cat(norms).double()


class Curvature(Proxy):
    """How fast the input gradient of the loss turns around the image.

    Source: Garg, Ravikumar & Roy 2024, "Memorization Through the Lens of Curvature of Loss Function
    Around Samples" (arXiv 2307.05831), eq. 6: the mean over n Rademacher directions v of
    ‖∇ₓ L(x + h v) − ∇ₓ L(x)‖² / h², a Hutchinson estimate of the trace of the squared Hessian.
    Differs from the paper: taken at one moment, not averaged over epochs.
    """

    summary = "input-loss curvature (Garg)"
    h = 1e-3
    n_directions = 10

    def rate(self, view: View) -> Tensor:
        """(n,) curvatures around the samples' images."""
        generator = seeding.generator(0, "curvature", device=view.raw.device)
        curvatures = []
        with evaluating(view.net):
            for chunk in view.chunks():
                x = view.images(chunk)
                here = self._slope(view, chunk, x)
                total = torch.zeros(len(x), dtype=torch.float64, device=x.device)
                for _ in range(self.n_directions):
                    coin = torch.rand(x.shape, generator=generator, device=x.device) < 0.5
                    there = self._slope(view, chunk, x + self.h * torch.where(coin, 1.0, -1.0))
                    total = total + (there - here).flatten(1).double().square().sum(1)
                curvatures.append(total / (self.n_directions * self.h**2))
        return torch.cat(curvatures)

    @staticmethod
    def _slope(view: View, chunk: slice, x: Tensor) -> Tensor:
        """∇ₓ of every sample's own loss; in evaluation mode samples do not interact."""
        x = x.detach().requires_grad_()
        loss = F.cross_entropy(view.forward(x, chunk), view.y[chunk], reduction="sum")
        return torch.autograd.grad(loss, x)[0]
