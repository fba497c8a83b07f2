"""Malformed and hostile requests to the gateway: each is refused with a documented code, and nobody dies of it."""

from __future__ import annotations

import base64
import json
import re
import socket
import time

import pytest
from gateways import BOUNDARY, HOST, form, part, read_all, running_gateway
from hypothesis import HealthCheck, Phase, given, settings
from pictures import jpeg
from waiting import PATIENCE_S

from clipsieve import Client
from serving.gateway.problems import KINDS
from trials.malformed import gateway_requests
from trials.malformed.gateway import gateway_answer, send_gateway
from trials.malformed.wire import Case, problem, send_http

PICTURE = jpeg(seed=1)
TEXT = base64.b64encode(PICTURE).decode()
MIB = 2**20
LIMITS = ("--max-mib", "4", "--max-files", "16", "--header-timeout", "2", "--body-timeout", "3", "--concurrency", "8")
CHUNKED = "Transfer-Encoding: chunked"
MULTIPART = f"multipart/form-data; boundary={BOUNDARY}"


@pytest.fixture(scope="module")
def gateway(server, tmp_path_factory):
    with running_gateway(server.grpc_url, tmp_path_factory.mktemp("gateway"), *LIMITS) as running:
        yield running
        # The very same picture after all of this, and nothing that was held stays held.
        (result,) = running.send_json("/score", {"images": [TEXT]}).json
        with Client(server.grpc_url) as client:
            (direct,) = client.score([PICTURE])
        assert result["heads"]["demo"]["score"] == pytest.approx(float(direct.scores[0]), abs=1e-5)
        metrics = running.send("/metrics").body.decode()
        assert "clipsieve_gateway_body_bytes 0" in metrics
        assert "clipsieve_gateway_requests_in_flight 0" in metrics
        assert "Traceback" not in running.log.read_text()


def _head(body: bytes, *lines: str) -> bytes:
    fields = ["POST /score HTTP/1.1", "Host: localhost", "Connection: close", *lines]
    return "\r\n".join([*fields, "", ""]).encode("latin-1") + body


# ---- forms ----

FORMS = {
    "10,000 parts": (form([part("image", b"x", "a.jpg")] * 10_000), MULTIPART, "TOO_MANY_FILES"),
    "10,000 empty parts": (form([b""] * 10_000), MULTIPART, "BAD_MULTIPART"),
    "10,000 settings": (form([part("heads", b"demo")] * 10_000), MULTIPART, "BAD_MULTIPART"),
    "10,000 headers": (form([b"A: b\r\n" * 10_000 + part("image", b"x", "a")]), MULTIPART, "BAD_MULTIPART"),
    "a header of 1 MB": (form([b"A: " + b"b" * MIB + b"\r\n" + part("image", b"x", "a")]), MULTIPART, "BAD_MULTIPART"),
    "another boundary": (form([part("image", PICTURE, "a")], "other"), MULTIPART, "BAD_MULTIPART"),
    "no boundary": (form([part("image", PICTURE, "a")]), "multipart/form-data", "BAD_MULTIPART"),
    "an empty boundary": (form([part("image", PICTURE, "a")]), "multipart/form-data; boundary=", "BAD_MULTIPART"),
    "a long boundary": (form([part("image", PICTURE, "a")]), MULTIPART + "x" * 300, "BAD_MULTIPART"),
    "no end": (form([part("image", PICTURE, "a")])[:-20], MULTIPART, "BAD_MULTIPART"),
    "no file": (form([part("heads", b"demo")]), MULTIPART, "NO_IMAGE"),
    "no part": (form([]), MULTIPART, "NO_IMAGE"),
    "nothing": (b"", MULTIPART, "BAD_MULTIPART"),
    "the heads twice": (
        form([part("heads", b"demo"), part("heads", b"demo"), part("image", PICTURE, "a")]), MULTIPART, "BAD_MULTIPART"
    ),
    "no name": (form([part("", PICTURE, disposition=b"attachment")]), MULTIPART, "BAD_MULTIPART"),
    "two dispositions": (
        form([b'Content-Disposition: form-data; name="a"\r\n' + part("image", b"x", "a")]), MULTIPART, "BAD_MULTIPART"
    ),
    "base64 in a part": (
        form([b"Content-Transfer-Encoding: base64\r\n" + part("image", TEXT.encode(), "a")]), MULTIPART, "BAD_MULTIPART"
    ),
    "heads of 1 MB": (form([part("heads", b"x" * MIB), part("image", PICTURE, "a")]), MULTIPART, "BAD_MULTIPART"),
}  # fmt: skip


