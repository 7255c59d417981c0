"""PNN: eq. 2 by hand, old columns and their outputs unchanged bit for bit, what a column can reach."""

import copy

import pytest
import torch

from engram.backbones.heads import TaskHeads
from engram.models.parts.progressive import ProgressiveNet, stages_of
from engram.utils.errors import UserError
from tests.conftest import tiny_method
from tests.contract.test_methods import steps, train


def pnn(**flags):
    return tiny_method("pnn", "task-il", **flags)


def test_a_column_is_equation_2():
    """Third column of a perceptron with two hidden layers, with plain matrices."""
    method, _ = pnn(hidden_sizes=(8, 7))
    for p in method.net.parameters():
        torch.nn.init.normal_(p, generator=torch.Generator().manual_seed(p.numel()))
    x = torch.randn(5, 1, 6, 6)
    hidden: list[list[torch.Tensor]] = []
    for k, column in enumerate(method.net.head.columns):
        h, own = x.flatten(1), []
        for i, stage in enumerate(column.stages):
            (layer,) = (m for m in stage if isinstance(m, torch.nn.Linear))
            z = h @ layer.weight.T + layer.bias
            if i and k:
                adapter = column.adapters[i - 1]
                below = torch.cat([adapter.scales[j] * hidden[j][i - 1] for j in range(k)], 1)
                reduced = (below @ adapter.reduce.weight.T + adapter.reduce.bias).clamp_min(0)
                assert reduced.shape[1] == own[i - 1].shape[1] and adapter.lateral.bias is None
                z = z + reduced @ adapter.lateral.weight.T
            h = z if i == 2 else z.clamp_min(0)
            own.append(h)
        hidden.append(own)
    expected = torch.cat([own[-1] for own in hidden], 1)
    torch.testing.assert_close(method.net(x, None), expected)
    with method.net.head.only(1):
        found = method.net(x, None)
    torch.testing.assert_close(found[:, 2:4], expected[:, 2:4])
    assert not found[:, :2].any() and not found[:, 4:].any()


@pytest.mark.parametrize("backbone", ["mlp", "cnn"])
def test_old_columns_do_not_change_by_a_bit(backbone):
    """Nor do their outputs, after eight steps of another task with weight decay and momentum."""
    method, config = pnn(backbone=backbone, optim_wd=0.1, optim_mom=0.5, n_epochs=2)
    train(method, config, tasks=1)
    before = copy.deepcopy(method.net.head.columns[:2])
    x = torch.randn(9, 1, 6, 6)
    outputs = method.net(x, None)[:, :2].clone()
    steps(method, config, 8)
    old, learning = method.net.head.columns[:2]
    assert all(torch.equal(a, b) for a, b in zip(before[0].parameters(), old.parameters(), strict=True))
    assert torch.equal(method.net(x, None)[:, :2], outputs)
    moved = zip(before[1].parameters(), learning.parameters(), strict=True)
    assert all(not torch.equal(a, b) for a, b in moved)


def test_a_column_learns_from_its_own_layers_and_adapters_alone():
    method, config = pnn()
    train(method, config, tasks=1)
    steps(method, config, 1)
    learning = {name.split(".")[2] for name in method.trainable()}
    assert learning == {"1"}
    assert all(p.grad is not None for p in method.trainable().values())


def test_columns_are_new_and_the_first_is_the_network_given():
    plain, _ = tiny_method("sgd", "task-il")
    method, _ = pnn()
    first, second = method.net.head.columns[:2]
    assert torch.equal(first.stages[0][1].weight, plain.net.layers[1].weight)
    assert not torch.equal(first.stages[0][1].weight, second.stages[0][1].weight)


def test_a_network_that_is_no_chain_is_refused():
    with pytest.raises(UserError, match="--backbone mlp or cnn"):
        pnn(backbone="resnet18", width=0.1)
    net = tiny_method("sgd", backbone="cnn")[0].net
    assert [len(stage) for stage in stages_of(net)] == [3, 3, 4]


def test_shared_classes_are_classified_by_the_samples_own_column():
    method, _ = tiny_method("sgd", "domain-il")
    method.net.head = TaskHeads(8, [tuple(range(6))] * 3)
    net = ProgressiveNet(method.net, [tuple(range(6))] * 3)
    x, task_id = torch.randn(4, 1, 6, 6), torch.tensor([2, 0, 1, 2])
    given: list = []
    for column in net.head.columns:
        given.append(column(x, given))
    for i, t in enumerate(task_id.tolist()):
        torch.testing.assert_close(net(x, task_id)[i], given[t][-1][i])
    with net.head.only(1):
        assert torch.equal(net(x, task_id), given[1][-1])
