"""YAML files that somebody else may have written: bounded before anything is built from them."""

from pathlib import Path
from typing import Any

import yaml

Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
MAX_BYTES = 4 << 20
MAX_DEPTH = 50
MAX_NODES = 200_000  # with every alias written out: nine nested lists of nine aliases are 400 million


class YamlFileError(ValueError):
    """A file that cannot be read as YAML; the message says why, in one line and without its name."""


class UnreasonableError(yaml.YAMLError):
    """A file that asks for more than any file of flags needs."""


def read(path: Path) -> Any:
    """Read the content of a YAML file with a safe loader.

    Raises `YamlFileError`, also for a file that is too large, too deep, or grows beyond `MAX_NODES` by its
    aliases.
    """
    try:
        return _content(path)
    except UnicodeDecodeError:
        raise YamlFileError("not a YAML file: it is not text") from None
    except yaml.MarkedYAMLError as error:
        line = f" in line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise YamlFileError(f"not a YAML file: {error.problem}{line}") from None
    except OSError as error:
        raise YamlFileError(f"cannot be read: {error.strerror or error}") from None
    except yaml.YAMLError as error:
        raise YamlFileError(f"cannot be read: {' '.join(str(error).split())[:200]}") from None


def _content(path: Path) -> Any:
    with open(path, "rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise UnreasonableError(f"larger than {MAX_BYTES >> 20} MB")
    text = content.decode("utf-8")
    _check_size(text)
    try:
        return yaml.load(text, Loader)  # the safe loader named above
    except (ValueError, OverflowError) as error:  # a date or a number that Python does not have
        raise yaml.YAMLError(str(error)) from None


def _check_size(text: str) -> None:
    """Count nodes from the parser's events, which builds nothing and does not recurse."""
    open_counts: list[int] = [0]  # of the document and of each collection that is open
    open_anchors: list[str | None] = [None]
    count_of_anchor: dict[str | None, int] = {}
    for event in yaml.parse(text, Loader):
        count, anchor = 0, None
        if isinstance(event, yaml.CollectionStartEvent):
            open_counts.append(1)
            open_anchors.append(event.anchor)
        elif isinstance(event, yaml.CollectionEndEvent):
            count, anchor = open_counts.pop(), open_anchors.pop()
        elif isinstance(event, yaml.AliasEvent):
            count = count_of_anchor.get(event.anchor, MAX_NODES + 1)  # an alias inside itself has no end
        elif isinstance(event, yaml.ScalarEvent):
            count, anchor = 1, event.anchor
        count_of_anchor[anchor] = count
        open_counts[-1] += count
        _refuse_beyond_sense(open_counts[-1], len(open_counts))


def _refuse_beyond_sense(n_nodes: int, depth: int) -> None:
    if n_nodes > MAX_NODES:
        raise UnreasonableError(f"more than {MAX_NODES} values, aliases written out")
    if depth > MAX_DEPTH:
        raise UnreasonableError(f"nested deeper than {MAX_DEPTH} levels")
