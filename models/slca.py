"""SLCA: an encoder that learns slowly, heads aligned on Gaussians of all classes.

Source: Zhang et al. 2023, "SLCA: Slow Learner with Classifier Alignment for Continual Learning on a
Pre-trained Model" (arXiv 2303.05118) and the authors' code. Slow learner: the encoder's learning rate is a
hundredth of the head's (`--encoder_lr_scale`); one head per task, trained with its task's classes alone, then
frozen. Classifier alignment after task t > 0 (`parts/alignment.py`): 256 features of each class from
N(s_c μ_c, Σ_c), s_c = .9 + .1 (t_c + 1) / (t + 1) for a class of task t_c; cross-entropy of z / (τ n̄), n̄ the
mean over tasks of the norm of the task's logits in z. A task begins with the heads from before alignment.
SLCA++ (2024, arXiv 2408.08295): --reverse_ce 0.1 --drift_scale 0.02 --encoder_lr_scale 0.1 --tune lora
--tune_size 4. The loss gets b Σ_k p_k (−log q_k), where q = 10⁻⁴ stands for 0; a drawn feature is divided by
1 + μ' (t − t_c), μ' = μ ± .01, in place of s_c; a predicting head's weights are scaled by 1 + μ (t − t_c).
Differs from the papers: t_c is the task that has the class (the code divides its number by the last task's
size). SLCA++ also trains biases, norms and the class token, has more LoRA, and a larger rate in task 0.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from engram.backbones.backbone import Backbone
from engram.datasets.benchmark import Batch, Task
from engram.models.method import Method, Setup
from engram.models.parts.alignment import ClassGaussians, Schedule, align, one_head_per_task
from engram.utils.config.options import OptionSet, option

LOG_OF_ZERO = -math.log(1e-4)


@dataclass(frozen=True)
class Options(OptionSet):
    """These are the flags of SLCA."""

    ca_epochs: int = option(5, "passes of classifier alignment, each over new draws; 0: none", ge=0)
    ca_samples: int = option(256, "features drawn of each class in a pass", ge=1)
    ca_batch_size: int = option(256, "drawn features per step", ge=1)
    ca_lr: float = option(0.01, "learning rate of alignment, at its start", gt=0)
    logit_norm: float = option(0.1, "τ, the size of normalised logits in alignment; 0: as they are", ge=0)
    reverse_ce: float = option(0.0, "b, the weight of reverse cross-entropy (SLCA++: 0.1)", ge=0)
    drift_scale: float = option(
        0.0, "μ, by which a class's features shrink a task; 0: s_c (SLCA++: 0.02)", ge=0
    )


class SLCA(Method):
    """Fine-tuning with a slow encoder; at the end of each task heads that are comparable."""

    options: Options
    scenarios = ("class-il",)
    needs_boundaries = True
    train_classes = "task"
    encoder_lr_scale = 0.01
    eager_step = ""
    off_switch = "it has a head for each task and a slow encoder"
    quick_flags: ClassVar = {"ca_samples": 8, "ca_epochs": 2}

    def __init__(self, net: Backbone, options: Options, setup: Setup) -> None:
        net.head = one_head_per_task(net.head, net.feature_dim, setup, deviation=0.02)
        super().__init__(net, options, setup)
        self.gaussians = ClassGaussians(self.benchmark.n_classes, net.feature_dim).to(self.device)
        self.draws = setup.generator("alignment", self.device)
        self.head_as_trained: dict[str, Tensor] = {}

    def begin_task(self, task: Task) -> None:
        """Go on with the heads before alignment."""
        if self.head_as_trained:
            self.net.head.load_state_dict(self.head_as_trained)

    def loss(self, batch: Batch) -> Tensor:
        """CE + b · reverse CE; Σ_k p_k (−log q_k) is (1 − p_y) · (−log 10⁻⁴)."""
        logits = self.logits(batch.x, batch.task_id)
        cross_entropy = F.cross_entropy(logits, batch.y)
        if not self.options.reverse_ce:
            return cross_entropy
        p_y = logits.softmax(1).gather(1, batch.y.unsqueeze(1))
        return cross_entropy + self.options.reverse_ce * LOG_OF_ZERO * (1 - p_y).mean()

    def end_task(self, task: Task) -> None:
        """Describe the new classes by un-augmented images; keep the heads and align them."""
        samples = self.benchmark.train(task)
        self.gaussians.fit(self.features(samples.x_raw), samples.y)
        self.head_as_trained = {name: p.clone() for name, p in self.net.head.state_dict().items()}
        if task.id and self.options.ca_epochs:
            self.net.head.select(tuple(range(task.id + 1)))
            self.align_heads(task.id)
            self.net.head.select(task.parts)

    def align_heads(self, t: int) -> None:
        """Train the heads of tasks 0..t on drawn features."""
        o = self.options
        schedule = Schedule(o.ca_epochs, o.ca_samples, o.ca_batch_size, o.ca_lr, self.setup.train.optim_wd)
        masks = self.benchmark.class_masks[: t + 1]  # (t + 1, C)
        unseen, age = ~masks.any(0), t - masks.int().argmax(0)  # (C,): t − t_c

        def draw() -> tuple[Tensor, Tensor]:
            if not o.drift_scale:
                return self.gaussians.sample(o.ca_samples, self.draws, 1 - 0.1 * age / (t + 1))
            features, y = self.gaussians.sample(o.ca_samples, self.draws)
            noise = torch.rand(len(y), generator=self.draws, device=self.device) - 0.5
            return features / (1 + (o.drift_scale + 0.02 * noise) * age[y]).unsqueeze(1), y

        def loss(logits: Tensor, y: Tensor) -> Tensor:
            if o.logit_norm:
                logits = logits / (o.logit_norm * mean_norm(logits, masks))
            return F.cross_entropy(logits.masked_fill(unseen, -torch.inf), y)

        align(self.net.head, draw, loss, schedule, self.draws)
        if o.drift_scale:
            with torch.no_grad():
                for task, layer in enumerate(self.net.head.heads[:t]):
                    layer.weight *= 1 + o.drift_scale * (t - task)


def mean_norm(logits: Tensor, masks: Tensor) -> Tensor:
    """(N, 1) n̄: the mean over tasks of ‖the task's logits‖; logits (N, C), masks of tasks' classes (t, C)."""
    squares = logits.square() @ masks.to(logits.dtype).T
    return squares.clamp_min(1e-14).sqrt().mean(1, keepdim=True)
