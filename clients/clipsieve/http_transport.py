"""The transport over HTTP: KServe's binary tensors on an aiohttp session, with deadlines and a bounded retry."""

from __future__ import annotations

import asyncio
import io
import json
import random
import re
import ssl
from collections.abc import Coroutine, Mapping
from typing import Any, TypeVar

import aiohttp
import numpy as np

from clipsieve.exceptions import ClipsieveError, InferenceFailed, ServerUnavailable
from clipsieve.transport import PRIORITIES, Endpoint, ModelConfig, Request, Retry, array_from_wire, check_complete
from clipsieve.triton_messages import failure_from_status, rejections_from_message

_Answer = TypeVar("_Answer")

_HEADER_LENGTH = "Inference-Header-Content-Length"
_SEND_WHOLE_BYTES = 1 << 20
"""aiohttp warns when a larger body is handed over in one piece."""

_CODES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    499: "CANCELLED",
    500: "INTERNAL",
    501: "UNIMPLEMENTED",
    502: "UNAVAILABLE",
    503: "UNAVAILABLE",
    504: "UNAVAILABLE",
}
_TOO_MANY_REQUESTS = 429
"""As 502 and 504, an answer of a gateway before the server."""
_TOO_LARGE = 413
"""A gateway's too: the whole request has more bytes than it lets through, and the server has not seen it."""
_LONGEST_PAGE = 4096
_READINESS = {200: True, 400: False}
"""Triton's answers; any other comes from something else."""


class HttpTransport:
    def __init__(self, endpoint: Endpoint, retry: Retry) -> None:
        self._url = endpoint.address
        self._base = f"{'https' if endpoint.tls else 'http'}://{endpoint.address}/v2"
        self._retry = retry
        # Deadlines are set per call and the caller bounds what is in flight, so neither is limited here.
        connector = aiohttp.TCPConnector(limit=0, ssl=_trusted(endpoint) if endpoint.tls else True)
        timeout = aiohttp.ClientTimeout(total=None)
        self._session = aiohttp.ClientSession(connector=connector, timeout=timeout, headers=dict(endpoint.headers))

    async def is_ready(self, timeout_s: float) -> bool:
        status, _, content = await self._control(self._call("GET", "health/ready"), timeout_s)
        if status not in _READINESS:
            raise self._failure(status, content)
        return _READINESS[status]

    async def model_config(self, model: str, timeout_s: float) -> ModelConfig:
        config = await self._control(self._config(model), timeout_s)
        return ModelConfig(
            max_batch_size=config.get("max_batch_size", 0),
            output_dims={output["name"]: tuple(output["dims"]) for output in config.get("output", [])},
            parameters={key: value["string_value"] for key, value in config.get("parameters", {}).items()},
        )

    async def infer(self, request: Request, timeout_s: float) -> dict[str, np.ndarray]:
        header = _header(request)
        body = b"".join([header, *request.tensor.pieces])
        try:
            arrays = await asyncio.wait_for(self._infer_with_retries(request.model, body, len(header)), timeout_s)
        except asyncio.TimeoutError:
            raise InferenceFailed("DEADLINE_EXCEEDED", f"no answer within {timeout_s:g} s") from None
        check_complete(arrays, request.outputs)
        return arrays

    async def close(self) -> None:
        await self._session.close()

    async def _infer_with_retries(self, model: str, body: bytes, header_length: int) -> dict[str, np.ndarray]:
        backoff_s = self._retry.initial_backoff_s
        for _ in range(self._retry.attempts - 1):
            try:
                return await self._infer(model, body, header_length)
            except (ServerUnavailable, InferenceFailed) as error:
                if isinstance(error, InferenceFailed) and error.code != "SERVER_BUSY":
                    raise
            await asyncio.sleep(backoff_s * random.uniform(0.8, 1.2))
            backoff_s = min(backoff_s * self._retry.multiplier, self._retry.max_backoff_s)
        return await self._infer(model, body, header_length)

    async def _infer(self, model: str, body: bytes, header_length: int) -> dict[str, np.ndarray]:
        data = body if len(body) < _SEND_WHOLE_BYTES else io.BytesIO(body)
        status, headers, content = await self._call(
            "POST", f"models/{model}/infer", data=data, headers={_HEADER_LENGTH: str(header_length)}
        )
        if status != 200:
            raise self._failure(status, content)
        try:
            return _arrays_from_body(headers, content)
        except (ValueError, KeyError, TypeError) as error:
            raise self._not_triton(error) from None

    async def _config(self, model: str) -> dict[str, Any]:
        status, _, content = await self._call("GET", f"models/{model}/config")
        if status != 200:
            raise self._failure(status, content)
        try:
            return dict(json.loads(content))
        except (ValueError, TypeError) as error:
            raise self._not_triton(error) from None

    async def _call(self, method: str, path: str, **request: Any) -> tuple[int, Any, bytes]:
        """(status, headers, body)"""
        try:
            async with self._session.request(method, f"{self._base}/{path}", **request) as response:
                return response.status, response.headers, await response.read()
        except (aiohttp.ClientError, OSError) as error:
            reason = str(error) or type(error).__name__
            if isinstance(error, aiohttp.ClientResponseError):
                reason += "; what is there does not speak HTTP: is this the gRPC port? Triton's own for HTTP is 8000"
            raise ServerUnavailable(f"no answer from {self._url}: {reason}") from None

    async def _control(self, call: Coroutine[Any, Any, _Answer], timeout_s: float) -> _Answer:
        """Await a small call that any live server answers at once: silence means that there is none."""
        try:
            return await asyncio.wait_for(call, timeout_s)
        except asyncio.TimeoutError:
            raise ServerUnavailable(f"no answer from {self._url} in time") from None

    def _failure(self, status: int, content: bytes) -> ClipsieveError:
        message = _message_from_body(content) or f"HTTP {status}"
        if status == _TOO_MANY_REQUESTS:
            return InferenceFailed("SERVER_BUSY", message)
        if status == _TOO_LARGE:
            return next(iter(rejections_from_message(message)), InferenceFailed("TOO_MANY_BYTES", message))
        return failure_from_status(_CODES.get(status, f"HTTP_{status}"), message, self._url)

    def _not_triton(self, error: Exception) -> InferenceFailed:
        return InferenceFailed("BAD_RESPONSE", f"{self._url} does not answer as Triton does: {error}")


