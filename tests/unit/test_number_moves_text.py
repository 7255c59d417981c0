"""What `report.py --check` prints of a table: lines that end in time, counted rows, words said once."""

from engram.scripts.analysis.number_moves import Move, TableAge
from engram.scripts.analysis.number_moves_text import WIDTH, blocks


def age(what: str = "a rule", rows: str = "er") -> TableAge:
    return TableAge("mine", Move("b" * 10, what), rows.split(", "))


def test_a_change_that_nobody_listed_says_what_to_do():
    assert blocks([age()]) == [
        "mine:", "  er: older than bbbbbbbbbb (a rule)",
        "    NOT LISTED", "    run it again, or say in number_moves.yaml why it stands",
    ]  # fmt: skip


def test_entries_of_the_same_words_are_said_once():
    assert blocks([age(), age()]) == blocks([age()])


def test_long_words_of_a_change_go_on_in_deeper_lines():
    what = "so many words " * 20
    _, first, *further = blocks([age(what)])[:-2]
    assert first.startswith("  er: older") and all(line.startswith(" " * 6) for line in further)
    assert max(map(len, [first, *further])) <= WIDTH == 110
    assert " ".join(map(str.strip, [first, *further])).endswith(f"({what})")


def test_more_than_four_rows_are_counted():
    assert blocks([age(rows="a, b, c, d")])[1].startswith("  a, b, c, d: older than")
    assert blocks([age(rows="a, b, c, d, e, f")])[1].startswith("  a, b, c, d and 2 more: older than")
