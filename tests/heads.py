"""Built heads on one encoder, whose scores tell them apart."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnxruntime
from artefacts import write_head

from build.head import build_head
from common.manifest import EncoderManifest, HeadManifest, ScoreDistribution, write_manifest


class BuiltHead(NamedTuple):
    """A folder with head.json, head.safetensors and model.onnx."""

    folder: Path
    manifest: HeadManifest

    @property
    def revision(self) -> int:
        return self.manifest.revision

    def score(self, embedding: np.ndarray) -> float:
        """Score one (D,) embedding with onnxruntime."""
        session = onnxruntime.InferenceSession(str(self.folder / "model.onnx"), providers=["CPUExecutionProvider"])
        return float(np.asarray(session.run(["score"], {"embedding": embedding[None]})[0])[0, 0])


def built_head(
    folder: Path, encoder: EncoderManifest, class_names: list[str], seed: int, threshold: float
) -> BuiltHead:
    """A binary head named `demo`, with a made-up distribution of its scores in training."""
    manifest = write_head(folder, encoder, class_names, seed=seed, thresholds=(threshold,))
    distribution = ScoreDistribution(images=10, edges=[threshold], ratios=[[0.5]])
    manifest = manifest.model_copy(update={"score_distribution": distribution})
    write_manifest(manifest, folder / "head.json")
    build_head(folder, 18)
    return BuiltHead(folder, manifest)
