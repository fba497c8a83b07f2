"""Every refusal of the gateway: its code, its HTTP status, and its text as problem+json (RFC 9457)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from starlette.responses import Response

from clipsieve import ImageRejected, InferenceFailed

MEDIA_TYPE = "application/problem+json"


@dataclass(frozen=True)
class Kind:
    """A refusal's status and its meaning, in words for the reader of the documentation."""

    status: int
    meaning: str


IMAGE_KINDS: dict[str, Kind] = {
    "EMPTY": Kind(400, "The picture has no bytes."),
    "BAD_BASE64": Kind(400, "The base64 text or data: URI is broken."),
    "NOT_AN_IMAGE": Kind(415, "The bytes are none of the formats that the server reads."),
    "TOO_MANY_BYTES": Kind(413, "The picture, or the whole request, has more bytes than are allowed."),
    "TOO_MANY_PIXELS": Kind(422, "The picture has more pixels than the server decodes."),
    "TOO_ELONGATED": Kind(422, "The picture is so narrow that resizing it would exceed the pixel limit."),
    "TOO_MANY_FRAMES": Kind(422, "The animation has more frames than the server takes."),
    "TOO_MANY_SCANS": Kind(422, "The JPEG passes more often over the picture than the server takes."),
    "TOO_MANY_PARTS": Kind(422, "The file has more segments, chunks or blocks than any honest one."),
    "DECODE_FAILED": Kind(422, "The file is cut off or damaged."),
}
"""Refusals of one picture, with the server's own codes."""

REQUEST_KINDS: dict[str, Kind] = {
    "BAD_HTTP": Kind(400, "The bytes are no HTTP/1.1 request that has one meaning."),
    "BAD_MULTIPART": Kind(400, "The multipart form is broken, or has a field that means nothing here."),
    "BAD_JSON": Kind(400, "The JSON is broken, or has not the fields that it should have."),
    "NO_IMAGE": Kind(400, "The request holds no picture."),
    "UNKNOWN_HEAD": Kind(400, "There is no head of that name; GET /heads lists them."),
    "UNAUTHORIZED": Kind(401, "The request has no token, or one that is not let in."),
    "NOT_FOUND": Kind(404, "There is nothing at this path."),
    "METHOD_NOT_ALLOWED": Kind(405, "The path does not take this method."),
    "TOO_SLOW": Kind(408, "The request did not arrive in time."),
    "TOO_MANY_FILES": Kind(413, "The request holds more pictures or fields than are allowed."),
    "UNSUPPORTED_TYPE": Kind(415, "The Content-Type or Content-Encoding is none that is read here."),
    "RATE_LIMITED": Kind(429, "This token has used up its rate; Retry-After says when to come back."),
    "INTERNAL": Kind(500, "A fault of the gateway itself."),
    "SERVER_FAILED": Kind(502, "Triton failed, or answered what makes no sense."),
    "TOO_BUSY": Kind(503, "The gateway has no room for the request now; try again."),
    "SERVER_BUSY": Kind(503, "Triton has no room for the request now; try again."),
    "SERVER_UNAVAILABLE": Kind(503, "Triton does not answer, or still loads its models."),
    "DEADLINE_EXCEEDED": Kind(504, "Triton took too long."),
}
"""Refusals of a whole request."""

KINDS = IMAGE_KINDS | REQUEST_KINDS


class Problem(Exception):
    """A request is refused."""

    def __init__(self, code: str, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(code, detail)
        self.code, self.detail, self.headers = code, detail, dict(headers or {})

    @property
    def status(self) -> int:
        return KINDS[self.code].status

    def as_json(self) -> dict[str, Any]:
        return problem_json(self.code, self.detail)


def problem_json(code: str, detail: str) -> dict[str, Any]:
    """The members of problem+json, and our code; `type` leads to its meaning."""
    kind = KINDS.get(code) or IMAGE_KINDS["DECODE_FAILED"]  # a code of a newer server, about a picture
    return {"type": f"/docs#{code}", "title": kind.meaning, "status": kind.status, "code": code, "detail": detail}


def problem_of(error: ImageRejected | InferenceFailed) -> dict[str, Any]:
    """The refusal of one picture."""
    code = error.code
    if isinstance(error, InferenceFailed) and code not in KINDS:
        code = "SERVER_FAILED"
    return problem_json(code, error.message)


def problem_response(problem: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> Response:
    fields = dict(headers or {})
    if problem["status"] == 503:
        fields.setdefault("Retry-After", "1")
    return Response(problem_text(problem), problem["status"], fields, MEDIA_TYPE)


def problem_text(problem: Mapping[str, Any]) -> bytes:
    return json.dumps(problem, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
