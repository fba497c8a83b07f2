"""Small image files of every format, and files made from them by damage that knows how they are built.

`mutant(index, seed)` is the same bytes on every machine with the same Pillow: a run can be resumed, and a
finding repeated from its two numbers.
"""

from __future__ import annotations

import functools
import io
import random
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "AVIF", "HEIC", "TIFF")
TELLING_NUMBERS = (
    0,
    1,
    2,
    3,
    7,
    8,
    16,
    127,
    128,
    255,
    256,
    4095,
    32767,
    32768,
    65535,
    2**24,
    2**31 - 1,
    2**31,
    2**32 - 1,
)
EXIF_HEAD = b"Exif\0\0"


@dataclass(frozen=True)
class Mutant:
    """A damaged file: what it was, what was done to it."""

    format: str
    mutation: str
    data: bytes


def mutant(index: int, seed: int) -> Mutant:
    rng = random.Random(f"{seed}:{index}")
    format = FORMATS[index % len(FORMATS)]
    first, second = rng.choice(seed_files(format)), rng.choice(seed_files(format))
    name = rng.choice(list(MUTATIONS))
    data = MUTATIONS[name](rng, first, second, format)
    if rng.random() < 0.3:  # and once more, at random
        data = _flip(rng, data, data, format)
    if rng.random() < 0.8:
        data = repaired(data, format)
    return Mutant(format, name, data)


@functools.cache
def seed_files(format: str) -> list[bytes]:
    """Valid files that between them use most of what the format offers."""
    return SEED_FILES[format]()


def pieces(data: bytes, format: str) -> list[bytes]:
    """The file cut where its structure has seams; together they are the file, even a broken one."""
    return [piece for piece in _PIECES[format](data) if piece] or [data]


def repaired(data: bytes, format: str) -> bytes:
    """Checksums and the outer length made right, so that damage reaches the decoder behind them."""
    if format == "PNG":
        return data[:8] + b"".join(_with_checksum(chunk) for chunk in _png_pieces(data)[1:])
    if format == "WEBP" and len(data) > 12:
        return data[:4] + struct.pack("<I", len(data) - 8) + data[8:]
    return data


# ---- damage ----


def _flip(rng: random.Random, data: bytes, other: bytes, format: str) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16)) if changed else 0):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)


def _truncate(rng: random.Random, data: bytes, other: bytes, format: str) -> bytes:
    return data[: rng.randrange(len(data))]


def _extend(rng: random.Random, data: bytes, other: bytes, format: str) -> bytes:
    return data + (rng.randbytes(rng.randrange(1, 200)) if rng.random() < 0.5 else other)


def _insert(rng: random.Random, data: bytes, other: bytes, format: str) -> bytes:
    at = rng.randrange(len(data))
    return data[:at] + rng.randbytes(rng.randrange(1, 40)) + data[at:]


def _erase(rng: random.Random, data: bytes, other: bytes, format: str) -> bytes:
    at, count = rng.randrange(len(data)), rng.randrange(1, 64)
    return data[:at] + rng.choice((b"", bytes(count), b"\xff" * count)) + data[at + count :]


def _splice(rng: random.Random, data: bytes, other: bytes, format: str) -> bytes:
    return data[: rng.randrange(len(data))] + other[rng.randrange(len(other)) :]


def _splice_pieces(rng: random.Random, data: bytes, other: bytes, format: str) -> bytes:
    ours, theirs = pieces(data, format), pieces(other, format)
    return b"".join(ours[: rng.randrange(1, len(ours) + 1)] + theirs[rng.randrange(len(theirs)) :])


def _duplicate_piece(rng: random.Random, data: bytes, other: bytes, format: str) -> bytes:
    parts = pieces(data, format)
    parts.insert(rng.randrange(len(parts) + 1), rng.choice(parts) * rng.choice((1, 1, 2, 300)))
    return b"".join(parts)


def _drop_piece(rng: random.Random, data: bytes, other: bytes, format: str) -> bytes:
    parts = pieces(data, format)
    del parts[rng.randrange(len(parts))]
    return b"".join(parts) or data[:20]


def _shuffle_pieces(rng: random.Random, data: bytes, other: bytes, format: str) -> bytes:
    first, *rest = pieces(data, format)
    rng.shuffle(rest)
    return first + b"".join(rest)


def _foreign_piece(rng: random.Random, data: bytes, other: bytes, format: str) -> bytes:
    parts = pieces(data, format)
    parts[rng.randrange(len(parts))] = rng.choice(pieces(other, format))
    return b"".join(parts)


