"""Augmentation against a loop over images, its distribution, and the closed form of normalisation.

The statistical tests draw from fixed seeds; each would fail for fewer than one seed in a million.
"""

import threading
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import binom, chi2

from engram.backbones import alexnet
from engram.backbones.alexnet import IMAGENET
from engram.datasets.augment import Augment, Standardised, as_asked, first_runs, random_windows
from engram.utils.config.config import resolve
from engram.utils.config.stream_options import StreamOptions
from engram.utils.errors import UserError

FALSE_ALARM = 1e-6


def images(n: int, channels: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, channels, height, width), generator=generator, dtype=torch.uint8)


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(
    ("shape", "padding"), [((9, 3, 8, 8), 2), ((12, 1, 6, 10), 1), ((4, 3, 32, 32), 4), ((6, 2, 5, 4), 0)]
)
def test_a_window_of_the_padded_image_mirrored_or_not(shape, padding, flip):
    """Crop, then flip, image by image, given the same draws."""
    raw, generator = images(*shape), draws()
    down, right = torch.randint(2 * padding + 1, (2, shape[0]), generator=generator).tolist()
    mirrored = (torch.rand(shape[0], generator=generator) < 0.5).tolist() if flip else [False] * shape[0]
    assert not flip or len(set(mirrored)) == 2, "both cases occur"
    found = random_windows(raw, padding, flip, draws())
    for i in range(shape[0]):
        padded = np.pad(raw[i].numpy(), ((0, 0), (padding, padding), (padding, padding)))
        window = padded[:, down[i] : down[i] + shape[2], right[i] : right[i] + shape[3]]
        assert np.array_equal(found[i].numpy(), window[:, :, ::-1] if mirrored[i] else window)


