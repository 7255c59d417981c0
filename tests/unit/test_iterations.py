"""--n_iters: the number of steps on every task, whatever the tasks' sizes."""

import pytest
import torch

from engram.utils.training.optimizers import build_scheduler
from engram.utils.training.step_plan import DEBUG_STEPS
from engram.utils.training.trainer import Trainer
from tests.conftest import tiny_method


class Counting(Trainer):
    """Notes task, epoch of every step."""

    def __init__(self, *args):
        super().__init__(*args, quiet=True)
        self.seen = []

    def save(self):
        """There is no folder to save in."""

    def _between_steps(self, task, place):
        self.seen.append((task.id, self.position.epoch))


def run(**flags) -> Counting:
    method, config = tiny_method("sgd", **flags)
    trainer = Counting(config, method, None)
    trainer.run()
    return trainer


@pytest.mark.parametrize("n_iters", [1, 7, 8, 20])
def test_every_task_gets_as_many_steps(n_iters):
    """30 samples a task in batches of 4: 8 steps a pass."""
    trainer = run(n_iters=n_iters)
    expected = [(task, step // 8) for task in range(3) for step in range(n_iters)]
    assert trainer.seen == expected
    assert trainer.position.total == trainer.plan.count_steps(trainer.tasks) == 3 * n_iters


def test_tasks_of_different_size():
    method, config = tiny_method("sgd", n_iters=10)
    tasks = method.setup.benchmark.tasks
    object.__setattr__(tasks[1], "train_index", tasks[1].train_index[:9])  # 3 steps a pass
    trainer = Counting(config, method, None)
    trainer.run()
    assert [sum(t == task for t, _ in trainer.seen) for task in range(3)] == [10, 10, 10]
    assert max(epoch for task, epoch in trainer.seen if task == 1) == 3


def test_whole_passes_are_the_same_as_epochs():
    """Bit for bit, and off by default."""
    by_steps, by_epochs = run(n_iters=16), run(n_epochs=2)
    assert by_steps.seen == by_epochs.seen
    for a, b in zip(by_steps.method.net.parameters(), by_epochs.method.net.parameters(), strict=True):
        assert torch.equal(a, b)


def test_debug_mode_still_shortens_every_pass():
    assert len(run(n_iters=20, debug_mode=True).seen) == 3 * (2 * DEBUG_STEPS + 4)


def test_the_scheduler_spans_the_passes_that_are_made():
    method, config = tiny_method("sgd", n_iters=20, lr_scheduler="cosine", n_epochs=50)
    optimizer = torch.optim.SGD(method.net.parameters(), lr=1.0)
    trainer = Counting(config, method, None)
    scheduler = build_scheduler(optimizer, config.train, trainer.plan.n_epochs(trainer.tasks[0]))
    assert scheduler.T_max == 3
