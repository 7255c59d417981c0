"""Unread images: what stands for a uint8 tensor whose images lie in files, and the threads that read ahead.

`DiskImages` and `Joined` have the part of a tensor's interface that is used of `Samples.x_raw`. Whatever is
indexed, selected or split is read there and then and is an ordinary tensor on the device, so a method that
keeps samples keeps its own copies.
"""

import mmap
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

AHEAD = 4  # blocks that are read before they are asked for
READERS = 2  # threads: while one waits for the disk the other copies

LARGE = 32 << 10  # bytes of an image; smaller ones come with what the system reads ahead by itself

Change = Callable[[Tensor], Tensor]


def identity(raw: Tensor) -> Tensor:
    """Images as they are."""
    return raw


class LazyImages:
    """(N, C, H, W) uint8 images, for the reader like a tensor on `device`."""

    dtype = torch.uint8

    def __init__(self, shape: Sequence[int], device: torch.device | str):
        self.shape, self.device = torch.Size(shape), torch.device(device)

    def __len__(self) -> int:
        return self.shape[0]

    def ask(self, rows: np.ndarray, submit: Callable[..., Future]) -> Callable[[], Tensor]:
        """Have `rows` (n,) read by a call of `submit(function, *arguments)`; the answer gives the images.

        Only files are read elsewhere: memory is taken, and the device spoken to, by the caller's thread.
        """
        raise NotImplementedError

    def index_select(self, dim: int, rows: Tensor) -> Tensor:
        """The images at `rows` (n,)."""
        assert dim == 0, "images are taken whole"
        return self._read(rows.cpu().numpy())

    def __getitem__(self, key: slice | Tensor) -> Tensor:
        """The images of a slice, at places (n,) or where a mask (N,) holds."""
        if isinstance(key, slice):
            return self._read(np.arange(*key.indices(len(self))))
        key = key.cpu().numpy()
        return self._read(np.flatnonzero(key) if key.dtype == bool else key)

    def _read(self, rows: np.ndarray) -> Tensor:
        if len(rows) and not 0 <= rows.min() <= rows.max() < len(self):
            raise IndexError(f"places {rows.min()} to {rows.max()} of {len(self)} images")
        return self.ask(rows, at_once)()

    def split(self, size: int) -> Iterator[Tensor]:
        """`size` images at a time, each time read when its turn comes."""
        return (self[start : start + size] for start in range(0, len(self), size))

    def detach(self) -> "LazyImages":
        """No gradients are kept of bytes."""
        return self

    def new_zeros(self, *shape: int) -> Tensor:
        """An ordinary tensor."""
        return torch.zeros(*shape, dtype=self.dtype, device=self.device)

    def __getattr__(self, name: str) -> Any:
        """Only reached for what is not above."""
        raise AttributeError(
            f"images on disk have no '{name}': read some with [rows] or split(size), or all with [:]"
        )

    @classmethod
    def __torch_function__(cls, function: Callable, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """`torch.cat` of such images, with tensors among them or not, stays unread; nothing else is known."""
        return joined(args[0]) if function is torch.cat and not kwargs else NotImplemented


class DiskImages(LazyImages):
    """Images in files, or some of them, with what a task makes of them.

    files: arrays (n, C, H, W) over `mmap`s, all as long as the first but the last. rows: which images, and
    in which order (all). note: a line for the user on where they are and why.
    """

    def __init__(
        self,
        files: list[np.ndarray],
        device: torch.device | str = "cpu",
        rows: np.ndarray | None = None,
        change: Change = identity,
        note: str = "",
    ):
        self.files, self.change, self.note = files, change, note
        self.rows = np.arange(sum(map(len, files))) if rows is None else rows
        super().__init__((len(self.rows), *files[0].shape[1:]), device)

    def to(self, device: torch.device | str) -> "DiskImages":
        """The same images, for the reader on another device."""
        return DiskImages(self.files, device, self.rows, self.change, self.note)

    def part(self, rows: Tensor, change: Change = identity) -> "DiskImages":
        """The images at `rows` (n,), still unread, to be changed when they are read."""
        return DiskImages(self.files, self.device, self.rows[rows.numpy()], change, self.note)

    def ask(self, rows: np.ndarray, submit: Callable[..., Future]) -> Callable[[], Tensor]:
        """Have them copied into memory that a GPU can fetch from while it computes."""
        rows, pinned = self.rows[rows], self.device.type == "cuda"
        images = torch.empty((len(rows), *self.shape[1:]), dtype=self.dtype, pin_memory=pinned)
        copied = submit(self._copy, images.numpy(), rows)

        def answer() -> Tensor:
            copied.result()
            return self.change(images.to(self.device, non_blocking=True))

        return answer

    def _copy(self, images: np.ndarray, rows: np.ndarray) -> None:
        """Outside Python's lock, almost all of it: the trainer goes on meanwhile."""
        file, row = np.divmod(rows, len(self.files[0]))
        n_bytes = prod(self.shape[1:])
        if n_bytes >= LARGE:  # have the disk fetch all of them at once
            for i, first in zip(file.tolist(), (row * n_bytes).tolist(), strict=True):
                page = first - first % mmap.PAGESIZE
                self.files[i].base.madvise(mmap.MADV_WILLNEED, page, first + n_bytes - page)
        for i in np.unique(file):
            own = np.flatnonzero(file == i)
            if len(own) == len(rows):
                self.files[i].take(row, axis=0, out=images, mode="clip")
            else:
                images[own] = self.files[i].take(row[own], axis=0)


class Joined(LazyImages):
    """Images of several places, unread or tensors, one after the other."""

    def __init__(self, parts: Sequence[LazyImages | Tensor]):
        self.parts, self.ends = parts, np.cumsum([len(part) for part in parts])
        super().__init__((int(self.ends[-1]), *parts[0].shape[1:]), parts[0].device)

    def ask(self, rows: np.ndarray, submit: Callable[..., Future]) -> Callable[[], Tensor]:
        """Have each part's share read."""
        owner, asked = np.searchsorted(self.ends, rows, side="right"), []
        for i in np.unique(owner):
            part, places = self.parts[i], np.flatnonzero(owner == i)
            own = rows[places] - (self.ends[i] - len(part))
            if isinstance(part, LazyImages):
                answer = part.ask(own, submit)
            else:
                answer = partial(part.index_select, 0, torch.from_numpy(own).to(part.device))
            asked.append((torch.from_numpy(places).to(self.device), answer))

        def together() -> Tensor:
            images = torch.empty((len(rows), *self.shape[1:]), dtype=self.dtype, device=self.device)
            for places, answer in asked:
                images.index_copy_(0, places, answer())
            return images

        return together


def joined(parts: Sequence[LazyImages | Tensor]) -> LazyImages:
    """The parts one after the other; one `DiskImages` where they come from the same files, unchanged."""
    first = parts[0]
    if all(
        isinstance(part, DiskImages) and part.files is first.files and part.change is first.change
        for part in parts
    ):
        rows = np.concatenate([part.rows for part in parts])
        return DiskImages(first.files, first.device, rows, first.change, first.note)
    return Joined(parts)


def join(parts: Iterable[Any], n: int) -> Any:
    """Samples one part after the other, `n` in all; of lazy parts only one is held at a time."""
    whole, start = None, 0
    for part in parts:
        if len(part.y) == n:
            return part
        if isinstance(part.x_raw, LazyImages):
            return type(part)(*map(torch.cat, zip(part, *parts, strict=True)))
        if whole is None:
            whole = type(part)(*(field.new_empty(n, *field.shape[1:]) for field in part))
        for field, own in zip(whole, part, strict=True):
            field[start : start + len(own)] = own
        start += len(part.y)
    return whole


def part_of(images: LazyImages | Tensor, rows: Tensor) -> LazyImages | Tensor:
    """The images at `rows`, those on disk unread."""
    return images.part(rows) if isinstance(images, DiskImages) else images[rows]


def at_once(function: Callable, *arguments: Any) -> Future:
    """What `submit` does where there is no thread to wait for."""
    future: Future = Future()
    future.set_result(function(*arguments))
    return future


def in_turn(samples: Sequence, order: Tensor, size: int) -> Iterator[tuple[Tensor, ...]]:
    """The fields of samples, images first, at each `size` places of `order` (N,) in turn.

    Images on disk are read ahead, by threads that end with the iterator.
    """
    images, *others = samples
    blocks = order.to(others[0].device).split(size)
    if isinstance(images, Tensor):
        # index_select copies whole images; indexing with [rows] is 30 times slower on a CPU
        return (tuple(field.index_select(0, rows) for field in samples) for rows in blocks)
    read = read_ahead(images, order.split(size))
    return (
        (raw, *(field.index_select(0, rows) for field in others))
        for raw, rows in zip(read, blocks, strict=True)
    )


def read_ahead(images: LazyImages, blocks: Iterable[Tensor]) -> Iterator[Tensor]:
    """The images at each block of places in turn; an error of a reader is raised here, at its block.

    A reader does one block and is idle: nothing is read that is not waited for, however this ends.
    """
    readers = ThreadPoolExecutor(READERS, thread_name_prefix="images")
    asked: deque[Callable[[], Tensor]] = deque()
    try:
        for rows in blocks:
            asked.append(images.ask(rows.numpy(), readers.submit))
            if len(asked) > AHEAD:
                yield asked.popleft()()
        while asked:
            yield asked.popleft()()
    finally:
        readers.shutdown(cancel_futures=True)
