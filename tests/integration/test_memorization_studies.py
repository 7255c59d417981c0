"""Small studies on the digits, start to end in this process: leave-one-out, proxies, streams, figures."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from engram.memorization import (
    cli,
    correlate,
    eval_splits,
    figures,
    galleries,
    intervention,
    leave_one_out,
    plots,
    proxy_scores,
    score_plots,
    stream_plots,
    study_data,
    train_proxies,
    train_splits,
    train_stream,
    train_whole,
    training,
)
from engram.memorization.agreement import MEASURES
from engram.memorization.estimator import split_half_reliability
from engram.memorization.outputs import outputs
from engram.memorization.proxies import NAMES
from engram.memorization.settings import StudyConfig
from engram.memorization.train_proxies import ProxiesConfig
from engram.utils import checkpoint, scores

pytestmark = pytest.mark.slow

TINY = ["--dataset_size", "0.05", "--hidden_sizes", "8", "--n_epochs", "3", "--use_multiprocessing", "0"]
PNG = b"\x89PNG"


@pytest.fixture
def trained(monkeypatch):
    """The numbers of all networks whose training begins."""
    numbers, real = [], training.CohortTraining

    def noted(config, data, repeats, rows):
        numbers.extend(repeats)
        return real(config, data, repeats, rows)

    monkeypatch.setattr(training, "CohortTraining", noted)
    return numbers


def test_leave_one_out_by_its_definition(tmp_path, trained, capsys):
    """An example's score is what networks trained on everything and on all but it say, trained here anew."""
    out = tmp_path / "loo.npz"
    flags = ["--weights_dir", str(tmp_path / "w"), "--out_filename", str(out), "--stack", "4", *TINY]
    train_whole.run([*flags, "--n_examples", "3", "--n_repeats", "2", "--n_whole", "2"])
    first = scores.load(out)
    assert trained == [*range(8)], "those that were asked for and no more, though jobs are of four"
    train_whole.run([*flags, "--n_examples", "5", "--n_repeats", "2", "--n_whole", "2"])
    found = scores.load(out)
    text = capsys.readouterr().out
    assert "5 examples of digits left out" in text
    assert f"median standard error {np.median(found['stderr']):.4f}, median 95" in text
    assert trained == [*range(12)], "none is trained again when the study grows"
    assert found["index"][:3].tolist() == first["index"].tolist()
    assert found["scores"][:3].tolist() == first["scores"].tolist()
    options = cli.parse("test", "", StudyConfig, TINY)
    examples = study_data.load(options.data, torch.device("cpu"))
    everything = torch.arange(len(examples))

    def probabilities(numbers, rows, i):
        said = []
        for number in numbers:
            learner = training.CohortTraining(options, examples, [number], rows.unsqueeze(0))
            while not learner.finished:
                learner.run_epoch()
            loss, _ = outputs(learner.stack, examples.images, examples.labels, examples.augment)
            said.append(np.exp(-loss[0, i].item()))
        return np.array(said)

    rows = leave_one_out.example_order(len(examples))
    for position in (0, 4):
        i = int(rows[position])
        assert found["index"][position] == examples.index[i]
        own = [2 + 2 * position, 3 + 2 * position]
        inside = probabilities([0, 1], everything, i)
        outside = probabilities(own, everything[everything != i], i)
        assert found["scores"][position] == pytest.approx(inside.mean() - outside.mean(), abs=1e-4)
        error = np.sqrt(inside.var(ddof=1) / 2 + outside.var(ddof=1) / 2)
        assert found["stderr"][position] == pytest.approx(error, abs=1e-4)


@pytest.mark.parametrize(("program", "n_written"), [("train_whole", 3), ("train_splits", 1)])
def test_stopped_between_two_results_a_job_goes_on_with_the_same_networks(
    program, n_written, tmp_path, monkeypatch
):
    """Which networks are trained as one decides how they are rounded, so every bit must be the same.

    The last job is killed after its first result: then all are trained, and no epoch is run again.
    """
    flags, epochs = [*TINY, "--stack", "4", "--n_epochs", "2"], []
    run_epoch = training.CohortTraining.run_epoch

    def noted(learner):
        epochs.append((tuple(learner.repeats), learner.epoch))
        run_epoch(learner)

    monkeypatch.setattr(training.CohortTraining, "run_epoch", noted)
    if program == "train_splits":
        run, flags = train_splits.run, [*flags, "--n_repeats", "4"]
    else:
        run = train_whole.run
        flags += ["--n_whole", "2", "--n_examples", "2", "--n_repeats", "2"]
        flags += ["--out_filename", str(tmp_path / "scores.npz")]
    run([*flags, "--weights_dir", str(tmp_path / "whole")])
    write, written = checkpoint.write, []

    def write_until_killed(content, path):
        if path.parent.name in ("networks", "whole", "left_out"):
            if len(written) == n_written:
                raise KeyboardInterrupt
            written.append(path)
        write(content, path)

    folder = tmp_path / "stopped"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "write", write_until_killed)
        with pytest.raises(KeyboardInterrupt):
            run([*flags, "--weights_dir", str(folder)])
    assert len(epochs) == (4 if program == "train_splits" else 8), "two of each job, in either folder"
    run([*flags, "--weights_dir", str(folder)])
    assert len(epochs) == (4 if program == "train_splits" else 8), "finished work is not done again"
    paths = sorted(path.relative_to(folder) for path in folder.rglob("*.pt"))
    assert len(paths) == (4 if program == "train_splits" else 6), "results alone; the checkpoint is gone"
    for path in paths:
        assert (folder / path).read_bytes() == (tmp_path / "whole" / path).read_bytes(), path


