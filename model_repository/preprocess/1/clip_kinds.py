"""Names what was sent in place of a picture, for the message that refuses it: people send all kinds of files."""

from __future__ import annotations

import codecs
import re

PICTURES = {
    "HEIC": re.compile(rb"....ftyp(?:hei[cxms]|hev[cmsx]|mif1|msf1)", re.DOTALL),
    "AVIF": re.compile(rb"....ftypavi[fs]", re.DOTALL),
    "TIFF": re.compile(rb"II[*+]\0|MM\0[*+]"),
    "JPEG_XL": re.compile(rb"\xff\x0a|\0\0\0\x0cJXL \r\n\x87\n"),
    "PSD": re.compile(rb"8BPS\x00\x01"),
}
"""Beginnings of pictures in formats that no recipe, or not every one, decodes."""

CAN_BE_TAKEN = ("HEIC", "AVIF", "TIFF")
"""Those of PICTURES that a recipe may name in `serving.formats`."""

_CONVERT = "convert it to JPEG or PNG"
_TAKE = "add {} to serving.formats of the server's recipe and build it again"
_OTHERS = (
    (rb"\x89PNG|\xff\xd8\xff|GIF8|BM|RIFF....WEBP", "a picture in a format that this server does not take"),
    (rb"%PDF-", f"a PDF; {_CONVERT}, page by page"),
    (rb"\s*<[?!a-z].{0,500}<svg|\s*<svg", f"an SVG drawing; {_CONVERT}"),
    (rb"\s*<[?!a-z]", "a web page or XML, such as an error page under a picture's name"),
    (rb"version https://git-lfs", "a pointer of Git LFS, not the file it stands for; run git lfs pull"),
    (rb"\s*(?:https?|s3|gs|file)://", "an address; addresses are not fetched, send the picture's bytes"),
    (rb"PK\x03\x04", "a ZIP archive"),
    (rb"\x1f\x8b", "gzip-compressed data"),
    (rb"....ftyp|\x1aE\xdf\xa3|RIFF....AVI ", "a video, or another file like one"),
    (rb"\{\s*\"|\[\s*[\{\"\]]", "JSON"),
)
_KINDS = tuple((re.compile(beginning, re.DOTALL | re.IGNORECASE), kind) for beginning, kind in _OTHERS)
_LOOKED_AT = 512
_TEXT = re.compile(rb"[\t\n\r -~\x80-\xff]*")


def picture_format(data: bytes) -> str | None:
    """The name in PICTURES of a picture's format; None for anything else."""
    return next((name for name, beginning in PICTURES.items() if beginning.match(data)), None)


def kind_of(data: bytes) -> str:
    """What the bytes are, with what to do about it: `a HEIC picture; convert it to JPEG or PNG`. Shows none of them."""
    start = data[:_LOOKED_AT]
    format = picture_format(start)
    if format is not None:
        remedy = f"{_CONVERT}, or {_TAKE.format(format)}" if format in CAN_BE_TAKEN else _CONVERT
        return f"{'an' if format == 'AVIF' else 'a'} {format.replace('_', ' ')} picture; {remedy}"
    kind = next((kind for beginning, kind in _KINDS if beginning.match(start)), None)
    if kind is not None:
        return kind
    return "text" if _is_text(start) else f"{len(data)} bytes of no known kind"


def _is_text(start: bytes) -> bool:
    try:
        codecs.getincrementaldecoder("utf-8")().decode(start)  # which takes half a letter at the end
    except UnicodeDecodeError:
        return False
    return _TEXT.fullmatch(start) is not None