def _number(rng: random.Random, data: bytes, other: bytes, format: str) -> bytes:
    """A field of a piece's first bytes (a length, a size, a count, an offset) set to a telling value."""
    parts = pieces(data, format)
    which = rng.randrange(len(parts))
    parts[which] = _set_number(rng, parts[which], rng.randrange(min(40, len(parts[which]))))
    return b"".join(parts)


def _size(rng: random.Random, data: bytes, other: bytes, format: str) -> bytes:
    at = {
        "JPEG": data.find(b"\xff\xc0") + 5,
        "PNG": 16,
        "WEBP": 24,
        "GIF": 6,
        "BMP": 18,
        "AVIF": data.find(b"ispe") + 8,
        "HEIC": data.find(b"ispe") + 8,
        "TIFF": data.find(b"\0\1") + 8,  # the tag ImageWidth, or something that looks like it
    }
    return _set_number(rng, data, at[format] + rng.choice((0, 2, 4)))


def _exif(rng: random.Random, data: bytes, other: bytes, format: str) -> bytes:
    """EXIF of random entries, and any orientation."""
    entries = [
        (rng.choice((0x112, rng.randrange(65536))), rng.randrange(14), rng.choice(TELLING_NUMBERS)) for _ in range(8)
    ]
    body = b"".join(struct.pack("<HHII", *entry, rng.choice(TELLING_NUMBERS)) for entry in entries)
    exif = b"II*\0" + struct.pack("<IH", 8, len(entries)) + body + rng.randbytes(20)
    if format == "JPEG":
        return data[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 8) + EXIF_HEAD + exif + data[2:]
    if format == "PNG":
        return data[:33] + struct.pack(">I", len(exif)) + b"eXIf" + exif + bytes(4) + data[33:]
    if format == "WEBP":
        return data + b"EXIF" + struct.pack("<I", len(exif)) + exif
    at = data.find(b"II*\0")
    return data[:at] + exif + data[at + len(exif) :] if at > 0 else _flip(rng, data, other, format)


def _recompress(rng: random.Random, data: bytes, other: bytes, format: str) -> bytes:
    """Damage behind the compression of a PNG; elsewhere to the longest piece."""
    parts = pieces(data, format)
    which = max(range(len(parts)), key=lambda index: len(parts[index]))
    if format != "PNG":
        parts[which] = _flip(rng, parts[which], other, format)
        return b"".join(parts)
    raw = zlib.decompress(b"".join(part[8:-4] for part in parts if part[4:8] == b"IDAT"))
    packed = zlib.compress(rng.choice((_flip, _truncate, _erase, _extend))(rng, raw, raw, format))
    idat = struct.pack(">I", len(packed)) + b"IDAT" + packed + bytes(4)
    return b"".join([part for part in parts[:-1] if part[4:8] != b"IDAT"] + [idat, parts[-1]])


Mutation = Callable[[random.Random, bytes, bytes, str], bytes]
MUTATIONS: dict[str, Mutation] = {
    "flip": _flip,
    "truncate": _truncate,
    "extend": _extend,
    "insert": _insert,
    "erase": _erase,
    "splice": _splice,
    "splice pieces": _splice_pieces,
    "duplicate piece": _duplicate_piece,
    "drop piece": _drop_piece,
    "shuffle pieces": _shuffle_pieces,
    "foreign piece": _foreign_piece,
    "number": _number,
    "size": _size,
    "exif": _exif,
    "recompress": _recompress,
}


def _set_number(rng: random.Random, data: bytes, at: int) -> bytes:
    width, order = rng.choice((1, 2, 4)), rng.choice(("little", "big"))
    number = (rng.choice(TELLING_NUMBERS) % 256**width).to_bytes(width, order)
    return data[:at] + number + data[at + width :]


# ---- structure ----


def _jpeg_pieces(data: bytes) -> list[bytes]:
    """The start, each segment, and what follows each segment."""
    parts, position = [data[:2]], 2
    while position + 4 <= len(data) and data[position] == 0xFF:
        end = position + 2 + max(2, struct.unpack_from(">H", data, position + 2)[0])
        parts.append(data[position:end])
        position = end
        if data[position : position + 1] != b"\xff":  # pixels, up to the next marker that is one
            end = position
            while end < len(data) and not (data[end] == 0xFF and data[end + 1 : end + 2] not in (b"", b"\0")):
                end += 1
            parts.append(data[position:end])
            position = end
    return [*parts, data[position:]]


