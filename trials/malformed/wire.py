"""Bytes to a server as they are, over HTTP or gRPC, and what comes back, in four words."""

from __future__ import annotations

import json
import socket
import struct
from dataclasses import dataclass
from typing import Any, Literal

import grpc
from tritonclient.grpc import service_pb2 as _service_pb2

from common.triton_messages import is_queue_refusal

service_pb2: Any = _service_pb2  # its messages are made at import, which pyright cannot see

Outcome = Literal["refused", "scored", "closed", "silent", "undocumented"]

TOLERANCE = 1e-5  # a score may differ in its last digits with the batch it happened to be in


@dataclass(frozen=True)
class Case:
    """One request, ready to be sent."""

    kind: str
    data: bytes
    """All bytes of an HTTP connection, or one serialised ModelInferRequest."""
    tolerated: bool = False
    """The server may take it for what the sender must have meant; the score must then be the picture's own."""
    half_close: bool = False
    """HTTP: the sender ends its side after the bytes, because they promise more than there is."""


@dataclass(frozen=True)
class Answer:
    outcome: Outcome
    """`closed`: the connection ended without an answer. `silent`: none came in time. `undocumented`: of the gateway, no
    answer that it describes."""
    detail: str
    scores: tuple[float, ...] = ()
    """All FP32 values of the outputs."""


def problem(case: Case, answer: Answer, honest_score: float) -> str | None:
    """Describe what is wrong with this answer; None when nothing is.

    A connection closed without an answer is a refusal over HTTP, where the bytes may be no request at all.
    """
    if answer.outcome == "silent":
        return f"no answer: {answer.detail}"
    if answer.outcome == "undocumented":
        return f"an answer that is not documented: {answer.detail}"
    if answer.outcome == "scored" and not case.tolerated:
        return f"a malformed request was answered: {answer.detail}"
    wrong = [score for score in answer.scores if not abs(score - honest_score) <= TOLERANCE]
    return f"scores {wrong}, where the picture's is {honest_score}" if wrong else None


def send_http(address: str, case: Case, timeout_s: float = 10.0) -> Answer:
    """Send to Triton at `host:port`."""
    received = exchange(address, case, timeout_s)
    return received if isinstance(received, Answer) else http_answer(received)


def exchange(address: str, case: Case, timeout_s: float) -> bytes | Answer:
    """Send to `host:port` and read until the server ends the connection; without any bytes an Answer says why."""
    host, port = address.rsplit(":", 1)
    received = b""
    with socket.create_connection((host, int(port)), timeout_s) as connection:
        try:
            connection.sendall(case.data)
            if case.half_close:
                connection.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # it was closed before everything was sent; what it said may be there
        try:
            while block := connection.recv(1 << 16):
                received += block
        except TimeoutError:
            return Answer("silent", f"{len(received)} bytes within {timeout_s} s")
        except OSError as error:  # reset: an answer may have come before it
            if not received:
                return Answer("closed", type(error).__name__)
    return received or Answer("closed", "end of the connection")


def http_answer(received: bytes) -> Answer:
    head, _, body = received.partition(b"\r\n\r\n")
    status = head.split(b"\r\n", 1)[0].decode(errors="replace")
    if " 200 " not in status:
        return Answer("refused", f"{status}: {body[:200].decode(errors='replace')}")
    return Answer("scored", status, http_scores(head.lower(), body))


def http_scores(head: bytes, body: bytes) -> tuple[float, ...]:
    """FP32 values in an answer, as JSON or behind it as raw bytes."""
    length = len(body)
    if (mark := b"inference-header-content-length:") in head:
        length = int(head.split(mark, 1)[1].split(b"\r\n", 1)[0])
    offset, scores = length, []
    for output in json.loads(body[:length]).get("outputs", []):
        size = output.get("parameters", {}).get("binary_data_size", 0)
        if output["datatype"] == "FP32":
            scores += output.get("data", []) or struct.unpack_from(f"<{size // 4}f", body, offset)
        offset += size
    return tuple(scores)


def open_grpc(address: str) -> tuple[grpc.Channel, Any]:
    """A channel, and ModelInfer for requests that are bytes already."""
    channel = grpc.insecure_channel(address, [("grpc.max_send_message_length", -1), ("grpc.enable_http_proxy", 0)])
    method = "/inference.GRPCInferenceService/ModelInfer"
    return channel, channel.unary_unary(method, response_deserializer=service_pb2.ModelInferResponse.FromString)


def send_grpc(infer: Any, case: Case, timeout_s: float = 10.0) -> Answer:
    try:
        response = infer(case.data, timeout=timeout_s)
    except grpc.RpcError as error:
        call: Any = error
        code, details = call.code().name, call.details()
        gone = code == "DEADLINE_EXCEEDED" or (code == "UNAVAILABLE" and not is_queue_refusal(details))
        return Answer("silent" if gone else "refused", f"{code}: {details}")
    scores: list[float] = []
    for output, raw in zip(response.outputs, response.raw_output_contents, strict=False):
        if output.datatype == "FP32":
            scores += struct.unpack(f"<{len(raw) // 4}f", raw)
    return Answer("scored", f"OK, {len(response.outputs)} outputs", tuple(scores))
