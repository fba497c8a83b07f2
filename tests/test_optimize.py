from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from recipes.head_section import Fit
from training.errors import StepError
from training.head import head_from_layers, hidden_layers, initial_tensors, logits_of, new_layers, tensors_of
from training.optimize import (
    AdamW,
    Average,
    Examples,
    Fold,
    fit_as_chosen,
    inverse_frequency,
    learning_rate_at,
    optimize,
    optimize_folds,
    positive_weight,
)

RNG = np.random.default_rng(0)
LABELS = np.arange(200) % 2
EMBEDDINGS = (RNG.normal(size=(200, 8)) + LABELS[:, None] * 0.5).astype(np.float32)
TRAIN = Examples.from_arrays(EMBEDDINGS[:120], LABELS[:120], "cpu")
VALIDATION = Examples.from_arrays(EMBEDDINGS[120:], LABELS[120:], "cpu")


def _head(fit: Fit) -> nn.Sequential:
    hidden = hidden_layers(fit)
    return head_from_layers(new_layers(hidden), initial_tensors(EMBEDDINGS[:120], hidden, 1, fit.seed))


def _validation_loss(head: nn.Module) -> float:
    loss_of = nn.BCEWithLogitsLoss()
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


def test_of_many_steps_an_epoch_the_mean_is_measured_and_kept() -> None:
    fit = Fit(hidden_sizes=[64], learning_rate=0.02, max_epochs=5, patience=5, batch_size=3, dropout=0.3)
    head, last = _head(fit), []
    fold = Fold(head, TRAIN, VALIDATION)
    curve = optimize_folds([fold], fit, progress=lambda *_: last.append(_validation_loss(head)))
    assert np.mean(curve.validation) < np.mean(last)  # of the weights after each epoch's last step, which train on
    assert _validation_loss(head) == pytest.approx(min(curve.validation), rel=1e-6)


def _averaged(steps_per_epoch: int, values: list[float]) -> float:
    """The mean after an epoch whose steps leave these weights."""
    weight = nn.Parameter(torch.zeros(3))
    average = Average([weight], steps_per_epoch)
    for _ in range(2):  # the second epoch forgets the first
        for number, value in enumerate(values):
            weight.data.fill_(value)
            average.step(number)
    with average.in_place():
        mean = float(weight[0].detach())
    assert float(weight[0].detach()) == values[-1]
    return mean


def test_the_mean_is_of_every_eighth_of_an_epochs_last_forty_steps() -> None:
    values = [float(number) for number in range(100)]
    assert _averaged(100, values) == pytest.approx(np.mean([99, 91, 83, 75, 67]))
    assert _averaged(40, values[:40]) == pytest.approx(np.mean([39, 31, 23, 15, 7]))


def test_of_fewer_steps_an_epoch_the_last_weights_are_kept() -> None:
    assert _averaged(39, [float(number) for number in range(39)]) == 38


def test_training_stops_when_patience_is_out() -> None:
    fit = Fit(hidden_sizes=[64], learning_rate=0.02, max_epochs=500, patience=7)
    curve = optimize(_head(fit), TRAIN, VALIDATION, fit)
    assert len(curve.validation) == len(curve.train) == curve.best_epoch + 1 + 7


def test_training_stops_at_max_epochs() -> None:
    fit = Fit(max_epochs=3, optimizer="adamw")
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


def test_one_layer_is_solved_as_scikit_learn_does() -> None:
    from sklearn.linear_model import LogisticRegression

    fit = Fit(optimizer="lbfgs", weight_decay=0.02)
    head = _head(fit)
    curve = optimize(head, TRAIN, VALIDATION, fit)
    assert (len(curve.train), curve.weight_decay) == (1, [0.02])
    rows = EMBEDDINGS[:120]
    standard = (EMBEDDINGS - rows.mean(axis=0)) / rows.std(axis=0)
    known = LogisticRegression(C=1 / (0.02 * 120), tol=1e-8).fit(standard[:120], LABELS[:120])
    assert logits_of(head, EMBEDDINGS)[:, 0] == pytest.approx(known.decision_function(standard), abs=0.01)


def test_the_weight_decay_of_the_least_held_out_loss_is_kept() -> None:
    fit = Fit()
    assert fit.optimizer == "lbfgs"
    head = _head(fit)
    curve = optimize(head, TRAIN, VALIDATION, fit)
    assert curve.weight_decay == sorted(curve.weight_decay, reverse=True)
    assert len(curve.validation) == curve.best_epoch + 1 + 3, "stops soon after the best"
    assert _validation_loss(head) == pytest.approx(min(curve.validation), rel=1e-5)


