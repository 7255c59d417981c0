"""Reference pages: what the sources say about a plugin, as Markdown; templates/plugin.md lays it out."""

import ast
import dataclasses
import re
from collections.abc import Iterator
from functools import cache
from types import ModuleType

import yaml

from engram.models.method import Method
from engram.scripts.analysis.paper_report import PAPERS_DIR, ROW_NAMES, Published
from engram.scripts.analysis.study_report import PAPERS
from engram.scripts.analysis.table import MISSING
from engram.scripts.docs_template import PageTable, Section, as_text, render_page
from engram.utils.config import registry
from engram.utils.config.config import GROUPS
from engram.utils.config.options import BOUNDS, OptionSet, value_type
from engram.utils.config.plugin_docs import KINDS, Plugin, library_plugin, method_class, plugins

HOOKS = (
    "begin_task", "loss", "penalty", "edit_gradients", "after_step", "end_task", "predict", "observe",
)  # fmt: skip
# Benchmarks that need a file of the user's own.
REQUIRED = {"gem-file": " --gem_file FILE", "seq-imagefolder": " --image_dir DIR"}
# What RESULTS.md calls a benchmark in the tables of a paper.
TITLES = {title: name for report in PAPERS.values() for name, title in report.benchmarks.items()}
# Whose way of training each value of --train_classes is.
SOFTMAX_SOURCES = {
    "all": "as in mammoth",
    "seen": "as in van de Ven & Tolias 2019",
    "task": "the labels trick of Zeno et al. 2018",
}
# Front matter of a page that the search leaves out: what it would find there has a page of its own.
NOT_SEARCHED = "---\nsearch:\n  exclude: true\n---"


def plugin_page(plugin: Plugin) -> str:
    """Everything about one plugin, as Markdown."""
    module = registry.load(plugin.kind, plugin.name)
    sections = [
        Section("Source", plugin.source),
        Section("Differs from the paper", plugin.differs),
        Section("Description", plugin.text),
        Section("Scenarios", ", ".join(plugin.scenarios)),
        Section("Measured here (RESULTS.md), in %", tables=_measured_tables(plugin)),
        Section("Published numbers, in %", tables=_published_tables(plugin)),
        _preset_section(plugin),
        Section("Formula, hook by hook", tables=_hook_tables(plugin)),
        Section("Flags", tables=[flag_table(getattr(module, "Options", OptionSet))]),
        Section("Set by default", tables=_default_tables(plugin, module)),
        Section("Classes of the training softmax", _softmax_text(plugin, module)),
        Section("Checked by", tables=_check_tables(plugin)),
        Section("File", code=str(plugin.path.relative_to(registry.ROOT))),
    ]
    return render_page(plugin.name, plugin.summary, example_command(plugin), sections)


def index_page(kind: str) -> str:
    """All plugins of a kind with their first lines, as Markdown."""
    lines = [f"- [{plugin.name}]({plugin.name}.md): {as_text(plugin.summary)}" for plugin in plugins(kind)]
    if kind == "backbones":
        library = library_plugin()
        lines.append(f"- [{library.name}](libraries.md): {as_text(library.summary)}")
    return "\n".join([NOT_SEARCHED, f"# {KINDS[kind]}", "", *lines, ""])


def run_flags_page() -> str:
    """The flags that every run has, as Markdown."""
    sections = [Section(str(options.__doc__), tables=[flag_table(options)]) for options in GROUPS.values()]
    return render_page("Flags of every run", "", "python main.py --help", sections)


def example_command(plugin: Plugin) -> str:
    """A command that runs the plugin as it is, on embedded data where that is possible."""
    if plugin.kind == "datasets":
        return f"python main.py --model sgd --dataset {plugin.name}{REQUIRED.get(plugin.name, '')}"
    if plugin.kind == "backbones":
        dataset = "seq-digits" if plugin.name == "mlp" else "seq-cifar10"
        name = plugin.name.replace("NAME", "resnet18")
        return f"python main.py --model sgd --dataset {dataset} --backbone {name}"
    heads = " --multi_head" if plugin.scenarios[0] == "task-il" else ""
    method = registry.plugin_class(registry.load("models", plugin.name), Method)
    network = " --backbone small_vit" if method.needs_vit else ""
    return f"python main.py --model {plugin.name} --dataset seq-digits{heads}{network}"


def flag_table(options: type[OptionSet]) -> PageTable:
    """Flag, default, type with bounds, help."""
    rows = []
    for option in dataclasses.fields(options):
        kind, many = value_type(option)
        bounds = [f"{BOUNDS[name][0]} {value}" for name, value in option.metadata["bounds"].items()]
        choices = " | ".join(map(str, option.metadata["choices"] or ())) or kind.__name__ + ",..." * many
        text = option.metadata["help"].replace("%%", "%")
        names = ", ".join(f"--{name}" for name in (option.name, *option.metadata["aliases"]))
        rows.append([names, _value_text(option.default), " ".join([choices, *bounds]), text])
    return PageTable(["flag", "default", "values", "meaning"], rows, code=(0, 1, 2))


def _hook_tables(plugin: Plugin) -> list[PageTable]:
    """The docstrings of the method's class and of the hooks that it overrides."""
    if plugin.kind != "models":
        return []
    node = method_class(ast.parse(plugin.path.read_text(encoding="utf-8")))
    rows = [[node.name, ast.get_docstring(node) or ""]]
    for hook in node.body:
        if isinstance(hook, ast.FunctionDef) and hook.name in HOOKS:
            rows.append([hook.name, " ".join((ast.get_docstring(hook) or "").split())])
    return [PageTable(["hook", "what it does"], rows)]


