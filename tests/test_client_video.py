"""Videos: the right frames at the right times, as a player shows them, and damage reported."""

from __future__ import annotations

import builtins
import io
import math
import os
import random
import struct
import wave
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.stream import Disposition
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from clipsieve import Columns, Head, InferenceFailed, Score, Threshold, UnknownThreshold
from clipsieve.exceptions import MissingExtra, VideoError
from clipsieve.results import HeadScore
from clipsieve.video import Frame, Limits, VideoScore, aggregate, duration_of, frames, is_video, score_video
from clipsieve.video_rows import Sampling, VideoColumns, Watched

WIDTH, HEIGHT = 64, 48
RED, BLUE = (255, 0, 0), (0, 0, 255)


def _picture(number: int) -> np.ndarray:
    """A frame, (48, 64, 3) uint8: a white square that moves on a grey ground; `_number` reads it back."""
    picture = np.full((HEIGHT, WIDTH, 3), 60, np.uint8)
    column, row = number % 8 * 8, number // 8 % 6 * 8
    picture[row : row + 8, column : column + 8] = 255
    return picture


def _number(frame: Frame) -> int:
    pixels = np.asarray(Image.open(io.BytesIO(frame.image)).convert("L"))
    squares = pixels.reshape(6, 8, 8, 8).mean(axis=(1, 3))  # rows, columns
    return int(squares.argmax())


def _video(
    path: Path,
    pictures: Sequence[np.ndarray],
    *,
    rate: int = 10,
    times_ms: Sequence[int] | None = None,
    codec: str = "mpeg4",
    turn: float | None = None,
    pixel_aspect: Fraction | None = None,
    title: str = "",
    **options: str,
) -> Path:
    with av.open(str(path), "w", options=options) as container:
        container.metadata["title"] = title
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt, stream.bit_rate = "yuv420p", 2_000_000
        if times_ms is not None:
            stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        if turn is not None:
            stream.set_display_rotation(turn)
        if pixel_aspect is not None:
            stream.codec_context.sample_aspect_ratio = pixel_aspect
        for number, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            if times_ms is not None:
                frame.pts, frame.time_base = times_ms[number], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def _moving(path: Path, count: int = 30, **options) -> Path:
    return _video(path, [_picture(number) for number in range(count)], **options)


def _noisy(path: Path, **options) -> Path:
    """40 frames that make up most of the file."""
    noise = np.random.default_rng(0).integers(0, 60, (40, HEIGHT, WIDTH, 1), np.uint8)
    return _video(path, [np.maximum(_picture(number), 60 + noise[number]) for number in range(40)], **options)


def _halves() -> np.ndarray:
    """Red on the left, blue on the right."""
    picture = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    picture[:, : WIDTH // 2], picture[:, WIDTH // 2 :] = RED, BLUE
    return picture


def _first_image(path: Path, **options) -> Image.Image:
    return Image.open(io.BytesIO(next(frames(path, **options)).image))


def _read(path: Path, **options) -> tuple[list[Frame], VideoError | None]:
    given: list[Frame] = []
    failure = None
    try:
        given.extend(frames(path, **options))
    except VideoError as error:
        failure = error
    assert failure is None or failure.frames == len(given)
    return given, failure


def _song(path: Path) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(bytes(16_000))
    return path


# Which frames


@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.mp4", "mpeg4"), ("a.mp4", "libx264"), ("a.mkv", "libx264"), ("a.webm", "libvpx"), ("a.avi", "mpeg4"),
     ("a.mov", "mpeg4"), ("a.ts", "mpeg2video"), ("a.flv", "flv1"), ("a.wmv", "wmv2")],
)  # fmt: skip
def test_frames_come_at_their_times(tmp_path: Path, name: str, codec: str) -> None:
    path = _moving(tmp_path / name, codec=codec)
    given, error = _read(path, every_s=0.5)
    assert error is None
    assert [round(frame.time_s, 2) for frame in given] == [0, 0.5, 1, 1.5, 2, 2.5]
    assert [_number(frame) for frame in given] == [0, 5, 10, 15, 20, 25]


@pytest.mark.parametrize("every_s", [0.1, 0.3, 0.7, 1.0, 2.9, 60.0])
def test_any_interval(tmp_path: Path, every_s: float) -> None:
    given, error = _read(_moving(tmp_path / "a.mp4"), every_s=every_s)
    assert error is None
    assert [_number(frame) for frame in given] == [math.ceil(k * every_s * 10 - 1e-6) for k in range(len(given))]
    assert len(given) == math.ceil(3 / every_s - 1e-6)


