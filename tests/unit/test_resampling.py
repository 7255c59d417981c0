"""Images brought to another side and random boxes of them: against torchvision, and their distribution."""

from math import log

import numpy as np
import pytest
import torch
from scipy import stats
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms import functional as vision

from engram.datasets.augment import Augment
from engram.datasets.resampling import Boxes, draw_boxes, fitted, resized_boxes
from tests.conftest import random_draws

CPU = torch.device("cpu")
BICUBIC = InterpolationMode.BICUBIC


def draws(purpose: str) -> torch.Generator:
    return torch.Generator().manual_seed(random_draws(purpose).getrandbits(60))


def images(*shape: int) -> torch.Tensor:
    return torch.randint(256, shape, generator=draws("images"), dtype=torch.uint8)


def boxes_of(*rows: tuple[int, int, int, int], mirrored: bool = False) -> Boxes:
    corners = torch.tensor(rows, dtype=torch.float32).unbind(1)
    return Boxes(*corners, torch.full((len(rows),), mirrored))


@pytest.mark.parametrize("side", [8, 24, 57])
@pytest.mark.parametrize("mirrored", [False, True])
def test_boxes_are_resized_as_torchvision_does(side, mirrored):
    raw = images(5, 3, 40, 33)
    rows = [(0, 0, 40, 33), (3, 7, 20, 11), (39, 32, 1, 1), (10, 0, 30, 33), (0, 5, 7, 25)]
    made = resized_boxes(raw, boxes_of(*rows, mirrored=mirrored), side)
    for image, row, result in zip(raw, rows, made, strict=True):
        expected = vision.resized_crop(image, *row, [side, side], BICUBIC, antialias=True)
        expected = vision.hflip(expected) if mirrored else expected
        difference = (result.int() - expected.int()).abs()
        assert difference.max() <= 1, "rounding of sums in another order moves a pixel by 1 at most"
        assert (difference > 0).float().mean() < 0.01


@pytest.mark.parametrize(
    ("height", "width", "resize"), [(32, 32, 0), (32, 32, 64), (90, 60, 64), (50, 75, 0)]
)
def test_evaluation_resizes_and_cuts_the_centre_as_torchvision_does(height, width, resize):
    raw, side = images(2, 3, height, width), 48
    resized = vision.resize(raw, resize or side, BICUBIC, antialias=True)
    assert torch.equal(fitted(raw, side, resize), vision.center_crop(resized, side))


def test_boxes_have_torchvisions_distribution():
    """Kolmogorov-Smirnov over area, ratio and corner of 4,000 boxes: a false alarm of 1e-5 each."""
    n, scale, height, width = 4000, (0.08, 1.0), 60, 80
    drawn = draw_boxes(n, height, width, scale, draws("boxes"), CPU)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        image = torch.empty(3, height, width)
        theirs = np.array([RandomResizedCrop.get_params(image, scale, (3 / 4, 4 / 3)) for _ in range(n)])
    top, left, tall, wide = (field.double().numpy() for field in drawn[:4])
    ours = np.stack([top, left, tall, wide], 1)
    measures = {
        "area": lambda b: b[:, 2] * b[:, 3],
        "ratio": lambda b: b[:, 3] / b[:, 2],
        "top": lambda b: b[:, 0] / (height - b[:, 2] + 1),
        "left": lambda b: b[:, 1] / (width - b[:, 3] + 1),
    }
    for name, measure in measures.items():
        assert stats.ks_2samp(measure(ours), measure(theirs)).pvalue > 1e-5, name
    assert (
        (top + tall <= height).all() and (left + wide <= width).all() and (np.minimum(tall, wide) >= 1).all()
    )
    assert stats.binomtest(int(drawn.mirrored.sum()), n).pvalue > 1e-5


def test_areas_and_ratios_are_uniform_where_every_box_fits():
    """Shares of 10 to 40 % fit at every ratio into a large square: closed forms, false alarms of 1e-5."""
    side = 2000
    drawn = draw_boxes(4000, side, side, (0.1, 0.4), draws("uniform"), CPU)
    shares = (drawn.height * drawn.width / side**2).double().numpy()
    ratios = (drawn.width / drawn.height).double().log().numpy()
    assert stats.kstest(shares, stats.uniform(0.1, 0.3).cdf).pvalue > 1e-5
    assert stats.kstest(ratios, stats.uniform(log(3 / 4), log(4 / 3) - log(3 / 4)).cdf).pvalue > 1e-5


@pytest.mark.parametrize(
    ("height", "width", "expected"), [(10, 90, (10, 13)), (90, 12, (16, 12)), (20, 20, (20, 20))]
)
def test_where_no_box_fits_the_largest_in_the_centre_is_taken(height, width, expected):
    """The whole area of a long image has no ratio of 3/4 to 4/3, as in torchvision."""
    drawn = draw_boxes(3, height, width, (1.0, 1.0), draws("whole"), CPU)
    tall, wide = expected
    if height != width:
        assert (drawn.height == tall).all() and (drawn.width == wide).all()
        assert (drawn.top == (height - tall) // 2).all() and (drawn.left == (width - wide) // 2).all()
    else:
        assert (drawn.height * drawn.width >= 0.9 * height * width).all()


def test_an_augmented_batch_has_the_asked_size_and_one_box_a_sample():
    augment = Augment(flip=True, side=12, crop_scale=(0.2, 0.5))
    raw = images(1, 3, 20, 20).expand(6, -1, -1, -1)
    first = augment(raw, draws("run"))
    assert first.shape == (6, 3, 12, 12) and augment.shape_of((3, 20, 20)) == (3, 12, 12)
    assert len({tuple(x.flatten().tolist()) for x in first}) == 6
    assert torch.equal(first, augment(raw, draws("run"))), "the generator alone decides"
    torch.testing.assert_close(augment.normalise(raw), fitted(raw, 12).float() / 255)


def test_the_window_of_crop_flip_is_cut_after_the_resize():
    augment = Augment(crop_padding=4, side=32)
    raw = images(3, 1, 8, 8)
    larger = fitted(raw, 32)
    expected = Augment(crop_padding=4)(larger, draws("window"))
    assert torch.equal(augment(raw, draws("window")), expected)
