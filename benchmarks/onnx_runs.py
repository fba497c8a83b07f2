"""Times ONNX encoders and keeps their embeddings, in a process of its own that may see a lesser processor.

Run by `benchmarks.precision`: `python -m benchmarks.onnx_runs SPEC.json OUT.npz`. It imports no torch.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnxruntime

from benchmarks.instruction_sets import environment


@dataclass(frozen=True)
class Encoder:
    """An ONNX file that is timed, and the one that stands for what it computes where that is another."""

    timed: str
    embeds: str
    optimize: bool = True
    """Let onnxruntime optimise the graph of `embeds`."""


@dataclass(frozen=True)
class Runs:
    """Results of one encoder on one instruction set.

    Attributes:
        images_per_s: median over the rounds.
        embeddings: (N, D) float32.
        batch_dependence: largest difference of the first picture's embedding alone and in its batch.
    """

    images_per_s: float
    embeddings: np.ndarray
    batch_dependence: float


def run_on(
    instruction_set: str, encoders: dict[str, Encoder], pixels: np.ndarray, folder: Path, rounds: int, batch: int
) -> dict[str, Runs]:
    """Run the encoders on (N, H, W, 3) uint8 in a process that sees this instruction set; results by name.

    Raises:
        NotImitated: the set cannot be had here.
    """
    np.save(folder / "pixels.npy", pixels)
    spec = {
        "encoders": {name: asdict(encoder) for name, encoder in encoders.items()},
        "pixels": str(folder / "pixels.npy"),
        "rounds": rounds,
        "batch": batch,
    }
    (folder / "spec.json").write_text(json.dumps(spec))
    command = [sys.executable, "-m", "benchmarks.onnx_runs", str(folder / "spec.json"), str(folder / "runs.npz")]
    subprocess.run(command, env=environment(instruction_set), check=True)
    with np.load(folder / "runs.npz") as arrays:
        return {
            name: Runs(
                float(arrays[f"speed {name}"]), arrays[f"embeddings {name}"], float(arrays[f"dependence {name}"])
            )
            for name in encoders
        }


def main(argv: list[str]) -> int:
    spec = json.loads(Path(argv[0]).read_text())
    encoders = {name: Encoder(**fields) for name, fields in spec["encoders"].items()}
    pixels = np.load(spec["pixels"])
    arrays: dict[str, np.ndarray] = {}
    for name, speed in speeds(encoders, pixels[: spec["batch"]], spec["rounds"]).items():
        arrays[f"speed {name}"] = np.array(speed)
    for name, encoder in encoders.items():
        session = open_session(encoder.embeds, encoder.optimize)
        embeddings = np.concatenate([embed(session, pixels[start : start + 8]) for start in range(0, len(pixels), 8)])
        arrays[f"embeddings {name}"] = embeddings
        arrays[f"dependence {name}"] = np.abs(embed(session, pixels[:1]) - embeddings[:1]).max()
    np.savez(argv[1], allow_pickle=False, **arrays)
    return 0


def speeds(encoders: dict[str, Encoder], pixels: np.ndarray, rounds: int) -> dict[str, float]:
    """Median images/s of each, one batch of each in turn."""
    sessions = {name: open_session(encoder.timed) for name, encoder in encoders.items()}
    seconds: dict[str, list[float]] = {name: [] for name in encoders}
    for round_ in range(rounds + 1):
        for name, session in sessions.items():
            start = time.perf_counter()
            embed(session, pixels)
            if round_:  # the first warms up
                seconds[name].append(time.perf_counter() - start)
    return {name: len(pixels) / float(np.median(times)) for name, times in seconds.items()}


def open_session(path: str, optimize: bool = True) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def embed(session: onnxruntime.InferenceSession, pixels: np.ndarray) -> np.ndarray:
    """(B, H, W, 3) uint8 → (B, D) float32"""
    return np.asarray(session.run(["embedding"], {"pixels": pixels})[0])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
