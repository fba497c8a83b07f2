"""TIFF files as containers: what is checked before a decoder sees a byte.

A TIFF is a chain of directories, one a page, each a table of tags. Decoding takes the first page; what could cost more
than its pixels (tables, tiles larger than the picture) and what is no picture for people is refused here.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from clip_files import ImageError, Limits

MAX_TAGS = 4096
"""Most entries of a directory; an ordinary one has about twenty."""

SUBFILE, TILE_WIDTH, TILE_LENGTH = 0x00FE, 0x0142, 0x0143
PREVIEW = 1
"""Bit of SUBFILE: a smaller version of another picture in the file."""
OFFSETS = {0x0111: 0x0117, 0x0144: 0x0145}
"""Tags of the places of strips, or tiles, and those of their lengths."""
_TYPES = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}  # of unsigned numbers
_BYTES = {**dict.fromkeys((1, 2, 6, 7), 1), 3: 2, 8: 2, **dict.fromkeys((4, 9, 11, 13), 4)}  # of the others 8


@dataclass(frozen=True)
class Layout:
    """The byte order of a file, and whether it is a BigTIFF, whose places have eight bytes."""

    order: str
    big: bool

    @property
    def place(self) -> str:
        return self.order + ("Q" if self.big else "I")

    @property
    def count(self) -> str:
        return self.order + ("Q" if self.big else "H")

    @property
    def entry(self) -> int:
        """Bytes of one tag."""
        return 20 if self.big else 12


def check_tiff(data: bytes, limits: Limits) -> None:
    """Raise ImageError: TOO_MANY_FRAMES (pages), TOO_MANY_PARTS, TOO_MANY_PIXELS (of a tile) or DECODE_FAILED."""
    layout = layout_of(data)
    try:
        (position,) = struct.unpack_from(layout.place, data, 8 if layout.big else 4)
        first, pages = position, set()
        while position and position not in pages:
            pages.add(position)
            if len(pages) > limits.max_frames:
                raise ImageError("TOO_MANY_FRAMES", f"the TIFF has over {limits.max_frames} pages, the limit")
            position = _next_directory(data, layout, position)
    except struct.error as error:
        raise ImageError("DECODE_FAILED", "a TIFF whose directory lies beyond its end") from error
    tags = directory(data, layout, first)
    if any(value & PREVIEW for value in tags.get(SUBFILE, [])):
        raise ImageError("DECODE_FAILED", "the first picture of the TIFF is a preview, as in camera raw; convert it")
    width, length = (max(tags.get(tag, [0])) for tag in (TILE_WIDTH, TILE_LENGTH))
    limits.check_pixels(width, length)


def layout_of(data: bytes) -> Layout:
    order = "<" if data.startswith(b"II") else ">"
    return Layout(order, struct.unpack_from(order + "H", data, 2)[0] == 43)


def directory(data: bytes, layout: Layout, position: int) -> dict[int, list[int]]:
    """The unsigned numbers of each tag of the directory at `position`, as far as the file has them."""
    tags = {}
    width = struct.calcsize(layout.place)
    for index in range(_entries(data, layout, position)):
        start = position + struct.calcsize(layout.count) + index * layout.entry
        if start + layout.entry > len(data):
            break
        tag, kind = struct.unpack_from(layout.order + "HH", data, start)
        (count,) = struct.unpack_from(layout.place, data, start + 4)
        if kind not in _TYPES:
            continue
        size = struct.calcsize("=" + _TYPES[kind])
        at = start + 4 + width
        if count * size > width:
            (at,) = struct.unpack_from(layout.place, data, at)
        count = min(count, max(0, len(data) - at) // size)
        tags[tag] = list(struct.unpack_from(f"{layout.order}{count}{_TYPES[kind]}", data, at)) if count else [0]
    return tags


def end_of_directory(data: bytes, layout: Layout, position: int) -> int:
    """Where the directory and the values of its tags end, by the tags that the file has."""
    first = position + struct.calcsize(layout.count)
    end = first + _entries(data, layout, position) * layout.entry + struct.calcsize(layout.place)
    width = struct.calcsize(layout.place)
    for start in range(first, min(end - width, len(data) - layout.entry + 1), layout.entry):
        kind, count = struct.unpack_from(layout.order + "H" + layout.place[1], data, start + 2)
        size = count * _BYTES.get(kind, 8)
        if size > width:
            end = max(end, size + struct.unpack_from(layout.place, data, start + 4 + width)[0])
    return end


def end_of_pixels(tags: dict[int, list[int]]) -> int:
    """Where the last strip or tile ends."""
    return max(
        (
            offset + length
            for places, lengths in OFFSETS.items()
            for offset, length in zip(tags.get(places, []), tags.get(lengths, []), strict=False)
        ),
        default=0,
    )


def _entries(data: bytes, layout: Layout, position: int) -> int:
    (count,) = struct.unpack_from(layout.count, data, position)
    if count > MAX_TAGS:
        raise ImageError("TOO_MANY_PARTS", f"a TIFF directory of {count} tags; the limit is {MAX_TAGS}")
    return count


def _next_directory(data: bytes, layout: Layout, position: int) -> int:
    after = position + struct.calcsize(layout.count) + _entries(data, layout, position) * layout.entry
    return struct.unpack_from(layout.place, data, after)[0]
