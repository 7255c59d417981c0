"""The report as one HTML page that loads nothing from elsewhere; templates/report.html lays it out."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure

from engram.scripts.analysis import study_tables
from engram.scripts.analysis.run_set import RunSet, Setting, commits
from engram.scripts.analysis.table import Table
from engram.utils import figure_files
from engram.utils.config.run_key import command_line_of

VIEW_TITLES = {
    "class_il": "class-IL (which of all classes seen?)",
    "task_il": "task-IL (which of the task's classes?)",
}
N_OPEN = 12  # rows of comparisons that are shown without a click
TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).with_name("templates")),
    autoescape=True,  # labels, paths, commits and log lines come from files that anyone may have written
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


@dataclass(frozen=True)
class ViewSection:
    """One evaluation view of a benchmark: its metrics, its comparisons, and figures with their captions."""

    title: str
    metrics: Table
    over_tasks: str
    figures: list[tuple[str, str]]  # (heading, image)
    comparisons: Table
    more_comparisons: Table
    matrices: str


@dataclass(frozen=True)
class BenchmarkSection:
    """A benchmark's caption, its views, and the time and memory of its runs."""

    name: str
    anchor: str
    caption: str
    views: list[ViewSection]
    cost: Table
    cost_figure: str


@dataclass(frozen=True)
class SettingCommands:
    """The commands that repeat the runs of a setting, and the commits that ran them."""

    title: str
    commands: list[str]
    commits: str


def render(
    title: str,
    run_set: RunSet,
    about: str,
    baseline: str | None,
    metrics: Sequence[str],
    drawn: dict[str, Figure],
) -> str:
    """The page, with the figures of `figures.of_study`.

    baseline: the setting with which the others are compared; None: each with each.
    """
    return TEMPLATES.get_template("report.html").render(
        title=title,
        about=about,
        benchmarks=[
            _benchmark_section(name, settings, baseline, metrics, drawn)
            for name, settings in run_set.benchmarks.items()
        ],
        failed=study_tables.failed_table(run_set),
        commands=[
            _setting_commands(name, setting)
            for name, settings in run_set.benchmarks.items()
            for setting in settings
        ],
        versions=sorted(
            {", ".join(f"{name} {version}" for name, version in run.versions.items()) for run in run_set.runs}
        ),
    )


def _benchmark_section(
    name: str, settings: list[Setting], baseline: str | None, metrics: Sequence[str], drawn: dict[str, Figure]
) -> BenchmarkSection:
    return BenchmarkSection(
        name=name,
        anchor=study_tables.stem(name),
        caption=study_tables.caption(settings),
        views=[_view_section(name, settings, view, baseline, metrics, drawn) for view in settings[0].views],
        cost=study_tables.cost_table(settings),
        cost_figure=_image(drawn[study_tables.stem(name, "cost")]),
    )


def _view_section(
    name: str,
    settings: list[Setting],
    view: str,
    baseline: str | None,
    metrics: Sequence[str],
    drawn: dict[str, Figure],
) -> ViewSection:
    in_domain_il = settings[0].first.scenario == "domain-il"
    optional = {
        "Accuracy against buffer size": study_tables.stem(name, "buffer_size"),
        "Accuracy while training (stability gap)": study_tables.stem(name, view, "stability"),
    }
    if view != settings[0].views[0]:  # it has a panel for each view, and is shown once
        del optional["Accuracy against buffer size"]
    comparisons = study_tables.paired_table(settings, view, baseline)
    return ViewSection(
        title="domain-IL" if in_domain_il else VIEW_TITLES[view],
        metrics=study_tables.metric_table(settings, view, metrics),
        over_tasks=_image(drawn[study_tables.stem(name, view, "over_tasks")]),
        figures=[(heading, _image(drawn[key])) for heading, key in optional.items() if key in drawn],
        comparisons=replace(comparisons, rows=comparisons.rows[:N_OPEN]),
        more_comparisons=replace(comparisons, rows=comparisons.rows[N_OPEN:]),
        matrices=_image(drawn[study_tables.stem(name, view, "matrices")]),
    )


def _setting_commands(benchmark: str, setting: Setting) -> SettingCommands:
    seeds = ", ".join(map(str, setting.seeds))
    return SettingCommands(
        f"{benchmark}: {setting.label}, seeds {seeds}",
        [command_line_of(run.config) for run in setting.runs],
        commits(setting.runs),
    )


def _image(figure: Figure) -> str:
    """A data URL, so that the ids inside one drawing cannot meet those of another."""
    return f"data:image/svg+xml;base64,{base64.b64encode(figure_files.encoded(figure, 'svg')).decode()}"
