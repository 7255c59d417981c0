"""What do a prompt method's numbers owe to the batches in which its test images come?

    python scripts/audit_evaluation.py runs/audit [--batch_sizes 1 8 32 128]
    python scripts/report.py audit runs/audit --update RESULTS.md

Opens each finished run of l2p, dualprompt and scripts/studies/dualprompt_reshaped.py below the folders that
trains as the papers do (softmax of the task, pixels as the weights want them), and evaluates its network on
the whole test set again and again. Network, images and classifier are the same each time; what differs:

    vote      all images of a batch get the prompts that most of them call for (as --batchwise_prompt does)
    reshape   dualprompt: images get their neighbours' prompts (scripts/studies/dualprompt_reshaped.py)
    order     by class; by task, mixed within a task, no batch with images of two; shuffled

Accuracies go to audit.json in the run's folder; runs that have it are left alone. scripts/reproduce/audit.sh
makes the runs.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engram.backbones.vit import Prompts
from engram.models.dualprompt import DualPrompt
from engram.models.l2p import L2P
from engram.models.parts.inference import evaluating
from engram.models.parts.prompted import by_vote, cosines
from engram.scripts.analysis.papers.audit import AUDIT_NAME, RESHAPED
from engram.scripts.studies.dualprompt_reshaped import reshaped
from engram.scripts.trained_run import add_num_threads, open_trained_run
from engram.utils import files, seeding
from engram.utils.config.flags import CheckedParser
from engram.utils.config.outside import label
from engram.utils.config.version import git_state
from engram.utils.door import guarded
from engram.utils.errors import UserError
from engram.utils.runs.run_record import FILE_NAME, RunRecord, read_all
from engram.utils.training.evaluation import masked_argmax

METHODS = ("l2p", "dualprompt", RESHAPED)
PASS = 64  # images of small test batches that share a pass of the network
ORDERS = ("by class", "by task", "shuffled")


def in_batches(order: str, y: Tensor, task_id: Tensor, size: int, draws: torch.Generator) -> list[Tensor]:
    """Positions of the test images, batch by batch, when they come in one of `ORDERS`."""
    shuffled = torch.randperm(len(y), generator=draws)
    if order == "by class":
        groups = [y.argsort(stable=True)]
    elif order == "by task":
        groups = [shuffled[task_id[shuffled] == task] for task in task_id.unique()]
    else:
        groups = [shuffled]
    return [batch for group in groups for batch in group.split(size)]


class TestSet:
    """The test images of a trained method and the prompts that each of them calls for.

    choices: (N, K) prompts of L2P, or DualPrompt's task (K = 1). Logits with given prompts do not depend on
    the batch, so that they are computed once for an image and a set of prompts.
    """

    __test__ = False  # for pytest: this is no test

    def __init__(self, method: L2P | DualPrompt) -> None:
        self.method, benchmark = method, method.benchmark
        self.samples = benchmark.test(len(benchmark.tasks))
        queries = method.evaluate(method.query, self.samples.x_raw)
        if isinstance(method, L2P):
            self.choices, self.n_prompts = method.selected(queries)[0], method.options.pool_size
        else:
            similarity = cosines(queries, torch.stack(list(method.prompts.keys)))[:, : method.n_seen]
            self.choices, self.n_prompts = similarity.argmax(1, keepdim=True), method.n_seen
        self.keys = torch.empty(0, 1 + self.choices.shape[1], dtype=torch.long)  # position, its prompts
        self.known = torch.empty(0, benchmark.n_classes)  # the logits of each

    def voted(self, batches: Sequence[Tensor]) -> Tensor:
        """(N, K) choices when the images of each batch vote."""
        choices = torch.empty_like(self.choices)
        for batch in batches:
            choices[batch] = by_vote(self.choices[batch], self.n_prompts)
        return choices

    def logits(self, choices: Tensor) -> Tensor:
        """(N, C) logits of all test images with these prompts (N, K)."""
        n_known, positions = len(self.keys), torch.arange(len(choices))[:, None]
        keys = torch.cat([positions, choices.sort(1).values], 1)
        _, groups = torch.cat([self.keys, keys]).unique(dim=0, return_inverse=True)
        row_of_group = torch.full((int(groups.max()) + 1,), -1)
        row_of_group[groups[:n_known]] = torch.arange(n_known)
        new = row_of_group[groups[n_known:]] < 0
        if new.any():
            row_of_group[groups[n_known:][new]] = n_known + torch.arange(int(new.sum()))
            fields = (self.samples.x_raw[new], choices[new], self.samples.task_id[new])
            self.known = torch.cat([self.known, self.method.evaluate(self._with_prompts, *fields)])
            self.keys = torch.cat([self.keys, keys[new]])
        return self.known[row_of_group[groups[n_known:]]]

    def _with_prompts(self, x: Tensor, choices: Tensor, task_id: Tensor) -> Tensor:
        method = self.method
        if isinstance(method, L2P):
            return method.net.head(method.prompted_features(x, choices), task_id)
        return DualPrompt.logits_with(method, x, choices[:, 0], task_id)

    def reshaped(self, batches: Sequence[Tensor]) -> Tensor:
        """(N, C) logits when the reshape mixes up each batch; small ones share a pass."""
        logits, method = torch.empty(len(self.choices), self.method.benchmark.n_classes), self.method
        assert isinstance(method, DualPrompt)
        n_together = max(1, PASS // len(batches[0]))
        with evaluating(method.net):
            for start in range(0, len(batches), n_together):
                together = batches[start : start + n_together]
                rows = torch.cat(together)
                prompts = joined([reshaped(method.prompts, self.choices[batch, 0]) for batch in together])
                x = method.benchmark.augment.normalise(self.samples.x_raw[rows])
                logits[rows] = method.net.head(method.net.features(x, prompts), self.samples.task_id[rows])
        return logits

    def accuracies(self, logits: Tensor) -> dict[str, float]:
        """Mean accuracy over tasks in both views, as a run's last row of R has it."""
        masks, (_, y, task_id, _) = self.method.benchmark.class_masks, self.samples
        views = {"class_il": masks.any(0), "task_il": masks[task_id]}
        hits = {view: (masked_argmax(logits, allowed) == y).double() for view, allowed in views.items()}
        counts = task_id.bincount()
        return {view: (task_id.bincount(hit) / counts).mean().item() for view, hit in hits.items()}


