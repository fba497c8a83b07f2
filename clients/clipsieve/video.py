"""Video files as sampled frames, and one score from the scores of the frames. Needs the extra `clipsieve[video]`.

    for frame in frames("clip.mp4", every_s=1.0):
        frame.time_s, frame.image     # 3.0, the bytes of a JPEG

`clipsieve.video_rows` scores videos with a client.

Frames come as a player shows them: turned and mirrored as the file says, with square pixels. A sampled frame is the
first one shown at or after each multiple of `every_s`; one that stays longer than that is given once.

A frame that the decoder had to patch up is never given, nor one drawn from it. A file that is damaged or cut off gives
its whole frames and then raises VideoError. What a decoder does not notice cannot be told: a few wrong bytes within
a frame, or a transport stream (.ts) that is cut, as it has no length.

Only files are opened, in the formats of FORMATS: no addresses, and no playlists that name other files.
"""

from __future__ import annotations

import io
import math
import os
import re
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from PIL import Image

from clipsieve.exceptions import MissingExtra, VideoError

VIDEO_SUFFIXES = frozenset(
    {".mp4", ".m4v", ".mov", ".3gp", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".m2ts", ".wmv", ".flv", ".ogv"}
)
FORMATS = ("mov", "mp4", "matroska", "webm", "avi", "mpeg", "mpegts", "asf", "flv", "ogg")

_JPEG_QUALITY = 95
_MOST_STRETCH = 4.0  # a pixel's width to its height; beyond that the header is wrong
_CUT_S = 0.5  # a file may end this much before its header says
_DURATION = re.compile(r"(\d+):(\d+):(\d+(?:\.\d+)?)")
# The corner of a display matrix [a b; c d], by signs: a point (x, y) is shown at (ax + cy, bx + dy), y downwards.
_TURNS = {
    (-1, 0, 0, 1): Image.Transpose.FLIP_LEFT_RIGHT,
    (1, 0, 0, -1): Image.Transpose.FLIP_TOP_BOTTOM,
    (-1, 0, 0, -1): Image.Transpose.ROTATE_180,
    (0, -1, 1, 0): Image.Transpose.ROTATE_90,
    (0, 1, -1, 0): Image.Transpose.ROTATE_270,
    (0, 1, 1, 0): Image.Transpose.TRANSPOSE,
    (0, -1, -1, 0): Image.Transpose.TRANSVERSE,
}


@dataclass(frozen=True)
class Limits:
    """Limits on a video, checked against its header where that gives them."""

    max_duration_s: float = 4 * 3600.0
    max_pixels: int = 40_000_000
    """Most pixels of one frame."""


@dataclass(frozen=True)
class Frame:
    """One picture of a video."""

    time_s: float
    """Time since the video's start."""
    image: bytes = field(repr=False)
    """An encoded file."""


@dataclass(frozen=True)
class VideoScore:
    """One score for a video."""

    score: float | None
    """Score of the video; None when no frame has one."""
    time_s: float | None
    """Time of the first frame with the highest score."""
    frames: int
    """Number of frames that were looked at."""
    failed: int
    """Number of these without a score."""
    stopped: bool = False
    """A frame's score reached the threshold; those after it were not looked at."""


def is_video(path: str | os.PathLike[str]) -> bool:
    """True for the name of a video."""
    return os.path.splitext(os.fspath(path))[1].lower() in VIDEO_SUFFIXES


def frames(
    path: str | os.PathLike[str],
    every_s: float = 1.0,
    max_frames: int | None = None,
    *,
    limits: Limits | None = None,
    image_format: Literal["jpeg", "png"] = "jpeg",
) -> Iterator[Frame]:
    """The frames of a video at intervals of `every_s` seconds, one in memory at a time.

    Args:
        max_frames: a longer video is sampled less often, so that these still cover all of it; if the file does not
            say how long it is, the frames end after so many.
        image_format: `jpeg` of quality 95, or `png`, exact and larger.

    Raises:
        ValueError: an argument that makes no sense.
        MissingExtra: PyAV is not installed.
        VideoError: not a video, beyond the limits, damaged or cut off; raised after the frames that are whole.
    """
    if not (every_s > 0 and math.isfinite(every_s)):
        raise ValueError(f"every_s must be > 0, found {every_s}")
    if max_frames is not None and max_frames < 1:
        raise ValueError(f"max_frames must be at least 1, found {max_frames}")
    if image_format not in ("jpeg", "png"):
        raise ValueError(f"image_format must be jpeg or png, found {image_format!r}")
    return _frames(_pyav(), path, every_s, max_frames, limits or Limits(), image_format)


def duration_of(path: str | os.PathLike[str], limits: Limits | None = None) -> float | None:
    """Length of a video in seconds, by its header; None when that does not say.

    Raises:
        MissingExtra, VideoError: as `frames`.
    """
    av = _pyav()
    with _open(av, path) as container:
        return _Video(av, container, limits or Limits()).duration_s


def check_installed() -> None:
    """
    Raises:
        MissingExtra: PyAV is not installed.
    """
    _pyav()


