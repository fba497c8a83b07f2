"""What a search tries: settings drawn by Optuna from the recipe's ranges, and the `fit` section that they make."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from recipes.head_section import Between, Fit, Head, Loss, Search
from training.losses import LOSSES

if TYPE_CHECKING:
    from optuna import Trial

_LOGARITHMIC = ("hidden_size", "learning_rate", "weight_decay")
_INTEGERS = ("warmup_epochs", "max_epochs", "batch_size")
_PATIENCE = 8
"""Epochs without a better loss after which a trial ends; a recipe's own is taken where it is less."""
_NUMBERS = ("input_dropout", "learning_rate", "weight_decay")


def suggested_fit(trial: Trial, head: Head, search: Search) -> Fit:
    """Draw one value of each setting; what the search does not name stays as the recipe's `fit` has it."""
    depth = _integer(trial, "hidden_layers", search.hidden_layers)
    settings: dict[str, Any] = {name: _integer(trial, name, getattr(search, name)) for name in _INTEGERS}
    settings |= {name: _number(trial, name, getattr(search, name)) for name in _NUMBERS}
    settings["hidden_sizes"] = [_integer(trial, "hidden_size", search.hidden_size, f"_{at}") for at in range(depth)]
    if depth:
        settings["output_dropout"] = _number(trial, "output_dropout", search.output_dropout)
    if depth > 1:
        settings["dropout"] = _number(trial, "dropout", search.dropout)
    settings["patience"] = min(head.fit.patience, _PATIENCE)
    settings["loss"] = _chosen(trial, "loss", losses_of(head, search))
    return fit_with(head.fit, settings)


def losses_of(head: Head, search: Search) -> list[Loss]:
    """The losses that a search tries."""
    if search.loss is None:
        return LOSSES[head.task] if head.is_graded else [head.fit.loss or LOSSES[head.task][0]]
    return search.loss if isinstance(search.loss, list) else [search.loss]


def fit_with(fit: Fit, settings: dict[str, Any]) -> Fit:
    """The recipe's `fit` with other settings, trained in steps, as a search trains."""
    own = fit.model_dump(exclude_unset=True)
    optimizer = "adam" if own.get("optimizer") == "adam" else "adamw"
    return Fit.model_validate(own | {"architecture": "mlp", "optimizer": optimizer} | settings)


def _integer(trial: Trial, name: str, choice: Any, number: str = "") -> int:
    if not isinstance(choice, Between):
        return int(_chosen(trial, name + number, choice))
    low, high = int(choice.low), int(choice.high)
    return trial.suggest_int(name + number, low, high, log=name in _LOGARITHMIC)


def _number(trial: Trial, name: str, choice: Any) -> float:
    if not isinstance(choice, Between):
        return float(_chosen(trial, name, choice))
    return trial.suggest_float(name, choice.low, choice.high, log=name in _LOGARITHMIC)


def _chosen(trial: Trial, name: str, choice: Any) -> Any:
    """One of several values; a single one is no choice, and no parameter of the study."""
    values = choice if isinstance(choice, list) else [choice]
    return values[0] if len(values) == 1 else trial.suggest_categorical(name, values)
