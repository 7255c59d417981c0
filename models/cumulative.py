"""Cumulative training: every task presents all data so far; an upper bound after each task.

Source: the usual baseline, e.g. Lomonaco & Maltoni 2017 (CORe50, arXiv 1705.03550). The network goes on
from where the last task left it; an epoch is one pass over the data of all tasks so far.
"""

from engram.models.method import Method


class Cumulative(Method):
    """The contract's defaults on a stream whose tasks grow."""

    stream = "cumulative"
    rehearses = True
    off_switch = "it changes the stream, not the step"
    eager_step = ""
