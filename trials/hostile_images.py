"""The costliest image files that the limits let through, and those that they stop: seconds and memory of each.

    python -m trials.hostile_images

Each file is made to cost the served preprocessing as much as its format can be made to, at the recipe's
default limits, and decoded in a process of its own, whose CPU time is shown. Prints a table and one JSON
line; the largest figure is the bound on one image that SECURITY.md states.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import io
import os
import struct
import sys
import time
import zlib
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path

from PIL import Image

from benchmarks.machine import machine, print_result
from benchmarks.tables import print_table
from trials.fuzz_images import answer, transform
from trials.image_mutations import FORMATS

SIDE = 8000
"""64 megapixels, the limit, as a square."""


def jpeg_segment(marker: int, body: bytes) -> bytes:
    return b"\xff" + bytes([marker]) + struct.pack(">H", len(body) + 2) + body


def jpeg_of_scans(side: int, scans: int, frame: int = 0xC2) -> bytes:
    """A grey picture, flat, refined again and again by scans of a few bytes; `frame` 0xCA is arithmetic coding."""
    tables = jpeg_segment(0xDB, b"\0" + b"\1" * 64)
    tables += jpeg_segment(frame, struct.pack(">BHHB", 8, side, side, 1) + b"\1\x11\0")
    for table, symbol in ((b"\0", b"\0"), (b"\x10", b"\xe0")):  # one code of one bit each
        tables += jpeg_segment(0xC4, table + b"\1" + bytes(15) + symbol)
    first = jpeg_segment(0xDA, b"\1\1\0\0\0\1") + b"\0"
    refinement = jpeg_segment(0xDA, b"\1\1\0\1\x3f\x10") + bytes(200)
    return b"\xff\xd8" + tables + first + refinement * (scans - 1) + b"\xff\xd9"


def jpeg_of_segments(count: int, body: bytes = b"", marker: int = 0xFE) -> bytes:
    return b"\xff\xd8" + jpeg_segment(marker, body) * count


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(side: int, depth: int, color: int, rows: bytes, before: bytes = b"", after: bytes = b"") -> bytes:
    head = png_chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, depth, color, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n"
        + head
        + before
        + png_chunk(b"IDAT", zlib.compress(rows, 1))
        + after
        + png_chunk(b"IEND", b"")
    )


def paeth_rows(side: int, pixel_bytes: int) -> bytes:
    return (b"\4" + b"\1" * (side * pixel_bytes)) * side


def png_of_profiles(count: int) -> bytes:
    """PNG with many profiles, each a kilobyte that unpacks to a megabyte."""
    profile = png_chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(2**20 - 1), 9))
    return png(8, 8, 0, (b"\0" + b"\1" * 8) * 8, before=profile * count)


def webp_of_frames(count: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGBA", (16, 16), (1, 2, 3, 99)).save(buffer, "WEBP", lossless=True)
    pixels = buffer.getvalue()[buffer.getvalue().index(b"VP8L") :]
    frame = bytes(6) + b"\x0f\0\0" * 2 + b"\x64\0\0\0" + pixels
    body = _riff(b"VP8X", b"\x12\0\0\0" + b"\x3f\0\0" * 2) + _riff(b"ANIM", bytes(6)) + _riff(b"ANMF", frame) * count
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body


def webp_canvas(side: int) -> bytes:
    """A canvas of side × side pixels before a picture of 16 × 16."""
    data = webp_of_frames(2)
    size = (side - 1).to_bytes(3, "little")
    return data[:24] + size + size + data[30:]


def gif_of_blocks(count: int) -> bytes:
    return b"GIF89a\1\0\1\0\0\0\0" + b"!\xfe" + b"\1a" * count + b"\0;"


def gif_of_frames(count: int) -> bytes:
    frame = b",\0\0\0\0\2\0\2\0\0" + b"\2\3\x84\x8f\x05\0"
    return b"GIF89a\2\0\2\0\x80\0\0\0\0\0\xff\xff\xff" + frame * count + b";"


def run_length_bmp(width: int, height: int, runs: bytes) -> bytes:
    palette = b"".join(bytes([value, 255 - value, 7, 0]) for value in range(256))
    head = b"BM" + struct.pack("<IHHI", 54 + len(palette) + len(runs), 0, 0, 54 + len(palette))
    return head + struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(runs), 0, 0, 256, 0) + palette + runs


def box(kind: bytes, *content: bytes) -> bytes:
    body = b"".join(content)
    return struct.pack(">I", 8 + len(body)) + kind + body


HEIC_BRAND = box(b"ftyp", b"heic", bytes(4), b"mif1heic")


def heic_of_items(
    size: tuple[int, int],
    parts: int,
    part_size: tuple[int, int] | None = (64, 64),
    loop: bool = False,
) -> bytes:
    """A grid that names one item again and again; with `loop` that item is made of the grid. It has no pixels."""
    infos = [(1, b"grid"), (2, b"grid" if loop else b"hvc1")]
    entries = [box(b"infe", b"\2\0\0\0", struct.pack(">HH", item, 0), kind, b"\0") for item, kind in infos]
    links = [box(b"dimg", struct.pack(">HH", 1, parts), b"\0\2" * parts)]
    links += [box(b"dimg", struct.pack(">HHH", 2, 1, 1))] if loop else []
    sizes = [size, part_size or size]
    properties = box(b"ipco", *(box(b"ispe", bytes(4), struct.pack(">II", *each)) for each in sizes))
    owners = struct.pack(">HBB", 1, 1, 1) + (struct.pack(">HBB", 2, 1, 2) if part_size else b"")
    owned = box(b"ipma", bytes(4), struct.pack(">I", 1 + (part_size is not None)), owners)
    meta = box(
        b"meta",
        bytes(4),
        box(b"hdlr", bytes(8), b"pict", bytes(13)),
        box(b"pitm", bytes(4), b"\0\1"),
        box(b"iinf", bytes(4), struct.pack(">H", len(entries)), *entries),
        box(b"iref", bytes(4), *links),
        box(b"iprp", properties, owned),
    )
    return HEIC_BRAND + meta


def heic_boxes(count: int) -> bytes:
    return HEIC_BRAND + box(b"free") * count


def heic(image: Image.Image, **options) -> bytes:
    import pillow_heif  # pyright: ignore[reportMissingImports] (its extra)

    buffer = io.BytesIO()
    pillow_heif.from_pillow(image).save(buffer, **options)
    return buffer.getvalue()


def noisy_heic(side: int) -> bytes:
    return heic(Image.frombytes("RGB", (side, side), os.urandom(3 * side * side)), quality=90)


def heic_of_tiles(columns: int, rows: int) -> bytes:
    """A flat picture of tiles of 64 × 64 pixels."""
    return heic(Image.new("RGB", (64 * columns, 64 * rows), (90, 60, 30)), quality=30, tile_size=64)


def tiff_of_tags(
    pixels: bytes,
    width: int,
    height: int,
    order: str = "<",
    bits: int = 8,
    samples: int = 1,
    more: dict[int, int] | None = None,
) -> bytes:
    """An uncompressed TIFF of one strip, with `more` tags of one number."""
    lists = struct.pack(f"{order}{samples}H", *[bits] * samples)
    start = 8 + len(lists) + len(lists) % 2
    tags = {0x0100: width, 0x0101: height, 0x0103: 1, 0x0106: 2 if samples > 1 else 1, 0x0111: start, 0x0115: samples}
    tags |= {0x0116: height, 0x0117: len(pixels)} | (more or {})
    entries = [(tag, 4, 1, value) for tag, value in tags.items()]
    entries.append((0x0102, 3, samples, 8) if samples > 2 else (0x0102, 3, samples, _short_in_place(order, bits)))
    table = b"".join(struct.pack(f"{order}HHII", *entry) for entry in sorted(entries))
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, start + len(pixels))
    body = head + lists.ljust(start - 8, b"\0") + pixels
    return body + struct.pack(f"{order}H", len(entries)) + table + bytes(4)


def _short_in_place(order: str, value: int) -> int:
    return value if order == "<" else value << 16


def tiff_of_tiles(width: int, height: int, edge: int) -> bytes:
    """A small picture in one tile of edge × edge pixels."""
    return tiff_of_tags(bytes(width * height), width, height, more={0x0142: edge, 0x0143: edge})


def tiff_of_pages(count: int) -> bytes:
    """Pages without any tags."""
    first = tiff_of_tags(bytes(1), 1, 1)
    at = len(first)
    pages = b"".join(struct.pack("<HI", 0, at + 6 * (page + 1) if page < count - 2 else 0) for page in range(count - 1))
    return first[:-4] + struct.pack("<I", at) + pages


def flat(format: str, mode: str = "RGB", side: int = SIDE, **options) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (side, side), 90).save(buffer, format, **options)
    return buffer.getvalue()


def noisy(format: str, side: int, mode: str = "RGB", **options) -> bytes:
    buffer = io.BytesIO()
    channels = len(Image.new(mode, (1, 1)).getbands())
    Image.frombytes(mode, (side, side), os.urandom(side * side * channels)).save(buffer, format, **options)
    return buffer.getvalue()


def _riff(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("<I", len(body)) + body + bytes(len(body) % 2)


HOSTILE: dict[str, Callable[[], bytes]] = {
    "JPEG, 64 refinements": lambda: jpeg_of_scans(SIDE, 64),
    "JPEG, 64 refinements, arithmetic": lambda: jpeg_of_scans(SIDE, 64, 0xCA),
    "JPEG, 65 scans": lambda: jpeg_of_scans(SIDE, 65),
    "JPEG, progressive, flat": lambda: flat("JPEG", progressive=True),
    "JPEG, progressive, noise": lambda: noisy("JPEG", 4800, quality=95, progressive=True),
    "JPEG, CMYK, flat": lambda: flat("JPEG", "CMYK"),
    "JPEG, 8 million comments": lambda: jpeg_of_segments(8_000_000),
    "JPEG, EXIF 200,000 times": lambda: jpeg_of_segments(200_000, b"Exif\0\0MM\0*" + bytes(100), 0xE1),
    "JPEG, 32 MiB of fill bytes": lambda: b"\xff\xd8" + b"\xff" * (2**25 - 2),
    "PNG, 16-bit RGBA, Paeth": lambda: png(SIDE, 16, 6, paeth_rows(SIDE, 8)),
    "PNG, 8-bit RGBA, Paeth": lambda: png(SIDE, 8, 6, paeth_rows(SIDE, 4)),
    "PNG, 16-bit grey": lambda: png(SIDE, 16, 0, paeth_rows(SIDE, 2)),
    "PNG, black": lambda: png(SIDE, 8, 2, bytes((3 * SIDE + 1) * SIDE)),
    "PNG, 30,000 profiles": lambda: png_of_profiles(30_000),
    "PNG, noise": lambda: noisy("PNG", 2800, "RGBA", compress_level=1),
    "WEBP, flat": lambda: flat("WEBP", method=0),
    "WEBP, lossless, flat": lambda: flat("WEBP", lossless=True, method=0, quality=0),
    "WEBP, noise": lambda: noisy("WEBP", 2900, quality=100, method=0),
    "WEBP, animated canvas": lambda: webp_canvas(SIDE),
    "WEBP, canvas of 10^9 pixels": lambda: webp_canvas(32_000),
    "WEBP, 300,000 frames": lambda: webp_of_frames(300_000),
    "GIF, flat, transparent": lambda: flat("GIF", "P", transparency=0),
    "GIF, noise": lambda: noisy("GIF", 4800, "L"),
    "GIF, 16 million blocks": lambda: gif_of_blocks(16_000_000),
    "GIF, 1,001 frames": lambda: gif_of_frames(1001),
    "BMP, runs of one pixel": lambda: run_length_bmp(2000, 2000, b"\1\5" * 4_000_000),
    "BMP, empty rows": lambda: run_length_bmp(2000, 2000, b"\1\5\0\0" * 2000),
    "BMP, 64 megapixels of runs": lambda: run_length_bmp(SIDE, SIDE, b"\1\5\0\0" * SIDE),
    "AVIF, flat": lambda: flat("AVIF", speed=10),
    "AVIF, noise": lambda: noisy("AVIF", 4000, speed=10, quality=100),
    "HEIC, flat": lambda: heic(Image.new("RGB", (SIDE, SIDE), (90, 60, 30)), quality=30),
    "HEIC, noise": lambda: noisy_heic(3000),
    "HEIC, tiles of 64 pixels": lambda: heic_of_tiles(31, 31),
    "HEIC, one tile 62,500 times": lambda: heic_of_items((64, 64), 62_500, (4000, 4000)),
    "TIFF, flat, LZMA": lambda: flat("TIFF", compression="lzma"),
    "TIFF, flat, CMYK, LZW": lambda: flat("TIFF", "CMYK", compression="tiff_lzw"),
    "TIFF, flat, alpha, deflate": lambda: flat("TIFF", "RGBA", compression="tiff_adobe_deflate"),
    "TIFF, flat, JPEG": lambda: flat("TIFF", compression="jpeg"),
    "TIFF, noise": lambda: noisy("TIFF", 3300),
    "TIFF, a tile of 30,000 pixels": lambda: tiff_of_tiles(64, 64, 30_000),
    "base64 in words of two": lambda: b"/9j/ " + b"AA " * 15_000_000,
}


def cost(name: str, data: bytes) -> dict:
    decode = transform()
    before = peak_mib()
    started = time.process_time()
    code = answer(data, decode)
    seconds = time.process_time() - started
    return {"file": name, "mib": len(data) / 2**20, "code": code, "seconds": seconds, "grown_mib": peak_mib() - before}


def peak_mib() -> float:
    """Peak memory of this process; ru_maxrss would include that of its parent."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m trials.hostile_images")
    parser.add_argument("--only", default="", help=f"files whose name starts so, such as {FORMATS[0]}")
    arguments = parser.parse_args()
    rows, hardware = [], machine()
    for name in [name for name in HOSTILE if name.startswith(arguments.only)]:
        print(name, file=sys.stderr, flush=True)
        with concurrent.futures.ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            rows.append(process.submit(cost, name, HOSTILE[name]()).result())
    print_table(rows)
    print_result("trials.hostile_images", hardware, rows=rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
