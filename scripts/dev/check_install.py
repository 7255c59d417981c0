"""Install Engram from a wheel into a new virtual environment and check that the copy works.

    python scripts/dev/check_install.py           sees the packages of this environment (seconds)
    python scripts/dev/check_install.py --full    installs every dependency and Hugging Face `datasets` (6 GB)

Both build a wheel of the files that git tracks and compare its content with them. In the new environment,
in a folder of its own, one process then imports `engram`, a package `datasets` and a local `utils.py`:
each must be the right one. Without --full a stand-in takes the role of Hugging Face's `datasets` where this
environment lacks it. At last `engram --help` must answer without importing torch, and `engram` must train.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

from engram.utils.config.flags import CheckedParser
from engram.utils.door import guarded

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("backbones", "datasets", "memorization", "models", "scripts", "utils")
# What stays out of a wheel on purpose: shell studies and a picture for the documentation.
LEFT_OUT = {".sh", ".png"}
THREE_NAMES = """
import datasets, utils
import engram, engram.main, engram.datasets.seq_digits, engram.utils.errors
from pathlib import Path
from engram.utils.door import guarded
here, packages = Path.cwd().resolve(), Path(engram.__file__).resolve().parent
assert utils.MARK == "local" and Path(utils.__file__).resolve().parent == here, utils.__file__
assert callable(engram.train)
assert packages.name == "site-packages" and Path(engram.main.__file__).parent == packages / "engram"
assert not hasattr(datasets, "seq_digits") and "engram" not in Path(datasets.__file__).parts
print("engram:", engram.__file__)
print("datasets:", datasets.__file__, getattr(datasets, "__version__", ""))
print("utils:", utils.__file__)
"""


def run(*command: str | Path, **options) -> subprocess.CompletedProcess[str]:
    """Run a program and return what it printed; a failure ends this one with its output."""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, **options)
    if done.returncode:
        words = " ".join(map(str, command))
        sys.exit(f"error: {words}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return done


def tracked() -> list[str]:
    """Paths of the files that git tracks and that exist, relative to the project."""
    names = run("git", "ls-files", "-z", cwd=ROOT).stdout.split("\0")
    return [name for name in names if name and (ROOT / name).is_file()]


def build_wheel(folder: Path) -> Path:
    """Build a wheel from a copy of the tracked files, so that the project's own folder stays clean."""
    source = folder / "source"
    for name in tracked():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    build = ("-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation")
    run(sys.executable, *build, "--wheel-dir", folder / "wheels", source)
    (wheel,) = (folder / "wheels").glob("engram-*.whl")
    return wheel


def missing_from(wheel: Path) -> list[str]:
    """Tracked files of the rooms that the wheel lacks: modules, presets, templates, published numbers."""
    packed = {name.removeprefix("engram/") for name in zipfile.ZipFile(wheel).namelist()}
    reproduce = "scripts/reproduce/"  # reads the folders of a checkout
    wanted = [name for name in tracked() if name.split("/")[0] in {*ROOMS, "engram.py", "main.py"}]
    return [
        name
        for name in wanted
        if name not in packed and Path(name).suffix not in LEFT_OUT and not name.startswith(reproduce)
    ]


def new_environment(folder: Path, wheel: Path, full: bool) -> Path:
    """Create a virtual environment with the wheel in it; returns its folder of programs."""
    venv.create(folder, with_pip=full, symlinks=True)
    bin_ = folder / "bin"
    if full:
        run(bin_ / "python", "-m", "pip", "install", "--quiet", "uv")
        run(bin_ / "python", "-m", "uv", "pip", "install", "--python", bin_ / "python", wheel, "datasets")
        return bin_
    run(sys.executable, "-m", "pip", "--python", bin_ / "python", "install", "--quiet", "--no-deps", wheel)
    (packages,) = folder.glob("lib/python*/site-packages")
    here = [path for path in sys.path if path.endswith("site-packages")]
    (packages / "this_environment.pth").write_text("\n".join(here) + "\n")
    if subprocess.run([bin_ / "python", "-P", "-c", "import datasets"], capture_output=True).returncode:
        (packages / "datasets").mkdir()
        (packages / "datasets" / "__init__.py").write_text('__version__ = "(a stand-in, not the library)"\n')
    return bin_


def check_imports(bin_: Path, folder: Path) -> str:
    """Import the three names in one process that runs in `folder`; returns where each came from."""
    folder.mkdir()
    (folder / "utils.py").write_text('MARK = "local"\n')
    (folder / "three_names.py").write_text(THREE_NAMES)
    return run(bin_ / "python", "three_names.py", cwd=folder).stdout


def check_program(bin_: Path, folder: Path) -> str:
    """Ask the console command for its help and let it train in `folder`; returns its last line."""
    environment = {**os.environ, "PYTHONPROFILEIMPORTTIME": "1"}
    answer = run(bin_ / "engram", "--help", cwd=folder, env=environment)
    modules = {line.split("|")[-1].strip() for line in answer.stderr.splitlines()}
    if "usage:" not in answer.stdout or modules & {"torch", "mlflow"}:
        sys.exit(f"error: engram --help imports {modules & {'torch', 'mlflow'}}\n{answer.stdout}")
    flags = ("--model", "er", "--dataset", "seq-digits", "--n_epochs", "1", "--disable_log")
    trained = run(bin_ / "engram", *flags, cwd=folder)
    return trained.stdout.splitlines()[-1]


@guarded
def main(argv: list[str] | None = None) -> int:
    """Build, install and check; returns the exit code."""
    parser = CheckedParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="install all dependencies and the real datasets")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        wheel = build_wheel(folder)
        if missing := missing_from(wheel):
            print("error: the wheel lacks " + ", ".join(missing), file=sys.stderr)
            return 1
        print(f"{wheel.name}: every module and data file is in it ({wheel.stat().st_size / 1e3:.0f} kB)")
        bin_ = new_environment(folder / "venv", wheel, args.full)
        print(check_imports(bin_, folder / "elsewhere"), end="")
        print(f"engram --help: no torch imported\nengram trains: {check_program(bin_, folder / 'elsewhere')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