@pytest.mark.parametrize(
    ("settings", "optimizer"),
    [({}, "lbfgs"), ({"max_epochs": 9}, "lbfgs"), ({"hidden_sizes": [4]}, "adamw"), ({"patience": 3}, "adamw")],
)
def test_the_default_optimizer_follows_from_the_recipe(settings: dict, optimizer: str) -> None:
    fit = Fit(**settings)
    assert fit.optimizer == optimizer
    assert Fit.model_validate(fit.model_dump()) == fit


def test_products_in_bfloat16_learn_as_those_in_float32_do() -> None:
    fit = Fit(hidden_sizes=[64], learning_rate=0.01, max_epochs=12, patience=12, dropout=0.3)
    losses = {}
    for precision in ("fp32", "bf16"):
        head = _head(fit)
        curve = optimize(head, TRAIN, VALIDATION, fit.model_copy(update={"precision": precision}))
        losses[precision] = min(curve.validation)
        assert {parameter.dtype for parameter in head.parameters()} == {torch.float32}
        assert _validation_loss(head) == pytest.approx(losses[precision], rel=1e-6)
    assert losses["bf16"] != losses["fp32"]
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.02)


def test_lbfgs_is_refused_in_bfloat16() -> None:
    with pytest.raises(ValueError, match="for precision bf16 take adamw or adam"):
        Fit(precision="bf16")


def test_lbfgs_is_refused_for_hidden_layers() -> None:
    with pytest.raises(ValueError, match="lbfgs solves one linear layer"):
        Fit(optimizer="lbfgs", hidden_sizes=[4])


@pytest.mark.parametrize(
    "fit", [Fit(), Fit(hidden_sizes=[16], dropout=0, learning_rate=0.02, max_epochs=40, patience=5)]
)
def test_folds_stop_together_and_the_last_fit_is_as_long(fit: Fit) -> None:
    folds = [Fold(_head(fit), TRAIN, VALIDATION), Fold(_head(fit), VALIDATION, TRAIN)]
    seen = []
    curve = optimize_folds(folds, fit, progress=lambda done, most, losses: seen.append((done, most)))
    assert [done for done, _ in seen] == list(range(1, len(curve.train) + 1))
    head = _head(fit)
    fit_as_chosen(head, TRAIN, fit, "bce", curve)
    assert logits_of(head, EMBEDDINGS) == pytest.approx(logits_of(folds[0].head, EMBEDDINGS), abs=0.02)  # type: ignore[arg-type]


def test_training_imports_no_compiler() -> None:
    """torch.optim imports torch's compiler at its first step, which takes seconds."""
    code = (
        "import sys, numpy as np\n"
        "from recipes.head_section import Fit\n"
        "from training.head import head_from_layers, hidden_layers, initial_tensors, new_layers\n"
        "from training.optimize import Examples, optimize\n"
        "x, y = np.random.default_rng(0).normal(size=(20, 4)).astype('float32'), np.arange(20) % 2\n"
        "part = Examples.from_arrays(x, y, 'cpu')\n"
        "for fit in (Fit(max_epochs=2), Fit(hidden_sizes=[3], max_epochs=2)):\n"
        "    hidden = hidden_layers(fit)\n"
        "    optimize(head_from_layers(new_layers(hidden), initial_tensors(x, hidden, 1, 0)), part, part, fit)\n"
        "sys.exit('torch._dynamo' in sys.modules)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_a_step_is_torchs(optimizer: str) -> None:
    generator = torch.Generator().manual_seed(0)
    ours, theirs = ([nn.Parameter(torch.ones(3, 2)), nn.Parameter(torch.zeros(4))] for _ in range(2))
    fit = Fit(optimizer=optimizer, weight_decay=0.1)  # type: ignore[arg-type]
    known = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[optimizer](theirs, lr=0.01, weight_decay=0.1)
    update = AdamW(ours, fit)
    for _ in range(5):
        for mine, yours in zip(ours, theirs, strict=True):
            mine.grad = torch.randn(mine.shape, generator=generator)
            yours.grad = mine.grad.clone()
        update.step(0.01)
        known.step()
    for mine, yours in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, yours)