def test_every_proxy_is_written_with_its_cost(tmp_path, capsys):
    out = tmp_path / "proxies.npz"
    train_proxies.run(["--out_filename", str(out), "--n_networks", "2", *TINY])
    found = scores.load(out)
    assert found["names"].tolist() == [*NAMES, "early_el2n", "early_grand"]
    assert found["proxies"].shape == (16, 72) and np.isfinite(found["proxies"]).all()
    assert (found["cost"] >= 0).all() and "ms per 1,000 examples" in (text := capsys.readouterr().out)
    assert "these costs leave out the training of the networks" in text
    assert (found["proxies"].std(1) > 0).all()


def test_networks_with_dropout_are_trained_one_by_one(tmp_path):
    """The proxies of two networks are those of each alone; --stack is refused and leaves no settings."""
    small = ["--dataset_size", "0.02", "--n_epochs", "1", "--use_multiprocessing", "0", "--lr", "0.01"]
    small += ["--backbone", "alexnet", "--width", "0.03", "--dropout", "0.5"]
    options = cli.parse("test", "", ProxiesConfig, [*small, "--n_networks", "2"])
    examples = study_data.load(options.data, torch.device("cpu"))
    found = proxy_scores.evaluate_proxies(options, examples)
    for k in range(2):
        everything = torch.arange(len(examples)).unsqueeze(0)
        learner = training.CohortTraining(options, examples, [k], everything)
        learner.run_epoch()
        loss, _ = outputs(learner.stack, examples.images, examples.labels, examples.augment)
        np.testing.assert_allclose(found["final_loss"].scores[k], loss[0], rtol=1e-4)
    assert {len(values) for r in found.values() for values in (r.scores, r.seconds)} == {2}
    out = ["--out_filename", str(tmp_path / "out.npz")]
    with pytest.raises(ValueError, match="--stack 4: networks with dropout"):
        train_proxies.run([*small, *out, "--stack", "4"])
    folder = ["--weights_dir", str(tmp_path / "w")]
    for train, flags in ((train_splits, []), (train_whole, out), (train_stream, out)):
        with pytest.raises(ValueError, match="--stack 4: networks with dropout"):
            train.run([*small, *folder, *flags, "--stack", "4"])
    assert not (tmp_path / "w").exists()


def test_a_stream_with_replay_and_its_figure(tmp_path, capsys):
    out = tmp_path / "stream.npz"
    flags = ["--weights_dir", str(tmp_path / "w"), "--out_filename", str(out), "--stack", "8", *TINY]
    flags += ["--dataset_size", "0.2", "--buffer_size", "20", "--n_tasks", "3", "--store_probs"]
    train_stream.run([*flags, "--n_repeats", "24"])
    found = scores.load(out)
    n = len(found["scores"])
    assert found["in_stream"].shape == (3, n) and found["loss_over_time"].shape == (3, 24, n)
    for t in range(3):
        assert np.isnan(found["in_stream"][t]).tolist() == (found["task"] > t).tolist()
    assert found["task_loss_over_time"].shape == (3, 24, n)
    text = capsys.readouterr().out
    for view in ("in_stream", "task_il_in_stream"):
        last = [f"{100 * np.nanmean(found[view][2, found['task'] == s]):7.1f}" for s in range(3)]
        assert f"\n   2{''.join(last)}\n" in text, view
    assert "WARNING" not in text
    own = found["in_stream"][found["task"], np.arange(n)]
    assert found["scores"].tolist() == own.tolist() and np.isfinite(own).all()
    drawn = stream_plots.decay(scores.load(out))
    titles = [axes.get_title().partition(":")[0] for axes in drawn.axes if axes.get_visible()]
    assert titles == ["class-IL", "class-IL", "task-IL", "task-IL"]
    plots.run(["--stream", str(out), "--out_dir", str(tmp_path / "figures"), "--figures", "pdf,png"])
    assert (tmp_path / "figures/decay.png").read_bytes()[:4] == PNG
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {"decay.pdf", "decay.png"}
    assert capsys.readouterr().out.strip().endswith("decay.png")


