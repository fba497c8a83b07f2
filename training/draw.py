"""Draws a labelled set of pictures, round shapes and angular ones, so that the demo needs no download.

    python -m training.draw /tmp/shapes                                   # 600 to train on, 200 held out
    python -m training.draw /tmp/shapes --count 60 --held-out 20 --seed 1

Writes train/{angular,round}/ and held_out/{angular,round}/ as JPEG, PNG and WebP files of many sizes and
modes. Colours, sizes, places and formats follow one distribution for both classes: only outlines differ.
The same seed draws the same pictures; what is drawn already is not drawn again.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from common.cpu import core_count
from common.manifest import sha256_of, tool_versions, write_atomically
from recipes.errors import run_step
from training.errors import INTERRUPTED, StepError
from training.progress import say, tracked

CLASS_NAMES = ("angular", "round")
SPLITS = ("train", "held_out")
MADE = "made.json"
"""Says in the folder what was drawn, and by which code."""
_SMALLEST_SIDE, _LARGEST_SIDE = 90, 700  # pixels
_OVERSAMPLING = 2
_INK, _PAPER = (0, 120), (200, 255)  # shades of a channel: dark shapes on light paper for both classes
_ORIENTATION_TAG = 0x0112
# EXIF orientation → the rotation or flip that stores an upright picture that way.
_STORED_AS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def draw_set(folder: Path, count: int, held_out: int, seed: int) -> int:
    """Draw both splits, half of each split per class; returns the number of files written."""
    sizes = dict(zip(SPLITS, (count, held_out), strict=True))
    jobs = [(split, index % 2, index) for split, size in sizes.items() for index in range(size)]

    def draw_one(job: tuple[str, int, int]) -> None:
        split, label, index = job
        rng = np.random.default_rng([seed, SPLITS.index(split), label, index])
        data, suffix = encode_picture(draw_picture(label, rng), rng)
        write_atomically(folder / split / CLASS_NAMES[label] / f"{index:05d}.{suffix}", data)

    with ThreadPoolExecutor(core_count()) as pool:  # Pillow and numpy let go of the interpreter's lock
        for _ in tracked(pool.map(draw_one, jobs), "drawing", len(jobs), "images"):
            pass
    return len(jobs)


def is_drawn(folder: Path, settings: dict[str, Any]) -> bool:
    """Return True if the folder holds what these settings draw, by this code: as many pictures as were written then."""
    made = folder / MADE
    if not made.is_file() or json.loads(made.read_text()) != settings:
        return False
    return sum(1 for path in folder.glob("*/*/*") if path.is_file()) == settings["count"] + settings["held_out"]


def draw_picture(label: int, rng: np.random.Generator) -> Image.Image:
    """An upright RGB picture of several shapes of one class on a random background."""
    width, height = _picture_size(rng)
    larger = (width * _OVERSAMPLING, height * _OVERSAMPLING)
    canvas = Image.fromarray(_background(width, height, rng)).resize(larger, Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(canvas)
    for _ in range(rng.integers(8, 15)):
        _draw_nested_shape(draw, label, canvas.size, rng)
    return canvas.reduce(_OVERSAMPLING)


def encode_picture(picture: Image.Image, rng: np.random.Generator) -> tuple[bytes, str]:
    """The picture as the bytes of a file, in a random format and mode, and the file's suffix."""
    encoders = [_jpeg, _grey_jpeg, _cmyk_jpeg, _turned_jpeg, _png, _grey_png, _transparent_png, _palette_png]
    encoders += [_jpeg, _webp, _transparent_webp]
    return encoders[rng.integers(len(encoders))](picture, rng)


def _picture_size(rng: np.random.Generator) -> tuple[int, int]:
    """(width, height): sides from 90 to 700 pixels, small ones as likely as large ones, at most 1:2."""
    short = int(np.exp(rng.uniform(np.log(_SMALLEST_SIDE), np.log(_LARGEST_SIDE / 1.5))))
    long = min(int(short * rng.uniform(1, 2)), _LARGEST_SIDE)
    return (short, long) if rng.random() < 0.5 else (long, short)


def _background(width: int, height: int, rng: np.random.Generator) -> np.ndarray:
    """(height, width, 3) uint8: a gradient between two light colours in a random direction, under noise."""
    angle = rng.uniform(0, 2 * np.pi)
    across, down = np.linspace(-1, 1, width, dtype=np.float32), np.linspace(-1, 1, height, dtype=np.float32)
    position = (across * np.cos(angle) + down[:, None] * np.sin(angle)) / 3 + 0.5  # (height, width) in 0..1
    start, end = rng.uniform(*_PAPER, (2, 3)).astype(np.float32)
    noise = rng.uniform(0, 12) * rng.standard_normal((height, width), np.float32)
    channels = [first + position * (last - first) + noise for first, last in zip(start, end, strict=True)]
    return np.clip(np.stack(channels, axis=-1), 0, 255).astype(np.uint8)


def _draw_nested_shape(draw: ImageDraw.ImageDraw, label: int, size: tuple[int, int], rng: np.random.Generator) -> None:
    """One outline filled several times, each smaller than the last, dark and light in turn."""
    outline = (_round_outline if label else _angular_outline)(rng)
    center = rng.uniform(0, 1, 2) * size
    scale = min(size) * rng.uniform(0.4, 0.75)
    colors = [tuple(rng.uniform(*shade, 3).astype(int).tolist()) for shade in (_INK, _PAPER)]
    rings = int(rng.integers(5, 9))
    for ring in range(rings):
        points = center + outline * scale * (1 - ring / rings)
        draw.polygon([(x, y) for x, y in points.tolist()], fill=colors[ring % 2])


