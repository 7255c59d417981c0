"""RESULTS.md: its tables stand between markers that a program can replace, and the files it names exist."""

import re

from tests.conftest import ROOT

TEXT = (ROOT / "RESULTS.md").read_text(encoding="utf-8")
TABLES = re.findall(r"<!-- table (.+?) -->", TEXT)


def test_every_table_has_both_markers_once_in_order_and_a_body():
    assert len(TABLES) >= 12 and len(set(TABLES)) == len(TABLES)
    for name in TABLES:
        begin = f"<!-- table {name} -->"
        _, found, rest = TEXT.partition(begin)
        body, ended, _ = rest.partition(f"<!-- end {name} -->")
        assert found and ended and begin not in rest, name
        assert body.strip() and "<!--" not in body, name


def test_every_table_is_listed_at_the_top():
    listed = re.findall(r"`([a-z0-9 -]+)`(?=[,| ]+)", TEXT.partition("## How to read")[0])
    assert set(listed) >= set(TABLES)


def test_files_that_are_named_exist():
    named = set(re.findall(r"\b((?:scripts|utils|memorization)/[\w/]+\.(?:py|sh|yaml))\b", TEXT))
    assert len(named) > 10
    assert not [name for name in named if not (ROOT / name).exists()]


def test_programs_say_the_file_that_holds_the_tables():
    """Every `--update FILE` in a script's text names RESULTS.md."""
    texts = [path.read_text(encoding="utf-8") for path in (ROOT / "scripts").rglob("*.*") if path.is_file()
             and path.suffix in (".py", ".sh")]  # fmt: skip
    named = [name for text in [*texts, TEXT] for name in re.findall(r"--update (\w+\.md)", text)]
    assert len(named) > 5 and set(named) == {"RESULTS.md"}
