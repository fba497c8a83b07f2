"""HEIC files as containers: what their pictures are made of, counted before a decoder sees a byte.

A HEIC names its pictures as items. One that is derived (a grid of tiles, as of every iPhone, or an overlay) names the
items it is made of, and may name one a thousand times: its own size says nothing of the work. So the pixels of all
parts are added up here. Metadata is unlinked, because the decoder would copy it for each picture of the file; its
orientation plays no part, as a HEIC is turned by properties of its own, which the decoder applies. Sizes that a
compressed picture gives itself, beyond what its item says, are refused by libheif.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from clip_files import MAX_PARTS, ImageError, Limits

WORK_FACTOR = 3
"""Most pixels of all parts together, as a multiple of the limit: a grid has its own and those of its tiles."""
MAX_DEPTH = 8
"""Derived pictures within one another."""
MAX_PROPERTY_BYTES = 2**26
"""Most bytes of properties, such as colour profiles, each counted for every item that has it."""


@dataclass
class Items:
    """The items of a file.

    Attributes:
        primary: the item that is shown.
        pixels: of each item, by its `ispe` property.
        parts: of each derived item, the items it is made of.
        auxiliaries: of each item, those that belong to it, such as its alpha.
    """

    primary: int
    pixels: dict[int, int] = field(default_factory=dict)
    parts: dict[int, tuple[int, ...]] = field(default_factory=dict)
    auxiliaries: dict[int, list[int]] = field(default_factory=dict)

    def work(self, item: int, limit: int, depth: int = 0) -> int:
        """Pixels of an item and of all that it is made of; above `limit` it is some number above it."""
        if depth > MAX_DEPTH:
            raise ImageError("TOO_MANY_PARTS", f"a HEIC whose pictures are made of others over {MAX_DEPTH} deep")
        if item not in self.pixels:
            raise ImageError("DECODE_FAILED", "a HEIC with a picture that does not say its size")
        total, counted = self.pixels[item], {}
        for part in (*self.parts.get(item, ()), *self.auxiliaries.get(item, ())):
            if total > limit:
                break
            if part not in counted:
                counted[part] = self.work(part, limit, depth + 1)
            total += counted[part]
        return total


def unlinked_heif(data: bytes, limits: Limits) -> bytes:
    """The same picture in a file whose metadata belongs to no picture.

    Raises:
        ImageError: TOO_MANY_PIXELS, TOO_MANY_PARTS or DECODE_FAILED.
    """
    try:
        items, links = _read_items(data)
    except (IndexError, struct.error) as error:
        raise ImageError("DECODE_FAILED", "a HEIC whose description ends early") from error
    size = items.pixels.get(items.primary, 0)
    if size > limits.max_pixels:
        raise ImageError("TOO_MANY_PIXELS", f"{size} pixels are over the limit of {limits.max_pixels}")
    limit = WORK_FACTOR * limits.max_pixels
    if items.work(items.primary, limit) > limit:
        raise ImageError("TOO_MANY_PIXELS", f"the parts of a HEIC have over {limit} pixels together, the limit")
    unlinked = bytearray(data)
    for position in links:
        unlinked[position : position + 4] = b"free"
    return bytes(unlinked)


def boxes(data: bytes, position: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """(type, start of the content, end) of each box in data[position:end]; one that is cut off ends beyond."""
    for _ in range(MAX_PARTS):
        if position + 8 > end:
            return
        size, kind = struct.unpack_from(">I4s", data, position)
        start = position + 8
        if size == 1:
            (size,) = struct.unpack_from(">Q", data, start)
            start += 8
        size = size or end - position  # 0: up to the end
        if size < start - position:
            raise ImageError("DECODE_FAILED", f"a box of {size} bytes")
        yield kind, start, position + size
        position += size
    raise ImageError("TOO_MANY_PARTS", f"over {MAX_PARTS} boxes")


def _read_items(data: bytes) -> tuple[Items, list[int]]:
    """The items, and the positions of the types of the links between metadata and pictures."""
    meta = next(((start, end) for kind, start, end in boxes(data, 0, len(data)) if kind == b"meta"), None)
    if meta is None:
        raise ImageError("DECODE_FAILED", "a HEIC without a still picture")
    inner = {kind: (start, end) for kind, start, end in boxes(data, meta[0] + 4, min(meta[1], len(data)))}
    if b"pitm" not in inner or b"iprp" not in inner:
        raise ImageError("DECODE_FAILED", "a HEIC that does not say which picture it shows")
    items = Items(_number(data, inner[b"pitm"][0] + 4, data[inner[b"pitm"][0]] > 0))
    _read_properties(data, *inner[b"iprp"], items)
    return items, _read_references(data, *inner[b"iref"], items) if b"iref" in inner else []


def _read_properties(data: bytes, position: int, end: int, items: Items) -> None:
    """Sizes of the items, by the list of properties and the properties that each item has."""
    inner = list(boxes(data, position, end))
    properties = [each for kind, *span in inner if kind == b"ipco" for each in boxes(data, *span)]
    total = 0
    for start in (start for kind, start, _ in inner if kind == b"ipma"):
        wide, long = data[start] > 0, data[start + 3] & 1
        (count,) = struct.unpack_from(">I", data, start + 4)
        place = start + 8
        for _ in range(min(count, MAX_PARTS)):
            item, place = _number(data, place, wide), place + (4 if wide else 2)
            for at in range(place + 1, place + 1 + data[place] * (2 if long else 1), 2 if long else 1):
                index = (_number(data, at, False) & 0x7FFF) if long else data[at] & 0x7F
                if not 1 <= index <= len(properties):
                    continue
                kind, first, last = properties[index - 1]
                total += last - first
                if total > MAX_PROPERTY_BYTES:
                    raise ImageError("TOO_MANY_PARTS", f"properties of over {MAX_PROPERTY_BYTES} bytes")
                if kind == b"ispe":
                    width, height = struct.unpack_from(">II", data, first + 4)
                    items.pixels[item] = max(items.pixels.get(item, 0), width * height)
            place += 1 + data[place] * (2 if long else 1)


def _read_references(data: bytes, position: int, end: int, items: Items) -> list[int]:
    """Parts and auxiliaries of items; returns the positions of the types of links of metadata."""
    wide, links = data[position] > 0, []
    size = 4 if wide else 2
    for kind, start, _ in boxes(data, position + 4, end):
        item = _number(data, start, wide)
        (count,) = struct.unpack_from(">H", data, start + size)
        others = struct.unpack_from(f">{count}{'I' if wide else 'H'}", data, start + size + 2)
        if kind == b"dimg":
            items.parts[item] = (*items.parts.get(item, ()), *others)
        elif kind == b"auxl":
            for other in others:
                items.auxiliaries.setdefault(other, []).append(item)
        elif kind == b"cdsc":
            links.append(start - 4)
    return links


def _number(data: bytes, position: int, wide: bool) -> int:
    return struct.unpack_from(">I" if wide else ">H", data, position)[0]
