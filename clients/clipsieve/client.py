"""Score and embed images with a clipsieve server.

There is one implementation, `AsyncClient`. `Client` runs it on an event loop in a background thread.
"""

from __future__ import annotations

import asyncio
import io
import json
import os
import threading
import time
from collections.abc import AsyncGenerator, Coroutine, Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import numpy as np

from clipsieve._exceptions import ClipsieveError, ImageRejected, InferenceFailed, UnknownHead
from clipsieve.inputs import MAX_IMAGE_BYTES, read_image
from clipsieve.pump import pump
from clipsieve.transport import ModelConfig, ProtocolName, Retry, Transport, open_transport, parse_url

ImageSource = str | os.PathLike[str] | bytes | bytearray | memoryview
"""A path, or the bytes of an encoded file."""

SCORE_MODEL = "image_score"
EMBEDDING_MODEL = "image_embedding"

_FILE_READERS = 4

_T = TypeVar("_T")


@dataclass(frozen=True)
class Head:
    """A classifier the server offers."""

    name: str
    labels: tuple[str, ...]
    """One per column of `Score.scores`."""
    class_names: tuple[str, ...]
    """For a binary head its negative and positive class, in that order."""
    notice: str | None = None
    """What anyone who sees the scores should know, e.g. that this is a demonstration."""


@dataclass(frozen=True, eq=False)
class Score:
    """What a head says about one image. Arrays are empty when there is an error: no score is ever made up."""

    path: str | None
    """The path that was given; None for bytes."""
    scores: np.ndarray = field(default_factory=lambda: np.empty(0, np.float32))
    """(L,) float32, one per label."""
    decisions: np.ndarray = field(default_factory=lambda: np.empty(0, np.int32))
    """(L,) int32: how many of its thresholds each score passed; 0 is allow."""
    model_version: str = ""
    """`<head>-<revision>`: changes whenever the head on the server does."""
    error: ImageRejected | InferenceFailed | None = None

    @property
    def ok(self) -> bool:
        return self.error is None


@dataclass(frozen=True, eq=False)
class Embedding:
    """One image's embedding; the vector is empty when there is an error."""

    path: str | None
    vector: np.ndarray = field(default_factory=lambda: np.empty(0, np.float32))
    """(D,) float32."""
    error: ImageRejected | InferenceFailed | None = None

    @property
    def ok(self) -> bool:
        return self.error is None


@dataclass(frozen=True)
class Health:
    """What a health check found.

    `unavailable`: nothing answers. `not_ready`: a server answers and is still loading, or has a model
    that failed to load. `failing`: it calls itself ready, but cannot score an image.
    """

    status: Literal["ok", "unavailable", "not_ready", "failing"]
    message: str

    @property
    def ok(self) -> bool:
        return self.status == "ok"


