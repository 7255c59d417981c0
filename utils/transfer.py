"""Transfer: small host values go to the training device, and the host does not wait for the copy.

`torch.tensor(values, device="cuda")` and `.to("cuda")` of ordinary memory return only when everything that
is queued on the device is done. From pinned memory the copy is queued like a kernel; PyTorch keeps the pinned
block until it has been read.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def send(
    values: Tensor | Sequence[object], device: torch.device | str, dtype: torch.dtype | None = None
) -> Tensor:
    """Host values, a CPU tensor or (nested) lists of numbers, as a tensor on the device, without waiting."""
    host = values if isinstance(values, Tensor) else torch.tensor(values, dtype=dtype)
    if torch.device(device).type != "cuda" or host.device.type == "cuda":
        return host.to(device, dtype)
    return host.to(dtype or host.dtype).pin_memory().to(device, non_blocking=True)