def test_a_task_that_nobody_measured_is_named_so(recwarn):
    """And the bars by what they are over: examples, not networks."""
    in_stream = np.array([[0.1, 0.3, np.nan, np.nan], [0.2, 0.2, np.nan, np.nan]])
    drawn = stream_plots.decay({"in_stream": in_stream, "task": np.array([0, 0, 1, 1])})
    panel = drawn.axes[0]
    assert [text.get_text() for text in panel.get_legend().get_texts()] == ["task 1: not measured", "task 0"]
    assert "standard error over examples" in panel.get_title() and not recwarn.list


def test_a_gallery_of_examples_in_any_order(tmp_path, monkeypatch):
    """Each picture has the score of its own image, though the file lists examples in an order of its own."""
    options = cli.parse("test", "", StudyConfig, TINY)
    examples = study_data.load(options.data, torch.device("cpu"))
    rows = leave_one_out.example_order(len(examples))[:40]
    values = np.arange(40) / 100
    content = {
        "settings": json.dumps(dataclasses.asdict(options.data)), "order_hash": examples.order_hash,
        "scores": values, "index": examples.index[rows],
    }  # fmt: skip
    shown = []
    monkeypatch.setattr(galleries, "show", lambda axes, image, title: shown.append((image, title)))
    figures.draw_galleries(content, options.data.data_dir)
    own = {f"{value:.2f}": examples.images[row].numpy() for value, row in zip(values, rows, strict=True)}
    assert {title for _, title in shown} == own.keys()
    assert all(np.array_equal(image, own[title]) for image, title in shown)


def test_a_gallery_says_how_noisy_its_scores_are(monkeypatch):
    """Scores spread by 0.2 whose errors are 0.1: a quarter of their variance is noise."""
    options = cli.parse("test", "", StudyConfig, TINY)
    examples = study_data.load(options.data, torch.device("cpu"))
    examples = examples.at(examples.index[:4])
    content = {"scores": np.array([0.3, 0.7, 0.3, 0.7]), "stderr": np.full(4, 0.1)}
    shown = []
    monkeypatch.setattr(galleries, "show", lambda axes, image, title: shown.append(title))
    (note,) = galleries.extremes(examples, content, 128).texts
    assert set(shown) == {"0.30 ± 0.10", "0.70 ± 0.10"}
    assert note.get_text().startswith(
        "score ± standard error from 128 networks; median error of all 4 examples 0.100; 25 % of the variance"
    )
    assert "no standard errors" in galleries.noise_note(content["scores"], None, 128)
    assert (
        galleries.caption(-0.0004, 0.0031) == "0.000 ± 0.003"
        and galleries.caption(0.0, 0.0) == "0.000 ± 0.000"
    )
    assert galleries.caption(0.7) == "0.70" and galleries.caption(-0.001, 0.02) == "0.00 ± 0.02"


def test_what_lines_and_axes_mean_can_be_read():
    rng = np.random.default_rng(0)
    assert score_plots.nice_ticks(0.05, 0.4) == [0.05, 0.1, 0.2]
    assert all(3 <= len(score_plots.nice_ticks(low, 1.69 * low)) <= 6 for low in np.geomspace(1e-4, 0.5, 999))
    drawn = score_plots.standard_errors({8: (0.0081, 0.0083), 16: (0.0072, 0.0071)})
    low, high = drawn.axes[0].get_ylim()
    assert sum(low <= tick <= high for tick in drawn.axes[0].get_yticks()) >= 3
    (legend,) = score_plots.scatter(rng.random(30), {"a": rng.random(30)}).legends
    assert [text.get_text() for text in legend.get_texts()] == ["median score of each tenth of the ranks"]


