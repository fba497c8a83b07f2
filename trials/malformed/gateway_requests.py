"""Malformed requests for the gateway, as hypothesis strategies: forms, JSON, chunks, headers and bytes that are wrong.

Most start from a right request that is damaged somewhere, and may then be taken for what the sender must have meant:
the score must be the picture's own.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from serving.probe import tiny_png
from trials.malformed.http_requests import message, small_json
from trials.malformed.wire import Case

PICTURE = tiny_png()
TEXT = base64.b64encode(PICTURE).decode()
BOUNDARY = "a-boundary"

Draw = Callable[[st.SearchStrategy], Any]
KINDS: dict[str, st.SearchStrategy[Case]] = {}


def kind(build: Callable[[Draw], bytes]) -> Callable[[Draw], bytes]:
    """Enter a function that draws the bytes of a request into KINDS under its name."""

    @st.composite
    def case(draw: Draw) -> Case:
        return Case(f"gateway {build.__name__}", build(draw), tolerated=True, half_close=True)

    KINDS[build.__name__] = case()
    return build


def part(data: bytes = PICTURE, disposition: bytes = b'form-data; name="image"; filename="a.png"') -> bytes:
    return b"Content-Disposition: " + disposition + b"\r\n\r\n" + data


def form(parts: list[bytes], mark: bytes = BOUNDARY.encode(), end: bytes = b"--") -> bytes:
    return b"".join(b"--" + mark + b"\r\n" + each + b"\r\n" for each in parts) + b"--" + mark + end + b"\r\n"


def to_score(body: bytes, content_type: str, headers: dict[str, Any] | None = None, path: str = "/score") -> bytes:
    return message(body, {"Content-Type": content_type} | (headers or {}), path)


MULTIPART = f"multipart/form-data; boundary={BOUNDARY}"


@st.composite
def damaged(draw: Draw, right: bytes) -> bytes:
    """Bytes of which some are changed, left out, repeated or put in."""
    data = bytearray(right)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(data)))
        length = draw(st.integers(0, 20))
        odd = st.sampled_from([b"\r\n", b"\r", b"\n", b"\0", b"--", b":", b";", b'"', b"\r\n\r\n", b" ", b"\xff"])
        new = draw(odd | st.binary(max_size=8) | st.just(bytes(data[place : place + length]) * 2))
        data[place : place + draw(st.sampled_from([0, length]))] = new
    return bytes(data)


@kind
def a_form(draw: Draw) -> bytes:
    """A form that is damaged, with the right length."""
    body = form([part(), b'Content-Disposition: form-data; name="heads"\r\n\r\ndemo'][: draw(st.integers(1, 2))])
    return to_score(draw(damaged(body)), MULTIPART)


@kind
def boundaries(draw: Draw) -> bytes:
    letters = st.text("ab-'()+_,./:=? \t\"\r\n;\x00é", max_size=80)
    named, used = draw(letters), draw(letters)
    used = draw(st.sampled_from([named, used, BOUNDARY]))
    body = form([part()], used.encode(), draw(st.sampled_from([b"--", b"", b"-", b"--x", b"--\r\n--"])))
    kinds = [f"multipart/form-data; boundary={named}", f'multipart/form-data; boundary="{named}"', MULTIPART]
    more = draw(st.sampled_from(["", "; boundary=b", "; charset=utf-16", ";" * 50]))
    content_type = (draw(st.sampled_from(kinds)) + more).replace("\r", "").replace("\n", "")
    return to_score(body, content_type)


@kind
def names(draw: Draw) -> bytes:
    """Names of files and fields with paths, line breaks, quotes and controls."""
    odd = st.sampled_from(
        ["../", "..\\", "\r\n", "\n", "%0d%0a", "\0", '"', "\\", "/etc/passwd", "C:\\", "\u202e", ";"]
    )
    name = st.lists(odd | st.text(max_size=8), max_size=300).map("".join)
    file, field = (draw(name).encode("utf-8", "surrogatepass") for _ in range(2))
    keys = draw(st.sampled_from([b"filename", b"filename*", b"filename*=utf-8''", b"FILENAME"]))
    return to_score(
        form([part(disposition=b'form-data; name="' + field + b'"; ' + keys + b'="' + file + b'"')]), MULTIPART
    )


@kind
def parts(draw: Draw) -> bytes:
    """Many parts, the same field again, no file, other headers."""
    some = st.sampled_from(
        [part(), part(b""), part(b"x"), part(b"demo", b'form-data; name="heads"'), b"", b"\r\n", b"A: b\r\n\r\n",
         b"Content-Transfer-Encoding: base64\r\n" + part(TEXT.encode()), part(form([part()], b"inner"))]
    )  # fmt: skip
    chosen = draw(st.lists(some, max_size=6))
    return to_score(form(chosen * draw(st.sampled_from([1, 1, 1, 10, 2000]))), MULTIPART)


@kind
def a_document(draw: Draw) -> bytes:
    """JSON with other fields and values."""
    value = small_json | st.sampled_from([TEXT, [TEXT], {"image": TEXT}, "data:image/png;base64," + TEXT, "AAAA", ""])
    document = draw(st.dictionaries(st.sampled_from(["image", "images", "name", "heads", "x"]), value, max_size=4))
    return to_score(json.dumps(document).encode(), "application/json")


@kind
def damaged_json(draw: Draw) -> bytes:
    document = {"images": [TEXT, {"image": TEXT, "name": "a.png"}], "heads": ["demo"]}
    odd = st.sampled_from([b"[" * 5000, b"1" * 5000, b'{"a":' * 3000, b"NaN", b"1e999", b'"\\ud800"', b"\xff", b""])
    text = json.dumps(document).encode()
    return to_score(
        draw(damaged(text) | odd | odd.map(lambda value: text[:-1] + b', "name": ' + value + b"}")), "application/json"
    )


@kind
def invocations(draw: Draw) -> bytes:
    value = small_json | st.sampled_from(
        [[TEXT], [[TEXT]], {"image": [TEXT]}, [{"image": TEXT}], {"columns": ["image"]}]
    )
    names = st.sampled_from(["instances", "inputs", "dataframe_split", "dataframe_records", "params"])
    document = draw(st.dictionaries(names, value, max_size=2))
    return to_score(json.dumps(document).encode(), "application/json", path="/invocations")


@kind
def chunks(draw: Draw) -> bytes:
    """A body in chunks, damaged; or with sizes that lie."""
    sizes = st.sampled_from(
        [b"0", b"-1", b"", b"zz", b"0x5", b"5;a=b", b"5 ", b" 5", b"+5", b"f" * 16, b"1" * 17, b"00005"]
    )
    pieces = [PICTURE[:40], PICTURE[40:]]
    right = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
    lies = st.lists(st.tuples(sizes, st.binary(max_size=8)), min_size=1, max_size=4).map(
        lambda rows: b"".join(size + b"\r\n" + data + b"\r\n" for size, data in rows) + b"0\r\n\r\n"
    )
    trailer = right[:-2] + b"Content-Length: 5\r\nHost: b\r\n\r\n"
    body = draw(damaged(right) | lies | st.just(trailer))
    return to_score(body, "image/png", {"Transfer-Encoding": "chunked", "Content-Length": None})


@kind
def smuggling(draw: Draw) -> bytes:
    """Lengths and encodings that two programs read in two ways, with a second request in the body."""
    inside = b"POST /score HTTP/1.1\r\nHost: b\r\nContent-Length: 3\r\n\r\nabc"
    body = draw(st.sampled_from([b"0\r\n\r\n" + inside, inside, b"%x\r\n%s\r\n0\r\n\r\n" % (len(inside), inside)]))
    length, blank = str(len(body)), st.sampled_from(["", " ", "\t", "\x0b", "\0", "\xa0"])
    lines = st.sampled_from(
        ["Transfer-Encoding:{}chunked", "Transfer-Encoding{}: chunked", "Transfer-Encoding: chunked{}",
         "Transfer-Encoding: x,{}chunked", "Transfer-Encoding: chunked,{}identity", "transfer-encoding: CHUNKED{}",
         "Transfer_Encoding: chunked{}", "X: y\r\n{}Transfer-Encoding: chunked", "X: y\nTransfer-Encoding:{}chunked",
         "Content-Length:{}" + length, "Content-Length: 0{}", "Content-Length{}: 5", "Content-Length: {}+5",
         "Content-Length: 5,{}5", "Content-Length: 0{}" + length, "Content_Length: 5{}", "Host: other{}",
         "Connection: {}Content-Length", "Expect: 100-continue{}", "Upgrade: h2c{}", "HTTP2-Settings: AA{}"]
    )  # fmt: skip
    chosen = [line.format(draw(blank)) for line in draw(st.lists(lines, min_size=1, max_size=3))]
    version = draw(st.sampled_from(["HTTP/1.1", "HTTP/1.1", "HTTP/1.0", "HTTP/1.2", "HTTP/2.0", "http/1.1", ""]))
    head = [f"POST /score {version}", "Host: a", "Connection: close", "Content-Type: image/png", *chosen, "", ""]
    return "\r\n".join(head).encode("latin-1") + body


@kind
def addresses(draw: Draw) -> bytes:
    method = draw(st.sampled_from(["GET", "POST", "PUT", "HEAD", "OPTIONS", "TRACE", "CONNECT", "get", "P ST", "\0"]))
    odd = st.sampled_from(
        ["/score", "//score", "/../score", "/%2e%2e/", "/score%00", "http://b/score", "*", "", "?heads=", "#"]
    )
    path = draw(st.lists(odd | st.text(max_size=6), max_size=5).map("".join))
    return message(PICTURE, {"Content-Type": "image/png"}, path, method)


@kind
def headers(draw: Draw) -> bytes:
    """Headers that are many, long, twice there, or hold what no header may."""
    name = st.sampled_from(
        ["Host", "Content-Type", "Content-Encoding", "Authorization", "Cookie", "X", "", "A B", "é", "\0"]
    )
    value = st.text(max_size=20) | st.sampled_from(["a" * 40_000, "gzip", "Bearer x", "\r\n X: y", "\x0b", "image/png"])
    rows = draw(st.lists(st.tuples(name, value), min_size=1, max_size=4)) * draw(st.sampled_from([1, 1, 60]))
    lines = [f"{key}: {text}".encode("utf-8", "surrogatepass") for key, text in rows]
    head = [b"POST /score HTTP/1.1", b"Host: a", b"Connection: close", *lines, b"Content-Length: %d" % len(PICTURE)]
    return b"\r\n".join([*head, b"", b""]) + PICTURE


@kind
def raw_bytes(draw: Draw) -> bytes:
    """Any bytes, or a right request that is damaged anywhere."""
    right = to_score(PICTURE, "image/png")
    return draw(st.binary(max_size=400) | damaged(right) | damaged(to_score(form([part()]), MULTIPART)))
