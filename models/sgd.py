"""Fine-tuning with plain SGD: no defence against forgetting, the lower bound."""

from engram.models.method import Method


class SGD(Method):
    """The defaults of the contract are plain SGD."""

    data_parallel = True
    eager_step = ""
    off_switch = "it is plain SGD"
