"""A head's probe set: embeddings, and what onnxruntime makes of them from the file itself, to hold a server against.

Random unit vectors, and the embeddings of the pictures that the repository's proof has.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime

from common.manifest import HeadManifest
from common.proof import HEAD_TOLERANCE, Proof, ProofHead, Row
from serving.triton_wheel import ServingError

PROBES = 32


@dataclass(frozen=True)
class ProbeSet:
    """Embeddings (N, D) float32 with the scores (N, L) float32 that a head gives them, and what it is."""

    embeddings: np.ndarray
    scores: np.ndarray
    thresholds: list[list[float]]
    """Thresholds of each label."""
    revision: int
    proved: ProofHead
    """The proof's entry for this revision; it has image scores whether or not image_score has the head."""


def probe_set(folder: Path, manifest: HeadManifest, proof: Proof) -> ProbeSet:
    """Run `folder`/model.onnx on random unit vectors, and on the reference and the verified embeddings of the proof.

    Raises:
        ServingError: the file is missing, damaged, another head's than the manifest's, or gives no finite scores.
    """
    path = folder / "model.onnx"
    known = [row for rows in _proof_rows(proof) for row in rows]
    embeddings = np.concatenate([unit_vectors(manifest.encoder.embed_dim), np.array(known, np.float32)])
    if not path.is_file():
        raise ServingError(f"{path}: not found; make it with: python -m build.head --recipe RECIPE")
    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        outputs = session.run(["score", "revision"], {"embedding": embeddings})
    except Exception as error:  # onnxruntime's exceptions share no base
        reason = str(error).splitlines()[0]
        raise ServingError(f"{path}: onnxruntime cannot run it ({reason:.200}); build it again: build.head") from error
    scores, revisions = (np.asarray(output) for output in outputs)
    if set(revisions.flat) != {manifest.revision}:
        raise ServingError(
            f"{path}: its revision is {int(revisions[0, 0]):016x}, that of head.json {manifest.revision:016x}; "
            "build it again with: python -m build.head --recipe RECIPE"
        )
    if not np.isfinite(scores).all():
        raise ServingError(f"{path}: {np.sum(~np.isfinite(scores))} of {scores.size} scores are not finite")
    thresholds = [[point.value for point in row] for row in manifest.thresholds]
    count = len(proof.pictures)
    references, verified = scores[PROBES : PROBES + count], scores[PROBES + count :]
    proved = ProofHead(manifest.name, manifest.revision, references.tolist(), verified.tolist())
    return ProbeSet(embeddings, scores, thresholds, manifest.revision, proved)


def _proof_rows(proof: Proof) -> tuple[list[Row], list[Row]]:
    """The reference and the verified embeddings."""
    return [picture.reference for picture in proof.pictures], [picture.verified for picture in proof.pictures]


def unit_vectors(embed_dim: int, count: int = PROBES) -> np.ndarray:
    """(count, embed_dim) float32, the same every time."""
    vectors = np.random.default_rng(0).standard_normal((count, embed_dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def disagreement(probes: ProbeSet, outputs: dict[str, np.ndarray]) -> str | None:
    """Describe how a server's answers to the probe set differ from the expected ones; None when they do not.

    Args:
        outputs: `score` (N, L), `decision` (N, L) and `revision` (N, 1).
    """
    revisions = {int(value) for value in outputs["revision"].flat}
    if revisions != {probes.revision}:
        names = ", ".join(f"{value:016x}" for value in sorted(revisions))
        return f"revision {names} answers, expected {probes.revision:016x}"
    if outputs["score"].shape != probes.scores.shape:
        return f"scores have the shape {outputs['score'].shape}, expected {probes.scores.shape}"
    allowed = HEAD_TOLERANCE * max(1.0, float(np.abs(probes.scores).max()))
    difference = float(np.abs(outputs["score"] - probes.scores).max())
    if not difference <= allowed:
        return f"scores differ from the file's by {difference:.3g}, {allowed:.3g} is allowed"
    wrong = int(np.sum(outputs["decision"] != decisions_of(outputs["score"], probes.thresholds)))
    return f"{wrong} of {outputs['score'].size} decisions are not what the thresholds say" if wrong else None


def decisions_of(scores: np.ndarray, thresholds: list[list[float]]) -> np.ndarray:
    """(N, L) int32: how many of its label's thresholds each score passed."""
    columns = [
        np.sum(column[:, None] >= np.array(points, np.float32), axis=1)
        for column, points in zip(scores.T, thresholds, strict=True)
    ]
    return np.stack(columns, axis=1).astype(np.int32)
