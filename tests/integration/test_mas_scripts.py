"""What a finished MAS run is good for: the tree of MAS-PyTorch, and importance from images of one's own."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from engram import main as program
from engram.datasets import sources
from engram.scripts.interop import adapt_importance, compute_forgetting, export_tasks
from engram.scripts.strengths import START_STRENGTHS
from engram.scripts.trained_run import open_trained_run
from engram.utils import device
from engram.utils.config import registry
from engram.utils.config.options import OptionSet
from engram.utils.runs.run_dir import RunDir
from tests.conftest import tiny_method
from tests.reference.test_ewc_mas import learn

pytestmark = pytest.mark.slow

FLAGS = ["--dataset", "seq-digits", "--disable_log", "--n_epochs", "2", "--batch_size", "40"]
MAS = ["--model", "mas", "--multi_head", "--mas_lambda", "0.05"]


def run(folder: Path, *flags: str) -> Path:
    """Run the program; the run's folder."""
    assert program.main([*FLAGS, *flags, "--output_dir", str(folder)]) == 0
    return max(folder.glob("*/*/*"), key=lambda p: p.stat().st_mtime_ns)


def load(path: Path):
    return torch.load(path, weights_only=True)


def state(run: Path) -> dict:
    return load(run / "checkpoint.pt")["method"]


def matrix(run: Path, view: str = "task_il") -> np.ndarray:
    return np.array(json.loads((run / "results.json").read_text())[view]["R"], dtype=float)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A multi-head run of MAS with the authors' pairs of classes."""
    return run(tmp_path_factory.mktemp("finished"), *MAS, "--class_order", "1,2,3,4,5,6,7,8,9,0")


@pytest.fixture(scope="module")
def stopped(tmp_path_factory) -> Path:
    """One that stopped after three tasks."""
    return run(tmp_path_factory.mktemp("stopped"), *MAS, "--stop_after", "3")


# --- the tree of MAS-PyTorch ------------------------------------------------------------------------


def test_the_exported_parts_are_the_network(finished, folder, capsys):
    assert export_tasks.main([str(finished), str(folder / "tree")]) == 0
    assert capsys.readouterr().out == f"{folder / 'tree'}: 5 tasks\n"
    tree, saved = folder / "tree", state(finished)
    shared, net = load(tree / "shared_model.pth"), open_trained_run(str(finished), "runs", "cpu").method.net
    assert shared.keys() == {n for n in saved["net"] if not n.startswith("head.")}
    net.load_state_dict({n: torch.zeros_like(t) for n, t in net.state_dict().items()})
    net.load_state_dict(shared, strict=False)
    for k in range(5):
        weights = load(tree / f"Task_{k + 1}" / "head.pth")
        net.head.heads[k].load_state_dict({n.removeprefix("fc."): t for n, t in weights.items()})
        assert (tree / f"Task_{k + 1}" / "classes.txt").read_text() == "2\n"
        names = (tree / f"Task_{k + 1}" / "class_names.txt").read_text().split()
        assert names == [str(2 * k + 1), str((2 * k + 2) % 10)]
    for name, value in saved["net"].items():
        assert torch.equal(net.state_dict()[name], value), name


def test_the_exported_importance_is_the_runs_by_name(finished, folder):
    export_tasks.main([str(finished), str(folder)])
    found, saved = load(folder / "reg_params"), state(finished)["quadratic"]
    assert found.pop("lambda") == pytest.approx(0.05)
    assert found.keys() == saved["importance"].keys() and not any("head" in name for name in found)
    for name, pair in found.items():
        assert torch.equal(pair["omega"], saved["importance"][name]) and pair["omega"].sum() > 0
        assert torch.equal(pair["init_val"], state(finished)["net"][name]), "the anchor is the last solution"


