"""Score images with a clipsieve server.

    from clipsieve import Client

    with Client("localhost:8001") as client:
        for score in client.score(["cat.jpg", "dog.png"]):
            for name, head in score.heads.items():
                print(score.path, name, head.scores, head.decisions, head.class_name)

`AsyncClient` has the same methods as coroutines. Which heads there are, their labels and their sizes
come from the server.
"""

from clipsieve.blocking import Client
from clipsieve.client import AsyncClient
from clipsieve.exceptions import (
    AccessDenied,
    ClipsieveError,
    ImageFailed,
    ImageRejected,
    InferenceFailed,
    NotClipsieve,
    ServerNotReady,
    ServerUnavailable,
    UnknownHead,
    UnknownThreshold,
    VersionChanged,
)
from clipsieve.images import ImageSource
from clipsieve.paths import path_from_text, text_from_path
from clipsieve.results import Embedding, EmbeddingScores, Head, HeadScore, Health, Score, Threshold
from clipsieve.scoring import Columns, rows_schema, score_rows
from clipsieve.transport import Retry

__all__ = [
    "AccessDenied",
    "AsyncClient",
    "Client",
    "ClipsieveError",
    "Columns",
    "Embedding",
    "EmbeddingScores",
    "Head",
    "HeadScore",
    "Health",
    "ImageFailed",
    "ImageRejected",
    "ImageSource",
    "InferenceFailed",
    "NotClipsieve",
    "Retry",
    "Score",
    "ServerNotReady",
    "ServerUnavailable",
    "Threshold",
    "UnknownHead",
    "UnknownThreshold",
    "VersionChanged",
    "path_from_text",
    "rows_schema",
    "score_rows",
    "text_from_path",
]
