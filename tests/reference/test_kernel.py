"""The compiled kernel against autograd, step by step."""

import copy
import itertools
import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from engram.backbones.heads import SharedHead, TaskHeads
from engram.backbones.mlp import MLP
from engram.datasets.augment import Augment
from engram.models.parts.kernel import MLPKernel
from tests.conftest import ROOT

DEPTHS = [(), (7,), (7, 5), (9, 6, 8)]
TOLERANCE = 1e-6


def network(n_inputs: int = 12, hidden: tuple[int, ...] = (7, 5), n_classes: int = 4) -> MLP:
    torch.manual_seed(1)
    net = MLP(n_inputs, hidden).attach(SharedHead(hidden[-1] if hidden else n_inputs, n_classes))
    with torch.no_grad():
        for p in net.parameters():
            if p.dim() == 1:
                p.uniform_(-0.3, 0.3)  # biases that matter
    return net


def samples(n: int, shape: tuple[int, ...], n_classes: int = 4, density: float = 0.3, seed: int = 0):
    """n images with that share of non-zero pixels, and labels."""
    g = torch.Generator().manual_seed(seed)
    x = torch.rand(n, *shape, generator=g) * (torch.rand(n, *shape, generator=g) < density)
    return x, torch.randint(n_classes, (n,), generator=g)


def naive_step(net, x, y, weights, lr: float) -> torch.Tensor:
    """θ ← θ − lr ∇ Σ w CE by autograd; returns the sum."""
    loss = (weights * F.cross_entropy(net(x), y, reduction="none")).sum()
    gradients = torch.autograd.grad(loss, list(net.parameters()))
    with torch.no_grad():
        for p, g in zip(net.parameters(), gradients, strict=True):
            p -= lr * g
    return loss.detach()


def naive_sequence(net, x, y, lr: float, scale=None) -> torch.Tensor:
    scale = torch.ones(len(y)) if scale is None else scale
    losses = []
    for i in range(len(y)):
        losses.append(F.cross_entropy(net(x[i : i + 1]), y[i : i + 1]).detach())
        naive_step(net, x[i : i + 1], y[i : i + 1], scale[i], lr)
    return torch.stack(losses)


def difference(a, b) -> float:
    """Largest absolute difference between two networks' parameters."""
    pairs = zip(a.parameters(), b.parameters(), strict=True)
    return max((p - q).abs().max().item() for p, q in pairs)


def close(a, b) -> bool:
    return torch.allclose(a, b, rtol=1e-5, atol=TOLERANCE)


@pytest.mark.parametrize("hidden", DEPTHS)
@pytest.mark.parametrize("density", [0.0, 0.2, 1.0])
def test_every_step_of_a_sequence_is_autograds(hidden, density):
    ours, theirs = network(hidden=hidden), network(hidden=hidden)
    kernel = MLPKernel(ours)
    x, y = samples(50, (1, 3, 4), density=density)
    for i in range(50):
        loss = kernel.sequence(x[i : i + 1], y[i : i + 1], 0.1)
        assert close(loss, naive_sequence(theirs, x[i : i + 1], y[i : i + 1], 0.1))
        assert difference(ours, theirs) <= TOLERANCE


@pytest.mark.parametrize("hidden", DEPTHS)
@pytest.mark.parametrize("n", [50, 100])
def test_a_sequence_in_one_call_with_scaled_losses(hidden, n):
    ours, theirs = network(hidden=hidden), network(hidden=hidden)
    x, y = samples(n, (12,))
    x[:, :3] = 0  # inputs that nobody uses
    scale = torch.rand(n) * 3
    scale[::7] = 0
    losses = MLPKernel(ours).sequence(x, y, 0.05, scale)
    assert close(losses, naive_sequence(theirs, x, y, 0.05, scale))
    assert difference(ours, theirs) <= 2 * TOLERANCE
    assert difference(ours, network(hidden=hidden)) > 0.01


def test_mers_network_on_images_as_sparse_as_digits():
    """Measured: 6e-8 after 50 steps; on digits 5e-7 after 1,010, as far as autograd is from float64."""
    shape = (1, 28, 28)
    ours, theirs = network(784, (100, 100), 10), network(784, (100, 100), 10)
    kernel = MLPKernel(ours)
    x, y = samples(50, shape, 10, density=0.19)
    for i in range(50):
        loss = kernel.sequence(x[i : i + 1], y[i : i + 1], 0.03)
        assert close(loss, naive_sequence(theirs, x[i : i + 1], y[i : i + 1], 0.03))
        assert difference(ours, theirs) <= TOLERANCE