def _round_outline(rng: np.random.Generator) -> np.ndarray:
    """(60, 2) points of a circle, an ellipse or a soft blob around the origin."""
    angles = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    waves = 1 + rng.uniform(0, 0.1) * np.sin(rng.integers(2, 4) * angles)
    points = np.stack([np.cos(angles), np.sin(angles) * rng.uniform(0.7, 1)], axis=1) * waves[:, None]
    return _of_unit_area(_rotated(points, rng.uniform(-np.pi, np.pi)))


def _angular_outline(rng: np.random.Generator) -> np.ndarray:
    """(n, 2) corners of a triangle, a rectangle or a star around the origin, tilted a little."""
    corners = int(rng.choice([3, 4, 4, 4, 5]))
    if corners == 4:
        points = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * (1, rng.uniform(0.7, 1))
    else:
        angles = np.linspace(0, 2 * np.pi, corners * 2, endpoint=False)
        radii = np.where(np.arange(corners * 2) % 2, 0.45, 1)
        points = np.stack([np.cos(angles), np.sin(angles)], axis=1) * radii[:, None]
    return _of_unit_area(_rotated(points, rng.uniform(-0.1, 0.1)))


def _of_unit_area(points: np.ndarray) -> np.ndarray:
    """Scaled so that round and angular shapes cover equally much, and mean colour tells nothing."""
    x, y = points.T
    area = abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2
    return points / np.sqrt(area)


def _rotated(points: np.ndarray, angle: float) -> np.ndarray:
    return points @ np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])


def _jpeg(picture: Image.Image, rng: np.random.Generator) -> tuple[bytes, str]:
    return _saved(picture, "JPEG", quality=int(rng.integers(60, 96))), "jpg"


def _grey_jpeg(picture: Image.Image, rng: np.random.Generator) -> tuple[bytes, str]:
    return _jpeg(picture.convert("L"), rng)


def _cmyk_jpeg(picture: Image.Image, rng: np.random.Generator) -> tuple[bytes, str]:
    return _jpeg(picture.convert("CMYK"), rng)


def _turned_jpeg(picture: Image.Image, rng: np.random.Generator) -> tuple[bytes, str]:
    """Stored turned or mirrored, with the EXIF orientation that sets it upright again."""
    orientation = int(rng.choice(list(_STORED_AS)))
    exif = Image.Exif()
    exif[_ORIENTATION_TAG] = orientation
    return _saved(picture.transpose(_STORED_AS[orientation]), "JPEG", quality=90, exif=exif), "jpg"


def _png(picture: Image.Image, rng: np.random.Generator) -> tuple[bytes, str]:
    return _saved(picture, "PNG", compress_level=1), "png"


def _grey_png(picture: Image.Image, rng: np.random.Generator) -> tuple[bytes, str]:
    return _png(picture.convert("L"), rng)


def _palette_png(picture: Image.Image, rng: np.random.Generator) -> tuple[bytes, str]:
    return _png(picture.quantize(64), rng)


def _transparent_png(picture: Image.Image, rng: np.random.Generator) -> tuple[bytes, str]:
    return _png(_half_transparent(picture, rng), rng)


def _webp(picture: Image.Image, rng: np.random.Generator) -> tuple[bytes, str]:
    return _saved(picture, "WEBP", quality=int(rng.integers(60, 96)), method=2), "webp"


def _transparent_webp(picture: Image.Image, rng: np.random.Generator) -> tuple[bytes, str]:
    return _webp(_half_transparent(picture, rng), rng)


def _half_transparent(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """RGBA that fades from opaque at the middle to nearly clear at the edge."""
    fade = Image.radial_gradient("L").resize(picture.size)
    lowest = int(rng.integers(64, 192))
    transparent = picture.copy()
    transparent.putalpha(fade.point([max(lowest, 255 - value) for value in range(256)]))
    return transparent


def _saved(picture: Image.Image, image_format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, image_format, **options)
    return file.getvalue()


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m training.draw", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, metavar="OUT_FOLDER", help="made if missing")
    parser.add_argument("--count", type=int, default=600, help="training pictures, half of each class (default 600)")
    parser.add_argument("--held-out", type=int, default=200, help="held-out pictures (default 200)")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    arguments = _arguments(argv)
    if arguments.count < 0 or arguments.held_out < 0 or arguments.seed < 0:
        raise StepError(
            "--count, --held-out and --seed are 0 or more, "
            f"found --count {arguments.count} --held-out {arguments.held_out} --seed {arguments.seed}"
        )
    settings = {"count": arguments.count, "held_out": arguments.held_out, "seed": arguments.seed}
    settings |= {"code_sha256": sha256_of(Path(__file__)), "versions": tool_versions("numpy", "pillow")}
    if is_drawn(arguments.folder, settings):
        say(f"{arguments.folder}: drawn before, nothing to do")
    else:
        (arguments.folder / MADE).unlink(missing_ok=True)
        draw_set(arguments.folder, arguments.count, arguments.held_out, arguments.seed)
        write_atomically(arguments.folder / MADE, json.dumps(settings, indent=2).encode())
    print(arguments.folder)


if __name__ == "__main__":
    sys.exit(run_step("training.draw", main, INTERRUPTED))
