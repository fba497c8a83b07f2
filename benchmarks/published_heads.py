"""Imported heads, as the ONNX files that are served, against the originals they were imported from.

    python -m benchmarks.published_heads --heads ../shared/heads
    python -m benchmarks.published_heads --heads ../shared/heads --vectors 10000 --batch 32

Keras heads: every variant against the original TensorFlow graph, on float16 vectors with values from the
vocabularies, on random float32 unit vectors, and on floats at the ends of what prints as a known text.
All-linear heads: folded against layer by layer. Milliseconds a batch of each. One JSON line on stdout; exit
status 1 when a difference is above 1e-5. `--heads` is a folder with the published files.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from rich.console import Console
from safetensors.numpy import load_file

from benchmarks.machine import machine, print_result
from build.head import build_head
from common.manifest import Linear, read_head
from recipes.schema import Head, Published
from training.import_head import Options, import_head
from training.published import PUBLISHED, PublishedHead
from training.published_keras import VARIANTS, OriginalGraph, as_given, extract_saved_model, verification_vectors

LIMIT = 1e-5
_OPSET = 18
_REPEATS = 50

console = Console(stderr=True)


def measure(published: PublishedHead, file: Path, vectors: int, batch: int, work: Path) -> dict[str, Any]:
    """Differences and speed of one published head, whose file is `file`."""
    if published.format == "keras":
        return _measure_keras(published, file, vectors, batch, work)
    session = _served(published, file, "published", work)
    x = _unit_vectors(published.embed_dim, vectors)
    return {
        "max_difference": {"float32": float(np.abs(_run(session, x) - _layered(work, x)).max())},
        "ms_per_batch": _milliseconds(session, x[:batch]),
    }


def _measure_keras(published: PublishedHead, file: Path, count: int, batch: int, work: Path) -> dict[str, Any]:
    original = OriginalGraph(extract_saved_model(file, work / "original"), work)
    arrays = original.tensors()
    vectors = verification_vectors(arrays, count, seed=1)
    given = {f"{variant}/{kind}": as_given(x, arrays, variant) for variant in VARIANTS for kind, x in vectors.items()}
    scores = original.scores(given)
    result: dict[str, Any] = {}
    for variant in VARIANTS:
        session = _served(published, file, variant, work / variant)
        served = {kind: _run(session, x) for kind, x in vectors.items()}
        as_it_is = {kind: served[kind] - scores[f"published/{kind}"] for kind in vectors}
        result[variant] = {
            "max_difference": {
                kind: float(np.abs(served[kind] - scores[f"{variant}/{kind}"]).max()) for kind in vectors
            },
            "from_published": {
                kind: {
                    "max_difference": float(np.abs(difference).max()),
                    "above_0.01": float((np.abs(difference) > 0.01).mean()),
                    "flipped": float(((served[kind] >= 0.5) != (scores[f"published/{kind}"] >= 0.5)).mean()),
                }
                for kind, difference in as_it_is.items()
            },
            "ms_per_batch": _milliseconds(session, vectors["float32"][:batch]),
        }
    return result


def _served(published: PublishedHead, file: Path, variant: str, folder: Path) -> onnxruntime.InferenceSession:
    """Import, build and load the head as the steps do."""
    head = Head(
        name="published",
        task=published.task,
        class_names=published.class_names,
        published=Published.model_validate({"name": published.name, "file": file, "variant": variant}),
    )
    import_head(head, None, folder, Options(verify=200, accept_unknown_sha256=True))
    build_head(folder, _OPSET)
    return onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])


def _run(session: onnxruntime.InferenceSession, x: np.ndarray) -> np.ndarray:
    """(n, embed_dim) → (n,) scores, in batches as a server makes them."""
    batches = (x[start : start + 256] for start in range(0, len(x), 256))
    return np.concatenate([np.asarray(session.run(["score"], {"embedding": part})[0])[:, 0] for part in batches])


def _layered(folder: Path, x: np.ndarray) -> np.ndarray:
    """Scores in float32, one layer after the other, as the published module computes them."""
    tensors = load_file(folder / "head.safetensors")
    for layer in read_head(folder).layers:
        if isinstance(layer, Linear):
            x = x @ tensors[layer.weight].T + tensors[layer.bias]
        elif layer.type == "relu":
            x = np.maximum(x, 0)
    return x[:, 0]


def _milliseconds(session: onnxruntime.InferenceSession, x: np.ndarray) -> float:
    """Median time of a batch."""
    times = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        session.run(["score", "decision", "revision"], {"embedding": x})
        times.append(1000 * (time.perf_counter() - start))
    return float(np.median(times))


def _unit_vectors(embed_dim: int, count: int) -> np.ndarray:
    x = np.random.default_rng(1).standard_normal((count, embed_dim))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def _worst(result: dict[str, Any]) -> float:
    parts = [result] if "max_difference" in result else list(result.values())
    return max(value for part in parts for value in part["max_difference"].values())


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.published_heads",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--heads", type=Path, required=True, help="a folder with the published files")
    parser.add_argument("--vectors", type=int, default=10_000, help="of each kind (default %(default)s)")
    parser.add_argument("--batch", type=int, default=32, help="rows of a timed batch (default %(default)s)")
    parser.add_argument("--only", nargs="*", choices=list(PUBLISHED), default=list(PUBLISHED), help="some heads only")
    arguments = parser.parse_args(argv)
    results, told = {}, machine()
    for name in arguments.only:
        file = arguments.heads.resolve() / PUBLISHED[name].file
        if not file.is_file():
            console.print(f"{name}: {file.name} is not in {arguments.heads}, left out")
            continue
        with tempfile.TemporaryDirectory() as work:
            results[name] = measure(PUBLISHED[name], file, arguments.vectors, arguments.batch, Path(work))
        console.print(f"{name}: differs by {_worst(results[name]):.2g} at most")
    print_result("benchmarks.published_heads", told, heads=results)
    return 0 if results and all(_worst(result) <= LIMIT for result in results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
