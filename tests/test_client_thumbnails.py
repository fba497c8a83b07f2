"""Thumbnails: formats, orientation, transparency, and files that are no pictures."""

from __future__ import annotations

import hashlib
import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipsieve import ImageRejected
from clipsieve.report.thumbnails import Missing, Thumbnail, quiet_decoders, thumbnail_from_file, thumbnails
from tests.pictures import SVG, encoded, jpeg, noise, png_bomb


def _thumbnail(file: Path, data: bytes, edge: int = 64) -> Image.Image:
    file.write_bytes(data)
    return Image.open(io.BytesIO(thumbnail_from_file(str(file), edge).jpeg))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "AVIF"])
def test_every_format_of_the_server_has_a_thumbnail(tmp_path, format):
    image = _thumbnail(tmp_path / "a", encoded(noise(200, 100), format))
    assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (64, 32))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "CMYK", "RGBA", "I;16"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    image = Image.new(mode, (50, 40)) if mode in ("1", "I;16", "P") else noise(50, 40, mode)
    assert _thumbnail(tmp_path / "a", encoded(image, "JPEG" if mode == "CMYK" else "PNG"), 32).size == (32, 26)


def test_grey_of_16_bits_is_scaled(tmp_path):
    grey = Image.fromarray(np.full((8, 8), 0x8000, np.uint16))
    assert _thumbnail(tmp_path / "a", encoded(grey, "PNG")).getpixel((4, 4)) == (128, 128, 128)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_picture_stands_as_exif_says(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = _thumbnail(tmp_path / "a", encoded(noise(200, 100), "JPEG", exif=exif))
    assert image.size == ((64, 32) if orientation < 5 else (32, 64))
    assert not image.getexif()


def test_transparency_lies_on_white(tmp_path):
    clear = Image.new("RGBA", (40, 40), (255, 0, 0, 0))
    assert _thumbnail(tmp_path / "a", encoded(clear, "PNG")).getpixel((20, 20)) == (255, 255, 255)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "NOT_AN_IMAGE"),
        (SVG, "NOT_AN_IMAGE"),
        (encoded(noise(40, 40), "TIFF"), "NOT_AN_IMAGE"),
        (jpeg()[:400], "NOT_AN_IMAGE"),
        (jpeg(400, 400)[:3000], "DECODE_FAILED"),
        (png_bomb(9_000, 9_000), "TOO_MANY_PIXELS"),
        (png_bomb(40_000, 40_000), "TOO_MANY_PIXELS"),
    ],
)
def test_what_cannot_be_decoded_says_why(tmp_path, data, code):
    (tmp_path / "a").write_bytes(data)
    with quiet_decoders(), pytest.raises(ImageRejected) as error:
        thumbnail_from_file(str(tmp_path / "a"), 64)
    assert error.value.code == code


def test_a_pool_makes_them_in_order(tmp_path):
    (tmp_path / "a.jpg").write_bytes(jpeg(100, 50))
    with ThreadPoolExecutor(2) as pool:
        made = list(thumbnails([str(tmp_path / name) for name in ("no", "a.jpg")], 32, pool))
    assert made[0] == Missing("UNREADABLE: No such file or directory")
    assert isinstance(made[1], Thumbnail)
    assert made[1].sha256 == hashlib.sha256((tmp_path / "a.jpg").read_bytes()).hexdigest()
