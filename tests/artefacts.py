"""Artefacts without training: heads with seeded random weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from common.head_figures import head_metrics
from common.head_training import HeadTraining
from common.manifest import (
    EncoderManifest,
    HeadManifest,
    Linear,
    Preprocessing,
    Relu,
    Tensor,
    Threshold,
    sha256_of,
    write_manifest,
)
from recipes.head_section import Task


def write_head(
    folder: Path,
    encoder: EncoderManifest,
    class_names: list[str],
    *,
    name: str = "demo",
    hidden: int = 16,
    seed: int = 0,
    thresholds: tuple[float, ...] = (0.5,),
    task: Task = "binary",
    notice: str | None = None,
    deviation: bool = False,
) -> HeadManifest:
    """Write head.safetensors and head.json of a two-layer head with random weights."""
    rng = np.random.default_rng(seed)
    weights = {
        "0.weight": rng.standard_normal((hidden, encoder.embed_dim)).astype(np.float32),
        "0.bias": rng.standard_normal(hidden).astype(np.float32),
        "1.weight": rng.standard_normal((1 + deviation, hidden)).astype(np.float32),
        "1.bias": np.zeros(1 + deviation, np.float32),
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "head.safetensors")
    manifest = HeadManifest(
        name=name,
        recipe={},
        notice=notice,
        encoder=encoder.fingerprint(),
        task=task,
        labels=class_names[1:] if task == "binary" else class_names,
        class_names=class_names,
        layers=[Linear(weight="0.weight", bias="0.bias"), Relu(), Linear(weight="1.weight", bias="1.bias")],
        activation="none" if deviation else "sigmoid",
        calibrated=False,
        deviation=deviation,
        thresholds=[[Threshold(value=value, operating_point="fixed") for value in thresholds]],
        weights_sha256=sha256_of(folder / "head.safetensors"),
        metrics=head_metrics({}),
        training=HeadTraining(),
        versions={},
    )
    write_manifest(manifest, folder / "head.json")
    return manifest


def encoder_manifest(**changes) -> EncoderManifest:
    """An encoder.json as ViT-B-32's build would write it, without the weights."""
    fields = {
        "id": "vit-b-32-quickgelu-openai",
        "recipe": {},
        "weights_sha256": "a" * 64,
        "source_sha256": [None],
        "onnx_sha256": "b" * 64,
        "input": Tensor(name="pixels", dtype="UINT8", dims=[224, 224, 3]),
        "output": Tensor(name="embedding", dtype="FP32", dims=[512]),
        "preprocessing": [
            Preprocessing(
                image_size=224,
                resize_mode="shortest",
                interpolation="bicubic",
                mean=(0.48145466, 0.4578275, 0.40821073),
                std=(0.26862954, 0.26130258, 0.27577711),
            )
        ],
        "normalize": True,
        "precision": "fp32",
        "parity": {},
        "versions": {},
    }
    return EncoderManifest.model_validate(fields | changes)
