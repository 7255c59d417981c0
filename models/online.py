"""Online learning: plain SGD on one example after the other, the lower bound of the MER paper.

Source: Riemer et al. 2019 (arXiv 1810.11910), baseline `online`; Lopez-Paz & Ranzato 2017 (GEM), `single`.
It is `sgd` under the papers' name: --batch_size 1 makes it online (GEM's runs: 10), --n_epochs 1.
"""

from models.sgd import SGD


class Online(SGD):
    """The contract's defaults, unchanged."""
