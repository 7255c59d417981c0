"""Encoder Based Lifelong Learning (EBLL): LwF that also keeps what each task's autoencoder sees.

Source: Rannen Triki et al. 2017, "Encoder Based Lifelong Learning" (arXiv 1704.01920), section 3; De Lange
et al. 2021 (arXiv 1909.08383) for the autoencoder and the mean in the code loss. After each task an
under-complete autoencoder learns its features F: code σ(W F + b), linear decoder, loss ρ · mean squared
reconstruction error + CE of the head on the reconstruction, network and head fixed. A later task's loss
is CE + λ Σ_{old tasks} KD (as in LwF) + α Σ_{old t} mean (code_t(F) − code_t(F_old))², F_old from the
network that the last task left; the mean is over samples and code units, no ½ (the paper: ½, and the
sum over units).
Only encoders are kept, as the decoders are not asked again: memory grows by one encoder per task.
Differs from the paper: the autoencoder sits on the penultimate features, the last thing that tasks share;
it is trained by Adam for a fixed number of epochs, on un-augmented images.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engram.backbones.backbone import Backbone
from engram.datasets.benchmark import Batch, Task
from engram.models import lwf
from engram.models.method import Setup
from engram.models.parts.inference import evaluating
from engram.models.parts.teacher import CHUNK
from engram.utils import seeding
from engram.utils.config.options import option
from engram.utils.errors import UserError
from engram.utils.training import optimizers
from engram.utils.transfer import send

BATCH, RATE = 128, 1e-3  # of the autoencoder's training


@dataclass(frozen=True)
class Options(lwf.Options):
    """These are the flags of EBLL."""

    ebll_alpha: float = option(1.0, "strength α of the code loss; 0 turns it and the encoders off", ge=0)
    ebll_code: int = option(0, "units of a code; 0: a tenth of the features", ge=0)
    ebll_rho: float = option(0.1, "weight ρ of the reconstruction error in the autoencoder's loss", gt=0)
    ebll_epochs: int = option(10, "epochs in which an autoencoder is trained", ge=1)


class EBLL(lwf.LwF):
    """LwF plus a loss that holds the codes of old tasks' autoencoders."""

    options: Options
    off_switch: ClassVar = {"lwf_lambda": 0, "ebll_alpha": 0}

    def __init__(self, net: Backbone, options: Options, setup: Setup) -> None:
        super().__init__(net, options, setup)
        self.draws = setup.generator("method")
        self.n_units = options.ebll_code or max(1, net.feature_dim // 10)
        if self.n_units >= net.feature_dim:
            raise UserError(
                f"--ebll_code {self.n_units}: the code must be smaller than the {net.feature_dim} features"
            )
        # the encoders of all tasks, one below the other: (tasks · units, D) and (tasks · units,)
        self.weight = torch.zeros(0, net.feature_dim, device=self.device)
        self.bias = torch.zeros(0, device=self.device)

    def asked(self, net, x: Tensor) -> Tensor:
        """(N, K) logits under each softmax, then codes."""
        features = net.features(x)
        return torch.cat([*self.teachers(net.head, features), self.codes(features)], 1)

    def codes(self, features: Tensor) -> Tensor:
        """(N, D) → (N, tasks · units) codes of all old tasks' autoencoders."""
        return F.linear(features, self.weight, self.bias).sigmoid()

    def loss(self, batch: Batch) -> Tensor:
        """CE + λ Σ KD + α Σ_{old t} mean (code_t(F) − code_t(F_old))²."""
        if not len(self.bias):
            return super().loss(batch)
        features = self.net.features(batch.x)
        logits = self.mask_classes(self.net.head(features, batch.task_id), batch.task_id)
        answers, old_codes = self.answers.of(self.task, batch).tensor_split([-len(self.bias)], 1)
        distilled = self.distilled(self.students(features), answers)
        # all tasks' codes have one size, so the sum of their means is the mean times their number
        moved = F.mse_loss(self.codes(features), old_codes) * self.n_old
        return (
            F.cross_entropy(logits, batch.y)
            + self.options.lwf_lambda * distilled
            + self.options.ebll_alpha * moved
        )

    def end_task(self, task: Task) -> None:
        """Train the task's autoencoder and keep its encoder."""
        super().end_task(task)
        if self.options.ebll_alpha:
            encoder = self.train_autoencoder(task)
            self.weight = torch.cat([self.weight, encoder.weight.detach()])
            self.bias = torch.cat([self.bias, encoder.bias.detach()])

    def train_autoencoder(self, task: Task) -> nn.Linear:
        """An encoder of the task's features under the head as it is."""
        samples, normalise = self.benchmark.train(task), self.benchmark.augment.normalise
        with torch.no_grad(), evaluating(self.net):
            features = torch.cat([self.net.features(normalise(raw)) for raw in samples.x_raw.split(CHUNK)])
        with seeding.isolated(self.setup.seed, "autoencoder", task.id):
            sizes = features.shape[1], self.n_units
            encoder, decoder = (nn.Linear(*s).to(self.device) for s in (sizes, sizes[::-1]))
        parameters = [*encoder.parameters(), *decoder.parameters()]
        optimizer = optimizers.Adam(parameters, lr=RATE)
        for _ in range(self.options.ebll_epochs):
            order = send(torch.randperm(len(features), generator=self.draws), self.device)
            for rows in order.split(BATCH):
                F_, y, task_id = features[rows], samples.y[rows], samples.task_id[rows]
                rebuilt = decoder(encoder(F_).sigmoid())
                logits = self.mask_classes(self.net.head(rebuilt, task_id), task_id)
                loss = self.options.ebll_rho * F.mse_loss(rebuilt, F_) + F.cross_entropy(logits, y)
                gradients = torch.autograd.grad(loss, parameters)
                for parameter, gradient in zip(parameters, gradients, strict=True):
                    parameter.grad = gradient
                optimizer.step()
        return encoder
