"""The name of a run tells what it is: two settings never share one, and defaults are not repeated."""

from engram.utils.config.cli import parse
from engram.utils.config.consistency import MAX_NAME
from engram.utils.config.run_title import run_title


def title(*argv: str) -> str:
    return run_title(parse(["--model", "er", *argv]).config.flat())


def test_what_differs_from_the_defaults():
    assert title() == "er seq-digits, seed 0"
    assert title("--device", "cpu", "--experiment_name", "x", "--output_dir", "y") == "er seq-digits, seed 0"
    assert title("--buffer_size", "51", "--seed", "3") == "er seq-digits, buffer_size 51, seed 3"
    assert title("--validation", "10") == "er seq-digits, validation 10, seed 0"
    assert title("--mem_thresholds", "0.2,0.3") == "er seq-digits, mem_thresholds 0.2,0.3, seed 0"


def test_a_title_fits_into_mlflows_table_and_keeps_the_seed():
    text = title("--memorization_scores", "x" * 240, "--seed", "12")
    assert len(text) == MAX_NAME and text.endswith("…, seed 12")


def test_of_another_version_no_difference_is_known():
    assert run_title({"model": "gone", "dataset": "seq-digits", "seed": 1}) == "gone seq-digits, seed 1"
