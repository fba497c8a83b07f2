"""Parts an image classifier into its backbone, which is the encoder, and its last linear layer, which is a head."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch

from build.weights import first_line
from common.classifier_layer import ClassifierLayer, LayerDescription
from recipes.schema import RecipeError


class Classifier:
    """A classifier whose last layer was taken out of its module.

    Attributes:
        backbone: (B, 3, H, W) float32 → (B, embed_dim) float32, what the last layer was given.
        description: its labels, and where it came from.
    """

    def __init__(self, module: torch.nn.Module, name: str, description: LayerDescription) -> None:
        self.backbone = module
        self.description = description
        self._name = name
        self._linear = cast(torch.nn.Linear, module.get_submodule(name))
        self._put(torch.nn.Identity())

    def logits(self, inputs: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) float32 → (B, classes) float32 by the whole module, as its library made it."""
        self._put(self._linear)
        try:
            return self.backbone(inputs)
        finally:
            self._put(torch.nn.Identity())

    def layer(self, logits: np.ndarray) -> ClassifierLayer:
        """The last layer, with (pictures, classes) float32 logits of the whole module."""
        weight = self._linear.weight.detach().float()
        bias = torch.zeros(len(weight)) if self._linear.bias is None else self._linear.bias.detach().float()
        return ClassifierLayer(self.description, weight.numpy(), bias.numpy(), logits)

    def _put(self, layer: torch.nn.Module) -> None:
        parent, _, child = self._name.rpartition(".")
        setattr(self.backbone.get_submodule(parent), child, layer)


def parted(module: torch.nn.Module, image_size: int, description: LayerDescription, where: str) -> Classifier:
    """Take the last linear layer out of a classifier's module, which then gives what that layer was given.

    Args:
        module: (B, 3, H, W) float32 → (B, classes) float32, in eval mode.
        image_size: edge of its input, in pixels.
        description: of the layer.
        where: the folder, for messages.

    Raises:
        RecipeError: the module cannot take that size, its output is not that of one linear layer, or it has another
            number of labels.
    """
    name = last_linear(module, image_size, where)
    classes = cast(torch.nn.Linear, module.get_submodule(name)).out_features
    if description.labels is not None and len(description.labels) != classes:
        raise RecipeError(
            f"{where}: config.json has {len(description.labels)} labels, the model's last layer {classes} outputs; "
            "they are not of one model"
        )
    return Classifier(module, name, description)


@torch.inference_mode()
def last_linear(module: torch.nn.Module, image_size: int, where: str) -> str:
    """Name of the linear layer whose output is the module's; raises the first errors of `parted`."""
    outputs: dict[str, torch.Tensor] = {}

    def keep(name: str) -> Any:
        return lambda _module, _inputs, output: outputs.__setitem__(name, output)

    linear = {name: part for name, part in module.named_modules() if isinstance(part, torch.nn.Linear)}
    hooks = [part.register_forward_hook(keep(name)) for name, part in linear.items()]
    noise = torch.randn(2, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))
    try:
        logits = module(noise)
    except Exception as error:
        raise RecipeError(
            f"{where}: the model cannot take pictures of {image_size} x {image_size} pixels, the size of its own "
            f"preprocessing: {first_line(error)}"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    same = [name for name, output in outputs.items() if output.shape == logits.shape and torch.equal(output, logits)]
    if not same:
        raise RecipeError(
            f"{where}: its scores are not those of one linear layer at its end (a distilled model has two, some "
            "models average scores of patches); export a model with one, or train a head on the features"
        )
    return same[-1]
