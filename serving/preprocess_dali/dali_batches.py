"""Many requests' images to pixels at once: ordinary JPEGs by DALI, everything else by the exact transform.

DALI fails a whole batch for one bad file and knows no limits, so it sees a JPEG only when the transform's own checks
passed its header, and nothing in that is read in one way by one decoder and otherwise by another. All else (other
formats, CMYK, files cut short, and what the transform will refuse) is the transform's, and so are all JPEGs of a batch
that DALI fails on: then each has its own pixels or its own error, as ever.

What DALI is told of a picture follows from its header here: the size to resize to and where the square lies, which
`clip_pixels.View` defines. It decodes the picture as it is stored; the finished square is turned upright.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from clip_files import (  # pyright: ignore[reportMissingImports] (copied beside it)
    JPEG_EOI,
    JPEG_FRAMES,
    JPEG_SOS,
    ImageError,
    jpeg_segments,
    without_ballast,
)
from clip_pixels import (  # pyright: ignore[reportMissingImports] (copied beside it)
    CROPS,
    EXIF_ORIENTATION,
    FROM_BELOW,
    FROM_RIGHT,
    SIGNATURES,
    TURNED,
    UPRIGHT,
    BatchError,
    Transform,
    View,
    raw_bytes,
    stacked,
)
from image_counts import (  # pyright: ignore[reportMissingImports] (copied beside it)
    BYTES_EDGES,
    PIXELS_EDGES,
    CountedTransform,
)
from PIL import Image

DESCRIPTIONS = {
    "clipsieve_dali_images_total": "Images that DALI decoded",
    "clipsieve_dali_failures_total": "JPEGs in batches that DALI failed on; the exact transform took them one by one",
}
HUFFMAN_FRAMES = {0xC0, 0xC1, 0xC2}
"""Baseline, extended, progressive; GPUs decode no arithmetic coding."""
MARKER = re.compile(rb"\xff([^\x00\xff\xd0-\xd7])")
"""Marker of a JPEG among its pixels; other bytes after 0xFF are part of them."""
BETWEEN_SCANS = {0xC4, JPEG_SOS, 0xDB, 0xDD}
"""Huffman tables, scans, quantization tables, restart intervals."""
MAX_SEGMENTS = 1000


@dataclass(frozen=True)
class Jpeg:
    """A JPEG for DALI.

    Attributes:
        file: without ballast.
        received_bytes: length of what was sent.
        width: in pixels, as stored.
        height: likewise.
        orientation: EXIF's, 1 to 8; anything else is upright.
    """

    file: bytes
    received_bytes: int
    width: int
    height: int
    orientation: int

    @property
    def pixels(self) -> int:
        return self.width * self.height

    @property
    def upright_size(self) -> tuple[int, int]:
        """Width and height as it is seen."""
        return (self.height, self.width) if self.orientation in TURNED else (self.width, self.height)


@dataclass(frozen=True)
class Window:
    """The part of a stored picture that a view sees.

    Attributes:
        size: height and width that the picture is resized to.
        corner: top and left of the view's square in it; negative where the square is padded.
    """

    size: tuple[int, int]
    corner: tuple[int, int]


Decode = Callable[[Sequence[bytes], Sequence[Sequence[Window]]], list[np.ndarray]]
"""N files, and for each its windows → for each view (N, S, S, 3) uint8, as stored."""


@dataclass(frozen=True)
class Task:
    """One image of a request, and the transform that its request goes through: the counted one, except for probes."""

    data: bytes
    transform: Transform


class Batches:
    """`batches(tasks)` → the pixels, or the error, of each.

    Args:
        transform: the deployment's, uncounted.
        decode: DALI; whatever it raises, its pictures are decoded again by the transform.
        max_batch_size: how many files `decode` takes.
        threads: how many images the transform decodes at once.
        log: gets the reason when DALI fails for the first time; later failures are counted.
    """

    def __init__(
        self,
        transform: Transform,
        decode: Decode,
        *,
        max_batch_size: int,
        threads: int,
        log: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._transform = transform
        self._decode = decode
        self._max_batch_size = max_batch_size
        self._threads = ThreadPoolExecutor(threads)
        self._log = log
        self._has_failed = False

    def close(self) -> None:
        self._threads.shutdown()

    def __call__(self, tasks: Sequence[Task]) -> list[np.ndarray | Exception]:
        """(H, W, 3) uint8 or an exception for each image, in order; an `ImageError` where the file is to blame."""
        sifted = {index: sift(self._transform, task.data) for index, task in enumerate(tasks)}
        jpegs = {index: jpeg for index, jpeg in sifted.items() if jpeg is not None}
        exact = {index: self._submit(tasks[index]) for index in sifted if index not in jpegs}
        done: dict[int, np.ndarray] = {}
        for run in runs(jpegs, self._max_batch_size, self._transform.max_pixels):
            try:
                done |= zip(run, self.decoded([jpegs[index] for index in run]), strict=True)
            except Exception as error:  # it does not say whose fault it was
                self._note_failure(error, [tasks[index] for index in run])
                exact |= {index: self._submit(tasks[index]) for index in run}
        for index in done:
            _count(tasks[index].transform, jpegs[index])
        return [done[index] if index in done else exact[index].result() for index in sifted]

    def decoded(self, jpegs: Sequence[Jpeg]) -> list[np.ndarray]:
        """(H, W, 3) uint8 of each, by DALI alone; raises whatever that does."""
        windows = [[window(view, jpeg) for view in self._transform.views] for jpeg in jpegs]
        squares = self._decode([jpeg.file for jpeg in jpegs], windows)
        return [
            stacked([upright(square, jpeg.orientation) for square in of_views])
            for jpeg, of_views in zip(jpegs, zip(*squares, strict=True), strict=True)
        ]

    def _submit(self, task: Task) -> Future[np.ndarray | Exception]:
        return self._threads.submit(_exact, task)

    def _note_failure(self, error: Exception, tasks: Sequence[Task]) -> None:
        for task in tasks:
            if isinstance(task.transform, CountedTransform):
                task.transform.counters.add("clipsieve_dali_failures_total")
        if not self._has_failed:
            self._has_failed = True
            self._log(f"DALI failed on {len(tasks)} JPEGs, which were decoded without it: {error}")


def sift(transform: Transform, data: bytes) -> Jpeg | None:
    """The JPEG in `data` if DALI decodes it as the transform does; None for anything else.

    What the transform refuses is None too: asked for its pixels it says why, and counts it.
    """
    try:
        file = raw_bytes(data, transform.max_bytes)
        if "JPEG" not in transform.formats or not SIGNATURES["JPEG"].match(file):
            return None
        file = without_ballast(file, "JPEG", transform.limits)
        with Image.open(io.BytesIO(file), formats=("JPEG",)) as image:
            Transform._check_size(transform, image)
            if not (_is_ordinary(file) and _is_grey_or_ycbcr(image)):
                return None
            width, height = image.size
            return Jpeg(file, len(data), width, height, image.getexif().get(EXIF_ORIENTATION, 1))
    except Exception:
        return None


def window(view: View, jpeg: Jpeg) -> Window:
    """Place in the stored picture of the pixels that `View.of` takes from the upright one."""
    width, height = view.resized(*jpeg.upright_size)
    left, top = _margin(view, width), _margin(view, height)
    if jpeg.orientation in FROM_RIGHT:
        left = width - view.image_size - left
    if jpeg.orientation in FROM_BELOW:
        top = height - view.image_size - top
    if jpeg.orientation in TURNED:
        return Window((width, height), (left, top))
    return Window((height, width), (top, left))


def upright(square: np.ndarray, orientation: int) -> np.ndarray:
    """(S, S, 3) uint8 as stored → as seen."""
    if orientation not in UPRIGHT:
        return square
    return np.asarray(Image.fromarray(square).transpose(UPRIGHT[orientation]))


def runs(jpegs: Mapping[int, Jpeg], max_images: int, max_pixels: int) -> Iterator[list[int]]:
    """The keys, in runs of so many images and so many pixels together: DALI holds a whole run decoded."""
    run: list[int] = []
    pixels = 0
    for index, jpeg in jpegs.items():
        if run and (len(run) == max_images or pixels + jpeg.pixels > max_pixels):
            yield run
            run, pixels = [], 0
        run.append(index)
        pixels += jpeg.pixels
    if run:
        yield run


def pixels_of_request(results: Sequence[np.ndarray | Exception]) -> np.ndarray:
    """(B, H, W, 3) uint8 of one request's images, or BatchError naming each bad one, as `Transform.batch` does."""
    errors = [f"image {index}: {error}" for index, error in enumerate(results) if isinstance(error, ImageError)]
    if errors:
        raise BatchError("; ".join(errors))
    pixels = []
    for result in results:
        if isinstance(result, Exception):
            raise result
        pixels.append(result)
    return np.stack(pixels)


