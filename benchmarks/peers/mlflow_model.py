"""open_clip and torch as an MLflow pyfunc model: rows with an image in base64 → their scores.

    python -m benchmarks.peers.mlflow_model FOLDER ViT-B-32-quickgelu weights.pt head.npz
    mlflow models serve --model-uri FOLDER --env-manager local

The first command writes the model, in MLflow's environment; the second runs this file again.
"""

from __future__ import annotations

import base64
import sys
from typing import Any

import mlflow.pyfunc
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel

from benchmarks.peers.open_clip_classifier import Classifier


class ImageScore(PythonModel):
    def load_context(self, context: Any) -> None:
        artifacts = context.artifacts
        self.classifier = Classifier(context.model_config["model"], artifacts["weights"], artifacts["head"])

    def predict(self, context, model_input, params=None):  # pyright: ignore[reportIncompatibleMethodOverride] (MLflow's own says None)
        """A data frame with a column `image` → one score a row."""
        return [self.classifier.score(base64.b64decode(image)) for image in model_input["image"]]


def save(folder: str, model: str, weights: str, head: str) -> None:
    mlflow.pyfunc.save_model(
        folder,
        python_model=__file__,
        artifacts={"weights": weights, "head": head},
        model_config={"model": model},
        pip_requirements=["mlflow", "open_clip_torch"],
    )


if __name__ == "__main__":
    save(*sys.argv[1:])
else:
    set_model(ImageScore())
