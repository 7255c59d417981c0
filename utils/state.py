"""State: turn an object's attributes into plain tensors, numbers and dicts, and back.

What goes into a checkpoint must load with `weights_only=True`; anything else is refused when it is
saved, by name, rather than lost silently.
"""

from typing import Any

import torch
from torch import Tensor

PLAIN = (bool, int, float, str, type(None))


def pack(value: Any, name: str) -> Any:
    """A checkpoint-safe copy of `value`; `name` is what errors call it."""
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, PLAIN):
        return value
    if isinstance(value, torch.Generator):
        return value.get_state()
    if hasattr(value, "state_dict"):
        return value.state_dict()
    if isinstance(value, dict):
        return {key: pack(item, f"{name}[{key!r}]") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(pack(item, f"{name}[{i}]") for i, item in enumerate(value))
    raise TypeError(f"{name} is a {type(value).__name__}, which cannot be saved in a checkpoint")


def unpack(current: Any, saved: Any, device: torch.device, name: str) -> Any:
    """The value that `saved` stands for; `current` is the freshly built one it replaces."""
    if isinstance(current, torch.Generator):
        if len(saved) == len(current.get_state()):  # else a stream of another kind of device: it starts anew
            current.set_state(saved.cpu())
        return current
    if hasattr(current, "load_state_dict"):
        current.load_state_dict(saved)
        return current
    if isinstance(saved, Tensor):
        return saved.to(current.device if isinstance(current, Tensor) else device)
    if isinstance(saved, dict):
        built = current if isinstance(current, dict) else {}
        return {k: unpack(built.get(k), v, device, f"{name}[{k!r}]") for k, v in saved.items()}
    if isinstance(saved, list | tuple):
        same = isinstance(current, list | tuple) and len(current) == len(saved)
        pairs = zip(current if same else [None] * len(saved), saved, strict=True)
        return type(saved)(unpack(k, v, device, f"{name}[{i}]") for i, (k, v) in enumerate(pairs))
    return saved
