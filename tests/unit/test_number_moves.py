"""Runs and tables that are older than a change that moved their numbers are told, and refused by --update."""

import pytest

from engram.scripts.analysis import number_moves, study_report
from engram.scripts.analysis.number_moves import FILE, Move, Reason, check_runs, is_older, short_command
from engram.scripts.analysis.number_moves_text import blocks
from engram.scripts.analysis.run_set import StoredRecord, commits
from engram.utils.config import registry
from engram.utils.config.config import resolve
from engram.utils.errors import UserError
from tests.conftest import ROOT
from tests.unit.stored_records import stored_record

OLD, CHANGE, NEW = "a" * 40, "b" * 40, "c" * 40
HISTORY = {OLD: [OLD], CHANGE: [OLD, CHANGE], NEW: [OLD, CHANGE, NEW]}
MOVE = Move(CHANGE[:10], "another rule", ("gss",), flags={"gss_rule": ["batch"]})
PAGE = """\
<!-- table mine -->
**seq-mnist**, buffer 500

| method | accuracy | seeds |
| --- | --- | --- |
| er | 80 | 5 |
| gss, buffer 500 | 81 | 5 |

In %, mean. commits: {commits}.
<!-- end mine -->
"""

UNLISTED = [
    "mine:", "  gss, buffer 500: older than bbbbbbbbbb (another rule)", "    NOT LISTED", "    run it again",
]  # fmt: skip


@pytest.fixture
def moves(monkeypatch):
    """The one change of these tests, and a repository of three commits."""
    by_digits = {commit[:10]: frozenset(c[:10] for c in before) for commit, before in HISTORY.items()}
    monkeypatch.setattr(number_moves, "ancestors", lambda commit: by_digits.get(commit[:10]))

    def use(*moves: Move) -> None:
        monkeypatch.setattr(number_moves, "read_moves", lambda: moves)

    use(MOVE)
    return use


def run(commit: str | None, model: str = "gss", **flags) -> StoredRecord:
    config = resolve([("", {"model": model, "dataset": "seq-digits", "backbone": "mlp", **flags})]).flat()
    return stored_record(config, f"runs/{model}", git_commit=commit)


def test_an_older_run_is_refused_with_the_change_its_folder_and_a_command(moves, tmp_path):
    page = tmp_path / "RESULTS.md"
    with pytest.raises(UserError) as caught:
        check_runs([run(OLD, lr=0.03), run(NEW), run(OLD, "er")], "mine", page)
    assert str(caught.value) == (
        f"--update {page}: 1 runs (gss on seq-digits; seeds 0; the first: runs/gss) are older than "
        "bbbbbbbbbb (another rule); remove their folders and run them again: python main.py --model=gss "
        "--dataset=seq-digits --lr=0.03. Without --update the tables are printed all the same"
    )


def test_without_update_it_is_told(moves):
    (line,) = check_runs([run(OLD)], "mine", None)
    assert "1 runs (gss on seq-digits" in line


def test_a_report_of_older_runs_leaves_the_page_as_it_is(moves, tmp_path, capsys):
    page = tmp_path / "RESULTS.md"
    page.write_text(PAGE.format(commits=NEW[:10]))
    (tmp_path / "mine" / "gss").mkdir(parents=True)
    path = tmp_path / "mine" / "gss" / "results.json"
    run(OLD).write(path)
    update = [str(tmp_path / "mine"), "--update", str(page)]
    for arguments in (update, ["rehearsal", *update]):
        with pytest.raises(UserError, match="are older than bbbbbbbbbb"):
            study_report.run(arguments, "")
    assert page.read_text() == PAGE.format(commits=NEW[:10])
    assert study_report.run(["rehearsal", *update[:1]], "") == 0
    out, err = capsys.readouterr()
    assert "| gss | " in out and "are older than bbbbbbbbbb" in err
    run(NEW).write(path)
    assert study_report.run(update, "") == 0 and "| gss | " in page.read_text()


@pytest.mark.parametrize(
    ("commit", "flags"), [(NEW, {}), (CHANGE, {}), (OLD, {"gss_rule": "sample"}), (OLD, {"model": "er"})]
)
def test_newer_runs_and_those_that_the_change_does_not_concern_pass(moves, tmp_path, commit, flags):
    assert check_runs([run(commit, **flags)], "mine", tmp_path) == []


def test_every_condition_counts(moves):
    concerned = run(OLD, "mir", batch_size=10)
    assert concerned.config["minibatch_size"] == 0
    for move, answer in (
        (Move(CHANGE, ""), True),
        (Move(CHANGE, "", datasets=("seq-mnist",)), False),
        (Move(CHANGE, "", unless={"batch_size": [10]}), False),
        (Move(CHANGE, "", unless={"batch_size": [32], "gss_rule": ["batch"]}), True),
        (Move(CHANGE, "", unless={"gss_rule": [None]}), False),
        (Move(CHANGE, "", flags={"scenario": ["class-il"], "batch_size": [10, 20]}), True),
        (Move(CHANGE, "", flags={"scenario": ["class-il"], "batch_size": [20]}), False),
    ):
        assert move.concerns(concerned) is answer, move


