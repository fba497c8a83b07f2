"""The gateway in front of the real tritonserver: every form of a request, and what is answered."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
from gateways import part, running_gateway
from pictures import jpeg
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message

from clipsieve import Client, Head, HeadScore, Threshold
from common.paths import ROOT
from recipes.errors import run_step
from serving.embedded import free_ports
from serving.gateway import token
from serving.gateway.answers import head_json, head_score_json
from serving.gateway.app import Front, Route, create_app
from serving.gateway.limits import Rates, Room
from serving.gateway.metrics import Metrics
from serving.gateway.multipart import read_form
from serving.gateway.problems import KINDS, Problem
from serving.gateway.server import listening, serve
from serving.gateway.settings import GatewayError, Settings, parse_settings
from serving.gateway.tokens import Doorkeeper, new_token, token_line

PICTURE = jpeg(seed=1)
TEXT = base64.b64encode(PICTURE).decode()


@pytest.fixture(scope="module")
def gateway(server, tmp_path_factory):
    with running_gateway(server.grpc_url, tmp_path_factory.mktemp("gateway")) as running:
        yield running


@pytest.fixture(scope="module")
def direct(server):
    """The picture's score, from Triton without the gateway."""
    with Client(server.grpc_url) as client:
        (score,) = client.score([PICTURE])
    return score.heads["demo"]


def _check(result: dict, direct: HeadScore, name: str | None) -> None:
    assert result["image"] == name
    head = result["heads"]["demo"]
    assert list(head) == ["score", "decision", "class", "revision"]
    assert head["score"] == pytest.approx(float(direct.scores[0]), abs=1e-5)
    assert head["decision"] == ("block" if direct.decisions[0] else "allow")
    assert head["class"] == direct.class_name
    assert f"demo-{head['revision']}" == direct.version


FORMS = {
    "a form": lambda gateway: (gateway.send_form(part("image", PICTURE, "a.jpg")), "a.jpg"),
    "a form whose field is no file": lambda gateway: (gateway.send_form(part("image", TEXT.encode())), "image"),
    "raw bytes": lambda gateway: (gateway.send("/score", PICTURE, "application/octet-stream"), None),
    "a picture": lambda gateway: (gateway.send("/score", PICTURE, "image/jpeg"), None),
    "JSON": lambda gateway: (gateway.send_json("/score", {"image": TEXT}), None),
    "JSON with a name": lambda gateway: (gateway.send_json("/score", {"image": TEXT, "name": "a.jpg"}), "a.jpg"),
    "a data: URI": lambda gateway: (gateway.send_json("/score", {"image": f"data:image/jpeg;base64,{TEXT}"}), None),
    "a head": lambda gateway: (gateway.send("/score?heads=demo", PICTURE, "image/jpeg"), None),
}


@pytest.mark.parametrize("kind", FORMS)
def test_one_picture_is_scored_as_triton_scores_it(gateway, direct, kind):
    answer, name = FORMS[kind](gateway)
    assert answer.status == 200, answer.body
    assert answer.headers["content-type"] == "application/json"
    _check(answer.json, direct, name)


def test_of_many_files_each_has_its_scores_or_its_error(gateway, direct):
    answer = gateway.send_form(
        part("image", PICTURE, "a.jpg"), part("image", b"hello", "b.txt"), part("other", b"", "c.jpg"),
        part("image", PICTURE, "d.jpg"),
    )  # fmt: skip
    assert answer.status == 200
    first, second, third, fourth = answer.json
    _check(first, direct, "a.jpg")
    _check(fourth, direct, "d.jpg")
    assert (second["image"], second["error"]["code"], second["error"]["status"]) == ("b.txt", "NOT_AN_IMAGE", 415)
    assert (third["image"], third["error"]["code"], third["error"]["status"]) == ("c.jpg", "EMPTY", 400)


def test_a_list_in_json_is_answered_by_a_list(gateway, direct):
    (only,) = gateway.send_json("/score", {"images": [TEXT]}).json
    _check(only, direct, None)
    document = {"images": [{"image": TEXT, "name": "a"}, "%%%"], "heads": ["demo"]}
    named, broken = gateway.send_json("/score", document).json
    _check(named, direct, "a")
    assert broken["error"]["code"] in ("BAD_BASE64", "NOT_AN_IMAGE")


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [(b"", 400, "EMPTY"), (b"hello", 415, "NOT_AN_IMAGE"), (PICTURE[:-400], 422, "DECODE_FAILED")],
)
def test_a_bad_picture_alone_is_a_problem(gateway, body, status, code):
    answer = gateway.send("/score", body, "application/octet-stream")
    assert (answer.status, answer.code) == (status, code)
    assert answer.json["type"] == f"/docs#{code}"


