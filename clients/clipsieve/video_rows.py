"""A row for each video: its frames are scored as images are, and each score is aggregated over the frames.

    video_path             as image_path is written
    <head>_score, …        the highest score of the frames, or their mean; columns as those of images
    <head>_decision, …     of the aggregated score, by the head's thresholds
    <head>_time_s, …       for each score the time of the frame with the highest, the first of them
    frames                 how many were looked at
    failed_frames          how many of these have no score
    duration_s             of the video, where its header says
    stopped                a score reached the limit, and the frames after it were not looked at
    error, model_version

A video that is damaged, or has a frame that could not be scored, has an error, and the scores are those of what could
be read. It has no decision and no class then: what was not looked at might change them.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Iterable, Iterator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from clipsieve.client import AsyncClient
from clipsieve.exceptions import ImageRejected, InferenceFailed, UnknownThreshold, VideoError
from clipsieve.paths import text_from_path
from clipsieve.results import Head, HeadScore, Score
from clipsieve.scoring import Columns, Row, Versions
from clipsieve.video import Frame, aggregate, duration_of, frames

if TYPE_CHECKING:
    import pyarrow as pa

How = Literal["max", "mean"]


@dataclass(frozen=True)
class Sampling:
    """Sampling of a video: the frames that are looked at, and the way their scores become one.

    Raises:
        ValueError: `stop_at` with `mean`, as the mean of a part is not the video's.
    """

    every_s: float = 1.0
    max_frames: int | None = None
    how: How = "max"
    stop_at: float | None = None
    """Look at no frame after the first one whose first score is this or more."""

    def __post_init__(self) -> None:
        if self.stop_at is not None and self.how != "max":
            raise ValueError("a video is stopped by its highest score; the mean of a part is not the video's")


@dataclass(frozen=True)
class VideoColumns:
    """The columns of a table of videos.

    Args:
        scores: those of its scores and decisions; with the key `video_path`.

    Raises:
        UnknownThreshold: a mean cannot be decided about, because the server does not say where a head decides.
    """

    scores: Columns
    how: How = "max"

    def __post_init__(self) -> None:
        decide = [head for head in self.scores.heads if head.task in ("binary", "multilabel")]
        unknown = [head.name for head in decide if head.thresholds is None]
        if unknown and self.how == "mean" and self.scores.threshold is None:
            problem = f"the server does not say where the head {unknown[0]} decides, so a mean cannot be decided about"
            raise UnknownThreshold(f"{problem}; stamp its repository anew, or take the highest score")

    @property
    def names(self) -> list[str]:
        return self.schema().names

    @property
    def time_names(self) -> list[str]:
        """Names of the time columns, one for each column of scores."""
        return [name.removesuffix("score") + "time_s" for name in self.scores.score_names]

    def schema(self) -> pa.Schema:
        import pyarrow as pa

        *columns, error, version = self.scores.schema()
        times = [pa.field(name, pa.float64()) for name in self.time_names]
        counts = [pa.field(name, pa.int32()) for name in ("frames", "failed_frames")]
        about = [pa.field("duration_s", pa.float64()), pa.field("stopped", pa.bool_())]
        return pa.schema([*columns, *times, *counts, *about, error, version])

    def row(self, path: str, watched: Watched) -> Row:
        """The row of one video; None where there is nothing to say."""
        cells = self._cells(path, watched)
        return tuple(cells.get(name) for name in self.names)

    def _cells(self, path: str, watched: Watched) -> dict[str, Any]:
        cells: dict[str, Any] = {self.scores.key: text_from_path(path)}
        if watched.has_scores:
            score = watched.aggregated(self.scores.heads, self.how)
            cells = dict(zip(self.scores.names, self.scores.row(path, score), strict=True))
            cells |= dict(zip(self.time_names, watched.times_of_highest(), strict=True))
        if watched.error is not None:
            kept = {self.scores.key, "model_version", *self.scores.score_names, *self.time_names}
            cells = {name: value for name, value in cells.items() if name in kept}
            cells["error"] = text_from_path(str(watched.error))
        duration_s = None if watched.duration_s is None else round(watched.duration_s, 3)
        counts = {"frames": watched.frames, "failed_frames": watched.failed, "stopped": watched.stopped}
        return {**cells, **counts, "duration_s": duration_s}


@dataclass
class Watched:
    """The scores of one video's frames so far."""

    duration_s: float | None = None
    error: ImageRejected | InferenceFailed | None = None
    """The first thing that went wrong."""
    failed: int = 0
    stopped: bool = False
    _times: list[float] = field(default_factory=list)
    _scored: list[Score] = field(default_factory=list)

    @property
    def frames(self) -> int:
        return len(self._scored) + self.failed

    @property
    def has_scores(self) -> bool:
        return bool(self._scored)

    def add(self, time_s: float, score: Score) -> None:
        if score.error is None:
            self._times.append(round(time_s, 3))
            self._scored.append(score)
            return
        self.failed += 1
        if self.error is None:
            text = f"the frame at {time_s:.3f} s: {score.error.message}"
            self.error = type(score.error)(score.error.code, text)

    def aggregated(self, heads: Iterable[Head], how: How) -> Score:
        """The video's score, from at least one frame's."""
        return Score(None, {head.name: self._head(head, how) for head in heads})

    def times_of_highest(self) -> list[float]:
        """Seconds, for each score of each head."""
        scores = np.array([_values(score) for score in self._scored])  # (frames, scores)
        return [self._times[place] for place in scores.argmax(axis=0)]

    def _head(self, head: Head, how: How) -> HeadScore:
        head_scores = [score.heads[head.name] for score in self._scored]
        columns = np.stack([each.scores for each in head_scores]).T  # (L, frames)
        scores = np.array([aggregate(column.tolist(), how) for column in columns], np.float32)
        if how == "max":
            decisions = np.stack([each.decisions for each in head_scores]).max(axis=0)
        else:
            decisions = _decisions(head, scores)
        highest = head_scores[int(columns[0].argmax())]
        deviation = highest.deviation if how == "max" else None
        return HeadScore(scores, decisions, None, head_scores[-1].version, deviation)