def _exact(task: Task) -> np.ndarray | Exception:
    try:
        return task.transform(task.data)
    except Exception as error:
        return error


def _count(transform: Transform, jpeg: Jpeg) -> None:
    """Count an image as the transform counts what goes through it."""
    if isinstance(transform, CountedTransform):
        transform.counters.add("clipsieve_images_total")
        transform.counters.add("clipsieve_dali_images_total")
        transform.counters.observe("clipsieve_image_bytes_bucket", BYTES_EDGES, jpeg.received_bytes)
        transform.counters.observe("clipsieve_image_pixels_bucket", PIXELS_EDGES, jpeg.pixels)


def _margin(view: View, edge: int) -> int:
    """Pixels of a resized edge before the square; negative where the square reaches beyond it."""
    if view.resize_mode == "longest":
        return -((view.image_size - edge) // 2)
    return CROPS[view.crop]((edge - view.image_size) / 2)


def _is_ordinary(file: bytes) -> bool:
    """One Huffman-coded frame, and scans up to an end."""
    frames = []
    for marker, _, end in jpeg_segments(file):
        if marker == JPEG_SOS:
            return len(frames) == 1 and HUFFMAN_FRAMES.issuperset(frames) and _is_whole(file, end)
        if marker in JPEG_FRAMES:
            frames.append(marker)
    return False


def _is_whole(file: bytes, position: int) -> bool:
    """Check that only tables and further scans interrupt the pixels from `position` on, and that they have an end.

    libjpeg refuses any other marker there, and a file that was cut short; DALI then tries its next decoder, which does
    not mind.
    """
    for _ in range(MAX_SEGMENTS):
        match = MARKER.search(file, position)
        if match is None or file[match.end() - 1] == JPEG_EOI:
            return match is not None
        if file[match.end() - 1] not in BETWEEN_SCANS:
            return False
        position = match.end() + max(2, int.from_bytes(file[match.end() : match.end() + 2], "big"))
    return False


def _is_grey_or_ycbcr(image: Image.Image) -> bool:
    """Check that all its marks say grey or YCbCr: where they disagree each decoder guesses for itself."""
    if image.mode == "L":
        return True
    names = bytes(layer[0] for layer in getattr(image, "layer", ()))  # of the colour channels
    return image.mode == "RGB" and image.info.get("adobe_transform", 1) == 1 and names != b"RGB"
