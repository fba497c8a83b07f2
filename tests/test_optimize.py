from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from recipes.schema import Fit
from training.errors import StepError
from training.head import head_from_layers, hidden_layers, initial_tensors, logits_of, new_layers, tensors_of
from training.optimize import Examples, inverse_frequency, learning_rate_at, optimize, positive_weight

RNG = np.random.default_rng(0)
LABELS = np.arange(200) % 2
EMBEDDINGS = (RNG.normal(size=(200, 8)) + LABELS[:, None] * 0.5).astype(np.float32)
TRAIN = Examples.from_arrays(EMBEDDINGS[:120], LABELS[:120], "cpu")
VALIDATION = Examples.from_arrays(EMBEDDINGS[120:], LABELS[120:], "cpu")


def _head(fit: Fit) -> nn.Sequential:
    hidden = hidden_layers(fit)
    return head_from_layers(new_layers(hidden), initial_tensors(EMBEDDINGS[:120], hidden, 1, fit.seed))


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
        return tensors_of(head, new_layers(hidden_layers(fit)))

    first, again, other = trained(1), trained(1), trained(2)
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not np.array_equal(first["linear_0.weight"], other["linear_0.weight"])


def test_it_learns() -> None:
    fit = Fit(learning_rate=0.02)
    head = _head(fit)
    optimize(head, TRAIN, VALIDATION, fit)
    logits = logits_of(head, EMBEDDINGS[120:])[:, 0]
    assert ((logits >= 0) == LABELS[120:]).mean() > 0.65


def test_rare_positives_weigh_as_much_as_common_negatives() -> None:
    labels = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]])
    assert positive_weight(labels).tolist() == pytest.approx([3, 1 / 3])


def test_an_exploding_loss_is_refused_with_the_learning_rate() -> None:
    fit = Fit(learning_rate=1e30, hidden_sizes=[8, 8], max_epochs=50, patience=50)
    with pytest.raises(StepError, match=r"lower fit\.learning_rate \(now 1e\+30\)"):
        optimize(_head(fit), TRAIN, VALIDATION, fit)


def test_every_class_weighs_the_same_whatever_its_share() -> None:
    weights = inverse_frequency(torch.tensor([0, 1, 1, 2, 2, 2]))
    assert weights.tolist() == pytest.approx([2, 1, 2 / 3])


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
@pytest.mark.parametrize("loss", ["bce", "mse"])
def test_losses_and_optimizers_learn(optimizer: str, loss: str) -> None:
    fit = Fit(learning_rate=0.02, max_epochs=20, optimizer=optimizer, warmup_epochs=2, schedule="cosine")  # type: ignore[arg-type]
    curve = optimize(_head(fit), TRAIN, VALIDATION, fit, loss)  # type: ignore[arg-type]
    assert min(curve.validation) < 0.9 * curve.validation[0]


def test_cross_entropy_learns_classes() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(300) % 3
    rows = (rng.normal(size=(300, 8)) + 3 * np.eye(8)[labels]).astype(np.float32)
    fit = Fit(learning_rate=0.05, max_epochs=40)
    head = head_from_layers(new_layers([]), initial_tensors(rows, [], 3, 0))
    examples = Examples.from_arrays(rows, labels, "cpu", "cross_entropy")
    optimize(head, examples, examples, fit, "cross_entropy")
    assert (logits_of(head, rows).argmax(axis=1) == labels).mean() > 0.9


def test_the_learning_rate_warms_up_and_falls() -> None:
    fit = Fit(learning_rate=1.0, warmup_epochs=2, schedule="cosine", max_epochs=10)
    rates = [learning_rate_at(step, 5, fit) for step in range(50)]
    assert rates[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert rates[10] == 1
    assert rates[30] == pytest.approx(0.5)
    assert rates[49] < 0.01
    assert learning_rate_at(49, 5, Fit(learning_rate=1.0)) == 1


def test_the_callers_arrays_are_left_as_they_are() -> None:
    before = EMBEDDINGS.copy()
    optimize(_head(Fit()), TRAIN, VALIDATION, Fit(max_epochs=2))
    np.testing.assert_array_equal(EMBEDDINGS, before)
