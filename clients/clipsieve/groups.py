"""Several images in one request, and each still fails alone."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeAlias

import numpy as np

from clipsieve.exceptions import ImageFailed, ImageRejected, InferenceFailed

Tensors: TypeAlias = dict[str, np.ndarray]
Answer: TypeAlias = "Tensors | ImageFailed"
"""A model's answer to one image, each output (1, …); or the reason why there is none."""

File: TypeAlias = "bytes | memoryview"
"""An encoded image."""

Infer: TypeAlias = Callable[[Sequence[File]], Awaitable[Tensors]]
"""One request for some images: each output (B, …). Raises ImageRejected or InferenceFailed for all of them."""


async def answers_for(files: Sequence[File | ImageRejected], infer: Infer) -> list[Answer]:
    """One answer for each file, in order.

    A request is all or nothing. When it is refused for one of its images, that image has its answer and the others
    are sent again without it; when it fails for another reason, each is sent by itself.

    Args:
        files: encoded images, or why there is none.
        infer: sends one request.
    """
    answers: list[Answer | None] = [file if isinstance(file, ImageRejected) else None for file in files]
    images = [file for file in files if not isinstance(file, ImageRejected)]
    answered = iter(await _answers(images, infer) if images else ())
    return [next(answered) if answer is None else answer for answer in answers]


def rows_of(answer: Answer) -> Tensors:
    """The tensors of an image that has some. Raises why it has none."""
    if isinstance(answer, ImageFailed):
        raise answer
    return answer


async def _answers(images: Sequence[File], infer: Infer) -> list[Answer]:
    try:
        return _split(await infer(images), len(images))
    except (ImageRejected, InferenceFailed) as error:
        if len(images) == 1:
            return [error]
        if isinstance(error, ImageRejected) and error.index < len(images):
            place = error.index
            others = await _answers([*images[:place], *images[place + 1 :]], infer)
            return [*others[:place], error, *others[place:]]
    return [answer for each in await _each_alone(images, infer) for answer in each]


async def _each_alone(images: Sequence[File], infer: Infer) -> list[list[Answer]]:
    return await asyncio.gather(*(_answers([image], infer) for image in images))


def _split(tensors: Tensors, count: int) -> list[Answer]:
    short = [name for name, tensor in tensors.items() if len(tensor) != count]
    if short:
        problem = f"{len(tensors[short[0]])} rows of {short[0]} for {count} images"
        raise InferenceFailed("BAD_RESPONSE", f"the server answered {problem}")
    if count == 1:
        return [tensors]
    return [{name: tensor[row : row + 1] for name, tensor in tensors.items()} for row in range(count)]