@pytest.mark.parametrize("hidden", DEPTHS)
@pytest.mark.parametrize("n", [1, 6, 70])
def test_a_weighted_step_and_its_gradient_are_autograds(hidden, n):
    ours, theirs = network(hidden=hidden), network(hidden=hidden)
    kernel = MLPKernel(ours)
    x, y = samples(n, (12,))
    weights = torch.rand(n)
    loss = (weights * F.cross_entropy(theirs(x), y, reduction="none")).sum()
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(theirs.parameters()))])
    assert close(kernel.gradients(x, y, weights, [n]), expected[None])
    assert difference(ours, theirs) == 0, "a gradient changes nothing"
    assert close(kernel.step(x, y, weights, 0.1), naive_step(theirs, x, y, weights, 0.1))
    assert difference(ours, theirs) <= TOLERANCE


@pytest.mark.parametrize("counts", [[4, 0, 1, 15], [20], []])
def test_gradients_by_part_are_autograds(counts):
    ours, theirs = network(), network()
    kernel = MLPKernel(ours)
    x, y = samples(sum(counts), (12,))
    weights = torch.rand(len(y))
    expected = torch.zeros(len(counts), kernel.n_parameters)
    for row, xs, ys, ws in zip(expected, *(t.split(counts) for t in (x, y, weights)), strict=True):
        loss = (ws * F.cross_entropy(theirs(xs), ys, reduction="none")).sum()
        row.copy_(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(theirs.parameters()))]))
    for _ in range(2):  # what the first call leaves in its space does not reach the second
        assert close(kernel.gradients(x, y, weights, counts), expected)
    assert difference(ours, theirs) == 0


@pytest.mark.parametrize(("beta", "gamma"), [(1.0, 1.0), (0.3, 1.0), (1.0, 0.4), (0.3, 0.4)])
def test_reptile_is_sequences_with_interpolation(beta, gamma):
    ours, theirs = network(), network()
    x, y = samples(12, (12,))
    losses = MLPKernel(ours).reptile(x, y, 0.1, 3, beta, gamma)
    first, expected = copy.deepcopy(theirs), []
    for xs, ys in zip(x.split(4), y.split(4), strict=True):
        start = copy.deepcopy(theirs)
        expected.append(naive_sequence(theirs, xs, ys, 0.1))
        interpolate(theirs, start, beta)
    interpolate(theirs, first, gamma)
    assert close(losses, torch.cat(expected))
    assert difference(ours, theirs) <= TOLERANCE


@torch.no_grad()
def interpolate(net, start, rate: float) -> None:
    for p, q in zip(net.parameters(), start.parameters(), strict=True):
        p.copy_(q + rate * (p - q))


@pytest.mark.parametrize("augment", [Augment(), Augment(mean=(0.13,), std=(0.3,))])
@pytest.mark.parametrize("n", [5, 80])
def test_raw_images_are_normalised_as_the_benchmark_does(augment, n):
    raw = (samples(n, (1, 3, 4))[0] * 255).to(torch.uint8)
    y = samples(n, (1,))[1]
    every = torch.arange(256, dtype=torch.uint8).view(-1, 1, 1, 1)
    nets, lookup = (network(), network()), augment.normalise(every).flatten()
    losses = MLPKernel(nets[0], lookup).sequence(raw, y, 0.1)
    assert torch.equal(losses, MLPKernel(nets[1]).sequence(augment.normalise(raw), y, 0.1))
    assert difference(*nets) == 0


def test_parameters_loaded_changed_or_moved_are_seen():
    net = network()
    kernel = MLPKernel(net)
    x, y = samples(5, (12,))
    kernel.sequence(x, y, 0.1)
    other = network()
    naive_sequence(other, x, y, 0.3)
    changes = [lambda: net.load_state_dict(other.state_dict())]
    changes += [lambda: [p.data.mul_(0.5) for p in net.parameters()]]
    changes += [lambda: [setattr(p, "data", p.data * 0.5) for p in net.parameters()]]
    changes += [lambda: [setattr(net.head.weight, "data", net.head.weight.data.contiguous() * 0.5)]]
    changes += [lambda: [setattr(p, "data", p.data.clone()) for p in list(net.parameters())[1:]]]
    for change in changes:
        change()
        theirs = copy.deepcopy(net)
        assert close(kernel.sequence(x, y, 0.1), naive_sequence(theirs, x, y, 0.1))
        assert difference(net, theirs) <= TOLERANCE


def test_inputs_are_left_alone_and_need_not_be_contiguous():
    ours, theirs = network(), network()
    x, y = samples(20, (12,))
    before = x.clone(), y.clone()
    MLPKernel(ours).sequence(x.flip(0)[::2], y.flip(0)[::2], 0.1, torch.ones(20)[::2])
    MLPKernel(theirs).sequence(x.flip(0)[::2].contiguous(), y.flip(0)[::2].contiguous(), 0.1)
    assert difference(ours, theirs) == 0
    MLPKernel(ours).sequence(x.T.contiguous().T, y, 0.1)
    MLPKernel(theirs).sequence(x, y, 0.1)
    assert difference(ours, theirs) == 0
    assert torch.equal(x, before[0]) and torch.equal(y, before[1])


