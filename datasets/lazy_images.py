"""Lazy images: what stands for a uint8 tensor whose images lie in files, and the threads that prefetch them.

`DiskImages` and `ConcatenatedImages` have the part of a tensor's interface that is used of `Samples.x_raw`.
Whatever is indexed, selected or split is read at that moment and is an ordinary tensor on the device, so a
method that stores samples stores its own copies.
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
from numpy.typing import NDArray
from torch import Tensor

N_PREFETCHED = 4  # blocks that are being read while the trainer uses the one before them
N_READERS = 2  # threads: while one waits for the disk the other copies

LARGE = 32 << 10  # bytes of an image; smaller ones come with what the system reads ahead by itself

Transform = Callable[[Tensor], Tensor]  # raw uint8 images (N, C, H, W) → the task's uint8 images
# submit(function, *arguments) → the future of its result: a thread pool's, or `run_now`
Submit = Callable[..., "Future[Any]"]
# verify(images, rows): raises `DataError` if the images read for these rows are not those that were written
Verify = Callable[[NDArray[np.uint8], NDArray[np.integer]], None]
PendingImages = Callable[[], Tensor]  # waits for images that are being read and returns them


def identity(raw: Tensor) -> Tensor:
    """The transform of a task that shows the images unchanged."""
    return raw


def unverified(images: NDArray[np.uint8], rows: NDArray[np.integer]) -> None:
    """The `Verify` of files without checksums."""


class LazyImages:
    """(N, C, H, W) uint8 images that a reader uses like a tensor on `device`."""

    dtype = torch.uint8

    def __init__(self, shape: Sequence[int], device: torch.device | str):
        self.shape, self.device = torch.Size(shape), torch.device(device)

    def __len__(self) -> int:
        return self.shape[0]

    def prefetch(self, rows: NDArray[np.integer], submit: Submit) -> PendingImages:
        """Start to read `rows` (n,) by a call of `submit`; returns a function that waits for the images.

        Only files are read in other threads: memory is allocated, and the device used, by the caller's.
        """
        raise NotImplementedError

    def index_select(self, dim: int, rows: Tensor) -> Tensor:
        """The images at `rows` (n,)."""
        assert dim == 0, "images are taken whole"
        return self._read(rows.cpu().numpy())

    def __getitem__(self, key: slice | Tensor) -> Tensor:
        """The images of a slice, at indices (n,), or where a mask (N,) is True."""
        if isinstance(key, slice):
            return self._read(np.arange(*key.indices(len(self))))
        index = key.cpu().numpy()
        return self._read(np.flatnonzero(index) if index.dtype == bool else index)

    def _read(self, rows: NDArray[np.integer]) -> Tensor:
        if len(rows) and not 0 <= rows.min() <= rows.max() < len(self):
            raise IndexError(f"indices {rows.min()} to {rows.max()} of {len(self)} images")
        return self.prefetch(rows, run_now)()

    def split(self, size: int) -> Iterator[Tensor]:
        """`size` images at a time, each chunk read when it is asked for."""
        return (self[start : start + size] for start in range(0, len(self), size))

    def detach(self) -> "LazyImages":
        """The same images: uint8 has no gradient."""
        return self

    def new_zeros(self, *shape: int) -> Tensor:
        """An ordinary tensor of zeros, uint8, on the images' device."""
        return torch.zeros(*shape, dtype=self.dtype, device=self.device)

    def __getattr__(self, name: str) -> Any:
        """Only called for a name that is not defined above."""
        raise AttributeError(
            f"images on disk have no '{name}': read some with [rows] or split(size), or all with [:]"
        )

    @classmethod
    def __torch_function__(
        cls, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """`torch.cat` of such images, also with tensors, stays unread; no other function is defined."""
        return concatenate(args[0]) if function is torch.cat and not kwargs else NotImplemented


Images = Tensor | LazyImages


class DiskImages(LazyImages):
    """Images in files, or some of them, and the transform that is applied when they are read.

    files: arrays (n, C, H, W) over `mmap`s, all as long as the first but the last. rows: which images, and
    in which order (all). note: a line for the user on where they are and why. verify: is called with the
    images and rows of every read, in the reader's thread.
    """

    def __init__(
        self,
        files: list[NDArray[np.uint8]],
        device: torch.device | str = "cpu",
        rows: NDArray[np.integer] | None = None,
        transform: Transform = identity,
        note: str = "",
        verify: Verify = unverified,
    ):
        self.files, self.transform, self.note, self.verify = files, transform, note, verify
        self.rows = np.arange(sum(map(len, files))) if rows is None else rows
        super().__init__((len(self.rows), *files[0].shape[1:]), device)

    def to(self, device: torch.device | str) -> "DiskImages":
        """The same images, for a reader on another device."""
        return DiskImages(self.files, device, self.rows, self.transform, self.note, self.verify)

    def subset(self, rows: Tensor, transform: Transform = identity) -> "DiskImages":
        """The images at `rows` (n,), still unread, to be transformed when they are read."""
        rows_in_files = self.rows[rows.numpy()]
        return DiskImages(self.files, self.device, rows_in_files, transform, self.note, self.verify)

    def prefetch(self, rows: NDArray[np.integer], submit: Submit) -> PendingImages:
        """Have the images copied into memory that a GPU can fetch from while it computes (pinned)."""
        rows, pinned = self.rows[rows], self.device.type == "cuda"
        images = torch.empty((len(rows), *self.shape[1:]), dtype=self.dtype, pin_memory=pinned)
        copied = submit(self._copy, images.numpy(), rows)

        def wait() -> Tensor:
            copied.result()
            return self.transform(images.to(self.device, non_blocking=True))

        return wait

    def _copy(self, images: NDArray[np.uint8], rows: NDArray[np.integer]) -> None:
        """Copy rows (n,) of the files into `images`, mostly outside Python's lock: the trainer goes on."""
        file, row = np.divmod(rows, len(self.files[0]))
        n_bytes = prod(self.shape[1:])
        if n_bytes >= LARGE:  # have the disk fetch all of them at once
            for i, first in zip(file.tolist(), (row * n_bytes).tolist(), strict=True):
                page = first - first % mmap.PAGESIZE
                self.files[i].base.madvise(mmap.MADV_WILLNEED, page, first + n_bytes - page)
        for i in np.unique(file):
            in_file = np.flatnonzero(file == i)
            if len(in_file) == len(rows):
                self.files[i].take(row, axis=0, out=images, mode="clip")
            else:
                images[in_file] = self.files[i].take(row[in_file], axis=0)
        self.verify(images, rows)


class ConcatenatedImages(LazyImages):
    """Several groups of images one after the other, each lazy or a tensor."""

    def __init__(self, groups: Sequence[Images]):
        self.groups, self.ends = groups, np.cumsum([len(group) for group in groups])
        super().__init__((int(self.ends[-1]), *groups[0].shape[1:]), groups[0].device)

    def prefetch(self, rows: NDArray[np.integer], submit: Submit) -> PendingImages:
        """Start to read what each group has of the rows; tensors are indexed by the function returned."""
        group_of_row = np.searchsorted(self.ends, rows, side="right")
        pending: list[tuple[Tensor, PendingImages]] = []
        for i in np.unique(group_of_row):
            group, positions = self.groups[i], np.flatnonzero(group_of_row == i)
            group_rows = rows[positions] - (self.ends[i] - len(group))
            if isinstance(group, LazyImages):
                wait = group.prefetch(group_rows, submit)
            else:
                wait = partial(group.index_select, 0, torch.from_numpy(group_rows).to(group.device))
            pending.append((torch.from_numpy(positions).to(self.device), wait))

        def wait_for_all() -> Tensor:
            images = torch.empty((len(rows), *self.shape[1:]), dtype=self.dtype, device=self.device)
            for positions, wait in pending:
                images.index_copy_(0, positions, wait())
            return images

        return wait_for_all


def concatenate(groups: Sequence[Images]) -> LazyImages:
    """The groups one after the other; one `DiskImages` where files and transform are the same for all."""
    first, on_disk = groups[0], [group for group in groups if isinstance(group, DiskImages)]
    if isinstance(first, DiskImages) and len(on_disk) == len(groups):
        alike = (group.files is first.files and group.transform is first.transform for group in on_disk)
        if all(alike):
            rows = np.concatenate([group.rows for group in on_disk])
            return DiskImages(first.files, first.device, rows, first.transform, first.note, first.verify)
    return ConcatenatedImages(groups)


def select(images: Images, rows: Tensor) -> Images:
    """The images at `rows`; those on disk stay unread."""
    return images.subset(rows) if isinstance(images, DiskImages) else images[rows]


def run_now(function: Callable[..., Any], *arguments: Any) -> "Future[Any]":
    """Call the function at once, in this thread: `submit` where nothing can be done meanwhile."""
    future: Future[Any] = Future()
    future.set_result(function(*arguments))
    return future


def prefetched(images: LazyImages, blocks: Iterable[Tensor]) -> Iterator[Tensor]:
    """The images of each block of rows in turn, read in threads that end with the iterator.

    A thread reads one block at a time and then is idle: no read outlives the iterator, however it ends. An
    error in a thread is raised here, at its block.
    """
    readers = ThreadPoolExecutor(N_READERS, thread_name_prefix="images")
    pending: deque[PendingImages] = deque()
    try:
        for rows in blocks:
            pending.append(images.prefetch(rows.numpy(), readers.submit))
            if len(pending) > N_PREFETCHED:
                yield pending.popleft()()
        while pending:
            yield pending.popleft()()
    finally:
        readers.shutdown(cancel_futures=True)
