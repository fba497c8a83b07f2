"""Small pictures to look at: an image file → a JPEG of a few kilobytes.

Files come from anywhere, so only the formats that the server takes are decoded, sizes are checked from
the header before decoding, and whatever a decoder raises is that picture's reason to be missing.
"""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from PIL import Image

from clipsieve.exceptions import ImageRejected
from clipsieve.images import read_image

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "AVIF")
MAX_PIXELS = 64_000_000
"""Largest file in pixels; decoding one of this size takes about 250 MB for a moment."""

_QUALITY = 80
_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class Thumbnail:
    """A small picture, and the content it was made of."""

    jpeg: bytes
    sha256: str
    """Sum of the whole file."""


@dataclass(frozen=True)
class Missing:
    """A thumbnail that could not be made."""

    reason: str
    """Reason for people: `UNREADABLE: No such file or directory`."""


def thumbnail_from_file(path: str, edge: int) -> Thumbnail:
    """A JPEG of the file's first frame, its longer side `edge` pixels or less.

    It stands as EXIF says it should, and transparency lies on white.

    Raises:
        ImageRejected: UNREADABLE, TOO_MANY_BYTES, NOT_AN_IMAGE, TOO_MANY_PIXELS or DECODE_FAILED.
    """
    data = read_image(path)
    with opened_image(data) as image:
        try:
            return Thumbnail(_jpeg(_flattened(_reduced(image, edge))), hashlib.sha256(data).hexdigest())
        except Exception as error:
            raise ImageRejected("DECODE_FAILED", f"{type(error).__name__} in the {image.format} decoder") from error


def opened_image(data: bytes) -> Image.Image:
    """The picture in a file's bytes, of which only the header has been read.

    Raises:
        ImageRejected: NOT_AN_IMAGE or TOO_MANY_PIXELS.
    """
    try:
        opened = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise ImageRejected("TOO_MANY_PIXELS", f"at most {MAX_PIXELS} are decoded") from error
    except Exception as error:
        raise ImageRejected("NOT_AN_IMAGE", f"none of {', '.join(FORMATS)}") from error
    if opened.width * opened.height > MAX_PIXELS:
        size = f"{opened.width} × {opened.height}"
        opened.close()
        raise ImageRejected("TOO_MANY_PIXELS", f"{size}; at most {MAX_PIXELS} are decoded")
    return opened


def thumbnails(paths: Sequence[str], edge: int, pool: ThreadPoolExecutor) -> Iterator[Thumbnail | Missing]:
    """One for each path, in order, made by the pool's threads."""

    def make(path: str) -> Thumbnail | Missing:
        try:
            return thumbnail_from_file(path, edge)
        except ImageRejected as error:
            return Missing(str(error))

    return pool.map(make, paths)


@contextmanager
def quiet_decoders() -> Iterator[None]:
    """No warnings about strange files; to be entered once, around the threads: the filter is the process's."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _reduced(image: Image.Image, edge: int) -> Image.Image:
    turn = _turn(image)
    image.draft("RGB", (edge * 2, edge * 2))  # JPEG alone: decodes at 1/2, 1/4 or 1/8, far faster
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("1", "P"):  # which would be reduced without smoothing
        image = image.convert("RGBA")
    image.thumbnail((edge, edge), Image.Resampling.LANCZOS)
    return image if turn is None else image.transpose(turn)


def _turn(image: Image.Image) -> Image.Transpose | None:
    """Transposition that makes the picture upright; None also when the EXIF block is damaged."""
    try:
        return _TURNS.get(image.getexif().get(_ORIENTATION, 1))
    except Exception:
        return None


def _flattened(image: Image.Image) -> Image.Image:
    """RGB, composited on white."""
    if not image.has_transparency_data:
        return image.convert("RGB")
    with_alpha = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), with_alpha).convert("RGB")


def _jpeg(image: Image.Image) -> bytes:
    """Encode a JPEG without the file's own metadata."""
    buffer = io.BytesIO()
    bare = Image.new("RGB", image.size)
    bare.paste(image)
    bare.save(buffer, "JPEG", quality=_QUALITY, optimize=True)
    return buffer.getvalue()
