"""`AsyncClient` for code without an event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Coroutine, Generator, Iterable
from dataclasses import fields
from typing import Any, TypeVar

import numpy as np

from clipsieve.client import AsyncClient, HeadNames
from clipsieve.images import ImageSource
from clipsieve.results import Embedding, EmbeddingScores, Head, Health, Score
from clipsieve.settings import Settings

_T = TypeVar("_T")


class Client(Settings):
    """Runs an `AsyncClient` on an event loop in a background thread; safe to share between threads. Same arguments.

    with Client() as client:
        for score in client.score(["a.jpg", "b.jpg"]):
            print(score.path, score.scores, score.error)
    """

    def __post_init__(self) -> None:
        self._client = AsyncClient(**{field.name: getattr(self, field.name) for field in fields(Settings)})
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

    def chosen_heads(self, names: HeadNames = None) -> list[Head]:
        return self._wait(self._client.chosen_heads(names))

    def formats(self) -> tuple[str, ...]:
        return self._wait(self._client.formats())

    def embed_dim(self) -> int:
        return self._wait(self._client.embed_dim())

    def score(self, images: Iterable[ImageSource], heads: HeadNames = None) -> list[Score]:
        return self._wait(self._client.score(images, heads))

    def score_stream(self, images: Iterable[ImageSource], heads: HeadNames = None) -> Generator[Score, None, None]:
        return self._iterate(self._client.score_stream(images, heads))

    def embed(self, images: Iterable[ImageSource]) -> list[Embedding]:
        return self._wait(self._client.embed(images))

    def embed_stream(self, images: Iterable[ImageSource]) -> Generator[Embedding, None, None]:
        return self._iterate(self._client.embed_stream(images))

    def score_embeddings(self, head: str, embeddings: np.ndarray) -> EmbeddingScores:
        return self._wait(self._client.score_embeddings(head, embeddings))

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
