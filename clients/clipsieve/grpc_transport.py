"""The transport over gRPC: tritonclient.grpc.aio with deadlines, gRPC's own retries and no message limit."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Sequence
from typing import Any, TypeVar

import numpy as np
from tritonclient.grpc import InferInput, InferRequestedOutput
from tritonclient.grpc.aio import InferenceServerClient
from tritonclient.utils import InferenceServerException

from clipsieve._exceptions import ClipsieveError, InferenceFailed, ServerUnavailable, failure_from_status
from clipsieve.transport import ModelConfig, Retry, arrays_from_result, tensor_from_image

_Answer = TypeVar("_Answer")

_RETRY_BUFFER_BYTES = 1 << 30


class GrpcTransport:
    def __init__(self, address: str, tls: bool, retry: Retry) -> None:
        self._url = address
        self._client = InferenceServerClient(address, ssl=tls, channel_args=_channel_args(retry))

    async def is_ready(self, timeout_s: float) -> bool:
        return bool(await self._control(self._client.is_server_ready(client_timeout=timeout_s)))

    async def model_config(self, model: str, timeout_s: float) -> ModelConfig:
        response: Any = await self._control(self._client.get_model_config(model, client_timeout=timeout_s))
        config = response.config
        return ModelConfig(
            max_batch_size=config.max_batch_size,
            output_dims={output.name: tuple(output.dims) for output in config.output},
            parameters={key: value.string_value for key, value in config.parameters.items()},
        )

    async def infer_image(
        self, model: str, image: bytes, outputs: Sequence[str], timeout_s: float
    ) -> dict[str, np.ndarray]:
        tensor = InferInput("image", [1, 1], "BYTES").set_data_from_numpy(tensor_from_image(image))
        requested = [InferRequestedOutput(name) for name in outputs]
        try:
            result = await self._client.infer(model, [tensor], outputs=requested, client_timeout=timeout_s)
        except InferenceServerException as error:
            raise self._failure(error) from None
        return arrays_from_result(result, outputs)

    async def close(self) -> None:
        await self._client.close()

    async def _control(self, call: Awaitable[_Answer]) -> _Answer:
        """Await a small call that any live server answers at once: silence means that there is none."""
        try:
            return await call
        except InferenceServerException as error:
            failure = self._failure(error)
            if isinstance(failure, InferenceFailed) and failure.code == "DEADLINE_EXCEEDED":
                raise ServerUnavailable(f"no answer from {self._url} in time") from None
            raise failure from None

    def _failure(self, error: InferenceServerException) -> ClipsieveError:
        code = (error.status() or "UNKNOWN").removeprefix("StatusCode.")
        return failure_from_status(code, error.message() or code, self._url)


def _channel_args(retry: Retry) -> list[tuple[str, Any]]:
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
