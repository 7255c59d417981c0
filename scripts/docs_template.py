"""What a page of the documentation is made of, and the template that lays it out as Markdown."""

import re
from dataclasses import dataclass, field
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from engram.utils.config import registry
from engram.utils.config.plugin_docs import KINDS

NAMING = {"method", "setting", "benchmark"}  # heads of columns whose cells begin with the name of a plugin


@dataclass(frozen=True)
class PageTable:
    """A table of a page; the cells of the columns in `code` are shown as code."""

    head: list[str]
    rows: list[list[str]]
    title: str = ""
    code: tuple[int, ...] = (0,)


@dataclass(frozen=True)
class Section:
    """A titled part of a page: text, a block of code, tables; what is empty is left out."""

    title: str
    text: str = ""
    code: str = ""
    tables: list[PageTable] = field(default_factory=list)

    @property
    def empty(self) -> bool:
        """Whether there is nothing to show below the title."""
        return not (self.text or self.code or any(table.rows for table in self.tables))


@dataclass(frozen=True)
class Paragraph:
    """A paragraph of a docstring; a literal one keeps its lines."""

    text: str
    literal: bool


def render_page(name: str, summary: str, command: str, sections: list[Section]) -> str:
    """A page as Markdown: title, first line, a command, and the sections that are not empty."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"inline": _inline, "paragraphs": _paragraphs, "cell": _cell}
    return environment.get_template("plugin.md").render(
        name=name,
        summary=summary,
        command=command,
        sections=[section for section in sections if not section.empty],
    )


def _inline(text: str) -> Markup:
    """Escaped text in which `words` between backticks are code, and papers of arXiv are links."""
    marked = re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(text)))
    return Markup(
        re.sub(r"arXiv[\s:](\d{4}\.\d{4,5})", r'<a href="https://arxiv.org/abs/\1">\g<0></a>', marked)
    )


def _cell(text: str, head: str, is_code: bool) -> Markup:
    """A cell of a table; where the head says that it names a plugin it is a link to the plugin's page."""
    content = (
        Markup("<code>{}</code>").format(text) if is_code else _inline(text.replace(" ± ", "\u00a0±\u00a0"))
    )
    word = re.split("[ ,]", text)[0]
    for kind, title in KINDS.items() if head in NAMING else ():
        if word in registry.names(kind):
            return Markup('<a href="../{}/{}.html">{}</a>').format(title, word, content)
    return content


def as_text(text: str) -> str:
    """The text with what Markdown or HTML would take for markup escaped."""
    return re.sub(r"([\\`*_\[\]])", r"\\\1", str(escape(text)))


def _paragraphs(text: str) -> list[Paragraph]:
    """The paragraphs of a docstring; indented and bulleted ones are literal."""
    blocks = [block.strip("\n") for block in text.split("\n\n") if block.strip()]
    return [Paragraph(block, block.startswith((" ", "- "))) for block in blocks]
