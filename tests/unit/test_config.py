"""Configuration: types, bounds, precedence, suggestions; every message says what to do."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import engram
from engram.memorization import correlate
from engram.scripts import new_method, tune
from engram.utils.config import cli, registry, version
from engram.utils.config import config as settings
from engram.utils.config.cli import flags_to_resume, parse
from engram.utils.config.config import GROUPS, resolve, up_to_date
from engram.utils.config.options import OptionError, OptionSet, option
from engram.utils.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


def config_of(*argv: str):
    return parse(list(argv)).config


def test_the_papers_command_runs_unchanged_through_the_parser():
    command = (
        "--model=maer --buffer_policy=min --dataset=seq-cifar100 --lr=0.1 --buffer_size=500 "
        "--ignore_other_metrics --seed=42 --n_epochs=50 --n_tasks=10 --device=cuda:0 "
        "--experiment_name=CIFAR100"
    )
    config = config_of(*command.split(), "--run_name=maer min seed 42")
    assert config.method.buffer_policy == "min" and config.method.buffer_size == 500
    assert config.log.ignore_other_metrics is True and config.log.run_name == "maer min seed 42"
    assert config.run.dataset == "seq-cifar100" and config.run.device == "cuda:0"
    assert config.stream.n_tasks == 10 and config.stream.permute_classes is True
    assert (config.train.n_epochs, config.train.batch_size, config.train.lr) == (50, 32, 0.1)
    assert config.train.lr_milestones == (35, 45) and config.run.backbone == "resnet18"


@pytest.mark.parametrize("spelling", ["seq_digits", "SEQ-DIGITS", "seq-digits"])
def test_dashes_and_underscores_are_the_same(spelling):
    assert config_of("--model", "er", "--dataset", spelling).run.dataset == "seq-digits"


def test_precedence(tmp_path, monkeypatch):
    """defaults < benchmark < preset < file < command line, each layer visible."""
    presets = tmp_path / "models" / "presets"
    presets.mkdir(parents=True)
    preset = {"seq-digits": {100: {"lr": 0.3, "optim_wd": 0.3, "optim_mom": 0.3, "source": "a test"}}}
    (presets / "er.yaml").write_text(yaml.safe_dump(preset))
    monkeypatch.setattr(registry, "ROOT", tmp_path)
    file = tmp_path / "run.yaml"
    file.write_text("optim_wd: 0.4\noptim_mom: 0.4\nbuffer_size: 100\n")
    argv = ["--model", "er", "--load_best_args", "--config", str(file), "--optim_mom", "0.5"]
    config = config_of(*argv)
    assert config.train.optimizer == "sgd"  # default
    assert config.train.n_epochs == 5  # benchmark
    assert config.train.lr == 0.3  # preset over benchmark
    assert config.train.optim_wd == 0.4  # file over preset
    assert config.train.optim_mom == 0.5  # command line over file


def test_a_preset_called_by_its_size_sets_the_size_of_the_memory():
    preset = ["--model", "er", "--dataset", "perm-mnist", "--load_best_args"]
    assert config_of(*preset, "5120").method.buffer_size == 5120
    assert config_of(*preset, "--buffer_size", "500").method.buffer_size == 500
    assert config_of(*preset, "5120", "--buffer_size", "500").method.buffer_size == 500


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("sgd --load_best_args", "sgd has no presets; leave the flag out, or tune"),
        ("er --load_best_args", "no preset for --dataset seq-digits; it has some for seq-mnist (buffer_size"),
        (
            "bic --dataset seq-cifar100 --load_best_args",
            "the presets of bic on seq-cifar100 are for buffer_size 500, 2000; give one of them, such as "
            "--buffer_size 500",
        ),
        (
            "bic --dataset seq-cifar100 --load_best_args --buffer_size 300",
            "bic has no preset for buffer_size 300 on seq-cifar100; it has buffer_size 500, 2000",
        ),
        ("l2p --dataset seq-cifar100-224 --load_best_args", "such as --load_best_args l2p_jax"),
        ("aper --load_best_args", "it has some for seq-cifar100; seq-cifar100-224; "),
        ("aper --dataset seq-cifar100 --load_best_args x", "no preset for x on seq-cifar100; it has one"),
    ],
)  # fmt: skip
def test_without_a_preset_the_message_says_what_there_is_and_what_to_give(flags, message):
    with pytest.raises(OptionError, match=re.escape(message)):
        config_of("--model", *flags.split())


def test_saved_configuration_starts_the_same_run(tmp_path):
    first = config_of("--model", "maer", "--buffer_policy", "0.9max", "--lr_milestones", "2,4",
                      "--lr_scheduler", "multistep", "--permute_classes", "1")  # fmt: skip
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(first.flat()))
    assert config_of("--config", str(file)) == first


def test_a_stored_configuration_keeps_its_values_and_gets_the_flags_it_lacks():
    argv = ["--model", "maer", "--dataset", "seq_cifar10", "--backbone", "cnn", "--lr", "1"]
    flat = config_of(*argv, "--n_epochs", "3", "--mem_thresholds", "0.2,0.3").flat()
    assert up_to_date(flat) == flat
    old = {name: value for name, value in flat.items() if name not in ("keep_optimizer", "channels")}
    assert up_to_date(old) == flat and "keep_optimizer" not in old
    gone = old | {"a_flag_that_is_gone": 1}
    assert up_to_date(gone) == gone and up_to_date({}) == {}


@pytest.mark.parametrize("flag", ["model", "dataset", "backbone"])
@pytest.mark.parametrize("stored", [None, 3, ["er"]])
def test_a_stored_plugin_name_that_is_none_is_refused_by_name(flag, stored):
    damaged = config_of("--model", "er").flat() | {flag: stored}
    assert up_to_date(damaged) == damaged
    with pytest.raises(UserError, match=r"method|model|benchmark|backbone"):
        resolve([("a file", damaged)])


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--model", "err"], r"unknown method 'err'; did you mean er.*valid:.*sgd"),
        (
            ["--model", "er", "--dataset", "seq-minst"],
            r"unknown benchmark 'seq-minst'; did you mean seq-mnist",
        ),
        (["--model", "er", "--backbone", "resnet19"], r"unknown backbone 'resnet19'; did you mean resnet18"),
        (
            ["--model", "er", "--bufer_size", "5"],
            r"unknown argument --bufer_size; did you mean --buffer_size",
        ),
        (
            ["--model", "sgd", "--buffer_size", "5"],
            r"unknown argument --buffer_size; it is a flag of the methods agem, .* and \d+ others \(see",
        ),
        (
            ["--model", "sgd", "--tune", "lora"],
            r"unknown argument --tune; it is a flag of the backbones small_vit, timm:NAME, .*NAME \(see",
        ),
        (["--dataset", "seq-digits"], r"--model is missing; choose one of acil, agem, "),
        (["--model", "er", "--lr", "-1"], r"--lr -1.0: must be > 0"),
        (["--model", "er", "--lr", "nan"], r"--lr nan: must be a finite number"),
        (["--model", "er", "--lr", "fast"], r"--lr fast: expected a number"),
        (["--model", "er", "--n_epochs", "2.5"], r"--n_epochs 2.5: expected a whole number"),
        (["--model", "er", "--optimizer", "sdg"], r"--optimizer sdg: choose one of sgd, adam, adamw"),
        (["--model", "er", "--permute_classes", "maybe"], r"--permute_classes maybe: expected 0 or 1"),
        (["--model", "er", "--lr"], r"--lr: expected one argument"),
        (["--model", "er", "--inference_only"], r"--inference_only needs what was learned: --loadcheck"),
        (["--model", "er", "--start_from", "2"], r"--start_from needs what was learned: --loadcheck"),
        (
            ["--model", "er", "--early_stopping_patience", "3"],
            r"needs validation data: add e.g. --validation",
        ),
        (["--model", "er", "--lr_scheduler", "multistep"], r"needs --lr_milestones"),
        (["--model", "er", "--hidden_sizes", "10,0"], r"--hidden_sizes 0: must be >= 1"),
        (
            ["--model", "er", "--class_order", "1,0", "--permute_classes"],
            r"--permute_classes: give one of them",
        ),
        (["--model", "er", "--config", "nowhere.yaml"], r"--config nowhere.yaml: cannot be read"),
    ],
)
def test_bad_input_is_one_clear_error(argv, message):
    with pytest.raises(ValueError, match=message):
        config_of(*argv)


def test_a_class_order_takes_the_place_of_the_benchmarks_permutation():
    stream = config_of(
        "--model", "er", "--dataset", "seq-cifar10", "--class_order", "9,8,7,6,5,4,3,2,1,0"
    ).stream
    assert not stream.permute_classes and stream.class_order[0] == 9
    assert config_of("--model", "er", "--dataset", "seq-cifar10").stream.permute_classes


def test_unknown_key_in_a_file_names_the_file(tmp_path):
    file = tmp_path / "typo.yaml"
    file.write_text("model: er\nlearning_rate: 0.1\n")
    with pytest.raises(OptionError, match=r"typo.yaml: unknown flag --learning_rate"):
        config_of("--config", str(file))
    file.write_text("- er\n")
    with pytest.raises(OptionError, match="expected a YAML file, a mapping"):
        config_of("--config", str(file))


def test_only_operational_flags_may_change_on_resume():
    saved = config_of("--model", "er").flat()
    assert flags_to_resume(saved, {"device": "cpu", "lr": "0.1"})["device"] == "cpu"
    with pytest.raises(OptionError, match=r"--lr 0.2: the run to resume has 0.1"):
        flags_to_resume(saved, {"lr": "0.2"})


def test_the_whole_command_may_be_typed_again_beside_resume():
    """Flags of the method among them; another value of one is refused by name."""
    command = ["--model", "gdumb", "--dataset", "seq_digits", "--fitting_epochs", "2", "--hidden_sizes", "8"]
    saved = parse(command).config.flat()
    saved["hidden_sizes"] = list(saved["hidden_sizes"])  # as YAML holds it
    assert flags_to_resume(saved, parse(["--resume", "RUN", *command]).overrides) == saved | {
        "hidden_sizes": (8,)
    }
    given = parse(["--resume", "RUN", *command, "--fitting_epochs", "3"]).overrides
    with pytest.raises(OptionError, match="--fitting_epochs 3: the run to resume has 2"):
        flags_to_resume(saved, given)
    with pytest.raises(OptionError, match="--model er: the run to resume has gdumb"):
        flags_to_resume(saved, parse(["--resume", "RUN", "--model", "er"]).overrides)


def test_booleans_take_a_value_or_none():
    assert config_of("--model", "er", "--disable_log").log.disable_log is True
    assert config_of("--model", "er", "--disable_log", "0").log.disable_log is False
    assert config_of("--model", "er", "--disable_log=true").log.disable_log is True


def test_options_check_themselves():
    @dataclasses.dataclass(frozen=True)
    class Shares(OptionSet):
        share: float = option(0.5, "a share", ge=0, le=1)

    with pytest.raises(OptionError, match=r"--share 1.5: must be <= 1"):
        Shares(share=1.5)


def test_no_flag_is_defined_twice():
    for model in registry.names("models"):
        for backbone in registry.names("backbones"):
            settings.option_sets(model, "seq-digits", backbone)
    for dataset in registry.names("datasets"):
        settings.option_sets("er", dataset, "mlp")


def test_benchmark_defaults_are_valid_flags():
    for dataset in registry.names("datasets"):
        config = resolve([("test", {"model": "er", "dataset": dataset})])
        for key, value in settings.benchmark_defaults(dataset).items():
            found = config.flat()[key]
            assert found == (list(value) if isinstance(value, tuple) else value)


def test_presets_are_valid_and_say_where_they_come_from():
    for path in (ROOT / "models" / "presets").glob("*.yaml"):
        for dataset, sizes in yaml.safe_load(path.read_text()).items():
            for size, flags in sizes.items():
                assert flags["source"], f"{path.name} {dataset} {size}"
                own = {"buffer_size": size} if isinstance(size, int) else {}
                flags = {k: v for k, v in flags.items() if k != "source"}
                resolve([("preset", {"model": path.stem, "dataset": dataset, **own, **flags})])
                defaults = settings.benchmark_defaults(dataset).keys()  # another method's, where with decay
                assert "optim_wd" in flags or "optim_wd" not in defaults, f"{path.name} {dataset} {size}"


# Flags that mammoth takes and never uses: its values of them belong to no preset. Read in its methods, of
# its first commit (7ab9db9) and of May 2026 (e75a491); what other presets carry is used there.
UNUSED_IN_MAMMOTH = {
    "fdr": {"alpha"}, "icarl": {"minibatch_size", "softmax_temp"}, "gdumb": {"lr", "minibatch_size"},
    "bic": {"minibatch_size"}, "lucir": {"minibatch_size"}, "mer": {"minibatch_size"},
}  # fmt: skip


def test_presets_of_mammoth_carry_no_value_that_it_never_used():
    quoted = set()
    for path in (ROOT / "models" / "presets").glob("*.yaml"):
        for dataset, sizes in yaml.safe_load(path.read_text()).items():
            for size, flags in sizes.items():
                if flags["source"].startswith("mammoth"):
                    quoted.add(path.stem)
                    unused = UNUSED_IN_MAMMOTH.get(path.stem, set()) & set(flags)
                    assert not unused, f"{path.name} {dataset} {size}"
    assert {"fdr", "icarl", "gss", "derpp"} <= quoted


# Method → preset → the rate in its source's config, which the source multiplies by batch / 256.
RATES_FOR_256 = {
    "l2p": {"l2p_jax": 0.03, "l2p_pytorch": 0.03},
    "dualprompt": {"dualprompt_cifar": 0.03, "dualprompt_inr": 0.005},
}


def test_rates_that_a_source_gives_for_256_images_are_scaled_to_the_batch():
    for model, rates in RATES_FOR_256.items():
        presets = yaml.safe_load((ROOT / "models" / "presets" / f"{model}.yaml").read_text())
        named = {name: flags for presets_of in presets.values() for name, flags in presets_of.items()}
        for name, rate in rates.items():
            assert named[name]["lr"] == pytest.approx(rate * named[name]["batch_size"] / 256), name
            assert f"lr {rate} for 256 images" in named[name]["source"], name


# (method, benchmark, preset) → flags that the source's settings have: configs of CODA-Prompt and InfLoRA
# (rand_split, shuffle, CosineSchedule), best_args.py and iCaRL's loss in mammoth at 0d727a7.
AS_THE_SOURCE = {
    ("coda_prompt", "seq-cifar100-224", "coda_cifar"): {
        "permute_classes": True, "lr_scheduler": "cosine_quarter", "ortho_lambda": 0,
    },
    ("coda_prompt", "seq-imagenet-r", "coda_inr"): {
        "permute_classes": True, "lr_scheduler": "cosine_quarter", "ortho_lambda": 0,
    },
    ("inflora", "seq-cifar100", "any"): {"permute_classes": False, "lr_scheduler": "cosine_quarter"},
    ("inflora", "seq-imagenet-r", "any"): {"permute_classes": False, "lr_scheduler": "cosine_quarter"},
    ("icarl", "seq-cifar100", "500"): {"optim_wd": 1e-5},
    ("icarl", "seq-cifar100", "2000"): {"optim_wd": 1e-5},
    ("icarl", "seq-cifar10", "500"): {"optim_wd": 2e-5},
}  # fmt: skip


@pytest.mark.parametrize("named", AS_THE_SOURCE)
def test_presets_have_the_values_of_their_sources(named):
    model, dataset, preset = named
    name = [] if preset == "any" else [preset]
    found = config_of("--model", model, "--dataset", dataset, "--load_best_args", *name).flat()
    assert {name: found[name] for name in AS_THE_SOURCE[named]} == AS_THE_SOURCE[named]


def test_a_preset_is_found_by_its_name():
    flags = ["--model", "l2p", "--dataset", "seq-cifar100-224", "--load_best_args"]
    options = config_of(*flags, "l2p_pytorch").method
    assert (options.prompt_length, options.n_prompts, options.pull_lambda) == (5, 5, 0.1)
    assert config_of(*flags, "l2p_jax").method.prompt_length == 10
    assert config_of(*flags, "0").method.pull_lambda == 0.5
    with pytest.raises(OptionError, match=r"for l2p_j on seq-cifar100-224; it has l2p_jax, l2p_pytorch"):
        config_of(*flags, "l2p_j")


def test_every_flag_has_a_test():
    """The text of some test mentions each common flag and each flag of a plugin."""
    texts = "".join(p.read_text() for p in (ROOT / "tests").rglob("*.py"))
    fields = {f.name for group in GROUPS.values() for f in dataclasses.fields(group)}
    for kind in ("models", "datasets", "backbones"):
        for name in registry.names(kind):
            options = getattr(registry.load(kind, name), "Options", OptionSet)
            fields |= {f.name for f in dataclasses.fields(options)}
    fields |= {"resume", "config", "load_best_args", "version", "help"}
    untested = [f for f in sorted(fields) if f not in texts]
    assert not untested


@pytest.mark.parametrize("flag", ["--help", "--version"])
def test_help_and_version_import_no_torch(flag):
    code = (
        "import sys, main\n"
        "try: main.main(sys.argv[1:])\n"
        "except SystemExit as stop: assert not stop.code\n"
        "heavy = {'torch', 'mlflow', 'numpy', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, flag], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    if flag == "--help":
        for kind in ("models", "datasets", "backbones"):
            for name, line in registry.summaries(kind).items():
                assert f"{name} " in done.stdout and line in done.stdout
    else:
        assert done.stdout.startswith("engram 0.")


def test_help_of_a_choice_shows_its_flags_and_defaults(capsys):
    with pytest.raises(SystemExit) as stop:
        parse(["--model", "maer", "--dataset", "seq-cifar100", "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "--buffer_policy min|max|middle|0.1min|0.9max|randomized" in text
    assert "method maer" in text and "--width" in text
    assert "passes over each task's data (default: 50)" in text


@pytest.mark.parametrize("given", [[], ["--model", "er"]])
def test_the_help_of_an_installed_copy_names_commands_that_work_there(given, monkeypatch, capsys):
    monkeypatch.setattr(engram, "is_installed", True)
    with pytest.raises(SystemExit):
        parse([*given, "--help"])
    text = capsys.readouterr().out
    assert text.startswith("usage: engram ") and "main.py" not in text
    with pytest.raises(SystemExit):
        correlate.run(["--help"])
    assert capsys.readouterr().out.startswith("usage: python -m engram.memorization.correlate ")


def test_changes_of_the_code_since_the_commit_are_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "ROOT", tmp_path)

    def git(*words: str) -> str:
        told = subprocess.run(["git", "-C", tmp_path, *words], check=True, capture_output=True, text=True)
        return told.stdout.strip()

    assert version.git_state() == (None, None), "no repository"
    git("init", "-q")
    assert version.git_state() == (None, None), "no commit"
    (tmp_path / "models").mkdir()
    code, page, untracked = tmp_path / "models" / "a.py", tmp_path / "README.md", tmp_path / "models" / "b.py"
    for file in (code, page):
        file.write_text("one")
    git("add", ".")
    git("-c", "user.name=me", "-c", "user.email=me@here", "commit", "-q", "-m", "first")
    commit = git("rev-parse", "HEAD")
    (tmp_path / "results.json").touch()
    page.write_text("two")
    code.touch()
    assert version.git_state() == (commit, False), "no program reads what has changed"
    code.write_text("two")
    assert version.git_state() == (commit, True)
    code.write_text("one")
    untracked.touch()
    assert version.git_state() == (commit, True), "a new method is no part of the commit"
    assert version.git_state().short() == f"{commit[:10]}+changes"
    untracked.unlink()
    before = (tmp_path / ".git" / "index").stat()
    assert version.git_state() == (commit, False)
    assert (tmp_path / ".git" / "index").stat() == before, "runs that start together do not write to it"


def test_an_installed_copy_writes_nothing_among_its_files(tmp_path, monkeypatch, capsys):
    assert registry.default_dir() == ROOT == registry.checkout() and version.git_state().commit
    monkeypatch.setattr(engram, "is_installed", True)
    monkeypatch.setattr(version.metadata, "version", lambda name: f"9.9 of {name}")
    monkeypatch.chdir(tmp_path)
    assert registry.default_dir() == tmp_path
    assert version.git_state() == (None, None), "a repository around an installed copy is somebody else's"
    assert version.version() == "engram 9.9 of engram"
    assert new_method.main(["my_idea"]) == 2
    assert tune.main(["--model", "ewc", "--write"]) == 2
    assert capsys.readouterr().err.count("clone the repository") == 2


def test_a_start_is_told_on_a_terminal_before_torch_is_imported(monkeypatch, capsys):
    class PluginsAreLoadedError(Exception):
        pass

    def load(chosen):
        raise PluginsAreLoadedError

    monkeypatch.setattr(cli, "_option_sets", load)
    for on_terminal, said in ((True, "starting er on seq-digits: loading PyTorch ...\n"), (False, "")):
        monkeypatch.setattr("sys.stderr.isatty", lambda on_terminal=on_terminal: on_terminal, raising=False)
        with pytest.raises(PluginsAreLoadedError):
            cli.parse(["--model", "er"])
        assert capsys.readouterr().err == said
