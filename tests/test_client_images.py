"""The kinds of value that the client takes as an image."""

from __future__ import annotations

import io

import numpy as np
import pytest
from pictures import jpeg
from PIL import Image

from clipsieve import ImageRejected
from clipsieve.images import encoded

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)


def _decoded(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def test_array_keeps_every_pixel():
    np.testing.assert_array_equal(np.asarray(_decoded(encoded(PIXELS))), PIXELS)


@pytest.mark.parametrize("array", [PIXELS[..., :2], PIXELS[0], PIXELS.astype(np.float32), PIXELS[..., 0]])
def test_other_arrays_are_a_type_error(array):
    with pytest.raises(TypeError, match=r"an array must be \(H, W, 3\) uint8, found "):
        encoded(array)


def test_empty_array_is_rejected():
    with pytest.raises(ImageRejected, match="EMPTY"):
        encoded(np.empty((0, 3, 3), np.uint8))


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "1", "LA", "I;16"])
def test_picture_keeps_its_mode(mode):
    picture = (
        Image.fromarray(PIXELS).convert("L").convert(mode) if mode == "I;16" else Image.fromarray(PIXELS).convert(mode)
    )
    sent = _decoded(encoded(picture))
    assert sent.mode == mode
    assert sent.tobytes() == picture.tobytes()


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "HSV", "F"])
def test_picture_of_a_mode_png_lacks_is_sent_as_rgb(mode):
    assert _decoded(encoded(Image.fromarray(PIXELS).convert(mode))).mode == "RGB"


def test_picture_is_sent_upright():
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(PIXELS).save(file, "PNG", exif=exif)
    assert _decoded(encoded(Image.open(file))).size == (5, 7)


def test_picture_that_cannot_be_decoded_is_rejected():
    with pytest.raises(ImageRejected, match="UNREADABLE"):
        encoded(Image.open(io.BytesIO(jpeg()[:-200])))


def test_open_file_is_read(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"image")
    with (tmp_path / "a.jpg").open("rb") as file:
        assert encoded(file) == b"image"
    with pytest.raises(ImageRejected, match=r"UNREADABLE: .*closed"):
        encoded(file)
    assert encoded(io.BytesIO(b"image")) == b"image"


def test_file_opened_for_text_is_a_type_error():
    with pytest.raises(TypeError, match="opened for reading bytes"):
        encoded(io.StringIO("image"))


def test_file_that_never_ends_is_rejected(monkeypatch):
    monkeypatch.setattr("clipsieve.images.MAX_IMAGE_BYTES", 100)
    with open("/dev/zero", "rb") as endless, pytest.raises(ImageRejected, match="TOO_MANY_BYTES"):
        encoded(endless)


def test_error_in_place_of_an_image_is_its_error():
    with pytest.raises(ImageRejected, match="NO_IMAGE: no member"):
        encoded(ImageRejected("NO_IMAGE", "no member"))


@pytest.mark.parametrize("wrong", [None, 3, ["a.jpg"]])
def test_what_is_no_image_is_a_type_error(wrong):
    with pytest.raises(TypeError, match=f"found {type(wrong).__name__}"):
        encoded(wrong)
