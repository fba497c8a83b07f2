"""Reads multipart/form-data that is in memory; its parts are views of it, so that no picture is copied.

It is stricter than RFC 2046 where programs differ: nothing may stand before the first boundary, a line that begins as a
boundary is one, and a part's headers are plain. What follows the last boundary is not looked at.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from python_multipart.multipart import parse_options_header

from serving.gateway.problems import Problem

_MOST_OPTIONS = 4
"""Fields of a form beside its pictures."""
_MOST_OPTION_BYTES = 4096
_MOST_HEADERS = 8
_MOST_HEADER_BYTES = 16 * 1024
"""Limits of one part's headers."""
_PLAIN = (b"binary", b"8bit", b"7bit")
"""Transfer encodings that leave the bytes as they are."""
_HEADER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):([^\r\n\0]*)")
_END_OF_HEADERS = b"\r\n\r\n"


@dataclass(frozen=True)
class Part:
    """One field of a form."""

    name: str
    filename: str | None
    data: memoryview

    @property
    def is_option(self) -> bool:
        """True for a setting of the request, which is no picture."""
        return self.name == "heads" and self.filename is None


def read_form(body: bytes, content_type: str, max_files: int) -> list[Part]:
    """The parts of a form.

    Args:
        content_type: of the request, with the boundary.
        max_files: most pictures.

    Raises:
        Problem: BAD_MULTIPART, TOO_MANY_FILES.
    """
    mark = b"--" + _boundary_of(content_type)
    place = body.find(mark, 0, len(mark) + 2)
    if body[: max(place, 0)] not in (b"", b"\r\n") or place < 0:
        raise Problem("BAD_MULTIPART", "the form does not begin with the boundary that the Content-Type names")
    line, place = b"\r\n" + mark, place + len(mark)
    parts: list[Part] = []
    while not body.startswith(b"--", place):
        if not body.startswith(b"\r\n", place):
            raise Problem("BAD_MULTIPART", "a boundary is followed by neither a line break nor --")
        end = body.find(line, place)
        if end < 0:
            raise Problem("BAD_MULTIPART", "the form ends before its closing boundary")
        if len(parts) == max_files + _MOST_OPTIONS:
            raise Problem("TOO_MANY_FILES", f"more than the {max_files} pictures that a request may have")
        parts.append(_part_of(body, place + 2, end))
        _check_option(parts)
        place = end + len(line)
    return parts


def _boundary_of(content_type: str) -> bytes:
    _, parameters = parse_options_header(content_type)
    boundary = parameters.get(b"boundary", b"")
    if not 1 <= len(boundary) <= 70 or b"\r" in boundary or b"\n" in boundary:
        raise Problem("BAD_MULTIPART", "the Content-Type names no boundary of 1 to 70 characters")
    return boundary


def _part_of(body: bytes, start: int, end: int) -> Part:
    """The part whose headers begin at `start` and whose data ends at `end`."""
    head_end = body.find(_END_OF_HEADERS, start, min(end, start + _MOST_HEADER_BYTES))
    lines = body[start:head_end].split(b"\r\n") if head_end > 0 else []
    if len(lines) > _MOST_HEADERS:
        raise Problem("BAD_MULTIPART", f"a part has {len(lines)} headers; it may have {_MOST_HEADERS}")
    dispositions = []
    for line in lines:
        header = _HEADER.fullmatch(line)
        if header is None:
            raise Problem("BAD_MULTIPART", "a part has a header that is no `Name: value`")
        name, value = header[1].lower(), header[2].strip(b" \t")
        if name == b"content-disposition":
            dispositions.append(value)
        elif name == b"content-transfer-encoding" and value.lower() not in _PLAIN:
            encoding = value[:20].decode("ascii", "replace")
            raise Problem("BAD_MULTIPART", f"Content-Transfer-Encoding {encoding!r}; send bytes as they are")
    name, filename = _names_of(dispositions)
    return Part(name, filename, memoryview(body)[head_end + len(_END_OF_HEADERS) : end])


def _names_of(dispositions: Sequence[bytes]) -> tuple[str, str | None]:
    """The names of a field and of its file."""
    if len(dispositions) > 1:
        raise Problem("BAD_MULTIPART", "a part has two headers Content-Disposition")
    kind, parameters = parse_options_header(dispositions[0] if dispositions else b"")
    if kind != b"form-data" or b"name" not in parameters:
        raise Problem("BAD_MULTIPART", "a part has no header Content-Disposition: form-data; name=…")
    filename = parameters.get(b"filename")
    return parameters[b"name"].decode("utf-8", "replace"), None if filename is None else filename.decode(
        "utf-8", "replace"
    )


def _check_option(parts: Sequence[Part]) -> None:
    """Check the last of the parts, if it is an option."""
    if not parts[-1].is_option:
        return
    if any(part.is_option for part in parts[:-1]):
        raise Problem("BAD_MULTIPART", "the field 'heads' is there twice: name all in one, with commas")
    if len(parts[-1].data) > _MOST_OPTION_BYTES:
        raise Problem("BAD_MULTIPART", f"the field 'heads' has more than {_MOST_OPTION_BYTES} bytes")
