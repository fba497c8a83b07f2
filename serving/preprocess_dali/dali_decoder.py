"""The serialised DALI pipeline of a deployment, run on a batch of files.

`build.dali_pipeline` serialises it: `cpu.dali` decodes on the CPU, `mixed.dali` on a GPU. It takes the files, and for
each view the size to resize to and where its square lies; it gives each view's squares.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from dali_batches import Window

MANIFEST = "dali.json"
FILES = "files"
"""Input: N × (bytes,) uint8."""


def size_input(view: int) -> str:
    """Name of the input that holds (N, 2) float32, height and width, of a view."""
    return f"size_{view}"


def corner_input(view: int) -> str:
    """Name of the input that holds (N, 2) int32, top and left, of a view."""
    return f"corner_{view}"


class DaliDecoder:
    """`decode(files, windows)` → for each view (N, S, S, 3) uint8.

    Args:
        folder: holds the pipelines and dali.json.
        gpu: the number of the GPU to decode on; None, or no `mixed.dali`, is the CPU.
        threads: of the CPU.
        max_batch_size: of the files.

    Raises:
        RuntimeError: DALI is not installed, or not the version that made the pipelines.
    """

    def __init__(self, folder: Path, *, gpu: int | None, threads: int, max_batch_size: int) -> None:
        _check_version(folder)
        self.gpu = gpu if (folder / "mixed.dali").is_file() else None
        self._serialized = (folder / ("cpu.dali" if self.gpu is None else "mixed.dali")).read_bytes()
        self._threads = threads
        self._max_batch_size = max_batch_size
        self._pipeline: Any = self._load()

    def __call__(self, files: Sequence[bytes], windows: Sequence[Sequence[Window]]) -> list[np.ndarray]:
        """Raises whatever DALI does; it can be called again."""
        pipeline = self._load() if self._pipeline is None else self._pipeline
        self._pipeline = None  # one that has failed is of no use
        pipeline.feed_input(FILES, [np.frombuffer(file, np.uint8) for file in files])
        for view, of_view in enumerate(zip(*windows, strict=True)):
            pipeline.feed_input(size_input(view), np.array([window.size for window in of_view], np.float32))
            pipeline.feed_input(corner_input(view), np.array([window.corner for window in of_view], np.int32))
        squares = [np.array(output.as_cpu().as_array()) for output in pipeline.run()]
        self._pipeline = pipeline
        return squares

    def _load(self) -> Any:
        pipeline = importlib.import_module("nvidia.dali").Pipeline(
            batch_size=self._max_batch_size,
            num_threads=self._threads,
            device_id=self.gpu,
            prefetch_queue_depth=1,
            exec_pipelined=False,
            exec_async=False,
        )
        pipeline.deserialize_and_build(self._serialized)
        return pipeline


def _check_version(folder: Path) -> None:
    made_with = json.loads((folder / MANIFEST).read_text())["versions"]["dali"]
    try:
        version = importlib.import_module("nvidia.dali").__version__
    except ImportError as error:
        raise RuntimeError(
            f"preprocess was built with `preprocess: dali`, and this Python has no DALI ({error}); install "
            f"nvidia-dali-cuda120=={made_with} here, or build with `preprocess: python`"
        ) from error
    if made_with != version:
        raise RuntimeError(
            f"the pipelines of preprocess were made with DALI {made_with}, here is {version}; install "
            f"nvidia-dali-cuda120=={made_with} here, or build with {version} (make engines)"
        )
