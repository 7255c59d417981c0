"""scripts/check_plugin.py: a file of one's own under the contract suite."""

import subprocess
import sys

import pytest

from engram.scripts import check_plugin
from tests.conftest import ROOT
from tests.waiting import LIMIT

NETWORK = '''"""A network whose answers depend on what else is in the batch."""

from torch import nn

from engram.backbones.backbone import Backbone


class Wrong(Backbone):
    """Linear features, to which the batch's mean is added."""

    feature_dim = 4

    def __init__(self, n_inputs):
        super().__init__()
        self.map = nn.Linear(n_inputs, 4)

    def features(self, x):
        return self.map(x.flatten(1)) + x.mean(ELSE)


def build(options, input_shape, name):
    c, h, w = input_shape
    return Wrong(c * h * w)
'''


@pytest.mark.slow
def test_it_says_what_passed_what_failed_and_why(tmp_path):
    """In a process of its own: the suite is collected for the one plugin."""
    plugin = tmp_path / "my_net.py"
    plugin.write_text(NETWORK.replace("ELSE", ""))
    command = [sys.executable, str(ROOT / "scripts" / "check_plugin.py"), plugin.name]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=LIMIT)
    assert done.returncode == 1, done.stdout + done.stderr
    head, *lines, count = done.stdout.splitlines()
    assert head == f"{plugin}, a backbone:" and count == "4 passed, 1 failed"
    assert "passed  features and logits have their shapes and every weight learns (class-il)" in lines
    at = lines.index("FAILED  a sample is answered alike alone and with others")
    assert "Tensor-likes are not close" in lines[at + 1]


def test_an_installed_copy_says_that_it_has_no_tests(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("engram.utils.config.registry.ROOT", tmp_path)
    assert check_plugin.main(["my_method.py"]) == 2
    assert "clone the repository" in capsys.readouterr().err