@pytest.mark.parametrize(
    ("model", "flags"),
    [
        ("mas", {"mas_lambda": 0.3}),
        ("mas", {"mas_lambda": 0.3, "mas_consistent": True}),
        ("ewc", {"e_lambda": 5.0, "gamma": 0.5}),
        ("ewc", {"e_lambda": 5.0, "gamma": 0.0, "ewc_mode": "separate"}),
        ("ewc", {"e_lambda": 5.0, "gamma": 0.0, "ewc_variant": "mer"}),
        ("si", {"si_c": 0.3}),
        ("rwalk", {"rwalk_lambda": 0.3}),
        ("imm_mean", {"imm_lambda": 0.3}),
        ("imm_mode", {"imm_lambda": 0.3}),
    ],
)
def test_what_is_exported_is_the_penalty_in_force(model, flags):
    """λ Σ omega (θ − init_val)², and the gradient that a step adds."""
    method, config = tiny_method(model, **flags)
    learn(method, config, 2)
    exported = export_tasks.reg_params(SimpleNamespace(method=method, name=model))
    strength, parameters = exported.pop("lambda"), method.quadratic.parameters
    for p in parameters.values():
        p.data += 0.1 * torch.sin(torch.arange(p.numel())).view_as(p)
        p.grad = torch.zeros_like(p)
    terms = [(pair["omega"] * (parameters[n] - pair["init_val"]) ** 2).sum() for n, pair in exported.items()]
    value = strength * sum(terms)
    expected = torch.autograd.grad(value, [parameters[n] for n in exported])
    expected_value = value + strength * method.quadratic.constant
    torch.testing.assert_close(strength * method.quadratic.value(), expected_value)
    method.edit_gradients(None)
    assert value > 1e-4 and exported.keys() == parameters.keys()
    for name, gradient in zip(exported, expected, strict=True):
        torch.testing.assert_close(parameters[name].grad, gradient, rtol=1e-4, atol=1e-7, msg=name)


def test_forgetting_is_read_back(finished, folder, capsys):
    export_tasks.main([str(finished), str(folder)])
    capsys.readouterr()
    compute_forgetting.main([str(folder)])
    lines, accuracy = capsys.readouterr().out.splitlines(), matrix(finished)
    after, end = 100 * np.diag(accuracy), 100 * accuracy[-1]
    assert (after != end).any(), "something was forgotten or gained"
    for k in range(5):
        assert lines[k + 1].split() == [
            f"Task_{k + 1}",
            f"{after[k]:.2f}",
            f"{end[k]:.2f}",
            f"{after[k] - end[k]:.3f}",
        ]
    assert lines[6] == f"average accuracy at the end: {end.mean():.2f}"
    mean, fewer = (after - end).mean(), (after - end)[:-1].mean()
    assert lines[7].endswith(f"{mean:.3f} over all 5 tasks; {fewer:.3f} over the first 4")
    bwt = json.loads((finished / "results.json").read_text())["task_il"]["bwt"]
    assert fewer == pytest.approx(-100 * bwt)


def test_forgetting_by_hand():
    """.9 → .7, .8 → .9, .6: (20 − 10 + 0) / 3 and / 2 points."""
    text = compute_forgetting.table([(0.9, 0.7), (0.8, 0.9), (0.6, 0.6)])
    assert "average accuracy at the end: 73.33" in text
    assert "3.333 over all 3 tasks; 5.000 over the first 2" in text
    assert "over the first" not in compute_forgetting.table([(0.9, 0.9)])


def test_a_stopped_run_with_one_head_exports_its_rows_and_class_il_accuracy(folder):
    path = run(folder / "runs", "--model", "sgd", "--stop_after", "2")
    assert export_tasks.main([str(path), str(folder / "tree")]) == 0
    assert sorted(p.name for p in (folder / "tree").iterdir()) == ["Task_1", "Task_2", "shared_model.pth"]
    head, rows = load(folder / "tree/Task_2/head.pth"), state(path)["net"]
    assert torch.equal(head["fc.weight"], rows["head.weight"][2:4])
    assert torch.equal(head["fc.bias"], rows["head.bias"][2:4])
    accuracy = matrix(path, "class_il")
    for k in range(2):
        texts = [
            (folder / f"tree/Task_{k + 1}/{n}.txt").read_text() for n in ("performance", "performance_at_end")
        ]
        assert [float(text) for text in texts] == pytest.approx([accuracy[k, k], accuracy[1, k]])


def test_classes_as_domains_are_exported_by_their_own_names(folder):
    path = run(folder / "runs", "--model", "sgd", "--scenario", "domain-il", "--n_epochs", "1")
    assert export_tasks.main([str(path), str(folder / "tree")]) == 0
    for k in range(5):
        assert (folder / f"tree/Task_{k + 1}/class_names.txt").read_text().split() == [
            str(2 * k),
            str(2 * k + 1),
        ]
        assert load(folder / f"tree/Task_{k + 1}/head.pth")["fc.weight"].shape[0] == 2


