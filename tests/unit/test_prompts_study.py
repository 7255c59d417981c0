"""The study of prompts beside their controls: whose rate a row has, and which rate is the best."""

import pytest

from engram.scripts.studies import prompts
from engram.utils.errors import UserError

HEAD = {"model": "sgd", "train_classes": "task", "tune": "head"}


def test_rows_are_those_of_the_script_without_their_papers_optimizers():
    listed = prompts.rows()
    assert HEAD in listed and len(listed) == len(prompts.read_spec(prompts.ROWS).runs)
    assert not any(set(row) & set(prompts.OPTIMIZER) for row in listed)
    assert {"model": "ranpac", "rp_size": 2000} in listed  # ten thousand take minutes and a gigabyte
    assert len({prompts.text(row) for row in listed}) == len(listed)
    assert [row["model"] for row in prompts.rows("^(l2p|ncm)$")] == ["l2p", "ncm"]
    with pytest.raises(UserError, match=r"--only nothing: no row of prompts\.yaml matches"):
        prompts.rows("nothing")


def test_a_row_is_tuned_itself_or_has_the_rate_of_the_whole_method():
    listed = prompts.rows()
    assert prompts.tuned_row(HEAD) == HEAD
    assert prompts.tuned_row({"model": "ncm"}) is prompts.tuned_row({"model": "ranpac"}) is None
    assert prompts.tuned_row({"model": "slca", "ca_epochs": 0}) == {"model": "slca"}
    assert all(tuned in listed for row in listed if (tuned := prompts.tuned_row(row)))


def test_the_best_rate_is_that_of_the_highest_accuracy_and_the_smaller_of_equals(monkeypatch, capsys):
    measured = {0.001: 0.3, 0.01: 0.5, 0.1: 0.5, 1.0: None}
    monkeypatch.setattr(prompts, "accuracy", lambda row, fixed, index: measured[row["lr"]])
    assert prompts.best_rate(HEAD, [1.0, 0.1, 0.01, 0.001], {}, None) == 0.01
    assert prompts.best_rate(HEAD, [1.0], {}, None) is None
    said = "left out: sgd train_classes=task tune=head: no run of --rates finished"
    assert said in capsys.readouterr().err


def test_every_row_gets_as_many_tries_and_then_each_seed_with_its_rate(monkeypatch, tmp_path):
    calls = []
    monkeypatch.setattr(
        prompts, "run_all", lambda name, runs, fixed, folder, jobs: calls.append((name, runs, fixed))
    )
    best = {"l2p": 0.03, "slca": 0.002, "sd_lora": None}  # None: all its runs diverged
    monkeypatch.setattr(prompts, "best_rate", lambda row, rates, fixed, index: best[prompts.text(row)])
    argv = [
        str(tmp_path / "out"),
        "--only",
        "^(l2p|ncm|sd_lora|slca ca_epochs=0)$",
        "--rates",
        "0.002,0.03",
        "--seeds",
        "4,5",
    ]
    assert prompts.main([*argv, "--", "--dataset", "seq-digits"]) == 0
    (_, tries, held_out), *seeds = calls
    tuned = ({"model": "l2p"}, {"model": "sd_lora"}, {"model": "slca"})
    assert tries == [{**row, "lr": lr} for row in tuned for lr in (0.002, 0.03)]
    assert (held_out["validation"], held_out["seed"], held_out["optimizer"]) == (20.0, 100, "adam")
    assert [(runs[0]["seed"], {r["model"]: r["lr"] for r in runs}) for _, runs, _ in seeds] == [
        (seed, {"l2p": 0.03, "slca": 0.002, "ncm": 0.002}) for seed in (4, 5)
    ]
    assert all(fixed["dataset"] == "seq-digits" and "validation" not in fixed for _, _, fixed in seeds)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--seeds", "0,100"], "--seeds: 100 is the seed that rates are chosen with"),
        (["--validation", "0"], "--validation 0: expected a share in %, above 0 and below 100"),
        (["--validation", "nan"], "--validation nan: expected a share"),
        (["--only", "(", "--", "--dataset", "seq-digits"], "error: --only (: no regular expression"),
    ],
)
def test_what_would_choose_rates_on_test_data_or_says_nothing_is_refused(argv, said, tmp_path, capsys):
    assert prompts.main([str(tmp_path / "out"), *argv]) == 2
    assert said in capsys.readouterr().err


def test_a_wrong_number_in_a_list_is_told_with_its_kind(capsys):
    with pytest.raises(SystemExit):
        prompts.parser().parse_args(["out", "--seeds", "0,a"])
    assert "argument --seeds: invalid int,... value: '0,a'" in capsys.readouterr().err


def test_a_sweep_that_was_stopped_ends_the_study(monkeypatch, tmp_path):
    """Else its rates would be chosen among the runs that were finished by chance."""
    monkeypatch.setattr(prompts.sweep, "main", lambda argv: 130)
    with pytest.raises(SystemExit, match="130"):
        prompts.run_all("tuning", [HEAD], {"dataset": "seq-digits"}, tmp_path, "1")
    monkeypatch.setattr(prompts.sweep, "main", lambda argv: 1)
    prompts.run_all("tuning", [HEAD], {"dataset": "seq-digits"}, tmp_path, "1")
    assert prompts.read_spec(tmp_path / "tuning.yaml").runs == (HEAD,)