def _default_tables(plugin: Plugin, module: ModuleType) -> list[PageTable]:
    """The flags that a benchmark sets where the user does not."""
    if plugin.kind != "datasets":
        return []
    rows = [[f"--{name}", _value_text(value)] for name, value in module.DEFAULTS.items()]
    return [PageTable(["flag", "value"], rows, code=(0, 1))]


def _softmax_text(plugin: Plugin, module: ModuleType) -> str:
    """The benchmark's default of --train_classes and where it comes from, or the method's own."""
    if plugin.kind == "models" and (own := registry.method_defaults(plugin.name).get("train_classes")):
        return f"In class-IL, `--train_classes {own}` is this method's own default, as its paper trains."
    if plugin.kind != "datasets":
        return ""
    fields = {option.name: option for option in dataclasses.fields(GROUPS["stream"])}
    chosen = module.DEFAULTS.get("train_classes", fields["train_classes"].default)
    meaning = fields["train_classes"].metadata["help"]
    return (
        f"In class-IL, `--train_classes {chosen}` is the default here ({SOFTMAX_SOURCES[chosen]}). "
        f"The values are {meaning.removeprefix('class-il: ')}."
    )


def _preset_section(plugin: Plugin) -> Section:
    """The flags of each benchmark and buffer size in models/presets/, their source, and a command."""
    path = registry.ROOT / "models" / "presets" / f"{plugin.name}.yaml"
    title = "Presets (--load_best_args)"
    if plugin.kind != "models" or not path.exists():
        return Section(title)
    presets = yaml.safe_load(path.read_text(encoding="utf-8"))
    rows = [
        [dataset, MISSING if size == "any" else str(size),
         " ".join(f"--{name} {_value_text(value)}" for name, value in flags.items() if name != "source"),
         flags.get("source", MISSING)]
        for dataset, sizes in presets.items() for size, flags in sizes.items()
    ]  # fmt: skip
    dataset, size, *_ = rows[0]
    is_named = not size.isdigit() and size != MISSING
    buffer = f" --buffer_size {size}" if size.isdigit() else ""
    command = f"python main.py --model {plugin.name} --dataset {dataset}{buffer} --load_best_args"
    columns = ["benchmark", "name" if is_named else "buffer", "flags", "source"]
    command += f" {size}" if is_named else ""
    return Section(title, code=command, tables=[PageTable(columns, rows, code=(2,))])


def _published_tables(plugin: Plugin) -> list[PageTable]:
    """The numbers of papers that reports compare the method with, one table for each paper."""
    tables = []
    for path in sorted(PAPERS_DIR.glob("published_*.yaml")):
        published = Published.read(path.stem.removeprefix("published_"))
        rows = [
            [benchmark, name, *map(_value_text, values)]
            for benchmark, methods in published.values.items()
            for name, values in methods.items()
            if _is_of(plugin, name) or plugin.name == benchmark
        ]
        if rows:
            tables.append(PageTable(["benchmark", "setting", *published.columns], rows, published.source))
    return tables


def _is_of(plugin: Plugin, row_name: str) -> bool:
    """Whether a row such as `er alg4` or `er, buffer 500` is of this method, under either of its names."""
    if plugin.name in ROW_NAMES:
        row_name = re.sub(r" \d+$", "", row_name)
        # `ewc` alone stands for another form in each paper
        return row_name == ROW_NAMES[plugin.name] and " " in row_name
    return plugin.kind == "models" and re.split("[ ,]", row_name)[0] == plugin.name


def _measured_tables(plugin: Plugin) -> list[PageTable]:
    """The method's rows of the tables in RESULTS.md, or the benchmark's whole tables."""
    tables = []
    for table in measured_tables((registry.ROOT / "RESULTS.md").read_text(encoding="utf-8")):
        if plugin.kind == "models":
            rows = [row for row in table.rows if _is_of(plugin, row[0])]
        else:
            title = re.split("[,:]", table.title)[0]
            rows = table.rows if TITLES.get(title, title) == plugin.name else []
        if rows:
            tables.append(dataclasses.replace(table, rows=rows))
    return tables


@cache
def measured_tables(text: str) -> list[PageTable]:
    """The tables between the markers of RESULTS.md, each with the bold line above it as its title."""
    tables: list[PageTable] = []
    for name, body in re.findall(r"<!-- table (.+?) -->\n(.*?)<!-- end \1 -->", text, re.DOTALL):
        title = name
        for block in body.split("\n\n"):
            lines = block.strip().splitlines()
            if block.startswith("**"):
                title = block.strip().replace("**", "")
            elif lines and lines[0].startswith("|"):
                head, _, *rows = [[cell.strip() for cell in line[1:-1].split("|")] for line in lines]
                tables.append(PageTable(head, rows, title))
    return tables


def _check_tables(plugin: Plugin) -> list[PageTable]:
    """The tests of the reference files that import the method's file or name it."""
    rows = []
    for path in sorted((registry.ROOT / "tests" / "reference").glob("test_*.py")):
        text = path.read_text(encoding="utf-8")
        if plugin.kind == "models" and re.search(rf"(models\.|[\"']){plugin.path.stem}\b", text):
            rows += [[path.name, sentence] for sentence in _test_sentences(text)]
    return [PageTable(["file", "what is checked"], rows)]


def _test_sentences(text: str) -> Iterator[str]:
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            yield node.name.removeprefix("test_").replace("_", " ")


def _value_text(value: object) -> str:
    if value is None or value == ():
        return MISSING
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