@pytest.mark.parametrize(
    "document",
    [
        {"instances": [TEXT, "aGVsbG8="]},
        {"instances": [{"image": TEXT}, {"b64": "aGVsbG8="}]},
        {"inputs": [[TEXT], ["aGVsbG8="]]},
        {"inputs": {"image": [TEXT, "aGVsbG8="]}},
        {"dataframe_records": [{"image": TEXT}, {"image": "aGVsbG8="}]},
        {"dataframe_split": {"columns": ["n", "image"], "data": [[1, TEXT], [2, "aGVsbG8="]]}},
    ],
)
def test_invocations_are_those_of_mlflow(gateway, direct, document):
    answer = gateway.send_json("/invocations", document)
    assert answer.status == 200, answer.body
    scored, failed = answer.json["predictions"]
    _check(scored, direct, None)
    assert failed["error"]["code"] == "NOT_AN_IMAGE"


def test_what_there_is_besides_scores(gateway):
    (head,) = gateway.send("/heads").json
    assert (head["name"], head["task"], head["labels"]) == ("demo", "binary", ["round"])
    assert head["thresholds"]["round"][0]["value"] == 0.5
    for _ in range(2):  # proved first, then probed
        health = gateway.send("/health")
        assert (health.status, health.json["status"]) == (200, "ok")
    assert gateway.send("/ping").status == 200
    metrics = gateway.send("/metrics").body.decode()
    assert 'clipsieve_gateway_requests_total{route="/heads",status="200"} 1' in metrics
    assert "clipsieve_gateway_requests_in_flight 0" in metrics


def test_every_request_of_the_description_is_answered_as_it_says(gateway):
    """The examples of the OpenAPI document, sent."""
    document = gateway.send("/openapi.json").json
    sent = 0
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
            for example in content.get("examples", {}).values():
                heads = example["value"].pop("heads", None)  # are those of an example's server
                assert heads in (None, ["nsfw"])
                answer = gateway.send_json(path, example["value"])
                assert answer.status == 200, answer.body
                sent += 1
            if method == "get":
                assert gateway.send(path).status == 200
            assert set(operation["responses"]) - {"200"} <= {str(kind.status) for kind in KINDS.values()}
    assert sent >= 6
    references = json.dumps(document).split('"$ref": "#/components/schemas/')[1:]
    assert {each.split('"')[0] for each in references} <= set(document["components"]["schemas"])


@pytest.mark.parametrize(
    ("path", "method", "status", "code"),
    [
        ("/v2/health/ready", "GET", 404, "NOT_FOUND"),
        ("/v2/models/image_score/infer", "POST", 404, "NOT_FOUND"),
        ("/v2/repository/models/demo_head/unload", "POST", 404, "NOT_FOUND"),
        ("/score/../v2/repository/index", "POST", 404, "NOT_FOUND"),
        ("//score", "POST", 404, "NOT_FOUND"),
        ("/score", "PUT", 405, "METHOD_NOT_ALLOWED"),
        ("/heads", "DELETE", 405, "METHOD_NOT_ALLOWED"),
    ],
)
def test_nothing_of_triton_is_reached(gateway, path, method, status, code):
    answer = gateway.send(path, b"{}", "application/json", method)
    assert (answer.status, answer.code) == (status, code)


@pytest.mark.parametrize("heads", ["nobody", "demo,nobody", "../demo", "demo_head", "\x00"])
def test_an_unknown_head_is_refused(gateway, heads):
    answer = gateway.send(f"/score?heads={quote(heads)}", PICTURE, "image/jpeg")
    assert (answer.status, answer.code) == (400, "UNKNOWN_HEAD")


def test_a_triton_that_is_gone_is_said_so(refusing_url, tmp_path):
    with running_gateway(refusing_url, tmp_path) as gateway:
        answer = gateway.send("/score", PICTURE, "image/jpeg")
        assert (answer.status, answer.code, answer.headers["retry-after"]) == (503, "SERVER_UNAVAILABLE", "1")
        assert refusing_url not in answer.json["detail"]
        assert (gateway.send("/health").status, gateway.send("/ping").status) == (503, 503)


