"""Commands and flags of mammoth's documentation: each resolves, or is answered with the right replacement."""

import dataclasses
import json
import subprocess
import sys

import pytest
import torch

from engram.memorization import cli as memorization_cli
from engram.memorization.settings import StudyConfig
from engram.memorization.train_splits import SplitsConfig
from engram.utils import device
from engram.utils.config import mammoth, option_names, registry
from engram.utils.config.cli import parse
from engram.utils.config.config import GROUPS, TrainOptions, resolve
from engram.utils.config.options import OptionError, OptionSet
from engram.utils.config.run_key import run_key
from engram.utils.terminal import say_once
from engram.utils.training.optimizers import build_optimizer
from tests.conftest import ROOT

ER = "--model er --dataset seq-cifar10 --buffer_size 200"
# What is typed → flags of the resolved configuration.
RESOLVED = {
    "--model derpp --dataset seq-cifar100 --alpha 0.5 --beta 0.5 --lr 0.001 --buffer_size 500": {
        "alpha": 0.5, "beta": 0.5, "lr": 0.001, "buffer_size": 500,
    },
    "--model derpp --dataset seq-cifar100 --buffer_size 500 --lr 0.1": {"model": "derpp", "lr": 0.1},
    "--model sgd --dataset seq-cifar100 --lr 0.1": {"dataset": "seq-cifar100"},
    "--savecheck=last --model=sgd --dataset=seq-cifar10 --lr=0.1": {"savecheck": "last"},
    "--loadcheck=a.pt --model=sgd --dataset=seq-cifar10 --lr=0.1": {"loadcheck": "a.pt"},
    "--dataset seq-cifar10 --model der --buffer_size 500 --lr 0.03 --batch_size 128 --n_epochs 10": {
        "batch_size": 128, "n_epochs": 10,
    },
    "--dataset seq-cifar10 --model der --buffer_size 500 --lr 0.03 --seed 42": {"seed": 42},
    "--model sgd --dataset seq-cifar10 --lr 1e-3 --n_epochs 1 --batch_size 2 --debug_mode 1": {
        "debug_mode": True, "lr": 0.001,
    },
    f"{ER} --lr_milestones 3 5 --lr_scheduler multisteplr": {
        "lr_milestones": [3, 5], "lr_scheduler": "multistep",
    },
    f"{ER} --lr_scheduler cosine": {"lr_scheduler": "cosine"},
    f"{ER} --optimizer adamW": {"optimizer": "adamw"},
    f"{ER} --optimizer adamw --optim_wd 0.01": {"optimizer": "adamw", "optim_wd": 0.01},
    f"{ER} --optim_mom 0.9 --optim_nesterov 1": {"optim_mom": 0.9, "optim_nesterov": True},
    f"{ER} --optim_mom 0.9 --nesterov": {"optim_nesterov": True},
    f"{ER} --device 0": {"device": "0"},
    f"{ER} --backbone reduced-resnet18": {"backbone": "resnet18", "width": 0.3125},
    f"{ER} --backbone reduced_resnet18 --width 0.5": {"backbone": "resnet18", "width": 0.5},
    "--model er --dataset seq-mnist --buffer_size 200 --backbone mnistmlp": {
        "backbone": "mlp", "hidden_sizes": [100, 100],
    },
    f"{ER} --label_perc 0.5": {"label_perc": 0.5},
    f"{ER} --lpc 0.1": {"label_perc": 0.1},
    f"{ER} --label_perc_by_task 0.2": {"label_perc": 0.2},
    f"{ER} --n_iters 100": {"n_iters": 100},
    f"{ER} --validation 10 --early_stopping_patience 5": {"early_stopping_patience": 5},
    f"{ER} --validation 10 --early_stopping_patience 5 --early_stopping_metric loss": {
        "early_stopping_metric": "loss",
    },
    f"{ER} --loadcheck a.pt --start_from 2": {"start_from": 2},
    f"{ER} --loadcheck a.pt --inference_only 1": {"inference_only": True},
    f"{ER} --noise_rate 0.2": {"noise_rate": 0.2},
    f"{ER} --permute_classes 1 --seed 1993": {"permute_classes": True},
    f"{ER} --stop_after 2": {"stop_after": 2},
    f"{ER} --sched_multistep_lr_gamma 0.2": {"sched_multistep_lr_gamma": 0.2},
    f"{ER} --ignore_other_metrics 1": {"ignore_other_metrics": True},
    f"{ER} --disable_log 1": {"disable_log": True},
    "--model er --dataset seq_cifar10 --buffer_size 200": {"dataset": "seq-cifar10"},
    "--model lwf_mc --dataset seq-mnist": {"model": "lwf_mc"},
    "--model er-ace --dataset seq-mnist --buffer_size 200": {"model": "er_ace"},
    "--model er --dataset seq-mnist --buffer_size 200 --load_best_args": {"buffer_size": 200},
}  # fmt: skip
# What is added to a valid command → the flags that the answer names ("" where it says that there are none).
ANSWERED = {
    "--joint 1": "--model joint", "--base_path data": "--data_dir",
    "--results_path r": "--output_dir", "--checkpoint_path c": "--output_dir",
    "--ckpt_name a": "--output_dir",
    "--nowand 0": "MLflow", "--wandb_entity e": "--tracking_uri",
    "--wandb_project p": "--experiment_name", "--wandb_name n": "--run_name", "--notes n": "--run_name",
    "--model_config best": "--load_best_args",
    "--dataset_config online": "--config FILE", "--fitting_mode epochs": "--n_epochs",
    "--fitting_mode iters": "--n_iters", "--fitting_mode=early_stopping": "--early_stopping_patience",
    "--fitting_mode time": "no counterpart",
    "--early_stopping_freq 2": "every epoch", "--validation_mode complete": "--validation",
    "--eval_epochs 1": "--eval_every",
    "--eval_future=0": "--ignore_other_metrics", "--fwt 0": "--ignore_other_metrics",
    "--model_config twf": "--load_best_args", "--enable_other_metrics 0": "--ignore_other_metrics",
    "--distributed dp": "torchrun", "--distributed=ddp": "torchrun",
    "-O 0": "--precision fp32", "-O 1": "--precision tf32", "-O2": "--precision bf16",
    "--code_optimization 3": "--precision bf16 --compile",
    "--drop_last 1": "always learned", "--non_verbose 1": "bar on a terminal",
    "--scheduler_mode iter": "not by steps", "--custom_task_order 1,0": "--class_order",
    "--custom_class_order 0-3": "--class_order", "--noise_type asymmetric": "no asymmetric noise",
    "--cache_path_noisy_labels n": "from the seed",
    "--mlp_hidden_size 100": "--hidden_sizes", "--num_filters 20": "--width",
    "--save_checkpoint_mode old_pickle": "safe to load", "--save_after_interrupt 0": "--resume RUN",
    "--csv_log 0": "tables", "--tensorboard": "MLflow", "--gpu_id 0": "--device cuda:N",
}  # fmt: skip

