"""Times two ONNX files of one encoder on this CPU: is a lower precision worth its loss here?"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import onnxruntime

PICTURES = 4
_ROUNDS = 3


def images_per_second(paths: list[Path], pixels: np.ndarray) -> list[float]:
    """Time the files in turn on the first pictures of (N, H, W, 3) uint8, and take the best of a few rounds of each."""
    sessions = [onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]) for path in paths]
    batch = {"pixels": pixels[:PICTURES]}
    seconds = np.empty((_ROUNDS + 1, len(paths)))
    for row in seconds:
        for index, session in enumerate(sessions):
            start = time.perf_counter()
            session.run(["embedding"], batch)
            row[index] = time.perf_counter() - start
    return (len(batch["pixels"]) / seconds[1:].min(axis=0)).tolist()  # the first round warms up


def speed_report(precision: str, reduced: float, full: float) -> str:
    """The comparison as one line for people, from images/s at this precision and in fp32."""
    figures = f"{precision} {reduced:.3g} images/s, fp32 {full:.3g} ({reduced / full:.2f}×)"
    if reduced >= full:
        return f"on this CPU: {figures}"
    return f"on this CPU {precision} is slower than fp32: {figures}; build.precision: fp32 is exact and faster here"