def test_a_short_interval_gives_every_frame_once(tmp_path: Path) -> None:
    given, _ = _read(_moving(tmp_path / "a.mp4"), every_s=0.001)
    assert [_number(frame) for frame in given] == list(range(30))


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_frames_of_uneven_length(tmp_path: Path, name: str) -> None:
    times_ms = [0, 40, 80, 1000, 1010, 5500, 5540, 5990, 6010]
    given, error = _read(_moving(tmp_path / name, 9, times_ms=times_ms))
    assert error is None
    assert [(round(frame.time_s, 2), _number(frame)) for frame in given] == [(0, 0), (1.0, 3), (5.5, 5), (6.01, 8)]


def test_time_begins_at_the_first_frame(tmp_path: Path) -> None:
    given, error = _read(_moving(tmp_path / "a.mkv", 30, times_ms=[7000 + 100 * n for n in range(30)]))
    assert error is None
    assert [round(frame.time_s, 2) for frame in given] == [0, 1, 2]


def test_at_most_so_many_frames_cover_the_whole_video(tmp_path: Path) -> None:
    path = _moving(tmp_path / "a.mp4")
    for most in (1, 2, 3, 5, 7):
        given, error = _read(path, every_s=0.1, max_frames=most)
        assert error is None
        assert len(given) == most
        assert given[-1].time_s >= 3 * (most - 1) / most - 1e-6
    assert len(_read(path, max_frames=100)[0]) == 3


def test_frames_are_read_as_they_are_wanted(tmp_path: Path) -> None:
    stream = frames(_moving(tmp_path / "a.mp4"))
    assert _number(next(stream)) == 0
    stream.close()  # type: ignore[attr-defined]


# How they look


def test_jpeg_and_png(tmp_path: Path) -> None:
    path = _video(tmp_path / "a.mp4", [_halves()])
    jpeg, png = _first_image(path), _first_image(path, image_format="png")
    assert (jpeg.format, png.format, png.size) == ("JPEG", "PNG", (WIDTH, HEIGHT))
    for image in (jpeg, png):
        assert np.abs(np.array(image.getpixel((8, 24))) - RED).max() < 30
        assert np.abs(np.array(image.getpixel((56, 24))) - BLUE).max() < 30