@pytest.mark.parametrize("kind", FORMS)
def test_a_bad_form_is_refused(gateway, kind):
    body, content_type, code = FORMS[kind]
    assert gateway.send("/score", body, content_type).code == code


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "a\x01b.jpg", "a%0d%0ab.jpg", "\u202egpj.a", "x" * 4000, "'\"<b>"]
)
def test_a_name_is_text_and_nothing_else(gateway, name):
    sent = name.replace('"', "%22").encode()
    answer = gateway.send_form(part("image", PICTURE, disposition=b'form-data; name="image"; filename="' + sent + b'"'))
    assert answer.status == 200, answer.body
    shown = answer.json["image"]
    assert len(shown) <= 255
    assert all(character.isprintable() or character == "\u202e" for character in shown)


def test_a_name_with_a_line_break_is_refused(gateway):
    lines = b'form-data; name="image"; filename="a\r\nX-Other: b.jpg"'
    answer = gateway.send_form(part("image", PICTURE, disposition=lines))
    assert answer.status in (200, 400)
    assert "x-other" not in answer.headers
    if answer.status == 200:
        assert "\n" not in (answer.json["image"] or "")


def test_the_same_field_twice_is_two_pictures(gateway):
    answer = gateway.send_form(part("image", PICTURE, "a.jpg"), part("image", PICTURE, "a.jpg"))
    assert [result["image"] for result in answer.json] == ["a.jpg", "a.jpg"]


# ---- JSON ----

TEXTS = {
    "nothing": (b"", "NO_IMAGE"),
    "blanks": (b" " * MIB, "NO_IMAGE"),
    "cut off": (b'{"image": "' + TEXT.encode(), "BAD_JSON"),
    "200,000 brackets": (b"[" * 200_000, "BAD_JSON"),
    "9,000 brackets": (b"[" * 9_000, "BAD_JSON"),
    "a million values": (b"[" + b"1," * MIB + b"1]", "BAD_JSON"),
    "a number": (b"7", "BAD_JSON"),
    "a number of 100,000 digits": (b'{"image": ' + b"7" * 100_000 + b"}", "BAD_JSON"),
    "NaN": (b'{"image": NaN}', "BAD_JSON"),
    "no UTF-8": (b'{"image": "\xff\xfe"}', "BAD_JSON"),
    "half of a surrogate": (b'{"image": "\\ud800"}', "NOT_AN_IMAGE"),
    "a field twice": (b'{"image": "AAAA", "image": "AAAA"}', "BAD_JSON"),
    "both": (b'{"image": "AAAA", "images": ["AAAA"]}', "BAD_JSON"),
    "neither": (b"{}", "BAD_JSON"),
    "a stranger": (b'{"image": "AAAA", "url": "http://127.0.0.1:8000/"}', "BAD_JSON"),
    "a list in a list": (b'{"images": [["AAAA"]]}', "BAD_JSON"),
    "no pictures": (b'{"images": []}', "NO_IMAGE"),
    "too many": (json.dumps({"images": ["AAAA"] * 17}).encode(), "TOO_MANY_FILES"),
    "a name that is none": (b'{"image": "AAAA", "name": {"a": 1}}', "BAD_JSON"),
    "heads that are none": (b'{"image": "AAAA", "heads": "demo"}', "BAD_JSON"),
}


@pytest.mark.parametrize("kind", TEXTS)
def test_bad_json_is_refused(gateway, kind):
    body, code = TEXTS[kind]
    assert gateway.send("/score", body, "application/json").code == code


ROWS = [
    b"{}", b"[]", b'{"instances": {}}', b'{"inputs": 3}', b'{"instances": [["a", "b"]]}', b'{"instances": [7]}',
    b'{"instances": ["AAAA"], "inputs": ["AAAA"]}', b'{"dataframe_split": {"columns": ["a"], "data": [["AAAA"]]}}',
    b'{"dataframe_split": {"columns": ["image"], "data": [["AAAA", "AAAA"]]}}', b'{"dataframe_split": 3}',
    b'{"dataframe_split": {"columns": ["image", "image"], "data": []}}', b'{"dataframe_records": [{"url": "x"}]}',
]  # fmt: skip


