"""Study report: what scripts/report.py prints and writes."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from engram.scripts.analysis import number_moves, number_moves_text, study_tables
from engram.scripts.analysis.paper_report import PaperReport
from engram.scripts.analysis.papers.audit import AuditReport
from engram.scripts.analysis.papers.memorization import MemorizationReport
from engram.scripts.analysis.papers.mer import MerReport
from engram.scripts.analysis.papers.perm_small import PermSmallReport
from engram.scripts.analysis.papers.pretrained import PretrainedReport
from engram.scripts.analysis.papers.prompts import PromptsReport
from engram.scripts.analysis.papers.rehearsal import RehearsalReport
from engram.scripts.analysis.papers.scenarios import ScenariosReport
from engram.scripts.analysis.run_set import RunSet, collect
from engram.scripts.analysis.table import check_update, update
from engram.utils import files
from engram.utils.config.flags import CheckedParser
from engram.utils.destinations import FIGURE_FORMATS, check_folder
from engram.utils.errors import UserError
from engram.utils.sweeps.sweep_spec import read_spec

PAPERS: dict[str, type[PaperReport]] = {
    report.name: report
    for report in (
        MerReport,
        ScenariosReport,
        PermSmallReport,
        RehearsalReport,
        PretrainedReport,
        PromptsReport,
        AuditReport,
        MemorizationReport,
    )
}


def markdown(run_set: RunSet, metrics: Sequence[str] = ()) -> str:
    """One table for each benchmark, ordered by accuracy, and where the numbers come from."""
    tables = []
    for name, settings in run_set.benchmarks.items():
        title = f"**{name}**: {study_tables.caption(settings)}"
        table = (
            study_tables.chosen_table(settings, metrics, title)
            if metrics
            else study_tables.main_table(settings, title)
        )
        tables.append(table.markdown())
    return "\n\n".join([*tables, study_tables.provenance(run_set.runs)])


def latex(run_set: RunSet, metrics: Sequence[str] = ()) -> str:
    """A table of each benchmark, and the paired differences of each view."""
    tables = []
    for name, settings in run_set.benchmarks.items():
        tables.append(study_tables.latex_table(name, settings, metrics or study_tables.IN_PAPERS))
        for view in settings[0].views:
            label = study_tables.stem(name, view, "paired")
            tables.append(replace(study_tables.paired_table(settings, view), label=label))
    shown = "\n\n".join(table.latex() for table in tables if table.rows)
    return f"% needs \\usepackage{{booktabs}}; other columns: --metrics\n{shown}\n"


def write(run_set: RunSet, title: str, folder: Path, args: argparse.Namespace) -> None:
    """Write report.md, report.tex, report.csv, report.html and figures/ into the folder.

    args: the command line's --against, --metrics and --figures.
    """
    from engram.scripts.analysis import figures, report_page  # matplotlib takes a second to import
    from engram.utils import figure_files

    labels = {setting.label for setting in run_set.settings}
    if args.against is not None and args.against not in labels:
        raise UserError(f"--against '{args.against}': no such setting; there is: {'; '.join(sorted(labels))}")
    about, drawn = study_tables.provenance(run_set.runs), figures.of_study(run_set.benchmarks)
    on_page = args.metrics or tuple(study_tables.METRICS)
    texts = {
        "report.md": markdown(run_set, args.metrics) + "\n",
        "report.tex": latex(run_set, args.metrics),
        "report.csv": study_tables.run_table(run_set).csv(),
        "report.html": report_page.render(title, run_set, about, args.against, on_page, drawn),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            files.write_text(text, folder / name)
        if args.figures:
            (folder / "figures").mkdir(exist_ok=True)
        for name, figure in drawn.items():
            figure_files.save_all(figure, folder / "figures" / name, args.figures)
    except OSError as error:
        raise UserError(f"--out {folder}: cannot be written: {error}") from None
    names = [*texts, *([f"figures/*.{{{','.join(args.figures)}}}"] if args.figures else [])]
    name_written([folder / name for name in names])


def run_folder(given: str) -> Path:
    """A folder of runs, given as its path or as the sweep spec whose runs lie there."""
    path = Path(given).expanduser()
    if path.is_file() and path.suffix not in (".yaml", ".yml"):
        raise UserError(f"{given}: expected a folder that holds runs, e.g. runs, or a study's YAML file")
    if path.is_file():
        spec = read_spec(path)
        return Path(spec.fixed.get("output_dir") or f"runs/{spec.name}").expanduser()
    return path


def build_parser(text: str) -> argparse.ArgumentParser:
    """The parser of the report's command line; `text` stands in its help."""
    parser = CheckedParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "folders",
        nargs="*",
        help="folders that hold run folders, or a study.yaml; first the name of a paper's tables",
    )
    parser.add_argument("--update", type=Path, metavar="FILE", help="file whose marked part is replaced")
    parser.add_argument(
        "--check",
        type=Path,
        metavar="FILE",
        help="say which tables of the file are older than a change that moved their numbers",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="where the files go (default: report/ in the first folder; a paper's: the first folder)",
    )
    parser.add_argument(
        "--against", metavar="SETTING", help="compare with this setting only (default: each with each)"
    )
    parser.add_argument(
        "--metrics",
        nargs="+",
        choices=study_tables.CHOICES,
        default=[],
        help="columns of the tables, in this order (default: accuracy and forgetting; on the page all)",
    )
    parser.add_argument(
        "--figures",
        nargs="*",
        choices=FIGURE_FORMATS,
        default=list(FIGURE_FORMATS),
        help="formats of the figures in figures/ (default: all; without a word: none)",
    )
    return parser