def test_a_resumed_run_is_as_old_as_its_oldest_commit(moves):
    assert is_older(f"{NEW}, {OLD}", CHANGE) is True and is_older(f"{NEW}, {CHANGE}", CHANGE) is False
    assert is_older(f"{NEW}, unknown", CHANGE) is None


@pytest.mark.parametrize("commit", [None, "d" * 40])
def test_commits_that_nobody_knows_are_told_and_not_refused(moves, tmp_path, commit):
    (line,) = check_runs([run(commit)], "mine", tmp_path)
    assert line.startswith("1 runs whose commit this repository does not know may be older")
    assert check_runs([run(commit, "er")], "mine", tmp_path) == []


def test_a_change_that_the_repository_does_not_know_refuses_nothing(moves, tmp_path):
    moves(Move("e" * 10, "beyond a shallow clone", ("gss",)))
    assert len(check_runs([run(OLD)], "mine", tmp_path)) == 1


def test_a_table_that_still_stands_for_a_reason_is_told_and_updated(moves, tmp_path):
    moves(Move(CHANGE, "another rule", ("gss",), stale={"mine": Reason("a day of runs", "make it")}))
    assert "are older than" in check_runs([run(OLD)], "mine", tmp_path)[0]
    with pytest.raises(UserError):
        check_runs([run(OLD)], "another", tmp_path)


def test_text_from_a_run_is_no_argument_of_git():
    assert number_moves.ancestors("--output=x") is None and number_moves.ancestors("HEAD") is None


def test_a_command_of_a_method_that_is_gone_has_every_flag(moves):
    gone = stored_record({"model": "gone", "dataset": "seq-digits", "lr": 0.1, "seed": 0})
    assert short_command(gone) == "python main.py --model=gone --dataset=seq-digits --lr=0.1 --seed=0"


@pytest.mark.parametrize(
    ("commits", "code", "lines"),
    [
        (f"{OLD[:10]}, {NEW[:10]}", 1, UNLISTED),
        (f"{OLD[:10]}+changes", 1, UNLISTED),
        (NEW[:10], 0, []),
        ("unknown", 0, ["no commit that this repository knows: mine"]),
    ],
)
def test_a_page_is_checked_by_the_commits_that_its_tables_name(moves, tmp_path, capsys, commits, code, lines):
    page = tmp_path / "RESULTS.md"
    page.write_text(PAGE.format(commits=commits))
    assert study_report.run(["--check", str(page)], "") == code
    *printed, last = capsys.readouterr().out.splitlines()
    assert len(printed) == len(lines) and all(map(str.startswith, printed, lines))
    assert last == f"{code} tables have older rows; {code} reasons are missing"


def test_methods_are_read_wherever_their_column_stands(moves):
    page = PAGE.format(commits=OLD[:10])
    page = page.replace("| method | accuracy |", "| practice | method |")
    page = page.replace("| gss, buffer 500 | 81 |", "| a \\| b | gss, head alone |")
    (age,) = number_moves.table_ages(page, {})
    assert age.rows == ["gss, head alone"]


def test_a_page_that_counts_further_commits_says_that_it_cannot_tell(moves, tmp_path, capsys):
    page = tmp_path / "RESULTS.md"
    page.write_text(PAGE.format(commits=f"{NEW[:10]} and 3 more"))
    assert study_report.run(["--check", str(page)], "") == 0
    said = "too many commits to tell whether an unnamed one is older: mine\n"
    assert capsys.readouterr().out.startswith(said)


def test_a_note_names_the_commits_of_a_table_of_our_own_runs():
    digits = [f"{i:010x}" for i in range(40)]
    runs = [run(commit + "0" * 30) for commit in digits]
    assert number_moves.commits_of(f"commits: {commits(runs[:20])}.") == digits[:20]
    assert commits(runs).endswith(f"{digits[31]} and 8 more")


def test_a_listed_table_passes_until_it_is_made_again(moves, tmp_path, capsys):
    page = tmp_path / "RESULTS.md"
    moves(Move(CHANGE, "another rule", ("gss",), stale={"mine": Reason("a day of runs", "make it")}))
    page.write_text(PAGE.format(commits=OLD[:10]))
    assert study_report.run(["--check", str(page)], "") == 0
    assert "(another rule)\n    a day of runs\n    make it\n" in capsys.readouterr().out
    moves(number_moves.read_moves()[0], Move(CHANGE, "b rule", ("gss",)))
    assert study_report.run(["--check", str(page)], "") == 1
    assert capsys.readouterr().out.endswith("1 tables have older rows; 1 reasons are missing\n")
    page.write_text(PAGE.format(commits=NEW[:10]))
    assert study_report.run(["--check", str(page)], "") == 1
    assert "mine: listed as older than" in capsys.readouterr().out


