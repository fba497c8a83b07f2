"""Score and embed images with a clipsieve server, from one event loop. `blocking.Client` is for code without one."""

from __future__ import annotations

import asyncio
import io
import random
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, suppress
from dataclasses import fields
from functools import partial
from typing import TypeVar

import numpy as np

from clipsieve.exceptions import (
    ClipsieveError,
    ImageRejected,
    InferenceFailed,
    NotClipsieve,
    ServerNotReady,
    ServerUnavailable,
    UnknownHead,
    VersionChanged,
)
from clipsieve.groups import Answer, File, answers_for, rows_of
from clipsieve.images import ImageSource, encoded_some, path_of
from clipsieve.outage import Outage
from clipsieve.proof import NO_PROOF, ask, fetch_proof
from clipsieve.proof_format import ProofUnreadable, failure_message, misses, success_message
from clipsieve.pump import pump, pump_groups
from clipsieve.results import Embedding, EmbeddingScores, Head, HeadScore, Health, Score
from clipsieve.settings import Settings
from clipsieve.transport import (
    PROBE_ID,
    ModelConfig,
    Request,
    Transport,
    embedding_tensor,
    image_tensor,
    open_transport,
)
from clipsieve.triton_messages import is_process_dead, is_unknown_model

SCORE_MODEL = "image_score"
EMBEDDING_MODEL = "image_embedding"

_FILE_READERS = 4
_READY_TIMEOUT_S = 5.0
"""Time limit of the question whether a server that gave no answer in time is still there."""

_REQUEST_BYTES = 1 << 20
"""A request takes no further image once it holds so many: what a request costs is nothing beside decoding those."""

_BUSY_PAUSE_S = (0.2, 1.0)
"""Range of the pause before an image is sent again to a server whose queue stayed full; random, so that not all come
at once."""

_Result = TypeVar("_Result")

USUAL_FORMATS = "JPEG,PNG,WEBP,GIF,BMP"
"""Formats of a server that does not say which it takes."""
HeadNames = str | Iterable[str] | None
"""One head, several, or None for all that the server has."""


