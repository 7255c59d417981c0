"""An installed copy: the wheel is complete, and others' `utils` and `datasets` can be imported beside it."""

import zipfile

import pytest

from engram.scripts.dev import check_install

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    pytest.importorskip("setuptools")
    return check_install.build_wheel(tmp_path_factory.mktemp("wheel"))


def test_the_wheel_holds_every_module_and_data_file(wheel):
    assert check_install.missing_from(wheel) == []


def test_a_file_that_the_wheel_lacks_is_told(wheel, tmp_path):
    """The check above can fail: without one preset in the wheel it names that preset."""
    with zipfile.ZipFile(wheel) as whole, zipfile.ZipFile(tmp_path / "less.whl", "w") as less:
        for name in whole.namelist():
            if name != "engram/models/presets/er.yaml":
                less.writestr(name, whole.read(name))
    assert check_install.missing_from(tmp_path / "less.whl") == ["models/presets/er.yaml"]


def test_engram_datasets_and_utils_in_one_process_of_an_installed_copy(wheel, tmp_path):
    programs = check_install.new_environment(tmp_path / "venv", wheel, full=False)
    origins = check_install.check_imports(programs, tmp_path / "elsewhere").splitlines()
    assert [line.split(":")[0] for line in origins] == ["engram", "datasets", "utils"]
    assert str(tmp_path / "venv") in origins[0] and str(tmp_path / "elsewhere") in origins[2]
    last_line = check_install.check_program(programs, tmp_path / "elsewhere")
    assert last_line.startswith("results: ") and last_line.endswith("results.json")