def _png_pieces(data: bytes) -> list[bytes]:
    return [data[:8], *_lengths(data, 8, ">I", 12)]


def _webp_pieces(data: bytes) -> list[bytes]:
    return [data[:12], *_lengths(data, 12, "<4xI", 8, even=True)]


def _avif_pieces(data: bytes) -> list[bytes]:
    return _lengths(data, 0, ">I", 0)


def _lengths(data: bytes, position: int, form: str, overhead: int, even: bool = False) -> list[bytes]:
    """Pieces that tell their own length, of which `overhead` bytes are not counted."""
    parts = []
    while position + 8 <= len(data):
        (length,) = struct.unpack_from(form, data, position)
        end = position + max(8, overhead + length + (length % 2 if even else 0))
        parts.append(data[position:end])
        position = end
    return [*parts, data[position:]] if position < len(data) else parts


def _gif_pieces(data: bytes) -> list[bytes]:
    """The screen, its palette, then at each `!` or `,` that follows a terminator."""
    palette = 6 << (data[10] & 7) if len(data) > 10 and data[10] & 0x80 else 0
    parts, start = [data[:13], data[13 : 13 + palette]], 13 + palette
    for position in range(start + 1, len(data)):
        if data[position] in b"!,;" and data[position - 1] == 0:
            parts.append(data[start:position])
            start = position
    return [*parts, data[start:]]


def _bmp_pieces(data: bytes) -> list[bytes]:
    pixels = struct.unpack_from("<I", data, 10)[0] if len(data) > 14 else 14
    return [part for part in (data[:14], data[14:54], data[54:pixels], data[max(54, pixels) :]) if part]


def _tiff_pieces(data: bytes) -> list[bytes]:
    """The header, and the directory with its tags, each a piece of its own, and what lies between."""
    order = "<" if data[:2] == b"II" else ">"
    at = struct.unpack_from(f"{order}I", data, 4)[0] if len(data) > 8 else 0
    if not 8 <= at <= len(data) - 2:
        return [data[:8], data[8:]]
    first = at + 2
    end = min(len(data), first + 12 * struct.unpack_from(f"{order}H", data, at)[0])
    return [
        data[:8],
        data[8:at],
        data[at:first],
        *(data[tag : min(tag + 12, end)] for tag in range(first, end, 12)),
        data[end:],
    ]


_PIECES = {
    "JPEG": _jpeg_pieces,
    "PNG": _png_pieces,
    "WEBP": _webp_pieces,
    "GIF": _gif_pieces,
    "BMP": _bmp_pieces,
    "AVIF": _avif_pieces,
    "HEIC": _avif_pieces,
    "TIFF": _tiff_pieces,
}


def _with_checksum(chunk: bytes) -> bytes:
    return chunk[:-4] + struct.pack(">I", zlib.crc32(chunk[4:-4])) if len(chunk) >= 12 else chunk


# ---- valid files ----


def _picture(seed: int, mode: str = "RGB") -> Image.Image:
    rng = random.Random(seed)
    coarse = Image.frombytes("RGB", (9, 7), rng.randbytes(9 * 7 * 3)).resize((72 + seed, 56))
    if mode == "RGBA":
        coarse.putalpha(Image.frombytes("L", (9, 7), rng.randbytes(63)).resize(coarse.size))
    return coarse if mode in ("RGB", "RGBA") else coarse.convert(mode)


