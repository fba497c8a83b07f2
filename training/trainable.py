"""Heads to train and the rows to train them on, as the recipe wants them: in memory, in standardised grades."""

from __future__ import annotations

import numpy as np
from torch import nn

from recipes.head_section import Head, Loss
from training.head import head_from_layers, hidden_layers, initial_tensors, new_layers
from training.labelled import Labelled, choices_among, targets_of
from training.merge import with_merge
from training.optimize import Examples
from training.text_weights import TextWeights
from training.units import mean_and_spread


class Trainables:
    """Makes new heads and examples of one recipe's head from rows of its data."""

    def __init__(
        self,
        data: Labelled,
        head: Head,
        loss: Loss,
        rows: np.ndarray,
        device: str,
        merged: int = 1,
        words: TextWeights | None = None,
    ) -> None:
        """
        Args:
            data: all labelled rows.
            head: of the recipe.
            loss: that is minimised.
            rows: those whose grades say what is standard.
            device: torch's name of it.
            merged: layers of the encoder that are summed, 1 for the embedding as it is.
            words: weights of the head's texts, where its training starts; by default at 0.
        """
        self._words = words
        self._data, self._head, self._device, self._merged = data, head, device, merged
        self._loss: Loss = loss
        self.mean, self.std = mean_and_spread(head, data.label[rows])

    def head(self, rows: np.ndarray) -> nn.Sequential:
        """A new head, standardised by these rows."""
        fit, hidden = self._head.fit, hidden_layers(self._head.fit)
        outputs = 2 if self._loss == "nll" else len(self._head.labels)
        tensors = initial_tensors(self._data.embedding[rows], hidden, outputs, fit.seed, self._merged)
        if self._words is not None:
            targets = targets_of(self._data.label[rows], self._head.task, outputs)
            texts = self._words.tempered(self._data.embedding[rows], targets)
            tensors |= texts.standardized(tensors["standardize.mean"], tensors["standardize.std"])
        module = head_from_layers(new_layers(hidden, fit.input_dropout), tensors)
        return (module if self._merged == 1 else with_merge(module, self._merged)).to(self._device)

    def examples(self, rows: np.ndarray) -> Examples:
        """Ascending rows with their labels and, where the order is learned, the choices between them."""
        label = self._data.label[rows]
        if self._head.is_graded:
            label = (label - self.mean) / self.std
        return Examples.from_arrays(self._data.embedding[rows], label, self._device, self._loss, self._choices(rows))

    def choice_count(self, rows: np.ndarray) -> int:
        """Choices between the rows that are trained on."""
        choices = self._choices(rows)
        return 0 if choices is None else len(choices)

    def _choices(self, rows: np.ndarray) -> np.ndarray | None:
        return choices_among(self._data.choices, rows) if self._loss == "ab" else None
