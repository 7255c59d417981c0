"""Files that somebody else wrote: they reach nothing outside the output folder and are bounded."""

from pathlib import Path

import pytest
import yaml

from engram.scripts.interop import import_mlruns
from engram.utils import yaml_files
from engram.utils.config.flags import read_config_file
from engram.utils.errors import UserError
from engram.utils.runs.run_dir import RunDir
from engram.utils.runs.run_record import FILE_NAME
from engram.utils.sweeps.sweep_spec import SweepSpec, read_spec
from engram.utils.tracking import legacy_file_store
from tests.unit.test_file_store import old, write_run  # noqa: F401  a fixture and its writer

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)
)
BAD_YAML = {
    "bomb": BOMB,
    "deep": "[" * 10_000 + "]" * 10_000,
    "self": "a: &a [*a]",
    "large": "x: " + "y" * (yaml_files.MAX_BYTES + 1),
    "date": "x: 2001-99-99",
    "digits": "x: " + "9" * 5000,
}


def import_folders(store: Path, out: Path) -> int:
    return import_mlruns.main([str(store), "--output_dir", str(out), "--disable_log"])


@pytest.mark.parametrize("run_id", ["../../x", "TMP_PATH/absolute", "..", ".", "a/../../b", "x" * 300, "a b"])
def test_an_id_stays_in_the_output_folder(old, tmp_path, run_id):  # noqa: F811
    write_run(old / "7", 9, run_id=run_id.replace("TMP_PATH", str(tmp_path)))
    out = tmp_path / "deep" / "er" / "out"
    before = {path for path in tmp_path.rglob("*") if out not in path.parents}
    assert import_folders(old, out) == 0
    after = {path for path in tmp_path.rglob("*") if out not in path.parents}
    assert after - before <= {out, *out.parents}
    assert len(list(out.glob(f"seq-cifar100/maer/*/{FILE_NAME}"))) == 4
    assert import_folders(old, out) == 0 and len(list(out.rglob(FILE_NAME))) == 4, "named the same again"


@pytest.mark.parametrize("name", ["dataset", "model"])
@pytest.mark.parametrize("value", ["..", "/", "../../..", "x" * 300, "[1, 2]"])
def test_a_dataset_or_model_stays_in_the_output_folder(old, tmp_path, name, value):  # noqa: F811
    run_id = write_run(old / "7", 9)
    (old / "7" / run_id / "params" / name).write_text(value)
    out = tmp_path / "a" / "b" / "out"
    assert import_folders(old, out) == 0
    assert len(list(out.glob(f"*/*/*/{FILE_NAME}"))) == len(list(tmp_path.rglob(FILE_NAME))) == 4


def test_ids_that_differ_stay_apart(old, tmp_path):  # noqa: F811
    for seed, run_id in ((8, "a/b"), (9, "a_b")):
        write_run(old / "7", seed, run_id=run_id)
    assert import_folders(old, tmp_path / "out") == 0
    assert len(list((tmp_path / "out").rglob(FILE_NAME))) == 5


@pytest.mark.parametrize(
    ("file", "text", "reason"),
    [
        ("metrics/acc_class_il_task_99999999999", "1700000000000 50.0 0\n", "at most 10000 tasks"),
        ("metrics/loss", "1700000000000 1.0 99999999999999999999999\n", "expected lines of time"),
        ("metrics/loss", "1700000000000 1.0 -5\n", "expected lines of time"),
        ("meta.yaml", BOMB, "aliases written out"),
        ("params/notes", "x" * (legacy_file_store.MAX_TEXT + 1), "no parameter or metric is that long"),
    ],
)
def test_what_asks_for_too_much_is_refused_by_name(old, tmp_path, capsys, file, text, reason):  # noqa: F811
    run_id = write_run(old / "7", 9)
    (old / "7" / run_id / file).write_text(text)
    assert import_folders(old, tmp_path / "out") == 2
    told = capsys.readouterr().err
    assert reason in told and told.count("\n") == 1


def test_odd_values_are_imported(old, tmp_path):  # noqa: F811
    run_id = write_run(old / "7", 9, run_id="no hexadecimal", start_time="soon", end_time=[1])
    (old / "7" / run_id / "params" / "seed").write_text("None")
    (old / "7" / run_id / "params" / "lr").write_text("[" * 100_000)
    assert import_folders(old, tmp_path / "out") == 0


def test_links_do_not_lead_out_of_the_store(old, tmp_path, caplog):  # noqa: F811
    secret = tmp_path / "secret"
    secret.write_text("hidden")
    run_id = write_run(old / "7", 9)
    (old / "7" / run_id / "params" / "stolen").symlink_to(secret)
    (old / "7" / run_id / "artifacts" / "stolen").symlink_to(secret)
    (run,) = [run for run in legacy_file_store.read(old) if run.id == run_id]
    assert "stolen" not in run.params and run.artifacts is None and "holds links" in caplog.text


@pytest.mark.parametrize("kind", BAD_YAML)
def test_yaml_is_bounded_wherever_flags_are_read(tmp_path, kind):
    path = tmp_path / "config.yaml"
    path.write_text(BAD_YAML[kind])
    for read in (read_config_file, read_spec, lambda file: RunDir(tmp_path).load_config()):
        with pytest.raises(UserError, match=r"config\.yaml"):
            read(path)


def test_reasonable_yaml_reads_as_ever(tmp_path):
    path = tmp_path / "f.yaml"
    path.write_text("a: &x {lr: 0.1, sizes: [1, 2]}\nb: *x\nc: {<<: *x, lr: 1}\nd: [*x, *x]\n")
    assert yaml_files.read(path) == yaml.safe_load(path.read_text())


def test_a_grid_beyond_sense_is_refused():
    grid = {name: list(range(100)) for name in ("seed", "buffer_size", "n_epochs", "batch_size")}
    with pytest.raises(UserError, match="100,000,000 runs"):
        SweepSpec(fixed={"model": "er"}, grid=grid).points()


def test_a_folder_in_place_of_config_yaml_is_one_line(tmp_path):
    (tmp_path / "config.yaml").mkdir()
    with pytest.raises(UserError, match=r"config\.yaml: damaged .*cannot be resumed"):
        RunDir(tmp_path).load_config()
