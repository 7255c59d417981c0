"""The speed programs: purposes add up, nothing is left patched, JSON and picture hold what was measured."""

import json
import math
import time
from collections import Counter
from dataclasses import replace

import pytest
import torch

from engram.backbones import compiled
from engram.models.sgd import SGD
from engram.scripts.bench import __main__, data, methods, precision, prompts, seeds, shards, startup, steps
from engram.scripts.bench.methods import METHODS, Stream, against, bare_epoch
from engram.scripts.bench.steps import Settings, Stopwatch
from engram.scripts.bench.timing import Figure, process_bytes, random_source
from engram.utils import compat
from engram.utils.config.config import resolve
from tests.waiting import TickingClock

SMALL = Settings(backbone="mlp", batch_size=4, n_steps=5)
CPU = torch.device("cpu")


def test_an_inner_purpose_does_not_count_for_the_outer(monkeypatch):
    clock = iter([0.0, 1.0, 3.0, 6.0, 10.0, 15.0])
    monkeypatch.setattr(steps.time, "perf_counter", lambda: next(clock))
    watch = Stopwatch(CPU)
    with watch.during("outer"):  # 0 to 15
        with watch.during("inner"):  # 1 to 3
            pass
        with watch.during("inner"):  # 6 to 10
            pass
    assert dict(watch.seconds) == {"inner": 2.0 + 4.0, "outer": 1.0 + 3.0 + 5.0}


@pytest.fixture
def clock(monkeypatch) -> TickingClock:
    """Time that passes with every look at it."""
    clock = TickingClock()
    for name in ("monotonic", "perf_counter"):
        monkeypatch.setattr(time, name, clock)
    return clock


def test_the_split_adds_up_to_the_epoch_and_leaves_nothing_behind(clock):
    stream = SMALL.stream("er", compiled=False)
    method, before = stream.trainer.method, (torch.Tensor.backward, compat.backward)
    own = {thing: set(vars(thing)) for thing in (method, method.net, method.buffer, stream.benchmark)}
    started = clock()
    parts = steps.split(stream)
    passed = clock() - started
    assert set(parts) == {"data", "forward", "backward", "optimizer", "buffer", "method", "trainer"}
    assert 0 < sum(parts.values()) * stream.n_steps <= passed
    assert (torch.Tensor.backward, compat.backward) == before
    assert {thing: set(vars(thing)) for thing in own} == own


@pytest.mark.parametrize(("batch_size", "n_steps"), [(1, 1), (2, 1), (1, 3), (4, 5)])
def test_an_epoch_has_as_many_steps_as_it_is_told(batch_size, n_steps):
    settings = replace(SMALL, batch_size=batch_size, n_steps=n_steps)
    assert settings.stream("sgd", compiled=False).n_steps == n_steps


def test_images_in_shards_are_measured_and_removed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(shards, "SHAPE", (3, 16, 16))
    monkeypatch.setattr(shards, "IMAGE", 3 * 16 * 16)
    assert shards.main(["--gb", "1e-5", "--folder", str(tmp_path), "--n_tasks", "2"]) == 0
    told = capsys.readouterr().out
    assert "cold: " in told and "again: " in told and "200 images from disk against from memory: " in told
    assert list(tmp_path.iterdir()) == []


def test_bare_steps_are_as_many_and_as_wide_as_the_methods(monkeypatch):
    stream = SMALL.stream("derpp", compiled=False)
    net, widths = stream.trainer.method.net, []
    net.layers[0].register_forward_hook(lambda module, given, out: widths.append(len(given[0])))
    bare_epoch(stream, METHODS["derpp"])
    assert widths == [4] * 3 * stream.n_steps == [4] * 15
    widths.clear()
    stream.epoch()
    assert widths == [3 * 4] * stream.n_steps, "the same samples, in one pass of its own"


@pytest.mark.slow
def test_only_our_side_is_compiled(monkeypatch):
    monkeypatch.setattr(compiled, "BACKEND", {"backend": "aot_eager"})
    settings = replace(SMALL, compile=True, against=steps.AGAINST)
    stream, sides = settings.stream("er", compiled=True), []
    assert isinstance(stream.trainer.method.net.features, compiled.CompiledFeatures)
    monkeypatch.setattr(steps, "bare_steps", lambda other, *args: sides.append(other) or 1.0)
    monkeypatch.setattr(steps, "bare_epoch", lambda other, case: sides.append(other) or 1.0)
    for other in ("bare", "loader"):
        steps.compared(settings, "er", stream, other)
    assert sides and not any(
        isinstance(s.trainer.method.net.features, compiled.CompiledFeatures) for s in sides
    )
    assert "compiled" in steps.compared(settings, "er", stream, "plain").text
    assert stream.trainer.method.net.features.compiled is not None
    torch._dynamo.reset()


def test_the_loader_has_the_same_images(monkeypatch):
    source = random_source(30, 2, (1, 28, 28))
    loader = data.pil_loader(source, 0, 20, 8, SMALL.augment)
    seen = torch.cat([x for x, _ in loader])
    assert len(seen) == 20
    torch.testing.assert_close(
        seen.sum((1, 2, 3)).sort().values,
        SMALL.augment.normalise(source.train_x[:20]).sum((1, 2, 3)).sort().values,
    )


