"""Subsets: the draws of the paper's code, and what cannot be drawn."""

import numpy as np
import pytest
from sklearn.model_selection import train_test_split

from engram.memorization.subsets import half, memberships, part
from engram.utils.scores import in_class_range, parse_range

LABELS = np.random.default_rng(0).integers(0, 5, 203)


def test_the_papers_order_of_choices():
    """Class range, then the fraction in drawn order, then halves of it: as in the published scripts."""
    kept = np.argwhere(np.logical_and(LABELS >= 1, LABELS < 4)).flatten()
    labels = LABELS[kept]
    _, selected = train_test_split(list(range(len(labels))), test_size=0.3, random_state=42, stratify=labels)
    labels = labels[selected]
    train, _ = train_test_split(np.arange(len(labels)), test_size=0.5, random_state=7, stratify=labels)
    ours = in_class_range(LABELS, 1, 4)
    drawn = part(LABELS, (1, 4), 0.3)
    assert ours.tolist() == kept.tolist() and drawn.tolist() == kept[selected].tolist()
    assert half(LABELS[drawn], 7).tolist() == train.tolist()


@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.7])
def test_every_subset_has_one_size_and_the_classes_in_proportion(ratio):
    member = memberships(LABELS, 20, ratio)
    assert len(set(member.sum(1).tolist())) == 1
    assert member.mean() == pytest.approx(ratio, abs=0.01)
    for c in range(5):
        share = member[:, c == LABELS].sum(1)
        assert np.ptp(share) <= 1
    assert len({tuple(row) for row in member.tolist()}) == 20


def test_the_whole_set_keeps_its_order():
    assert part(LABELS, (0, 5), 1).tolist() == list(range(203))


def test_what_cannot_be_drawn_is_said():
    assert parse_range(None, 10) == (0, 10) and parse_range("2,5", 10) == (2, 5)
    for text in ("3", "a,b", "5,5", "0,11", "-1,3"):
        with pytest.raises(ValueError, match=f"--class_range {text}"):
            parse_range(text, 10)
    with pytest.raises(ValueError, match=r"--subset_ratio 0.5: 3 examples cannot be split"):
        half(np.array([0, 0, 1]), 0)
