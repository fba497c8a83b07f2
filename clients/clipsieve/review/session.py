"""What a review knows and does, without HTTP: pictures, answers, queues, pairs, scores and training."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from clipsieve.exceptions import InputRefused, PictureGone
from clipsieve.paths import text_from_path
from clipsieve.review.answers import Answers, Kind, class_names_in, grades
from clipsieve.review.pairs import next_pair
from clipsieve.review.pictures import Pictures, Scores, pictures_in_table
from clipsieve.review.queues import Known, Order, Queue, Sort, order_of
from clipsieve.review.scoring import ServerScores
from clipsieve.review.toolchain import HeadFacts, Job, Toolchain, scores_file, write_pictures
from clipsieve.scoring import shortest

DEFAULT_CLASSES = ("keep", "delete")
_MOST_CLASSES = 9
_MOST_MISSING = 100
LOWEST_GRADE, HIGHEST_GRADE = 1, 10


@dataclass(frozen=True)
class Setting:
    """What a review begins with."""

    title: str
    class_names: tuple[str, ...] | None = None
    """Of labels; by default those of the recipe, the scores or the answers so far."""
    blur: bool | None = None
    """None: the page decides by the names of the heads."""
    note: str = ""
    """What was passed over."""


class Review:
    """One review; safe to share between threads.

    Args:
        pictures: to look at.
        answers: so far.
        setting: what it begins with.
        toolchain: trains anew; None where no recipe was named.
        facts: of the recipe's head.
        server: scores in the background.
    """

    def __init__(
        self,
        pictures: Pictures,
        answers: Answers,
        setting: Setting,
        toolchain: Toolchain | None = None,
        facts: HeadFacts | None = None,
        server: ServerScores | None = None,
    ) -> None:
        self.pictures, self.answers, self.setting = pictures, answers, setting
        self.toolchain, self.facts, self.server = toolchain, facts, server
        self.job = Job(toolchain.root if toolchain else Path(), self._take_scores)
        self._embedded = False
        self._passed: set[frozenset[int]] = set()
        self._gone: set[int] = set()
        self._lock = threading.Lock()
        self._known: tuple[Any, Known] | None = None

    def close(self) -> None:
        self.job.close()
        if self.server is not None:
            self.server.close()

    # What there is

    def class_names(self) -> tuple[str, ...]:
        """Labels to give; of two the first is the negative and the second the positive class."""
        column = self.pictures.column(None)
        fixed = self.setting.class_names or (self.facts.class_names if self.facts and not self.facts.is_graded else ())
        fixed = fixed or (column.class_names if column else ())
        if fixed:
            return tuple(fixed)[:_MOST_CLASSES]
        given = class_names_in(self.answers.of("label"), _MOST_CLASSES)
        return tuple(sorted({*given, *DEFAULT_CLASSES}, key=(*DEFAULT_CLASSES, *given).index)[:_MOST_CLASSES])

    def is_graded(self) -> bool:
        """True where the answers that count are grades: of a recipe's head of grades, or scores beyond 0 to 1."""
        if self.facts is not None:
            return self.facts.is_graded
        column = self.pictures.column(None)
        if column is None or column.class_names or self.setting.class_names:
            return False
        scores = column.values[np.isfinite(column.values)]
        return bool(len(scores)) and not bool(scores.min() >= 0 and scores.max() <= 1)

    def state(self) -> dict[str, Any]:
        """Everything but the pictures, for the page."""
        labels, given, pairs = self.answers.of("label"), self.answers.of("grade"), self.answers.pairs()
        counts = {"label": len(labels), "grade": len(given), "pair": len(pairs)}
        server, job = self.server, self.job
        return {
            "title": self.setting.title,
            "folder": text_from_path(str(self.answers.folder)),
            "count": len(self.pictures),
            "classNames": self.class_names(),
            "graded": self.is_graded(),
            "blur": self.setting.blur,
            "columns": [_column_json(column) for column in self.pictures.scores],
            "version": {"scores": self.pictures.version, "answers": self.answers.version()},
            "counts": counts,
            "canUndo": self.answers.can_undo,
            "lost": self.answers.lost(),
            "notices": [*filter(None, [self.setting.note, self._unused(counts)]), *self.answers.notices()],
            "scoring": server and {
                "done": server.done, "total": server.total, "failed": server.failed, "running": server.running,
                "problem": server.problem,
            },
            "training": self.toolchain and {
                "recipe": self.toolchain.recipe, "state": job.state, "step": job.step, "line": job.line,
            },
        }  # fmt: skip

    def order(self, queue: Queue, sort: Sort, column: str | None, kind: Kind) -> Order:
        """Numbers of the queue's pictures."""
        return order_of(self._known_now(column, kind), queue, sort)

    def rows(self, places: Sequence[int], column: str | None) -> list[dict[str, Any]]:
        """What a card shows of each picture."""
        labels, given = self.answers.of("label"), self.answers.of("grade")
        scores = self.pictures.column(column)
        return [self._row(place, scores, labels, given) for place in places if 0 <= place < len(self.pictures)]

    def path(self, place: int) -> str:
        """
        Raises:
            InputRefused: there is no such number.
        """
        if not 0 <= place < len(self.pictures):
            raise InputRefused(f"there is no picture {place}; there are {len(self.pictures)}")
        return self.pictures.paths[place]

    # Answers

    def answer(self, place: int, kind: Kind, value: str | None) -> None:
        """
        Raises:
            PictureGone: nothing was written.
            InputRefused: no such picture, label or grade.
            AnswersRefused: it cannot be written.
        """
        path = self.path(place)
        if value is not None:
            self._check_there(place)
            self._check_value(kind, value)
        self.answers.give(kind, path, value)

    def choose(self, winner: int, loser: int) -> None:
        """Raises: as `answer`."""
        if winner == loser:
            raise InputRefused("a choice is between two pictures")
        for place in (winner, loser):
            self._check_there(place)
        self.answers.choose(self.path(winner), self.path(loser))

    def pass_pair(self, one: int, other: int) -> None:
        """Show these two no more while this page runs."""
        with self._lock:
            self._passed.add(frozenset((one, other)))

    def pair(self, column: str | None) -> tuple[int, int] | None:
        """The two pictures to compare next; None when no two are left."""
        place_of = self.pictures.place_of
        chosen = [(place_of[one], place_of[other]) for one, other in self.answers.pairs()
                  if one in place_of and other in place_of]  # fmt: skip
        scores = self.pictures.column(column)
        values = scores.values if scores is not None else np.full(len(self.pictures), np.nan)
        with self._lock:
            for _ in range(_MOST_MISSING):
                pair = next_pair(len(self.pictures), chosen, values, self._passed, self._gone)
                gone = [place for place in pair or () if not os.path.isfile(self.pictures.paths[place])]
                if not gone:
                    return pair
                self._gone.update(gone)
        return None

    def undo(self) -> dict[str, Any] | None:
        """Take the last answer back: its kind and the numbers of its pictures; None where there is none."""
        done = self.answers.undo()
        if done is None:
            return None
        return {"kind": done.kind, "ids": [self.pictures.place_of.get(path, -1) for path in done.paths]}

    # Training

    def train(self) -> None:
        """Train anew in the background.

        Raises:
            InputRefused: no recipe was named, a training runs, or nothing is answered yet.
        """
        if self.toolchain is None:
            raise InputRefused("training needs a recipe: start `clipsieve review` with --recipe NAME")
        folder = self.answers.folder.resolve()
        pictures = None if self._embedded else write_pictures(folder, self.pictures.names)
        self.job.start(self.toolchain.training_commands(folder, self.is_graded(), pictures))

    def _take_scores(self) -> None:
        self._embedded = True
        self.pictures.take(pictures_in_table(scores_file(self.answers.folder), Path()))

    def _unused(self, counts: dict[str, int]) -> str:
        """Which answers the recipe's head does not learn from; empty where there are none."""
        if self.facts is None:
            return ""
        unused = ("label",) if self.facts.is_graded else ("grade", "pair")
        names = [f"{kind}s" for kind in unused if counts[kind]]
        if not names:
            return ""
        return f"The head {self.facts.name} is {self.facts.task}: it does not learn from {' and '.join(names)}."

    def _row(self, place: int, scores: Scores | None, labels: dict[str, str], given: dict[str, str]) -> dict[str, Any]:
        path = self.pictures.paths[place]
        score = float(scores.values[place]) if scores is not None else np.nan
        band = int(scores.bands[place]) if scores is not None else -1
        known = self.pictures.labels[place] if self.pictures.labels else None
        return {
            "id": place,
            "name": self.pictures.names[place],
            "score": shortest(score) if np.isfinite(score) else None,
            "band": scores.band_names[band] if scores is not None and band >= 0 else "",
            "label": labels.get(path),
            "grade": given.get(path),
            "known": known,
            "group": int(self.pictures.groups[place]) if self.pictures.groups is not None else -1,
            "gone": not os.path.isfile(path),
        }

    def _known_now(self, column: str | None, kind: Kind) -> Known:
        key = column, kind, self.pictures.version, self.answers.version(), self.server and self.server.done
        known = self._known
        if known is None or known[0] != key:
            known = self._known = key, self._gathered(column, kind)
        return known[1]

    def _gathered(self, column: str | None, kind: Kind) -> Known:
        count = len(self.pictures)
        scores = self.pictures.column(column)
        given = self.answers.of(kind)
        graded = kind == "grade"
        texts: dict[int, str] = {}
        if graded == self.is_graded():
            texts = {place: label for place, label in enumerate(self.pictures.labels) if label}
        texts |= {self.pictures.place_of[path]: answer for path, answer in given.items()
                  if path in self.pictures.place_of}  # fmt: skip
        answers, answered = np.full(count, np.nan, np.float32), np.zeros(count, bool)
        answered[list(texts)] = True
        numbers = grades({str(place): text for place, text in texts.items()}) if graded else {}
        names = self.class_names()
        for place, text in texts.items():
            if graded:
                answers[place] = numbers.get(str(place), np.nan)
            elif text in names:
                answers[place] = names.index(text) if len(names) == 2 else np.nan
        return Known(
            scores.values if scores is not None else np.full(count, np.nan, np.float32),
            scores.threshold if scores is not None else 0.5,
            answered,
            answers,
            graded,
            self.pictures.groups,
        )

    def _check_there(self, place: int) -> None:
        path = self.path(place)
        if not os.path.isfile(path):
            self._gone.add(place)
            raise PictureGone(f"{os.path.basename(text_from_path(path))} is no longer there: nothing was written of it")

    def _check_value(self, kind: Kind, value: str) -> None:
        if kind == "label" and value not in self.class_names():
            raise InputRefused(f"{value!r:.60} is none of {', '.join(self.class_names())}")
        if kind == "grade" and value not in map(str, range(LOWEST_GRADE, HIGHEST_GRADE + 1)):
            raise InputRefused(f"{value!r:.60} is no grade from {LOWEST_GRADE} to {HIGHEST_GRADE}")


def _column_json(column: Scores) -> dict[str, Any]:
    return {
        "name": column.name,
        "classNames": column.class_names,
        "threshold": shortest(column.threshold),
        "scored": column.count,
    }