def test_triton_may_be_asked_over_http(server, tmp_path, direct):
    with running_gateway(f"http://{server.http_url}", tmp_path) as gateway:
        _check(gateway.send("/score", PICTURE, "image/jpeg").json, direct, None)
        assert gateway.send("/score", b"hello", "image/jpeg").code == "NOT_AN_IMAGE"
        assert [gateway.send("/health").json["status"] for _ in range(2)] == ["ok", "ok"]


# ---- tokens ----


@pytest.fixture(scope="module")
def guarded(server, tmp_path_factory):
    """A gateway, its file of tokens, and the token of alice."""
    folder = tmp_path_factory.mktemp("tokens")
    secret = _make_token("alice", folder / "tokens.txt")
    with running_gateway(server.grpc_url, folder, "--tokens", str(folder / "tokens.txt")) as running:
        yield running, folder / "tokens.txt", secret


def _make_token(name: str, file: Path) -> str:
    command = [sys.executable, "-m", "serving.gateway.token", name, "--file", str(file)]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


@pytest.mark.parametrize("path", ["/score", "/invocations", "/heads", "/token", "/metrics"])
def test_without_a_token_nobody_is_answered(guarded, path):
    gateway, _, secret = guarded
    body = None if path in ("/heads", "/token", "/metrics") else PICTURE
    for authorization in (
        "",
        "Bearer",
        "Bearer wrong",
        f"Basic {secret}",
        f"Bearer {secret}x",
        f"Bearer {secret[:-1]}",
    ):
        answer = gateway.send(path, body, "image/jpeg", authorization=authorization)
        assert (answer.status, answer.code) == (401, "UNAUTHORIZED")
        assert answer.headers["www-authenticate"] == "Bearer"


def test_with_a_token_one_is(guarded):
    gateway, file, secret = guarded
    assert gateway.send("/score", PICTURE, "image/jpeg", authorization=f"Bearer {secret}").status == 200
    assert gateway.send("/token", authorization=f"Bearer {secret}").json == {"name": "alice"}
    assert "proof" in gateway.send("/health", authorization=f"bearer {secret}").json["message"]
    assert list(gateway.send("/health").json) == ["status"]  # addresses and processors are not for everybody
    assert gateway.send("/").status == gateway.send("/docs").status == 200
    assert secret not in file.read_text()
    assert file.stat().st_mode & 0o077 == 0


def test_tokens_come_and_go_while_it_runs(guarded):
    gateway, file, secret = guarded
    before = file.read_text()
    second = _make_token("bob", file)
    assert gateway.send("/heads", authorization=f"Bearer {second}").status == 200
    file.write_text(file.read_text().replace("bob sha256:", "bob sha512:"))
    assert gateway.send("/heads", authorization=f"Bearer {second}").status == 200  # a broken file changes nothing
    file.write_text(before)
    assert gateway.send("/heads", authorization=f"Bearer {second}").status == 401
    assert gateway.send("/heads", authorization=f"Bearer {secret}").status == 200


def test_a_name_is_given_once(tmp_path):
    token.main(["alice", "--file", str(tmp_path / "tokens.txt")])
    with pytest.raises(GatewayError, match="has a token of 'alice' already"):
        token.main(["alice", "--file", str(tmp_path / "tokens.txt")])


@pytest.mark.parametrize("text", ["", "# nobody\n", "alice\n", "alice sha256:12\n", "\xff\xfe"])
def test_a_file_without_tokens_is_refused(tmp_path, text):
    (tmp_path / "tokens.txt").write_text(text, encoding="latin-1")
    with pytest.raises(GatewayError, match="tokens"):
        Doorkeeper(tmp_path / "tokens.txt")


def test_a_token_file_takes_comments(tmp_path):
    secret = new_token()
    (tmp_path / "tokens.txt").write_text(f"# ours\n\n{token_line('alice', secret)}\n")
    assert Doorkeeper(tmp_path / "tokens.txt").name_of(f"Bearer {secret}") == "alice"


# ---- limits and settings ----


def test_a_rate_is_kept_and_a_debt_paid():
    now = 0.0
    rates = Rates(2, 4, lambda: now)
    rates.check("a")
    rates.spend("a", 6)
    with pytest.raises(Problem) as refused:
        rates.check("a")
    assert (refused.value.code, refused.value.headers["Retry-After"]) == ("RATE_LIMITED", "2")
    rates.check("b")
    now = 1.5
    rates.check("a")


def test_a_room_is_given_back():
    room = Room(2, "places")
    with room.share() as share:
        share.take(2)
        with room.share() as other, pytest.raises(Problem, match="all 2 places"):
            other.take(1)
    assert room.taken == 0