def aggregate(scores: Iterable[float], how: Literal["max", "mean"] = "max") -> float:
    """One score from those of the frames.

    Raises:
        ValueError: no scores, or one that is not finite.
    """
    values = list(scores)
    if not values or not all(map(math.isfinite, values)):
        raise ValueError(f"expected finite scores, found {values[:5]}")
    if how not in ("max", "mean"):
        raise ValueError(f"scores are aggregated by max or mean, found {how!r}")
    return max(values) if how == "max" else math.fsum(values) / len(values)


def score_video(
    scored: Iterable[tuple[float, float | None]], how: Literal["max", "mean"] = "max", stop_at: float | None = None
) -> VideoScore:
    """The score of a video from its frames, which are taken one at a time.

    Args:
        scored: time (s) and score of each frame; None for a frame that could not be scored.
        stop_at: take no frame after the first one that scores this or more; only with `max`, as the mean of a part
            is not the video's.

    Raises:
        ValueError: `stop_at` with `mean`, or a score that is not finite.
    """
    if stop_at is not None and how != "max":
        raise ValueError(f"stop_at needs max, found {how!r}")
    times: list[float] = []
    scores: list[float] = []
    count = 0
    stopped = False
    for time_s, score in scored:
        count += 1
        if score is None:
            continue
        times.append(time_s)
        scores.append(score)
        if stop_at is not None and score >= stop_at:
            stopped = True
            break
    if not scores:
        return VideoScore(None, None, count, count)
    value = aggregate(scores, how)
    return VideoScore(value, times[scores.index(max(scores))], count, count - len(scores), stopped)


def _pyav() -> Any:
    try:
        import av
    except ImportError as error:
        raise MissingExtra("video files need PyAV: pip install 'clipsieve[video]'") from error
    return av


def _frames(
    av: Any, path: str | os.PathLike[str], every_s: float, max_frames: int | None, limits: Limits, image_format: str
) -> Iterator[Frame]:
    with _open(av, path) as container:
        video = _Video(av, container, limits)
        if max_frames is not None and video.duration_s is not None:
            every_s = max(every_s, video.duration_s / max_frames)
        given = 0
        try:
            for time_s, frame in _sampled(video.shown(), every_s):
                image = video.encode(frame, image_format)
                if image is not None:
                    yield Frame(time_s, image)
                    given += 1
                if given == max_frames:
                    return
            video.check_whole()
        except VideoError as error:
            error.frames = given
            raise


def _sampled(shown: Iterator[tuple[float, Any]], every_s: float) -> Iterator[tuple[float, Any]]:
    """The first frame at or after each multiple of the interval, and where time jumps back."""
    wanted_s = before_s = -math.inf
    for time_s, frame in shown:
        if time_s >= wanted_s or time_s < before_s:
            yield time_s, frame
            wanted_s = (math.floor(time_s / every_s + 1e-6) + 1) * every_s - 1e-6  # times are rounded to microseconds
        before_s = time_s