async def stream_videos(
    client: AsyncClient, paths: Iterable[str], columns: VideoColumns, sampling: Sampling, versions: Versions
) -> AsyncGenerator[Row, None]:
    """One row per video, in order; one video is open at a time, and many of its frames are in flight.

    Raises:
        MissingExtra: PyAV is not installed.
        VersionChanged: the rows before came from another head; within a video, too.
        ServerUnavailable: as `client.score_stream`.
    """
    for path in paths:
        yield columns.row(path, await watch(client, path, columns.scores.heads, sampling, versions))


async def watch(
    client: AsyncClient, path: str, heads: Iterable[Head], sampling: Sampling, versions: Versions
) -> Watched:
    """Score the frames of one video. Raises what `stream_videos` does; what is wrong with the video is its error."""
    watched = Watched()
    times: deque[float] = deque()
    try:
        watched.duration_s = await asyncio.get_running_loop().run_in_executor(None, duration_of, path)
        images = _images(frames(path, sampling.every_s, sampling.max_frames), times)
        async with aclosing(client.score_stream(images, [head.name for head in heads])) as scores:
            async for score in scores:
                versions.check(score.model_version)
                watched.add(times.popleft(), score)
                if sampling.stop_at is not None and score.ok and _values(score)[0] >= np.float32(sampling.stop_at):
                    watched.stopped = True
                    break
    except VideoError as error:
        watched.error = watched.error or error
    return watched


def _images(taken: Iterator[Frame], times: deque[float]) -> Iterator[bytes]:
    for frame in taken:
        times.append(frame.time_s)
        yield frame.image


def _values(score: Score) -> np.ndarray:
    """(scores,) float32: of all heads, one after the other."""
    return np.concatenate([head.scores for head in score.heads.values()])


def _decisions(head: Head, scores: np.ndarray) -> np.ndarray:
    """(L,) int32: how many of its thresholds each score passes."""
    rows = head.thresholds or [()] * len(scores)
    passed = [
        sum(bool(score >= np.float32(threshold.value)) for threshold in row)
        for score, row in zip(scores, rows, strict=True)
    ]
    return np.array(passed, np.int32)
