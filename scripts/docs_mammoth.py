"""The page "Coming from mammoth" of the documentation: the table that also answers wrong flags."""

from engram.scripts.analysis.table import MISSING
from engram.scripts.docs_template import PageTable, Section, render_page
from engram.utils.config import mammoth


def mammoth_page() -> str:
    """Flags, backbones and methods of mammoth and what they are here, as Markdown."""
    flags = [
        [
            f"{row.flag} {row.value}".rstrip(),
            row.ours or MISSING,
            f"accepted: {row.note}" if row.accepted else row.note,
        ]
        for row in mammoth.COUNTERPARTS
    ]
    backbones = [
        [name, " ".join(f"--{flag} {value}" for flag, value in ours.items())]
        for name, ours in mammoth.BACKBONES.items()
    ]
    methods = [list(names) for names in mammoth.METHODS.items()]
    columns = ["mammoth", "here"]
    sections = [
        Section("The same in both", ", ".join(f"`--{name}`" for name in mammoth.SAME)),
        Section("Other flags", tables=[PageTable([*columns, "why, and what differs"], flags, code=(0, 1))]),
        Section("Backbones", tables=[PageTable(columns, backbones, code=(0, 1))]),
        Section("Methods under another name", tables=[PageTable(columns, methods)]),
        Section("Methods that are not here", ", ".join(f"`{name}`" for name in sorted(mammoth.NOT_HERE))),
        Section(
            "Preset files",
            "`--config models/config/er.yaml` of a mammoth checkout is read: its default values, those of "
            "`--dataset` and those of `--buffer_size`.",
        ),
    ]
    summary = (
        "A flag of mammoth that is typed here is answered with the same lines; "
        "what is accepted changes nothing and is left out with a note."
    )
    return render_page(
        "Coming from mammoth", summary, "python main.py --model er --buffer_size 200", sections
    )
