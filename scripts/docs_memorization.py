"""The page "Memorization" of the documentation: its programs, as their own files describe them."""

import dataclasses
import importlib
import inspect
import re
from types import ModuleType

from engram.memorization.__main__ import PROGRAMS
from engram.memorization.settings import StudyConfig
from engram.scripts.docs_pages import flag_table
from engram.scripts.docs_template import PageTable, Section, render_page
from engram.utils.config.options import OptionSet

SHARED = "Flags of every program that trains or evaluates networks"
SUMMARY = (
    "Programs that measure which training examples a network memorizes, each with the flags that it adds to "
    f'those below "{SHARED}".'
)


def memorization_page() -> str:
    """A section for each program with its own flags, then the flags that they share, as Markdown."""
    sections = [_section(name) for name in PROGRAMS]
    shared = [_titled_table(field.type) for field in dataclasses.fields(StudyConfig)]
    sections.append(Section(SHARED, tables=[table for table in shared if table.rows]))
    command = "\n".join(f"python -m memorization.{name} --help" for name in PROGRAMS)
    return render_page("Memorization", SUMMARY, command, sections)


def _section(name: str) -> Section:
    """What the program's file says, and the flags that the file declares."""
    module = importlib.import_module(f"engram.memorization.{name}")
    text = re.sub(r" *\\\n\s*", " ", inspect.cleandoc(str(module.__doc__)))  # a command is one line there
    own = [_titled_table(options) for options in _declared(module)]
    return Section(name, re.sub(r"(?<=\S) {2,}", " ", text), tables=own)


def _titled_table(options: type[OptionSet]) -> PageTable:
    """The set's flags, below what it says of itself."""
    return dataclasses.replace(flag_table(options), title=str(options.__doc__))


def _declared(module: ModuleType) -> list[type[OptionSet]]:
    """The option sets that a module defines, in its order."""
    return [
        kind
        for kind in vars(module).values()
        if isinstance(kind, type) and issubclass(kind, OptionSet) and kind.__module__ == module.__name__
    ]
