"""The weights of a head from words: texts' embeddings as the rows of one linear layer.

As the library's own zero-shot classifier has it: the cosines of a picture with each class's texts, times the
checkpoint's logit scale, into a softmax. A binary head has the difference of its two classes, which a sigmoid takes to
the softmax's share of the second; a label of several the difference from its negatives, or from neutral texts. A model
with a bias (SigLIP) was trained with a sigmoid: its classes and labels are cosine · scale + bias, each by itself.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from common.head_training import Words
from common.manifest import Layer, Linear
from common.text_embeddings import TextEmbeddings
from recipes.head_section import Head
from recipes.prompts import NEUTRAL_TEXTS, negatives_of, texts_of
from training.calibrate import Activation, held_temperature

_WEIGHT, _BIAS = "linear_0.weight", "linear_0.bias"


@dataclass(frozen=True)
class TextWeights:
    """One linear layer on the embedding, and what makes scores of its logits."""

    weight: np.ndarray  # (L, embed_dim) float64
    bias: np.ndarray  # (L,) float64
    activation: Activation
    words: Words

    @property
    def layers(self) -> list[Layer]:
        return [Linear(weight=_WEIGHT, bias=_BIAS)]

    @property
    def tensors(self) -> dict[str, np.ndarray]:
        """The tensors of `layers`."""
        return {_WEIGHT: self.weight.astype(np.float32), _BIAS: self.bias.astype(np.float32)}

    def standardized(self, mean: np.ndarray, std: np.ndarray) -> dict[str, np.ndarray]:
        """The tensors of the linear layer after a standardisation of the embedding, (embed_dim,) each."""
        tensors = {_WEIGHT: self.weight * std, _BIAS: self.bias + self.weight @ mean}
        return {name: array.astype(np.float32) for name, array in tensors.items()}

    def tempered(self, embedding: np.ndarray, targets: np.ndarray) -> TextWeights:
        """The same texts, as sure of themselves as labelled pictures show, where a row's worth holds them as they are.

        Args:
            embedding: (n, embed_dim).
            targets: (n, L) 0 or 1.
        """
        scale, _ = held_temperature(self.logits(embedding), targets, self.activation)
        return replace(self, weight=self.weight * scale, bias=self.bias * scale)

    def logits(self, embedding: np.ndarray) -> np.ndarray:
        """(n, embed_dim) → (n, L) float64."""
        return embedding.astype(np.float64) @ self.weight.T + self.bias


def text_weights(head: Head, texts: TextEmbeddings) -> TextWeights:
    """The weights that the head's texts make.

    Raises:
        ManifestError: a text of the head is not among those that were embedded.
    """
    scale, bias = texts.description.logit_scale, texts.description.logit_bias
    sentences, negatives = texts_of(head), negatives_of(head)
    classes = {name: texts.mean_of(part) for name, part in sentences.items()}
    neutral: list[str] = []
    if head.task == "binary":
        low, high = classes.values()
        rows, offsets = [high - low], [0.0]
    elif head.task == "multiclass" or (bias is not None and not negatives):
        rows, offsets = list(classes.values()), [bias or 0.0] * len(classes)
    else:
        rows, offsets = [], []
        for name, row in classes.items():
            against = negatives.get(name)
            if against is None and bias is None:
                against = neutral = list(NEUTRAL_TEXTS)
            rows.append(row if against is None else row - texts.mean_of(against))
            offsets.append((bias or 0.0) if against is None else 0.0)
    used = {text for part in (*sentences.values(), *negatives.values(), neutral) for text in part}
    words = Words(
        texts=sentences,
        negatives=negatives,
        neutral=neutral,
        cut=[text for text in texts.description.cut if text in used],
        logit_scale=scale,
        logit_bias=bias,
        weights="texts",
    )
    softmax = head.task == "multiclass" and bias is None
    return TextWeights(scale * np.stack(rows), np.array(offsets), "softmax" if softmax else "sigmoid", words)