class AsyncClient(Settings):
    """A connection to a server, or to several as one, used from one event loop; an async context manager.

    Arguments: see `Settings`.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self._readers = ThreadPoolExecutor(_FILE_READERS, thread_name_prefix="clipsieve-read")
        self._outage = Outage(self.wait_s, self._check_ready)
        self._transport: Transport | None = None
        self._known_heads: list[Head] = []
        self._max_batch_sizes: dict[str, int] = {}

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    async def close(self) -> None:
        self._readers.shutdown(wait=False)
        self._outage.close()
        transport, self._transport = self._transport, None
        if transport is not None:
            await transport.close()

    async def heads(self) -> list[Head]:
        """The heads the server offers now.

        Raises:
            ServerUnavailable: nothing answers, or a server that is still loading, also after `wait_s`.
            NotClipsieve: what answers has no image_score model.
        """
        names = _head_names(await self._config(SCORE_MODEL))
        configs = await asyncio.gather(*(self._config(f"{name}_head") for name in names))
        self._known_heads = [
            Head.from_parameters(name, config.parameters, config.output_dims)
            for name, config in zip(names, configs, strict=True)
        ]
        return self._known_heads

    async def chosen_heads(self, names: HeadNames = None) -> list[Head]:
        """The heads of these names, each once, in the order they are named.

        Raises:
            UnknownHead: there is none of a name, or none at all.
        """
        known = {head.name: head for head in self._known_heads or await self.heads()}
        chosen = list(known) if names is None else dict.fromkeys([names] if isinstance(names, str) else names)
        unknown = [name for name in chosen if name not in known]
        if unknown or not chosen:
            problem = f"no head {unknown[0]!r}" if unknown else "no head to score with"
            raise UnknownHead(f"{problem}; this server has: {', '.join(known) or 'none'}")
        return [known[name] for name in chosen]

    async def formats(self) -> tuple[str, ...]:
        """Names of the image formats that the server takes, such as JPEG and HEIC."""
        config = await self._config(SCORE_MODEL)
        return tuple(config.parameters.get("formats", USUAL_FORMATS).split(","))

    async def embed_dim(self) -> int:
        """Length of an embedding."""
        config = await self._config(EMBEDDING_MODEL)
        return config.output_dims["embedding"][0]

    async def score(self, images: Iterable[ImageSource], heads: HeadNames = None) -> list[Score]:
        """One result per image, in order. See `score_stream`."""
        return [score async for score in self.score_stream(images, heads)]

    async def score_one(self, image: File, heads: Sequence[Head]) -> Score:
        """The scores of one encoded image by heads that `chosen_heads` gave; raises what `score_stream` raises.

        For a service that has one image at a time, which `score` costs the machinery for many.
        """
        request = Request(SCORE_MODEL, image_tensor(image), _outputs_of(heads), self.priority or "interactive")
        (answer,) = await answers_for([image], lambda _: self._infer(request))
        return _scored(heads, image, answer)

    async def score_stream(self, images: Iterable[ImageSource], heads: HeadNames = None) -> AsyncGenerator[Score, None]:
        """Yield one result per image, in order, as they come; images are drawn as they are needed.

        All heads score an image in one request, which encodes it once. An image that cannot be scored
        is a result with an `error`, also when it shared its request with others.

        Raises:
            ServerUnavailable: the server is gone or loading, also after retries and `wait_s`. Results so far have been
                yielded.
            NotClipsieve: what answers has no image_score model.
            UnknownHead: see `chosen_heads`.
        """
        chosen = await self.chosen_heads(heads)
        scored = partial(_scored, chosen)
        async with aclosing(self._over_images(SCORE_MODEL, images, _outputs_of(chosen), scored)) as scores:
            async for score in scores:
                yield score

    async def embed(self, images: Iterable[ImageSource]) -> list[Embedding]:
        """One embedding per image, in order. See `embed_stream`."""
        return [embedding async for embedding in self.embed_stream(images)]

    async def embed_stream(self, images: Iterable[ImageSource]) -> AsyncGenerator[Embedding, None]:
        """Yield one embedding per image, in order, as they come; errors as in `score_stream`."""

        def embedded(image: ImageSource, answer: Answer) -> Embedding:
            try:
                return Embedding(path_of(image), _finite(rows_of(answer)["embedding"])[0])
            except (ImageRejected, InferenceFailed) as error:
                return Embedding(path_of(image), error=error)

        async with aclosing(self._over_images(EMBEDDING_MODEL, images, ("embedding",), embedded)) as results:
            async for embedding in results:
                yield embedding

    async def score_embeddings(self, head: str, embeddings: np.ndarray) -> EmbeddingScores:
        """Score stored embeddings with the head that scores images.

        Args:
            head: its name.
            embeddings: (N, D) float32, as `embed` gave them.

        Raises:
            ValueError: another shape, or a value that is not finite.
            InferenceFailed: the server refuses or fails; there are no partial results here.
            VersionChanged: the head was replaced in between.
        """
        (chosen,) = await self.chosen_heads(head)
        config = await self._config(f"{head}_head")
        _check_embeddings(embeddings, await self.embed_dim())
        size = max(1, config.max_batch_size)
        batches = [embeddings[start : start + size] for start in range(0, len(embeddings), size)]
        outputs = ("score", "decision", "revision", *(("deviation",) if chosen.gives_deviation else ()))

        async def score_batch(batch: np.ndarray) -> dict[str, np.ndarray]:
            return await self._infer(Request(f"{head}_head", embedding_tensor(batch), outputs))

        async with aclosing(pump(score_batch, batches, self.concurrency)) as answers:
            return _joined(chosen, [answer async for answer in answers])

    async def health(self, deep: bool = True, timeout_s: float = 5.0) -> Health:
        """Check that the server can score an image; of several, that each of them can: the worst one's answer.

        Args:
            deep: score a small image with every head, and compare the server's answers with its proof, if it has
                one. Without it only the server's own word is taken, which stays "ready" when a process that decodes
                images has died.
            timeout_s: deadline of each step.
        """
        if len(self.urls) > 1:
            return await self._health_of_each(deep, timeout_s)
        try:
            await self._check_ready(timeout_s)
        except ServerNotReady as error:
            return Health("not_ready", str(error))
        except ClipsieveError as error:
            return Health("unavailable", str(error))
        if not deep:
            return Health("ok", "the server says that it is ready; no image was scored")
        return await self._probe(self._connected(), timeout_s)

    async def _health_of_each(self, deep: bool, timeout_s: float) -> Health:
        settings = {each.name: getattr(self, each.name) for each in fields(Settings)}

        async def health_of(url: str | None) -> Health:
            async with AsyncClient(**{**settings, "url": url}) as client:
                return await client.health(deep, timeout_s)

        healths = await asyncio.gather(*map(health_of, self.urls))
        worst = max(healths, key=lambda health: not health.ok)
        pairs = zip(self.urls, healths, strict=True)
        described = (f"{url} {health.status}, {health.message}" for url, health in pairs)
        return Health(worst.status, "; ".join(described))

    async def _probe(self, transport: Transport, timeout_s: float) -> Health:
        """Score a picture, then hold all answers against the server's proof, if it has one."""
        try:
            config = await self._of_model(SCORE_MODEL, lambda: transport.model_config(SCORE_MODEL, timeout_s))
            names = _head_names(config)
            proof = await fetch_proof(transport, timeout_s)
            picture = _probe_image() if proof is None else proof.smallest_picture
            started = time.perf_counter()
            await transport.infer(Request(SCORE_MODEL, image_tensor(picture), names, id=PROBE_ID), timeout_s)
            elapsed_ms = (time.perf_counter() - started) * 1000
            answers = None if proof is None else await ask(transport, proof, timeout_s)
        except ServerNotReady as error:
            return Health("not_ready", str(error))
        except ProofUnreadable as error:
            return Health("failing", f"the server's proof cannot be read: {error}; install its repository again")
        except ClipsieveError as error:
            if isinstance(error, InferenceFailed) and error.code == "SERVER_BUSY":
                return Health("busy", f"the server works, and has no room for another image now: {error}")
            return Health("failing", f"the server says that it is ready, but cannot score an image: {error}")
        scored = f"scored an image with {', '.join(names)} in {elapsed_ms:.0f} ms"
        if proof is None or answers is None:
            return Health("ok", f"{scored}; {NO_PROOF}")
        if missed := misses(proof, answers):
            return Health("failing", failure_message(proof, missed))
        return Health("ok", f"{scored}; {success_message(proof, answers.embeddings)}")

    async def _over_images(
        self,
        model: str,
        images: Iterable[ImageSource],
        outputs: Sequence[str],
        result: Callable[[ImageSource, Answer], _Result],
    ) -> AsyncGenerator[_Result, None]:
        """Yield `result(image, answer)` for each image, in order."""
        most = min(self.images_per_request, await self._max_batch_size(model))
        is_one = isinstance(images, Sequence) and len(images) == 1
        priority = self.priority or ("interactive" if is_one else "bulk")

        def infer(files: Sequence[File]) -> Awaitable[dict[str, np.ndarray]]:
            return self._infer(Request(model, image_tensor(*files), outputs, priority))

        async def results_of(group: list[ImageSource]) -> list[_Result]:
            answers: list[Answer] = []
            while left := group[len(answers) :]:
                answers += await answers_for(await self._read(left), infer)
            return list(map(result, group, answers))

        async with aclosing(pump_groups(results_of, images, self.concurrency, most)) as results:
            async for each in results:
                yield each

    async def _read(self, images: Sequence[ImageSource]) -> list[bytes | ImageRejected]:
        if all(isinstance(image, bytes) for image in images):
            return encoded_some(images, _REQUEST_BYTES)
        # In a thread: a slow disk or network folder must not hold up the requests in flight.
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._readers, encoded_some, images, _REQUEST_BYTES)

    async def _max_batch_size(self, model: str) -> int:
        """The most images in one request of a model; 1 when the server does not say."""
        if model not in self._max_batch_sizes:
            await self._config(model)
        return self._max_batch_sizes[model]

    async def _config(self, model: str) -> ModelConfig:
        """Fetch a model's config, and keep its batch size. Waits as `_infer` does."""
        config = await self._answered(model, lambda: self._connected().model_config(model, self.timeout_s))
        self._max_batch_sizes[model] = max(1, config.max_batch_size)
        return config

    async def _infer(self, request: Request) -> dict[str, np.ndarray]:
        """One answer; waits for a server that is gone, loading or too busy, as long as `wait_s` says."""
        return await self._answered(request.model, lambda: self._infer_once(request))

    async def _answered(self, model: str, call: Callable[[], Awaitable[_Result]]) -> _Result:
        give_up_at = time.monotonic() + self.wait_s
        while True:
            try:
                answer = await self._of_model(model, call)
            except ServerUnavailable as error:
                await self._outage.wait(error)
            except InferenceFailed as error:
                if error.code != "SERVER_BUSY" or time.monotonic() >= give_up_at:
                    raise
                await asyncio.sleep(random.uniform(*_BUSY_PAUSE_S))
            else:
                self._outage.over()
                return answer

    async def _of_model(self, model: str, call: Callable[[], Awaitable[_Result]]) -> _Result:
        """Await a call about a model, with its errors explained.

        Raises:
            ServerNotReady: the server does not know the model, and is still loading.
            NotClipsieve: the server is ready, and does not know the model.
        """
        try:
            return await call()
        except InferenceFailed as error:
            if not is_unknown_model(error):
                raise
        with suppress(InferenceFailed):  # another program answers here, which has no readiness check
            await self._check_ready()
        try:
            return await call()  # once more: it may have become ready since
        except InferenceFailed as error:
            if not is_unknown_model(error):
                raise
            problem = f"it is ready and has no model {model} ({error.message})"
            raise NotClipsieve(f"{self.addresses} is not a clipsieve server: {problem}") from None

    async def _infer_once(self, request: Request) -> dict[str, np.ndarray]:
        try:
            return await self._connected().infer(request, self.timeout_s)
        except InferenceFailed as error:
            if self.wait_s and is_process_dead(error):  # until it is restarted, which is seen by a healthy answer
                raise ServerUnavailable(f"a process of the server has died: {error.message}") from None
            if error.code == "DEADLINE_EXCEEDED" and self.wait_s:
                await self._check_ready()  # raises when it is not the image that is slow: the machine is gone
            raise

    async def _check_ready(self, timeout_s: float = _READY_TIMEOUT_S) -> None:
        """Raises ServerUnavailable: nothing answers; ServerNotReady: a server that is not ready."""
        if not await self._connected().is_ready(timeout_s):
            raise ServerNotReady(
                f"{self.addresses} answers, but is still loading its models, or a model failed to load"
            )

    def _connected(self) -> Transport:
        if self._transport is None:
            self._transport = open_transport(self.endpoints(), self.retry)
        return self._transport


