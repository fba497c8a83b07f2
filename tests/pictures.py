"""Small pictures and image files, drawn by code."""

from __future__ import annotations

import io
import zlib

import numpy as np
from PIL import Image


def noise(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    """Random low-frequency colour: compressible, and sensitive to how it is resized."""
    rng = np.random.default_rng(seed)
    channels = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4, "CMYK": 4}[mode]
    coarse = rng.integers(0, 256, (max(2, height // 4), max(2, width // 4), channels), dtype=np.uint8)
    bands = [Image.fromarray(coarse[:, :, band]).resize((width, height)) for band in range(channels)]
    return bands[0] if mode == "L" else Image.merge(mode, bands)


def encoded(image: Image.Image, format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def jpeg(width: int = 120, height: int = 90, seed: int = 0, **options) -> bytes:
    return encoded(noise(width, height, seed=seed), "JPEG", **({"quality": 92} | options))


def png_bomb(width: int = 40_000, height: int = 40_000) -> bytes:
    """A small PNG whose header promises width × height pixels."""
    data = bytearray(encoded(Image.new("L", (8, 8)), "PNG"))
    data[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    data[29:33] = zlib.crc32(bytes(data[12:29])).to_bytes(4, "big")
    return bytes(data)


SVG = b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg" width="10" height="10"/>'
"""The magic text of a format nobody should decode on a server."""
