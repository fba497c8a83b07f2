from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from recipes.schema import Fit
from training.errors import StepError
from training.head import head_from_layers, initial_tensors, new_layers, scores_of, tensors_of
from training.optimize import Examples, optimize, positive_weight

RNG = np.random.default_rng(0)
LABELS = np.arange(200) % 2
EMBEDDINGS = (RNG.normal(size=(200, 8)) + LABELS[:, None] * 0.5).astype(np.float32)
TRAIN = Examples.from_arrays(EMBEDDINGS[:120], LABELS[:120], "cpu")
VALIDATION = Examples.from_arrays(EMBEDDINGS[120:], LABELS[120:], "cpu")


def _head(fit: Fit) -> nn.Sequential:
    tensors = initial_tensors(EMBEDDINGS[:120], fit.hidden_sizes, 1, fit.seed)
    return head_from_layers(new_layers(fit.hidden_sizes, fit.dropout), tensors)


def _validation_loss(head: nn.Module) -> float:
    loss_of = nn.BCEWithLogitsLoss(pos_weight=positive_weight(TRAIN.label))
    with torch.inference_mode():
        return float(loss_of(head(VALIDATION.embedding), VALIDATION.label))


def test_the_best_epoch_is_kept() -> None:
    fit = Fit(hidden_sizes=[64], learning_rate=0.02, max_epochs=60, patience=60, dropout=0.3)
    head = _head(fit)
    curve = optimize(head, TRAIN, VALIDATION, fit)
    assert curve.best_epoch < 40  # it overfits afterwards, so this is not simply the last one
    assert curve.validation[-1] > curve.validation[curve.best_epoch]
    assert not head.training
    assert _validation_loss(head) == pytest.approx(min(curve.validation), rel=1e-6)


def test_training_stops_when_patience_is_out() -> None:
    fit = Fit(hidden_sizes=[64], learning_rate=0.02, max_epochs=500, patience=7)
    curve = optimize(_head(fit), TRAIN, VALIDATION, fit)
    assert len(curve.validation) == len(curve.train) == curve.best_epoch + 1 + 7


def test_training_stops_at_max_epochs() -> None:
    fit = Fit(max_epochs=3)
    assert len(optimize(_head(fit), TRAIN, VALIDATION, fit).train) == 3


def test_seeded_runs_are_equal() -> None:
    def trained(seed: int) -> dict[str, np.ndarray]:
        fit = Fit(hidden_sizes=[16], max_epochs=5, batch_size=32, seed=seed)
        head = _head(fit)
        optimize(head, TRAIN, VALIDATION, fit)
        return tensors_of(head, new_layers(fit.hidden_sizes, fit.dropout))

    first, again, other = trained(1), trained(1), trained(2)
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not np.array_equal(first["linear_0.weight"], other["linear_0.weight"])


def test_it_learns() -> None:
    fit = Fit(learning_rate=0.02)
    head = _head(fit)
    optimize(head, TRAIN, VALIDATION, fit)
    scores = scores_of(head, EMBEDDINGS[120:])[:, 0]
    assert ((scores >= 0.5) == LABELS[120:]).mean() > 0.65


def test_rare_positives_weigh_as_much_as_common_negatives() -> None:
    labels = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]])
    assert positive_weight(labels).tolist() == pytest.approx([3, 1 / 3])


def test_an_exploding_loss_is_refused_with_the_learning_rate() -> None:
    fit = Fit(learning_rate=1e30, hidden_sizes=[8, 8], max_epochs=50, patience=50)
    with pytest.raises(StepError, match=r"lower fit\.learning_rate \(now 1e\+30\)"):
        optimize(_head(fit), TRAIN, VALIDATION, fit)
