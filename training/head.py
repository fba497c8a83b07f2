"""The one definition of a head in torch, built from a manifest's layers.

Training optimises it, evaluation runs it, and what it holds is what head.safetensors stores.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import nn

from recipes.manifest import Dropout, Layer, Linear, Relu, Standardize


class StandardizeModule(nn.Module):
    """(B, D) → (B, D): (x - mean) / std with constants of the training data."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, mean: torch.Tensor, std: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x - self.mean) / self.std


def head_from_layers(layers: Iterable[Layer], tensors: Mapping[str, np.ndarray]) -> nn.Sequential:
    """Layers and their named tensors as one module: (B, embed_dim) → (B, L) logits."""
    return nn.Sequential(*(_module(layer, tensors) for layer in layers))


def tensors_of(head: nn.Sequential, layers: Iterable[Layer]) -> dict[str, np.ndarray]:
    """The inverse of `head_from_layers`: the module's tensors under the names its layers give them."""
    tensors: dict[str, np.ndarray] = {}
    for layer, module in zip(layers, head, strict=True):
        state = {name: tensor.detach().cpu().numpy().copy() for name, tensor in module.state_dict().items()}
        tensors |= {getattr(layer, name): array for name, array in state.items()}
    return tensors


def new_layers(hidden_sizes: list[int], dropout: float) -> list[Layer]:
    """Standardise; linear, ReLU and dropout for each hidden size; linear to the labels."""
    layers: list[Layer] = [Standardize(mean="standardize.mean", std="standardize.std")]
    for number in range(len(hidden_sizes)):
        layers += [_linear(number), Relu(), *([Dropout(p=dropout)] if dropout else [])]
    return [*layers, _linear(len(hidden_sizes))]


def initial_tensors(
    embeddings: np.ndarray,  # (n, embed_dim), the training rows
    hidden_sizes: list[int],
    label_count: int,
    seed: int,
) -> dict[str, np.ndarray]:
    """Tensors for `new_layers`: the data's own mean and std, and seeded random weights as torch's Linear has."""
    std = embeddings.std(axis=0, dtype=np.float64)
    tensors = {
        "standardize.mean": embeddings.mean(axis=0, dtype=np.float64).astype(np.float32),
        "standardize.std": np.where(std > 1e-6, std, 1).astype(np.float32),  # a constant column stays harmless
    }
    rng = np.random.default_rng(seed)
    widths = [embeddings.shape[1], *hidden_sizes, label_count]
    for number, (wide_in, wide_out) in enumerate(itertools.pairwise(widths)):
        bound = 1 / np.sqrt(wide_in)
        layer = _linear(number)
        tensors[layer.weight] = rng.uniform(-bound, bound, (wide_out, wide_in)).astype(np.float32)
        tensors[layer.bias] = rng.uniform(-bound, bound, wide_out).astype(np.float32)
    return tensors


def scores_of(head: nn.Sequential, embeddings: np.ndarray) -> np.ndarray:
    """(n, embed_dim) → (n, L) float64 sigmoid scores, in eval mode."""
    head.eval()
    device = next(head.parameters()).device
    with torch.inference_mode():
        logits = head(torch.from_numpy(embeddings).to(device))
    return torch.sigmoid(logits.double()).cpu().numpy()


def _linear(number: int) -> Linear:
    return Linear(weight=f"linear_{number}.weight", bias=f"linear_{number}.bias")


def _module(layer: Layer, tensors: Mapping[str, np.ndarray]) -> nn.Module:
    if isinstance(layer, Linear):
        weight, bias = torch.tensor(tensors[layer.weight]), torch.tensor(tensors[layer.bias])
        module = nn.Linear(weight.shape[1], weight.shape[0])
        module.load_state_dict({"weight": weight, "bias": bias})
        return module
    if isinstance(layer, Standardize):
        return StandardizeModule(torch.tensor(tensors[layer.mean]), torch.tensor(tensors[layer.std]))
    return nn.Dropout(layer.p) if isinstance(layer, Dropout) else nn.ReLU()
