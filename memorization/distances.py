"""Distances: proxies from penultimate features: how far a sample is from the mean of its class.

Adversarial distances (Carlini-Wagner) are left out: libraries of attacks are heavy, and on all 50,000
CIFAR-100 images the memorization paper's own vector correlates by .01 with the scores.
"""

import torch
from torch import Tensor

from engram.memorization.proxies import Proxy, View
from engram.utils.buffers import selection

SHRINKAGE = 1e-3  # of the covariance towards a multiple of the identity, which makes it invertible


def centred(view: View) -> tuple[Tensor, Tensor]:
    """Features minus the mean of their class, and that mean for each sample; (n, D) float64."""
    features = view.features.double()
    classes, class_of = view.y.unique(return_inverse=True)
    counts = torch.bincount(class_of, minlength=len(classes)).view(-1, 1)
    sums = features.new_zeros(len(classes), features.shape[1]).index_add_(0, class_of, features)
    means = (sums / counts)[class_of]
    return features - means, means


class L2Distance(Proxy):
    """Euclidean distance to the class mean."""

    summary = "Euclidean distance to the class mean"

    def rate(self, view: View) -> Tensor:
        """(n,) distances of the samples."""
        distances: Tensor = centred(view)[0].norm(dim=1)
        return distances


class CosineDistance(Proxy):
    """1 − cosine of the angle between the sample's features and its class mean."""

    summary = "cosine distance to the class mean"

    def rate(self, view: View) -> Tensor:
        """(n,) distances in [0, 2]."""
        _, means = centred(view)
        return 1 - torch.cosine_similarity(view.features.double(), means, dim=1)


class MahalanobisDistance(Proxy):
    """sqrt(dᵀ Σ⁻¹ d), d the distance to the class mean, Σ the pooled covariance within classes."""

    summary = "Mahalanobis distance to the class mean"

    def rate(self, view: View) -> Tensor:
        """(n,) distances of the samples."""
        away, _ = centred(view)
        covariance = away.T @ away / len(away)
        covariance.diagonal().add_(SHRINKAGE * covariance.trace() / len(covariance) + 1e-12)
        return (away * torch.linalg.solve(covariance, away.T).T).sum(1).clamp_min(0).sqrt()


class NormalisedMahalanobis(MahalanobisDistance):
    """Mahalanobis distance divided by its mean over the class: classes of any spread become comparable."""

    summary = "Mahalanobis distance over its class's mean"

    def rate(self, view: View) -> Tensor:
        """(n,) ratios, 1 on average in each class."""
        distance = super().rate(view)
        classes, class_of = view.y.unique(return_inverse=True)
        sums = distance.new_zeros(len(classes)).index_add_(0, class_of, distance)
        means = sums / torch.bincount(class_of, minlength=len(classes))
        return distance / means[class_of].clamp_min(1e-12)


class HerdingRank(Proxy):
    """Rank at which iCaRL's herding would choose the sample, over the size of its class.

    Source: Rebuffi et al. 2017 (iCaRL, arXiv 1611.07725), Algorithm 4, on L2-normalised features: each
    choice brings the mean of those chosen closest to the class mean.
    """

    summary = "rank in iCaRL's herding"

    def rate(self, view: View) -> Tensor:
        """(n,) ranks in [0, 1)."""
        features = torch.nn.functional.normalize(view.features.double(), dim=1)
        ranks = features.new_empty(len(features))
        for label in view.y.unique():
            members = torch.nonzero(view.y == label).view(-1)
            order = selection.herding(features[members], len(members))
            rank = torch.arange(len(members), device=ranks.device).double()
            ranks[members[order]] = rank / len(members)
        return ranks