def test_figures_of_scores_and_proxies(tmp_path):
    rng = np.random.default_rng(0)
    options = cli.parse("test", "", StudyConfig, TINY)
    examples = study_data.load(options.data, torch.device("cpu"))
    n, settings = len(examples), dataclasses.asdict(options.data)
    member = np.array([rng.permutation(40) < 20 for _ in range(n)]).T
    identity = {"order_hash": examples.order_hash, "index": examples.index}
    scores.write(
        tmp_path / "s.npz", settings, scores=rng.random(n), loss=rng.random((40, n)), member=member,
        influence=rng.random((360, 2)), influence_from=rng.choice(examples.index, (360, 2)), **identity,
    )  # fmt: skip
    scores.write(tmp_path / "p.npz", {}, names=np.array(["a", "b"]), proxies=rng.random((2, n)), **identity)
    out = tmp_path / "figures"
    flags = ["--scores", str(tmp_path / "s.npz"), "--proxies", str(tmp_path / "p.npz"), "--out_dir", str(out)]
    plots.run([*flags, "--figures", "png"])
    expected = {"histogram", "standard_errors", "proxies", "gallery", "pairs"}
    assert {path.stem for path in out.iterdir()} == expected
    for path in out.iterdir():
        assert path.read_bytes()[:4] == PNG and path.stat().st_size > 5000
    names = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(score_plots, "histogram", lambda files: names.extend(files) or score_plots.canvas(2, 2))
        for folder in ("a", "b"):
            scores.write(tmp_path / folder / "s.npz", settings, scores=rng.random(n), **identity)
        both = f"{tmp_path}/a/s.npz,{tmp_path}/b/s.npz"
        plots.run(["--scores", both, "--out_dir", str(out), "--figures", "png"])
    assert names == ["a/s", "b/s"]
    scores.write(
        tmp_path / "other.npz", settings, scores=rng.random(n), order_hash="ff", index=examples.index
    )
    with pytest.raises(ValueError, match="not those that were scored"):
        plots.run(["--scores", str(tmp_path / "other.npz"), "--out_dir", str(out)])
    with pytest.raises(ValueError, match="nothing to draw"):
        plots.run(["--out_dir", str(out)])


def test_an_evaluation_takes_the_threads_that_it_is_given(tmp_path, monkeypatch):
    folder, asked = ["--weights_dir", str(tmp_path / "w")], []
    train_splits.run([*folder, *TINY, "--n_epochs", "1", "--n_repeats", "4", "--stack", "4"])
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    eval_splits.run([*folder, "--out_filename", str(tmp_path / "s.npz"), "--num_threads", "3"])
    assert asked[0] == 3


def test_examples_that_were_in_all_subsets_or_none_have_no_score(tmp_path, capsys):
    """Four networks: such examples are many. They are NaN, counted, and no reader of the file minds them."""
    folder, out = ["--weights_dir", str(tmp_path / "w")], str(tmp_path / "s.npz")
    train_splits.run([*folder, *TINY, "--n_epochs", "1", "--n_repeats", "4", "--stack", "4"])
    eval_splits.run([*folder, "--out_filename", out, "--store_probs", "--influence", "2"])
    content = scores.load(out, "scores")
    known = (content["n_in"] == 2) & (content["n_out"] == 2)
    assert 10 < known.sum() < len(known) - 10
    for name in ("scores", "stderr", "ci95", "scores_01"):
        assert np.isfinite(content[name]).tolist() == known.tolist(), name
    text = capsys.readouterr().out
    assert f"{(~known).sum()} examples were in (nearly) all subsets or in none: NaN, not measured" in text
    assert f"mean {content['scores'][known].mean():.4f}" in text and "nan" not in text
    assert "WARNING: the networks predict only" in text and "split-half reliability" in text
    assert f"Pearson {content['reliability']:.3f} (values), " in text
    assert f"Spearman {content['reliability_spearman']:.3f} (ranks" in text
    values = np.exp(-content["loss"].astype(np.float64))
    for name, measure in (("reliability", "pearson"), ("reliability_spearman", "spearman")):
        halves = np.random.default_rng(0)
        expected = split_half_reliability(values, content["member"], MEASURES[measure], halves)
        assert content[name] == pytest.approx(expected), name
    source = study_data.load(cli.parse("test", "", StudyConfig, TINY).data, torch.device("cpu"))
    measured = {int(i) for i in content["index"][known]}
    labels = torch.zeros(int(content["n_train"]), dtype=torch.long)
    labels[torch.from_numpy(source.index)] = source.labels
    content.pop("order_hash")
    np.savez(tmp_path / "bare.npz", **{name: content[name] for name in ("scores", "index")})
    whole = scores.read(str(tmp_path / "bare.npz"), labels)
    assert set(torch.nonzero(whole.isfinite()).view(-1).tolist()) == measured
    correlate.run(["--scores", out, "--against", out, "--n_bootstrap", "0"])
    assert (
        f"| s | 1.000 | 1.000 | 1.000 | 1.000 (1.000 to 1.000) | – | {known.sum()} |"
        in capsys.readouterr().out
    )
    intervention.run(["--scores", out, "--top", "50", "--n_random", "1", "--out_dir", str(tmp_path / "x")])
    for name in ("top_50", "random_50_0"):
        assert set(np.load(tmp_path / f"x/{name}.npz")["exclude"].tolist()) <= measured
    shown = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(galleries, "show", lambda axes, image, title: shown.append(title))
        patch.setattr(figures, "save_all", lambda figure, path, formats: [])  # takes most of the time
        plots.run(["--scores", out, "--out_dir", str(tmp_path / "figures"), "--figures", "png"])
    assert len(shown) > 20 and not any("nan" in title for title in shown)
