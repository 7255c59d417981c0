"""Joint linear probe: the last layer trained on all tasks at once, a frozen encoder's upper bound."""

from engram.models.linear_probe import LinearProbe


class LinearProbeJoint(LinearProbe):
    """`linear_probe` on a stream of one task that holds all data."""

    stream = "joint"
    rehearses = True
    off_switch = "it changes the stream, too"
