from __future__ import annotations

import numpy as np
import pytest
import torch

from common.manifest import Dropout, Linear, Relu, Standardize
from recipes.head_section import Fit
from training.head import (
    Hidden,
    head_from_layers,
    hidden_layers,
    initial_tensors,
    logits_of,
    mean_and_std,
    new_layers,
    tensors_of,
)

EMBEDDINGS = np.random.default_rng(0).normal(3, 2, (50, 6)).astype(np.float32)


def _hidden(sizes: list[int], dropout: float = 0.2) -> list[Hidden]:
    return hidden_layers(Fit(hidden_sizes=sizes, dropout=dropout))


def _by_hand(layers, tensors, x: np.ndarray) -> np.ndarray:
    """The layers in numpy, straight from their docstrings in common.manifest."""
    for layer in layers:
        if isinstance(layer, Linear):
            x = x @ tensors[layer.weight].T + tensors[layer.bias]
        elif isinstance(layer, Standardize):
            x = (x - tensors[layer.mean]) / tensors[layer.std]
        elif isinstance(layer, Relu):
            x = np.maximum(x, 0)
    return x


@pytest.mark.parametrize("hidden_sizes", [[], [5], [7, 4]])
@pytest.mark.parametrize("label_count", [1, 3])
def test_torch_head_equals_the_layers_by_hand(hidden_sizes: list[int], label_count: int) -> None:
    hidden = _hidden(hidden_sizes, dropout=0.5)
    layers = new_layers(hidden)
    tensors = initial_tensors(EMBEDDINGS, hidden, label_count, seed=0)
    scores = logits_of(head_from_layers(layers, tensors), EMBEDDINGS)
    assert scores.shape == (50, label_count)
    np.testing.assert_allclose(scores, _by_hand(layers, tensors, EMBEDDINGS), atol=1e-5)


def test_one_row_keeps_its_batch_dimension() -> None:
    head = head_from_layers(new_layers(_hidden([4], 0.2)), initial_tensors(EMBEDDINGS, _hidden([4]), 1, seed=0))
    assert logits_of(head, EMBEDDINGS[:1]).shape == (1, 1)


def test_tensors_survive_the_round_trip() -> None:
    layers = new_layers(_hidden([5, 3], 0.1))
    tensors = initial_tensors(EMBEDDINGS, _hidden([5, 3]), 1, seed=0)
    back = tensors_of(head_from_layers(layers, tensors), layers)
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(back[name], tensor)


def test_layers_in_order() -> None:
    kinds = [type(layer) for layer in new_layers(_hidden([8], 0.2))]
    assert kinds == [Standardize, Linear, Relu, Dropout, Linear]
    assert Dropout not in [type(layer) for layer in new_layers(_hidden([8], 0))]
    assert [type(layer) for layer in new_layers(_hidden([], 0.2))] == [Standardize, Linear]


def test_standardisation_is_the_datas_own() -> None:
    tensors = initial_tensors(EMBEDDINGS, _hidden([]), 1, seed=0)
    standardized = (EMBEDDINGS - tensors["standardize.mean"]) / tensors["standardize.std"]
    np.testing.assert_allclose(standardized.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(standardized.std(axis=0), 1, atol=1e-5)


def test_a_constant_column_stays_finite() -> None:
    constant = EMBEDDINGS.copy()
    constant[:, 2] = 7
    head = head_from_layers(new_layers(_hidden([], 0)), initial_tensors(constant, _hidden([]), 1, seed=0))
    assert np.isfinite(logits_of(head, constant)).all()


def test_standardisation_is_not_trained() -> None:
    head = head_from_layers(new_layers(_hidden([], 0)), initial_tensors(EMBEDDINGS, _hidden([]), 1, seed=0))
    assert [name for name, _ in head.named_parameters()] == ["1.weight", "1.bias"]


def test_dropout_is_off_when_scoring() -> None:
    head = head_from_layers(new_layers(_hidden([16], 0.9)), initial_tensors(EMBEDDINGS, _hidden([16]), 1, seed=0))
    head.train()
    torch.manual_seed(0)
    np.testing.assert_array_equal(logits_of(head, EMBEDDINGS), logits_of(head, EMBEDDINGS))


def test_the_published_architectures() -> None:
    def widths(architecture: str) -> list[int]:
        layers = new_layers(hidden_layers(Fit(architecture=architecture, hidden_sizes=[3])))  # type: ignore[arg-type]
        tensors = initial_tensors(EMBEDDINGS, hidden_layers(Fit(architecture=architecture)), 1, 0)  # type: ignore[arg-type]
        return [tensors[layer.weight].shape[0] for layer in layers if isinstance(layer, Linear)]

    def kinds(architecture: str) -> str:
        layers = new_layers(hidden_layers(Fit(architecture=architecture)))  # type: ignore[arg-type]
        letters = {Standardize: "s", Linear: "L", Relu: "r", Dropout: "d"}
        return "".join(letters[type(layer)] for layer in layers)

    assert widths("laion-h14") == [1024, 2048, 1024, 256, 128, 16, 1]
    assert kinds("laion-h14") == "s" + "Lrd" * 5 + "LL"
    assert widths("laion-aesthetic") == widths("laion-aesthetic-relu") == [1024, 128, 64, 16, 1]
    assert kinds("laion-aesthetic") == "sLdLdLdLL"
    assert kinds("laion-aesthetic-relu") == "sLrdLrdLrdLrL"


def test_mean_and_std_over_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.head._ROWS_PER_BLOCK", 7)
    mean, std = mean_and_std(EMBEDDINGS)
    np.testing.assert_allclose(mean, EMBEDDINGS.mean(axis=0, dtype=np.float64))
    np.testing.assert_allclose(std, EMBEDDINGS.std(axis=0, dtype=np.float64), rtol=1e-6)
    head = head_from_layers(new_layers([]), initial_tensors(EMBEDDINGS, [], 2, 0))
    assert logits_of(head, EMBEDDINGS).shape == (50, 2)
