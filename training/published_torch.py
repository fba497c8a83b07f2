"""The published heads in .pth files: a state dict → layers and tensors, without running what a pickle holds."""

from __future__ import annotations

import pickle
import struct
import warnings
from pathlib import Path

import numpy as np

from common.manifest import Dropout, Layer, Linear, Relu
from training.errors import StepError
from training.published import PublishedHead

_BROKEN = (AttributeError, EOFError, LookupError, OSError, RuntimeError, TypeError, ValueError, struct.error)
"""What torch.load raises for bytes that are no pickle, or half of one."""


def import_torch(path: Path, published: PublishedHead) -> tuple[list[Layer], dict[str, np.ndarray]]:
    """Layers and tensors of a .pth file.

    Raises:
        StepError: the file is no state dict, has code in it, or does not have this head's tensors.
    """
    state = _state_dict(path)
    expected = expected_shapes(published)
    _check_state(path, state, expected, published)
    layers: list[Layer] = []
    tensors: dict[str, np.ndarray] = {}
    for index, step in enumerate(published.sequence):
        if isinstance(step, int):
            layer = Linear(weight=f"linear_{index}.weight", bias=f"linear_{index}.bias")
            tensors[layer.weight] = state[published.key.format(index=index, part="weight")]
            tensors[layer.bias] = state[published.key.format(index=index, part="bias")]
            layers.append(layer)
        else:
            layers.append(Relu() if step == "relu" else Dropout(p=float(step)))
    return layers, tensors


def expected_shapes(published: PublishedHead) -> dict[str, tuple[int, ...]]:
    """The tensors of its state dict."""
    shapes: dict[str, tuple[int, ...]] = {}
    width = published.embed_dim
    for index, step in enumerate(published.sequence):
        if isinstance(step, int):
            shapes[published.key.format(index=index, part="weight")] = (step, width)
            shapes[published.key.format(index=index, part="bias")] = (step,)
            width = step
    return shapes


def _state_dict(path: Path) -> dict[str, np.ndarray]:
    import torch  # takes seconds, and `make engines` has mostly nothing to import

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of other pickle protocols; what cannot be read is an error below
            loaded = torch.load(path, weights_only=True, map_location="cpu")
    except pickle.UnpicklingError as error:
        raise StepError(
            f"{path}: refused, because it holds more than tensors: loading it would run code "
            f"({str(error).splitlines()[0]})"
        ) from error
    except _BROKEN as error:
        raise StepError(
            f"{path}: not a PyTorch file ({str(error).splitlines()[0] if str(error) else error!r})"
        ) from error
    if not isinstance(loaded, dict) or not all(isinstance(value, torch.Tensor) for value in loaded.values()):
        raise StepError(f"{path}: a {type(loaded).__name__}, expected a state dict of tensors")
    return {name: tensor.detach().float().numpy().copy() for name, tensor in loaded.items()}


def _check_state(
    path: Path, state: dict[str, np.ndarray], expected: dict[str, tuple[int, ...]], published: PublishedHead
) -> None:
    shapes = {name: array.shape for name, array in state.items()}
    if shapes != expected:
        names = sorted(shapes.keys() | expected.keys())
        differing = [
            f"{name} is {shapes.get(name, 'missing')}, expected {expected.get(name, 'none')}"
            for name in names
            if shapes.get(name) != expected.get(name)
        ]
        raise StepError(f"{path}: not {published.name}: {'; '.join(differing[:4])}")
    broken = [name for name, array in state.items() if not np.isfinite(array).all()]
    if broken:
        raise StepError(f"{path}: the tensor {broken[0]} is not finite")
