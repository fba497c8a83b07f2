"""Meanings of Triton's messages: the one place where the client reads a server's words.

Seen from tritonserver 2.51, over gRPC with these codes and over HTTP with their numbers (404 for NOT_FOUND):

NOT_FOUND         …unknown model: 'M' has no available versions  M is being loaded or unloaded, or failed to load
NOT_FOUND         …unknown model: 'M' is not found               there is no M; or it is an ensemble, and one of its
                                                                 models is not loaded: then the server is not ready
UNAVAILABLE       Server exiting; Server not ready               the server stops
UNAVAILABLE       …Server is stopping, scheduler for model has…  the same, of an inference
UNAVAILABLE       in ensemble 'M',                               the same, with no reason behind the comma
CANCELLED         CANCELLED                                      in flight when the server had no more time to stop
UNAVAILABLE       …Exceeds maximum queue size                    no room in a queue
UNAVAILABLE       …Request timeout expired                       waited in a queue for too long
INTERNAL          …Stub process 'P' is not healthy               a model's Python process is dead
INTERNAL          Unable to parse request                        of gRPC itself: a message whose end did not arrive, as
                                                                 when a proxy's limit cuts it off
INVALID_ARGUMENT  …image 0: CODE: text; image 3: CODE: text      images that cannot be decoded

A server that starts opens its ports when every model is loaded, and one that stops closes HTTP at once; what those
meet is a connection that fails. It is loading with open ports when models are loaded by its load API.
"""

from __future__ import annotations

import re

from clipsieve.exceptions import (
    AccessDenied,
    ClipsieveError,
    ImageRejected,
    InferenceFailed,
    ServerNotReady,
    ServerUnavailable,
)

QUEUE_REFUSALS = ("maximum queue size", "timeout expired")
_STOPPING = ("Server exiting", "Server not ready", "Server is stopping")
_NOT_LOADED = "has no available versions"
PROCESS_DEAD = "is not healthy"
_CUT_OFF = "Unable to parse request"

# One bad image in a server's message; the text runs to the next one or to the end.
_REJECTION = re.compile(
    r"\bimage (?P<index>\d+): (?P<code>[A-Z][A-Z0-9_]*): (?P<text>.*?)(?=; image \d+: [A-Z][A-Z0-9_]*: |\Z)", re.DOTALL
)


def failure_from_status(code: str, message: str, url: str) -> ClipsieveError:
    """The exception for a failed call.

    Args:
        code: name of the gRPC status, such as `INVALID_ARGUMENT`; HTTP statuses are mapped to these.
        message: the server's text, or the connection's.
        url: where the call went, for the message.
    """
    if code == "UNAVAILABLE":
        return _unavailable(message, url)
    if code == "CANCELLED":
        return ServerUnavailable(f"{url} ended a request that was in flight: {message}")
    if code == "NOT_FOUND" and _NOT_LOADED in message:
        return ServerNotReady(f"{url} is still loading its models, or is stopping: {message}")
    if code in ("UNAUTHENTICATED", "PERMISSION_DENIED"):
        return AccessDenied(f"{url} refuses access ({code}): {message}")
    if code == "INVALID_ARGUMENT":
        rejections = rejections_from_message(message)
        if rejections:
            return rejections[0]
    if code == "INTERNAL" and message == _CUT_OFF:
        return InferenceFailed("TOO_MANY_BYTES", f"the request reached {url} cut off, as by a proxy's limit: {message}")
    return InferenceFailed(code, message)


def is_unknown_model(error: InferenceFailed) -> bool:
    """True when there is no such model: on a server that is ready, for good; on another, perhaps not yet."""
    return error.code == "NOT_FOUND"


def is_process_dead(error: InferenceFailed) -> bool:
    """True when a model's Python process is gone; Triton never starts it again by itself."""
    return PROCESS_DEAD in error.message


def rejections_from_message(message: str) -> list[ImageRejected]:
    """The bad images a server's INVALID_ARG message names; empty when it names none.

    `in ensemble 'image_score', image 0: NOT_AN_IMAGE: no known format; image 2: EMPTY: no bytes` → two.
    """
    return [
        ImageRejected(match["code"], match["text"].strip(), int(match["index"]))
        for match in _REJECTION.finditer(message)
    ]


def _unavailable(message: str, url: str) -> ClipsieveError:
    if any(text in message for text in QUEUE_REFUSALS):
        return InferenceFailed("SERVER_BUSY", message)
    if any(text in message for text in _STOPPING):
        return ServerNotReady(f"{url} is stopping: {message}")
    return ServerUnavailable(f"no answer from {url}: {message}")
