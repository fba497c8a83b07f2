"""The last layer of the image classifier that an encoder is of: what build.encoder hands to training.import_classifier.

One safetensors file beside the encoder's, whose header holds the description.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy
from pydantic import Field, ValidationError

from common.manifest import EncoderManifest, ManifestError, WeightsSource, sha256_of
from common.manifest_parts import Part

FILE = "classifier.safetensors"


class LayerDescription(Part):
    """The classes of a classifier's outputs, and where it came from."""

    library: str
    labels: list[str] | None = Field(default=None)
    """The name of each output in the model's config; None where it has none."""
    multilabel: bool | None = Field(default=None)
    """True of outputs that were trained with a sigmoid each, False with a softmax; None where the config is silent."""
    source: WeightsSource


@dataclass(frozen=True)
class ClassifierLayer:
    """The layer as trained, with the whole model's logits of the verification's pictures."""

    description: LayerDescription
    weight: np.ndarray  # (classes, embed_dim) float32
    bias: np.ndarray  # (classes,) float32
    logits: np.ndarray  # (pictures, classes) float32, by the model's library

    @property
    def classes(self) -> int:
        return len(self.bias)

    def to_bytes(self) -> bytes:
        """The contents of the file."""
        tensors = {name: np.ascontiguousarray(getattr(self, name)) for name in ("weight", "bias", "logits")}
        return safetensors.numpy.save(tensors, {"description": self.description.model_dump_json()})


def read_classifier_layer(folder: Path, encoder: EncoderManifest) -> ClassifierLayer:
    """The layer beside an fp32 encoder.

    Raises:
        ManifestError: the encoder is of no classifier, or the file is missing or another.
    """
    path, remedy = folder / FILE, "make it with: python -m build.encoder --recipe RECIPE"
    if encoder.classifier_sha256 is None:
        raise ManifestError(
            f"{folder}: the encoder is of no image classifier, it has no last layer to import; {remedy}"
        )
    if not path.is_file() or sha256_of(path) != encoder.classifier_sha256:
        raise ManifestError(f"{path}: missing, or not the file that encoder.json describes; {remedy}")
    try:
        with safetensors.safe_open(path, "numpy") as file:
            description = LayerDescription.model_validate_json((file.metadata() or {}).get("description", ""))
            return ClassifierLayer(description, *(file.get_tensor(name) for name in ("weight", "bias", "logits")))
    except (safetensors.SafetensorError, ValidationError) as error:
        raise ManifestError(f"{path}: not readable ({error}); {remedy}") from error