class AsyncClient:
    """A connection to one server, used from one event loop.

    Args:
        url: `host:port`; by default localhost:8001 for gRPC, localhost:8000 for HTTP. TLS with
            grpcs:// or https://. Proxies of the environment are not used.
        protocol: `grpc` or `http`.
        timeout_s: deadline of one inference, its retries included.
        concurrency: requests in flight in one call. Each holds one image; the server makes the batches.
        retry: how an inference is repeated when the server is unavailable or too busy.
    """

    def __init__(
        self,
        url: str | None = None,
        protocol: ProtocolName = "grpc",
        timeout_s: float = 30.0,
        concurrency: int = 32,
        retry: Retry | None = None,
    ) -> None:
        parse_url(protocol, url)
        if timeout_s <= 0 or concurrency < 1:
            raise ValueError(f"timeout_s must be > 0 and concurrency >= 1, found {timeout_s} and {concurrency}")
        self._url, self._protocol, self._retry = url, protocol, retry
        self._timeout_s = timeout_s
        self._concurrency = concurrency
        self._readers = ThreadPoolExecutor(_FILE_READERS, thread_name_prefix="clipsieve-read")
        self._transport: Transport | None = None
        self._known_heads: list[Head] = []

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    async def close(self) -> None:
        self._readers.shutdown(wait=False)
        transport, self._transport = self._transport, None
        if transport is not None:
            await transport.close()

    async def heads(self) -> list[Head]:
        """The heads the server offers now.

        Raises:
            ServerUnavailable: nothing answers.
            InferenceFailed: what answers has no image_score model.
        """
        transport = self._connected()
        names = _head_names(await transport.model_config(SCORE_MODEL, self._timeout_s))
        configs = await asyncio.gather(*(transport.model_config(f"{name}_head", self._timeout_s) for name in names))
        self._known_heads = [_head_from_config(name, config) for name, config in zip(names, configs, strict=True)]
        return self._known_heads

    async def head(self, name: str | None = None) -> Head:
        """The head of that name, or the only one when no name is given.

        Raises:
            UnknownHead: there is no such head, or several and no name.
        """
        heads = self._known_heads or await self.heads()
        found = [head for head in heads if name in (head.name, None)]
        if len(found) != 1:
            names = ", ".join(head.name for head in heads) or "none"
            problem = f"no head {name!r}" if name else "no head was named, and there is not exactly one"
            raise UnknownHead(f"{problem}; this server has: {names}")
        return found[0]

    async def embed_dim(self) -> int:
        """Length of an embedding."""
        config = await self._connected().model_config(EMBEDDING_MODEL, self._timeout_s)
        return config.output_dims["embedding"][0]

    async def score(self, images: Iterable[ImageSource], head: str | None = None) -> list[Score]:
        """One result per image, in order. See `score_stream`."""
        return [score async for score in self.score_stream(images, head)]

    async def score_stream(self, images: Iterable[ImageSource], head: str | None = None) -> AsyncGenerator[Score, None]:
        """Yield one result per image, in order, as they come; images are drawn as they are needed.

        An image that cannot be scored is a result with an `error`.

        Raises:
            ServerUnavailable: the server is gone, also after retries. Results so far have been yielded.
            UnknownHead: see `head`.
        """
        chosen = await self.head(head)

        async def score_one(image: ImageSource) -> Score:
            return await self._score_one(image, chosen.name)

        async with aclosing(pump(score_one, images, self._concurrency)) as scores:
            async for score in scores:
                yield score

    async def embed(self, images: Iterable[ImageSource]) -> list[Embedding]:
        """One embedding per image, in order. See `embed_stream`."""
        return [embedding async for embedding in self.embed_stream(images)]

    async def embed_stream(self, images: Iterable[ImageSource]) -> AsyncGenerator[Embedding, None]:
        """Yield one embedding per image, in order, as they come; errors as in `score_stream`."""
        async with aclosing(pump(self._embed_one, images, self._concurrency)) as results:
            async for embedding in results:
                yield embedding

    async def health(self, deep: bool = True, timeout_s: float = 5.0) -> Health:
        """Whether the server can score an image.

        Args:
            deep: score a small image with every head. Without it only the server's own word is taken,
                which stays "ready" when a process that decodes images has died.
            timeout_s: deadline of each step.
        """
        transport = self._connected()
        try:
            ready = await transport.is_ready(timeout_s)
        except ClipsieveError as error:
            return Health("unavailable", str(error))
        if not ready:
            return Health("not_ready", "the server answers, but is not ready: still loading, or a model failed to load")
        if not deep:
            return Health("ok", "the server says that it is ready; no image was scored")
        return await self._probe(transport, timeout_s)

    async def _probe(self, transport: Transport, timeout_s: float) -> Health:
        started = time.perf_counter()
        try:
            names = _head_names(await transport.model_config(SCORE_MODEL, timeout_s))
            await transport.infer_image(SCORE_MODEL, _probe_image(), names, timeout_s)
        except ClipsieveError as error:
            return Health("failing", f"the server says that it is ready, but cannot score an image: {error}")
        elapsed_ms = (time.perf_counter() - started) * 1000
        return Health("ok", f"scored an image with {', '.join(names)} in {elapsed_ms:.0f} ms")

    async def _score_one(self, image: ImageSource, head: str) -> Score:
        path = _path_of(image)
        outputs = (head, f"{head}_decision", f"{head}_revision")
        try:
            tensors = await self._infer(SCORE_MODEL, image, outputs)
            scores, decisions, revision = (tensors[name][0] for name in outputs)
            _check_finite(scores)
        except (ImageRejected, InferenceFailed) as error:
            return Score(path, error=error)
        return Score(path, scores, decisions, f"{head}-{int(revision[0]):016x}")

    async def _embed_one(self, image: ImageSource) -> Embedding:
        path = _path_of(image)
        try:
            tensors = await self._infer(EMBEDDING_MODEL, image, ("embedding",))
            vector = tensors["embedding"][0]
            _check_finite(vector)
        except (ImageRejected, InferenceFailed) as error:
            return Embedding(path, error=error)
        return Embedding(path, vector)

    async def _infer(self, model: str, image: ImageSource, outputs: Sequence[str]) -> dict[str, np.ndarray]:
        data = await self._bytes_of(image)
        return await self._connected().infer_image(model, data, outputs, self._timeout_s)

    async def _bytes_of(self, image: ImageSource) -> bytes:
        if isinstance(image, (str, os.PathLike)):
            # In a thread: a slow disk or network folder must not hold up the requests in flight.
            return await asyncio.get_running_loop().run_in_executor(self._readers, read_image, image)
        if not isinstance(image, (bytes, bytearray, memoryview)):
            raise TypeError(f"an image is a path or the bytes of a file, found {type(image).__name__}")
        data = bytes(image)
        if len(data) > MAX_IMAGE_BYTES:
            raise ImageRejected("TOO_MANY_BYTES", f"{len(data)} bytes; at most {MAX_IMAGE_BYTES} are sent")
        return data

    def _connected(self) -> Transport:
        if self._transport is None:
            self._transport = open_transport(self._protocol, self._url, self._retry)
        return self._transport


