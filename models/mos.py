"""MOS: adapters of tasks are drawn together while they learn; a test image refines which one it takes.

Source: Sun et al. 2025, "MOS: Model Surgery for Pre-Trained Model-Based Class-Incremental Learning" (AAAI,
arXiv 2412.09441) and the authors' code in LAMDA-PILOT. f_j(x) is the class token of the frozen encoder with
the adapters A_j of task j, h a linear head. Task t learns Â_t and the head of its classes by cross-entropy
over these alone, the adapters at ten times --lr; after each step, t > 0:
    Â_t ← (1 − α) Â_t + (α / t) Σ_{j < t} A_j
At its end w_c = mean of f_0(x), N(μ_c, Σ_c + 10⁻⁴ I) of f_t(x) over its classes c; for t > 0 the heads so far
are aligned on draws of all classes seen (parts/alignment.py) and go on from there. A test image takes
    k ← task of argmax_c cos(f_0(x), w_c);  k ← task of argmax h(f_k(x)) until k stays, in 4 rounds at most
    scores = softmax(h(f_k(x))) + softmax((t + 1) cos(f_0(x), w)), k that of the last round
--as_released: each pass rewrites the adapters, in tests too (parts/merged_adapters.py): of 12 blocks .9¹² =
28 % of a task's own are left after a test batch, and training merges with 1 − .9¹³ in place of .1.
Differs from that code besides: no contrastive term (0.1) over features and means, no dropout, no weight decay
of old heads while a task learns; a task's adapters start anew.
"""

import functools
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from engram.backbones.backbone import Backbone
from engram.datasets.benchmark import Batch, Task
from engram.models.method import Setup
from engram.models.parts import merged_adapters
from engram.models.parts.alignment import ClassGaussians, Schedule, align, one_head_per_task
from engram.models.parts.merged_adapters import REWRITTEN, MergedAdapters
from engram.models.parts.task_adapters import AdapterPerTask
from engram.models.parts.vision_transformer import SMALL_VIT, require_vit
from engram.utils.config.options import OptionSet, option


@dataclass(frozen=True)
class Options(OptionSet):
    """These are the flags of MOS."""

    adapter_size: int = option(16, "units of an adapter", ge=1, le=4096)
    merge_momentum: float = option(0.1, "α, how far a step draws adapters to the earlier ones", ge=0, le=1)
    max_rounds: int = option(4, "rounds in which an image refines its choice of adapters", ge=1)
    ca_epochs: int = option(30, "passes of classifier alignment, each over new draws; 0: none", ge=0)
    ca_samples: int = option(240, "features drawn of each class in a pass, and those of a step", ge=1)
    ca_lr: float = option(0.005, "learning rate of alignment, at its start", gt=0)
    as_released: bool = option(False, "each pass rewrites adapters, as in the released code, not the paper")


class MOS(AdapterPerTask):
    """Merged adapters, an aligned head, and prototypes of the first task's features."""

    options: Options
    encoder_lr_scale = 10.0
    eager_step = ""
    off_switch = "it has adapters beside a frozen encoder and a head for each task"
    quick_flags: ClassVar = {**SMALL_VIT, "adapter_size": 2, "ca_samples": 8, "ca_epochs": 2}

    def __init__(self, net: Backbone, options: Options, setup: Setup) -> None:
        vit, o, n_tasks = require_vit(net, "mos"), options, len(setup.benchmark.tasks)
        vit.freeze()
        draws = setup.generator("adapters")
        merged_adapters.attach(vit, n_tasks, o.adapter_size, draws, o.merge_momentum, o.as_released)
        vit.head = one_head_per_task(vit.head, vit.feature_dim, setup, deviation=0.02)
        super().__init__(vit, options, setup)
        if o.as_released:
            setup.benchmark.notes.append(REWRITTEN)
            self.eager_step = "as released, each pass puts new tensors into adapters"
        self.n_learned, n_classes = 0, self.benchmark.n_classes  # tasks
        self.prototypes = torch.zeros(n_classes, vit.feature_dim, device=self.device)  # w
        self.gaussians = ClassGaussians(n_classes, vit.feature_dim).to(self.device)
        self.task_of = self.benchmark.class_masks.int().argmax(0)  # (C,)
        self.draws = setup.generator("alignment", self.device)

    def after_step(self, batch: Batch) -> None:
        """Merge Â_t with the mean of the adapters before it."""
        for adapters in cast(list[MergedAdapters], self.adapters):
            adapters.merge()

    def end_task(self, task: Task) -> None:
        """w_c, μ_c and Σ_c of the new classes, from un-augmented images; then the heads are aligned."""
        for adapters in cast(list[MergedAdapters], self.adapters):
            adapters.keep(task.id)
        samples, self.n_learned = self.benchmark.train(task), task.id + 1
        first = self.evaluate(lambda x: self.subspace(0, x), samples.x_raw)
        for c in task.classes:
            self.prototypes[c] = first[samples.y == c].mean(0)
        self.gaussians.fit(self.features(samples.x_raw), samples.y)
        if task.id and self.options.ca_epochs:
            self.net.head.select(tuple(range(self.n_learned)))
            self.align_heads(~self.benchmark.class_masks[: self.n_learned].any(0))
            self.net.head.select(task.parts)

    def align_heads(self, unseen: Tensor) -> None:
        """Train the heads so far by cross-entropy on drawn features; `unseen` (C,) classes do not compete."""
        o, weight_decay = self.options, self.setup.train.optim_wd
        schedule = Schedule(o.ca_epochs, o.ca_samples, o.ca_samples, o.ca_lr, weight_decay)
        draw = functools.partial(self.gaussians.sample, o.ca_samples, self.draws)

        def loss(logits: Tensor, y: Tensor) -> Tensor:
            return F.cross_entropy(logits.masked_fill(unseen, -torch.inf), y)

        align(self.net.head, draw, loss, schedule, self.draws)

    def predict(self, x: Tensor, task_id: Tensor) -> Tensor:
        """(N, C) scores; a class that was not seen has the lowest of all and is never predicted."""
        unseen, lowest = ~self.benchmark.class_masks[: self.n_learned].any(0), torch.finfo(torch.float32).min
        cosines = F.normalize(self.subspace(0, x).float()) @ F.normalize(self.prototypes).T
        cosines = (self.n_learned * cosines).masked_fill(unseen, lowest)
        k = self.task_of[cosines.argmax(1)]
        logits, rows = torch.empty_like(cosines), torch.arange(len(x), device=x.device)
        every = self.all_subspaces(x, self.n_learned) if self.options.as_released else None
        for _ in range(self.options.max_rounds):
            features = self.subspaces(x[rows], k) if every is None else every[k, rows]
            logits[rows] = self.net.head(features).float().masked_fill(unseen, lowest)
            next_k = self.task_of[logits[rows].argmax(1)]
            if not len(moving := (next_k != k).nonzero()[:, 0]):
                break
            rows, k = rows[moving], next_k[moving]
        return (logits.softmax(1) + cosines.softmax(1)).masked_fill(unseen, lowest)
