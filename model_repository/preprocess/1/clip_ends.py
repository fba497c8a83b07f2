"""Tells a file that ends early from one that is damaged otherwise, for the message that refuses it.

A decoder says what it missed first, often something else, in its own words and with its own numbers; each format says
somewhere how long the file is, or how it ends.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from clip_files import JPEG_EOI, JPEG_MARKER, JPEG_SOI, JPEG_SOS, MAX_PARTS, gif_palette_bytes, past_gif_blocks
from clip_heif import boxes
from clip_tiff import directory, end_of_directory, end_of_pixels, layout_of


def early_end(data: bytes, format: str) -> str | None:
    """How a file that could not be decoded ends early, `truncated: 1000 of 5000 bytes`; None for one that does not.

    Args:
        data: a whole file.
        format: the name of the format that its first bytes say.
    """
    try:
        missing = _ENDS[format](data)
    except (IndexError, struct.error):
        missing = f"{len(data)} bytes, which end within the header"
    except ValueError:  # it is damaged before its end
        return None
    return f"truncated: {missing}" if missing else None


def _jpeg(data: bytes) -> str | None:
    position = 2
    for _ in range(MAX_PARTS):
        match = JPEG_MARKER.search(data, position)
        if match is None or data[match.end() - 1] in (JPEG_SOI, JPEG_EOI):
            return None if match else f"{len(data)} bytes, which end before the pixels"
        start = match.end() - 2
        (length,) = struct.unpack_from(">H", data, start + 2)
        position = start + 2 + max(2, length)
        if position > len(data):
            return f"{len(data)} bytes, of which a segment alone would reach {position}"
        if data[start + 1] == JPEG_SOS:
            break
    return None if data.find(bytes([0xFF, JPEG_EOI]), position) >= 0 else f"{len(data)} bytes without the marker EOI"


def _png(data: bytes) -> str | None:
    position = 8
    for _ in range(MAX_PARTS):
        if position + 8 > len(data):
            return f"{len(data)} bytes without the chunk IEND"
        length, kind = struct.unpack_from(">I4s", data, position)
        position += 12 + length
        if not kind.isalpha():
            return None
        if position > len(data):
            return f"{len(data)} bytes, of which a chunk {kind.decode()} alone would reach {position}"
        if kind == b"IEND":
            return None
    return None


def _webp(data: bytes) -> str | None:
    return _of(data, 8 + struct.unpack_from("<I", data, 4)[0])


def _gif(data: bytes) -> str | None:
    position = 13 + gif_palette_bytes(data[10])
    while position < len(data) and data[position] in b"!,":
        is_extension = data[position] == 0x21
        position += 2 if is_extension else 11 + gif_palette_bytes(data[position + 9])
        position, _ = past_gif_blocks(data, position, MAX_PARTS)
    return None if position < len(data) else f"{len(data)} bytes without the trailer"


def _bmp(data: bytes) -> str | None:
    (offset, header) = struct.unpack_from("<II", data, 10)
    if header == 12:
        width, height, _, bits = struct.unpack_from("<HHHH", data, 18)
        is_raw = True
    else:
        width, height, _, bits, compression = struct.unpack_from("<iiHHI", data, 18)
        is_raw = compression in (0, 3, 6)
    return _of(data, offset + (abs(width) * bits + 31) // 32 * 4 * abs(height)) if is_raw else None


def _boxes(data: bytes) -> str | None:
    end = max(end for _, _, end in boxes(data, 0, len(data)))
    return f"{len(data)} bytes, of which a box alone would reach {end}" if end > len(data) else None


def _tiff(data: bytes) -> str | None:
    layout = layout_of(data)
    (position,) = struct.unpack_from(layout.place, data, 8 if layout.big else 4)
    if position + struct.calcsize(layout.count) > len(data):
        return f"{len(data)} bytes, and the directory is at {position}"
    return _of(data, max(end_of_directory(data, layout, position), end_of_pixels(directory(data, layout, position))))


def _of(data: bytes, size: int) -> str | None:
    return f"{len(data)} of {size} bytes" if size > len(data) else None


_ENDS: dict[str, Callable[[bytes], str | None]] = {
    "JPEG": _jpeg,
    "PNG": _png,
    "WEBP": _webp,
    "GIF": _gif,
    "BMP": _bmp,
    "AVIF": _boxes,
    "HEIC": _boxes,
    "TIFF": _tiff,
}
