from __future__ import annotations

import numpy as np
import pytest
import torch

from recipes.manifest import Dropout, Linear, Relu, Standardize
from training.head import head_from_layers, initial_tensors, new_layers, scores_of, tensors_of

EMBEDDINGS = np.random.default_rng(0).normal(3, 2, (50, 6)).astype(np.float32)


def _by_hand(layers, tensors, x: np.ndarray) -> np.ndarray:
    """The layers in numpy, straight from their docstrings in recipes.manifest."""
    for layer in layers:
        if isinstance(layer, Linear):
            x = x @ tensors[layer.weight].T + tensors[layer.bias]
        elif isinstance(layer, Standardize):
            x = (x - tensors[layer.mean]) / tensors[layer.std]
        elif isinstance(layer, Relu):
            x = np.maximum(x, 0)
    return 1 / (1 + np.exp(-x.astype(np.float64)))


@pytest.mark.parametrize("hidden_sizes", [[], [5], [7, 4]])
@pytest.mark.parametrize("label_count", [1, 3])
def test_torch_head_equals_the_layers_by_hand(hidden_sizes: list[int], label_count: int) -> None:
    layers = new_layers(hidden_sizes, dropout=0.5)
    tensors = initial_tensors(EMBEDDINGS, hidden_sizes, label_count, seed=0)
    scores = scores_of(head_from_layers(layers, tensors), EMBEDDINGS)
    assert scores.shape == (50, label_count)
    np.testing.assert_allclose(scores, _by_hand(layers, tensors, EMBEDDINGS), atol=1e-6)


def test_one_row_keeps_its_batch_dimension() -> None:
    head = head_from_layers(new_layers([4], 0.2), initial_tensors(EMBEDDINGS, [4], 1, seed=0))
    assert scores_of(head, EMBEDDINGS[:1]).shape == (1, 1)


def test_tensors_survive_the_round_trip() -> None:
    layers = new_layers([5, 3], dropout=0.1)
    tensors = initial_tensors(EMBEDDINGS, [5, 3], 1, seed=0)
    back = tensors_of(head_from_layers(layers, tensors), layers)
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(back[name], tensor)


def test_layers_in_order() -> None:
    kinds = [type(layer) for layer in new_layers([8], dropout=0.2)]
    assert kinds == [Standardize, Linear, Relu, Dropout, Linear]
    assert Dropout not in [type(layer) for layer in new_layers([8], dropout=0)]
    assert [type(layer) for layer in new_layers([], dropout=0.2)] == [Standardize, Linear]


def test_standardisation_is_the_datas_own() -> None:
    tensors = initial_tensors(EMBEDDINGS, [], 1, seed=0)
    standardized = (EMBEDDINGS - tensors["standardize.mean"]) / tensors["standardize.std"]
    np.testing.assert_allclose(standardized.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(standardized.std(axis=0), 1, atol=1e-5)


def test_a_constant_column_stays_finite() -> None:
    constant = EMBEDDINGS.copy()
    constant[:, 2] = 7
    head = head_from_layers(new_layers([], 0), initial_tensors(constant, [], 1, seed=0))
    assert np.isfinite(scores_of(head, constant)).all()


def test_standardisation_is_not_trained() -> None:
    head = head_from_layers(new_layers([], 0), initial_tensors(EMBEDDINGS, [], 1, seed=0))
    assert [name for name, _ in head.named_parameters()] == ["1.weight", "1.bias"]


def test_dropout_is_off_when_scoring() -> None:
    head = head_from_layers(new_layers([16], 0.9), initial_tensors(EMBEDDINGS, [16], 1, seed=0))
    head.train()
    torch.manual_seed(0)
    np.testing.assert_array_equal(scores_of(head, EMBEDDINGS), scores_of(head, EMBEDDINGS))
