"""Image files as containers: what is checked, and left out, before a decoder sees a byte.

A picture's pixels bound how long its decoding takes only while the rest of the file plays along: a JPEG may
ask for a hundred thousand passes over the picture in 2 MB, a PNG for gigabytes of colour profile, metadata
for time that grows with its square. So each format's parts are walked here, which costs a thousandth of
decoding, and counted; what has no part in the pixels is left out. Nothing here decodes anything.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

MAX_PARTS = 2**18
"""Segments, chunks or blocks of one file; 32 MiB of GIF in its ordinary blocks of 255 bytes are half as many."""
MAX_TABLE_BYTES = 2**18
"""Most bytes of a JPEG's tables and thumbnails; Pillow reads each table in Python."""
RUN_LENGTH_FACTOR = 16
"""Pixel limit of a run-length BMP, as a divisor of the usual one: Pillow decodes it in Python, 60 ns a pixel."""

MULTI_PASS_FRAMES = {0xC2, 0xC6, 0xCA, 0xCE}  # progressive, of each kind
JPEG_FRAMES = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
JPEG_SOI, JPEG_EOI, JPEG_SOS = 0xD8, 0xD9, 0xDA
JPEG_METADATA = {*range(0xE1, 0xEE), 0xEF, 0xFE}  # APP0 (JFIF) and APP14 (Adobe) say what the colours mean
JPEG_KEPT_METADATA = (b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0")  # for the orientation
JPEG_MARKER = re.compile(rb"\xff([^\x00\xff\x01\xd0-\xd7])")
JPEG_MARKER_AMONG_PIXELS = re.compile(rb"\xff([\xc0-\xcf\xd8-\xfe])")

PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
PNG_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
INFLATE_BYTES = 2**16
MAX_TEXT_BYTES = 2**20
"""Most bytes that Pillow unpacks of one text; for a longer one it refuses the picture."""
PNG_CRITICAL = (b"IHDR", b"PLTE", b"IDAT", b"IEND")
PNG_KEPT_TEXT = (b"XML:com.adobe.xmp\0", b"Raw profile type exif\0")


class ImageError(ValueError):
    """An image that gets no pixels: `code` is stable for programs, `message` is for people."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


@dataclass(frozen=True)
class Limits:
    """Limits on one file.

    Attributes:
        max_pixels: largest width × height.
        max_frames: of an animation, of which only the first is scored.
        max_scans: passes of a JPEG over the picture.
    """

    max_pixels: int
    max_frames: int
    max_scans: int

    def check_pixels(self, width: int, height: int) -> None:
        if width * height > self.max_pixels:
            raise ImageError("TOO_MANY_PIXELS", f"{width} × {height} is over the limit of {self.max_pixels} pixels")

    def check_frames(self, count: int) -> None:
        if count > self.max_frames:
            raise ImageError("TOO_MANY_FRAMES", f"the animation has over {self.max_frames} frames, the limit")


def without_ballast(data: bytes, format: str, limits: Limits) -> bytes:
    """The same picture in a file that costs no more than its pixels.

    Args:
        data: a whole file.
        format: what its first bytes say it is, by Pillow's name.

    Raises:
        ImageError: TOO_MANY_PARTS, TOO_MANY_SCANS, TOO_MANY_FRAMES, TOO_MANY_PIXELS, or DECODE_FAILED when
            the structure is broken.
    """
    checked = _CHECKS.get(format)
    try:
        return checked(data, limits) if checked else data
    except (IndexError, struct.error) as error:
        raise _broken("ends within its header") from error


# ---- JPEG ----


def _jpeg(data: bytes, limits: Limits) -> bytes:
    """Drop comments and application data but the first EXIF and XMP; count scans where each is a pass."""
    kept: list[bytes | memoryview] = [data[:2]]
    seen, frame, size = set(), b"", 0
    for marker, start, end in jpeg_segments(data):
        segment = data[start:end]
        if marker == JPEG_SOS:
            kept.append(memoryview(data)[start:])
            if frame and (frame[1] in MULTI_PASS_FRAMES or segment[4] < frame[9]):
                _check_scans(data, start, limits.max_scans)
            return b"".join(kept)
        if marker in JPEG_FRAMES:
            frame = segment
        if marker in JPEG_METADATA:
            kind = next((kind for kind in JPEG_KEPT_METADATA if segment.startswith(kind, 4)), None)
            if kind is None or kind in seen:
                continue
            seen.add(kind)
        elif size > MAX_TABLE_BYTES:
            raise _too_many_parts(f"its tables have over {MAX_TABLE_BYTES} bytes")
        size += len(segment)
        kept.append(segment)
    raise _broken("no scan of a JPEG was found")


def jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """(marker, start, end) of each segment up to the end of the file, its first scan's header the last of use.

    What stands between segments is passed over, as libjpeg does.
    """
    position = 2
    for _ in range(MAX_PARTS):
        match = JPEG_MARKER.search(data, position)
        if match is None:
            return
        marker, start = data[match.end() - 1], match.end() - 2
        if marker < 0xC0 or marker in (JPEG_SOI, JPEG_EOI):
            raise _broken(f"marker {marker:#x} stands before the first scan of a JPEG")
        (length,) = struct.unpack_from(">H", data, start + 2)
        if length < 2 or start + 2 + length > len(data):
            raise _broken(f"segment {marker:#x} of a JPEG has length {length}")
        position = start + 2 + length
        yield marker, start, position
    raise _too_many_parts(f"a JPEG of over {MAX_PARTS} segments")


def _check_scans(data: bytes, position: int, limit: int) -> None:
    """Refuse more than `limit` scans in data[position:], which starts with the first."""
    if data.count(b"\xff\xda", position) <= limit:  # never less than there are
        return
    scans = 0
    for _ in range(MAX_PARTS):
        match = JPEG_MARKER_AMONG_PIXELS.search(data, position)
        if match is None or data[match.end() - 1] == JPEG_EOI:
            return
        scans += data[match.end() - 1] == JPEG_SOS
        if scans > limit:
            raise ImageError("TOO_MANY_SCANS", f"a JPEG of over {limit} scans, the limit")
        if match.end() + 2 > len(data):
            return
        position = match.end() + max(2, struct.unpack_from(">H", data, match.end())[0])
    raise _too_many_parts(f"a JPEG of over {MAX_PARTS} segments")


# ---- PNG ----


def _png(data: bytes, limits: Limits) -> bytes:
    """Keep only what makes the pixels, transparency and orientation; check their sums and order, as libpng wants."""
    kept: list[bytes | memoryview] = [data[:8]]
    seen, frames, last = set(), 0, b""
    view = memoryview(data)
    if data[12:16] != b"IHDR" or data[26:28] != bytes(2) or data[28] > 1:
        raise _broken("a PNG does not begin with a header, or has a compression or interlacing that nobody knows")
    for kind, start, end in _png_chunks(data):
        frames += kind == b"fcTL"
        limits.check_frames(frames)
        if kind[0] < 0x60:  # a capital: critical
            _check_png_order(kind, last, seen, has_palette=data[25] == 3)
            _check_png_sum(view[start:end], kind)
            seen.add(kind)
            kept.append(view[start:end])
        elif (name := _kept_png_chunk(data, kind, start, b"IDAT" in seen)) and name not in seen:
            seen.add(name)
            kept.append(view[start:end])
        last = kind
    return b"".join(kept)


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """(type, start, end) of each chunk up to IEND."""
    position = 8
    for _ in range(MAX_PARTS):
        if position + 8 > len(data):
            raise _broken("a PNG ends before its IEND chunk")
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 12 + length
        if end > len(data) or not kind.isalpha():
            raise _broken("a PNG ends before its IEND chunk" if kind.isalpha() else f"a PNG has a chunk {kind!r}")
        yield kind, position, end
        if kind == b"IEND":
            return
        position = end
    raise _too_many_parts(f"a PNG of over {MAX_PARTS} chunks")


def _check_png_order(kind: bytes, last: bytes, seen: set[bytes], has_palette: bool) -> None:
    if kind not in PNG_CRITICAL:
        raise _broken(f"a PNG has a critical chunk {kind!r}, which nobody knows")
    if (kind == b"IHDR" and kind in seen) or (kind == b"PLTE" and seen & {b"PLTE", b"IDAT"}):
        raise _broken(f"chunk {kind.decode()} of a PNG is out of place")
    if kind == b"IDAT" and has_palette and b"PLTE" not in seen:
        raise _broken("a PNG whose pixels are numbers of colours has no PLTE chunk before them")
    if kind == b"IDAT" and kind in seen and last != kind:
        raise _broken("the IDAT chunks of a PNG do not follow one another")


def _check_png_sum(chunk: memoryview, kind: bytes) -> None:
    if zlib.crc32(chunk[4:-4]) != int.from_bytes(chunk[-4:], "big"):
        raise _broken(f"the checksum of chunk {kind.decode()} of a PNG is wrong")


def _kept_png_chunk(data: bytes, kind: bytes, start: int, after_pixels: bool) -> bytes | None:
    """A name for an ancillary chunk that matters, of which the first is kept."""
    if kind == b"tRNS":
        return None if after_pixels else kind
    if kind in (b"tEXt", b"zTXt", b"iTXt"):
        return next((key for key in PNG_KEPT_TEXT if _has_readable_text(data, kind, start, key)), None)
    return kind if kind == b"eXIf" else None


def _has_readable_text(data: bytes, kind: bytes, start: int, key: bytes) -> bool:
    """Whether a chunk has the text of this key, and Pillow would not refuse the picture because of it."""
    begin, end = start + 8, start + 8 + int.from_bytes(data[start : start + 4], "big")
    if not data.startswith(key, begin, end):
        return False
    text = data[begin + len(key) : end]
    if kind == b"iTXt":  # a flag, a method, a language and a key in it, the text
        texts = text[2:].split(b"\0", 2)
        return len(texts) < 3 or text[0] == 0 or _unpacks(texts[2])
    return kind == b"tEXt" or (text[:1] == b"\0" and _unpacks(text[1:]))  # a method of packing that is known


def _unpacks(packed: bytes) -> bool:
    """Whether a text stays within what Pillow unpacks; a damaged one is left to it, which takes it for empty."""
    inflate = zlib.decompressobj()
    try:
        inflate.decompress(packed, MAX_TEXT_BYTES)
    except zlib.error:
        return True
    return not inflate.unconsumed_tail


def check_png_rows(data: bytes) -> None:
    """Refuse a PNG whose compressed pixels end early: Pillow leaves the rest black and says nothing.

    Costs an inflation of the whole picture, so it is for those whose last row is all zeros.
    """
    missing, inflate = _png_raw_bytes(data), zlib.decompressobj()
    for kind, start, end in _png_chunks(data):
        packed = data[start + 8 : end - 4] if kind == b"IDAT" else b""
        while packed and missing > 0:
            missing -= len(inflate.decompress(packed, INFLATE_BYTES))
            packed = inflate.unconsumed_tail
    if missing > len(inflate.flush() if missing > 0 else b""):
        raise _broken("the compressed pixels of a PNG end early")


def _png_raw_bytes(data: bytes) -> int:
    """Rows with their filter bytes, of all passes, by the header."""
    width, height, depth, color, _, _, interlaced = struct.unpack_from(">IIBBBBB", data, 16)
    passes = PNG_PASSES if interlaced else ((0, 0, 1, 1),)
    sizes = [(-(-(width - x) // step_x), -(-(height - y) // step_y)) for x, y, step_x, step_y in passes]
    bits = depth * PNG_CHANNELS[color]
    return sum(rows * (1 + (columns * bits + 7) // 8) for columns, rows in sizes if columns > 0 and rows > 0)


# ---- WebP, GIF, BMP ----


def _webp(data: bytes, limits: Limits) -> bytes:
    if data[12:16] == b"VP8X":  # the decoder sets memory aside for the canvas before it tells its size
        width, height = (int.from_bytes(data[at : at + 3], "little") + 1 for at in (24, 27))
        limits.check_pixels(width, height)
    position, frames = 12, 0
    for _ in range(MAX_PARTS):
        if position + 8 > len(data):
            return data
        frames += data.startswith(b"ANMF", position)
        limits.check_frames(frames)
        (length,) = struct.unpack_from("<I", data, position + 4)
        position += 8 + length + length % 2
    raise _too_many_parts(f"a WebP of over {MAX_PARTS} chunks")


def _gif(data: bytes, limits: Limits) -> bytes:
    position, parts, frames = 13 + gif_palette_bytes(data[10]), 0, 0
    while position < len(data) and data[position] in b"!,":
        if data[position] == 0x21:  # an extension
            position += 2
        else:
            frames += 1
            limits.check_frames(frames)
            position += 11 + gif_palette_bytes(data[position + 9]) if position + 9 < len(data) else 10
        position, blocks = past_gif_blocks(data, position, MAX_PARTS - parts)
        parts += blocks + 1
    return data


def gif_palette_bytes(flags: int) -> int:
    return 6 << (flags & 7) if flags & 0x80 else 0


def past_gif_blocks(data: bytes, position: int, limit: int) -> tuple[int, int]:
    """Position after a row of blocks and their number; a file that ends early is its decoder's matter."""
    size = len(data)
    for blocks in range(limit):
        if position >= size:
            return position, blocks
        length = data[position]
        position += 1 + length
        if not length:
            return position, blocks
    raise _too_many_parts(f"a GIF of over {MAX_PARTS} blocks")


def _bmp(data: bytes, limits: Limits) -> bytes:
    if len(data) < 34 or struct.unpack_from("<I", data, 14)[0] < 40:
        return data
    width, height = struct.unpack_from("<ii", data, 18)
    if struct.unpack_from("<I", data, 30)[0] not in (1, 2):  # run-length
        return data
    pixels = abs(width * height)
    limit = limits.max_pixels // RUN_LENGTH_FACTOR
    if pixels > limit:
        raise ImageError("TOO_MANY_PIXELS", f"{width} × {height} is over the limit of {limit} for a run-length BMP")
    if len(data) > 2 * pixels + MAX_TABLE_BYTES:
        raise _too_many_parts(f"{len(data)} bytes of runs for {pixels} pixels")
    return data


def _broken(what: str) -> ImageError:
    return ImageError("DECODE_FAILED", what)


def _too_many_parts(what: str) -> ImageError:
    return ImageError("TOO_MANY_PARTS", what)


_CHECKS: dict[str, Callable[[bytes, Limits], bytes]] = {
    "JPEG": _jpeg,
    "PNG": _png,
    "WEBP": _webp,
    "GIF": _gif,
    "BMP": _bmp,
}
