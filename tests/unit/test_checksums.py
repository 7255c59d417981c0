"""Documents that a program reads back have a checksum: a changed one is refused, an old one is read."""

import json
import random

import pytest
import yaml

from engram.memorization import cli
from engram.memorization.cli import SETTINGS, saved_settings
from engram.memorization.settings import StudyConfig
from engram.memorization.store import NetworkStore
from engram.utils.errors import UserError
from engram.utils.runs.run_dir import RunDir
from engram.utils.runs.run_record import RunRecord
from tests.unit.test_run_record import record

FLAGS = {"model": "er", "lr": 0.1, "hidden_sizes": [10, 10], "tracking_uri": None, "seed": 3}


def flipped(content: bytes) -> list[bytes]:
    """The content with a bit flipped in one byte, at 200 positions."""
    draw, changed = random.Random(0), []
    for _ in range(200):
        damaged = bytearray(content)
        damaged[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        changed.append(bytes(damaged))
    return changed


def test_config_yaml(tmp_path):
    run = RunDir(tmp_path)
    run.save_config(FLAGS)
    whole = run.config.read_bytes()
    assert run.load_config() == FLAGS == yaml.safe_load(whole)
    refused = 0
    for content in flipped(whole):
        run.config.write_bytes(content)
        try:
            assert run.load_config() == FLAGS, content
        except UserError as error:
            assert "config.yaml: damaged" in str(error)
            refused += 1
    assert refused > 80  # the others are in the comment
    run.config.write_text(yaml.safe_dump(FLAGS))
    assert run.load_config() == FLAGS, "of a version without checksums"


def test_settings_of_networks(tmp_path):
    (tmp_path / SETTINGS).write_text(json.dumps(FLAGS))
    assert saved_settings(str(tmp_path)) == FLAGS, "of a version without checksums"
    store = NetworkStore(str(tmp_path))
    settings = store.claim(cli.parse("test", "", StudyConfig, []), stack=3)
    assert store.settings() == json.loads(json.dumps(settings))
    text = (tmp_path / SETTINGS).read_text()
    (tmp_path / SETTINGS).write_text(text.replace('"stack": 3', '"stack": 2'))
    with pytest.raises(UserError, match=r"settings\.json: damaged \(its checksum"):
        store.settings()


@pytest.mark.parametrize("content", ['{"lr": 0.1}', '{"stack": "x"}', '{"stack": 0}', '{"stack": true}'])
def test_settings_of_something_else(tmp_path, content):
    (tmp_path / SETTINGS).write_text(content)
    with pytest.raises(UserError, match=r"settings\.json: damaged, or of another program"):
        NetworkStore(str(tmp_path)).settings()


def test_results_json(tmp_path):
    path = tmp_path / "results.json"
    record().write(path)
    whole = path.read_bytes()
    before = RunRecord.read(path).to_json()
    for content in flipped(whole):
        path.write_bytes(content)
        try:
            assert RunRecord.read(path).to_json() == before, content
        except UserError as error:
            assert "results.json: damaged" in str(error)
    path.write_text(json.dumps(json.loads(whole), indent=4))
    assert RunRecord.read(path).to_json() == before, "another layout of the same content"