def _head_names(config: ModelConfig) -> list[str]:
    """Heads are the outputs that have a `<name>_revision` beside them."""
    return [name for name in config.output_dims if f"{name}_revision" in config.output_dims]


def _outputs_of(heads: Sequence[Head]) -> list[str]:
    return [f"{head.name}{suffix}" for head in heads for suffix in _suffixes(head)]


def _suffixes(head: Head) -> tuple[str, ...]:
    return ("", "_decision", "_revision", *(("_deviation",) if head.gives_deviation else ()))


def _scored(heads: Sequence[Head], image: ImageSource, answer: Answer) -> Score:
    try:
        tensors = rows_of(answer)
        return Score(path_of(image), {head.name: _head_score(head, tensors) for head in heads})
    except (ImageRejected, InferenceFailed) as error:
        return Score(path_of(image), error=error)


def _head_score(head: Head, tensors: dict[str, np.ndarray]) -> HeadScore:
    scores = _finite(tensors[head.name])[0]
    decisions = tensors[f"{head.name}_decision"][0]
    revision = tensors[f"{head.name}_revision"][0]
    deviation = float(_finite(tensors[f"{head.name}_deviation"])[0, 0]) if head.gives_deviation else None
    return HeadScore(scores, decisions, head.class_of(scores, decisions), _version(head, revision), deviation)


