"""APER and RanPAC's first phase: adapt to the first task, freeze, and go on from the features by hand."""

import io
import json

import pytest
import torch
import torch.nn.functional as F

from engram.main import main
from engram.utils.errors import UserError
from tests.conftest import built, tiny_config, tiny_method
from tests.contract.test_methods import assert_same, classes_of, steps, train, weights

KINDS = ["adapter", "ssf", "vpt", "lora", "full"]
VIT = {"backbone": "timm:test_vit", "input_size": 16}


def adapting(model, kind, **flags):
    if kind != "full":
        pytest.importorskip("timm")
        flags = {**VIT, "first_task_size": 0 if kind == "ssf" else 8, **flags}
    return tiny_method(model, n_iters=3, **{**classes_of(model).quick_flags, **flags, "first_task": kind})


@pytest.mark.parametrize(
    ("model", "kind"), [*(("aper", kind) for kind in KINDS), ("ranpac", "ssf"), ("fecam", "adapter")]
)
def test_the_encoder_learns_in_the_first_task_alone(model, kind):
    method, config = adapting(model, kind)
    start = weights(method)
    train(method, config, tasks=1)
    adapted = weights(method)
    moved = {name for name in start if not torch.equal(start[name], adapted[name])}
    assert moved and not any(name.startswith("head.") for name in moved)
    inside = {"adapter": ".adapter.", "ssf": ".scale_shift.", "vpt": "visual_prompts.", "lora": ".lora."}
    assert all(inside.get(kind, "") in name for name in moved)
    method, config = adapting(model, kind)
    train(method, config)
    assert_same(weights(method), adapted)


def test_aper_is_the_nearest_mean_of_both_features():
    """w_c and the cosine by a loop; the features of before come from an untouched network."""
    method, config = adapting("aper", "adapter")
    before = adapting("aper", "adapter")[0].net
    train(method, config)
    x, y = (
        torch.cat(field) for field in zip(*map(both(method, before), method.benchmark.tasks), strict=True)
    )
    means = torch.stack([x[y == label].mean(0) for label in range(method.benchmark.n_classes)])
    images = method.benchmark.augment.normalise(method.benchmark.test(3).x_raw)
    with torch.no_grad():
        z = torch.cat([before.eval().features(images), method.net.eval().features(images)], 1).double()
        got = method.predict(images, torch.zeros(len(images), dtype=torch.long))
    expected = torch.stack([torch.stack([F.cosine_similarity(a, w, dim=0) for w in means]) for a in z])
    torch.testing.assert_close(got, expected.float())
    assert not torch.equal(z[:, : z.shape[1] // 2], z[:, z.shape[1] // 2 :])


def n_bytes(content):
    torch.save(content, file := io.BytesIO())
    return len(file.getvalue())


@pytest.mark.parametrize("kind", ["adapter", "full"])
def test_a_checkpoint_of_aper_holds_frozen_weights_once(kind):
    """Adapters leave the encoder as it was; where all of it learns, a second one is kept."""
    method, config = adapting("aper", kind)
    before = {name: p.clone() for name, p in method.pretrained.state_dict().items()}
    train(method, config, tasks=1)
    assert_same(method.pretrained.state_dict(), before)
    state = method.state_dict()
    more = n_bytes(state) - n_bytes(state | {"pretrained": {}})
    shared = sum(p.nbytes for name, p in before.items() if not name.startswith("head."))
    assert (more < shared) == (kind == "adapter")
    resumed, _ = adapting("aper", kind, seed=1)
    resumed.load_state_dict(state)
    assert_same(resumed.pretrained.state_dict(), before)
    assert_same(weights(resumed), weights(method))


def both(method, before):
    """task → features (N, 2D) of its training images before and after adaptation, and labels."""

    def of(task):
        samples = method.benchmark.train(task)
        x = method.benchmark.augment.normalise(samples.x_raw)
        with torch.no_grad():
            pair = [net.eval().features(x).flatten(1) for net in (before, method.net)]
        return torch.cat(pair, 1).double(), samples.y

    return of


def test_the_first_phase_minimises_a_cosine_heads_cross_entropy():
    method, _ = adapting("aper", "full")
    task = method.benchmark.tasks[0]
    method.enter(task)
    batch = next(method.benchmark.batches(task, 0, 4))
    z, w = method.net.features(batch.x).flatten(1), torch.cat(list(method.classifier.embeddings))
    cosines = (z / z.norm(dim=1, keepdim=True)) @ (w / w.norm(dim=1, keepdim=True)).T
    torch.testing.assert_close(method.loss(batch), F.cross_entropy(cosines, batch.y))
    assert cosines.shape[1] == len(task.classes) and float(method.classifier.scale.detach()) == 1


def test_without_adaptation_ranpac_is_what_it_was():
    plain, _ = tiny_method("ranpac", rp_size=16)
    assert not plain.takes_steps_in(plain.benchmark.tasks[0])
    assert plain.keeps_encoder(plain.options) and "classifier" not in plain.state_dict()
    adapting_one, _ = adapting("ranpac", "full", rp_size=16)
    assert torch.equal(adapting_one.projection, plain.projection)
    assert not adapting_one.keeps_encoder(adapting_one.options)


def test_a_run_that_is_stopped_in_the_first_task_goes_on(tmp_path):
    """The steps of the first task alone are counted, and a resumed run has the same R."""
    flags = ["--model", "aper", "--dataset", "seq-digits", "--first_task", "full", "--disable_log"]
    flags += ["--n_iters", "4", "--batch_size", "32", "--lr", "0.01"]
    assert not main([*flags, "--output_dir", str(tmp_path / "whole")])
    assert not main([*flags, "--output_dir", str(tmp_path / "halves"), "--stop_after", "1"])
    (run,) = (path.parent for path in (tmp_path / "halves").rglob("checkpoint.pt"))
    assert not main(["--resume", str(run)])
    whole, halves = (next((tmp_path / name).rglob("results.json")) for name in ("whole", "halves"))
    documents = [json.loads(path.read_text()) for path in (whole, halves)]
    assert documents[0]["class_il"]["R"] == documents[1]["class_il"]["R"]


def test_what_cannot_be_is_said():
    with pytest.raises(UserError, match="this network takes no adapter"):
        tiny_method("aper")
    with pytest.raises(UserError, match="--cache_features on: --first_task full changes the encoder"):
        built(tiny_config("aper", first_task="full", cache_features="on"))
    pytest.importorskip("timm")
    with pytest.raises(UserError, match="leave --tune out"):
        tiny_method("aper", tune="adapter", **VIT)
    with pytest.raises(UserError, match="--cache_features on: --tune lora changes the encoder"):
        built(tiny_config("er", buffer_size=4, tune="lora", cache_features="on", **VIT))


def test_saved_between_tasks_it_goes_on():
    method, config = adapting("aper", "adapter")
    train(method, config, tasks=1)
    restored, _ = adapting("aper", "adapter")
    restored.load_state_dict(method.state_dict())
    for learner in (method, restored):
        steps(learner, config, n=1)
        learner.end_task(learner.benchmark.tasks[1])
    assert torch.equal(method.sums, restored.sums)
