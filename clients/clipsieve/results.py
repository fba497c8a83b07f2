"""Plain data of a server: its heads and its answers."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import numpy as np

from clipsieve.exceptions import ImageRejected, InferenceFailed

Task = Literal["binary", "multiclass", "multilabel", "regression", "ranking"]


def _no_scores() -> np.ndarray:
    return np.empty(0, np.float32)


def _no_decisions() -> np.ndarray:
    return np.empty(0, np.int32)


@dataclass(frozen=True)
class Threshold:
    """A score at or above `value` passes it."""

    value: float
    operating_point: str
    """Rule that the value was chosen by, e.g. `recall>=0.99`."""


@dataclass(frozen=True)
class Head:
    """A classifier the server offers."""

    name: str
    labels: tuple[str, ...]
    """One per column of its scores. A binary head has one: its positive class."""
    class_names: tuple[str, ...]
    """Class names; of a binary head its negative and positive class, in that order."""
    notice: str | None = None
    """Notice to anyone who sees the scores, e.g. that this is a demonstration."""
    task: Task = "binary"
    thresholds: tuple[tuple[Threshold, ...], ...] | None = None
    """Thresholds of each label, ascending; None when the server does not give them."""
    gives_deviation: bool = False
    """True when each score comes with its standard deviation."""

    @classmethod
    def from_parameters(cls, name: str, parameters: Mapping[str, str], outputs: Collection[str] = ()) -> Head:
        """Read a head from the parameters of its config.pbtxt, and the names of its outputs."""

        def listed(key: str) -> list[Any]:
            return json.loads(parameters.get(key) or "[]")

        labels = tuple(listed("labels"))
        task = parameters.get("task") or ("binary" if len(labels) == 1 else "multilabel")
        thresholds = tuple(
            tuple(Threshold(float(point["value"]), point["operating_point"]) for point in row)
            for row in listed("thresholds")
        )
        return cls(
            name, labels, tuple(listed("class_names")), parameters.get("notice") or None, cast(Task, task),
            thresholds if "thresholds" in parameters else None, "deviation" in outputs,
        )  # fmt: skip

    @property
    def is_single(self) -> bool:
        """True for a head whose answer is one number."""
        return self.task in ("binary", "regression", "ranking")

    def class_of(self, scores: np.ndarray, decisions: np.ndarray) -> str | None:
        """The name of the class, for a binary or multiclass head.

        Args:
            scores: (L,) float32.
            decisions: (L,) int32, how many thresholds each score passed.
        """
        if self.task not in ("binary", "multiclass"):
            return None
        index = int(decisions[0] >= 1) if self.task == "binary" else int(scores.argmax())
        return self.class_names[index] if index < len(self.class_names) else None


@dataclass(frozen=True, eq=False)
class HeadScore:
    """One head's scores of one image."""

    scores: np.ndarray
    """(L,) float32, one per label."""
    decisions: np.ndarray
    """(L,) int32: how many of its thresholds each score passed; 0 is allow."""
    class_name: str | None
    """Class by the first threshold of a binary head, or the highest score of a multiclass head; otherwise None."""
    version: str
    """`<head>-<revision>`: changes whenever the head on the server does."""
    deviation: float | None = None
    """Standard deviation of the score, of a head that gives one."""


@dataclass(frozen=True, eq=False)
class Score:
    """Scores of one image. Without heads when there is an error: no score is ever made up.

    `scores`, `decisions` and `class_name` are for the usual case of one head.
    """

    path: str | None
    """The path that was given; None for what is not a path."""
    heads: Mapping[str, HeadScore] = field(default_factory=dict)
    """Scores by head, in the order of the request."""
    error: ImageRejected | InferenceFailed | None = None

    @property
    def ok(self) -> bool:
        return self.error is None

    @property
    def scores(self) -> np.ndarray:
        """(L,) float32 of the only head; (0,) when there is an error."""
        return self._only.scores if self.heads else _no_scores()

    @property
    def decisions(self) -> np.ndarray:
        """(L,) int32 of the only head; (0,) when there is an error."""
        return self._only.decisions if self.heads else _no_decisions()

    @property
    def class_name(self) -> str | None:
        """Class name of the only head."""
        return self._only.class_name if self.heads else None

    @property
    def model_version(self) -> str:
        """The versions of all heads, a space between them."""
        return " ".join(head.version for head in self.heads.values())

    @property
    def _only(self) -> HeadScore:
        if len(self.heads) != 1:
            raise ValueError(f"this image was scored by {', '.join(self.heads)}: take one of them from `heads`")
        return next(iter(self.heads.values()))


@dataclass(frozen=True, eq=False)
class Embedding:
    """One image's embedding; the vector is empty when there is an error."""

    path: str | None
    vector: np.ndarray = field(default_factory=_no_scores)
    """(D,) float32."""
    error: ImageRejected | InferenceFailed | None = None

    @property
    def ok(self) -> bool:
        return self.error is None


@dataclass(frozen=True, eq=False)
class EmbeddingScores:
    """One head's scores of N stored embeddings."""

    scores: np.ndarray
    """(N, L) float32."""
    decisions: np.ndarray
    """(N, L) int32."""
    version: str
    """`<head>-<revision>`; empty when N is 0."""
    deviations: np.ndarray | None = None
    """(N,) float32: standard deviations of the scores, of a head that gives them."""


@dataclass(frozen=True)
class Health:
    """Result of a health check.

    `unavailable`: nothing answers. `not_ready`: a server answers and is still loading, or has a model
    that failed to load. `failing`: it calls itself ready, but cannot score an image, or answers otherwise
    than its build verified. `busy`: it works, and refuses for want of room in a queue.
    """

    status: Literal["ok", "busy", "unavailable", "not_ready", "failing"]
    message: str

    @property
    def ok(self) -> bool:
        """True when the server works; a restart would not help a busy server."""
        return self.status in ("ok", "busy")