def test_a_diverged_network_shows_it():
    net = network()
    with torch.no_grad():
        next(net.parameters())[0, 0] = torch.nan
    x, y = samples(2, (12,), density=1)
    assert MLPKernel(net).sequence(x, y, 0.1).isnan().all()


def test_no_samples_no_change():
    net = network()
    kernel = MLPKernel(net)
    x, y = samples(0, (12,))
    assert kernel.sequence(x, y, 0.1).shape == (0,)
    assert kernel.step(x, y, torch.empty(0), 0.1) == 0
    assert difference(net, network()) == 0


@pytest.mark.parametrize("label", [-1, 4])
def test_labels_out_of_range_are_refused_before_anything_changes(label):
    net = network()
    x, y = samples(3, (12,))
    y[2] = label
    for call in (MLPKernel(net).sequence, lambda *a: MLPKernel(net).step(*a[:2], torch.ones(3), a[2])):
        with pytest.raises(IndexError, match="label"):
            call(x, y, 0.1)
    assert difference(net, network()) == 0


def test_tensors_that_do_not_belong_together_are_refused():
    kernel = MLPKernel(network())
    x, y = samples(6, (12,))
    wrong = [(x[:5], y), (x[:, :11], y), (x.double(), y), (x, y.int()), (x, y.view(2, 3)), (x.view(3, 24), y)]
    for pair, weights in itertools.product(wrong, (None, torch.ones(6))):
        with pytest.raises(ValueError, match=r"x (must|and)"):
            kernel.sequence(*pair, 0.1, weights)
    for weights in (torch.ones(5), torch.ones(6, 1), torch.ones(6).double()):
        with pytest.raises(ValueError, match="weight"):
            kernel.step(x, y, weights, 0.1)
    with pytest.raises(ValueError, match="equal size"):
        kernel.reptile(x, y, 0.1, n_batches=4)
    for counts in ([5], [3, 4], [7, -1]):
        with pytest.raises(ValueError, match="parts of"):
            kernel.gradients(x, y, torch.ones(6), counts)
    for lookup in (torch.zeros(10), torch.zeros(256).double()):
        with pytest.raises(ValueError, match="256"):
            MLPKernel(network(), lookup)
    with pytest.raises(ValueError, match="no lookup"):
        kernel.sequence(x.to(torch.uint8), y, 0.1)


def test_what_fits():
    class Other(MLP):
        pass

    frozen = network()
    frozen.head.requires_grad_(False)
    assert MLPKernel.fits(network(), "cpu") and MLPKernel.fits(network(hidden=()), torch.device("cpu"))
    assert not MLPKernel.fits(network(), "cuda")
    assert not MLPKernel.fits(network().double(), "cpu")
    assert not MLPKernel.fits(network().to("meta"), "cpu")
    assert not MLPKernel.fits(frozen, "cpu")
    assert not MLPKernel.fits(MLP(12, (7,)).attach(TaskHeads(7, [(0, 1), (2, 3)])), "cpu")
    assert not MLPKernel.fits(Other(12, (7,)).attach(SharedHead(7, 4)), "cpu")
    assert not MLPKernel.fits(torch.nn.Linear(3, 4), "cpu")


@pytest.mark.slow
def test_numba_is_loaded_by_users_only():
    check = "import sys, engram.models.parts.kernel; assert 'numba' not in sys.modules"
    subprocess.run([sys.executable, "-c", check], cwd=ROOT, check=True)


@pytest.mark.slow
def test_nowhere_to_keep_compiled_code(tmp_path):
    """A copy of the sources whose cache folder cannot be made, for a user without a home."""
    for room in ("backbones", "utils", "datasets"):
        (tmp_path / room).symlink_to(ROOT / room)
    (tmp_path / "engram.py").write_text((ROOT / "engram.py").read_text())
    (tmp_path / "models" / "parts").mkdir(parents=True)
    for name in ("kernel.py", "kernel_layout.py", "kernel_loops.py"):
        (tmp_path / "models" / "parts" / name).write_text((ROOT / "models" / "parts" / name).read_text())
    (tmp_path / "models" / "parts" / "__pycache__").write_text("in the way")
    (tmp_path / "file").write_text("")
    nowhere = str(tmp_path / "file" / "no folder")
    environment = {**os.environ, "HOME": nowhere, "XDG_CACHE_HOME": nowhere, "PYTHONDONTWRITEBYTECODE": "1"}
    environment.pop("NUMBA_CACHE_DIR", None)
    code = (
        "import torch; from engram.backbones.mlp import MLP; from engram.backbones.heads import SharedHead\n"
        "from engram.models.parts.kernel import MLPKernel\n"
        "net = MLP(3, (4,)).attach(SharedHead(4, 2))\n"
        "print(MLPKernel(net).sequence(torch.ones(1, 3), torch.zeros(1, dtype=torch.long), 0.1).item())"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and float(done.stdout) > 0, done.stderr
