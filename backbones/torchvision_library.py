"""Classification networks and weights of torchvision."""

from typing import TYPE_CHECKING

from torch import nn

from engram.backbones.pretrained_weights import Built, Weights, downloaded, load_into, read_file
from engram.utils.config.options import Pixels
from engram.utils.config.registry import suggest
from engram.utils.errors import UserError

if TYPE_CHECKING:
    from torchvision.models import WeightsEnum

VIT_SIDE = 224


def described(name: str, weights: Weights) -> "WeightsEnum | None":
    """torchvision's description of the weights; of its default ones for a file, None for random ones."""
    from torchvision import models  # slow to import, needed only here

    if name not in (valid := models.list_models(module=models)):
        raise UserError(f"--backbone torchvision:{name}: there is no such network{suggest(name, valid)}")
    if weights.are_random:
        return None
    all_weights = {"default": (known := models.get_model_weights(name)).DEFAULT} | {w.name: w for w in known}
    wanted = weights.name or "default"
    if wanted not in all_weights:
        raise UserError(
            f"--pretrained {wanted}: torchvision has for {name}: {', '.join(all_weights)}; or give a file"
        )
    return all_weights[wanted]


def pixels(name: str, weights: Weights) -> Pixels:
    """Mean and deviation of pixels in [0, 1] that the weights were trained with."""
    description = described(name, weights)
    assert description is not None, "asked of pre-trained weights only"
    transforms = description.transforms()
    return tuple(transforms.mean), tuple(transforms.std)


def build(name: str, weights: Weights, side: int) -> Built:
    """The network without classifier, for images of `side` (0: the weights' own)."""
    from torchvision import models  # as above

    description = described(name, weights)
    is_vit = name.startswith("vit_")
    if is_vit and side and description:
        raise UserError(f"--input_size {side}: torchvision's ViT keeps the size of its weights; take timm's")
    sized = {"image_size": side} if is_vit and side else {}
    wanted = None if weights.file else description
    body = downloaded(lambda: models.get_model(name, weights=wanted, **sized), name)
    classifier, feature_dim = last_layer(body, name)
    body.set_submodule(classifier, nn.Identity())
    if weights.file:
        load_into(body, read_file(weights.file), weights.file)
    native = description.transforms().crop_size[0] if description else VIT_SIDE if is_vit else 0
    return Built(body, feature_dim, side or native)


def last_layer(body: nn.Module, name: str) -> tuple[str, int]:
    """The name of the classifier, the network's last linear layer, and the number of its inputs."""
    linear = [(path, m) for path, m in body.named_modules() if isinstance(m, nn.Linear)]
    if not linear or getattr(body, "aux_logits", False):
        raise UserError(f"--backbone torchvision:{name}: its classifier is no linear layer; take another")
    path, layer = linear[-1]
    return path, layer.in_features