def test_what_cannot_be_exported_is_said(finished, folder, capsys):
    (folder / "full").mkdir()
    (folder / "full" / "file").touch()
    split = run(folder / "split", "--model", "independent", "--multi_head", "--n_epochs", "1")
    cases = [
        (str(finished), "full", "holds files already; give a new folder"),
        ("nowhere", "a", "no run folder of that path"),
        (str(run(folder / "joint", "--model", "joint", "--n_epochs", "1")), "b", "no sequence of tasks"),
        (str(split), "c", "share no network"),
    ]
    for path, out, message in cases:
        capsys.readouterr()
        assert export_tasks.main([path, str(folder / out)]) == 2
        assert message in capsys.readouterr().err, message
        assert not (folder / out / "Task_1").exists()
    assert compute_forgetting.main([str(folder)]) == 2
    assert "no Task_1; give a folder" in capsys.readouterr().err
    (folder / "Task_1").mkdir()
    assert compute_forgetting.main([str(folder)]) == 2
    assert "unreadable" in capsys.readouterr().err


def test_every_strength_is_a_flag_of_its_method():
    for model, flags in START_STRENGTHS.items():
        known = getattr(registry.load("models", model), "Options", OptionSet).__dataclass_fields__
        assert set(flags) <= set(known), model
        assert all(value >= known[flag].default for flag, value in flags.items()), (
            "a high value to start from"
        )


# --- importance from images of one's own ------------------------------------------------------------


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """Forty test digits, upside down, as PNG files in two folders."""
    folder = tmp_path_factory.mktemp("pictures")
    for i, image in enumerate(sources.digits().test_x[:40, 0].flip(1).numpy()):
        (folder / f"part{i % 2}").mkdir(exist_ok=True)
        Image.fromarray(image).save(folder / f"part{i % 2}" / f"{i:02}.png")
    return folder


def brute_force(method, images: torch.Tensor, tasks) -> dict[str, torch.Tensor]:
    """Σ_tasks (1/N) Σ_n |∂ ‖f_task(x_n)‖² / ∂θ|, one backward pass for each image and task."""
    names = [n for n, _ in method.net.named_parameters() if not n.startswith("head.")]
    parameters = [dict(method.net.named_parameters())[n] for n in names]
    total = [torch.zeros_like(p) for p in parameters]
    for task in tasks:
        for image in images:
            x = image[None].float() / 255
            logits = method.net.head.heads[task.id](method.net.features(x))
            gradients = torch.autograd.grad(logits.square().sum(), parameters)
            for sum_, g in zip(total, gradients, strict=True):
                sum_ += g.abs() / len(images)
    return dict(zip(names, total, strict=True))


