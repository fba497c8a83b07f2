"""What is sent in place of a picture is named in the message that refuses it, and none of its bytes are shown."""

from __future__ import annotations

import base64
import gzip
import io
import zipfile

import pytest
from pictures import SVG, encoded, noise
from PIL import Image

from common.manifest import Preprocessing
from common.pixels import import_served, served_module, served_transform
from recipes.serving_section import Serving

served_module()
kind_of = import_served("clip_kinds").kind_of
CONVERT = "convert it to JPEG or PNG"
TAKE = f"{CONVERT}, or add {{}} to serving.formats of the server's recipe and build it again"
PREPROCESSING = Preprocessing(
    image_size=32,
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    resize_mode="shortest",
    interpolation="bicubic",
    fill_color=0,
)


def _zip() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.jpg", b"x")
    return file.getvalue()


KINDS = {
    b"\0\0\0\x24ftypheic\0\0\0\0mif1heic": f"a HEIC picture; {TAKE.format('HEIC')}",
    encoded(noise(8, 8), "TIFF"): f"a TIFF picture; {TAKE.format('TIFF')}",
    encoded(noise(8, 8), "AVIF"): f"an AVIF picture; {TAKE.format('AVIF')}",
    b"\xff\x0a\x00": f"a JPEG XL picture; {CONVERT}",
    b"8BPS\0\x01": f"a PSD picture; {CONVERT}",
    b"%PDF-1.7\n": f"a PDF; {CONVERT}, page by page",
    SVG: f"an SVG drawing; {CONVERT}",
    b'<?xml version="1.0"?>\n<!-- drawn -->\n<svg xmlns="x">': f"an SVG drawing; {CONVERT}",
    b"<!DOCTYPE html><html><body>404</body></html>": "a web page or XML, such as an error page under a picture's name",
    b"version https://git-lfs.github.com/spec/v1\noid sha256:0": "a pointer of Git LFS, not the file it stands for; "
    "run git lfs pull",
    b"https://example.org/a.jpg": "an address; addresses are not fetched, send the picture's bytes",
    _zip(): "a ZIP archive",
    gzip.compress(b"x"): "gzip-compressed data",
    b"\0\0\0\x20ftypisom\0\0\x02\0": "a video, or another file like one",
    b'{"image": "x"}': "JSON",
    "ein Brief über nichts".encode(): "text",
    ("ü" * 400).encode(): "text",
    b"\x00\x01\x02\xfe": "4 bytes of no known kind",
}


@pytest.mark.parametrize("data", KINDS, ids=KINDS.values())
def test_what_is_no_picture_is_named(data):
    assert kind_of(data) == KINDS[data]


def test_the_refusal_says_what_is_taken_and_shows_no_byte():
    transform = served_transform([PREPROCESSING], Serving(formats=["JPEG", "PNG"]))
    for data, message in (
        (b"my secret letter", "text; JPEG, PNG are taken"),
        (encoded(noise(8, 8), "GIF"), "a picture in a format that this server does not take; JPEG, PNG are taken"),
    ):
        with pytest.raises(served_module().ImageError) as refused:
            transform(data)
        assert (refused.value.code, refused.value.message) == ("NOT_AN_IMAGE", message)


def test_url_safe_base64_is_named():
    picture = encoded(Image.effect_noise((40, 40), 90), "PNG")
    text = base64.urlsafe_b64encode(picture)
    assert b"-" in text or b"_" in text
    with pytest.raises(served_module().ImageError) as refused:
        served_transform([PREPROCESSING], Serving())(text)
    assert refused.value.code == "BAD_BASE64"
    assert "url-safe base64; write it with + and / instead of - and _" in refused.value.message


@pytest.mark.parametrize("data", [b"<" * 10**6, b"<!-- " * 10**6, b"<a " * 10**6, b" " * 10**6, b"\1" * 10**6])
def test_only_the_beginning_is_looked_at(data):
    assert kind_of(data) == kind_of(data[:512]).replace("512", str(len(data)))
