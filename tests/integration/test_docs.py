"""The documentation site: a page for every plugin, whose command is valid and whose texts are no markup."""

import html
import importlib
import importlib.util
import re
import shlex
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote

import pytest

from engram.memorization.__main__ import PROGRAMS
from engram.memorization.correlate import CorrelateOptions
from engram.models.method import Method
from engram.scripts import docs, docs_pages
from engram.scripts.docs_memorization import SHARED, memorization_page
from engram.scripts.docs_pages import measured_tables, plugin_page
from engram.scripts.docs_template import PageTable
from engram.utils.config import registry
from engram.utils.config.cli import parse
from engram.utils.config.plugin_docs import KINDS, plugins
from tests.conftest import built

PLUGINS = [plugin for kind in KINDS for plugin in plugins(kind)]
EWC = next(plugin for plugin in PLUGINS if plugin.name == "ewc")


@pytest.mark.parametrize("plugin", PLUGINS, ids=lambda plugin: plugin.name)
def test_the_command_of_a_page_is_one_that_the_program_takes(plugin):
    program, script, *flags = shlex.split(docs_pages.example_command(plugin))
    config = parse(flags).config
    assert (program, script) == ("python", "main.py")
    assert plugin.name in (config.run.model, config.run.dataset, config.run.backbone)


@pytest.mark.parametrize("model", ["independent", "pnn"])
def test_the_command_of_a_method_that_is_told_the_task_is_in_task_il(model):
    plugin = next(plugin for plugin in PLUGINS if plugin.name == model)
    assert docs_pages.example_command(plugin).endswith("--dataset seq-digits --multi_head")


NEED_VIT = [
    plugin
    for plugin in PLUGINS
    if plugin.kind == "models"
    and registry.plugin_class(registry.load("models", plugin.name), Method).needs_vit
]


@pytest.mark.parametrize("plugin", NEED_VIT, ids=lambda plugin: plugin.name)
def test_the_command_of_a_method_of_transformers_builds_one(plugin):
    _, _, *flags = shlex.split(docs_pages.example_command(plugin))
    method = built(parse([*flags, "--device", "cpu"]).config)
    assert method.net.depth == 6 and method.benchmark.name == "seq-digits"


def test_a_page_has_what_the_sources_say():
    page = plugin_page(EWC)
    assert page.startswith("# ewc\n") and page.index("python main.py --model ewc") < page.index("## Source")
    for wanted in (
        "Kirkpatrick et al.", "--e_lambda", "## Differs from the paper", "&gt;= 0", "## Checked by",
        "<td>98.64\u00a0±\u00a00.22</td>", "van de Ven &amp; Tolias 2019", "## Measured here",
    ):  # fmt: skip
        assert wanted in page, wanted
    page = plugin_page(next(plugin for plugin in PLUGINS if plugin.name == "seq-mnist"))
    assert "<p>Split MNIST: 400-400 units" in page and "<p>Permuted MNIST" not in page
    assert "## Set by default" in page and "Formula" not in page


def test_presets_are_flags_with_a_command_that_takes_them():
    page = plugin_page(next(plugin for plugin in PLUGINS if plugin.name == "er"))
    command = "python main.py --model er --dataset seq-mnist --buffer_size 200 --load_best_args"
    assert f">{command}</code>" in page and parse(shlex.split(command)[2:]).config.train.lr == 0.01
    flags = "--batch_size 10 --n_epochs 1 --lr 0.01 --minibatch_size 10"
    benchmark = '<td><a href="../benchmarks/seq-mnist.html">seq-mnist</a></td>'
    assert f"{benchmark}<td>200</td><td><code>{flags}</code></td><td>mammoth, utils/best_args.py" in page
    assert page.index("## Measured here") < page.index("## Flags")


def test_papers_and_plugins_are_links():
    page = plugin_page(next(plugin for plugin in PLUGINS if plugin.name == "seq-mnist"))
    assert '<a href="../methods/er.html"><code>er</code></a>' in page
    assert '<a href="https://arxiv.org/abs/1904.07734">arXiv 1904.07734</a>' in page


@pytest.mark.parametrize("plugin", [p for p in PLUGINS if p.kind == "datasets"], ids=lambda p: p.name)
def test_a_benchmarks_page_names_the_classes_of_its_training_softmax(plugin, monkeypatch):
    text = plugin_page(plugin)
    assert "In class-IL, <code>--train_classes all</code> is the default here (as in mammoth)" in text
    monkeypatch.setitem(registry.load("datasets", plugin.name).DEFAULTS, "train_classes", "seen")
    text = plugin_page(plugin)
    assert "<code>--train_classes seen</code> is the default here (as in van de Ven &amp; Tolias 2019" in text


