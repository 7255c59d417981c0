"""Multi-layer perceptron with ReLU; 784-100-100-10 with Xavier-uniform weights is MER's network.

Source: Riemer et al. 2019 (MER) and Lopez-Paz & Ranzato 2017 (GEM): weights U(±sqrt(6/(fan_in + fan_out))),
biases 0, output layer included. `--mlp_init torch` draws weights and biases from U(±1/sqrt(fan_in)), as
PyTorch does by default and the code of van de Ven & Tolias 2019 in its layers; a head from 400 units to 10
classes then starts with weights less than half as large.
"""

import copy
import itertools
from dataclasses import dataclass
from math import prod

from torch import Tensor, nn

from engram.backbones.backbone import Backbone
from engram.backbones.direct_layers import DirectLayers
from engram.backbones.heads import PerTask, SharedHead
from engram.utils.config.options import OptionSet, option
from engram.utils.errors import UserError
from engram.utils.precision import in_own_precision

INITS = ("xavier", "torch")
TAKES_VECTORS = True  # (N, D) as well as images


@dataclass(frozen=True)
class Options(OptionSet):
    """Flags of the multi-layer perceptron."""

    hidden_sizes: tuple[int, ...] = option((100, 100), "units of each hidden layer, e.g. 100,100", ge=1)
    mlp_init: str = option(
        "xavier", "initial weights: Xavier-uniform with biases 0 (MER, GEM), or PyTorch's", choices=INITS
    )


class MLP(Backbone):
    """Flatten, then Linear + ReLU for each hidden size."""

    def __init__(self, input_size: int, hidden_sizes: tuple[int, ...], init: str = "xavier"):
        super().__init__()
        self.input_size, self.hidden_sizes, self.init = input_size, hidden_sizes, init
        sizes = (input_size, *hidden_sizes)
        layers: list[nn.Module] = [nn.Flatten()]
        for fan_in, fan_out in itertools.pairwise(sizes):
            layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
        self.layers = nn.Sequential(*layers)
        self.direct = DirectLayers(self)
        self.feature_dim = sizes[-1]

    def features(self, x: Tensor) -> Tensor:
        """(N, ...) → (N, last hidden size)."""
        features = self.direct.features(x)
        return self.layers(x) if features is None else features

    def forward(self, x: Tensor, task_id: Tensor | None = None) -> Tensor:
        """(N, ...) → (N, C) logits; `task_id` (N,) is read by per-task heads only."""
        # `features` of a subclass, or what took its place, may compute something else
        direct = type(self) is MLP and "features" not in vars(self) and self.precision == "fp32"
        logits = self.direct.logits(x, task_id) if direct else None
        return super().forward(x, task_id) if logits is None else logits

    def init_weights(self) -> None:
        """Draw Xavier-uniform weights and set biases to zero, the head's included; or leave PyTorch's."""
        if self.init == "torch":
            return
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)


class TaskInputMLP(Backbone):
    """The shape of an MLP, with a first layer of its own for each task; all weights new.

    PyTorch's initialisation of linear layers, biases 0.
    """

    def __init__(self, mlp: MLP, n_tasks: int):
        super().__init__()
        _, first, *rest = copy.deepcopy(mlp.layers)
        self.inputs = PerTask(copy.deepcopy(first) for _ in range(n_tasks))
        self.layers = nn.Sequential(*rest)
        self.feature_dim = mlp.feature_dim
        self.attach(copy.deepcopy(mlp.head))

    @in_own_precision
    def forward(self, x: Tensor, task_id: Tensor | None = None) -> Tensor:
        """(N, ...), (N,) → (N, C) logits."""
        return self.head(self.layers(self.inputs(x.flatten(1), task_id)), task_id)

    def init_weights(self) -> None:
        """Draw weights from U(±1/sqrt(fan_in)), PyTorch's distribution, and set biases to zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                module.reset_parameters()
                nn.init.zeros_(module.bias)


class SplitMLP(Backbone):
    """A whole MLP for each task, with its share of another MLP's hidden units; all weights new."""

    def __init__(self, mlp: MLP, n_tasks: int, n_classes: int):
        super().__init__()
        sizes = tuple(size // n_tasks for size in mlp.hidden_sizes)
        if 0 in sizes:
            given = ",".join(map(str, mlp.hidden_sizes))
            raise UserError(f"--hidden_sizes {given} split over {n_tasks} tasks leaves no units for a task")
        self.feature_dim = mlp.input_size
        networks = (MLP(mlp.input_size, sizes, mlp.init) for _ in range(n_tasks))
        self.head = PerTask(net.attach(SharedHead(net.feature_dim, n_classes)) for net in networks)

    def features(self, x: Tensor) -> Tensor:
        """(N, ...) → (N, inputs): tasks share nothing but their inputs."""
        return x.flatten(1)


def require_mlp(net: Backbone, method: str) -> None:
    """Refuse networks that a method cannot divide among tasks."""
    if not isinstance(net, MLP) or not net.hidden_sizes:
        raise UserError(f"{method} divides a perceptron among tasks: use --backbone mlp with hidden layers")


def build(options: Options, input_shape: tuple[int, ...], name: str) -> MLP:
    """An MLP for images of `input_shape` (C, H, W)."""
    return MLP(prod(input_shape), options.hidden_sizes, options.mlp_init)
