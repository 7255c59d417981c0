"""The documentation as one searchable site: a page for every method, benchmark and backbone, and the guides.

    python scripts/docs.py                   into runs/docs/ (as make docs does); open runs/docs/index.html
    python scripts/docs.py --out /tmp/docs

A plugin's page holds a command that runs it, what its file says (paper, formula, differences), its flags with
defaults, bounds and help from its dataclass, its presets, the published numbers it is compared with, its rows
of RESULTS.md, and the tests that check it. README, RESULTS, CONTRIBUTING and the programs of memorization/
have pages too. MkDocs Material builds the site: pip install -e '.[docs]'. The search runs in the browser;
pages that are opened from the disk load a small script for it from the network, those of
`python -m http.server -d runs/docs` need nothing.
"""

import argparse
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

from engram.utils.config import registry
from engram.utils.config.flags import CheckedParser
from engram.utils.config.plugin_docs import KINDS, library_plugin, plugins
from engram.utils.destinations import check_folder
from engram.utils.door import guarded
from engram.utils.errors import UserError
from engram.utils.terminal import say_start

GUIDES = {"README.md": "index.md", "RESULTS.md": "RESULTS.md", "CONTRIBUTING.md": "CONTRIBUTING.md"}
PICTURES = (".png", ".svg")
STYLE = """
.md-grid { max-width: 76rem; }
.md-typeset td:first-child code, .md-typeset th { white-space: nowrap; }
.md-typeset table:not([class]) td, .md-typeset table:not([class]) th { padding: .4em .8em; }
"""
MARKDOWN_EXTENSIONS = ["tables", "fenced_code", {"toc": {"permalink": True}}]


def write_pages(folder: Path) -> int:
    """Write the site's pages as Markdown below the folder; returns how many plugins have one."""
    # late: the papers' tables draw, and with matplotlib a second passes before the first word
    from engram.scripts.docs_mammoth import mammoth_page
    from engram.scripts.docs_memorization import memorization_page
    from engram.scripts.docs_pages import index_page, plugin_page, run_flags_page

    n_plugins = 0
    for kind, title in KINDS.items():
        (folder / title).mkdir(parents=True)
        for plugin in plugins(kind):
            (folder / title / f"{plugin.name}.md").write_text(plugin_page(plugin), encoding="utf-8")
            n_plugins += 1
        (folder / title / "index.md").write_text(index_page(kind), encoding="utf-8")
    (folder / "backbones" / "libraries.md").write_text(plugin_page(library_plugin()), encoding="utf-8")
    (folder / "flags.md").write_text(run_flags_page(), encoding="utf-8")
    (folder / "memorization.md").write_text(memorization_page(), encoding="utf-8")
    (folder / "mammoth.md").write_text(mammoth_page(), encoding="utf-8")
    (folder / "site.css").write_text(STYLE, encoding="utf-8")
    for source, target in GUIDES.items():
        text = (registry.ROOT / source).read_text(encoding="utf-8")
        (folder / target).write_text(linked(text, folder), encoding="utf-8")
    return n_plugins


def linked(text: str, folder: Path) -> str:
    """A guide whose links lead somewhere on the site: pictures are copied, other files are named only."""

    def replaced(link: re.Match[str]) -> str:
        words, target = link[1], link[2]
        if re.match(r"https?:|#", target):
            return link[0]
        if target in GUIDES:
            return f"[{words}]({GUIDES[target]})"
        if (registry.ROOT / target).suffix not in PICTURES:
            return f"{words} (`{target}`)"
        (folder / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(registry.ROOT / target, folder / target)
        return link[0]

    return re.sub(r"\[([^\]]*)\]\(([^)\s]+)\)", replaced, text)


def site_config(pages: Path, site: Path) -> dict[str, object]:
    """What MkDocs is told: where the pages lie, their order, and that a browser may read them from disk."""
    plugin_pages = [
        {title: [f"{title}/index.md", *(f"{title}/{plugin.name}.md" for plugin in plugins(kind))]}
        for kind, title in KINDS.items()
    ]
    plugin_pages[-1]["backbones"].append({"torchvision:NAME, timm:NAME": "backbones/libraries.md"})
    guides = [
        {"Memorization": "memorization.md"},
        {"Coming from mammoth": "mammoth.md"},
        {"Results": "RESULTS.md"},
        {"Contributing": "CONTRIBUTING.md"},
    ]
    return {
        "site_name": "Engram",
        "docs_dir": str(pages),
        "site_dir": str(site),
        "use_directory_urls": False,
        "theme": {
            "name": "material",
            "font": False,  # the default loads fonts from the network
            "features": ["navigation.tabs", "navigation.indexes", "search.highlight", "content.code.copy"],
        },
        "plugins": ["search", "offline"],
        "markdown_extensions": MARKDOWN_EXTENSIONS,
        "extra_css": ["site.css"],
        "validation": {"links": {"not_found": "warn", "unrecognized_links": "warn", "anchors": "warn"}},
        "nav": [{"Start": "index.md"}, *plugin_pages, {"flags of every run": "flags.md"}, *guides],
    }


def build(out: Path) -> int:
    """Build the site and copy it into `out`, where nothing is deleted; returns the number of plugin pages."""
    if not (importlib.util.find_spec("mkdocs") and importlib.util.find_spec("material")):
        raise UserError("MkDocs Material is not installed: pip install -e '.[docs]' (or mkdocs-material)")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        n_plugins = write_pages(folder / "pages")
        config = yaml.safe_dump(site_config(folder / "pages", folder / "site"), sort_keys=False)
        (folder / "mkdocs.yml").write_text(config, encoding="utf-8")
        done = subprocess.run(
            [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", str(folder / "mkdocs.yml")],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},  # Material's notice about a later MkDocs
        )
        if done.returncode:
            raise UserError(f"mkdocs build failed:\n{done.stdout}{done.stderr}".rstrip())
        shutil.copytree(folder / "site", out, dirs_exist_ok=True)
    return n_plugins


@guarded
def main(argv: list[str] | None = None) -> int:
    """Build the site; returns the exit code."""
    parser = CheckedParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=registry.default_dir() / "runs" / "docs", metavar="DIR")
    out = parser.parse_args(argv).out
    check_folder(out, "--out")
    say_start(f"writing the pages of all plugins into {out}")
    n_plugins = build(out)
    print(f"{n_plugins} plugin pages: {out / 'index.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
