"""Embeddings of two classes whose best possible AUROC is known, with wrong labels and copies at known rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import chi, norm


@dataclass(frozen=True)
class TwoClasses:
    """Draw n rows on the unit sphere."""

    embedding: np.ndarray
    """(n, D) float32 of length 1."""
    label: np.ndarray
    """(n,) int64 0 or 1 as given, wrong where `flipped` or `copied`."""
    true_label: np.ndarray
    """(n,) int64 0 or 1: the class the row was drawn from."""
    flipped: np.ndarray
    """(n,) bool: the label was turned over."""
    copy_of: np.ndarray
    """(n,) int64: the row of which this one is a near-duplicate with the other label, or -1."""
    bayes_auroc: float
    """Of the best score there is, against `true_label`."""

    @property
    def sha256(self) -> list[str]:
        """A different content for each row."""
        return [f"{row:064x}" for row in range(len(self.label))]


def two_classes(
    count: int,
    embed_dim: int = 128,
    separation: float = 2.0,
    flipped: float = 0.05,
    copied: float = 0.02,
    copy_cosine: float = 0.985,
    seed: int = 0,
) -> TwoClasses:
    """Draw N(±separation·e, I) for a random direction e, put it on the sphere, then spoil it.

    Args:
        count: rows, half of each class before spoiling.
        embed_dim: D.
        separation: half the distance of the classes' means, in standard deviations.
        flipped: share of the rows whose label is turned over.
        copied: share of the rows that are replaced by a near-duplicate of another row, with the other label.
        copy_cosine: of a near-duplicate and its original.
        seed: same seed, same rows.
    """
    rng = np.random.default_rng(seed)
    true_label = rng.permutation(np.arange(count) % 2)
    direction = _unit(rng.normal(size=embed_dim))
    embedding = _unit(rng.normal(size=(count, embed_dim)) + np.outer((2 * true_label - 1) * separation, direction))
    order = rng.permutation(count)
    copies, originals, wrong = np.split(order, np.cumsum([round(count * copied)] * 2))
    wrong = wrong[: round(count * flipped)]
    embedding[copies] = _near(embedding[originals], copy_cosine, rng)
    true_label[copies] = true_label[originals]
    label = true_label.copy()
    label[copies] = 1 - label[copies]
    label[wrong] = 1 - label[wrong]
    copy_of = np.full(count, -1)
    copy_of[copies] = originals
    is_flipped = np.zeros(count, bool)
    is_flipped[wrong] = True
    return TwoClasses(
        embedding.astype(np.float32), label, true_label, is_flipped, copy_of, bayes_auroc(embed_dim, separation)
    )


def bayes_auroc(embed_dim: int, separation: float) -> float:
    """AUROC of the best score, the cosine with the direction between the means.

    It orders rows as `z / r` does, z ~ N(±separation, 1) along the direction and r ~ χ(D - 1) across it; so a
    positive's is the greater with probability Φ(separation·(r₁ + r₂) / √(r₁² + r₂²)), averaged over r₁ and r₂.
    """
    across = chi.ppf((np.arange(400) + 0.5) / 400, embed_dim - 1)
    one, other = np.meshgrid(across, across)
    return float(norm.cdf(separation * (one + other) / np.hypot(one, other)).mean())


def _near(rows: np.ndarray, cosine: float, rng: np.random.Generator) -> np.ndarray:
    """Unit vectors at this cosine to the rows."""
    noise = rng.normal(size=rows.shape)
    sideways = _unit(noise - (noise * rows).sum(axis=1, keepdims=True) * rows)
    return cosine * rows + np.sqrt(1 - cosine**2) * sideways


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
