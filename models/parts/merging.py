"""Merging: the mean of the networks that all tasks left, from running sums instead of checkpoints.

Source: Lee et al. 2017, "Overcoming Catastrophic Forgetting by Incremental Moment Matching" (arXiv
1703.08475): mean-IMM, eq. 3, θ̄ = Σ_k α_k θ_k; mode-IMM, eq. 8-9, θ̄ = Σ_k F_k θ_k / Σ_k F_k; both with
α_k = 1/T. Training goes on from the unmerged network, drawn to where the last task left it by L2-transfer
(section 4.2): loss CE + λ Σ_i (θ_i − θ*_i)², no ½, every weight alike; the merged one only predicts.
Batch-norm statistics are merged as those of the mixture of tasks: μ̄ = mean μ_k,
σ̄² = mean (σ_k² + μ_k²) − μ̄². They describe the tasks' own networks, not the merged one.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from engram.backbones.backbone import Backbone
from engram.datasets.benchmark import Batch, Task
from engram.models.method import Method, Setup
from engram.models.parts.importance import shared_parameters
from engram.models.parts.quadratic import Quadratic
from engram.utils.config.options import OptionSet


class Merge:
    """Σ_k w_k and Σ_k w_k θ_k by parameter name, and the mixture's batch-norm moments: O(1) in tasks."""

    def __init__(self, net: nn.Module):
        self.net = net
        self.n_tasks = 0
        self.weights: dict[str, Tensor] = {}
        self.weighted: dict[str, Tensor] = {}
        self.moments: dict[str, Tensor] = {}  # Σ_k μ_k and Σ_k (σ_k² + μ_k²), under the buffers' names
        self._merged: dict[str, Tensor] | None = None

    @torch.no_grad()
    def add(self, weights: dict[str, Tensor]) -> None:
        """Take in the network as it is, each parameter with its weight."""
        parameters, first = dict(self.net.named_parameters()), not self.n_tasks
        for name, weight in weights.items():
            weighted = weight * parameters[name]
            self.weights[name] = weight.clone() if first else self.weights[name] + weight
            self.weighted[name] = weighted if first else self.weighted[name] + weighted
        for name, moment in self._moments().items():
            self.moments[name] = moment if first else self.moments[name] + moment
        self.n_tasks, self._merged = self.n_tasks + 1, None

    def _moments(self) -> dict[str, Tensor]:
        moments = {}
        for prefix, module in self.net.named_modules():
            if getattr(module, "track_running_stats", False):
                mean, variance = module.running_mean, module.running_var
                moments[f"{prefix}.running_mean"] = mean.clone()
                moments[f"{prefix}.running_var"] = variance + mean.square()
        return moments

    @torch.no_grad()
    def merged(self) -> dict[str, Tensor]:
        """Parameters and batch-norm statistics by name; what is not merged is not named."""
        if self._merged is None:
            merged = {name: self.weighted[name] / weight for name, weight in self.weights.items()}
            merged |= {name: moment / self.n_tasks for name, moment in self.moments.items()}
            for name in self.moments:
                if name.endswith("running_var"):
                    mean = merged[name.removesuffix("running_var") + "running_mean"]
                    merged[name] = (merged[name] - mean.square()).clamp_min(0)
            self._merged = merged
        return self._merged

    def state_dict(self) -> dict:
        """For the checkpoint: the sums."""
        sums = {"weights": dict(self.weights), "weighted": dict(self.weighted), "moments": dict(self.moments)}
        return sums | {"n_tasks": self.n_tasks}

    def load_state_dict(self, state: dict) -> None:
        """Continue where `state` was taken."""
        device = next(self.net.parameters()).device
        for name in ("weights", "weighted", "moments"):
            setattr(self, name, {key: tensor.to(device) for key, tensor in state[name].items()})
        self.n_tasks, self._merged = state["n_tasks"], None


class IMM(Method):
    """L2-transfer while training; between tasks the merged network predicts. Subclasses say the weights."""

    needs_boundaries = True
    off_switch: ClassVar = {"imm_lambda": 0}
    eager_step = ""

    def __init__(self, net: Backbone, options: OptionSet, setup: Setup) -> None:
        super().__init__(net, options, setup)
        self.quadratic = Quadratic(shared_parameters(net))
        self.merge = Merge(net)
        self.inside = False  # a task, where the network that is being trained predicts

    def precision(self, task: Task) -> dict[str, Tensor]:
        """Name → weight of each parameter that tasks share, for the network as it is."""
        raise NotImplementedError(f"{type(self).__name__} must define precision(task)")

    def begin_task(self, task: Task) -> None:
        """From here on the unmerged network predicts."""
        self.inside = True

    def edit_gradients(self, batch: Batch) -> None:
        """Add 2 λ (θ − θ*), the gradient of λ Σ (θ − θ*)²."""
        self.quadratic.add_gradients(self.options.imm_lambda)

    def end_task(self, task: Task) -> None:
        """Take the network into the merge."""
        self.merge.add(self.precision(task))
        self.inside = False
        if self.options.imm_lambda:
            self.quadratic.set({n: torch.ones_like(p) for n, p in self.quadratic.parameters.items()})

    def predict(self, x: Tensor, task_id: Tensor) -> Tensor:
        """Logits of the merged network with every task's own head; inside a task of the one in training."""
        if self.inside or not self.merge.n_tasks:
            return self.net(x, task_id)
        return functional_call(self.net, self.merge.merged(), (x, task_id))