@pytest.mark.parametrize("body", ROWS)
def test_bad_invocations_are_refused(gateway, body):
    assert gateway.send("/invocations", body, "application/json").code == "BAD_JSON"


@pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", "text/csv", "", "image", "multipart/mixed"])
def test_another_type_is_refused(gateway, kind):
    assert gateway.send("/score", PICTURE, kind or None).code == "UNSUPPORTED_TYPE"
    assert gateway.send("/invocations", PICTURE, kind or None).code == "UNSUPPORTED_TYPE"


def test_a_compressed_body_is_refused(gateway):
    assert gateway.send("/score", PICTURE, "image/jpeg", content_encoding="gzip").code == "UNSUPPORTED_TYPE"


# ---- sizes ----


@pytest.mark.parametrize("kind", ["image/jpeg", "application/json", MULTIPART])
def test_a_body_over_the_limit_is_refused_by_its_promise(gateway, kind):
    started = time.monotonic()
    answer = gateway.send_raw(_head(b"", f"Content-Type: {kind}", f"Content-Length: {100 * MIB}"))
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b'"TOO_MANY_BYTES"' in answer
    assert time.monotonic() - started < 60


@pytest.mark.parametrize("kind", ["image/jpeg", MULTIPART])
def test_a_body_of_100_mb_is_refused(gateway, kind):
    """Also by a client that reads only when it has sent everything."""
    data = part("image", b"\xff" * (100 * MIB), "a.jpg")
    assert gateway.send("/score", form([data]), kind).code == "TOO_MANY_BYTES"


def test_a_body_that_promises_nothing_is_refused_when_it_is_too_long(gateway):
    chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
    answer = gateway.send_raw(
        _head(chunk * 80 + b"0\r\n\r\n", "Content-Type: image/jpeg", "Transfer-Encoding: chunked")
    )
    assert answer.startswith(b"HTTP/1.1 413 ")


def test_a_chunked_body_is_read(gateway):
    body = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in (PICTURE[:100], PICTURE[100:])) + b"0\r\n\r\n"
    answer = gateway.send_raw(_head(body, "Content-Type: image/jpeg", "Transfer-Encoding: chunked"))
    assert answer.startswith(b"HTTP/1.1 200 ")


# ---- time ----


def _dribble(port: int, first: bytes, seconds: float = 60) -> bytes:
    """Send some bytes, then one a while, until the other side has had enough."""
    end = time.monotonic() + seconds
    with socket.create_connection((HOST, port), 0.2) as connection:
        connection.sendall(first)
        while time.monotonic() < end:
            try:
                if piece := connection.recv(1 << 16):
                    return piece + read_all(connection)
                return b""
            except TimeoutError:
                pass
            try:
                connection.sendall(b"a")
            except OSError:
                return read_all(connection)
    raise AssertionError("nobody minds")


def test_a_body_of_a_byte_a_while_is_ended(gateway):
    answer = _dribble(gateway.port, _head(b"", "Content-Type: image/jpeg", "Content-Length: 100000"))
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b'"TOO_SLOW"' in answer


@pytest.mark.parametrize("first", [b"", b"POST /score HT", b"POST /score HTTP/1.1\r\nHost: a\r\nX-A: "])
def test_headers_of_a_byte_a_while_are_ended(gateway, first):
    answer = _dribble(gateway.port, first)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b'"TOO_SLOW"' in answer


def test_a_silent_connection_is_ended(gateway):
    with socket.create_connection((HOST, gateway.port), 60) as connection:
        assert b"408" in read_all(connection)


