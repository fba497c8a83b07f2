"""Encodes what a caller has, a path, bytes, an open file, a PIL image or an array, as the bytes of an image file."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias

import numpy as np

from clipsieve.exceptions import ImageRejected

if TYPE_CHECKING:
    from PIL import Image

ImageSource: TypeAlias = "str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO | Image.Image | np.ndarray"
"""A path, the bytes of an encoded file, a file opened for reading bytes, a PIL image, or an array (H, W, 3) uint8."""

MAX_IMAGE_BYTES = 64 * 2**20
"""A larger file is not read: it keeps memory bounded when a disk image lies between the photos."""

_PNG_MODES = frozenset({"1", "L", "LA", "P", "RGB", "RGBA", "I;16"})


def path_of(image: Any) -> str | None:
    return os.fsdecode(image) if isinstance(image, (str, os.PathLike)) else None


def encoded(image: Any) -> bytes:
    """The bytes of an encoded file; pictures without one are encoded as PNG, which loses nothing.

    Raises:
        ImageRejected: UNREADABLE or TOO_MANY_BYTES; or what was given, by one who could not find the image.
        TypeError: what was given is no image.
    """
    if isinstance(image, (str, os.PathLike)):
        return read_image(image)
    if isinstance(image, ImageRejected):
        raise image
    data = _bytes_of(image)
    if len(data) > MAX_IMAGE_BYTES:
        raise ImageRejected("TOO_MANY_BYTES", f"{len(data)} bytes; at most {MAX_IMAGE_BYTES} are sent")
    return data


def encoded_some(images: Sequence[Any], most_bytes: int) -> list[bytes | ImageRejected]:
    """The first of them, as `encoded` or why not: one at least, and until they hold `most_bytes`. Raises TypeError."""
    files: list[bytes | ImageRejected] = []
    size = 0
    for image in images:
        try:
            file = encoded(image)
        except ImageRejected as error:
            files.append(error)
            continue
        files.append(file)
        size += len(file)
        if size >= most_bytes:
            break
    return files


def read_image(path: str | os.PathLike[str]) -> bytes:
    """The file's bytes.

    Raises:
        ImageRejected: UNREADABLE (missing, forbidden, a folder, a pipe) or TOO_MANY_BYTES.
    """
    try:
        with open(path, "rb", buffering=0, opener=_open_without_waiting) as file:
            _check_readable(os.fstat(file.fileno()))
            return file.readall()
    except (OSError, ValueError) as error:
        raise ImageRejected("UNREADABLE", getattr(error, "strerror", None) or str(error)) from None


def _open_without_waiting(path: str, flags: int) -> int:
    """A named pipe is then opened at once, and refused, instead of waited for."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _check_readable(status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise ImageRejected("UNREADABLE", "not a regular file")
    if status.st_size > MAX_IMAGE_BYTES:
        raise ImageRejected("TOO_MANY_BYTES", f"{status.st_size} bytes; at most {MAX_IMAGE_BYTES} are sent")


def _bytes_of(image: Any) -> bytes:
    if isinstance(image, (bytes, bytearray, memoryview)):
        return bytes(image)
    if isinstance(image, np.ndarray):
        return _png_from_array(image)
    if hasattr(image, "read"):
        return _bytes_of_file(image)
    if hasattr(image, "convert"):  # a PIL image, without importing PIL for those who have none
        return _png_from_picture(image)
    raise TypeError(
        "an image is a path, the bytes of a file, an open file, a PIL image or an array (H, W, 3) uint8, "
        f"found {type(image).__name__}"
    )


def _bytes_of_file(file: BinaryIO) -> bytes:
    try:
        data = file.read(MAX_IMAGE_BYTES + 1)
    except (OSError, ValueError) as error:
        raise ImageRejected("UNREADABLE", str(error)) from None
    if not isinstance(data, bytes):
        raise TypeError(f"the file must be opened for reading bytes (mode 'rb'), it gives {type(data).__name__}")
    return data


def _png_from_array(array: np.ndarray) -> bytes:
    from PIL import Image

    if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8:
        raise TypeError(f"an array must be (H, W, 3) uint8, found {array.shape} {array.dtype}")
    if not array.size:
        raise ImageRejected("EMPTY", f"an array of shape {array.shape}")
    return _png(Image.fromarray(array))


def _png_from_picture(picture: Image.Image) -> bytes:
    """Encode as PNG the picture that the server would see: turned upright, and in RGB where PNG has not its mode."""
    from PIL import ImageOps

    try:
        upright = ImageOps.exif_transpose(picture)
        return _png(upright if upright.mode in _PNG_MODES else upright.convert("RGB"))
    except (OSError, ValueError, SyntaxError) as error:  # an image that was opened and is decoded only now
        raise ImageRejected("UNREADABLE", str(error)) from None


def _png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG", compress_level=1)
    return file.getvalue()
