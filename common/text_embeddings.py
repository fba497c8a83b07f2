"""Embeddings of texts, by the text tower that belongs to an image encoder: what build.texts hands to training.

One safetensors file, whose header holds the description.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy
from pydantic import ValidationError

from common.manifest import EncoderFingerprint, ManifestError, write_atomically
from common.manifest_parts import Part


class TextsDescription(Part):
    """Texts, the encoder whose pictures they are compared with, and how the library makes logits of cosines."""

    encoder: EncoderFingerprint
    texts: list[str]
    cut: list[str]
    """Texts that are longer than what the tower reads, which never saw their ends."""
    logit_scale: float
    """The checkpoint's factor of the cosines."""
    logit_bias: float | None
    """The checkpoint's summand, of models that were trained with a sigmoid (SigLIP)."""
    versions: dict[str, str]


@dataclass(frozen=True)
class TextEmbeddings:
    """Embedded texts."""

    description: TextsDescription
    embedding: np.ndarray  # (n, embed_dim) float32 of length 1, a row for each of the texts

    def mean_of(self, texts: list[str]) -> np.ndarray:
        """(embed_dim,) float64 of length 1: the direction between the texts, as the library averages templates.

        Raises:
            ManifestError: a text is not among those that were embedded.
        """
        row_of = {text: row for row, text in enumerate(self.description.texts)}
        if missing := [text for text in texts if text not in row_of]:
            raise ManifestError(
                f"text {missing[0]!r} is not embedded, the recipe has changed since; "
                "run: python -m build.texts --recipe RECIPE"
            )
        mean = self.embedding[[row_of[text] for text in texts]].astype(np.float64).mean(axis=0)
        return mean / np.linalg.norm(mean)


def write_texts(texts: TextEmbeddings, path: Path) -> None:
    """Write the file, whole or not at all."""
    header = {"description": texts.description.model_dump_json()}
    write_atomically(path, safetensors.numpy.save({"embedding": np.ascontiguousarray(texts.embedding)}, header))


def read_texts(path: Path) -> TextEmbeddings:
    """Read what `write_texts` wrote.

    Raises:
        ManifestError: it is not there, or not such a file.
    """
    remedy = "run: python -m build.texts --recipe RECIPE"
    if not path.is_file():
        raise ManifestError(f"{path}: not found; {remedy}")
    try:
        with safetensors.safe_open(path, "numpy") as file:
            description = (file.metadata() or {}).get("description", "")
            return TextEmbeddings(TextsDescription.model_validate_json(description), file.get_tensor("embedding"))
    except (safetensors.SafetensorError, ValidationError) as error:
        raise ManifestError(f"{path}: not readable ({error}); {remedy}") from error