def test_a_rate_is_refused_with_the_time_to_wait(server, tmp_path):
    with running_gateway(server.grpc_url, tmp_path, "--rate", "0.001", "--burst", "1") as gateway:
        assert gateway.send("/score", PICTURE, "image/jpeg").status == 200
        answer = gateway.send("/score", PICTURE, "image/jpeg")
        assert (answer.status, answer.code) == (429, "RATE_LIMITED")
        assert 900 < int(answer.headers["retry-after"]) <= 1001


def test_metrics_may_have_a_port_of_their_own(server, tmp_path):
    (port,) = free_ports(0)
    token.main(["alice", "--file", str(tmp_path / "tokens.txt")])
    options = ("--metrics-port", str(port), "--tokens", str(tmp_path / "tokens.txt"))
    with running_gateway(server.grpc_url, tmp_path, *options) as gateway:
        inside = replace(gateway, port=port)
        assert "clipsieve_gateway_body_bytes 0" in inside.send("/metrics").body.decode()
        assert (inside.send("/score", PICTURE, "image/jpeg").status, inside.send("/").status) == (404, 404)
        assert gateway.send("/metrics").status == 401


def test_a_port_that_is_taken_is_named(gateway, capfd):
    assert run_step("serving.gateway", lambda: serve(Settings(port=gateway.port))) == 1
    assert f"cannot listen at 127.0.0.1:{gateway.port}: " in capfd.readouterr().err


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_answers_are_not_held_back(host):
    """Whoever accepts from a socket without a protocol's name waits 40 ms for the client's acknowledgement."""
    with listening(host, 0) as opened:
        assert opened.proto == socket.IPPROTO_TCP


def test_settings_come_from_the_environment_too():
    environment = {"CLIPSIEVE_GATEWAY_MAX_FILES": "3", "CLIPSIEVE_GATEWAY_OPEN": "1", "CLIPSIEVE_GATEWAY_TOKENS": ""}
    settings = parse_settings(["--port", "1"], "", environment)
    assert (settings.max_files, settings.open, settings.tokens, settings.port) == (3, True, None, 1)
    assert parse_settings(["--max-files", "5"], "", environment).max_files == 5


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        (["--host", "0.0.0.0"], {}, "--tokens FILE"),
        (["--timeout", "0"], {}, "--timeout must be more than 0, found 0"),
        (["--max-files", "-1"], {}, "--max-files must be more than 0, found -1"),
        (["--port", "70000"], {}, "found 70000"),
        ([], {"CLIPSIEVE_GATEWAY_PORT": "x"}, "CLIPSIEVE_GATEWAY_PORT is 'x'"),
        ([], {"CLIPSIEVE_GATEWAY_OPEN": "maybe"}, "CLIPSIEVE_GATEWAY_OPEN is 'maybe'"),
    ],
)
def test_settings_that_cannot_be_are_refused(arguments, environment, message):
    with pytest.raises(GatewayError, match=message):
        parse_settings(arguments, "", environment)


def test_what_is_open_to_others_says_so():
    assert Settings(host="0.0.0.0", open=True).open
    assert Settings(host="::1").tokens is None


def test_metrics_are_cumulative():
    metrics = Metrics()
    for seconds in (0.004, 0.02, 99):
        metrics.finished("/score", 200, seconds)
    text = metrics.text()
    for line in ('bucket{route="/score",le="0.005"} 1', 'le="0.025"} 2', 'le="30.0"} 2', 'le="+Inf"} 3'):
        assert line in text
    assert 'request_seconds_count{route="/score"} 3' in text


# ---- answers of every task ----


def _thresholds(*values: float) -> tuple[Threshold, ...]:
    return tuple(Threshold(value, f"recall>={value}") for value in values)


def _answer(head: Head, scores: list[float], decisions: list[int]) -> dict:
    values = np.array(scores, np.float32), np.array(decisions, np.int32)
    return head_score_json(head, HeadScore(*values, head.class_of(*values), f"{head.name}-00ff"))


@pytest.mark.parametrize(("passed", "word"), [(0, "allow"), (1, "review"), (2, "block")])
def test_thresholds_passed_are_words(passed, word):
    head = Head("nsfw", ("nsfw",), ("safe", "nsfw"), thresholds=(_thresholds(0.3, 0.8),))
    expected = {"score": 0.1, "decision": word, "class": "nsfw" if passed else "safe", "revision": "00ff"}
    assert _answer(head, [0.1], [passed]) == expected
    assert head_json(head)["thresholds"]["nsfw"][1]["value"] == 0.8


