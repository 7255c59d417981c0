"""Components of CODA-Prompt: keys, attention vectors and prompts of each task, orthonormal when it begins."""

import torch
from torch import Tensor, nn


class Components(nn.Module):
    """K and A (B, m, D) and P (B, m, L, D) of each task, for B blocks; zero until the task begins.

    sizes: m of each task. length: L, tokens of a component.
    """

    def __init__(self, sizes: list[int], n_blocks: int, length: int, width: int) -> None:
        super().__init__()
        shapes = [(n_blocks, m, width) for m in sizes]
        self.keys = nn.ParameterList(torch.zeros(shape) for shape in shapes)
        self.attention = nn.ParameterList(torch.zeros(shape) for shape in shapes)
        self.prompts = nn.ParameterList(torch.zeros(n_blocks, m, length, width) for m in sizes)

    def slices(self) -> tuple[nn.ParameterList, ...]:
        """K, A and P, each a list of one parameter a task."""
        return self.keys, self.attention, self.prompts

    def of_first(self, n_tasks: int) -> list[Tensor]:
        """K, A (B, m, D) and P (B, m, L, D) of the first tasks side by side."""
        return [torch.cat(list(slices)[:n_tasks], 1) for slices in self.slices()]

    def learn(self, task_id: int) -> None:
        """Let the components of one task learn and no others."""
        for slices in self.slices():
            for j, parameter in enumerate(slices):
                parameter.requires_grad_(j == task_id)

    @torch.no_grad()
    def begin(self, task_id: int, draws: torch.Generator) -> None:
        """Draw a task's components, orthonormal and orthogonal to all earlier ones of their block."""
        for slices in self.slices():
            earlier = [parameter.flatten(2) for parameter in list(slices)[:task_id]]
            for block, new in enumerate(slices[task_id]):
                old = [parameter[block] for parameter in earlier]
                old_rows = torch.cat(old) if old else new.flatten(1)[:0]
                new.copy_(orthonormal(old_rows, len(new), draws).view_as(new))


def orthonormal(old: Tensor, n_new: int, draws: torch.Generator) -> Tensor:
    """(n_new, d) unit vectors orthogonal to each other and to the old ones (n, d), from normal draws."""
    new = torch.randn(old.shape[1], n_new, generator=draws, dtype=torch.float64)
    return torch.linalg.qr(torch.cat([old.cpu().double().T, new], 1)).Q[:, len(old) :].T.contiguous()
