"""The limit: one process without a server, the served decoding and onnxruntime on the file that is served.

    python -m benchmarks.peers.limit MODEL.onnx HEAD.npz PICTURES SERVING

SERVING is a recipe's section of that name, as JSON. Reads one JSON object a line from stdin and answers each with one
on stdout:

    {"do": "scores", "pictures": 6}                                     → {"scores": […]}
    {"do": "one_by_one", "pictures": 20}                                → {"milliseconds": […]}
    {"do": "run", "seconds": 3, "batch_size": 8, "layout": "beside"}    → {"images": 96, "seconds": 3.1}

There are two ways to put one's cores to work, of which the caller takes the better: `beside` decodes in a pool of
threads beside one session that computes with all cores; `apart` gives each core a thread that decodes its own batches
and computes them alone.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np

from common.manifest import read_encoder
from common.pixels import served_transform
from recipes.serving_section import Serving

CORES = os.cpu_count() or 1
LAYOUTS = ("beside", "apart")

Decode = Callable[[bytes], np.ndarray]
Encode = Callable[[np.ndarray], np.ndarray]


class Limit:
    """The model, its head and the pictures.

    Args:
        encoder: threads of the session → (B, H, W, 3) uint8 → (B,) scores.
        decode: encoded file → (H, W, 3) uint8.
        pictures: encoded files.
    """

    def __init__(self, encoder: Callable[[int], Encode], decode: Decode, pictures: list[bytes]) -> None:
        self._encoder, self._decode, self._pictures = encoder, decode, pictures

    def scores(self, pictures: int) -> dict[str, Any]:
        encode = self._encoder(CORES)
        return {"scores": [float(self._one(encode, data)) for data in self._pictures[:pictures]]}

    def one_by_one(self, pictures: int | None = None) -> dict[str, Any]:
        encode, milliseconds = self._encoder(CORES), []
        for data in self._pictures[:pictures]:
            started = time.perf_counter()
            self._one(encode, data)
            milliseconds.append(1000 * (time.perf_counter() - started))
        return {"milliseconds": milliseconds}

    def run(self, seconds: float, batch_size: int, layout: str) -> dict[str, Any]:
        """Score as many pictures as begin within so many seconds."""
        started = time.perf_counter()
        work = {"beside": self._beside, "apart": self._apart}[layout]
        images = work(batch_size, started + seconds)
        return {"images": images, "seconds": time.perf_counter() - started}

    def _one(self, encode: Encode, data: bytes) -> float:
        return encode(self._decode(data)[None])[0]

    def _beside(self, batch_size: int, end: float) -> int:
        encode, images = self._encoder(CORES), 0
        with ThreadPoolExecutor(CORES) as pool:
            decoded = _ahead(pool, self._decode, until(cycle(self._pictures), end), 2 * batch_size)
            while batch := list(islice(decoded, batch_size)):
                images += len(encode(np.stack(batch)))
        return images

    def _apart(self, batch_size: int, end: float) -> int:
        encode, source = self._encoder(1), cycle(self._pictures)  # whose next() is atomic: threads may share it

        def work(_: int) -> int:
            images = 0
            while time.perf_counter() < end and (files := list(islice(source, batch_size))):
                images += len(encode(np.stack([self._decode(data) for data in files])))
            return images

        with ThreadPoolExecutor(CORES) as pool:
            return sum(pool.map(work, range(CORES)))


def until(items: Iterator[bytes], end: float) -> Iterator[bytes]:
    """The items that are drawn before a moment of time.perf_counter."""
    while time.perf_counter() < end:
        yield next(items)


def _ahead(pool: ThreadPoolExecutor, decode: Decode, files: Iterator[bytes], ahead: int) -> Iterator[np.ndarray]:
    """Decoded in order, by threads that are at most `ahead` files in front."""
    pending: deque[Future[np.ndarray]] = deque(pool.submit(decode, data) for data in islice(files, ahead))
    while pending:
        done = pending.popleft().result()
        pending.extend(pool.submit(decode, data) for data in islice(files, 1))
        yield done


def encoders(model: Path, head: Path) -> Callable[[int], Encode]:
    """Sessions by their number of threads, each made when it is first wanted."""
    import onnxruntime

    arrays = np.load(head)
    weight, bias = arrays["weight"], arrays["bias"]

    @cache
    def encoder(threads: int) -> Encode:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

        def encode(pixels: np.ndarray) -> np.ndarray:
            embedding = np.asarray(session.run(["embedding"], {"pixels": pixels})[0])
            return 1 / (1 + np.exp(-(embedding @ weight.T + bias)[:, 0]))

        return encode

    return encoder


def main(model: str, head: str, pictures: str, serving: str) -> None:
    views = read_encoder(Path(model).parent).preprocessing
    transform = served_transform(views, Serving.model_validate_json(serving))
    files = [path.read_bytes() for path in sorted(Path(pictures).glob("*.jpg"))]
    limit = Limit(encoders(Path(model), Path(head)), transform, files)
    for line in sys.stdin:
        request = json.loads(line)
        answer = getattr(limit, request.pop("do"))(**request)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
