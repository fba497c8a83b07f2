"""A small clipsieve server in this process, on real sockets: gRPC and HTTP, KServe v2.

The score of an image is a function of its bytes (`fake_score`), so a test knows what each row must
hold. Bytes that start with `BAD` are no image. `FakeModel` has the knobs: what is served, and how it fails.
"""

from __future__ import annotations

import json
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2 as _service_pb2
from tritonclient.grpc import service_pb2_grpc

service_pb2: Any = _service_pb2  # its messages are made at import, which pyright cannot see

EMBED_DIM = 8
REVISION = 0x0123456789ABCDEF
HTTP_STATUSES = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.CANCELLED: 499,
    grpc.StatusCode.UNAVAILABLE: 503,
}
DTYPES = {"f": "FP32", "i4": "INT32", "i8": "INT64"}


def fake_score(image: bytes) -> np.float32:
    """A score from the bytes: 0 ≤ score < 1."""
    return np.float32(zlib.crc32(image) / 2**32)


def fake_embedding(image: bytes) -> np.ndarray:
    """An embedding from the bytes: (EMBED_DIM,) float32."""
    return np.full(EMBED_DIM, fake_score(image), np.float32)


class Failure(Exception):
    """The failure of a request: a gRPC status; HTTP has its number."""

    def __init__(self, status: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message

    @property
    def http_status(self) -> int:
        return HTTP_STATUSES.get(self.status, 500)


UNKNOWN_MODEL = Failure(grpc.StatusCode.NOT_FOUND, "Request for unknown model: 'image_score' is not found")
"""Of a server that has no such model, or has not loaded what it is made of."""


@dataclass
class FakeModel:
    heads: dict[str, dict[str, str]] = field(default_factory=lambda: {"demo": demo_parameters()})
    """Each head's config.pbtxt parameters."""
    delay_s: float = 0.0
    slow: bytes = b""
    """Images that start with it take `delay_s`; by default all do."""
    fail_next: list[Failure] = field(default_factory=list)
    """Each is raised by one inference."""
    refuse_next: list[Failure] = field(default_factory=list)
    """Each is raised by one call about a model: for its config, or an inference."""
    held: bytes | None = None
    """Images that start with it wait until `released` is set."""
    pause_after: int | None = None
    """Images taken before the next ones wait until `released` is set."""
    released: threading.Event = field(default_factory=threading.Event)
    dead_after: int | None = None
    """Inferences answered before the server stops taking requests."""
    stub_dead: bool = False
    ready: bool = True
    not_ready_next: int = 0
    """So many times the server says that it is not ready."""
    max_batch_size: int = 8
    priorities: set[int] = field(default_factory=set)
    sizes: list[int] = field(default_factory=list)
    """Images in each request."""
    not_a_number: bool = False
    seen: list[bytes] = field(default_factory=list)
    most_at_once: int = 0
    _running: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def is_ready(self) -> bool:
        with self._lock:
            self.not_ready_next -= 1
            return self.ready and self.not_ready_next < 0

    def config(self, model: str) -> dict:
        """Score one image, or raise Failure."""
        self._refuse()
        batches = {"max_batch_size": self.max_batch_size}
        if model == "image_embedding":
            return batches | {"output": [_output("embedding", EMBED_DIM)]}
        if model == "image_score":
            names = [f"{head}{suffix}" for head in self.heads for suffix in ("", "_decision", "_revision")]
            return batches | {"output": [_output(name, 1) for name in names]}
        parameters = self.heads[model.removesuffix("_head")]
        return {"parameters": {key: {"string_value": value} for key, value in parameters.items()}, "output": []}

    def has(self, model: str) -> bool:
        return model in ("image_score", "image_embedding") or model.removesuffix("_head") in self.heads

    def infer(self, images: list[bytes], outputs: list[str]) -> dict[str, np.ndarray]:
        """Answer a request, or raise one Failure for all its images when one is bad."""
        assert len(images) <= self.max_batch_size
        self._refuse()
        with self._lock:
            self.sizes.append(len(images))
        answers, refused = [], []
        for place, image in enumerate(images):
            try:
                answers.append(self._infer_one(image, outputs, place))
            except Failure as failure:
                if failure.status is not grpc.StatusCode.INVALID_ARGUMENT:
                    raise
                refused.append(failure.message)
        if refused:
            raise Failure(grpc.StatusCode.INVALID_ARGUMENT, f"in ensemble 'image_score', {'; '.join(refused)}")
        return {name: np.concatenate([answer[name] for answer in answers]) for name in outputs}

    def _refuse(self) -> None:
        with self._lock:
            if self.refuse_next:
                raise self.refuse_next.pop(0)

    def _infer_one(self, image: bytes, outputs: list[str], place: int) -> dict[str, np.ndarray]:
        with self._lock:
            self._running += 1
            self.most_at_once = max(self.most_at_once, self._running)
            self.seen.append(image)
            failure = self._failure(image, place)
            waits = self._waits(image)
        try:
            if waits:
                self.released.wait()
            if self.delay_s and image.startswith(self.slow):
                time.sleep(self.delay_s)
            if failure:
                raise failure
            return {name: self._tensor(name, image) for name in outputs}
        finally:
            with self._lock:
                self._running -= 1

    def _waits(self, image: bytes) -> bool:
        if self.pause_after is not None and len(self.seen) > self.pause_after:
            return True
        return self.held is not None and image.startswith(self.held)

    def _failure(self, image: bytes, place: int) -> Failure | None:
        if self.dead_after is not None and len(self.seen) > self.dead_after:
            return Failure(grpc.StatusCode.UNAVAILABLE, "Server is stopping")
        if self.fail_next:
            return self.fail_next.pop(0)
        if self.stub_dead:
            message = "in ensemble 'image_score', Stub process 'preprocess_0_0' is not healthy."
            return Failure(grpc.StatusCode.INTERNAL, message)
        if not image or image.startswith(b"BAD"):
            reason = "NOT_AN_IMAGE: not a format, or one not allowed; a, b" if image else "EMPTY: no bytes"
            return Failure(grpc.StatusCode.INVALID_ARGUMENT, f"image {place}: {reason}")
        return None

    def _tensor(self, name: str, image: bytes) -> np.ndarray:
        score = fake_score(image)
        if name == "embedding":
            return fake_embedding(image)[None]
        if name.endswith("_decision"):
            return np.array([[int(score >= 0.25) + int(score >= 0.75)]], np.int32)
        if name.endswith("_revision"):
            return np.array([[REVISION]], np.int64)
        return np.array([[np.nan if self.not_a_number else score]], np.float32)


def demo_parameters(**more: str) -> dict[str, str]:
    return {"labels": json.dumps(["ring"]), "class_names": json.dumps(["disc", "ring"]), **more}


@contextmanager
def serve_grpc(model: FakeModel) -> Iterator[str]:
    """Yields `localhost:<port>`. The server is a threaded one: two grpc.aio loops in a process disturb each other."""
    options = [("grpc.max_receive_message_length", -1), ("grpc.so_reuseport", 0)]
    server = grpc.server(ThreadPoolExecutor(64), options=options)
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(_GrpcService(model), server)
    port = server.add_insecure_port("localhost:0")
    server.start()
    try:
        yield f"localhost:{port}"
    finally:
        model.released.set()
        server.stop(None).wait()


@contextmanager
def serve_http(model: FakeModel) -> Iterator[str]:
    handler = type("Handler", (_HttpHandler,), {"model": model})
    with _HttpServer(("localhost", 0), handler) as server, running(server) as address:
        try:
            yield address
        finally:
            model.released.set()


@contextmanager
def running(server: ThreadingHTTPServer) -> Iterator[str]:
    """The server in a thread of its own; yields `localhost:<port>`."""
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"localhost:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()


SERVE = {"grpc": serve_grpc, "http": serve_http}


class _GrpcService(service_pb2_grpc.GRPCInferenceServiceServicer):
    def __init__(self, model: FakeModel) -> None:
        self.model = model

    def ServerReady(self, request, context):
        return service_pb2.ServerReadyResponse(ready=self.model.is_ready())

    def ModelConfig(self, request, context):
        try:
            config = self.model.config(request.name)
        except Failure as failure:
            context.abort(failure.status, failure.message)
            raise AssertionError("abort raises") from failure
        response = service_pb2.ModelConfigResponse()
        response.config.max_batch_size = config.get("max_batch_size", 0)
        for output in config["output"]:
            response.config.output.add(name=output["name"], dims=output["dims"])
        for key, value in config.get("parameters", {}).items():
            response.config.parameters[key].string_value = value["string_value"]
        return response

    def ModelInfer(self, request, context):
        if not self.model.has(request.model_name):
            context.abort(grpc.StatusCode.NOT_FOUND, f"Request for unknown model: '{request.model_name}' is not found")
        images, outputs = _images(request.raw_input_contents[0]), [output.name for output in request.outputs]
        assert list(request.inputs[0].shape) == [len(images), 1]
        self.model.priorities.add(request.parameters["priority"].int64_param)
        try:
            tensors = self.model.infer(images, outputs)
        except Failure as failure:
            # abort sends the status alone, as Triton does; after headers gRPC would not retry.
            context.abort(failure.status, failure.message)
            raise AssertionError("abort raises") from failure
        response = service_pb2.ModelInferResponse(model_name=request.model_name)
        for name, tensor in tensors.items():
            response.outputs.add(name=name, datatype=_datatype(tensor), shape=tensor.shape)
            response.raw_output_contents.append(tensor.tobytes())
        return response


class _HttpServer(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request, client_address) -> None:
        """A client that hangs up is part of the tests."""


class _HttpHandler(BaseHTTPRequestHandler):
    model: FakeModel
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        if self.path == "/v2/health/ready":
            self._reply(200 if self.model.is_ready() else 400, b"")
        elif self.path.endswith("/config"):
            self._reply_config(self.path.split("/")[3])
        else:
            self._reply(404, b'{"error": "not found"}')

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if not self.model.has(self.path.split("/")[3]):
            self._reply(404, b'{"error": "Request for unknown model"}')
            return
        header_length = int(self.headers["Inference-Header-Content-Length"])
        header = json.loads(body[:header_length])
        requested = [output["name"] for output in header["outputs"]]
        self.model.priorities.add(header["parameters"]["priority"])
        try:
            tensors = self.model.infer(_images(body[header_length:]), requested)
        except Failure as failure:
            self._reply_failure(failure)
            return
        outputs = [
            {
                "name": name,
                "datatype": _datatype(tensor),
                "shape": tensor.shape,
                "parameters": {"binary_data_size": tensor.nbytes},
            }
            for name, tensor in tensors.items()
        ]
        answer = json.dumps({"model_name": "image_score", "outputs": outputs}).encode()
        self._reply(200, answer + b"".join(tensor.tobytes() for tensor in tensors.values()), len(answer))

    def _reply_config(self, model: str) -> None:
        try:
            config = self.model.config(model)
        except Failure as failure:
            self._reply_failure(failure)
            return
        self._reply(200, json.dumps(config).encode())

    def _reply_failure(self, failure: Failure) -> None:
        self._reply(failure.http_status, json.dumps({"error": failure.message}).encode())

    def _reply(self, status: int, body: bytes, header_length: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if header_length is not None:
            self.send_header("Inference-Header-Content-Length", str(header_length))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


def _output(name: str, dim: int) -> dict:
    return {"name": name, "dims": [dim]}


def _images(tensor: bytes) -> list[bytes]:
    """The elements of a BYTES tensor: each 4 bytes of length, then the file."""
    images, start = [], 0
    while start < len(tensor):
        (length,) = struct.unpack_from("<I", tensor, start)
        images.append(tensor[start + 4 : start + 4 + length])
        start += 4 + length
    assert start == len(tensor)
    return images


def _datatype(tensor: np.ndarray) -> str:
    return DTYPES["f" if tensor.dtype.kind == "f" else f"i{tensor.dtype.itemsize}"]
