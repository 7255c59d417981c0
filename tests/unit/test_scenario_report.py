"""The table of the three scenarios, and the commands of the script that makes its runs."""

import os
import shlex
import subprocess

from engram.scripts.analysis.paper_report import Published
from engram.scripts.analysis.papers.scenarios import SCENARIOS, ScenariosReport
from engram.scripts.analysis.run_set import StoredRecord
from engram.utils.config.cli import parse
from tests.conftest import ROOT
from tests.unit.stored_records import run_set, stored_record, view


def run(model: str, scenario: str, seed: int, accuracy: float, **config) -> StoredRecord:
    flags = {"hidden_sizes": [400, 400], "mlp_init": "torch", "n_iters": 2000, "batch_size": 128, "lr": 0.001}
    used, unused = view([[accuracy]]), view([[0.0]])
    class_il, task_il = (used, unused) if scenario == "class-il" else (unused, used)
    return stored_record(
        {"dataset": "seq-mnist", "model": model, "seed": seed, **flags, **config},
        scenario=scenario, class_il=class_il, task_il=task_il,
    )  # fmt: skip


def test_a_row_per_method_with_the_published_numbers_and_the_strength():
    records = [
        run("ewc", "task-il", 0, 0.98, e_lambda=1e5, ewc_mode="separate"),
        run("ewc", "task-il", 1, 0.99, e_lambda=1e5, ewc_mode="separate"),
        run("ewc", "class-il", 0, 0.2, e_lambda=10.0, ewc_mode="separate"),
        run("ewc", "domain-il", 0, 0.64, e_lambda=10.0, ewc_mode="online"),
        run("mas", "task-il", 0, 0.99, mas_lambda=0.5),
        run("sgd", "task-il", 0, 0.9),
        run("joint", "task-il", 0, 0.996, n_iters=10_000),
    ]
    lines = ScenariosReport(run_set(*records)).markdown().splitlines()
    assert lines[0] == (
        "**Split MNIST**: 400-400 units, weights drawn as torch, 2000 steps per task of 128 samples, "
        "Adam 0.001; test data"
    )
    assert lines[2] == (
        "| method | task-il (published) | domain-il (published) | class-il (published) | seeds |"
    )
    assert lines[4:] == [
        "| sgd | 90.00 (87.19 ± 0.94) | – (59.21 ± 2.04) | – (19.90 ± 0.02) | 1 / – / – |",
        "| ewc | 98.50 ± 0.50 (98.64 ± 0.22), λ 100000 | – (63.95 ± 1.90) | 20.00 (20.01 ± 0.06), λ 10 "
        "| 2 / – / 1 |",
        "| ewc online | – (99.12 ± ~0.11) | 64.00 (64.32 ± ~1.90), λ 10 | – (19.96 ± ~0.07) | – / 1 / – |",
        "| joint | 99.60 (99.66 ± ~0.02) | – (98.42 ± ~0.06) | – (97.94 ± ~0.03) | 1 / – / – |",
        "| mas | 99.00 (–), λ 0.5 | – (–) | – (–) | 1 / – / – |",
    ]


def test_one_number_of_seeds_where_all_scenarios_have_as_many():
    records = [run("sgd", scenario, seed, 0.5) for scenario in SCENARIOS for seed in range(3)]
    assert ScenariosReport(run_set(*records)).markdown().splitlines()[4].endswith(" | 3 |")


def commands(*arguments: str, **env: str) -> list[list[str]]:
    """Flags of every run that the script would start."""
    script = [str(ROOT / "scripts" / "reproduce" / "scenarios.sh"), *arguments]
    environment = {**os.environ, "DRY_RUN": "1", "SEEDS": "0", "OUTPUT_DIR": "nowhere", **env}
    done = subprocess.run(script, env=environment, capture_output=True, text=True, check=True)
    return [shlex.split(line)[2:] for line in done.stdout.splitlines()]


def test_every_command_of_the_script_is_one_the_program_takes():
    found = commands("all")
    configs = [parse(flags).config for flags in found]
    names = {(c.run.dataset, c.run.model, c.stream.scenario) for c in configs}
    for benchmark, methods in Published.read("scenarios").values.items():
        for method in methods:
            for scenario in SCENARIOS:
                assert (benchmark, method.split()[0], scenario) in names
    assert len(found) == len({tuple(flags) for flags in found})
    split = next(c for c in configs if c.run.dataset == "seq-mnist" and c.run.model == "ewc")
    assert (split.train.optimizer, split.train.lr, split.train.batch_size) == ("adam", 0.001, 128)
    assert (split.architecture.hidden_sizes, split.train.n_iters) == ((400, 400), 2000)
    assert all(c.stream.validation == 0 and c.architecture.mlp_init == "torch" for c in configs)


def test_tuning_never_reads_the_test_set():
    configs = [parse(flags).config for flags in commands("split", "tune")]
    assert configs and all(c.stream.validation == 10 and c.run.seed == 0 for c in configs)
    grid = {c.method.e_lambda for c in configs if c.run.model == "ewc" and c.stream.scenario == "task-il"}
    assert len(grid) >= 3


def test_the_script_can_be_narrowed():
    (flags,) = commands("split", ONLY="task-il-si$", ITERS="7")
    assert flags[flags.index("--model") + 1] == "si" and flags[flags.index("--n_iters") + 1] == "7"
    script = str(ROOT / "scripts" / "reproduce" / "scenarios.sh")
    done = subprocess.run([script, "rotated"], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "usage:" in done.stderr
