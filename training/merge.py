"""One learned weight for each of an encoder's layers: part of a head in training, and gone from what is served.

The encoder's layers lie side by side in the embedding. Their weighted sum and the linear layer behind it are one
matrix.
"""

from __future__ import annotations

import torch
from torch import nn

_STEEPNESS = 10.0
"""The weights are learned as logits at so many times the learning rate; else layers would part too late."""


class MergeLayers(nn.Module):
    """(B, layers · D) → (B, D): the sum of the layers, by weights that are positive and add up to 1."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(count))

    @property
    def weights(self) -> torch.Tensor:
        return torch.softmax(self.logits * _STEEPNESS, dim=0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.einsum("bnd,n->bd", x.unflatten(-1, (len(self.logits), -1)), self.weights)


def with_merge(head: nn.Sequential, count: int) -> nn.Sequential:
    """The head with the layers merged in front of its first linear layer."""
    modules = list(head)
    place = next(at for at, module in enumerate(modules) if isinstance(module, nn.Linear))
    return nn.Sequential(*modules[:place], MergeLayers(count), *modules[place:])


def without_merge(head: nn.Sequential) -> tuple[nn.Sequential, list[float] | None]:
    """The same head with the merge folded into the linear layer behind it, and the layers' weights; None without."""
    modules = list(head)
    place = next((at for at, module in enumerate(modules) if isinstance(module, MergeLayers)), None)
    if place is None:
        return head, None
    merge, linear = modules[place], modules[place + 1]
    assert isinstance(merge, MergeLayers)
    assert isinstance(linear, nn.Linear)
    with torch.no_grad():
        matrix = torch.cat([weight * linear.weight for weight in merge.weights], dim=1)
        folded = nn.Linear(matrix.shape[1], matrix.shape[0]).to(matrix.device)
        folded.weight.copy_(matrix)
        folded.bias.copy_(linear.bias)
    weights = [round(weight, 6) for weight in merge.weights.detach().tolist()]
    return nn.Sequential(*modules[:place], folded, *modules[place + 2 :]), weights