# What asks for what holds anyway → the note that says so.
ACCEPTED = {
    "--nowand 1": "there is nothing to turn off", "--nowand": "there is nothing to turn off",
    "--joint=0": "one after the other", "--model_config default": "the method's defaults count",
    "--model_config=base": "the method's defaults count", "--eval_future 1": "by default",
    "--fwt 1": "by default", "--enable_other_metrics=1": "by default", "--distributed no": "one process",
    "--num_workers 0": "without loader processes", "--num_workers 4": "without loader processes",
    "--drop_last 0": "always learned", "--scheduler_mode epoch": "by epochs", "--tensorboard 0": "nothing",
    "--csv_log": "its tables", "--save_checkpoint_mode safe": "safe to load",
    "--save_after_interrupt 1": "always saved", "--noise_type symmetric": "--noise_rate",
    "--disable_noisy_labels_cache 1": "never stored",
}  # fmt: skip


def test_there_are_sixty_commands():
    assert len(RESOLVED) + len(ANSWERED) + len(ACCEPTED) >= 60


@pytest.mark.parametrize("command", RESOLVED)
def test_a_command_of_mammoth_resolves(command):
    flags = parse(command.split()).config.flat()
    assert {name: flags[name] for name in RESOLVED[command]} == RESOLVED[command]


@pytest.mark.parametrize("added", ANSWERED)
def test_a_flag_of_mammoth_is_answered(added):
    with pytest.raises(OptionError) as error:
        parse([*ER.split(), *added.split()])
    text = str(error.value)
    assert "is mammoth's" in text and ANSWERED[added] in text and "\n" not in text


@pytest.fixture
def notes(capsys):
    """What has been said of accepted flags; each of them is said once in a process."""
    say_once.cache_clear()
    return lambda: [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]


