"""The exception for each message of a server."""

from __future__ import annotations

import pytest

from clipsieve import ImageRejected, InferenceFailed, ServerUnavailable
from clipsieve.triton_messages import failure_from_status, rejections_from_message


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("image 0: NOT_AN_IMAGE: no known format", [(0, "NOT_AN_IMAGE", "no known format")]),
        ("in ensemble 'image_score', image 0: EMPTY: no bytes", [(0, "EMPTY", "no bytes")]),
        (
            "image 1: TOO_MANY_PIXELS: 90000x90000; at most 64 MP; image 12: DECODE_FAILED: truncated",
            [(1, "TOO_MANY_PIXELS", "90000x90000; at most 64 MP"), (12, "DECODE_FAILED", "truncated")],
        ),
        ("image 3: DECODE_FAILED: two\nlines", [(3, "DECODE_FAILED", "two\nlines")]),
        ("image 0: DECODE_FAILED: a: b: c", [(0, "DECODE_FAILED", "a: b: c")]),
        ("unexpected shape for input 'image'", []),
        ("image 0: not a code: text", []),
        ("", []),
    ],
)
def test_rejections_are_read_from_a_message(message, expected):
    rejections = [(each.index, each.code, each.message) for each in rejections_from_message(message)]
    assert rejections == expected


@pytest.mark.parametrize(
    ("code", "message", "kind", "text"),
    [
        ("INVALID_ARGUMENT", "image 0: EMPTY: no bytes", ImageRejected, "EMPTY: no bytes"),
        ("INVALID_ARGUMENT", "wrong shape", InferenceFailed, "INVALID_ARGUMENT: wrong shape"),
        ("INTERNAL", "image 0: EMPTY: no bytes", InferenceFailed, "INTERNAL: image 0: EMPTY: no bytes"),
        (
            "INTERNAL",
            "Unable to parse request",
            InferenceFailed,
            "TOO_MANY_BYTES: the request reached host:1 cut off, as by a proxy's limit: Unable to parse request",
        ),
        ("UNAVAILABLE", "Exceeds maximum queue size", InferenceFailed, "SERVER_BUSY: Exceeds maximum queue size"),
        ("UNAVAILABLE", "refused", ServerUnavailable, "no answer from host:1: refused"),
        ("DEADLINE_EXCEEDED", "late", InferenceFailed, "DEADLINE_EXCEEDED: late"),
    ],
)
def test_status_decides_the_exception(code, message, kind, text):
    failure = failure_from_status(code, message, "host:1")
    assert type(failure) is kind
    assert str(failure) == text
