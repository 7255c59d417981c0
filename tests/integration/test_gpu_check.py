"""scripts/gpu_check.sh on the CPU: every section, without MLflow and without scikit-learn's digits."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from engram.scripts.bench.device_checks import VIT, needs_vit
from engram.utils.config import registry
from tests.waiting import LIMIT

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.slow


@pytest.fixture
def without_packages(tmp_path) -> dict[str, str]:
    """An environment without MLflow, scikit-learn and the cached digits."""
    for name in ("mlflow", "sklearn"):
        (tmp_path / "absent" / name).mkdir(parents=True)
        (tmp_path / "absent" / name / "__init__.py").write_text(
            f"raise ModuleNotFoundError('no {name} here', name='{name}')\n"
        )
    return {
        **os.environ,
        "PYTHONPATH": str(tmp_path / "absent"),
        "HOME": str(tmp_path),
        "OMP_NUM_THREADS": "1",
    }


def test_every_section_runs_on_a_cpu(tmp_path, without_packages):
    command = [str(ROOT / "scripts" / "gpu_check.sh"), "--device", "cpu", "--quick", "--out", str(tmp_path)]
    done = subprocess.run(
        command, cwd=tmp_path, env=without_packages, capture_output=True, text=True, timeout=LIMIT
    )
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads((tmp_path / "gpu_check.json").read_text())
    assert document["complete"] and "failed" not in document["counts"]
    passed = {(o["section"], o["name"]) for o in document["outcomes"] if o["status"] == "passed"}
    needs_scikit_learn = {"fetril"}  # its classifier is that package's, so it is skipped here
    ran = set(registry.names("models")) - needs_scikit_learn
    networks = {model: VIT if needs_vit(model) else "mlp" for model in ran}
    assert {("methods", f"{model}, {network}") for model, network in networks.items()} <= passed
    wanted = {"device", "methods", "numbers", "steps", "seeds", "evaluation"}
    assert {section for section, _ in passed} == wanted
    skipped = {o["section"]: o["text"] for o in document["outcomes"] if o["status"] == "skipped"}
    assert skipped.keys() == {"methods", "waits", "steps", "networks", "tests"} and all(skipped.values())
    assert skipped["networks"] == "needs sklearn"
    assert "(prototypes)" in done.stdout, "without scikit-learn the images are made"
    assert (tmp_path / "gpu_check.md").read_text().count("\n## ") == len(wanted) + 3