def test_adapted_importance_is_that_of_the_images(stopped, pictures, folder, capsys):
    out = folder / "adapted"
    assert adapt_importance.main([str(stopped), str(pictures), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "importance of 3 tasks from 40 images; 2 tasks left" in said
    assert f"python main.py --resume {out}" in said
    opened = open_trained_run(str(stopped), "runs", "cpu")
    order = sorted(range(40), key=lambda i: (i % 2, i))
    images = sources.digits().test_x[:40].flip(2)[order]
    expected = brute_force(opened.method, images, opened.trainer.benchmark.tasks[:3])
    before, after = state(stopped), state(out)
    for name, value in expected.items():
        torch.testing.assert_close(after["quadratic"]["importance"][name], value, rtol=1e-4, atol=1e-6)
        assert not torch.allclose(value, before["quadratic"]["importance"][name], rtol=0.01)
        assert torch.equal(after["quadratic"]["anchor"][name], before["quadratic"]["anchor"][name])
    assert all(torch.equal(after["net"][n], t) for n, t in before["net"].items())
    assert len(after["totals"]) == 3


@pytest.mark.parametrize(("flags", "expected"), [((), 1), (("--num_threads", "3"), 3)])
def test_programs_that_open_a_run_take_its_threads_no_more_than_the_environment_says_or_those_given(
    flags, expected, stopped, pictures, folder, monkeypatch
):
    flags_of_run = RunDir(stopped).load_config() | {"num_threads": 2}
    monkeypatch.setattr(RunDir, "load_config", lambda self: flags_of_run)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    counts = []
    monkeypatch.setattr(device, "set_threads", lambda requested, backbone: counts.append(requested))
    assert export_tasks.main([str(stopped), str(folder / "tree"), *flags]) == 0
    assert adapt_importance.main([str(stopped), str(pictures), "--out", str(folder / "out"), *flags]) == 0
    assert counts == [expected, expected]


def test_the_adapted_run_goes_on_with_a_penalty_and_the_other_is_untouched(stopped, pictures, folder, capsys):
    before = (stopped / "checkpoint.pt").read_bytes(), matrix(stopped)
    out = folder / "adapted"
    adapt_importance.main([str(stopped), str(pictures), "--out", str(out)])
    adapted = open_trained_run(str(out), "runs", "cpu").method
    with torch.no_grad():
        for p in adapted.quadratic.parameters.values():
            p.add_(0.1)
    assert adapted.quadratic.value() > 0, "the importance is in force after a reload"
    assert program.main(["--resume", str(out)]) == 0
    document = json.loads((out / "results.json").read_text())
    assert document["status"] == "finished"
    assert np.array_equal(matrix(out)[:3], before[1][:3]) and not np.isnan(matrix(out)).any()
    assert (stopped / "checkpoint.pt").read_bytes() == before[0]
    plain = folder / "plain"
    plain.mkdir()
    for name in ("config.yaml", "checkpoint.pt"):
        (plain / name).write_bytes((stopped / name).read_bytes())
    assert program.main(["--resume", str(plain)]) == 0
    assert np.array_equal(matrix(plain)[:3], matrix(out)[:3])
    differs = [not torch.equal(state(out)["net"][n], t) for n, t in state(plain)["net"].items()]
    assert any(differs), "the next tasks are learned differently"


def test_the_default_place_is_beside_the_run_and_is_not_overwritten(stopped, pictures, capsys):
    assert adapt_importance.main([str(stopped), str(pictures)]) == 0
    assert (stopped.parent / f"{stopped.name}-adapted" / "checkpoint.pt").exists()
    assert adapt_importance.main([str(stopped), str(pictures)]) == 2
    assert "exists already; give another --out" in capsys.readouterr().err


def test_a_finished_run_is_adapted_too(finished, pictures, folder, capsys):
    assert adapt_importance.main([str(finished), str(pictures), "--out", str(folder / "x")]) == 0
    said = capsys.readouterr().out
    assert "importance of 5 tasks from 40 images; 0 tasks left" in said and "--resume" not in said


def test_what_cannot_be_adapted_is_said(stopped, pictures, folder, capsys):
    empty = folder / "empty"
    empty.mkdir()
    other = run(folder / "ewc", "--model", "ewc", "--n_epochs", "1")
    off = run(folder / "off", "--model", "mas", "--mas_lambda", "0", "--n_epochs", "1")
    cases = [
        ([str(other), str(pictures)], "--model ewc; only mas takes its importance without labels"),
        ([str(off), str(pictures)], "has no importance yet"),
        ([str(stopped), str(empty)], "no image in it or below it"),
        ([str(stopped), str(folder / "no")], "no such folder"),
        (["nowhere", str(pictures)], "no run folder of that path"),
    ]
    for arguments, message in cases:
        capsys.readouterr()
        assert adapt_importance.main([*arguments, "--out", str(folder / "out")]) == 2
        assert message in capsys.readouterr().err
        assert not (folder / "out").exists()


def test_a_run_that_stands_inside_a_task_is_refused(stopped, pictures, folder, capsys):
    inside = folder / "inside"
    inside.mkdir()
    (inside / "config.yaml").write_bytes((stopped / "config.yaml").read_bytes())
    saved = load(stopped / "checkpoint.pt")
    saved["position"] |= {"epoch": 1, "step": 2}
    torch.save(saved, inside / "checkpoint.pt")
    assert adapt_importance.main([str(inside), str(pictures)]) == 2
    assert "stopped inside task 3; let it be learned first" in (said := capsys.readouterr().err)
    assert f"python main.py --resume {inside} --stop_after 4" in said
    (inside / "checkpoint.pt").unlink()
    assert adapt_importance.main([str(inside), str(pictures)]) == 2
    assert "no checkpoint.pt; no task of this run has been learned" in capsys.readouterr().err
