"""Checkpoints: atomic, safe to load, and honest about what cannot be saved."""

import pickle

import pytest
import torch

from engram.backbones.backbone import load_weights
from engram.memorization.cli import SETTINGS, saved_settings
from engram.memorization.store import NetworkStore
from engram.models.parts import learned
from engram.utils import checkpoint, files, state
from engram.utils.checkpoint import CheckpointError
from engram.utils.errors import UserError
from engram.utils.runs.run_dir import RunDir
from engram.utils.training.trainer import Trainer
from tests.conftest import small_batch, tiny_method


def test_round_trip_and_no_leftovers(tmp_path):
    path = tmp_path / "deep" / "checkpoint.pt"
    content = {"a": torch.arange(3), "b": [1, 2.5, "x", None], "c": {"d": True}}
    checkpoint.write(content, path)
    checkpoint.write(content, path)
    found = checkpoint.read(path)
    assert torch.equal(found["a"], content["a"]) and found["b"] == content["b"] and found["c"] == content["c"]
    assert [p.name for p in path.parent.iterdir()] == ["checkpoint.pt"]


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "checkpoint.pt"
    checkpoint.write({"good": 1}, path)
    with pytest.raises((AttributeError, pickle.PicklingError)):
        checkpoint.write({"bad": lambda: None}, path)
    assert checkpoint.read(path) == {"good": 1}


def test_damage_is_one_clear_error(tmp_path):
    path = tmp_path / "checkpoint.pt"
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        checkpoint.read(path)
    checkpoint.write({"a": torch.zeros(1000)}, path)
    whole = path.read_bytes()
    for damaged in (b"", b"junk", whole[: len(whole) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="damaged or not a checkpoint"):
            checkpoint.read(path)


class Evil:
    def __reduce__(self):
        return (print, ("this must never run",))


def test_code_in_a_checkpoint_is_refused(tmp_path, capsys):
    path = tmp_path / "evil.pt"
    torch.save({"a": Evil()}, path)
    with pytest.raises(CheckpointError, match="damaged or not a checkpoint"):
        checkpoint.read(path)
    assert "never run" not in capsys.readouterr().out


def test_what_cannot_be_saved_is_named():
    with pytest.raises(TypeError, match=r"ER.helper\['f'\] is a function"):
        state.pack({"f": print.__call__ if False else (lambda: None)}, "ER.helper")


def test_generators_continue():
    generator = torch.Generator().manual_seed(1)
    torch.rand(5, generator=generator)
    saved = state.pack({"draws": generator}, "x")
    expected = torch.rand(5, generator=generator)
    fresh = torch.Generator()
    state.unpack({"draws": fresh}, saved, torch.device("cpu"), "x")
    assert torch.equal(torch.rand(5, generator=fresh), expected)


def test_a_generator_of_another_kind_of_device_starts_anew():
    """CUDA's states have 16 bytes, the CPU's 5,056: a run may be opened where it was not made."""
    fresh = torch.Generator().manual_seed(3)
    before = fresh.get_state()
    state.unpack({"draws": fresh}, {"draws": torch.zeros(16, dtype=torch.uint8)}, torch.device("cpu"), "x")
    assert torch.equal(fresh.get_state(), before)


@pytest.mark.parametrize(
    "content", [{"net": {"a": 1}}, {"net": {1: "x"}}, {"method": None}, {"method": {}}, {}]
)
def test_weights_of_another_form_are_one_line(tmp_path, content):
    checkpoint.write(content, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match=r"w\.pt: holds no network weights"):
        checkpoint.read_weights(str(tmp_path / "w.pt"))


def test_weights_with_odd_names_are_named():
    with pytest.raises(
        UserError, match=r"2 tensors differ: 7 \(none here, 2 there\), weight \(2x2 here, none"
    ):
        load_weights(torch.nn.Linear(2, 2, bias=False), {7: torch.zeros(2)})


def learned_file(method, config, path):
    """A checkpoint after the last task, as the trainer writes it."""
    content = {
        "config": config.flat(),
        "classes": method.benchmark.class_names,
        "method": method.state_dict(),
    }
    checkpoint.write({**content, "position": {"task": 3, "epoch": 0, "step": 0}}, path)
    return {"loadcheck": str(path), "inference_only": True}


@pytest.mark.parametrize(
    ("model", "flags", "message"),
    [
        ("l2p", {"prompt_length": 3, "lr": 0.2}, "does not fit, --prompt_length is 3, there 5; give"),
        ("er", {"hidden_sizes": (7,)}, r"does not fit, --hidden_sizes is \[7\], there \[8\]; give"),
    ],
)
def test_flags_that_do_not_fit_what_was_learned_are_named(tmp_path, model, flags, message):
    given = learned_file(*tiny_method(model), tmp_path / "checkpoint.pt")
    with pytest.raises(UserError, match=message):
        learned.restore(*tiny_method(model, **given, **flags))


def test_weights_alone_are_all_that_l2p_predicts_with(tmp_path):
    """Its prompts are in the network."""
    trained, _ = tiny_method("l2p", seed=1)
    checkpoint.write({"net": trained.net.state_dict()}, tmp_path / "last.pt")
    method, config = tiny_method("l2p", loadcheck=str(tmp_path / "last.pt"), inference_only=True)
    batch = small_batch(method, method.benchmark.tasks[0])
    before = method.predict(batch.x, batch.task_id)
    learned.restore(method, config)
    predicted = method.predict(batch.x, batch.task_id)
    assert torch.equal(predicted, trained.predict(batch.x, batch.task_id))
    assert not torch.equal(predicted, before)


@pytest.mark.parametrize("content", ["[]", "null", "3", "{"])
def test_damaged_settings_of_a_study_are_one_line(tmp_path, content):
    (tmp_path / SETTINGS).write_text(content)
    with pytest.raises(UserError, match=r"settings\.json: damaged"):
        saved_settings(str(tmp_path))


def test_a_damaged_name_of_the_mlflow_run_is_no_traceback(tmp_path):
    (tmp_path / "mlflow_run").write_bytes(b"\xff\xfe pending")
    assert not RunDir(tmp_path).logged
    (tmp_path / "mlflow_run").unlink()
    (tmp_path / "mlflow_run").mkdir()
    RunDir(tmp_path).track(None, pending=False)  # at the end of a run without MLflow
    assert (tmp_path / "mlflow_run").is_dir() and RunDir(tmp_path).tracking_id is None


def test_a_checkpoint_that_is_a_link_to_itself_is_damaged_and_not_missing(tmp_path):
    method, config = tiny_method("sgd")
    (tmp_path / "checkpoint.pt").symlink_to("checkpoint.pt")
    with pytest.raises(UserError, match=r"checkpoint\.pt: damaged"):
        Trainer(config, method, tmp_path, quiet=True).load()


def test_a_link_to_itself_is_not_written_through(tmp_path):
    (tmp_path / "x").symlink_to("x")
    with pytest.raises(UserError, match="a link that leads to itself"):
        files.write_text("text", tmp_path / "x")


@pytest.mark.parametrize(
    "content", [{"repeat": 2, "net": {}}, {"repeat": 1}, {"net": {}}, {"repeat": 1, "net": 3}]
)
def test_the_network_of_another_repeat_is_refused(tmp_path, content):
    store = NetworkStore(str(tmp_path))
    checkpoint.write(content, store.path(1))
    with pytest.raises(UserError, match="not the network of repeat 1"):
        store.load(1)
