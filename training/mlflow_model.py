"""A head as an MLflow model: embedding rows in, score and decision out. Loaded by MLflow, not by clipsieve.

This file travels inside the registered model (`code/`) beside head.json and head.safetensors (`data/`), so that
`mlflow models serve` needs neither this repository nor torch: numpy and safetensors do. It is therefore the one
module of training that imports nothing local; tests hold its answers against torch's.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file


class ServedHead:
    """head.json and head.safetensors in numpy."""

    def __init__(self, folder: Path) -> None:
        self._manifest = json.loads((folder / "head.json").read_text(encoding="utf-8"))
        self._tensors = load_file(folder / "head.safetensors")

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> list[dict[str, Any]]:
        """(n, embed_dim) rows, an array or a data frame → for each row the score and decision of each label."""
        scores = self.scores(np.asarray(model_input, np.float32))
        thresholds = [[point["value"] for point in row] for row in self._manifest["thresholds"]]
        decisions = [(scores[:, [at]] >= np.array([row])).sum(axis=1) for at, row in enumerate(thresholds)]
        return [
            {
                "score": dict(zip(self._manifest["labels"], row.tolist(), strict=True)),
                "decision": dict(zip(self._manifest["labels"], map(int, decision), strict=True)),
            }
            for row, decision in zip(scores, np.stack(decisions, axis=1), strict=True)
        ]

    def scores(self, embeddings: np.ndarray) -> np.ndarray:
        """(n, embed_dim) float32 → (n, L) float64."""
        width = self._manifest["encoder"]["embed_dim"]
        if embeddings.ndim != 2 or embeddings.shape[1] != width:
            raise ValueError(f"expected rows of {width} values, found an array of shape {embeddings.shape}")
        if not np.isfinite(embeddings).all():
            raise ValueError("the embeddings hold values that are not finite")
        values = embeddings
        for layer in self._manifest["layers"]:
            values = self._after(layer, values)
        return self._activated(values[:, : len(self._manifest["labels"])].astype(np.float64))  # without a deviation

    def _after(self, layer: dict[str, Any], x: np.ndarray) -> np.ndarray:
        if layer["type"] == "linear":
            return x @ self._tensors[layer["weight"]].T + self._tensors[layer["bias"]]
        if layer["type"] == "standardize":
            return (x - self._tensors[layer["mean"]]) / self._tensors[layer["std"]]
        if layer["type"] == "log_sum_exp":
            return np.stack([np.logaddexp.reduce(x[:, group], axis=1) for group in layer["groups"]], axis=1)
        if layer["type"] == "relu":
            return np.maximum(x, 0)
        if layer["type"] == "dropout":
            return x
        raise ValueError(f"a layer of type {layer['type']} cannot be served by MLflow")

    def _activated(self, logits: np.ndarray) -> np.ndarray:
        calibration, prevalence = self._manifest["calibration"], self._manifest["prevalence"]
        if calibration is not None:
            logits = logits * np.array(calibration["scale"]) + np.array(calibration["offset"])
        if prevalence is not None:
            logits = logits + _log_odds(prevalence["target"]) - _log_odds(prevalence["training"])
        if self._manifest["activation"] == "softmax":
            powers = np.exp(logits - logits.max(axis=1, keepdims=True))
            return powers / powers.sum(axis=1, keepdims=True)
        return 1 / (1 + np.exp(-np.clip(logits, -500, 500))) if self._manifest["activation"] == "sigmoid" else logits


def _log_odds(share: float) -> float:
    return float(np.log(share / (1 - share)))


def _load_pyfunc(path: str) -> ServedHead:
    """Load the model for MLflow; `path` is the model's `data` folder."""
    return ServedHead(Path(path))
