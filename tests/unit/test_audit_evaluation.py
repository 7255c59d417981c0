"""The audit of evaluations: what it computes is what the methods do, and what the public port did."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from engram import main as program
from engram.scripts import audit_evaluation, report
from engram.scripts.audit_evaluation import ORDERS, TestSet, evaluations, in_batches
from engram.scripts.studies.dualprompt_reshaped import DualPromptReshaped, reshaped
from tests.conftest import ROOT, tiny_method
from tests.contract.test_methods import train
from tests.reference.test_dualprompt import learned
from tests.unit.stored_records import stored_record

L2P = {"prompt_init": "wide", "pool_size": 6, "prompt_length": 2, "n_prompts": 2}


@pytest.fixture(scope="module")
def dualprompt():
    """A trained one whose test images choose prompts of all tasks."""
    return learned()[0]


@pytest.fixture(scope="module")
def l2p():
    """One with learned prompts, whose keys are near to the queries of some test images."""
    method, config = tiny_method("l2p", lr=0.01, **L2P)
    train(method, config)
    queries = method.evaluate(method.query, method.benchmark.test(3).x_raw)
    with torch.no_grad():
        method.pool.keys.copy_((queries - queries.mean(0))[::5])
        method.pool.prompts.mul_(10)
    return method


def test_each_order_has_every_image_once_in_batches_of_its_kind():
    y, draws = torch.tensor([0, 1, 2, 3, 0, 1, 2, 3, 0, 1]), torch.Generator().manual_seed(1)
    for order in ORDERS:
        batches = in_batches(order, y, y // 2, 4, draws)
        assert sorted(torch.cat(batches).tolist()) == list(range(10))
        if order == "by class":
            assert y[torch.cat(batches)].tolist() == sorted(y.tolist())
        if order == "by task":
            assert [len(batch) for batch in batches] == [4, 2, 4]
            assert all(len((y[batch] // 2).unique()) == 1 for batch in batches)


@pytest.mark.parametrize("model", ["l2p", "dualprompt"])
def test_a_vote_of_one_is_none_and_others_are_what_the_method_predicts_with_its_flag(
    model, request, monkeypatch
):
    method = request.getfixturevalue(model)
    test = TestSet(method)
    x, task_id = method.benchmark.augment.normalise(test.samples.x_raw), test.samples.task_id
    alone = test.logits(test.choices)
    torch.testing.assert_close(alone, method.predict(x, task_id), rtol=1e-4, atol=1e-5)
    assert torch.equal(test.logits(test.voted(torch.arange(len(x)).split(1))), alone)
    draws = torch.Generator().manual_seed(0)
    batches = in_batches("shuffled", test.samples.y, task_id, 4, draws)
    voted = test.logits(test.voted(batches))
    assert not torch.allclose(voted, alone, atol=1e-3)
    n_computed = len(test.known)
    assert torch.equal(test.logits(test.voted(batches)), voted) and len(test.known) == n_computed
    monkeypatch.setattr(method, "options", replace(method.options, batchwise_prompt=True))
    for batch in batches:
        expected = method.predict(x[batch], task_id[batch])
        torch.testing.assert_close(voted[batch], expected, rtol=1e-4, atol=1e-5)


def test_the_reshape_gives_keys_of_two_images_then_values_of_two(dualprompt):
    prompts, choices = dualprompt.prompts, [2, 0, 1, 1, 0]
    mixed = reshaped(prompts, torch.tensor(choices)).prefixes
    for i, layer in enumerate(prompts.e_layers):
        entries = [prompts.e[task][i, part] for part in (0, 1) for task in choices]  # k of all, v of all
        for n in range(len(choices)):
            assert torch.equal(mixed[layer][0][n], entries[2 * n])
            assert torch.equal(mixed[layer][1][n], entries[2 * n + 1])
    right, alone = (
        gather(torch.tensor([2])).prefixes for gather in (prompts, lambda c: reshaped(prompts, c))
    )
    assert all(torch.equal(a, b) for layer in right for a, b in zip(right[layer], alone[layer], strict=True))
    shared = prompts.g_layers[0]
    assert torch.equal(mixed[shared][0], prompts(torch.tensor(choices)).prefixes[shared][0])


def test_batches_that_share_a_pass_are_mixed_up_each_on_its_own(dualprompt, monkeypatch):
    test = TestSet(dualprompt)
    x, task_id = dualprompt.benchmark.augment.normalise(test.samples.x_raw), test.samples.task_id
    batches = in_batches("shuffled", test.samples.y, task_id, 4, torch.Generator().manual_seed(0))
    monkeypatch.setattr(audit_evaluation, "PASS", 12)
    logits = test.reshaped(batches)
    for batch in batches:
        expected = DualPromptReshaped.logits_with(
            dualprompt, x[batch], test.choices[batch, 0], task_id[batch]
        )
        torch.testing.assert_close(logits[batch], expected, rtol=1e-4, atol=1e-5)


def test_evaluations_of_one_network_in_every_way(dualprompt):
    rows = list(evaluations(dualprompt, False, [1, 4]))
    ways = [(row["practice"], row.get("order"), row.get("batch_size")) for row in rows]
    assert len(set(ways)) == len(ways) == 1 + 3 + 2
    none = rows[0]["class_il"]
    y, task_id = (dualprompt.benchmark.test(3)[i] for i in (1, 2))
    predicted = TestSet(dualprompt).logits(TestSet(dualprompt).choices).argmax(1)
    expected = np.mean([(predicted == y)[task_id == task].double().mean().item() for task in range(3)])
    assert none == pytest.approx(expected)
    assert any(row["task_il"] != rows[0]["task_il"] for row in rows)
    assert json.loads(json.dumps(rows)) == rows
    rows = list(evaluations(dualprompt, True, [1, 4]))
    assert [(row["practice"], row.get("batch_size")) for row in rows] == [
        ("none", None), ("reshape", 1), ("reshape", 4), ("reshape", 1), ("reshape", 4)
    ]  # fmt: skip
    assert all(row["task_il"] == rows[0]["task_il"] for row in rows if row.get("batch_size") == 1)


@pytest.mark.slow
def test_runs_are_audited_once_and_their_table_is_made(folder, capsys):
    flags = ["--dataset", "seq-digits", "--backbone", "small_vit", "--embed_dim", "16", "--depth", "2"]
    flags += ["--num_heads", "2", "--e_layers", "1", "--g_layers", "0", "--n_iters", "2", "--disable_log"]
    flags += ["--precision", "bf16", "--ignore_other_metrics", "--output_dir", str(folder / "audit")]
    for model in ("dualprompt", str(ROOT / "scripts" / "studies" / "dualprompt_reshaped.py")):
        assert program.main(["--model", model, *flags]) == 0
    assert audit_evaluation.main([str(folder), "--num_threads", "x"]) == 2
    assert "--num_threads x: expected a whole number" in capsys.readouterr().err
    assert audit_evaluation.main([str(folder), "--batch_sizes", "64"]) == 0
    paths = sorted(folder.rglob("audit.json"))
    times = [path.stat().st_mtime_ns for path in paths]
    assert audit_evaluation.main([str(folder), "--batch_sizes", "64"]) == 0
    assert len(paths) == 2 and [path.stat().st_mtime_ns for path in paths] == times
    for path in paths:
        none = json.loads(path.read_text())["evaluations"][0]
        R = json.loads((path.parent / "results.json").read_text())["class_il"]["R"]
        if path.parent.parent.name == "dualprompt":  # the other one's R is made with the reshape
            assert none["class_il"] == pytest.approx(np.mean(R[-1]), abs=0.005)
    capsys.readouterr()
    assert report.main(["audit", str(folder / "audit")]) == 0
    shown = capsys.readouterr().out
    assert shown.count("| vote of the batch | dualprompt | ") == 3
    assert shown.count("| reshape in evaluation | ") == shown.count("| reshape in training too | ") == 2
    assert audit_evaluation.main([str(folder), "--batch_sizes", "0"]) == 2


@pytest.mark.parametrize(
    ("flags", "finished"),
    [({}, True), ({"train_classes": "all"}, False), ({"pixel_mean": [0.0]}, False), ({"model": "ncm"}, False),
     ({"batchwise_prompt": True}, False), ({"model": "/x/dualprompt_reshaped.py"}, True)],
)  # fmt: skip
def test_what_is_audited(flags, finished):
    config = {"model": "l2p", "dataset": "x", "seed": 0, "train_classes": "task", "pixel_mean": []} | flags
    assert audit_evaluation.is_audited(stored_record(config)) == finished