def _set_matrix(path: Path, matrix: tuple[int, int, int, int]) -> None:
    """Write [a b; c d] into the display matrix of an MP4's track."""
    data = bytearray(path.read_bytes())
    place = data.index(b"tkhd") + 4 + 40
    a, b, c, d = (value << 16 for value in matrix)
    data[place : place + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("matrix", "red_at"),
    [
        ((1, 0, 0, 1), "left"),
        ((0, 1, -1, 0), "top"),
        ((-1, 0, 0, -1), "right"),
        ((0, -1, 1, 0), "bottom"),
        ((-1, 0, 0, 1), "right"),
        ((1, 0, 0, -1), "left"),
        ((0, 1, 1, 0), "top"),
        ((0, -1, -1, 0), "bottom"),
    ],
)
def test_frames_are_turned_as_the_file_says(tmp_path: Path, matrix: tuple, red_at: str) -> None:
    """The matrix moves a point (x, y) to (ax + cy, bx + dy), y downwards: ISO 14496-12, 6.2.2."""
    picture = _halves()
    picture[: HEIGHT // 2] //= 2  # the upper half is darker
    path = _video(tmp_path / "a.mp4", [picture])
    _set_matrix(path, matrix)
    image = _first_image(path, image_format="png")
    a, b, c, d = matrix
    assert image.size == ((WIDTH, HEIGHT) if a else (HEIGHT, WIDTH))
    width, height = image.size
    at = {"left": (4, height // 4), "right": (width - 5, height // 4), "top": (width // 4, 4),
          "bottom": (width // 4, height - 5)}  # fmt: skip
    red, _, blue = image.getpixel(at[red_at])  # type: ignore[misc]
    assert red > 90 > blue + 40
    x, y = (a * -16 + c * 12 + width // 2, b * -16 + d * 12 + height // 2)  # left below the middle: bright red
    assert image.getpixel((x, y))[0] > 200  # type: ignore[index]


def test_a_rotation_that_pyav_wrote(tmp_path: Path) -> None:
    image = _first_image(_video(tmp_path / "a.mp4", [_halves()], turn=90), image_format="png")
    with av.open(str(tmp_path / "a.mp4")) as container:
        (frame, *_) = container.decode(video=0)
    expected = frame.to_image().rotate(frame.rotation, expand=True)
    assert image.size == (HEIGHT, WIDTH)
    assert np.array_equal(np.asarray(image), np.asarray(expected))


def test_pixels_that_are_not_square_are_stretched(tmp_path: Path) -> None:
    path = _video(tmp_path / "a.mkv", [_halves()], pixel_aspect=Fraction(3, 2))
    assert _first_image(path).size == (96, 48)


def test_texts_that_are_not_utf_8_do_not_matter(tmp_path: Path) -> None:
    path = _moving(tmp_path / "a.mkv", title="TITLE")
    path.write_bytes(path.read_bytes().replace(b"TITLE", b"\xff\xfeTL\xe9").replace(b"DURATION", b"DURATI\xff\xfe"))
    assert len(_read(path)[0]) == 3


# What cannot be read


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "NOT_A_VIDEO"),
        (b"not a video" * 100, "NOT_A_VIDEO"),
        (b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nother.ts\n#EXT-X-ENDLIST\n", "NOT_A_VIDEO"),
        (b"ffconcat version 1.0\nfile 'other.ts'\n", "NOT_A_VIDEO"),
    ],
)
def test_what_is_no_video(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, code: str) -> None:
    monkeypatch.chdir(tmp_path)
    _moving(tmp_path / "other.ts", 3, codec="mpeg2video")
    (tmp_path / "a.mp4").write_bytes(content)
    given, error = _read(tmp_path / "a.mp4")
    assert given == []
    assert error is not None
    assert error.code == code
    assert str(tmp_path) not in str(error)


def test_a_picture_is_no_video(tmp_path: Path) -> None:
    for kind in ("PNG", "JPEG", "GIF"):
        Image.fromarray(_picture(0)).save(tmp_path / "a.mp4", kind)
        error = _read(tmp_path / "a.mp4")[1]
        assert error is not None
        assert error.code == "NOT_A_VIDEO"


@pytest.mark.parametrize("path", ["gone.mp4", "http://127.0.0.1:9/a.mp4", "concat:a.mp4|b.mp4", "nul\0.mp4", "."])
def test_what_cannot_be_opened_and_addresses(path: str) -> None:
    error = _read(Path(path) if path == "." else path)[1]  # type: ignore[arg-type]
    assert error is not None
    assert error.code == "UNREADABLE"


def test_a_named_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.mp4")
    assert _read(tmp_path / "a.mp4")[1] is not None


def test_sound_alone_is_an_error(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    given, error = _read(tmp_path / "a.mp4")
    assert (given, error and error.code) == ([], "NO_VIDEO")
    assert "only audio" in str(error)
    assert _read(_song(tmp_path / "a.wav"))[1] is not None


def test_a_songs_cover_is_no_video(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.m4a"), "w", format="mp4") as container:
        sound = container.add_stream("aac", rate=8000)
        cover = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = WIDTH, HEIGHT, "yuvj420p"
        cover.disposition = Disposition.attached_pic
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux(cover.encode(av.VideoFrame.from_ndarray(_picture(0), format="rgb24")))
        container.mux(cover.encode())
        container.mux(sound.encode(frame))
        container.mux(sound.encode())
    error = _read(tmp_path / "a.m4a")[1]
    assert error is not None
    assert error.code == "NO_VIDEO"


def test_limits(tmp_path: Path) -> None:
    path = _moving(tmp_path / "a.mp4")
    for limits, code in ((Limits(max_pixels=WIDTH * HEIGHT - 1), "TOO_MANY_PIXELS"), (Limits(2.9), "TOO_LONG")):
        given, error = _read(path, limits=limits)
        assert (given, error and error.code) == ([], code)
    assert _read(path, limits=Limits(3.0, WIDTH * HEIGHT))[1] is None


def test_a_file_that_does_not_say_its_length_is_read_to_the_limit(tmp_path: Path) -> None:
    path = _moving(tmp_path / "a.mkv", live="1")
    given, error = _read(path, limits=Limits(1.5))
    assert ([_number(frame) for frame in given], error and error.code) == ([0, 10], "TOO_LONG")
    assert len(_read(path)[0]) == 3
    assert [_number(frame) for frame in _read(path, every_s=0.1, max_frames=4)[0]] == [0, 1, 2, 3]


@pytest.mark.parametrize("name", ["a.mp4", "a.avi", "a.mkv"])
@pytest.mark.parametrize("part", [0.3, 0.5, 0.75])
def test_a_video_cut_off_is_an_error_after_its_whole_frames(tmp_path: Path, name: str, part: float) -> None:
    options = {"movflags": "faststart"} if name.endswith("mp4") else {}
    path = _noisy(tmp_path / name, **options)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * part)])
    given, error = _read(path, every_s=0.2)
    assert error is not None
    assert error.code in ("DECODE_FAILED", "NOT_A_VIDEO")
    assert [_number(frame) for frame in given] == list(range(0, 2 * len(given), 2))
    if name != "a.avi":
        assert given
        assert "frames up to" in str(error)


def test_a_video_without_its_index_is_an_error(tmp_path: Path) -> None:
    path = _moving(tmp_path / "a.mp4")  # the index is at the end
    path.write_bytes(path.read_bytes()[:-200])
    error = _read(path)[1]
    assert error is not None
    assert (error.code, "index is missing" in str(error)) == ("NOT_A_VIDEO", True)


@pytest.mark.parametrize(("codec", "count"), [("libx264", 1500), ("mpeg4", 100)])
def test_after_damage_frames_are_given_from_the_next_key_frame(tmp_path: Path, codec: str, count: int) -> None:
    path = _noisy(tmp_path / "a.mkv", codec=codec)
    with av.open(str(path)) as container:
        key_frames = [number for number, frame in enumerate(container.decode(video=0)) if frame.key_frame] + [40]
    data = bytearray(path.read_bytes())
    place = len(data) * 7 // 10
    data[place : place + count] = bytes(count)
    path.write_bytes(data)
    given, error = _read(path, every_s=0.1)
    assert error is not None
    assert error.code == "DECODE_FAILED"
    numbers = [_number(frame) for frame in given]
    assert numbers == [round(frame.time_s * 10) for frame in given]
    missing = sorted(set(range(40)) - set(numbers))
    assert missing == list(range(missing[0], missing[-1] + 1))
    assert missing[-1] + 1 in key_frames


@pytest.mark.parametrize("seed", range(12))
def test_no_damage_raises_anything_but_a_video_error(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    name, codec = draw.choice([("a.mp4", "libx264"), ("a.mkv", "mpeg4"), ("a.avi", "mpeg4"), ("a.ts", "mpeg2video")])
    path = _moving(tmp_path / name, 12, codec=codec)
    data = bytearray(path.read_bytes())
    for _ in range(draw.randrange(1, 40)):
        data[draw.randrange(len(data))] = draw.randrange(256)
    path.write_bytes(data)
    _read(path, every_s=0.2, limits=Limits(60, 1_000_000))


@pytest.mark.parametrize("options", [{"every_s": 0}, {"every_s": math.nan}, {"every_s": -1}, {"max_frames": 0},
                                     {"image_format": "gif"}])  # fmt: skip
def test_arguments_that_make_no_sense_are_refused_at_once(options: dict) -> None:
    with pytest.raises(ValueError, match="must be"):
        frames("any.mp4", **options)


def test_without_pyav_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without_av(name: str, *args, **options):
        if name == "av":
            raise ImportError(name)
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", without_av)
    with pytest.raises(MissingExtra, match=r"pip install 'clipsieve\[video\]'"):
        frames("any.mp4")


def test_names_of_videos() -> None:
    assert [is_video(name) for name in ("a.MP4", Path("b/c.webm"), "a.jpg", "mp4", "a.mp4.txt")] == [1, 1, 0, 0, 0]


# One score


def test_a_score_for_the_video() -> None:
    scored = [(0.0, 0.2), (1.0, 0.9), (2.0, None), (3.0, 0.9), (4.0, 0.4)]
    assert score_video(scored) == VideoScore(0.9, 1.0, 5, 1)
    assert score_video(scored, "mean") == VideoScore(pytest.approx(0.6), 1.0, 5, 1)  # type: ignore[arg-type]


def test_no_score_is_made_up() -> None:
    assert score_video([]) == VideoScore(None, None, 0, 0)
    assert score_video([(0.0, None), (1.0, None)]) == VideoScore(None, None, 2, 2)


def test_the_first_frame_at_the_threshold_ends_the_work() -> None:
    taken = []

    def scored():
        for time_s, score in ((0.0, 0.2), (1.0, 0.5), (2.0, 0.9)):
            taken.append(time_s)
            yield time_s, score

    assert score_video(scored(), stop_at=0.5) == VideoScore(0.5, 1.0, 2, 0, stopped=True)
    assert taken == [0.0, 1.0]
    assert score_video(scored(), stop_at=0.95) == VideoScore(0.9, 2.0, 3, 0)


@pytest.mark.parametrize(
    "call",
    [
        lambda: aggregate([]),
        lambda: aggregate([math.nan, 1.0]),
        lambda: aggregate([1.0], "median"),  # type: ignore[arg-type]
        lambda: score_video([(0.0, 0.5)], "mean", stop_at=0.5),
        lambda: score_video([(0.0, math.nan)]),
    ],
)
def test_scores_that_cannot_be_aggregated(call) -> None:
    with pytest.raises(ValueError, match="found"):
        call()


@given(st.lists(st.floats(0, 1), min_size=1))
def test_aggregates_are_within_the_scores(scores: list[float]) -> None:
    assert aggregate(scores) == max(scores)
    assert min(scores) - 1e-12 <= aggregate(scores, "mean") <= max(scores) + 1e-12


# Rows


THRESHOLDS = ((Threshold(0.25, "low"), Threshold(0.75, "high")),)
NSFW = Head("nsfw", ("nsfw",), ("safe", "nsfw"), thresholds=THRESHOLDS)
KIND = Head("kind", ("a", "b"), ("a", "b"), task="multiclass", thresholds=((), ()))


def _scored(nsfw: float, kind: tuple[float, float] = (0.5, 0.5)) -> Score:
    decision = sum(nsfw >= each.value for each in THRESHOLDS[0])
    heads = {
        "nsfw": HeadScore(np.array([nsfw], np.float32), np.array([decision], np.int32), None, "nsfw-1"),
        "kind": HeadScore(np.array(kind, np.float32), np.zeros(2, np.int32), None, "kind-1"),
    }
    return Score(None, heads)


def _row(watched: Watched, how: str = "max", **options) -> dict:
    columns = VideoColumns(Columns((NSFW, KIND), key="video_path", **options), how)  # type: ignore[arg-type]
    return dict(zip(columns.names, columns.row("a.mp4", watched), strict=True))


def test_how_long_a_video_is(tmp_path: Path) -> None:
    assert duration_of(_moving(tmp_path / "a.mp4")) == pytest.approx(3, abs=0.01)
    with pytest.raises(VideoError, match="UNREADABLE"):
        duration_of(tmp_path / "gone.mp4")


@pytest.mark.parametrize(
    ("how", "score", "decision", "kind"), [("max", 0.75, "block", "b"), ("mean", 0.3, "review", "a")]
)
def test_scores_of_frames_become_one(how: str, score: float, decision: str, kind: str) -> None:
    watched = Watched(duration_s=3.0)
    for time_s, nsfw, kinds in [(0, 0.1, (0.6, 0.4)), (1, 0.75, (0.3, 0.7)), (2, 0.05, (0.6, 0.4))]:
        watched.add(time_s, _scored(nsfw, kinds))
    row = _row(watched, how)
    assert row["nsfw_score"] == pytest.approx(score)
    assert (row["nsfw_decision"], row["nsfw_class_name"], row["kind_class_name"]) == (decision, "nsfw", kind)
    assert (row["nsfw_time_s"], row["kind_a_time_s"], row["kind_b_time_s"]) == (1, 0, 1)
    assert (row["frames"], row["failed_frames"], row["stopped"], row["duration_s"]) == (3, 0, False, 3.0)
    assert (row["error"], row["model_version"]) == (None, "nsfw-1 kind-1")


def test_a_video_with_a_frame_that_failed_is_not_decided_about() -> None:
    watched = Watched()
    watched.add(0, _scored(0.9))
    watched.add(1.5, Score(None, error=InferenceFailed("INTERNAL", "it broke")))
    watched.add(2, Score(None, error=InferenceFailed("OTHER", "it broke again")))
    row = _row(watched)
    assert (row["frames"], row["failed_frames"], row["nsfw_time_s"]) == (3, 2, 0)
    assert row["nsfw_score"] == pytest.approx(0.9)
    assert (row["nsfw_decision"], row["nsfw_class_name"], row["kind_class_name"]) == (None, None, None)
    assert row["error"] == "INTERNAL: the frame at 1.500 s: it broke"


def test_a_video_without_a_frame_has_no_score() -> None:
    row = _row(Watched(error=VideoError("NO_VIDEO", "only sound")))
    assert {name for name, value in row.items() if value is not None} == {
        "video_path", "frames", "failed_frames", "stopped", "error",
    }  # fmt: skip


def test_an_operating_point_decides() -> None:
    head = Columns((NSFW,), operating_point="high", key="video_path")
    watched = Watched()
    watched.add(0, Score(None, {"nsfw": _scored(0.5).heads["nsfw"]}))  # review by both of its thresholds
    columns = VideoColumns(head)
    assert dict(zip(columns.names, columns.row("a", watched), strict=True))["nsfw_decision"] == "allow"


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="mean of a part"):
        Sampling(how="mean", stop_at=0.5)
    silent = Columns((Head("nsfw", ("nsfw",), ("safe", "nsfw")),), key="video_path")
    with pytest.raises(UnknownThreshold, match="a mean cannot be decided about"):
        VideoColumns(silent, "mean")