@torch.no_grad()
def evaluations(method: L2P | DualPrompt, reshapes: bool, sizes: Sequence[int]) -> Iterator[dict[str, Any]]:
    """One record for each way of evaluating the method; reshapes: it was trained with the reshape.

    In a batch of one nothing is voted on or mixed up; only what was trained with the reshape is asked that.
    """
    test = TestSet(method)
    yield {"practice": "none", **test.accuracies(test.logits(test.choices))}
    _, y, task_id, _ = test.samples
    for order in ORDERS:
        for size in sizes:
            draws = seeding.generator(method.setup.seed, "audit")
            batches = in_batches(order, y, task_id, size, draws)
            way = {"order": order, "batch_size": size}
            if not reshapes and size > 1:
                yield {"practice": "vote", **way, **test.accuracies(test.logits(test.voted(batches)))}
            if isinstance(method, DualPrompt) and order != "by task" and (reshapes or size > 1):
                yield {"practice": "reshape", **way, **test.accuracies(test.reshaped(batches))}


def joined(of_batches: Sequence[Prompts]) -> Prompts:
    """The prefixes of several batches one after the other, for one pass."""
    layers = of_batches[0].prefixes
    return Prompts(prefixes={
        layer: (
            torch.cat([prompts.prefixes[layer][0] for prompts in of_batches]),
            torch.cat([prompts.prefixes[layer][1] for prompts in of_batches]),
        )
        for layer in layers
    })  # fmt: skip


def is_audited(record: RunRecord) -> bool:
    """Whether a run is finished, and of a method that is evaluated here as the papers train it."""
    config = record.config
    as_published = config.get("train_classes") == "task" and not config.get("pixel_mean")
    votes = config.get("batchwise_prompt")  # it was trained with a vote: another network
    return record.finished and label(str(config["model"])) in METHODS and as_published and not votes


def audit(folder: Path, sizes: Sequence[int], device: str, num_threads: str | None) -> None:
    """Evaluate the network of a run in every way, and write the folder's audit.json."""
    run = open_trained_run(str(folder), "", device, num_threads)
    method, state = run.method, git_state()
    assert isinstance(method, L2P | DualPrompt)
    rows = list(evaluations(method, label(run.name) == RESHAPED, sizes))
    content = {"git_commit": state.commit, "git_dirty": state.dirty, "evaluations": rows}
    files.write_text(json.dumps(content, indent=1) + "\n", folder / AUDIT_NAME)


@guarded
def main(argv: list[str] | None = None) -> int:
    """Evaluate what the command line names; returns the exit code."""
    parser = CheckedParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, help="folders that hold run folders")
    parser.add_argument("--batch_sizes", nargs="+", type=int, default=[1, 8, 32, 128], help="of test batches")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default: cpu)")
    add_num_threads(parser)
    args = parser.parse_args(argv)
    if min(args.batch_sizes) < 1:
        raise UserError(f"--batch_sizes {min(args.batch_sizes)}: expected whole numbers from 1 on")
    paths = (path for folder in args.folders for path in sorted(folder.rglob(FILE_NAME)))
    audited = [path.parent for path, record in read_all(paths) if is_audited(record)]
    if not audited:
        raise UserError(f"no finished run of {', '.join(METHODS)} below {', '.join(map(str, args.folders))}")
    for folder in audited:
        if not (folder / AUDIT_NAME).exists():
            audit(folder, args.batch_sizes, args.device, args.num_threads)
        print(folder / AUDIT_NAME)
    return 0


if __name__ == "__main__":
    sys.exit(main())
