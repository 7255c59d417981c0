"""Tables and figures of a study, from the records that its runs left: numbers are never typed.

    python scripts/report.py runs/mnist                       print the tables; Markdown, LaTeX, CSV, one HTML
                                                              page and every figure as PDF, SVG and PNG in
                                                              runs/mnist/report/
    python scripts/report.py study.yaml                       the same for the study that sweep.py ran
    python scripts/report.py runs/mnist --update RESULTS.md   put the tables between the file's markers
    python scripts/report.py mer runs/mer [--update FILE]     the MER paper's tables, LaTeX, CSV, a figure
    python scripts/report.py scenarios runs/scenarios         van de Ven & Tolias's three scenarios
    python scripts/report.py perm-small runs/perm-small       the same, smaller, beside the original code
    python scripts/report.py rehearsal runs/rehearsal         rehearsal methods, with time and memory
    python scripts/report.py pretrained runs/pretrained       methods on a frozen encoder's features
    python scripts/report.py prompts runs/prompts-small       prompts, adapters, LoRA beside their controls
    python scripts/report.py audit runs/audit                 practices of published code, in points; a figure
    python scripts/report.py memorization runs/maer           the memorization paper's; LaTeX and CSV too
    python scripts/report.py --check RESULTS.md               tables that a later change moved

Settings are found from the configurations: runs that differ in nothing but the seed; a paper's tables refuse
others in one cell. Each scenario of a data set is a benchmark of its own. Standard deviations are over seeds,
ddof = 1; settings are compared seed by seed, on the same tasks. In LaTeX and on the page the best number of a
column is bold: high accuracies and transfers, low forgetting; methods that see all data do not compete.
--metrics chooses the columns, --figures the formats. The markers are `<!-- table NAME -->` and
`<!-- end NAME -->`, NAME being the first folder's name. Runs that are older than a change that moved their
numbers (scripts/analysis/number_moves.yaml) are named, and --update refuses them.
"""

import sys

from engram.utils.door import guarded
from engram.utils.terminal import say_start


@guarded
def main(argv: list[str] | None = None) -> int:
    """Print the tables, and write the report or put them into a file; returns the exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    if not {"-h", "--help"} & set(arguments):
        say_start("reading runs")
    from engram.scripts.analysis import study_report  # tables and figures take seconds to import

    return study_report.run(arguments, str(__doc__))


if __name__ == "__main__":
    sys.exit(main())