def test_a_multiclass_head_has_scores_and_a_class():
    head = Head("kind", ("a", "b"), ("a", "b"), task="multiclass", thresholds=(_thresholds(0.5), ()))
    expected = {"scores": {"a": 0.25, "b": 0.75}, "class": "b", "revision": "00ff"}
    assert _answer(head, [0.25, 0.75], [0, 0]) == expected


def test_a_multilabel_head_has_scores_and_decisions():
    head = Head("tags", ("a", "b"), (), task="multilabel", thresholds=(_thresholds(0.5), _thresholds(0.2, 0.9)))
    expected = {"scores": {"a": 0.25, "b": 0.75}, "decisions": {"a": "allow", "b": "review"}, "revision": "00ff"}
    assert _answer(head, [0.25, 0.75], [0, 1]) == expected


def test_a_regression_head_decides_when_it_has_thresholds():
    head = Head("taste", ("taste",), (), task="regression", thresholds=((),))
    assert _answer(head, [6.5], [0]) == {"score": 6.5, "revision": "00ff"}
    head = Head("taste", ("taste",), (), task="regression", thresholds=(_thresholds(5),))
    assert _answer(head, [6.5], [1]) == {"score": 6.5, "decision": "good", "revision": "00ff"}


# ---- forms in memory ----

FORM_TYPE = "multipart/form-data; boundary=b"


def _parts(body: bytes) -> list[tuple[str, str | None, bytes]]:
    return [(part.name, part.filename, bytes(part.data)) for part in read_form(body, FORM_TYPE, 2)]


def test_parts_are_the_bytes_between_the_boundaries():
    """Also bytes that nearly are a boundary, and none at all."""
    odd = b"\r\n--a\r\n-b\r\n\r\n--\r--b"
    body = b'--b\r\nContent-Disposition: form-data; name="image"; filename="\xc3\xa9.jpg"\r\n\r\n' + odd
    body += b"\r\n--b\r\nContent-Type: text/plain\r\nCONTENT-DISPOSITION:form-data;name=x\r\n\r\n\r\n--b--\r\n"
    expected = [("image", "\u00e9.jpg", odd), ("x", None, b"")]
    assert _parts(body) == _parts(b"\r\n" + body) == _parts(body + b"what follows") == expected


def test_a_picture_of_a_form_is_not_copied():
    body = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\nabc\r\n--b--'
    (part,) = read_form(body, FORM_TYPE, 1)
    assert part.data.obj is body


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (b"before\r\n--b--", "does not begin with the boundary"),
        (b"--bc\r\n\r\n--b--", "followed by neither a line break nor --"),
        (b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\nx\r\n--b \r\n--b--', "neither a line break nor --"),
        (b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\nx\r\n--', "ends before its closing boundary"),
        (b'--b\r\nContent-Disposition: form-data; name="a"\n\nx\r\n--b--', "no header Content-Disposition"),
        (b'--b\r\nContent Disposition: form-data; name="a"\r\n\r\nx\r\n--b--', "no `Name: value`"),
        (b"--b\r\n" + b"A: b\r\n" * 9 + b"\r\nx\r\n--b--", "a part has 9 headers"),
    ],
)
def test_a_form_with_two_meanings_is_refused(body, problem):
    with pytest.raises(Problem) as refused:
        _parts(body)
    assert refused.value.code == "BAD_MULTIPART"
    assert problem in refused.value.detail


def test_a_fault_of_the_gateway_is_an_answer_and_is_counted(tmp_path):
    """A route that fails is answered with a code; the error goes on to uvicorn, which writes it to the log."""
    front = create_app(Settings())
    assert isinstance(front, Front)

    async def fails(request: Request) -> Response:
        raise ZeroDivisionError("a bug")

    front.routes["/heads"] = Route("/heads", "GET", fails)
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": "http.request"}

    scope = {
        "type": "http", "method": "GET", "path": "/heads", "raw_path": b"/heads", "query_string": b"", "headers": [],
        "http_version": "1.1", "server": ("127.0.0.1", 8080),
    }  # fmt: skip
    with pytest.raises(ZeroDivisionError):
        asyncio.run(front(scope, receive, send))
    assert (sent[0]["status"], json.loads(sent[1]["body"])["code"]) == (500, "INTERNAL")
    assert 'requests_total{route="/heads",status="500"} 1' in front.metrics.text()