class Client:
    """`AsyncClient` for code without an event loop; safe to share between threads. Same arguments.

    with Client() as client:
        for score in client.score(["a.jpg", "b.jpg"]):
            print(score.path, score.scores, score.error)
    """

    def __init__(
        self,
        url: str | None = None,
        protocol: ProtocolName = "grpc",
        timeout_s: float = 30.0,
        concurrency: int = 32,
        retry: Retry | None = None,
    ) -> None:
        self._client = AsyncClient(url, protocol, timeout_s, concurrency, retry)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="clipsieve-client", daemon=True)
        self._thread.start()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        if self._loop.is_closed():
            return
        self._wait(self._finish())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def heads(self) -> list[Head]:
        return self._wait(self._client.heads())

    def head(self, name: str | None = None) -> Head:
        return self._wait(self._client.head(name))

    def score(self, images: Iterable[ImageSource], head: str | None = None) -> list[Score]:
        return self._wait(self._client.score(images, head))

    def score_stream(self, images: Iterable[ImageSource], head: str | None = None) -> Generator[Score, None, None]:
        return self._iterate(self._client.score_stream(images, head))

    def embed(self, images: Iterable[ImageSource]) -> list[Embedding]:
        return self._wait(self._client.embed(images))

    def embed_stream(self, images: Iterable[ImageSource]) -> Generator[Embedding, None, None]:
        return self._iterate(self._client.embed_stream(images))

    def health(self, deep: bool = True, timeout_s: float = 5.0) -> Health:
        return self._wait(self._client.health(deep, timeout_s))

    async def _finish(self) -> None:
        """Cancel what streams that were not read to their end have left in flight, then disconnect."""
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        await self._loop.shutdown_asyncgens()
        await self._client.close()

    def _wait(self, coroutine: Coroutine[Any, Any, _T]) -> _T:
        if self._loop.is_closed():
            coroutine.close()
            raise RuntimeError("this client is closed")
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def _iterate(self, results: AsyncGenerator[_T, None]) -> Generator[_T, None, None]:
        """Drive an async generator from this thread; closing the iterator cancels what is in flight."""

        async def take() -> list[_T]:
            async for result in results:
                return [result]
            return []

        try:
            while taken := self._wait(take()):
                yield taken[0]
        finally:
            if not self._loop.is_closed():
                self._wait(_aclose(results))


async def _aclose(results: AsyncGenerator[Any, None]) -> None:
    await results.aclose()


def _head_names(config: ModelConfig) -> list[str]:
    """Each head has an output of its name beside `<name>_revision`."""
    return [name for name in config.output_dims if f"{name}_revision" in config.output_dims]


def _head_from_config(name: str, config: ModelConfig) -> Head:
    def names(key: str) -> tuple[str, ...]:
        return tuple(json.loads(config.parameters.get(key) or "[]"))

    return Head(name, names("labels"), names("class_names"), config.parameters.get("notice") or None)


def _path_of(image: ImageSource) -> str | None:
    return os.fsdecode(image) if isinstance(image, (str, os.PathLike)) else None


def _check_finite(values: np.ndarray) -> None:
    if not np.isfinite(values).all():
        raise InferenceFailed("NOT_FINITE", "the server returned a NaN or an infinity")


def _probe_image() -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (32, 32), (128, 128, 128)).save(file, "PNG")
    return file.getvalue()
