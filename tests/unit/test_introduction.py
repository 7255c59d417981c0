"""The lines with which a run begins."""

from engram.utils.runs.introduction import introduction
from engram.utils.training.trainer import Trainer
from tests.conftest import tiny_method


def test_a_run_says_where_it_lies_and_what_it_computes_on_what(tmp_path):
    method, config = tiny_method("sgd", device="cpu", debug_mode=True)
    method.benchmark.notes.append("a note")
    run, device, stream, note, debug = introduction(config, tmp_path, Trainer(config, method, tmp_path))
    assert run == f"run:     {tmp_path}"
    assert device.startswith("device:  cpu (") and "chosen by --device" not in device
    assert stream == "stream:  seq-digits, class-il, 3 tasks, sgd on mlp, seed 0"
    assert note == "data:    a note"
    assert debug == "debug:   at most 5 steps per epoch, nothing is sent to MLflow"
