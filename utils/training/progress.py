"""Losses gathered on the device, read a few times a second; a bar or plain lines."""

import math
import sys
import time

import torch
from torch import Tensor
from tqdm import tqdm

from engram.utils.errors import DIVERGED

# How often losses are read from the device and shown: the only synchronisation while training.
INTERVAL_SECONDS = {"bar": 0.5, "lines": 10.0}
CAPACITY = 1000


class DivergedError(RuntimeError):
    """The loss is no longer a finite number."""


class LossLog:
    """Losses of the steps since the last reading, kept on the device; on a CPU, which nobody waits for, read
    at once.
    """

    def __init__(self, device: torch.device):
        self._on_device = None if device.type == "cpu" else torch.zeros(CAPACITY, device=device)
        self._on_host: list[float] = []
        self._n = 0
        self.first_step = 0

    @property
    def full(self) -> bool:
        """Whether the next reading can no longer wait."""
        return self._n == CAPACITY

    def add(self, step: int, loss: Tensor) -> None:
        """Keep the loss of training step `step`; nothing is read."""
        if not self._n:
            self.first_step = step
        if self._on_device is None:
            self._on_host.append(loss.item())
        else:
            self._on_device[self._n].copy_(loss)
        self._n += 1

    def read(self) -> list[float]:
        """The losses gathered, oldest first; waits for the device."""
        values = self._on_host if self._on_device is None else self._on_device[: self._n].tolist()
        self._on_host, self._n = [], 0
        return values

    def read_finite(self) -> list[float]:
        """As `read`; raises `DivergedError` naming the first step whose loss is not finite."""
        first, values = self.first_step, self.read()
        for i, value in enumerate(values):
            if not math.isfinite(value):
                raise DivergedError(f"{DIVERGED} {value} at training step {first + i}")
        return values


class Progress:
    """Task, epoch, loss, images/s and time left: a tqdm bar on a terminal, plain lines elsewhere."""

    def __init__(self, n_steps: int, done: int, quiet: bool = False):
        self.on_terminal = sys.stderr.isatty()
        self.bar = tqdm(
            total=n_steps,
            initial=done,
            unit="step",
            dynamic_ncols=True,
            disable=not self.on_terminal or quiet,
        )
        self.quiet, self.n_steps, self.done = quiet, n_steps, done
        self._read = self._told = time.monotonic()
        self._told_at, self._images = done, 0

    @property
    def due(self) -> bool:
        """Whether it is time to read the losses and show them."""
        interval = INTERVAL_SECONDS["bar" if self.on_terminal else "lines"]
        return time.monotonic() - self._read > interval

    def show(self, label: str, losses: list[float], n_images: int) -> None:
        """`label` says task, epoch and its step; `n_images` were seen since the last call."""
        now = self._read = time.monotonic()
        self.done += len(losses)
        self._images += n_images
        loss = f"{sum(losses) / len(losses):.4f}" if losses else "-"
        elapsed = now - self._told
        speed = f"{self._images / max(elapsed, 1e-9):,.0f} images/s"
        if self.on_terminal:
            self.bar.set_description_str(label, refresh=False)
            self.bar.set_postfix_str(f"loss {loss}, {speed}", refresh=False)
            self.bar.update(len(losses))
        elif elapsed > INTERVAL_SECONDS["lines"]:
            left = elapsed / max(self.done - self._told_at, 1) * (self.n_steps - self.done)
            self.say(
                f"{label}, {self.done}/{self.n_steps} of the run, loss {loss}, {speed}, {left:.0f} s left"
            )
        if elapsed > INTERVAL_SECONDS["lines"]:  # speed is that of the last few seconds, not of the run
            self._told, self._told_at, self._images = now, self.done, 0

    def say(self, text: str) -> None:
        """A line of its own that does not break the bar."""
        if not self.quiet:
            tqdm.write(text, file=sys.stderr)

    def close(self) -> None:
        """Leave the bar as it is."""
        self.bar.close()
