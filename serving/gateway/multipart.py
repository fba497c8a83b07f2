"""Reads multipart/form-data into memory, piece by piece and within its limits."""

from __future__ import annotations

from dataclasses import dataclass, field

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from serving.gateway.problems import Problem

_MOST_OPTIONS = 4
"""Fields of a form beside its pictures."""
_MOST_OPTION_BYTES = 4096
_PLAIN = (b"binary", b"8bit", b"7bit")
"""Transfer encodings that leave the bytes as they are."""


@dataclass
class Part:
    """One field of a form."""

    name: str = ""
    filename: str | None = None
    data: bytearray = field(default_factory=bytearray)

    @property
    def is_option(self) -> bool:
        """True for a setting of the request, which is no picture."""
        return self.name == "heads" and self.filename is None


class FormReader:
    """Takes the bytes of a form and keeps its parts.

    Args:
        content_type: of the request, with the boundary.
        max_files: most pictures.

    Raises:
        Problem: BAD_MULTIPART, TOO_MANY_FILES; also from `write` and `finish`.
    """

    def __init__(self, content_type: str, max_files: int) -> None:
        _, parameters = parse_options_header(content_type)
        boundary = parameters.get(b"boundary", b"")
        if not 1 <= len(boundary) <= 70 or b"\r" in boundary or b"\n" in boundary:
            raise Problem("BAD_MULTIPART", "the Content-Type names no boundary of 1 to 70 characters")
        self.parts: list[Part] = []
        self._max_parts = max_files + _MOST_OPTIONS
        self._max_files = max_files
        self._header, self._value = bytearray(), bytearray()
        self._has_disposition = self._ended = False
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin_part,
                "on_header_field": lambda data, start, end: self._header.extend(data[start:end]),
                "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
                "on_header_end": self._end_header,
                "on_headers_finished": self._end_headers,
                "on_part_data": self._add_data,
                "on_end": self._end,
            },
        )

    def write(self, piece: bytes) -> None:
        try:
            self._parser.write(piece)
        except FormParserError as error:
            raise Problem("BAD_MULTIPART", str(error)[:200]) from None

    def finish(self) -> list[Part]:
        """The parts of a form that is whole."""
        if not self._ended:
            raise Problem("BAD_MULTIPART", "the form ends before its closing boundary, or has another boundary")
        return self.parts

    def _begin_part(self) -> None:
        if len(self.parts) >= self._max_parts:
            raise Problem("TOO_MANY_FILES", f"more than the {self._max_files} pictures that a request may have")
        self.parts.append(Part())
        self._has_disposition = False

    def _end_header(self) -> None:
        if bytes(self._header).lower() == b"content-disposition":
            if self._has_disposition:
                raise Problem("BAD_MULTIPART", "a part has two headers Content-Disposition")
            self._read_disposition(bytes(self._value))
        elif bytes(self._header).lower() == b"content-transfer-encoding" and bytes(self._value).lower() not in _PLAIN:
            encoding = self._value[:20].decode("ascii", "replace")
            raise Problem("BAD_MULTIPART", f"Content-Transfer-Encoding {encoding!r}; send bytes as they are")
        self._header.clear()
        self._value.clear()

    def _read_disposition(self, value: bytes) -> None:
        kind, parameters = parse_options_header(value)
        if kind == b"form-data" and b"name" in parameters:
            self._has_disposition = True
            self.parts[-1].name = parameters[b"name"].decode("utf-8", "replace")
            if b"filename" in parameters:
                self.parts[-1].filename = parameters[b"filename"].decode("utf-8", "replace")

    def _end_headers(self) -> None:
        if not self._has_disposition:
            raise Problem("BAD_MULTIPART", "a part has no header Content-Disposition: form-data; name=…")
        if self.parts[-1].is_option and any(part.is_option for part in self.parts[:-1]):
            raise Problem("BAD_MULTIPART", "the field 'heads' is there twice: name all in one, with commas")

    def _add_data(self, data: bytes, start: int, end: int) -> None:
        part = self.parts[-1]
        part.data += memoryview(data)[start:end]
        if part.is_option and len(part.data) > _MOST_OPTION_BYTES:
            raise Problem("BAD_MULTIPART", f"the field 'heads' has more than {_MOST_OPTION_BYTES} bytes")

    def _end(self) -> None:
        self._ended = True