def run(argv: list[str], text: str) -> int:
    """Do what the command line says; returns the exit code. text: of the help."""
    args = build_parser(text).parse_args(argv)
    if args.check:
        return check_page(args.check)
    paper = PAPERS.get(args.folders[0]) if args.folders else None
    folders = [run_folder(folder) for folder in args.folders[paper is not None :]]
    if not folders:
        raise UserError(_without_folder(paper))
    if paper and args.metrics:
        raise UserError(f"--metrics: the tables of {paper.name} have the paper's columns; leave it out")
    if paper and args.against is not None:
        raise UserError(f"--against: the tables of {paper.name} have the paper's comparisons; leave it out")
    check_update(args.update, folders[0].name)
    if args.out:
        args.out = args.out.expanduser()
        check_folder(args.out, "--out")
    run_set = collect(folders)
    for line in number_moves.check_runs(run_set.runs, folders[0].name, args.update):
        print(line, file=sys.stderr)
    if paper:
        text = paper_tables(paper(run_set), args.out or folders[0], args.figures)
    else:
        text = markdown(run_set, args.metrics)
    if args.update:
        update(args.update, folders[0].name, text)
    else:
        print(text)
        name_left_out(run_set)
    if not paper and (args.out or not args.update):
        write(run_set, f"Study {folders[0].name}", args.out or folders[0] / "report", args)
    return 0


def _without_folder(paper: type[PaperReport] | None) -> str:
    """What is wrong with a command line that names no folder of runs."""
    if paper is None:
        return "no folder given; give one that holds runs, such as runs/mnist, or a study.yaml (see --help)"
    return (
        f"{paper.name} is the name of a paper's tables, and no folder is given; give its runs, such as "
        f"{paper.name} runs/{paper.name}, or ./{paper.name} for a folder of that name"
    )


def check_page(path: Path) -> int:
    """Print which tables of a page are older than a change that moved their numbers; returns the exit code.

    It is 1 where number_moves.yaml does not say of such a table why it stands, or says so of another one.
    """
    try:
        page = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UserError(f"--check {path}: cannot be read: {error}") from None
    titles = {title: name for paper in PAPERS.values() for name, title in paper.benchmarks.items()}
    older = number_moves.table_ages(page, titles)
    outdated = number_moves.outdated(older, page)
    for line in [*number_moves_text.blocks(older), *outdated]:
        print(line)
    if unknown := number_moves.without_commits(page):
        print(f"no commit that this repository knows: {', '.join(unknown)}")
    if unnamed := number_moves.with_unnamed_commits(page):
        print(f"too many commits to tell whether an unnamed one is older: {', '.join(unnamed)}")
    if changes := number_moves.unknown_changes():
        print(f"not compared, since this repository does not know the commit: {', '.join(changes)}")
    unlisted = [age for age in older if not age.listed]
    print(f"{len({age.table for age in older})} tables have older rows; {len(unlisted)} reasons are missing")
    return 1 if unlisted or outdated else 0


def paper_tables(report: PaperReport, folder: Path, formats: Sequence[str]) -> str:
    """The paper's tables and where the numbers come from; its other files are written into the folder."""
    text = report.markdown()
    folder.mkdir(parents=True, exist_ok=True)
    name_written(report.write_files(folder, formats))
    return "\n\n".join([text, study_tables.provenance(report.run_set.runs, report.deviation)])


def name_written(paths: Sequence[Path]) -> None:
    """Say which files were written."""
    print(f"written: {', '.join(map(str, paths))}", file=sys.stderr)


def name_left_out(run_set: RunSet) -> None:
    """Say which runs are not in the tables."""
    if run_set.unfinished:
        print(f"left out: {len(run_set.unfinished)} runs that did not finish", file=sys.stderr)
    if run_set.repeated:
        print(f"left out: {len(run_set.repeated)} earlier runs of a seed that was run again", file=sys.stderr)
