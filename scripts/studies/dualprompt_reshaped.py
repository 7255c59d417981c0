"""DualPrompt with the reshape of a public port, for the audit: images get their neighbours' prompts.

dualprompt-pytorch, and codes that took it over, gather the prompts of a batch of N images as (blocks, 2, N,
L, D), keys first, and *reshape* them to (blocks, N, 2, L, D), where the axes must be exchanged. Of the list
k_1 ... k_N, v_1 ... v_N image b then gets the entries 2b and 2b + 1 as its keys and its values: in the first
half of the batch keys of two images, in the second half values of two. In a batch of one it is right.
`scripts/audit_evaluation.py` measures it, in evaluation alone and, with this as --model, in training too.
"""

import torch
from torch import Tensor

from engram.backbones.vit import Prompts
from engram.models.dualprompt import DualPrompt, DualPrompts
from engram.models.dualprompt import Options as Options


def reshaped(prompts: DualPrompts, choices: Tensor) -> Prompts:
    """(N,) tasks, one for each image of a batch → the prompts that the reshape gives them."""
    right = prompts(choices).prefixes
    pairs = (torch.stack(right[layer]).flatten(0, 1) for layer in prompts.e_layers)  # (2N, L, D)
    mixed = (pair.unflatten(0, (len(choices), 2)).unbind(1) for pair in pairs)
    return Prompts(prefixes={**right, **dict(zip(prompts.e_layers, mixed, strict=True))})


class DualPromptReshaped(DualPrompt):
    """Trained and evaluated with the reshape."""

    def logits_with(self, x: Tensor, choices: Tensor, task_id: Tensor) -> Tensor:
        """(N, C) logits of a batch with the prompts that the reshape gives its images."""
        return self.net.head(self.net.features(x, reshaped(self.prompts, choices)), task_id)
