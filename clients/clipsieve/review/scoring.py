"""Scores of a server: of all pictures in the background, and of one that was dropped onto the page."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from clipsieve.bands import band_of, words_of
from clipsieve.blocking import Client
from clipsieve.exceptions import ClipsieveError
from clipsieve.results import Head, HeadScore, Score
from clipsieve.review.pictures import Pictures, Scores
from clipsieve.scoring import shortest


class ServerScores:
    """Scores all pictures in a thread of its own.

    Args:
        client: of the server.
        pictures: whose scores are filled in.
        heads: names of the heads to ask; by default all.
    """

    def __init__(self, client: Client, pictures: Pictures, heads: Sequence[str] | None = None) -> None:
        self.client = client
        self.done = self.failed = 0
        self.total = len(pictures)
        self.problem = ""
        """Why it stopped before its end."""
        self._pictures = pictures
        self._names = heads
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="scoring", daemon=True)

    def start(self) -> None:
        """
        Raises:
            ClipsieveError: no server answers, or it has no such head.
        """
        self._heads = self.client.chosen_heads(self._names)
        self._pictures.scores = [
            _empty(head, label, self.total) for head in self._heads for label in range(_columns_of(head))
        ]
        self._pictures.version += 1
        self._thread.start()

    def close(self) -> None:
        self._stopped.set()
        self._thread.join(timeout=5)

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    def one(self, data: bytes) -> dict[str, Any]:
        """What every head says of a picture, for the page.

        Raises:
            ClipsieveError: the server does not answer.
        """
        (score,) = self.client.score([data])
        if score.error is not None:
            return {"error": str(score.error)}
        heads = {head.name: head for head in self.client.heads()}
        return {"heads": [row for name, each in score.heads.items() for row in _rows(heads[name], each)]}

    def _run(self) -> None:
        with suppress(GeneratorExit):
            try:
                stream = self.client.score_stream(iter(self._pictures.paths), [head.name for head in self._heads])
                for place, score in enumerate(stream):
                    self._fill(place, score)
                    if self._stopped.is_set():
                        stream.close()
                        return
            except (ClipsieveError, RuntimeError) as error:
                self.problem = str(error)
            self._pictures.version += 1

    def _fill(self, place: int, score: Score) -> None:
        self.done += 1
        if score.error is not None:
            self.failed += 1
            return
        columns = iter(self._pictures.scores)
        for head in self._heads:
            answer = score.heads[head.name]
            for label in range(_columns_of(head)):
                column = next(columns)
                column.values[place] = answer.scores[label]
                column.bands[place] = _band_place(head, label, answer)


def _columns_of(head: Head) -> int:
    return len(head.labels)


def _title(head: Head, label: int) -> str:
    return head.name if _columns_of(head) == 1 else f"{head.name}_{head.labels[label]}"


def _empty(head: Head, label: int, count: int) -> Scores:
    thresholds = head.thresholds[label] if head.thresholds and head.task != "multiclass" else ()
    classes = head.class_names if head.task == "binary" else ()
    names = ["allow", "review", "block"] if len(thresholds) > 1 else ["allow", "block"]
    values, bands = np.full(count, np.nan, np.float32), np.full(count, -1, np.int16)
    return Scores(_title(head, label), values, bands, names, classes, thresholds)


def _passed(head: Head, label: int, answer: HeadScore) -> int | None:
    """Thresholds that the score passed; None where there are none."""
    known = head.thresholds is not None and not head.thresholds[label]
    return None if known or head.task == "multiclass" else int(answer.decisions[label])


def _band_place(head: Head, label: int, answer: HeadScore) -> int:
    passed = _passed(head, label, answer)
    thresholds = len(head.thresholds[label]) if head.thresholds else 1
    if passed is None:
        return -1
    return 0 if passed == 0 else 1 if thresholds < 2 or passed < thresholds else 2


def _rows(head: Head, answer: HeadScore) -> Iterator[dict[str, Any]]:
    for label in range(_columns_of(head)):
        passed = _passed(head, label, answer)
        thresholds = len(head.thresholds[label]) if head.thresholds else 1
        yield {
            "name": _title(head, label),
            "score": shortest(float(answer.scores[label])),
            "band": "" if passed is None else band_of(passed, thresholds, words_of(head.task)),
            "className": answer.class_name or "",
        }
