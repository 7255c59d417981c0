"""Correlations and their intervals, the table of proxies, interventions: on data made for the answer."""

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from engram.datasets import sources
from engram.memorization import correlate, intervention, score_plots, split_scores, subsets
from engram.memorization.agreement import MEASURES, by_class, correlations, varies
from engram.memorization.estimator import split_half_reliability
from engram.memorization.file_names import short_names
from engram.utils import scores
from engram.utils.errors import UserError
from engram.utils.runs.run_record import RunRecord, ViewResult


def test_three_measures_on_five_points():
    """By hand: ranks 1 2 3 4 5 against 2 1 3 5 4: ρ = 1 − 6·4/120, τ = (8 − 2)/10."""
    a, b = np.array([1.0, 2, 3, 4, 5]), np.array([2.0, 1, 3, 50, 40])
    found = correlations(a, b, 0, np.random.default_rng(0))
    assert found["spearman"].value == pytest.approx(0.8)
    assert found["kendall"].value == pytest.approx(0.6)
    assert found["pearson"].value == pytest.approx(np.corrcoef(a, b)[0, 1])
    assert np.isnan(found["pearson"].low)


def test_bootstrap_intervals_are_those_of_theory():
    """400 normal pairs with ρ = .6: Fisher's tanh(artanh r ± 1.96 / √397), within .02 at either end."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 400))
    a, b = x[0], 0.6 * x[0] + 0.8 * x[1]
    value, low, high = correlations(a, b, 400, rng)["pearson"]
    expected = np.tanh(np.arctanh(value) + np.array([-1.96, 1.96]) / np.sqrt(397))
    assert [low, high] == pytest.approx(expected.tolist(), abs=0.02)


@pytest.mark.parametrize(
    ("accuracy", "pearson", "spearman", "said"),
    [(0.48, 0.07, 0.01, ["only 48 % of their own", "93 % of the variance", "about 682 of these"]),
     (0.95, 0.7, 0.7, []), (0.99, 0.69, 0.9, ["31 % of the variance"]), (0.949, 0.9, 0.9, ["--augment none"]),
     (0.99, -0.1, 0.9, ["100 % of the variance", "Pearson reliability of 0.7: networks that fit their"]),
     (0.99, 0.9, 0.5, ["Spearman reliability of 0.7 rather than 0.500: networks", "about 52 of these"]),
     (0.99, float("nan"), float("nan"), ["4 networks are too few"])],
)  # fmt: skip
def test_scores_that_say_little_are_called_so(accuracy, pearson, spearman, said):
    """Spearman and Brown: 22 networks of r = .07 have k r / (1 + (k − 1) r) when they are k times as many."""
    n = 4 if np.isnan(pearson) else 22
    text = "\n".join(split_scores.warnings(accuracy, pearson, spearman, n))
    assert all(part in text for part in said) and bool(text) == bool(said)
    assert text.count("WARNING") == (2 if accuracy == 0.48 else len(text) > 0)
    assert (k := 682 / 22) * 0.07 / (1 + (k - 1) * 0.07) == pytest.approx(0.7)


def test_a_study_names_its_data_both_reliabilities_and_two_medians():
    arrays = {
        "scores": np.array([0.1, 0.2, 0.6]), "stderr": np.array([0.01, 0.02, 0.9]),
        "ci95": np.array([0.03, 0.04, 2.0]), "accuracy_in": np.ones(3), "accuracy_out": np.ones(3) / 2,
        "reliability": np.array(0.968), "reliability_spearman": np.array(0.714),
    }  # fmt: skip
    text = split_scores.summary(arrays, 24, "digits")
    assert text.startswith("3 examples of digits, 24 networks")
    assert "median standard error 0.0200, median 95 % interval ± 0.0400" in text
    assert "Pearson 0.968 (values), Spearman 0.714 (ranks, by which policies choose)" in text
    assert "WARNING" not in text


def test_classes_apart():
    labels = np.array([0, 0, 0, 1, 1, 1, 2, 2])
    a, b = np.arange(8.0), np.array([1.0, 2, 3, 9, 8, 7, 0, 0])
    assert by_class(a, b, labels) == {0: pytest.approx(1), 1: pytest.approx(-1)}
    assert np.isnan(by_class(a, np.ones(8), labels)[0])
    assert not varies(np.ones(3)) and varies(np.array([1.0, 1, 2]))


@pytest.fixture
def files(tmp_path):
    """Scores of 60 examples with outputs of 40 networks; proxies that agree, disagree and do neither."""
    rng = np.random.default_rng(0)
    true, labels = rng.uniform(0, 1, 60), np.arange(60) % 3
    member = np.array([rng.permutation(40) < 20 for _ in range(60)]).T
    p = np.clip(0.1 + 0.8 * true * member + rng.normal(0, 0.2, member.shape), 0.001, 0.999)
    values = np.array([p[member[:, i], i].mean() - p[~member[:, i], i].mean() for i in range(60)])
    identity = {"order_hash": "ab", "index": np.arange(60) + 5, "labels": labels}
    scores.write(tmp_path / "s.npz", {}, scores=values, loss=-np.log(p), member=member, **identity)
    table = np.stack([values**3, -values, rng.normal(size=60)])
    names = np.array(["cube", "minus", "noise"])
    cost = np.array([0.001, 0.002, 0.003])
    scores.write(tmp_path / "p.npz", {}, names=names, proxies=table[:, ::-1], cost=cost, order_hash="ab",
                 index=identity["index"][::-1])  # fmt: skip
    return tmp_path, values


def test_the_table_of_proxies(files, capsys):
    folder, _ = files
    out = folder / "table.csv"
    flags = ["--scores", str(folder / "s.npz"), "--against", str(folder / "p.npz"), "--n_bootstrap", "50"]
    correlate.run([*flags, "--out_filename", str(out)])
    text = capsys.readouterr().out
    rows = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("| ")}
    assert "1.000 [1.000, 1.000]" in rows["cube"] and "-1.000 [-1.000, -1.000]" in rows["minus"]
    assert "| 1.0 | 60 |" in rows["cube"], "cost and number of examples"
    assert "noise ceiling: two independent estimates by 40 networks" in text
    assert len(out.read_text().splitlines()) == 4
    assert "ms per 1,000: of the proxy itself; the training of the networks" in text
    rows = list(csv.DictReader(out.read_text().splitlines()))
    classes = [[float(row[f"spearman_class_{label}"]) for label in range(3)] for row in rows]
    assert classes[:2] in ([[1.0] * 3, [-1.0] * 3], [[-1.0] * 3, [1.0] * 3])


def test_files_of_one_name_are_told_apart(files, capsys):
    folder, values = files
    for name in ("a", "b"):
        scores.write(folder / name / "s.npz", {}, scores=values, index=np.arange(60) + 5)
    against = f"{folder}/a/s.npz,{folder}/b/s.npz,{folder}/p.npz"
    correlate.run(["--scores", str(folder / "s.npz"), "--against", against, "--n_bootstrap", "0"])
    names = [line.split(" | ")[0] for line in capsys.readouterr().out.splitlines()]
    assert {"| a/s", "| b/s", "| cube"} <= set(names)
    copy = Path(shutil.copy(folder / "p.npz", folder / "a" / "p.npz"))
    against = f"{folder}/p.npz,{copy}"
    correlate.run(["--scores", str(folder / "s.npz"), "--against", against, "--n_bootstrap", "0"])
    names = [line.split(" | ")[0] for line in capsys.readouterr().out.splitlines()]
    assert {f"| {name} ({of})" for name in ("cube", "minus") for of in (f"{folder.name}/p", "a/p")} <= set(
        names
    )
    assert short_names(["x/s.npz", "x/s.npy", "x/t.npz"]) == ["s.npz", "s.npy", "t"]
    assert short_names(["y/a/s.npz", "z/a/s.npz", "s.npz", "y/a/s.npz"])[:2] == ["y/a/s", "z/a/s"]


def test_a_ceiling_is_taken_from_wherever_it_is_known(files, capsys):
    folder, values = files
    identity = {"index": np.arange(60) + 5}
    stored = {"reliability": np.array(0.81), "reliability_spearman": np.array(0.64)}
    scores.write(folder / "stored.npz", {}, scores=values, **identity, **stored)
    scores.write(folder / "none.npz", {}, scores=values, **identity)
    for name, kept in (("nan", {}), ("half", {"reliability": np.array(0.81)})):
        unmade = {"reliability": np.array(np.nan), "reliability_spearman": np.array(np.nan)}
        scores.write(folder / f"{name}.npz", {}, scores=values, **identity, **unmade | kept)
    np.save(folder / "bare.npy", values)

    def given(one, other):
        return ["--scores", str(folder / one), "--against", str(folder / other)]

    def last(one, other):
        correlate.run([*given(one, other), "--n_bootstrap", "0"])
        return capsys.readouterr().out.splitlines()[-1].removeprefix("noise ceiling")

    told = "two independent estimates by as many networks would correlate, over all 60 examples of the file, "
    told += "by Pearson 0.810 (proxies at most about 0.900), Spearman 0.640 (proxies at most about 0.800)"
    assert last("stored.npz", "none.npz") == f": {told}"
    assert last("none.npz", "stored.npz") == f" of stored: {told}"
    assert last("none.npz", "s.npz").startswith(" of s: two independent estimates by 40 networks")
    for other in ("none.npz", "p.npz"):  # other scores, and proxies, which are no scores
        assert "write the scores with eval_splits" in last("none.npz", other)
    assert "a bare vector says nothing of its noise" in last("bare.npy", "bare.npy")
    assert last("nan.npz", "nan.npz").startswith(": unknown; two halves of its networks"), "NaN is no ceiling"
    few = {"loss": np.ones((3, 60)), "member": np.arange(180).reshape(3, 60) % 2 == 0}
    scores.write(folder / "few.npz", {}, scores=values, **identity, **few)
    assert last("few.npz", "none.npz").startswith(": unknown; two halves of its networks do not correlate")
    assert last("few.npz", "stored.npz") == f" of stored: {told}"
    assert last("nan.npz", "stored.npz") == f" of stored: {told}"
    rng = np.random.default_rng(1)
    member = rng.random((40, 60)) < 0.5
    loss = rng.gamma(2.0, 1.0, (40, 60)) - 0.5 * member
    scores.write(folder / "kept.npz", {}, scores=values, **identity, loss=loss, member=member)
    half = np.random.default_rng(0)
    known = split_half_reliability(np.exp(-loss), member, MEASURES["spearman"], half)
    for n in ("0", "7"):
        correlate.run([*given("kept.npz", "none.npz"), "--n_bootstrap", n])
        assert f"Spearman {known:z.3f} " in capsys.readouterr().out.splitlines()[-1], "as eval_splits has it"
    assert last("half.npz", "none.npz") == f": {told.split(', Spearman')[0]}"


def test_labels_of_either_file_tell_classes(files, capsys):
    folder, values = files
    scores.write(folder / "plain.npz", {}, scores=values, index=np.arange(60) + 5)
    for one, other in (("s.npz", "plain.npz"), ("plain.npz", "s.npz")):
        files = ["--scores", str(folder / one), "--against", str(folder / other), "--n_bootstrap", "0"]
        correlate.run(files)
        assert "| 1.000 (1.000 to 1.000) |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arrays", "message"),
    [({"scores": np.full(60, np.nan)}, "all values of 'scores' are NaN"),
     ({"scores": np.zeros((2, 60))}, r"has shape \(2, 60\); one vector is expected"),
     ({"scores": np.full(60, "a")}, "holds <U1 values; save it as float"),
     ({"index": np.arange(60), "stderr": np.zeros(60)}, "neither 'scores' nor .* but .*index, stderr")],
)  # fmt: skip
def test_what_is_no_vector_is_told(arrays, message, files):
    folder, _ = files
    scores.write(folder / "wrong.npz", {}, **arrays)
    with pytest.raises(UserError, match=message):
        correlate.run(["--scores", str(folder / "s.npz"), "--against", str(folder / "wrong.npz")])


def test_files_of_other_data_are_not_compared(files):
    folder, values = files
    scores.write(folder / "other.npz", {}, scores=values, order_hash="ff")
    scores.write(folder / "far.npz", {}, scores=values, index=np.arange(60) + 500)
    for name, message in {"other.npz": "another data set", "far.npz": "0 examples in common"}.items():
        with pytest.raises(ValueError, match=message):
            correlate.run(["--scores", str(folder / "s.npz"), "--against", str(folder / name)])
    with pytest.raises(ValueError, match="--against is missing"):
        correlate.run(["--scores", str(folder / "s.npz")])


@pytest.mark.parametrize(
    ("flags", "classes", "share"),
    [(["--dataset_size", "0.3,0.1"], (0, 10), 0.1), (["--class_range", "2,5"], (2, 5), 1.0),
     (["--class_range", "2,5", "--dataset_size", "0.3"], (2, 5), 0.3)],
)  # fmt: skip
def test_bare_vectors_of_a_part_belong_to_examples_that_were_drawn(flags, classes, share, tmp_path, capsys):
    """A vector of a part beside the whole one that it was taken from: equal numbers at the same examples."""
    labels = sources.digits().train_y.numpy()
    rng = np.random.default_rng(0)
    whole, drawn = rng.uniform(0, 1, len(labels)), subsets.part(labels, classes, share)
    np.save(tmp_path / "whole.npy", whole)
    np.save(tmp_path / "part.npy", whole[drawn])
    settings = {"dataset": "digits", "class_range": "0,3"}  # of its own examples, not of a bare vector's
    rows = rng.permutation(len(labels))[:1000]
    identity = {
        "index": rows,
        "n_train": len(labels),
        "order_hash": scores.order_hash(torch.from_numpy(labels)),
    }
    scores.write(tmp_path / "own.npz", settings, scores=whole[rows], labels=labels[rows], **identity)
    named = ["--dataset", "digits"]
    for more, one, other, n in (
        (named, "part.npy", "whole.npy", len(drawn)), (named, "whole.npy", "part.npy", len(drawn)),
        ([], "own.npz", "part.npy", np.isin(drawn, rows).sum()), ([], "own.npz", "whole.npy", 1000),
    ):  # fmt: skip
        files = ["--scores", str(tmp_path / one), "--against", str(tmp_path / other), "--n_bootstrap", "0"]
        correlate.run([*files, *more, *flags])
        assert f"| 1.000 | 1.000 | 1.000 | 1.000 (1.000 to 1.000) | – | {n} |" in capsys.readouterr().out
    files = ["--scores", str(tmp_path / "part.npy"), "--against", str(tmp_path / "whole.npy")]
    for more, message in (
        (flags, "no file says of which examples: give --dataset NAME"),
        (named, r"part.npy: \d+ scores without positions, of a data set of 1,437 .* --dataset_size SHARE or"),
        ([*named, "--dataset_size", "0.2"], "--dataset_size and --class_range name parts of 288, 1,437"),
    ):
        with pytest.raises(UserError, match=message):
            correlate.run([*files, *more])


def test_ranges_of_classes_of_one_length_are_told_apart_by_the_files_labels(tmp_path):
    """The length of a vector does not say of which it is, nor of which data set."""
    labels = sources.digits().train_y.numpy()
    rng, first, last = np.random.default_rng(0), np.flatnonzero(labels < 2), np.flatnonzero(labels > 7)
    n = min(len(first), len(last))
    whole = rng.uniform(0, 1, len(labels))
    of_digits = {"index": np.arange(len(labels)), "n_train": len(labels)}
    one = tmp_path / "whole.npz"
    scores.write(one, {"dataset": "digits"}, scores=whole, labels=labels, **of_digits)
    scores.write(tmp_path / "own.npz", {}, scores=whole[last][:n], labels=labels[last][:n], index=first[:n])
    scores.write(tmp_path / "part.npz", {}, scores=whole[first], labels=labels[first] + 8)
    scores.write(tmp_path / "right.npz", {}, scores=whole[first], labels=labels[first])
    scores.write(tmp_path / "mnist.npz", {"dataset": "mnist"}, scores=whole, order_hash="ff", **of_digits)

    def compare(name, scores_file=one):
        files = ["--scores", str(scores_file), "--against", str(tmp_path / name), "--n_bootstrap", "0"]
        correlate.run([*files, "--dataset", "digits", "--class_range", "0,2"])

    compare("right.npz")
    for name in ("own.npz", "part.npz"):
        with pytest.raises(
            UserError, match=f"{name}: .* examples have another class than the file's 'labels'"
        ):
            compare(name)
    np.save(tmp_path / "bare.npy", whole[first])
    with pytest.raises(UserError, match=r"was made from another data set .* check --dataset and --data_dir"):
        compare("bare.npy", tmp_path / "mnist.npz")


def test_a_proxy_without_a_correlation_comes_last(files, capsys):
    """In the file it stands between the two others."""
    folder, values = files
    noise, cube = np.random.default_rng(1).normal(size=60), values**3
    table = {"noise": noise, "constant": np.ones(60), "cube": cube}
    names, proxies = np.array(list(table)), np.stack(list(table.values()))
    scores.write(folder / "c.npz", {}, names=names, proxies=proxies, index=np.arange(60) + 5)
    correlate.run(
        ["--scores", str(folder / "s.npz"), "--against", str(folder / "c.npz"), "--n_bootstrap", "0"]
    )
    rows = [line.split(" ")[1] for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert rows[2:] == ["cube", "noise", "constant"]
    panels = score_plots.scatter(values, table).axes
    assert [axes.get_title().split("\n")[0] for axes in panels[:3]] == ["cube", "noise", "constant"]


def test_proxies_of_another_order_are_not_drawn_beside_the_scores(files):
    folder, _ = files
    contents = {"s": scores.load(folder / "s.npz")}
    proxies = scores.load(folder / "p.npz")
    assert set(score_plots.draw_all(contents, proxies)) == {"histogram", "standard_errors", "proxies"}
    with pytest.raises(UserError, match="--proxies: belongs to another data set or sample order"):
        score_plots.draw_all(contents, proxies | {"order_hash": np.array("ff")})
    nameless = proxies | {"n_train": np.array(65)}
    assert "proxies" in score_plots.draw_all({"s": {"scores": np.linspace(0, 1, 65)}}, nameless)
    with pytest.raises(UserError, match="--proxies: 64 scores without positions beside proxies of 65"):
        score_plots.draw_all({"s": {"scores": np.linspace(0, 1, 64)}}, nameless)


def test_the_noise_ceiling_is_that_of_the_examples_in_the_row(files, capsys):
    """The first 20 examples in one file, all 60 in the other: a line for either."""
    folder, values = files
    scores.write(folder / "part.npz", {}, scores=values[:20], index=np.arange(20) + 5, order_hash="ab")
    against = f"{folder / 'part.npz'},{folder / 'p.npz'}"
    correlate.run(["--scores", str(folder / "s.npz"), "--against", against, "--n_bootstrap", "0"])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("noise ceiling")]
    content = scores.load(folder / "s.npz")
    for line, n in zip(lines, (20, 60), strict=True):
        part = np.exp(-content["loss"][:, :n]), content["member"][:, :n]
        pearson = split_half_reliability(*part, MEASURES["pearson"], np.random.default_rng(0))
        said = f"over {n} examples, by Pearson {pearson:.3f} (proxies at most about {pearson**0.5:.3f})"
        assert said in line


def test_what_an_intervention_leaves_out(files):
    folder, values = files
    flags = ["--scores", str(folder / "s.npz"), "--top", "10,50", "--n_random", "2"]
    intervention.run([*flags, "--out_dir", str(folder / "out")])
    labels = np.arange(60) % 3
    for percent, n in ((10, 6), (50, 30)):
        top = np.load(folder / f"out/top_{percent}.npz")["exclude"]
        assert sorted(top.tolist()) == sorted((np.argsort(values)[-n:] + 5).tolist())
        drawn = [np.load(folder / f"out/random_{percent}_{i}.npz")["exclude"] for i in range(2)]
        assert drawn[0].tolist() != drawn[1].tolist()
        for random in drawn:
            assert len(set(random.tolist())) == n
            assert np.bincount(labels[random - 5]).tolist() == np.bincount(labels[top - 5]).tolist()


def test_an_intervention_needs_to_know_its_samples(tmp_path):
    np.save(tmp_path / "bare.npy", np.linspace(0, 1, 60))
    with pytest.raises(UserError, match=r"\(no index, labels, order_hash\); give the .npz that eval_splits"):
        intervention.run(["--scores", str(tmp_path / "bare.npy"), "--out_dir", str(tmp_path / "out")])


def test_the_table_of_interventions(tmp_path, capsys):
    """Accuracies .9 with all, .8 and .7 without random and memorized samples, ± a seed's own shift."""
    runs = [("", 0.9), ("f/top_10.npz", 0.7), ("f/random_10_0.npz", 0.8)]
    for seed in range(3):
        for i, (exclude, accuracy) in enumerate(runs):
            config = {"dataset": "seq-digits", "model": "er", "buffer_size": 9, "exclude": exclude or None}
            own = accuracy + 0.01 * seed - (0.02 if i == 1 and seed == 2 else 0)
            view = ViewResult(np.ones((1, 1)), {"average_accuracy": own})
            record = RunRecord(config, "finished", {"class_il": view, "task_il": view}, seed=seed)
            path = tmp_path / f"{seed}{i}" / "results.json"
            path.parent.mkdir()
            record.write(path)
    intervention.run(["--results", str(tmp_path)])
    row = capsys.readouterr().out.splitlines()[2]
    assert "er, buffer 9 | 10 | 91.00 ± 1.00 | 81.00 ± 1.00 | 70.33 ± 0.58 | 10.67 ± 1.15 | 16.0 | 3 |" in row
    shutil.rmtree(tmp_path / "01")  # the most memorized left out, seed 0
    intervention.run(["--results", str(tmp_path)])
    assert capsys.readouterr().out.splitlines()[2].endswith(" | 3 / 2 |")