def test_a_product_takes_two_operations_a_term():
    stream = SMALL.stream("sgd", compiled=False)
    macs = 784 * 100 + 100 * 100 + 100 * 10
    forward_and_backward = 3 * macs - 784 * 100  # the images need no gradient
    assert steps.flops(stream) == 2 * 4 * forward_and_backward


@pytest.mark.slow
def test_steps_as_lines_json_and_picture(tmp_path, capsys):
    flags = ["steps", "--models", "sgd", "er", "--backbone", "mlp", "--batch_size", "4", "--n_steps", "3"]
    files = ["--json", str(tmp_path / "b.json"), "--plot", str(tmp_path / "b.png")]
    n = torch.get_num_threads()
    __main__.main([*flags, "--against", "bare", "loader", *files])
    torch.set_num_threads(n)
    told = capsys.readouterr().out.splitlines()
    kept = json.loads((tmp_path / "b.json").read_text())
    assert told[0] == kept["machine"] and "cores" in told[0]
    assert told[1:] == [figure["text"] for figure in kept["figures"]] and len(told) == 1 + 2 * 4
    assert all(math.isfinite(n) and n >= 0 for f in kept["figures"] for n in f["numbers"].values())
    assert [f["name"] for f in kept["figures"]][:3] == ["sgd / bare", "sgd / loader", "sgd"]
    assert (tmp_path / "b.png").read_bytes().startswith(b"\x89PNG")


def test_unknown_parts_and_models_are_refused(capsys):
    for flags, told in (
        (["stepz"], "invalid choice: 'stepz'"),
        (["steps", "--models", "err"], "invalid choice: 'err'"),
    ):
        with pytest.raises(SystemExit) as stop:
            __main__.main(flags)
        assert stop.value.code == 2 and told in capsys.readouterr().err


def test_the_lines_are_put_between_the_markers_of_a_file(tmp_path, monkeypatch, capsys):
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- table bench -->\nold\n<!-- end bench -->\nb\n")
    monkeypatch.setattr(__main__, "figures", lambda name, args: [Figure("x", "new", {})])
    monkeypatch.setattr(__main__, "machine", lambda device: "a machine")
    __main__.main(["data", "--update", str(page)])
    block = "<!-- table bench -->\n```text\na machine\nnew\n```\n<!-- end bench -->"
    assert page.read_text() == f"a\n{block}\nb\n"
    monkeypatch.setattr(__main__, "figures", lambda name, args: pytest.fail("measured"))
    page.write_text("no markers\n")
    assert __main__.main(["data", "--update", str(page)]) == 2
    assert "page.md: has no markers '<!-- table bench -->'" in capsys.readouterr().err


TINY_VIT = {"backbone": "small_vit", "embed_dim": 12, "depth": 5, "num_heads": 2, "batch_size": 4}


@pytest.mark.parametrize(
    ("name", "passes"),  # of a step, between two tasks for each training image, of an evaluation
    [
        ("sgd, head alone", (1, 0, 1)), ("l2p", (2, 0, 2)), ("ncm", (None, 1, 1)), ("slca", (1, 1, 1)),
        ("ease", (1, 5, 5)), ("aper, adapters", (1, 2, 2)), ("ranpac, adapters", (1, 1, 1)),
    ],
)  # fmt: skip
def test_passes_through_an_encoder_are_counted(name, passes, monkeypatch):
    monkeypatch.setattr(prompts, "alternate", lambda ours, theirs, rounds: (0.0, 0.0, 1.5))
    size = prompts.Size(TINY_VIT, side=8, n_steps=2, n_test=20, rounds=1)
    figure = prompts.figure(name, "fp32", prompts.measure(prompts.cases()[name], size, "cpu", "fp32"))
    keys = ("step_passes", "between_passes", "evaluation_passes")
    assert tuple(figure.numbers.get(key) for key in keys) == passes
    assert figure.numbers["first_task"] == (name in ("aper, adapters", "ranpac, adapters"))
    assert figure.numbers["evaluation_ratio"] == 1.5 and ("no steps" in figure.text) == (name == "ncm")


def test_every_method_that_needs_a_transformer_is_among_the_cases():
    assert {"l2p", "dualprompt", "coda_prompt", "ease", "inflora", "sd_lora"} <= prompts.cases().keys()


def test_the_peak_is_that_of_the_work_alone():
    torch.zeros(50_000_000).fill_(1)  # 200 MB, given back
    prompts.reset_peak(CPU)
    before = process_bytes("VmHWM")
    torch.zeros(25_000_000).fill_(1)
    assert 80e6 < process_bytes("VmHWM") - before < 150e6