class _Video:
    """The video stream of an open file: what its header says, and its frames."""

    def __init__(self, av: Any, container: Any, limits: Limits) -> None:
        self._av = av
        self._container = container
        self._limits = limits
        self._stream = _video_stream(container)
        # Not whole frames in parallel: FFmpeg then sometimes gives a patched frame without its mark.
        self._stream.thread_type = "SLICE"
        self._damage = ""
        """The first thing that was wrong."""
        self._broken = False
        """Frames are drawn from a damaged one until the next key frame."""
        self._frames = 0
        self._end_s = 0.0
        self._longest_gap_s = 0.0
        self.duration_s = _duration_s(container, self._stream)
        if self.duration_s is not None and self.duration_s > limits.max_duration_s:
            raise VideoError("TOO_LONG", f"{self.duration_s:.0f} s; at most {limits.max_duration_s:.0f} s are read")
        self._check_size(self._stream.codec_context)

    def shown(self) -> Iterator[tuple[float, Any]]:
        """(seconds since the start, frame) for each frame that is whole."""
        rate = float(self._stream.average_rate or 25)
        start_s = None if self._stream.start_time is None else float(self._stream.start_time * self._stream.time_base)
        time_s = 0.0
        for frame in self._decoded():
            self._check_size(frame)
            before_s = time_s
            if frame.time is None:
                time_s = self._end_s
            else:
                start_s = frame.time if start_s is None else start_s
                time_s = max(0.0, frame.time - start_s)
            if time_s > self._limits.max_duration_s:
                raise VideoError("TOO_LONG", f"goes on after {self._limits.max_duration_s:.0f} s; no more is read")
            self._longest_gap_s = max(self._longest_gap_s, time_s - before_s)
            self._end_s = max(self._end_s, time_s + (_length_s(frame) or 1 / rate))
            self._frames += 1
            yield time_s, frame

    def encode(self, frame: Any, image_format: str) -> bytes | None:
        """The frame as an image file, as a player shows it; None, and damage, when it cannot be converted."""
        size = {}
        stretch = float(self._stream.sample_aspect_ratio or 1)
        if stretch != 1 and 1 / _MOST_STRETCH <= stretch <= _MOST_STRETCH:
            size = {"width": max(1, round(frame.width * stretch)), "height": frame.height, "interpolation": "BICUBIC"}
        try:
            image = frame.to_image(**size)
        except (self._av.error.FFmpegError, ValueError, MemoryError) as error:
            self._note(error)
            return None
        turn = _turn(frame)
        if turn is not None:
            image = image.transpose(turn)
        file = io.BytesIO()
        image.save(
            file, image_format, **({"quality": _JPEG_QUALITY, "subsampling": 0} if image_format == "jpeg" else {})
        )
        return file.getvalue()

    def check_whole(self) -> None:
        """Raises VideoError if the frames so far are not all there should be."""
        cut = self.duration_s is not None and self._end_s + _CUT_S + self._longest_gap_s < self.duration_s
        if cut:
            self._note(f"ends at {self._end_s:.1f} s of {self.duration_s:.1f} s")
        if not self._frames:
            self._note("has no frames")
        if self._damage:
            read = f"{self._frames} frames up to {self._end_s:.1f} s could be read"
            raise VideoError("DECODE_FAILED", f"{self._damage}; {read}")

    def _decoded(self) -> Iterator[Any]:
        """Frames that are whole: after damage none before the next key frame, as they are drawn from damaged ones."""
        packets = self._container.demux(self._stream)
        while (packet := self._attempt(lambda: next(packets, None))) is not None:
            for frame in self._attempt(packet.decode) or ():
                if frame.is_corrupt:
                    self._broken = True
                    if self._frames:  # a recording may begin between two key frames
                        self._note("a frame is damaged")
                elif not self._broken or frame.key_frame:
                    self._broken = False
                    yield frame

    def _attempt(self, read: Any) -> Any:
        try:
            return read()
        except self._av.error.EOFError:
            return None
        except (self._av.error.FFmpegError, OSError, ValueError) as error:
            self._note(error)
            return None

    def _note(self, problem: object) -> None:
        text = getattr(problem, "strerror", None) or str(problem)
        self._damage = self._damage or text
        self._broken = True

    def _check_size(self, sized: Any) -> None:
        if sized.width * sized.height > self._limits.max_pixels:
            size = f"{sized.width}×{sized.height}"
            raise VideoError("TOO_MANY_PIXELS", f"{size} pixels; at most {self._limits.max_pixels} are decoded")


@contextmanager
def _open(av: Any, path: str | os.PathLike[str]) -> Iterator[Any]:
    """The container, from the file's bytes: a path would also be taken for an address."""
    try:
        file = open(path, "rb", opener=_open_without_waiting)  # noqa: SIM115  # closed below
    except (OSError, ValueError) as error:
        raise VideoError("UNREADABLE", getattr(error, "strerror", None) or str(error)) from None
    with file:
        try:
            # From version 19 on PyAV reads texts that are not UTF-8 by itself.
            texts = {"metadata_errors": "replace"} if int(av.__version__.partition(".")[0]) < 19 else {}
            container = av.open(file, "r", options={"format_whitelist": ",".join(FORMATS)}, **texts)
        except (av.error.FFmpegError, OSError, ValueError) as error:
            known = "no video of a known format, or its beginning or index is missing"
            raise VideoError("NOT_A_VIDEO", f"{known} ({getattr(error, 'strerror', None) or error})") from None
        with container:
            yield container


def _video_stream(container: Any) -> Any:
    """The first stream of moving pictures; a song's cover is none."""
    for stream in container.streams.video:
        if not stream.disposition & type(stream.disposition).attached_pic:
            if stream.codec_context is None:
                raise VideoError("NOT_A_VIDEO", "no decoder for its video")
            return stream
    kinds = ", ".join(sorted({stream.type for stream in container.streams})) or "nothing"
    raise VideoError("NO_VIDEO", f"has no moving pictures, only {kinds}")


def _duration_s(container: Any, stream: Any) -> float | None:
    """Length of the video stream, where the file says."""
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    if match := _DURATION.match(stream.metadata.get("DURATION", "")):
        end_s = int(match[1]) * 3600 + int(match[2]) * 60 + float(match[3])
    elif container.duration and len(container.streams) == 1:  # with others it may be the sound's
        end_s = container.duration / 1e6
    else:
        return None
    start_s = float((stream.start_time or 0) * (stream.time_base or 0))
    return end_s - start_s if end_s > start_s else None


def _length_s(frame: Any) -> float:
    return float(frame.duration * frame.time_base) if frame.duration and frame.time_base else 0.0


def _turn(frame: Any) -> Image.Transpose | None:
    """Turn that makes the frame upright; None also for angles that no camera writes."""
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return None
    a, b, _, c, d = struct.unpack("=9i", bytes(matrix)[:36])[:5]
    return _TURNS.get(tuple((value > 0) - (value < 0) for value in (a, b, c, d)))  # type: ignore[arg-type]


def _open_without_waiting(path: str, flags: int) -> int:
    """A named pipe is then opened at once, and found empty, instead of waited for."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
