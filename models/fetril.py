"""FeTrIL: past classes are features of new ones, moved to the old means; linear SVMs learn both.

Source: Petit et al. 2023, "FeTrIL: Feature Translation for Exemplar-Free Class-Incremental Learning" (WACV,
arXiv 2211.13131), eq. 1: f̂(past) = f(new) + μ(past) − μ(new), with the new class whose mean has the largest
cosine to the past mean. One linear SVM for each class against all others, on features of unit length, C = 1
and tolerance 10⁻⁴ (the authors' code); scikit-learn's LinearSVC, as there.
Differs from the paper: the encoder is not trained on the first task.
Differs from the authors' code: there the nearest new class is that of least Euclidean distance.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from engram.backbones.backbone import Backbone
from engram.models.method import Setup
from engram.models.parts.frozen import FrozenMethod
from engram.utils.config.options import OptionSet, option


@dataclass(frozen=True)
class Options(OptionSet):
    """These are the flags of FeTrIL."""

    svm_c: float = option(1.0, "C of the linear SVM: how much a sample's error counts", gt=0)


class FeTrIL(FrozenMethod):
    """Means of past classes, and the classifier trained at the end of a task."""

    options: Options
    scenarios = ("class-il",)

    def __init__(self, net: Backbone, options: Options, setup: Setup) -> None:
        super().__init__(net, options, setup)
        self.means = self.zeros(self.benchmark.n_classes, net.feature_dim)
        self.weights, self.bias = torch.zeros_like(self.means), torch.zeros_like(self.counts)

    def learn(self, features: Tensor, y: Tensor) -> None:
        """Train the classifier on the task's features and on translated ones of every past class."""
        features = features.to(self.dtype)
        new = y.unique()
        for label in new.tolist():
            self.means[label] = features[y == label].mean(0)
        seen = torch.nonzero(self.counts)[:, 0]
        past = seen[~torch.isin(seen, new)]
        nearest = new[(F.normalize(self.means[past]) @ F.normalize(self.means[new]).T).argmax(1)]
        rows, labels = [features], [y]
        for old, source in zip(past.tolist(), nearest.tolist(), strict=True):
            translated = features[y == source] + self.means[old] - self.means[source]
            rows.append(translated)
            labels.append(y.new_full((len(translated),), old))
        self.fit(F.normalize(torch.cat(rows)), torch.cat(labels))

    def fit(self, features: Tensor, y: Tensor) -> None:
        """One SVM for each class against the rest."""
        from sklearn.svm import LinearSVC  # a second to import, and only this method does

        inputs, labels = features.cpu().numpy(), y.cpu().numpy()
        for label in np.unique(labels):
            svm = LinearSVC(C=self.options.svm_c, tol=1e-4, dual=False).fit(inputs, labels == label)
            self.weights[label] = torch.from_numpy(svm.coef_[0])
            self.bias[label] = float(svm.intercept_[0])

    def scores(self, features: Tensor) -> Tensor:
        """(N, C) decision values of the SVMs."""
        return F.normalize(features) @ self.weights.T + self.bias
