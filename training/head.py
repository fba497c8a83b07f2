"""The one definition of a head in torch, built from a manifest's layers.

Training optimises it, evaluation runs it, and what it holds is what head.safetensors stores.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from common.manifest import Dropout, Layer, Linear, LogSumExp, RankLookup, Relu, Standardize
from recipes.head_section import Fit

_ROWS_PER_BLOCK = 16_384


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


class LogSumExpModule(nn.Module):
    """The layer of that name in common.manifest: (B, N) → (B, groups)."""

    def __init__(self, groups: list[list[int]]) -> None:
        super().__init__()
        self._groups = groups

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([x[:, group].logsumexp(dim=1) for group in self._groups], dim=1)


class RankLookupModule(nn.Module):
    """(B, D) → (B, D): some columns replaced by the rank of the interval that holds their value, or 0."""

    low: torch.Tensor  # (N,), ascending within each column
    high: torch.Tensor
    ranks: torch.Tensor

    def __init__(
        self, columns: list[int], lengths: list[int], low: torch.Tensor, high: torch.Tensor, ranks: torch.Tensor
    ) -> None:
        super().__init__()
        self.columns, self.lengths = columns, lengths
        self.register_buffer("low", low)
        self.register_buffer("high", high)
        self.register_buffer("ranks", ranks)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x.clone()
        parts = (tensor.split(self.lengths) for tensor in (self.low, self.high, self.ranks))
        for column, low, high, ranks in zip(self.columns, *parts, strict=True):
            y[:, column] = _ranks_of(x[:, column].contiguous(), low, high, ranks)
        return y


def _ranks_of(x: torch.Tensor, low: torch.Tensor, high: torch.Tensor, ranks: torch.Tensor) -> torch.Tensor:
    """(B,) values → (B,) ranks."""
    if not len(low):
        return torch.zeros_like(x)
    nearest = (torch.searchsorted(low, x, right=True) - 1).clamp(min=0)
    inside = (x >= low[nearest]) & (x <= high[nearest])
    return torch.where(inside, ranks[nearest], 0)


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


@dataclass(frozen=True)
class Hidden:
    """One hidden layer: linear to `width`, then ReLU and dropout if it has them."""

    width: int
    relu: bool
    dropout: float


_AESTHETIC = [(1024, 0.2), (128, 0.2), (64, 0.1), (16, 0.0)]
_PUBLISHED = {
    "laion-h14": [*(Hidden(width, True, 0.2) for width in (1024, 2048, 1024, 256, 128)), Hidden(16, False, 0)],
    "laion-aesthetic": [Hidden(width, False, dropout) for width, dropout in _AESTHETIC],
    "laion-aesthetic-relu": [Hidden(width, True, dropout) for width, dropout in _AESTHETIC],
}


def hidden_layers(fit: Fit) -> list[Hidden]:
    """Those of the recipe's architecture; a published one has its own sizes and dropout."""
    if fit.architecture == "mlp":
        hidden = [Hidden(width, True, fit.dropout) for width in fit.hidden_sizes]
    else:
        hidden = _PUBLISHED[fit.architecture]
    if fit.output_dropout is None or not hidden:
        return hidden
    return [*hidden[:-1], replace(hidden[-1], dropout=fit.output_dropout)]


def new_layers(hidden: list[Hidden], input_dropout: float = 0) -> list[Layer]:
    """Standardise, the hidden layers, linear to the labels; dropout where it acts in training.

    Every architecture is standardised, the published ones too: training converges in far fewer epochs, and what
    is served is the same, because build.head folds the standardisation into the first linear layer.
    """
    layers: list[Layer] = [Standardize(mean="standardize.mean", std="standardize.std")]
    layers += [Dropout(p=input_dropout)] if input_dropout else []
    for number, layer in enumerate(hidden):
        relu = [Relu()] if layer.relu else []
        dropout = [Dropout(p=layer.dropout)] if layer.dropout else []
        layers += [_linear(number), *relu, *dropout]
    return [*layers, _linear(len(hidden))]


def initial_tensors(
    embeddings: np.ndarray,  # (n, embed_dim), the training rows
    hidden: list[Hidden],
    output_count: int,
    seed: int,
    merged: int = 1,
) -> dict[str, np.ndarray]:
    """Tensors for `new_layers`: the data's own mean and std, and seeded random weights as torch's Linear has.

    The first linear layer is as wide as the embedding, or as one of the `merged` layers that it consists of.

    The last layer begins at 0: what it begins with stays where the rows say nothing, and would be noise in every score.
    """
    mean, std = mean_and_std(embeddings)
    tensors = {
        "standardize.mean": mean.astype(np.float32),
        "standardize.std": np.where(std > 1e-6, std, 1).astype(np.float32),  # a constant column stays harmless
    }
    rng = np.random.default_rng(seed)
    widths = [embeddings.shape[1] // merged, *(layer.width for layer in hidden), output_count]
    for number, (wide_in, wide_out) in enumerate(itertools.pairwise(widths)):
        bound = 1 / np.sqrt(wide_in)
        layer = _linear(number)
        tensors[layer.weight] = rng.uniform(-bound, bound, (wide_out, wide_in)).astype(np.float32)
        tensors[layer.bias] = rng.uniform(-bound, bound, wide_out).astype(np.float32)
    last = _linear(len(hidden))
    return tensors | {name: np.zeros_like(tensors[name]) for name in (last.weight, last.bias)}


def in_units_of(
    tensors: Mapping[str, np.ndarray], hidden_count: int, scale: np.ndarray, offset: np.ndarray
) -> dict[str, np.ndarray]:
    """The tensors of a head whose outputs shall be `output * scale + offset`, each (outputs,): in the labels' units."""
    last = _linear(hidden_count)
    weight, bias = tensors[last.weight] * scale[:, None], tensors[last.bias] * scale + offset
    return {**tensors, last.weight: weight.astype(np.float32), last.bias: bias.astype(np.float32)}


def mean_and_std(embeddings: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(n, D) → mean (D,) and std (D,) float64, in blocks, so that no second copy of the data is made."""
    blocks = range(0, len(embeddings), _ROWS_PER_BLOCK)
    mean = sum(embeddings[at : at + _ROWS_PER_BLOCK].sum(axis=0, dtype=np.float64) for at in blocks) / len(embeddings)
    squares = sum(np.square(embeddings[at : at + _ROWS_PER_BLOCK] - mean).sum(axis=0) for at in blocks)
    return np.asarray(mean), np.sqrt(squares / len(embeddings))


def logits_of(head: nn.Sequential, embeddings: np.ndarray) -> np.ndarray:
    """(n, embed_dim) → (n, L) float64: what the layers give, before calibration and activation, in eval mode."""
    head.eval()
    device = next(head.parameters()).device
    with torch.inference_mode():
        blocks = torch.from_numpy(np.ascontiguousarray(embeddings)).split(_ROWS_PER_BLOCK)
        return np.concatenate([head(block.to(device)).double().cpu().numpy() for block in blocks])


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
    if isinstance(layer, RankLookup):
        arrays = (torch.tensor(tensors[name]) for name in (layer.low, layer.high, layer.ranks))
        return RankLookupModule(layer.columns, layer.lengths, *arrays)
    if isinstance(layer, LogSumExp):
        return LogSumExpModule(layer.groups)
    return nn.Dropout(layer.p) if isinstance(layer, Dropout) else nn.ReLU()