def _trusted(endpoint: Endpoint) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=endpoint.ca_file)


def _header(request: Request) -> bytes:
    tensor = request.tensor
    sent = {
        "name": tensor.name,
        "datatype": tensor.datatype,
        "shape": tensor.shape,
        "parameters": {"binary_data_size": tensor.size},
    }
    outputs = [{"name": name, "parameters": {"binary_data": True}} for name in request.outputs]
    parameters = {"priority": PRIORITIES[request.priority]}
    named = {"id": request.id} if request.id else {}
    return json.dumps({**named, "inputs": [sent], "outputs": outputs, "parameters": parameters}).encode()


def _arrays_from_body(headers: Mapping[str, str], content: bytes) -> dict[str, np.ndarray]:
    """The outputs follow the JSON in its order."""
    start = int(headers[_HEADER_LENGTH])
    arrays = {}
    for output in json.loads(content[:start])["outputs"]:
        end = start + output["parameters"]["binary_data_size"]
        arrays[output["name"]] = array_from_wire(output["datatype"], output["shape"], content[start:end])
        start = end
    return arrays


def _message_from_body(content: bytes) -> str:
    """Triton's `{"error": …}`, or what else stands before the server says: of a web page its title."""
    try:
        return json.loads(content)["error"]
    except (ValueError, KeyError, TypeError):
        text = content[:_LONGEST_PAGE].decode(errors="replace")
    title = re.search(r"<title[^>]*>(.*?)</title>", text, re.DOTALL | re.IGNORECASE)
    if title or text.lstrip().startswith("<"):
        shown = " ".join(title[1].split()) if title else "no title"
        return f"a web page ({shown:.100}), so not Triton: a proxy or gateway before it, or another server"
    return " ".join(text[:200].split())
