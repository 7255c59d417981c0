"""The memorization paper's tables, from a store with the structure of its published one.

There, every run has its seed in its name; settings were run again later under another name or, after the code
had changed, under the same; a log names only the flags that its code had; joint training is evaluated
after each task, before it has been trained. The accuracies here are made so that the right runs have the
means and deviations that the paper's README prints (github.com/jedrzejkozal/memorization-cl, f79dc447).
"""

import os
import re
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import yaml

from engram.scripts import report
from engram.scripts.analysis.run_set import campaign_name, collect
from engram.scripts.interop import import_mlruns

# data set → tasks and, by policy, mean and deviation (ddof = 0) of accuracy, and FM, as printed
PRINTED = {
    "seq-cifar10": (
        5, {"min": (56.04, 4.80, 41.80), "middle": (55.96, 4.62, 41.80), "max": (41.16, 7.38, 56.60)}
    ),
    "seq-cifar100": (
        10, {"min": (25.88, 1.14, 61.60), "middle": (23.62, 1.07, 63.81), "max": (17.28, 1.19, 69.95)}
    ),
    "seq-tinyimg": (
        20, {"min": (7.85, 0.29, 74.87), "middle": (7.11, 0.57, 75.52), "max": (5.18, 0.13, 77.12)}
    ),
}  # fmt: skip
EXPERIMENTS = {"seq-cifar10": "CIFAR10", "seq-cifar100": "CIFAR100", "seq-tinyimg": "TinyImageNet"}
SPREAD = np.array([-2, -1, 0, 1, 2]) / 2**0.5  # five seeds of mean 0 and deviation 1
LATE = 1746000000000  # milliseconds; what counts ended after this