def test_many_slow_bodies_leave_others_a_clear_refusal(gateway):
    """They take all the places there are, for no longer than a body may take."""
    head = _head(b"", "Content-Type: image/jpeg", "Content-Length: 1000")
    slow = [socket.create_connection((HOST, gateway.port), 60) for _ in range(8)]
    try:
        for connection in slow:
            connection.sendall(head)
        deadline = time.monotonic() + 60
        while (answer := gateway.send("/score", PICTURE, "image/jpeg")).status == 200:
            assert time.monotonic() < deadline
        assert (answer.status, answer.code, answer.headers["retry-after"]) == (503, "TOO_BUSY", "1")
        assert gateway.send("/health").status == 200
        for connection in slow:
            assert read_all(connection).startswith(b"HTTP/1.1 408 ")
    finally:
        for connection in slow:
            connection.close()
    assert gateway.send("/score", PICTURE, "image/jpeg").status == 200


def test_too_many_connections_are_refused(server, tmp_path):
    with running_gateway(server.grpc_url, tmp_path, "--connections", "3") as small:
        held = [socket.create_connection((HOST, small.port), 60) for _ in range(3)]
        try:
            with socket.create_connection((HOST, small.port), 60) as one_more:
                answer = read_all(one_more)
        finally:
            for connection in held:
                connection.close()
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b'"TOO_BUSY"' in answer


def test_a_client_that_goes_away_leaves_nothing(gateway):
    for length in (10, 1000):
        with socket.create_connection((HOST, gateway.port), 60) as connection:
            connection.sendall(_head(PICTURE[:length], "Content-Type: image/jpeg", f"Content-Length: {len(PICTURE)}"))


# ---- HTTP ----

SMUGGLED = b"0\r\n\r\nGET /heads HTTP/1.1\r\nHost: localhost\r\n\r\n"
REQUESTS = {
    "garbage": b"\x00\x01\x02\xff" * 100 + b"\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 512,
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/0.9": b"GET /\r\n\r\n",
    "no host": b"POST /score HTTP/1.1\r\nContent-Length: 0\r\n\r\n",
    "two hosts": _head(b"", "Host: other", "Content-Length: 0"),
    "headers of 1 MB": _head(b"", "X-A: " + "a" * MIB),
    "10,000 headers": _head(b"", *["A: b"] * 10_000),
    "length and chunks": _head(SMUGGLED, f"Content-Length: {len(SMUGGLED)}", CHUNKED),
    "chunks and length": _head(SMUGGLED, CHUNKED, "Content-Length: 4"),
    "two lengths": _head(SMUGGLED, "Content-Length: 0", f"Content-Length: {len(SMUGGLED)}"),
    "two lengths in one": _head(SMUGGLED, "Content-Length: 0, 5"),
    "a negative length": _head(b"", "Content-Length: -1"),
    "a length with a sign": _head(SMUGGLED, "Content-Length: +5"),
    "a length in hexadecimal": _head(SMUGGLED, "Content-Length: 0x10"),
    "a length of 2^64": _head(b"", f"Content-Length: {2**64 + 5}", "Content-Type: image/jpeg"),
    "a length of 5,000 digits": _head(b"", "Content-Length: " + "9" * 5000, "Content-Type: image/jpeg"),
    "chunks twice": _head(SMUGGLED, CHUNKED, CHUNKED),
    "chunks and identity": _head(SMUGGLED, CHUNKED, "Transfer-Encoding: identity"),
    "xchunked": _head(SMUGGLED, "Transfer-Encoding: xchunked"),
    "chunked by a blank": _head(SMUGGLED, "Transfer-Encoding : chunked"),
    "chunked by a tab": _head(SMUGGLED, "Transfer-Encoding:\x0bchunked"),
    "gzip, chunked": _head(SMUGGLED, "Transfer-Encoding: gzip, chunked"),
    "chunks over HTTP/1.0": _head(SMUGGLED, CHUNKED).replace(b"HTTP/1.1", b"HTTP/1.0"),
    "a chunk that is no number": _head(b"zz\r\nabc\r\n0\r\n\r\n", CHUNKED, "Content-Type: image/jpeg"),
    "a chunk that is negative": _head(b"-1\r\nabc\r\n0\r\n\r\n", CHUNKED, "Content-Type: image/jpeg"),
    "a chunk of 2^64": _head(b"10000000000000000\r\nabc", CHUNKED, "Content-Type: image/jpeg"),
    "a chunk longer than its size": _head(b"1\r\nabc\r\n0\r\n\r\n", CHUNKED, "Content-Type: image/jpeg"),
    "a chunk with an extension of 1 MB": _head(b"1;" + b"a" * MIB + b"\r\n", CHUNKED, "Content-Type: image/jpeg"),
    "a line break in a value": _head(b"", "X-A: a\rContent-Length: 5"),
    "a NUL in a value": _head(b"", "X-A: a\x00b"),
    "a blank before the colon": _head(b"", "Content-Length : 5"),
    "two tokens": _head(b"", "Authorization: Bearer a", "Authorization: Bearer b", "Content-Length: 0"),
    "an address of 100,000 bytes": b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
}


