"""Score images with a clipsieve server.

    from clipsieve import Client

    with Client("localhost:8001") as client:
        for score in client.score(["cat.jpg", "dog.png"]):
            print(score.path, score.scores, score.decisions, score.error)

`AsyncClient` has the same methods as coroutines. Which heads there are, their labels and their sizes
come from the server.
"""

from clipsieve._exceptions import (
    ClipsieveError,
    ImageFailed,
    ImageRejected,
    InferenceFailed,
    ServerUnavailable,
    UnknownHead,
)
from clipsieve.client import AsyncClient, Client, Embedding, Head, Health, ImageSource, Score
from clipsieve.paths import path_from_text, text_from_path
from clipsieve.transport import Retry

__all__ = [
    "AsyncClient",
    "Client",
    "ClipsieveError",
    "Embedding",
    "Head",
    "Health",
    "ImageFailed",
    "ImageRejected",
    "ImageSource",
    "InferenceFailed",
    "Retry",
    "Score",
    "ServerUnavailable",
    "UnknownHead",
    "path_from_text",
    "text_from_path",
]
