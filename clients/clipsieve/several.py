"""Several servers as one: requests go to whichever has the fewest under way, and past one that does not answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import numpy as np

from clipsieve.exceptions import ClipsieveError, InferenceFailed, ServerUnavailable
from clipsieve.transport import ModelConfig, Request, Transport
from clipsieve.triton_messages import is_process_dead, is_unknown_model

_Answer = TypeVar("_Answer")

_SHUN_S = 30.0
"""Time during which a server that did not answer is tried last."""


class SeveralServers:
    """A transport over others, each of one server.

    Args:
        transports: at least one.
        addresses: of their servers, for messages.
    """

    def __init__(self, transports: Sequence[Transport], addresses: Sequence[str]) -> None:
        self._transports = transports
        self._addresses = addresses
        self._under_way = [0] * len(transports)
        self._sent = [0] * len(transports)
        self._silent_since = [-_SHUN_S] * len(transports)

    async def is_ready(self, timeout_s: float) -> bool:
        """True when one of them is.

        Raises:
            ClipsieveError: none answers; the first's reason.
        """
        answers = await self._of_all(lambda transport: transport.is_ready(timeout_s))
        return any(ready for _, ready in answers)

    async def model_config(self, model: str, timeout_s: float) -> ModelConfig:
        """The first's that answers, with a batch size that all take. Other thresholds show in each row's version.

        Raises:
            ClipsieveError: they have other outputs than one another, or none answers; the first's reason.
        """
        answers = await self._of_all(lambda transport: transport.model_config(model, timeout_s))
        config = answers[0][1]
        for _, other in answers:
            if other.output_dims != config.output_dims:
                outputs = (f"{', '.join(each.output_dims)} at {self._addresses[at]}" for at, each in answers)
                raise ClipsieveError(
                    f"the servers do not serve the same {model}: {'; '.join(outputs)}. Name servers of one repository"
                )
        smallest = min(config.max_batch_size for _, config in answers)
        return ModelConfig(smallest, config.output_dims, config.parameters)

    async def infer(self, request: Request, timeout_s: float) -> dict[str, np.ndarray]:
        """The answer of the first that gives one; each is asked once."""
        failure: ClipsieveError | None = None
        left = set(range(len(self._transports)))
        while left:
            left.remove(place := min(left, key=self._load))
            self._under_way[place] += 1
            self._sent[place] += 1
            try:
                return await self._transports[place].infer(request, timeout_s)
            except (ServerUnavailable, InferenceFailed) as error:
                if not _is_this_servers(error):
                    raise
                if not (isinstance(error, InferenceFailed) and error.code == "SERVER_BUSY"):
                    self._silent_since[place] = time.monotonic()
                failure = failure or error
            finally:
                self._under_way[place] -= 1
        assert failure is not None
        raise failure

    async def close(self) -> None:
        for transport in self._transports:
            await transport.close()

    def _load(self, place: int) -> tuple[bool, int, int]:
        """The smallest is asked first; those with equally many under way take turns."""
        is_shunned = time.monotonic() - self._silent_since[place] < _SHUN_S
        return is_shunned, self._under_way[place], self._sent[place]

    async def _of_all(self, call: Callable[[Transport], Awaitable[_Answer]]) -> list[tuple[int, _Answer]]:
        """The place and the answer of each server that gives one, at least of one."""
        answers = await asyncio.gather(*map(call, self._transports), return_exceptions=True)
        given: list[tuple[int, _Answer]] = []
        failure: BaseException | None = None
        for place, answer in enumerate(answers):
            if isinstance(answer, BaseException):
                if not isinstance(answer, ClipsieveError) or not _is_this_servers(answer):
                    raise answer
                self._silent_since[place] = time.monotonic()
                failure = failure or answer
            else:
                given.append((place, answer))
        if not given and failure is not None:
            raise failure
        return given


def _is_this_servers(error: ClipsieveError) -> bool:
    """True when another server may do better."""
    return isinstance(error, ServerUnavailable) or (
        isinstance(error, InferenceFailed)
        and (error.code == "SERVER_BUSY" or is_process_dead(error) or is_unknown_model(error))
    )
