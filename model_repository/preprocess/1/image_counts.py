"""Counts of the preprocessing: images, refused images by their code, and sizes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from clip_pixels import ImageError, Transform
from metric_counters import PROBE_ID, Counters
from PIL import Image

DESCRIPTIONS = {
    "clipsieve_images_total": "Images that reached the preprocessing, refused ones included",
    "clipsieve_image_failures_total": "Images that got no pixels, by the code in their error",
    "clipsieve_image_bytes_bucket": "Images by their size as received, in bytes, at or below le",
    "clipsieve_image_pixels_bucket": "Images by width times height, from the header, at or below le",
}
LENGTH_BYTES = 4
"""Before each element of a BYTES tensor in a file."""
BYTES_EDGES = (10_000, 30_000, 100_000, 300_000, 1_000_000, 3_000_000, 10_000_000, 30_000_000)
PIXELS_EDGES = (50_000, 250_000, 1_000_000, 2_000_000, 4_000_000, 8_000_000, 16_000_000, 32_000_000, 64_000_000)


@dataclass(frozen=True)
class CountedTransform(Transform):
    """The transform itself, with each image counted as it passes."""

    counters: Counters = field(kw_only=True)

    @classmethod
    def of(cls, transform: Transform, counters: Counters) -> CountedTransform:
        counters.add("clipsieve_images_total", amount=0)
        counters.add_buckets("clipsieve_image_bytes_bucket", (), BYTES_EDGES, ())
        counters.add_buckets("clipsieve_image_pixels_bucket", (), PIXELS_EDGES, ())
        return cls(**vars(transform), counters=counters)

    def __call__(self, data: bytes) -> np.ndarray:
        self.counters.add("clipsieve_images_total")
        self.counters.observe("clipsieve_image_bytes_bucket", BYTES_EDGES, len(data))
        try:
            return super().__call__(data)
        except ImageError as error:
            self.counters.add("clipsieve_image_failures_total", (("code", error.code),))
            raise

    def _check_size(self, image: Image.Image) -> None:
        self.counters.observe("clipsieve_image_pixels_bucket", PIXELS_EDGES, image.width * image.height)
        super()._check_size(image)


class RequestTransforms:
    """The transform of each request: counted, unless it is a probe or Triton's own warm-up.

    Args:
        model: the model's folder; the warm-up's picture lies in it, beside the version.
    """

    def __init__(self, transform: Transform, counters: Counters, model: Path) -> None:
        self._transform, self._counted = transform, CountedTransform.of(transform, counters)
        warmup = model / "warmup" / "image"
        self._warmup = [warmup.read_bytes()[LENGTH_BYTES:]] if warmup.is_file() else None

    def of(self, request_id: str, files: np.ndarray) -> Transform:
        """`files`: (N,) objects, the bytes of each image."""
        is_counted = request_id != PROBE_ID and files.tolist() != self._warmup
        return self._counted if is_counted else self._transform