@pytest.mark.parametrize("added", ACCEPTED)
def test_a_flag_of_mammoth_that_asks_for_what_holds_anyway_is_accepted(added, notes):
    plain = parse(ER.split()).config.flat()
    for words in ([*added.split(), *ER.split()], [*ER.split(), *added.split(), "--lr", "0.5"]):
        assert parse(words).config.flat() == plain | ({"lr": 0.5} if "--lr" in words else {})
    (note,) = notes()
    flag = added.split("=")[0].split()[0]
    assert note.startswith(f"note: {flag}") and "changes nothing here" in note and ACCEPTED[added] in note


def test_files_and_the_memorization_programs_accept_them_too(tmp_path, notes):
    file = tmp_path / "flags.yaml"
    file.write_text("nowand: true\nmodel: er\n--num_workers: 2\n")
    assert parse(["--config", str(file)]).config.run.model == "er"
    assert [note.split(" is mammoth's")[0] for note in notes()] == [
        f"note: --config {file}: --nowand 1", f"note: --config {file}: --num_workers 2"
    ]  # fmt: skip
    studies = [memorization_cli.parse("train_splits", "", StudyConfig, words).flat()
               for words in (["--nowand", "1"], [])]  # fmt: skip
    assert studies[0] == studies[1] and len(notes()) == 1
    file.write_text("nowand: false\nmodel: er\n")
    with pytest.raises(OptionError, match="--nowand 0 is mammoth's and has no counterpart"):
        parse(["--config", str(file)])