def test_rows_below_several_benchmarks(moves):
    """A title ends at its comma; a method below two is named once, below none it may be of any."""
    head = "| {} | accuracy |\n| --- | --- |\n"
    parts = [
        head.format("method") + "| gem | 0 |",
        "**seq-mnist, 5 tasks**", head.format("buffer size") + "| gss | 1 |",
        "**seq-digits**", head.format("method") + "| gss | 2 |\n| er balanced, λ 3 | 3 |",
        head.format("flag") + "| lr | 4 |", f"commits: {OLD[:10]}.",
    ]  # fmt: skip
    page = "<!-- table mine -->\n" + "\n\n".join(parts) + "\n<!-- end mine -->\n"
    er = "er balanced, λ 3"
    for models, datasets, rows in (
        ((), (), ["gem", "gss", er]), ((), ("seq-mnist",), ["gem", "gss"]), (("er",), (), [er]),
    ):  # fmt: skip
        moves(Move(CHANGE, "", models, datasets))
        (age,) = number_moves.table_ages(page, {})
        assert age.rows == rows


def test_a_reason_that_does_not_hold_is_told_of_its_own_entry(moves):
    """Of two entries of one commit, the second is of a method that the table has not."""
    reason, page = Reason("a day of runs", "make it"), PAGE.format(commits=OLD[:10])
    moves(
        Move(CHANGE, "a rule", ("gss",), stale={"mine": reason}),
        Move(CHANGE, "b rule", ("gem",), stale={"mine": reason, "of another page": reason}),
    )
    (line,) = number_moves.outdated(number_moves.table_ages(page, {}), page)
    assert line.startswith("mine: listed as older than") and "(b rule)" in line


def test_changes_of_a_page_are_grouped_by_table_and_wrapped(moves):
    """Entries of one commit, rows and reason are one; another reason is another."""
    why, command = "so many words " * 12, "SEEDS=0 " * 20
    stale = {"mine": Reason(why, command)}
    moves(
        Move(CHANGE, "a rule", ("gss",), stale=stale), Move(NEW, "a third"),
        Move(CHANGE, "b rule", ("gss",), stale=stale), Move(CHANGE, "b rule", ("er",)),
        Move(CHANGE, "a rule (with flags)", ("gss",), stale=stale),
    )  # fmt: skip
    second = PAGE.replace("table mine", "table other").replace("end mine", "end other")
    lines = blocks(number_moves.table_ages((PAGE + second).format(commits=OLD[:10]), {}))
    assert [line for line in lines if not line.startswith("    ")] == [
        "mine:",
        f"  gss, buffer 500: older than {CHANGE} (a rule; b rule)",
        f"  er, gss, buffer 500: older than {NEW} (a third)",
        f"  er: older than {CHANGE} (b rule)",
        "other:",
        f"  gss, buffer 500: older than {CHANGE} (a rule; b rule)",
        f"  er, gss, buffer 500: older than {NEW} (a third)",
        f"  er: older than {CHANGE} (b rule)",
    ]
    assert f"    {command}" in lines, "a command is not wrapped"
    assert max(len(line) for line in lines if command not in line) <= 110
    assert " ".join(line.strip() for line in lines[2:4]) == why.strip()


def test_a_shallow_clone_says_what_it_cannot_compare(moves, tmp_path, capsys):
    page = tmp_path / "RESULTS.md"
    page.write_text(PAGE.format(commits=OLD[:10]))
    moves(Move("e" * 10, "another rule", ("gss",), stale={"mine": Reason("a day of runs", "make it")}))
    assert study_report.run(["--check", str(page)], "") == 0
    assert "does not know the commit: eeeeeeeeee\n" in capsys.readouterr().out


def test_a_table_of_other_methods_benchmarks_or_flags_is_not_older(moves):
    page = PAGE.format(commits=OLD[:10])
    moves(
        Move(CHANGE, "", ("gem",)), Move(CHANGE, "", ("gss",), ("seq-digits",)),
        Move(CHANGE, "", ("gss",), unaffected={"mine": "other flags"}),
    )  # fmt: skip
    assert number_moves.table_ages(page, {}) == []
    moves(Move(CHANGE, "", ("gss",), ("seq-digits",)))
    assert number_moves.table_ages(page, {"seq-mnist": "seq-digits"}), "a title may stand for a benchmark"


def test_the_changes_name_what_there_is():
    page = (ROOT / "RESULTS.md").read_text(encoding="utf-8")
    for move in number_moves.read_moves():
        assert number_moves.COMMIT.fullmatch(move.commit) and move.what, move
        for name in {*move.stale, *move.unaffected}:
            assert f"<!-- table {name} -->" in page, f"{move.title}: no table {name}"
        for model in move.models or ("er",):
            dataset = move.datasets[0] if move.datasets else "seq-digits"
            registry.canonical("models", model), registry.canonical("datasets", dataset)
            known = resolve([("", {"model": model, "dataset": dataset})]).flat()
            assert {*move.flags, *move.unless} <= known.keys(), f"{move.title}: {model} has no such flag"


def test_no_table_of_the_results_is_older_than_is_said(capsys):
    """Run it again, or write into number_moves.yaml why it still stands; `report.py --check` says what."""
    if number_moves.unknown_changes():
        pytest.skip(f"without the commits in {FILE.name}")
    assert study_report.run(["--check", str(ROOT / "RESULTS.md")], "") == 0, capsys.readouterr().out