class Store:
    """Writes an old file store, a run at a time, each a second after the one before."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seconds = count()

    def run(self, experiment: str, name: str, R: np.ndarray, start: int = LATE, **params) -> None:
        """A run with accuracies R (T, T) in percent, of which the logger kept the lower triangle."""
        n = next(self.seconds)
        folder = self.folder / experiment
        # ids, and so the order of files, have nothing to do with time
        run = folder / f"{(n * 7919 + 13) % 1000:032x}"
        for part in ("params", "metrics", "tags"):
            (run / part).mkdir(parents=True)
        (folder / "meta.yaml").write_text(yaml.safe_dump({"experiment_id": experiment, "name": experiment}))
        meta = {"run_id": run.name, "run_name": name, "status": 3, "start_time": start + 1000 * n}
        (run / "meta.yaml").write_text(yaml.safe_dump(meta | {"end_time": meta["start_time"] + 500}))
        (run / "tags" / "mlflow.source.git.commit").write_text(f"c{n:02}")
        for key, value in params.items():
            (run / "params" / key).write_text(str(value))
        for k, column in enumerate(R.T):
            self._metric(run, f"acc_class_il_task_{k}", column[k:])
            self._metric(run, f"acc_task_il_task_{k}", column[k:])
        self._metric(run, "mean_acc_class_il", [row[: i + 1].mean() for i, row in enumerate(R)])

    def _metric(self, run: Path, name: str, values) -> None:
        lines = (f"{LATE} {float(value)!r} {step}\n" for step, value in enumerate(values))
        (run / "metrics" / name).write_text("".join(lines))


def accuracies(n_tasks: int, accuracy: float, fm: float) -> np.ndarray:
    """A lower triangle R in percent that has this average accuracy and FM; the last task reaches 90 %."""
    final = (n_tasks * accuracy - 90) / (n_tasks - 1)
    learned = final + fm * n_tasks / (n_tasks - 1)
    R = np.tril(np.full((n_tasks, n_tasks), final)) + np.diag(np.full(n_tasks, learned - final))
    R[-1, -1] = 90
    return R


def campaign(store: Store, dataset: str, name: str, printed: tuple, seeds=range(5), **flags) -> None:
    """A run of each seed; accuracy and FM spread against each other, as between class orders."""
    mean, deviation, fm = printed
    flags = {"experiment": EXPERIMENTS[dataset], "dataset": dataset, "buffer_size": 500, "lr": 0.1} | flags
    experiment = flags.pop("experiment")
    n_tasks = PRINTED[dataset][0]
    for seed in seeds:
        R = accuracies(n_tasks, mean + deviation * SPREAD[seed], fm - deviation * SPREAD[seed])
        store.run(experiment, name.format(seed), R, n_tasks=n_tasks, seed=seed, **flags)


@pytest.fixture
def runs(tmp_path) -> Path:
    """The imported runs; the files of those that were run again are the younger ones."""
    store = Store(tmp_path / "mlruns")
    early = {"start": LATE - 10**9}
    for dataset, (n_tasks, rows) in PRINTED.items():
        for policy, printed in rows.items():
            flags = {"model": "maer", "buffer_policy": policy}
            # before the code changed: the same name, another result
            campaign(
                store, dataset, f"maer {policy} seed {{}}", (20.0, 0.5, 66.0), range(2), **flags, **early
            )
            if dataset == "seq-cifar100":
                campaign(store, dataset, f"maer {policy} seed {{}}", (21.0, 0.5, 66.0), **flags, **early)
                name = f"maer {policy} balanced seed {{}} buffer size 500"
            else:
                name = f"maer {policy} seed {{}}"
            campaign(store, dataset, name, printed, **flags)
        joint = accuracies(n_tasks, 70.0, 0.0)
        joint[:-1] = np.tril(np.full((n_tasks, n_tasks), 1.0))[:-1]
        store.run(
            EXPERIMENTS[dataset],
            "joint seed 0",
            joint,
            dataset=dataset,
            model="joint",
            seed=0,
            n_tasks=n_tasks,
        )
    # a log knows the flags of its code alone; later runs for a figure have no experiment's name
    flags = {"model": "er", "buffer_policy": "balanced_reservoir"}
    campaign(
        store, "seq-cifar100", "er balanced seed {}", (22.39, 0.75, 65.01), range(1), grad_clip=1.0, **flags
    )
    campaign(store, "seq-cifar100", "er balanced seed {}", (22.39, 0.75, 65.01), range(1, 5), **flags)
    campaign(store, "seq-cifar100", "figure seed {}", (30.0, 1.0, 50.0), experiment="Default", **flags)
    assert (
        import_mlruns.main([str(store.folder), "--output_dir", str(tmp_path / "runs"), "--disable_log"]) == 0
    )
    for path in (tmp_path / "runs").rglob("results.json"):
        early_first = "maer" in str(path) and '"ended": 1745' in path.read_text()
        os.utime(path, (2e9, 2e9) if early_first else (1e9, 1e9))
    return tmp_path / "runs"


def test_the_printed_tables_come_out(runs, capsys):
    assert report.main(["memorization", str(runs)]) == 0
    text, notes = capsys.readouterr()
    for dataset, (_, rows) in PRINTED.items():
        accuracy, fm = (
            next(t for t in text.split("\n\n**") if t.removeprefix("**").startswith(f"{dataset}**: {title}"))
            for title in ("class-IL accuracy", "FM")
        )
        for policy, (mean, deviation, forgetting) in rows.items():
            assert f"| maer {policy} | {mean:.2f} ± {deviation:.2f} |" in accuracy
            assert f"| maer {policy} | {forgetting:.2f} ± {deviation:.2f} |" in fm
        assert "| joint | 70.00 |" in accuracy and "| joint | 0.00 |" in fm, "joint forgets nothing"
    assert "| er balanced | 22.39 ± 0.75 |" in text
    assert text.count("accuracy minus er balanced") == 1, "no empty tables where the baseline is missing"
    assert "| maer min | +3.49 ± 0.44 (t 17.9, p < 0.001, Holm < 0.001) | 5 |" in text, (
        "its baseline is found"
    )
    assert re.search(r"commits: (c\d\d, ){31}c\d\d and \d+ more", text)
    assert "as the paper prints it (ddof = 0" in text
    assert "left out: 18 earlier runs of a seed that was run again" in notes


def test_campaigns_stand_apart(runs, capsys):
    report.main(["memorization", str(runs)])
    apart = capsys.readouterr().out.split("**seq-cifar100**: other campaigns of these settings")[1]
    lines = apart.strip().split("\n\n")[0].splitlines()
    assert lines[2:] == [
        "| er balanced | 500 | figure | 30.00 ± 1.00 | 50.00 ± 1.00 | 5 |",
        "| maer max | 500 | maer max | 21.00 ± 0.50 | 66.00 ± 0.50 | 5 |",
        "| maer middle | 500 | maer middle | 21.00 ± 0.50 | 66.00 ± 0.50 | 5 |",
        "| maer min | 500 | maer min | 21.00 ± 0.50 | 66.00 ± 0.50 | 5 |",
    ]
    labels = [s.label for s in collect([runs]).settings if s.first.dataset == "seq-cifar100"]
    assert len(labels) == len(set(labels)) == 9


def test_joint_training_has_no_forgetting(runs):
    joint = [s.first for s in collect([runs]).settings if s.first.model == "joint"]
    assert len(joint) == 3
    for run in joint:
        assert np.isnan(run.class_il.metric("forgetting")) and np.isnan(run.class_il.metric("bwt"))
        assert run.class_il.metric("fm") == 0 and run.class_il.metric("average_accuracy") == pytest.approx(
            0.7
        )


@pytest.mark.parametrize(
    ("name", "campaign"),
    [("er seed 3", "er"), ("er balanced seed 3 buffer size 500", "er balanced buffer size 500"),
     ("er_seed3", "er"), ("Seed 3", ""), ("er seed 30", "er seed 30"), ("maer_er_ace min", "maer_er_ace min"),
     ("useed 3", "useed 3"), ("bold-crow-123", "")],
)  # fmt: skip
def test_the_campaign_is_the_name_without_the_seed(name, campaign):
    assert campaign_name(name, 3) == campaign