def _encoded(image: Image.Image, format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def _animation(format: str, mode: str = "RGB", **options) -> bytes:
    first, *others = (_picture(5, mode).rotate(turn) for turn in (0, 90, 180))
    return _encoded(first, format, save_all=True, append_images=others, duration=40, **options)


def _oriented() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def _jpegs() -> list[bytes]:
    return [
        _encoded(_picture(0), "JPEG", quality=85),
        _encoded(_picture(1), "JPEG", quality=60, progressive=True, exif=_oriented()),
        _encoded(_picture(2, "L"), "JPEG", optimize=True),
        _encoded(_picture(3, "CMYK"), "JPEG"),
        _encoded(_picture(4), "JPEG", restart_marker_rows=1, subsampling=0, icc_profile=bytes(200), comment=b"hello"),
    ]


def _pngs() -> list[bytes]:
    grey16 = _picture(4, "L").convert("I").point(lambda value: value * 257).convert("I;16")
    return [
        _encoded(_picture(0), "PNG", exif=_oriented()),
        _encoded(_picture(1, "RGBA"), "PNG", icc_profile=bytes(200)),
        _encoded(_picture(2).quantize(16), "PNG", transparency=3),
        _encoded(_picture(3, "1"), "PNG"),
        _encoded(grey16, "PNG"),
        _animation("PNG"),
        _interlaced_png(20, 13),
    ]


def _interlaced_png(width: int, height: int) -> bytes:
    rows = b""
    for x, y, step_x, step_y in (
        (0, 0, 8, 8),
        (4, 0, 8, 8),
        (0, 4, 4, 8),
        (2, 0, 4, 4),
        (0, 2, 2, 4),
        (1, 0, 2, 2),
        (0, 1, 1, 2),
    ):
        columns, count = -(-(width - x) // step_x), -(-(height - y) // step_y)
        rows += b"".join(bytes([row % 5]) + bytes(range(3 * columns)) for row in range(count))
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 1)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    whole = [struct.pack(">I", len(body)) + kind + body + bytes(4) for kind, body in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(map(_with_checksum, whole))


def _webps() -> list[bytes]:
    return [
        _encoded(_picture(0), "WEBP", quality=80),
        _encoded(_picture(1), "WEBP", lossless=True),
        _encoded(_picture(2, "RGBA"), "WEBP", quality=60, exif=_oriented()),
        _animation("WEBP"),
        _animation("WEBP", "RGBA", lossless=True),
    ]


def _gifs() -> list[bytes]:
    return [
        _encoded(_picture(0).quantize(64), "GIF", interlace=True, comment=b"hello"),
        _encoded(_picture(1).quantize(8), "GIF", interlace=False, transparency=2),
        _encoded(_picture(2, "L"), "GIF"),
        _animation("GIF"),
    ]


def _bmps() -> list[bytes]:
    modes = ("RGB", "L", "1", "RGBA")
    return [*(_encoded(_picture(seed, mode), "BMP") for seed, mode in enumerate(modes)), _run_length_bmp(24, 16)]


def _run_length_bmp(width: int, height: int) -> bytes:
    palette = b"".join(bytes([value, 255 - value, 7, 0]) for value in range(256))
    rows = b"".join(bytes([width - 4, row, 0, 4, 1, 2, 3, 4, 0, 0]) for row in range(height)) + b"\0\1"
    offset = 54 + len(palette)
    head = b"BM" + struct.pack("<IHHI", offset + len(rows), 0, 0, offset)
    return head + struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(rows), 0, 0, 256, 0) + palette + rows


def _avifs() -> list[bytes]:
    return [
        _encoded(_picture(0), "AVIF", speed=10),
        _encoded(_picture(1, "RGBA"), "AVIF", speed=10, exif=_oriented()),
        _animation("AVIF", speed=10),
    ]


def _heics() -> list[bytes]:
    """Plain, turned, with alpha, in tiles, and with a second picture; none without pillow-heif."""
    import pillow_heif  # pyright: ignore[reportMissingImports] (its extra)

    pillow_heif.register_heif_opener()
    return [
        _encoded(_picture(0), "HEIF", quality=60),
        _encoded(_picture(1), "HEIF", quality=60, exif=_oriented().tobytes()),
        _encoded(_picture(2, "RGBA"), "HEIF", quality=60),
        _encoded(_picture(3).resize((160, 130)), "HEIF", quality=60, tile_size=64),
        _encoded(_picture(4, "L"), "HEIF", quality=60, save_all=True, append_images=[_picture(5)]),
    ]


def _tiffs() -> list[bytes]:
    grey16 = _picture(4, "L").convert("I").point(lambda value: value * 257).convert("I;16")
    return [
        _encoded(_picture(0), "TIFF", exif=_oriented()),
        _encoded(_picture(1), "TIFF", compression="tiff_lzw"),
        _encoded(_picture(2, "RGBA"), "TIFF", compression="tiff_adobe_deflate"),
        _encoded(_picture(3), "TIFF", compression="jpeg"),
        _encoded(_picture(3, "CMYK"), "TIFF", compression="packbits"),
        _encoded(_picture(5, "1"), "TIFF", compression="group4"),
        _encoded(_picture(2).quantize(16), "TIFF"),
        _encoded(grey16, "TIFF"),
        _animation("TIFF"),
    ]


SEED_FILES = {
    "JPEG": _jpegs,
    "PNG": _pngs,
    "WEBP": _webps,
    "GIF": _gifs,
    "BMP": _bmps,
    "AVIF": _avifs,
    "HEIC": _heics,
    "TIFF": _tiffs,
}