def _version(head: Head, revision: np.ndarray) -> str:
    return f"{head.name}-{int(revision[0]):016x}"


def _joined(head: Head, answers: list[dict[str, np.ndarray]]) -> EmbeddingScores:
    versions = sorted({_version(head, row) for answer in answers for row in answer["revision"]})
    if len(versions) > 1:
        raise VersionChanged(f"the head {head.name} was replaced while it scored: {' and '.join(versions)}")
    columns = len(head.labels)
    empty = {"score": np.empty((0, columns), np.float32), "decision": np.empty((0, columns), np.int32)}
    scores, decisions = (np.concatenate([each[name] for each in [empty, *answers]]) for name in empty)
    deviations = None
    if head.gives_deviation:
        parts = [answer["deviation"][:, 0] for answer in answers]
        deviations = _finite(np.concatenate([np.empty(0, np.float32), *parts]))
    return EmbeddingScores(_finite(scores), decisions, versions[0] if versions else "", deviations)


def _check_embeddings(embeddings: np.ndarray, dim: int) -> None:
    if embeddings.ndim != 2 or embeddings.shape[1] != dim:
        raise ValueError(f"embeddings must be (N, {dim}), found {embeddings.shape}")
    bad = np.flatnonzero(~np.isfinite(embeddings).all(axis=1))
    if len(bad):
        raise ValueError(f"{len(bad)} of the embeddings are not finite, the first is row {bad[0]}")


def _finite(values: np.ndarray) -> np.ndarray:
    if not np.isfinite(values).all():
        raise InferenceFailed("NOT_FINITE", "the server returned a NaN or an infinity")
    return values


def _probe_image() -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (32, 32), (128, 128, 128)).save(file, "PNG")
    return file.getvalue()