def test_no_text_of_a_source_is_markup():
    script = "<script>alert('x')</script>"
    fields = {"summary": script, "source": script, "differs": f"  {script}", "text": f"a `{script}`"}
    page = plugin_page(replace(EWC, **fields, scenarios=(script,)))
    assert "<script" not in page and page.count("&lt;script&gt;") == 5
    assert "<code>&lt;script&gt;" in page, "words between backticks are code"


def test_names_and_summaries_are_text_in_the_index(monkeypatch):
    monkeypatch.setattr(docs_pages, "plugins", lambda kind: [replace(EWC, summary="*a* <b> [c](d) `e_f`")])
    assert docs_pages.index_page("models").splitlines()[-1] == (
        r"- [ewc](ewc.md): \*a\* &lt;b&gt; \[c\](d) \`e\_f\`"
    )


def test_the_page_of_memorization_has_every_program_and_its_flags(capsys):
    """Those of --help, but for the backbone's."""
    page = memorization_page()
    shared = page[page.index(f"## {SHARED}") :]
    assert "<code>--dataset_size</code>" in shared and "train_stream" in PROGRAMS
    for name in PROGRAMS:
        section = page[page.index(f"## {name}\n") :].split("\n## ")[0]
        module = importlib.import_module(f"engram.memorization.{name}")
        assert module.__doc__.split("\n")[0] in html.unescape(section)
        assert f"python -m memorization.{name} --" in section and f"memorization.{name} --help" in page
        with pytest.raises(SystemExit):
            module.run(["--help"])
        flags = re.findall(r"^ {2,}(--\w+)", capsys.readouterr().out, re.MULTILINE)
        for flag in flags:
            known = flag in ("--config", "--help") or any(
                f"<code>{flag}" in part for part in (section, shared)
            )
            assert known, f"{name} {flag}"
        assert set(re.findall(r"<td><code>(--\w+)", section)) <= set(flags), f"{name}: flags of another"
    assert "--n_repeats 64 --weights_dir" in page, "a command that goes on in a second line is one"
    assert re.findall(r"^## (\w+)$", page, re.MULTILINE) == list(PROGRAMS), "in their order"
    assert f"<p>{CorrelateOptions.__doc__}</p>" in page, "what a set of flags says of itself"
    assert "<tbody>\n</tbody>" not in page, "no table is empty"


def test_tables_of_the_results_are_read_with_their_titles():
    text = (
        "<!-- table a b -->\n**x**: y\n\n| m | n |\n| --- | --- |\n| er, 1 | 2 |\n\nnote\n<!-- end a b -->\n"
        "| not | marked |\n<!-- table c -->\n| k |\n| --- |\n| 3 |\n<!-- end c -->"
    )
    assert measured_tables(text) == [
        PageTable(["m", "n"], [["er, 1", "2"]], "x: y"), PageTable(["k"], [["3"]], "c"),
    ]  # fmt: skip


def dead_links(site: Path) -> list[str]:
    """Links of the site's pages that lead to no file."""
    return [
        f"{page.relative_to(site)}: {target}"
        for page in site.rglob("*.html") if page.name != "404.html"
        for target in re.findall(r'(?:href|src)="([^":#?]+)["#?]', page.read_text())
        if not (page.parent / unquote(target)).exists()
    ]  # fmt: skip


def test_the_site_has_a_page_for_every_plugin_and_the_guides(tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("kept")
    assert docs.main(["--out", str(tmp_path)]) == 0
    assert f"{len(PLUGINS)} plugin pages: {tmp_path / 'index.html'}" in capsys.readouterr().out
    for kind, title in KINDS.items():
        index = (tmp_path / title / "index.html").read_text()
        for name in registry.names(kind):
            assert f'href="{name}.html"' in index and (tmp_path / title / f"{name}.html").exists()
    assert "--checkpoint_every" in (tmp_path / "flags.html").read_text()
    assert "<code>--model joint</code>" in (tmp_path / "mammoth.html").read_text()
    assert "python -m memorization.train_whole --dataset" in (tmp_path / "memorization.html").read_text()
    assert 'href="memorization.html"' in (tmp_path / "index.html").read_text()
    assert "How to read the tables" in (tmp_path / "RESULTS.html").read_text()
    assert "--input_size" in (tmp_path / "backbones" / "libraries.html").read_text()
    assert dead_links(tmp_path) == []
    searched = (tmp_path / "search" / "search_index.json").read_text()
    assert "methods/ewc.html#flags" in searched and '"methods/index.html"' not in searched
    assert (tmp_path / "mine.txt").read_text() == "kept", "nothing in the folder is deleted"


def test_without_mkdocs_one_line_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert docs.main(["--out", str(tmp_path / "site")]) == 2
    error = capsys.readouterr().err
    assert error == (
        "error: MkDocs Material is not installed: pip install -e '.[docs]' (or mkdocs-material)\n"
    )
    assert not (tmp_path / "site").exists()
