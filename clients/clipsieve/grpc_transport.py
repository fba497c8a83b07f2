"""The transport over gRPC: deadlines, gRPC's own retries and no message limit.

The messages are Triton's (tritonclient carries them); its client class is not used, which costs as much again
for each request as sending it.
"""

from __future__ import annotations

import json
import os
import re
import ssl
from collections.abc import Awaitable
from pathlib import Path
from typing import Any, TypeVar

import grpc
import grpc.aio
import numpy as np
from tritonclient.grpc import service_pb2 as _service_pb2
from tritonclient.grpc import service_pb2_grpc

from clipsieve.exceptions import ClipsieveError, InferenceFailed, ServerUnavailable
from clipsieve.transport import PRIORITIES, Endpoint, ModelConfig, Request, Retry, array_from_wire, check_complete
from clipsieve.triton_messages import failure_from_status

_Answer = TypeVar("_Answer")

service_pb2: Any = _service_pb2  # its messages are made at import, which pyright cannot see

_MODEL_INFER = "/inference.GRPCInferenceService/ModelInfer"
_RETRY_BUFFER_BYTES = 1 << 30
_GRPC_ROOTS = "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH"
"""gRPC's own variable for the certificates to trust."""
_OF_HTTP = re.compile(r"http1\.x server|failed to connect.*Socket closed", re.DOTALL)
"""gRPC's words when what answers speaks HTTP, or accepts the connection and closes it."""


class GrpcTransport:
    def __init__(self, endpoint: Endpoint, retry: Retry) -> None:
        self._url = endpoint.address
        self._metadata = tuple((name.lower(), value) for name, value in endpoint.headers.items())
        self._channel = _open_channel(endpoint, retry)
        self._stub: Any = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self._infer: Any = self._channel.unary_unary(
            _MODEL_INFER, response_deserializer=service_pb2.ModelInferResponse.FromString
        )

    async def is_ready(self, timeout_s: float) -> bool:
        call = self._stub.ServerReady(service_pb2.ServerReadyRequest(), timeout=timeout_s, metadata=self._metadata)
        return bool((await self._control(call)).ready)

    async def model_config(self, model: str, timeout_s: float) -> ModelConfig:
        request = service_pb2.ModelConfigRequest(name=model)
        call = self._stub.ModelConfig(request, timeout=timeout_s, metadata=self._metadata)
        config = (await self._control(call)).config
        return ModelConfig(
            max_batch_size=config.max_batch_size,
            output_dims={output.name: tuple(output.dims) for output in config.output},
            parameters={key: value.string_value for key, value in config.parameters.items()},
        )

    async def infer(self, request: Request, timeout_s: float) -> dict[str, np.ndarray]:
        try:
            answer = await self._infer(_message(request), timeout=timeout_s, metadata=self._metadata)
        except grpc.aio.AioRpcError as error:
            raise self._failure(error) from None
        arrays = {
            output.name: array_from_wire(output.datatype, output.shape, data)
            for output, data in zip(answer.outputs, answer.raw_output_contents, strict=False)
        }
        check_complete(arrays, request.outputs)
        return arrays

    async def close(self) -> None:
        await self._channel.close()

    async def _control(self, call: Awaitable[_Answer]) -> _Answer:
        """Await a small call that any live server answers at once: silence means that there is none."""
        try:
            return await call
        except grpc.aio.AioRpcError as error:
            failure = self._failure(error)
            if isinstance(failure, InferenceFailed) and failure.code == "DEADLINE_EXCEEDED":
                raise ServerUnavailable(f"no answer from {self._url} in time") from None
            raise failure from None

    def _failure(self, error: grpc.aio.AioRpcError) -> ClipsieveError:
        code, message = error.code().name, error.details() or error.code().name
        if _OF_HTTP.search(message):
            message += "; what is there does not speak gRPC: is this the HTTP port? Triton's own for gRPC is 8001"
        return failure_from_status(code, message, self._url)


def _message(request: Request) -> bytes:
    """A ModelInferRequest as it goes over the wire."""
    tensor = request.tensor
    message = service_pb2.ModelInferRequest(model_name=request.model, id=request.id)
    message.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
    for name in request.outputs:
        message.outputs.add(name=name)
    message.parameters["priority"].int64_param = PRIORITIES[request.priority]
    # The picture is put behind as the field that it is: within the message it would be copied twice more.
    field = service_pb2.ModelInferRequest.DESCRIPTOR.fields_by_name["raw_input_contents"].number
    return b"".join([message.SerializeToString(), bytes([field << 3 | 2]), _varint(tensor.size), *tensor.pieces])


def _varint(number: int) -> bytes:
    """A length as protobuf writes it: seven bits a byte, the lowest first."""
    digits = bytearray()
    while number > 0x7F:
        digits.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*digits, number])


def _open_channel(endpoint: Endpoint, retry: Retry) -> grpc.aio.Channel:
    options = _channel_options(retry)
    if not endpoint.tls:
        return grpc.aio.insecure_channel(endpoint.address, options)
    credentials = grpc.ssl_channel_credentials(_trusted_certificates(endpoint))
    return grpc.aio.secure_channel(endpoint.address, credentials, options)


def _trusted_certificates(endpoint: Endpoint) -> bytes | None:
    """PEM certificates, as OpenSSL finds them for HTTP (SSL_CERT_FILE); None leaves it to gRPC's own."""
    if endpoint.ca_file:
        return endpoint.ca_file.read_bytes()
    if _GRPC_ROOTS in os.environ:
        return None
    system = ssl.get_default_verify_paths().cafile
    return Path(system).read_bytes() if system else None


def _channel_options(retry: Retry) -> list[tuple[str, Any]]:
    return [
        ("grpc.max_send_message_length", -1),
        ("grpc.max_receive_message_length", -1),
        ("grpc.service_config", _service_config(retry)),
        # A request larger than this buffer is never retried, and the default is 256 KiB.
        ("grpc.per_rpc_retry_buffer_size", _RETRY_BUFFER_BYTES),
        # A server that comes back is found again within the retries.
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.max_reconnect_backoff_ms", 2000),
        # As over HTTP: the server is a neighbour, and the environment's proxy is for the web.
        ("grpc.enable_http_proxy", 0),
    ]


def _service_config(retry: Retry) -> str:
    """Retry inferences only: a server that is down when the run starts is reported at once."""
    if retry.attempts < 2:
        return "{}"
    policy = {
        "maxAttempts": retry.attempts,
        "initialBackoff": f"{retry.initial_backoff_s}s",
        "maxBackoff": f"{retry.max_backoff_s}s",
        "backoffMultiplier": retry.multiplier,
        "retryableStatusCodes": ["UNAVAILABLE"],
    }
    inference = {"service": "inference.GRPCInferenceService", "method": "ModelInfer"}
    return json.dumps({"methodConfig": [{"name": [inference], "retryPolicy": policy}]})