def test_crop_offsets_are_uniform_and_independent():
    n, padding = 50_000, 2
    position = torch.arange(64, dtype=torch.uint8).view(1, 1, 8, 8).expand(n, 1, 8, 8)
    windows = random_windows(position, padding, False, draws())
    centre = windows[:, 0, 4, 4].long()  # never outside the image
    offsets = (centre // 8 - 2) * 5 + (centre % 8 - 2)
    counts = torch.bincount(offsets, minlength=25).double()
    assert len(counts) == 25
    statistic = ((counts - n / 25) ** 2 / (n / 25)).sum().item()
    assert statistic < chi2.isf(FALSE_ALARM, df=24)


def test_a_flip_mirrors_the_columns_of_half_the_images():
    n = 10_000
    raw = images(n, 2, 3, 5)
    flipped = random_windows(raw, 0, True, draws())
    mirrored = (flipped == raw.flip(-1)).flatten(1).all(1)
    kept = (flipped == raw).flatten(1).all(1)
    assert bool((mirrored | kept).all())
    assert binom.isf(1 - FALSE_ALARM / 2, n, 0.5) < mirrored.sum().item() < binom.isf(FALSE_ALARM / 2, n, 0.5)


@pytest.mark.parametrize("channels", [1, 3])
def test_normalise_is_pixel_minus_mean_over_deviation(channels):
    raw = images(4, channels, 5, 5)
    mean, std = (0.49, 0.48, 0.44)[:channels], (0.2, 0.3, 0.4)[:channels]
    x = Augment(mean=mean, std=std).normalise(raw)
    expected = (raw.double().numpy() / 255 - np.reshape(mean, (-1, 1, 1))) / np.reshape(std, (-1, 1, 1))
    assert x.dtype == torch.float32 and np.abs(x.numpy() - expected).max() < 2e-6


def test_pixels_are_scaled_to_the_unit_interval_by_default():
    raw = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    x = Augment()(raw, draws())
    assert x.min() == 0 and abs(x.max().item() - 1) < 1e-6
    assert torch.allclose(x, raw.float() / 255, rtol=1e-6, atol=0)


def test_the_call_crops_then_flips_then_normalises_and_changes_no_input():
    raw = images(16, 3, 8, 8)
    copy, augment = raw.clone(), Augment(mean=(0.5,) * 3, std=(0.25,) * 3, crop_padding=2, flip=True)
    x, generator = augment(raw, draws(3)), draws(3)
    expected = augment.normalise(random_windows(raw, 2, True, generator))
    assert torch.equal(x, expected) and torch.equal(raw, copy)
    assert torch.equal(x, augment(raw, draws(3))) and not torch.equal(x, augment(raw, draws(4)))


def test_nothing_random_is_drawn_when_nothing_is_asked_for():
    generator = draws()
    before = generator.get_state()
    Augment()(images(2, 1, 4, 4), generator)
    assert torch.equal(before, generator.get_state())


# --- normalisation of one's own ---------------------------------------------------------------------


def asked(augment: Augment, n_channels: int, mean=(), std=(), **architecture) -> Augment:
    config = SimpleNamespace(
        stream=StreamOptions(pixel_mean=mean, pixel_std=std),
        run=SimpleNamespace(backbone="alexnet"),
        architecture=alexnet.Options(**architecture),
    )
    return as_asked(augment, config, (n_channels, 8, 8))


def test_who_decides_on_mean_and_deviation():
    own = Augment(mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7), crop_padding=4, flip=True)
    assert asked(own, 3) is own and asked(own, 3, pretrained=False) is own
    imagenet = asked(own, 3, pretrained=True)
    assert (imagenet.mean, imagenet.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert imagenet.crop_padding == 4 and imagenet.flip
    assert asked(own, 3, std=(0.9,)) == replace(own, std=(0.9,) * 3)
    assert asked(own, 3, mean=(0.0,), pretrained=True) == replace(imagenet, mean=(0.0,) * 3)
    assert asked(Augment(), 1, mean=(0.1307,), std=(0.3081,)) == Augment((0.1307,), (0.3081,))


def test_imagenets_numbers_are_torchvisions():
    from torchvision.models import AlexNet_Weights

    transforms = AlexNet_Weights.IMAGENET1K_V1.transforms()
    assert (tuple(transforms.mean), tuple(transforms.std)) == IMAGENET


def test_a_mean_of_another_number_of_channels_is_refused():
    with pytest.raises(
        UserError, match=r"--pixel_mean 0.1,0.2: give one number, or one a channel \(3 in all\)"
    ):
        asked(Augment(), 3, mean=(0.1, 0.2))


def test_what_is_kept_between_batches_is_of_one_thread():
    """Threads may be on CUDA streams of their own, which do not wait for each other."""
    raw = images(3, 1, 7, 7)
    first_runs.cache_clear()
    random_windows(raw, 1, True, draws()), random_windows(raw, 1, True, draws(1))
    assert (first_runs.cache_info().misses, first_runs.cache_info().hits) == (1, 1)
    other = threading.Thread(target=random_windows, args=(raw, 1, True, draws()))
    other.start(), other.join()
    assert first_runs.cache_info().misses == 2


def test_floats_are_refused_and_left_as_they_are():
    """They would be divided by 255, in place, and so again at every pass."""
    features = torch.rand(4, 5)
    before = features.clone()
    with pytest.raises(UserError, match=r"torch\.float32; images are normalised from uint8"):
        Augment().normalise(features)
    assert torch.equal(features, before)


@pytest.mark.parametrize(
    ("asked", "wanted"), [(None, (1, True)), ("none", (0, False)), ("crop_flip", (3, True))]
)
def test_augmentation_is_switched_off_or_on(asked, wanted):
    config = resolve([("test", {"model": "sgd", "augment": asked})])
    augment = as_asked(Augment(crop_padding=1, flip=True), config, (3, 32, 24))
    assert (augment.crop_padding, augment.flip) == wanted
    if asked == "crop_flip":
        with pytest.raises(UserError, match="samples are vectors of 20 numbers"):
            as_asked(Standardised(), config, (20,))
