"""Storage: the slots of a memory, and how rows of all its fields are written and read in few operations."""

from collections.abc import Mapping

import torch
from torch import Tensor


class Storage:
    """`size` slots on a device; `fields` has a view (size, ...) of each field, declared by the first samples.

    Integers, one a sample (y, task_id, index), lie in one tensor, `integers` (number of such fields, slots):
    one kernel writes or reads them all. There is one slot more than `size`, the spare one, which takes rows
    that are not to be kept and is never read.
    """

    def __init__(self, size: int, device: torch.device):
        self.size, self.device = size, device
        self.fields: dict[str, Tensor] = {}
        self.integers: Tensor | None = None
        self._integer_names: list[str] = []
        self._others: dict[str, Tensor] = {}  # name → (size + 1, ...)

    def write(self, slots: Tensor, samples: Mapping[str, Tensor], rows: Tensor | None = None) -> None:
        """Put rows (k,) of the samples (default: all) into slots (k,); the spare one may occur repeatedly."""
        self._declare(samples)
        if self.integers is not None:
            values = torch.stack([samples[name] for name in self._integer_names])
            values = values if rows is None else values.index_select(1, rows)
            self.integers.index_copy_(1, slots, values)
        for name, target in self._others.items():
            values = samples[name].detach()
            # [:] reads images that are on disk
            chosen = values[:].contiguous() if rows is None else values.index_select(0, rows)
            copy_rows(target, slots, chosen)

    def read(self, slots: Tensor) -> dict[str, Tensor]:
        """The samples in slots (k,); each field (k, ...)."""
        samples = {name: values.index_select(0, slots) for name, values in self._others.items()}
        if self.integers is not None:
            integers = self.integers.index_select(1, slots).unbind(0)
            samples.update(zip(self._integer_names, integers, strict=True))
        return {name: samples[name] for name in self.fields}

    def load(self, fields: Mapping[str, Tensor]) -> None:
        """Hold copies of fields (n, ...), n ≤ size, in the first n slots, and nothing else."""
        self.fields.clear()
        self.integers, self._integer_names, self._others = None, [], {}
        self._declare(fields)
        for name, values in fields.items():
            self.fields[name][: len(values)].copy_(values.detach())

    def _declare(self, samples: Mapping[str, Tensor]) -> None:
        """Make room for the fields of the samples, zeros in every slot, unless it is there."""
        if self.fields or not samples:
            return
        n_slots = self.size + 1
        self._integer_names = [n for n, v in samples.items() if v.dtype == torch.int64 and v.dim() == 1]
        if self._integer_names:
            shape = (len(self._integer_names), n_slots)
            self.integers = torch.zeros(shape, dtype=torch.int64, device=self.device)
        for name, values in samples.items():
            if self.integers is not None and name in self._integer_names:
                whole = self.integers[self._integer_names.index(name)]
            else:
                whole = torch.zeros((n_slots, *values.shape[1:]), dtype=values.dtype, device=self.device)
                self._others[name] = whole
            self.fields[name] = whole[: self.size]


def copy_rows(target: Tensor, slots: Tensor, rows: Tensor) -> None:
    """target[slots] = rows, along the first dimension; both contiguous."""
    size = rows.element_size()
    if rows.device.type == "cpu" and size < 8 and rows.dim() > 1 and rows.shape[1:].numel() * size % 16 == 0:
        # a CPU copies the same bytes many times faster as a few wide numbers
        target, rows = (t.flatten(1).view(torch.complex128) for t in (target, rows))
    target.index_copy_(0, slots, rows)
