"""The Fisher information's diagonal, in the five ways that public code estimates it.

F_i = (1/N) Σ_n E_y [(∂ log p(y|x_n) / ∂θ_i)²], per sample and in eval mode, with y among the classes that
compete in the training softmax:
    all      every label, weighted by the network's own probability: exact
    sampled  one label drawn from the network's probabilities: unbiased
    argmax   the label that the network predicts (van de Ven & Tolias 2019's code)
    true     the data's label: the "empirical Fisher", not an estimate of F
and, for comparison with GEM, MER and Avalanche,
    batched  the square of a mini-batch's mean gradient, true labels, averaged over batches: up to a
             batch's size smaller, so λ does not carry over.
van de Ven 2025, "On the computation of the Fisher information in continual learning" (arXiv 2502.11756).
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engram.datasets.benchmark import Benchmark, Samples, Task
from engram.models.parts import importance
from engram.models.parts.inference import allowed_classes, evaluating
from engram.models.parts.inner_steps import gradient, split
from engram.utils.precision import in_float32
from engram.utils.transfer import send

KINDS = ("all", "sampled", "argmax", "true", "batched")
CHUNK = 1000  # images per forward pass when labels are drawn or predicted


def of_task(
    net: nn.Module,
    benchmark: Benchmark,
    parameters: dict[str, nn.Parameter],
    task: Task,
    n: int,
    draws: torch.Generator,
    kind: str = "all",
    batch_size: int = 1,
) -> dict[str, Tensor]:
    """Name → Fisher diagonal over `n` training samples of the task (0: all), drawn from `draws`.

    kind: one of KINDS; batch_size: of the mini-batches of "batched".
    """
    samples = importance.subset(benchmark.train(task), n, draws)
    if kind == "batched":
        return batched(net, benchmark, parameters, samples, batch_size, task)
    if kind == "all":
        return importance.of_images(net, benchmark, parameters, samples.x_raw, task, log_probabilities, 2)
    if kind == "true":
        y = columns_of_labels(net, benchmark, task, samples.y)
    elif kind == "argmax":
        y = predicted_labels(net, benchmark, task, samples)
    else:
        y = sample_labels(net, benchmark, task, samples, draws)
    return importance.of_images(net, benchmark, parameters, samples.x_raw, task, log_likelihood, 2, y)


def log_probabilities(logits: Tensor) -> tuple[Tensor, Tensor]:
    """(N, C) log p(c|x), and p(c|x) as weights: Σ_c p_c (∂ log p_c / ∂θ)² is the Fisher diagonal."""
    log_p = logits.log_softmax(1)
    return log_p, log_p.exp()


def log_likelihood(logits: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """(N, 1) log p(y|x) of given labels, and weights of one."""
    log_p = logits.log_softmax(1).gather(1, y.view(-1, 1))
    return log_p, torch.ones_like(log_p)


def columns_of_labels(net: nn.Module, benchmark: Benchmark, task: Task, y: Tensor) -> Tensor:
    """(N,) column of each label among the logits that the importance sees: those of allowed classes."""
    allowed = allowed_classes(net, benchmark, task)
    return y if allowed is None else (allowed[task.id].cumsum(0) - 1)[y]


def sample_labels(
    net: nn.Module, benchmark: Benchmark, task: Task, samples: Samples, draws: torch.Generator
) -> Tensor:
    """(N,) one label per sample from the network's probabilities, drawn on the host, as a column."""
    chances = send(torch.rand(len(samples.y), generator=draws, dtype=torch.float64), samples.y.device)
    labels = []
    for logits, chance in zip(
        allowed_logits(net, benchmark, task, samples), chances.split(CHUNK), strict=True
    ):
        below = logits.double().softmax(1).cumsum(1)
        labels.append((below[:, :-1] < chance.view(-1, 1)).sum(1))
    return torch.cat(labels)


def predicted_labels(net: nn.Module, benchmark: Benchmark, task: Task, samples: Samples) -> Tensor:
    """(N,) the label of highest probability of each sample, as a column."""
    return torch.cat([logits.argmax(1) for logits in allowed_logits(net, benchmark, task, samples)])


def allowed_logits(net: nn.Module, benchmark: Benchmark, task: Task, samples: Samples) -> Iterator[Tensor]:
    """(CHUNK, K) logits of the samples in eval mode, a column for each class that competes in the task."""
    restrict = importance.of_allowed_classes(net, benchmark, task, lambda logits: logits)
    normalise = benchmark.augment.normalise
    for raw, task_id in zip(samples.x_raw.split(CHUNK), samples.task_id.split(CHUNK), strict=True):
        with torch.no_grad(), evaluating(net), in_float32(net):
            logits = restrict(net(normalise(raw), task_id))
        yield logits


def batched(
    net: nn.Module,
    benchmark: Benchmark,
    parameters: dict[str, nn.Parameter],
    samples: Samples,
    batch_size: int,
    task: Task,
) -> dict[str, Tensor]:
    """Name → mean over mini-batches of the square of the mean loss's gradient, in eval mode."""
    mask, normalise = allowed_classes(net, benchmark, task), benchmark.augment.normalise
    raw, labels, task_ids, _ = (field.split(batch_size) for field in samples)
    names, values = list(parameters), list(parameters.values())
    squares = torch.zeros(sum(p.numel() for p in values), device=benchmark.device)
    with evaluating(net), in_float32(net):
        for images, y, task_id in zip(raw, labels, task_ids, strict=True):
            logits = net(normalise(images), task_id)
            if mask is not None:  # as in training
                logits = logits.masked_fill(~mask[task_id], -torch.inf)
            squares = squares + gradient(F.cross_entropy(logits, y), values).square()
    return dict(zip(names, split(squares / len(labels), values), strict=True))
