"""What new_method.py, new_dataset.py and new_backbone.py share: files made from texts with a name put in."""

import argparse
import re
from dataclasses import dataclass
from pathlib import Path

from engram.utils.config import registry
from engram.utils.config.flags import CheckedParser
from engram.utils.errors import UserError

NOT_PLUGINS = {"parts", "presets"}  # folders beside the methods


@dataclass(frozen=True)
class Skeleton:
    """The files of a new plugin: in their texts NAME, TITLE, DASHED (with -) and CLASS are replaced."""

    kind: str  # models, datasets or backbones
    texts: dict[str, str]  # path under the project → content
    next: str  # the command that tests it

    def files(self, name: str) -> dict[Path, str]:
        """Path under the project → content, for a plugin of this name."""
        return {Path(_named(path, name)): _named(text, name) for path, text in self.texts.items()}

    def write(self, name: str, root: Path) -> list[Path]:
        """Write the files; refuses a name that is no file name or is taken."""
        word = registry.WORDS[self.kind]
        if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
            raise UserError(
                f"'{name}': a {word}'s name is a file's: small letters, digits and _, e.g. my_{word}"
            )
        made = self.files(name)
        taken = [path for path in made if (root / path).exists()]
        names = {other.replace("-", "_") for other in registry.names(self.kind)}
        if taken or name in registry.CONTRACTS[self.kind] | NOT_PLUGINS | names:
            raise UserError(f"'{name}' is taken ({', '.join(map(str, taken)) or 'a room of the house'})")
        for path, text in made.items():
            (root / path).write_text(text, encoding="utf-8")
        return list(made)

    def parser(self, description: str | None) -> CheckedParser:
        """The command line of the program that writes it: a name."""
        parser = CheckedParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
        word = registry.WORDS[self.kind]
        parser.add_argument("name", help=f"of the {word} and its file, e.g. my_{word}")
        return parser

    def run(self, name: str) -> int:
        """Write the files of a plugin of this name and say what to do next; returns the exit code."""
        written = self.write(name, registry.checkout())
        print("\n".join(f"written: {path}" for path in written))
        print(f"next:    {_named(self.next, name)}")
        return 0


def _named(text: str, name: str) -> str:
    words = {
        "CLASS": "".join(word.capitalize() for word in name.split("_")),
        "TITLE": name,
        "DASHED": name.replace("_", "-"),
        "NAME": name,
    }
    for word, value in words.items():
        # not the letters of TITLE OF THE PAPER; a name may stand inside test_NAME
        text = re.sub(rf"(?<![A-Z]){word}(?![A-Z])(?! OF)", value, text)
    return text