def test_wrong_flags_and_those_of_mammoth_are_told_before_torch_is_imported():
    code = (
        "import json, sys\n"
        "from engram.utils.config.cli import parse\n"
        "from engram.utils.errors import UserError\n"
        "for words in json.loads(sys.argv[1]):\n"
        "    try: parse(words)\n"
        "    except UserError: pass\n"
        "    else: raise SystemExit(words)\n"
        "assert not {'torch', 'numpy'} & set(sys.modules)"
    )
    wrong = [[*ER.split(), *added.split()] for added in [*ANSWERED, "--lrr 1", "--buffersize=3"]]
    done = subprocess.run(
        [sys.executable, "-c", "import main\n" + code, json.dumps(wrong)],
        capture_output=True, text=True, cwd=ROOT, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("kind", ["models", "datasets", "backbones"])
def test_the_flags_read_from_a_source_are_those_of_its_options(kind):
    for name in registry.names(kind):
        options = getattr(registry.load(kind, name), "Options", OptionSet)
        assert option_names.of_plugin(kind, name) == {f.name for f in dataclasses.fields(options)}, name


def test_the_default_backbone_read_from_a_source_is_the_benchmarks():
    for name in registry.names("datasets"):
        assert registry.default_backbone(name) == registry.load("datasets", name).DEFAULTS["backbone"]


def test_what_the_table_calls_ours_is_ours():
    """Every flag named in an answer, and every one said to be the same, exists."""
    ours = {f"--{f.name}" for group in GROUPS.values() for f in dataclasses.fields(group)}
    ours |= {f"--{name}" for kind in ("backbones", "models") for p in registry.names(kind)
             for name in option_names.of_plugin(kind, p)}  # fmt: skip
    ours |= {"--resume", "--config", "--load_best_args"}
    assert {row.flag for row in mammoth.COUNTERPARTS} == {r.flag for r in mammoth.COUNTERPARTS if not r.value}
    for row in mammoth.COUNTERPARTS:
        if not row.ours.startswith("torchrun"):
            assert {word for word in row.ours.split() if word.startswith("--")} <= ours, row
        assert row.flag not in ours or row.flag == "-O", row
    assert {f"--{name}" for name in mammoth.SAME} <= ours
    for flags in mammoth.BACKBONES.values():
        registry.canonical("backbones", flags["backbone"])


@pytest.mark.parametrize(
    ("name", "answer"),
    [("ewc_on", "ewc_online"), ("joint_gcl", "joint"), ("puridiver", "this project does not")],
)
def test_a_method_of_mammoth_is_answered(name, answer):
    with pytest.raises(registry.UnknownPluginError, match=f"mammoth.*{answer}"):
        parse(["--model", name])
    assert not mammoth.NOT_HERE & set(registry.names("models"))


PRESET = """
default:
  lr: 0.5
seq-mnist:
  n_epochs: 2
  200: {lr: 0.1, minibatch_size: 7, model: er}
  500: {lr: 0.2}
"""


def test_a_preset_file_of_mammoth_is_read(tmp_path):
    file = tmp_path / "er.yaml"
    file.write_text(PRESET)

    def flags(*words: str) -> dict:
        return parse(["--dataset", "seq-mnist", "--config", str(file), *words]).config.flat()

    small = flags("--buffer_size", "200")
    values = [small[k] for k in ("model", "lr", "n_epochs", "minibatch_size", "buffer_size")]
    assert values == ["er", 0.1, 2, 7, 200]
    assert flags("--buffer_size=500", "--model", "er", "--n_epochs", "3")["lr"] == 0.2
    with pytest.raises(OptionError, match=r"needs --buffer_size 200 or 500$"):
        flags()
    with pytest.raises(OptionError, match=r"needs --buffer_size 200 or 500, not 9$"):
        flags("--buffer_size", "9")
    with pytest.raises(OptionError, match="nothing for seq-fmnist; it has seq-mnist"):
        parse(["--model", "er", "--dataset", "seq-fmnist", "--config", str(file)])
    file.write_text("seq-mnist:\n  dataset_config: xder\n  500: {lr: 0.3}\n")
    with pytest.raises(OptionError, match="--dataset_config xder is mammoth's"):
        flags("--model", "er")


def test_numbered_devices_are_those_of_cuda(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert device.choose("1") == torch.device("cuda:1")


def test_nesterovs_momentum_takes_its_step():
    """v ← m v + g, θ ← θ − lr (g + m v), twice, by hand; without it θ ← θ − lr v."""
    for nesterov, wanted in ((True, 1 - 0.1 * (2 + 0.5 * 2) - 0.1 * (2 + 0.5 * 3)), (False, 1 - 0.2 - 0.3)):
        p = torch.nn.Parameter(torch.tensor([1.0]))
        optimizer = build_optimizer([p], TrainOptions(lr=0.1, optim_mom=0.5, optim_nesterov=nesterov))
        for _ in range(2):
            p.grad = torch.tensor([2.0])
            optimizer.step()
        assert p.item() == pytest.approx(wanted, abs=1e-6)
    with pytest.raises(OptionError, match="--optim_nesterov is a momentum of sgd"):
        resolve([("test", {"model": "er", "optim_nesterov": True})])


def test_a_run_from_before_the_new_flags_is_the_same_run():
    flags = resolve([("test", {"model": "er"})]).flat()
    new = {"optim_nesterov", "label_perc", "noise_rate", "start_from", "inference_only", "augment"}
    old = {k: v for k, v in flags.items() if k not in new | {"early_stopping_metric"}}
    assert run_key(resolve([("stored", old)]).flat()) == run_key(flags)


def test_help_of_a_method_begins_with_its_flags(capsys):
    with pytest.raises(SystemExit):
        parse(["--model", "derpp", "--help"])
    text = capsys.readouterr().out
    assert text.startswith("usage: python main.py --model derpp [flags]\n\nmethod derpp:\n")
    sections = ("method derpp:", "backbone mlp:", "options:", "run:", "training:")
    assert sorted(sections, key=text.index) == list(sections) and text.count("usage:") == 1


def test_memorization_programs_take_the_flags_of_main(tmp_path):
    def settings(*words: str) -> dict:
        return memorization_cli.parse("train_splits", "", StudyConfig, list(words)).flat()

    new = settings("--dataset", "mnist", "--backbone", "cnn", "--optim_mom", "0.5", "--optim_wd", "0.1")
    old = settings(
        "--dataset_name", "mnist", "--model_name", "cnn", "--momentum", "0.5", "--weight_decay", "0.1"
    )
    assert new == old and new["backbone"] == "cnn" and new["optim_mom"] == 0.5
    file = tmp_path / "flags.yaml"
    file.write_text("dataset: mnist\nbackbone: cnn\noptim_mom: 0.5\noptim_wd: 0.1\n")
    assert settings("--config", str(file)) == new


def test_a_study_of_before_the_flags_were_main_s_goes_on(tmp_path):
    """Its settings have the memorization paper's names."""

    def settings(*words: str) -> dict:
        return memorization_cli.parse("train_splits", "", SplitsConfig, list(words)).flat()

    before = {"dataset_name": "mnist", "model_name": "cnn", "momentum": 0.5, "weight_decay": 0.1, "stack": 1}
    (tmp_path / "settings.json").write_text(json.dumps(before))
    found = settings("--weights_dir", str(tmp_path), "--dataset", "mnist")
    assert found["backbone"] == "cnn" and (found["optim_mom"], found["optim_wd"]) == (0.5, 0.1)
    with pytest.raises(OptionError, match="--backbone mlp: the networks in --weights_dir were trained with"):
        settings("--weights_dir", str(tmp_path), "--backbone", "mlp")