def test_costs_have_a_table_of_their_own(tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- table bench prompts -->\nold\n<!-- end bench prompts -->\nb\n")
    none = math.nan
    costs = [prompts.Costs(none, 1, 1, none, 1.04, 30, False), prompts.Costs(2, 0, 2, 3.25, 2.01, 80, False)]
    figures = [
        prompts.figure(n, k, c) for n, c in zip(("ncm", "l2p"), costs, strict=True) for k in ("fp32", "bf16")
    ]
    monkeypatch.setattr(__main__, "figures", lambda name, args: figures)
    monkeypatch.setattr(__main__, "machine", lambda device: "a machine")
    __main__.main(["prompts", "--update", str(page)])
    lines = page.read_text().splitlines()
    assert "| ncm | – | 1 | 1 | – / – | 1.04 / 1.04 | 30 / 30 |" in lines
    assert "| l2p | 2 | 0 | 2 | 3.25 / 3.25 | 2.01 / 2.01 | 80 / 80 |" in lines
    assert lines[-2].endswith("a machine") or lines[-3].endswith("a machine")
    assert __main__.main(["data", "--update", str(page)]) == 2, "no markers for the lines"


def test_a_gpu_has_its_own_defaults():
    args = __main__.completed(__main__.parser().parse_args(["steps", "--device", "cuda"]))
    assert (args.compile, args.precision, args.against) == (True, "bf16", ["bare", "loader", "plain"])
    args = __main__.completed(__main__.parser().parse_args(["steps"]))
    assert (args.compile, args.precision, args.against) == (False, "fp32", ["bare"])


def test_steps_of_two_tasks_are_compared(monkeypatch):
    flags = {"backbone": "mlp", "batch_size": 4, "fisher_n": 2}
    early, late = (Stream("ewc", flags, 4, task, *small_images()) for task in (1, 3))
    assert (early.task.id, late.task.id) == (1, 3) and early.n_steps == 5
    monkeypatch.setattr(methods, "alternate", lambda ours, theirs, rounds: (3.0, 2.0, 1.6))
    numbers = against("late / early", late, early).numbers
    assert numbers == {"ratio": 1.6, "before_us": 1e6 * 2 / 5, "after_us": 1e6 * 3 / 5}


@pytest.mark.slow
def test_a_start_has_its_stages(tmp_path):
    flags = ["--model", "er", "--dataset", "seq-digits", "--output_dir", str(tmp_path), "--disable_log"]
    parts = startup.stages(flags)
    assert tuple(parts) == startup.MARKS and all(seconds > 0 for seconds in parts.values())


def test_what_a_run_spends_beside_its_steps(tmp_path, clock):
    flags = {"model": "er", "dataset": "seq-cifar10", "device": "cpu", "output_dir": str(tmp_path)}
    config = resolve([("test", flags | {"backbone": "mlp", "n_epochs": 1, "disable_log": True})])
    started = clock()
    spent, saves = startup.measured_run(config)
    assert len(saves) == 5, "a checkpoint after every task"
    assert spent["train"] + spent["eval"] < spent["total"] < clock() - started - sum(saves)


def test_seeds_at_once_are_compared_by_the_best_rounds(monkeypatch):
    times = iter([10.0, 31.0, 12.0, 24.0])
    asked = []
    monkeypatch.setattr(seeds, "sweep", lambda n, sharing, fixed: asked.append(n) or next(times))
    (figure,) = seeds.seeds("cpu", "data")
    assert asked == [1, 5, 1, 5]
    assert figure.numbers == {"ratio": 2.4, "one_s": 10.0, "several_s": 24.0}


def small_images():
    return random_source(80, 20, (1, 28, 28), n_classes=20), SMALL.augment


def test_precision_trains_and_evaluates_one_side_in_bf16_and_the_other_in_fp32(monkeypatch):
    monkeypatch.setattr(precision, "CASES", {"cnn": 2})
    monkeypatch.setattr(precision, "BATCH", 5)
    monkeypatch.setattr(precision, "N_TEST", 10)
    ran: list[str] = []
    own_observe, own_predict = SGD.observe, SGD.predict
    monkeypatch.setattr(
        SGD, "observe", lambda m, b: ran.append(f"train {m.net.precision}") or own_observe(m, b)
    )
    monkeypatch.setattr(
        SGD, "predict", lambda m, *a: ran.append(f"eval {m.net.precision}") or own_predict(m, *a)
    )
    training, evaluating = precision.compared("cnn", "cpu", n_threads=1, rounds=1)
    counts = Counter(ran[ran.index("train bf16", 2) :])
    assert set(counts) == {"train bf16", "train fp32", "eval bf16", "eval fp32"}
    assert counts["eval bf16"] == counts["eval fp32"]
    assert training.name == "bf16 / fp32, cnn, 1 thread, training, batch 5"
    assert evaluating.name == "bf16 / fp32, cnn, 1 thread, evaluation"
    for figure in (training, evaluating):
        assert figure.numbers["ratio"] == pytest.approx(figure.numbers["bf16_s"] / figure.numbers["fp32_s"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the device that is refused")
def test_a_device_that_is_not_there_is_refused_before_anything_is_measured(capsys):
    assert __main__.main(["precision", "--device", "cuda"]) == 2
    said = capsys.readouterr()
    assert "has no CUDA device" in said.err and not said.out
