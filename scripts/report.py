"""Tables and figures of a study, from the runs' own results.json: numbers are never typed.

    python scripts/report.py runs/mnist                       print the tables; Markdown, LaTeX, CSV and one
                                                              HTML page with all figures in runs/mnist/report/
    python scripts/report.py study.yaml                       the same for the study that sweep.py ran
    python scripts/report.py runs/mnist --update RESULTS.md    put the tables between the file's markers
    python scripts/report.py mer runs/mer [--update FILE]     the MER paper's tables; also CSV and a figure
    python scripts/report.py scenarios runs/scenarios         van de Ven & Tolias's three scenarios
    python scripts/report.py rehearsal runs/rehearsal         rehearsal methods, with time and memory
    python scripts/report.py memorization runs/maer           the memorization paper's; LaTeX and CSV too

Settings are found from the configurations: runs that differ in nothing but the seed; a paper's tables refuse
others in one cell. Each scenario of a data set is a benchmark of its own. Standard deviations are over seeds,
ddof = 1; settings are compared seed by seed, on the same tasks. The markers are `<!-- table NAME -->` and
`<!-- end NAME -->`, NAME being the first folder's name.
"""

import argparse
import sys
from pathlib import Path

from engram.scripts.analysis import tables
from engram.scripts.analysis.captions import caption
from engram.scripts.analysis.papers import memorization, mer, rehearsal, scenario
from engram.scripts.analysis.run_set import Study, commits, load, study
from engram.utils.errors import UserError
from engram.utils.sweeps.sweep_spec import read_spec


def markdown(found: Study) -> str:
    """One table per benchmark, ordered by accuracy, and where the numbers come from."""
    parts = [
        f"**{name}**: {caption(settings)}\n\n{tables.main_table(settings).markdown()}"
        for name, settings in found.benchmarks.items()
    ]
    return "\n\n".join([*parts, footer(found.documents)])


def footer(documents: list[dict]) -> str:
    """Where the numbers come from."""
    known = {
        "devices": {d["device"] for d in documents},
        "torch": {d["versions"].get("torch", "unknown") for d in documents},
    }
    listed = "; ".join(f"{name}: {', '.join(sorted(values))}" for name, values in known.items())
    return f"In %, mean ± standard deviation over seeds (ddof = 1). {listed}; commits: {commits(documents)}."


def latex(found: Study) -> str:
    """Every metric of every view, and the paired differences."""
    parts = []
    for name, settings in found.benchmarks.items():
        for view in settings[0].views:
            for table in (tables.metric_table(settings, view), tables.paired_table(settings, view)):
                if table.rows:
                    parts.append(f"% {name}\n{table.latex()}")
    return "% needs \\usepackage{booktabs}\n" + "\n\n".join(parts) + "\n"


def write(found: Study, title: str, folder: Path, against: str | None) -> None:
    """The four files of a report."""
    from engram.scripts.analysis import html_page  # draws: matplotlib takes a second to import

    known = {setting.label for setting in found.settings}
    if against is not None and against not in known:
        raise UserError(f"--against '{against}': no such setting; there is: {'; '.join(sorted(known))}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        files = {
            "report.md": markdown(found) + "\n",
            "report.tex": latex(found),
            "report.csv": tables.write_csv(found),
            "report.html": html_page.render(title, found, footer(found.documents), against),
        }
        for name, text in files.items():
            (folder / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"--out {folder}: cannot be written: {error}") from None
    print(f"written: {', '.join(str(folder / name) for name in files)}", file=sys.stderr)


def update(path: Path, name: str, text: str) -> None:
    """Replace what stands between the file's markers for `name`."""
    start, end = f"<!-- table {name} -->", f"<!-- end {name} -->"
    content = path.read_text(encoding="utf-8")
    if start not in content or end not in content:
        sys.exit(f"error: {path} has no markers '{start}' and '{end}'")
    before, after = content.split(start)[0], content.split(end)[1]
    path.write_text(f"{before}{start}\n{text}\n{end}{after}", encoding="utf-8")


def folder_of(given: str) -> Path:
    """A folder of runs, given itself or by the study that filled it."""
    path = Path(given).expanduser()
    if path.is_file():
        found = read_spec(path)
        return Path(found.fixed.get("output_dir") or f"runs/{found.name}").expanduser()
    return path


# Tables beside published numbers: modules that have `markdown(documents)`, and some
# `write_files(documents, folder)`.
PAPERS = {
    "mer": mer,
    "scenarios": scenario,
    "rehearsal": rehearsal,
    "memorization": memorization,
}


def of_paper(name: str, folders: list[Path]) -> str:
    """A paper's tables from the finished runs below the folders, and where the numbers come from."""
    documents = [document for document in load(folders) if document["status"] == "finished"]
    if hasattr(PAPERS[name], "write_files"):
        PAPERS[name].write_files(documents, folders[0])
    return "\n\n".join([PAPERS[name].markdown(documents), footer(documents)])


def parser() -> argparse.ArgumentParser:
    """The report's flags."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = made.add_argument
    add(
        "folders",
        nargs="+",
        help="folders that hold run folders, or a study.yaml; first the name of a paper's tables",
    )
    add("--update", type=Path, metavar="FILE", help="file whose marked part is replaced")
    add("--out", type=Path, metavar="DIR", help="where the files go (default: report/ in the first folder)")
    add("--against", metavar="SETTING", help="compare with this setting only (default: each with each)")
    return made


def main(argv: list[str] | None = None) -> int:
    """Print the tables, and write the report or put them into a file; returns the exit code."""
    args = parser().parse_args(argv)
    paper = args.folders[0] if args.folders[0] in PAPERS else None
    try:
        folders = [folder_of(folder) for folder in args.folders[paper is not None :]]
        if not folders:
            raise UserError("no folder given")
        found = None if paper else study(load(folders))
        text = of_paper(paper, folders) if paper else markdown(found)
        if args.update:
            update(args.update, folders[0].name, text)
            return 0
        print(text)
        if found:
            tell_left_out(found)
            write(found, f"Study {folders[0].name}", args.out or folders[0] / "report", args.against)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def tell_left_out(found: Study) -> None:
    """Runs that are not in the tables."""
    if found.unfinished:
        print(f"left out: {len(found.unfinished)} runs that did not finish", file=sys.stderr)
    if found.repeated:
        print(f"left out: {len(found.repeated)} earlier runs of a seed that was run again", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