@pytest.mark.parametrize("kind", REQUESTS)
def test_http_that_is_none_is_refused(gateway, kind):
    answer = gateway.send_raw(REQUESTS[kind], half_close=True)
    assert answer.startswith((b"HTTP/1.1 4", b"HTTP/1.1 501"))
    assert b"nsfw" not in answer
    assert len(re.findall(rb"HTTP/1.1 \d", answer)) == 1, answer  # what was smuggled in is not answered
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"application/problem+json" in head
    assert json.loads(body)["code"] in KINDS


def test_a_pipelined_request_is_answered_after_the_first(gateway):
    first = _head(PICTURE, "Content-Type: image/jpeg", f"Content-Length: {len(PICTURE)}").replace(
        b"Connection: close\r\n", b""
    )
    answer = gateway.send_raw(first + b"GET /ping HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    assert answer.count(b"HTTP/1.1 200 ") == 2


def test_what_ends_the_embedded_server_ends_here(gateway, server):
    """Requests that Triton 2.51 does not survive, at the gateway's door: none of them is passed on."""
    for path in ("/v2/models/image_score/infer", "/score"):
        huge = b'{"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1152921504606846976], "data": []}]}'
        assert gateway.send(path, huge, "application/json").status in (400, 404)
    answer = send_http(f"{HOST}:{gateway.port}", Case("nested", _head(b"", "Content-Length: 0") + b"[" * 1000))
    assert answer.outcome == "refused"
    assert server.poll() is None


# ---- generated ----


@pytest.fixture(scope="module")
def honest_score(server):
    with Client(server.grpc_url) as client:
        return float(client.score([gateway_requests.PICTURE])[0].scores[0])


@pytest.mark.parametrize("kind", gateway_requests.KINDS)
def test_generated_requests_are_scored_as_meant_or_refused(gateway, honest_score, kind):
    @settings(
        max_examples=10, derandomize=True, database=None, deadline=None, phases=[Phase.generate],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    )  # fmt: skip
    @given(gateway_requests.KINDS[kind])
    def check(case: Case) -> None:
        answer = send_gateway(f"{HOST}:{gateway.port}", case, timeout_s=PATIENCE_S)
        assert problem(case, answer, honest_score) is None, case.data[:1000]

    check()


def _received(status: str, body: bytes, media_type: str = "application/problem+json") -> bytes:
    head = f"HTTP/1.1 {status}\r\ncontent-type: {media_type}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


REFUSED = _received("400 Bad Request", b'{"code": "EMPTY", "status": 400}')
SCORED = _received("200 OK", b'{"heads": {"demo": {"score": 0.5}}}', "application/json")


@pytest.mark.parametrize(
    ("received", "outcome"),
    [
        (REFUSED, "refused"),
        (SCORED, "scored"),
        (SCORED + REFUSED, "scored"),
        (b"HTTP/1.1 100 \r\n\r\n" + SCORED, "scored"),
        (_received("400 Bad Request", b'{"code": "NOT_AN_IMAGE", "status": 400}'), "undocumented"),
        (_received("400 Bad Request", b'{"code": "NEW", "status": 400}'), "undocumented"),
        (_received("400 Bad Request", b"oops"), "undocumented"),
        (_received("400 Bad Request", b"oops", "text/plain"), "undocumented"),
        (_received("200 OK", b'[{"error": {"code": "NEW"}}]', "application/json"), "undocumented"),
        (REFUSED + SCORED, "undocumented"),
        (b"\x15\x03\x03", "undocumented"),
    ],
)
def test_answers_as_the_trial_reads_them(received, outcome):
    answer = gateway_answer(received)
    assert answer.outcome == outcome
    assert (problem(Case("", b"", tolerated=True), answer, 0.5) is None) == (outcome != "undocumented")
