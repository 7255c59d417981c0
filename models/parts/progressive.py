"""Progressive networks: a column of layers for each task, which reads those of earlier tasks."""

import copy
import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engram.backbones.backbone import Backbone
from engram.backbones.heads import OneTaskAtATime
from engram.utils.errors import UserError
from engram.utils.precision import in_own_precision

AFFINE = (nn.Linear, nn.Conv2d)


def stages_of(net: Backbone) -> list[nn.Sequential]:
    """The layers of a plain chain in parts that have one linear or convolutional layer each."""
    layers = getattr(net, "layers", None)
    if not isinstance(layers, nn.Sequential) or not any(isinstance(layer, AFFINE) for layer in layers):
        raise UserError("progressive networks need a plain chain of layers: use --backbone mlp or cnn")
    stages: list[list[nn.Module]] = [[]]
    for layer in layers:
        if isinstance(layer, AFFINE) and any(isinstance(other, AFFINE) for other in stages[-1]):
            stages.append([])
        stages[-1].append(layer)
    return [nn.Sequential(*stage) for stage in stages]


def fresh(net: Backbone) -> Backbone:
    """The same architecture with new weights, from the global generator."""
    new = copy.deepcopy(net)
    for module in new.modules():
        if isinstance(module, AFFINE):
            module.reset_parameters()
    new.init_weights()
    return new


class Adapter(nn.Module):
    """U σ(V a h) of Rusu et al., eq. 2: what one layer of a column reads from the columns before.

    `layer` is the column's own layer, (inputs) → (outputs). V brings the k earlier columns' activations,
    each times a learned scalar, to the size of one of them (1x1 for images); U is shaped like the layer,
    without a bias.
    """

    def __init__(self, layer: nn.Module, n_columns: int):
        super().__init__()
        self.scales = nn.Parameter(torch.ones(n_columns))
        if isinstance(layer, nn.Conv2d):
            size = layer.in_channels
            self.reduce = nn.Conv2d(n_columns * size, size, 1)
        else:
            size = layer.in_features
            self.reduce = nn.Linear(n_columns * size, size)
        self.lateral = copy.deepcopy(layer)
        self.lateral.bias = None
        self.lateral.reset_parameters()

    def forward(self, earlier: list[Tensor]) -> Tensor:
        """k activations (N, inputs, ...) → (N, outputs, ...)."""
        scaled = [scale * h for scale, h in zip(self.scales, earlier, strict=True)]
        return self.lateral(self.reduce(torch.cat(scaled, 1)).relu())


class Column(nn.Module):
    """The stages and the head of one task; all but the first have an adapter to the k columns before."""

    def __init__(self, net: Backbone, k: int):
        super().__init__()
        stages = [*stages_of(net), nn.Sequential(net.head.heads[k])]
        self.stages = nn.ModuleList(copy.deepcopy(stages))
        layers = [next(layer for layer in stage if isinstance(layer, AFFINE)) for stage in stages]
        self.adapters = nn.ModuleList(Adapter(layer, k) for layer in layers[1:] if k)

    def forward(self, x: Tensor, earlier: list[list[Tensor]]) -> list[Tensor]:
        """Activations after each stage, the logits last; earlier: what the columns before gave."""
        given = []
        for i, stage in enumerate(self.stages):
            for layer in stage:
                x = layer(x)
                if isinstance(layer, AFFINE) and i and earlier:
                    x = x + self.adapters[i - 1]([column[i - 1] for column in earlier])
            given.append(x)
        return given


class Columns(OneTaskAtATime, nn.Module):
    """All columns as a head: (N, C, H, W) images → (N, C) logits, tasks' classes side by side.

    With classes that tasks share, each sample gets the logits of its own task's column.
    """

    def __init__(self, net: Backbone, classes: list[tuple[int, ...]]):
        super().__init__()
        self.columns = nn.ModuleList(Column(fresh(net) if k else net, k) for k in range(len(classes)))
        self.n_shared = net.head.n_shared
        self.ends = list(itertools.accumulate(map(len, classes)))

    precision = "fp32"

    @in_own_precision
    def forward(self, x: Tensor, task_id: Tensor | None = None) -> Tensor:
        """Logits; inside `only` those of other tasks are 0 and later columns are not run."""
        last = len(self.columns) - 1 if self._only is None else self._only
        given: list[list[Tensor]] = []
        for column in self.columns[: last + 1]:
            given.append(column(x, given))
        if self.n_shared:
            if self._only is not None:
                return given[-1][-1]
            outputs = torch.stack([column[-1] for column in given], 1)
            return outputs.gather(1, task_id.view(-1, 1, 1).expand(-1, 1, self.n_shared)).squeeze(1)
        if self._only is None:
            return torch.cat([column[-1] for column in given], 1)
        logits = given[-1][-1]
        return F.pad(logits, (self.ends[last] - logits.shape[1], self.ends[-1] - self.ends[last]))

    def select(self, task_ids: tuple[int, ...]) -> None:
        """Let only these tasks' columns learn."""
        for i, column in enumerate(self.columns):
            column.requires_grad_(i in task_ids)


class ProgressiveNet(Backbone):
    """A column in the shape of `net` for each task; the first one is `net` itself, the others are new."""

    def __init__(self, net: Backbone, classes: list[tuple[int, ...]]):
        super().__init__()
        self.feature_dim = 0  # tasks share nothing but their inputs
        self.head = Columns(net, classes)

    def features(self, x: Tensor) -> Tensor:
        """The images themselves: columns share nothing but their inputs."""
        return x
