"""Refusing samples that a method cannot work on, when it is built."""

from math import prod

from engram.datasets.benchmark import Benchmark
from engram.utils.errors import UserError


def require_images(benchmark: Benchmark, what: str, of_bytes: bool = True) -> None:
    """Raise `UserError` unless the samples are images (C, H, W); of_bytes: and not standardised floats."""
    if len(benchmark.input_shape) != 3:
        raise UserError(
            f"{what} needs images; {benchmark.name} holds vectors of {benchmark.input_shape[0]} numbers"
        )
    if of_bytes and benchmark.sample_bytes != prod(benchmark.stored_shape):
        raise UserError(f"{what} needs images with pixels 0 to 255; {benchmark.name} holds other numbers")
