"""Joint training on all tasks at once: the upper bound; only the last row of R exists."""

from engram.models.method import Method


class Joint(Method):
    """The contract's defaults on a stream of one task that holds all data."""

    stream = "joint"
    rehearses = True
    off_switch = "it changes the stream, not the step"
    eager_step = ""
