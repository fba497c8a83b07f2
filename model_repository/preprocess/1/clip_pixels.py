"""Encoded image files to the pixels a CLIP image encoder was trained on.

The one definition of clipsieve's preprocessing: Triton serves it, training and the build's parity
check load this same file. It needs Pillow and numpy alone and knows nothing of Triton; what a file may ask
of a decoder is decided before it, in `clip_files`.

For an image in an ordinary mode the pixels are bit-equal to open_clip's own transform
(`open_clip.transform.image_transform`, torchvision on PIL images), which resizes and crops in the
file's own mode and converts to RGB last. Pillow resizes palettes and 1-bit pictures to the nearest pixel, and so does
open_clip. Four differences are deliberate:

- EXIF orientation is applied: people see, and label, the upright picture;
- transparency is composited on white: colour hidden under it would otherwise be scored, or hide;
- 16-bit grey is scaled to 8 bits, where Pillow's conversion alone clips it to white;
- a GIF whose first frame covers part of its screen is white elsewhere, as in a browser; Pillow shows colour 0 there.

16-bit colours keep their upper eight bits, and CMYK is converted without its profile, as Pillow does. A HEIC is turned
by its decoder, so that nothing is left to be turned here; so is a TIFF.

With `decode: scaled` a large JPEG is not: it is decoded at 1/2, 1/4 or 1/8 of its size, which costs a fraction,
and resized from there. Everything else is decoded and cropped as ever.
"""

from __future__ import annotations

import base64
import binascii
import io
import itertools
import math
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from clip_ends import early_end
from clip_files import (
    JPEG_FRAMES,
    JPEG_SOS,
    ImageError,
    Limits,
    check_png_rows,
    jpeg_segments,
    without_ballast,
)
from clip_heif import unlinked_heif
from clip_kinds import PICTURES, kind_of
from clip_tiff import check_tiff

# Importing a plugin registers its decoder; only those named by `formats` are ever tried.
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)

# The limit on pixels below is checked on the header, before anything is decoded.
Image.MAX_IMAGE_PIXELS = None
# Damaged metadata is warned of in ever new words, each of which Python would print, and remember for ever.
warnings.filterwarnings("ignore", module=r"PIL\.")

PLUGINS = {
    "JPEG": JpegImagePlugin,
    "PNG": PngImagePlugin,
    "WEBP": WebPImagePlugin,
    "GIF": GifImagePlugin,
    "BMP": BmpImagePlugin,
    "AVIF": AvifImagePlugin,
    "TIFF": TiffImagePlugin,
}
FORMATS = (*PLUGINS, "HEIC")
"""Names of the formats that can be decoded; HEIC needs the package of `heif_decoder`."""
HEIF_PACKAGE = "pillow-heif"
SIGNATURES = {
    "JPEG": re.compile(rb"\xff\xd8\xff"),
    "PNG": re.compile(rb"\x89PNG\r\n\x1a\n"),
    "WEBP": re.compile(rb"RIFF....WEBP", re.DOTALL),
    "GIF": re.compile(rb"GIF8[79]a"),
    "BMP": re.compile(rb"BM"),
    **{name: PICTURES[name] for name in ("AVIF", "TIFF", "HEIC")},
}
# How base64 of each signature begins. None of these can begin a raw image file.
BASE64_STARTS = (b"/9j/", b"iVBORw0KGgo", b"UklGR", b"R0lGOD", b"Qk", b"AAAA", b"SUkq", b"SUkr", b"TU0A")
WHITESPACE = b" \t\n\r\v\f"
INTERPOLATIONS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
RESIZE_MODES = ("shortest", "longest", "squash")
CROPS: dict[str, Callable[[float], int]] = {"round": round, "floor": math.floor}
DECODES = ("exact", "scaled")
OVERSAMPLING = 2
"""Pixels that a scaled picture keeps at least, along each edge, for one pixel of the resized picture."""
DCT_FRAMES = {0xC0, 0xC1, 0xC2, 0xC9, 0xCA}
"""JPEGs that libjpeg scales. It decodes a lossless one (0xC3) at full size, whatever is requested; Pillow fails."""
UPRIGHT = {  # EXIF orientation → the transposition that undoes it
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
TURNED, FROM_RIGHT, FROM_BELOW = {5, 6, 7, 8}, {2, 3, 6, 7}, {3, 4, 7, 8}
"""EXIF orientations that show rows as columns, and those that show the first pixel at the right, or below."""
EXIF_ORIENTATION = 0x0112
TIFF_MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "I;16", "I;16B")
"""Modes of a TIFF in which it is clear what is white; not floating point, 32-bit or signed numbers, and L*a*b*."""
BAND_PIXELS = 2**20
"""Pixels of a transparent or 16-bit picture that are converted at once."""


Box = tuple[float, float, float, float]
"""Left, top, right and bottom of a part of an image, in pixels."""


class BatchError(ValueError):
    """A request with images that get no pixels: `image 0: CODE: message; image 3: …`."""


@dataclass(frozen=True)
class Picture:
    """A decoded picture, upright, without transparency.

    Attributes:
        image: its pixels, of which a scaled decoding leaves fewer than the file has.
        size: width and height that the file has, upright.
        box: where in `image` the picture lies. The last blocks of a scaled JPEG may reach beyond its edge.
    """

    image: Image.Image
    size: tuple[int, int]
    box: Box


@dataclass(frozen=True)
class View:
    """The part of a picture that one encoder sees: a square of `image_size` pixels.

    Attributes:
        image_size: edge of the square, in pixels.
        resize_mode: `shortest` (resize the short edge, crop the centre), `longest` (resize the long
            edge, pad) or `squash` (ignore the aspect ratio), as the encoder was trained.
        interpolation: `bicubic` or `bilinear`.
        fill_color: grey level of the padding of `longest`.
        resize_size: edge that `shortest` and `squash` resize to before the centre crop; None is image_size.
        crop: where an odd number of pixels goes to that the crop leaves out: `round`, as torchvision, or `floor`, as
            transformers.
    """

    image_size: int
    resize_mode: str
    interpolation: str
    fill_color: int = 0
    resize_size: int | None = None
    crop: str = "round"

    def __post_init__(self) -> None:
        resize_size = self.resize_size or self.image_size
        if resize_size < self.image_size or (resize_size != self.image_size and self.resize_mode == "longest"):
            raise ValueError(
                f"resize_size must be at least image_size {self.image_size}, and is not for resize_mode longest; "
                f"found {self.resize_size} with {self.resize_mode!r}"
            )
        _require(self.resize_mode, RESIZE_MODES, "resize_mode")
        _require(self.interpolation, tuple(INTERPOLATIONS), "interpolation")
        _require(self.crop, tuple(CROPS), "crop")

    def resized(self, width: int, height: int) -> tuple[int, int]:
        """Width and height after resizing, before cropping or padding."""
        size = self.resize_size or self.image_size
        if self.resize_mode == "squash":
            return size, size
        if self.resize_mode == "longest":  # open_clip's ResizeKeepRatio rounds, torchvision's Resize truncates
            ratio = max(height / size, width / size)
            return round(width / ratio), round(height / ratio)
        long = int(size * max(width, height) / min(width, height))
        return (size, long) if width <= height else (long, size)

    def of(self, picture: Picture) -> np.ndarray:
        """Resize and crop (or pad): (image_size, image_size, 3) uint8 RGB."""
        width, height = self.resized(*picture.size)
        image = picture.image.resize((width, height), INTERPOLATIONS[self.interpolation], picture.box)
        if self.resize_mode == "longest":
            padded = Image.new("RGB", (self.image_size, self.image_size), (self.fill_color,) * 3)
            padded.paste(image.convert("RGB"), ((self.image_size - width) // 2, (self.image_size - height) // 2))
            return np.asarray(padded)
        left, top = (CROPS[self.crop]((edge - self.image_size) / 2) for edge in (width, height))
        square = image.crop((left, top, left + self.image_size, top + self.image_size))
        return np.asarray(square.convert("RGB"))


@dataclass(frozen=True)
class Transform:
    """The preprocessing of one deployment: `transform(data)` → (H, W, 3) uint8 RGB.

    Attributes:
        views: one for each encoder that wants its pixels otherwise; the views of a picture lie below one another.
        max_bytes: largest encoded file.
        max_pixels: largest width × height, of the file (by its header) and after resizing.
        formats: decoders that may be used, by Pillow's names.
        max_frames: of an animation; only the first is scored. 1 refuses animations.
        max_scans: passes of a JPEG over the picture, each of which takes up to 1 ms a megapixel.
        decode: `exact`, or `scaled` to decode a JPEG at the smallest of 1/1, 1/2, 1/4 and 1/8 of its size that has
            twice the pixels of every view along each edge.
    """

    views: tuple[View, ...]
    max_bytes: int
    max_pixels: int
    formats: tuple[str, ...]
    max_frames: int = 1000
    max_scans: int = 64
    decode: str = "exact"

    def __post_init__(self) -> None:
        for name in self.formats:
            _require(name, FORMATS, "formats")
        if "HEIC" in self.formats:
            heif_decoder()
        _require(self.decode, DECODES, "decode")

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, str]) -> Transform:
        """Read the `parameters` of preprocess/config.pbtxt; KeyError or ValueError if one is amiss.

        What differs between several views is a list with commas, one entry each.
        """
        sizes = [int(size) for size in parameters["image_size"].split(",")]
        resize_sizes = parameters.get("resize_size", parameters["image_size"])
        columns = (
            sizes,
            parameters["resize_mode"].split(","),
            parameters["interpolation"].split(","),
            [int(color) for color in parameters["fill_color"].split(",")],
            [int(size) for size in resize_sizes.split(",")],
            parameters.get("crop", ",".join(["round"] * len(sizes))).split(","),
        )
        return cls(
            views=tuple(View(*of_view) for of_view in zip(*columns, strict=True)),
            max_bytes=int(parameters["max_bytes"]),
            max_pixels=int(parameters["max_pixels"]),
            formats=tuple(parameters["formats"].split(",")),
            max_frames=int(parameters.get("max_frames", cls.max_frames)),
            max_scans=int(parameters.get("max_scans", cls.max_scans)),
            decode=parameters.get("decode", cls.decode),
        )

    @property
    def limits(self) -> Limits:
        return Limits(max_pixels=self.max_pixels, max_frames=self.max_frames, max_scans=self.max_scans)

    def __call__(self, data: bytes) -> np.ndarray:
        """Decode one image, and resize and crop it for each view: (H, W, 3) uint8.

        Args:
            data: an encoded image file, its base64 text, or a data: URI.

        Raises:
            ImageError: EMPTY, TOO_MANY_BYTES, BAD_BASE64, NOT_AN_IMAGE, TOO_MANY_PIXELS, TOO_ELONGATED,
                TOO_MANY_FRAMES, TOO_MANY_SCANS, TOO_MANY_PARTS or DECODE_FAILED.
        """
        data = raw_bytes(data, self.max_bytes)
        try:
            picture = self._decoded(data)
            return stacked([view.of(picture) for view in self.views])
        except Exception as error:  # whatever a decoder raises is this image's error, never its batch's
            if isinstance(error, ImageError) and error.code != "DECODE_FAILED":
                raise
            format = self._format_of(data)
            end = None if format is None else early_end(data, format)
            if end is None and isinstance(error, ImageError):
                raise
            raise ImageError("DECODE_FAILED", end or _describe(error)) from error

    def size_of(self, data: bytes) -> tuple[int, int]:
        """(width, height) of an image that was decoded before, as it is stored, before EXIF orientation."""
        with self._open(raw_bytes(data, self.max_bytes)) as image:
            return image.size

    def batch(self, images: Iterable[bytes]) -> np.ndarray:
        """All images of one request: (B, H, W, 3) uint8, or BatchError naming each bad one."""
        pixels, errors = [], []
        for index, data in enumerate(images):
            try:
                pixels.append(self(data))
            except ImageError as error:
                errors.append(f"image {index}: {error}")
        if errors:
            raise BatchError("; ".join(errors))
        return np.stack(pixels)

    def _decoded(self, data: bytes) -> Picture:
        with self._open(data) as image:
            self._check_size(image)
            size = image.size
            extent = self._draft(image, data)
            covered = image.tile[0].extents if image.format == "GIF" else None
            image.load()
            if covered not in (None, (0, 0, *size)) and not image.has_transparency_data:
                image = _white_around(image, covered)
            if image.format == "PNG" and _ends_in_zeros(image):
                check_png_rows(data)
            return _upright(image, size, extent)

    def _draft(self, image: Image.Image, data: bytes) -> tuple[float, float]:
        """Ask for a JPEG's scaled decoding, if it may be: width and height of the picture in what `load` will give.

        It is as it is stored, and may be turned afterwards; no view tells wide from tall, so the size to keep turns
        with it. Its mode stays: colours are converted last.
        """
        if self.decode != "scaled" or image.format != "JPEG" or not _is_dct_coded(data):
            return image.size
        widths, heights = zip(*(view.resized(*image.size) for view in self.views), strict=True)
        drafted = image.draft(None, (OVERSAMPLING * max(widths), OVERSAMPLING * max(heights)))
        return drafted[1][2:] if drafted else image.size

    def _open(self, data: bytes) -> Image.Image:
        """Read the header only."""
        format = self._format_of(data)
        if format is None:
            raise ImageError("NOT_AN_IMAGE", f"{kind_of(data)}; {', '.join(self.formats)} are taken")
        if format == "TIFF":
            check_tiff(data, self.limits)
        if format == "HEIC":
            image = heif_decoder()(io.BytesIO(unlinked_heif(data, self.limits)))
        else:
            image = Image.open(io.BytesIO(without_ballast(data, format, self.limits)), formats=(format,))
        if format in ("AVIF", "HEIC"):  # the others' frames are counted already
            self.limits.check_frames(getattr(image, "n_frames", 1))
        if format == "TIFF" and image.mode not in TIFF_MODES:
            raise ImageError("DECODE_FAILED", f"a TIFF of mode {image.mode}; save it as grey or RGB of 8 or 16 bits")
        return image

    def _format_of(self, data: bytes) -> str | None:
        """The format among those that are taken, by the first bytes."""
        return next((name for name in self.formats if SIGNATURES[name].match(data)), None)

    def _check_size(self, image: Image.Image) -> None:
        width, height = image.size
        self.limits.check_pixels(width, height)
        for view in self.views:
            resized_width, resized_height = view.resized(width, height)
            if min(resized_width, resized_height) < 1 or resized_width * resized_height > self.max_pixels:
                raise ImageError(
                    "TOO_ELONGATED",
                    f"{width} × {height} would become {resized_width} × {resized_height} on its way to "
                    f"{view.image_size} × {view.image_size}, over the limit of {self.max_pixels} pixels",
                )


def heif_decoder() -> Callable[[io.BytesIO], Image.Image]:
    """The decoder of HEIC: one thread, as each process of the server is one core's, and the picture itself alone.

    Raises:
        ValueError: its package is not installed where this runs.
    """
    try:
        from pillow_heif import HeifImageFile, options  # pyright: ignore[reportMissingImports] (not in every recipe)
    except ImportError as error:
        raise ValueError(
            f"HEIC in serving.formats needs the package {HEIF_PACKAGE}; run: make heic (or, in an environment of your "
            f"own: pip install {HEIF_PACKAGE}), or take HEIC out of the recipe"
        ) from error
    options.DECODE_THREADS = 1
    options.THUMBNAILS = options.DEPTH_IMAGES = options.AUX_IMAGES = False
    return HeifImageFile


def stacked(squares: Sequence[np.ndarray]) -> np.ndarray:
    """(S, S, 3) uint8 squares below one another, as wide as the widest, black beside the others."""
    if len(squares) == 1:
        return squares[0]
    pixels = np.zeros((sum(map(len, squares)), max(map(len, squares)), 3), np.uint8)
    top = 0
    for square in squares:
        pixels[top : top + len(square), : len(square)] = square
        top += len(square)
    return pixels


def raw_bytes(data: bytes, max_bytes: int) -> bytes:
    """The image file itself, when `data` may also be its base64 text or a data: URI.

    Raises:
        ImageError: EMPTY, TOO_MANY_BYTES (more than `max_bytes` once decoded) or BAD_BASE64.
    """
    if not data:
        raise ImageError("EMPTY", "0 bytes")
    is_text = data.startswith((*BASE64_STARTS, b"data:"))
    if len(data) > (max_bytes * 3 // 2 + 1024 if is_text else max_bytes):
        raise ImageError("TOO_MANY_BYTES", f"{len(data)} bytes are over the limit of {max_bytes}")
    if not is_text:
        return data
    decoded = _from_base64(data)
    if len(decoded) > max_bytes:
        raise ImageError("TOO_MANY_BYTES", f"{len(decoded)} bytes are over the limit of {max_bytes}")
    return decoded


def _from_base64(text: bytes) -> bytes:
    if text.startswith(b"data:"):
        header, comma, text = text.partition(b",")
        if not comma or not header.lower().endswith(b";base64"):
            raise ImageError("BAD_BASE64", "a data: URI must read data:<type>;base64,<text>")
    try:
        decoded = base64.b64decode(text.translate(None, WHITESPACE), validate=True)
    except (binascii.Error, ValueError) as error:
        if b"-" in text or b"_" in text:
            raise ImageError("BAD_BASE64", "url-safe base64; write it with + and / instead of - and _") from error
        raise ImageError("BAD_BASE64", f"not base64 text: {error}") from error
    if not decoded:
        raise ImageError("EMPTY", "0 bytes after base64 decoding")
    return decoded


def _ends_in_zeros(image: Image.Image) -> bool:
    """The last rows (two: they end different passes of an interlaced file), as they are before anything is decoded."""
    width, height = image.size
    ends = [image.crop((0, row, width, row + 1)).tobytes() for row in range(max(0, height - 2), height)]
    return height < 2 or not all(map(any, ends))


def _is_dct_coded(data: bytes) -> bool:
    """Check that libjpeg can decode every frame of a JPEG at a fraction of its size."""
    headers = itertools.takewhile(lambda segment: segment[0] != JPEG_SOS, jpeg_segments(data))
    return all(marker in DCT_FRAMES for marker, _, _ in headers if marker in JPEG_FRAMES)


def _upright(image: Image.Image, size: tuple[int, int], extent: tuple[float, float]) -> Picture:
    """The image as its EXIF orientation wants it seen; `size` is the file's, `extent` the picture's in `image`."""
    orientation = _orientation(image)
    if orientation in UPRIGHT:
        image = image.transpose(UPRIGHT[orientation])
    if orientation in TURNED:
        size, extent = (size[1], size[0]), (extent[1], extent[0])
    left = image.width - extent[0] if orientation in FROM_RIGHT else 0
    top = image.height - extent[1] if orientation in FROM_BELOW else 0
    return Picture(_composited(image), size, (left, top, left + extent[0], top + extent[1]))


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(EXIF_ORIENTATION, 1)
    except Exception:  # damaged metadata does not make the picture unreadable
        return 1


def _white_around(image: Image.Image, box: tuple[int, int, int, int]) -> Image.Image:
    """A GIF's first frame, white outside of `box`; its mode stays where its palette has white, or room for it."""
    around = Image.new("1", image.size, 1)
    around.paste(0, box)
    white: Any = 255
    if image.mode == "P":
        palette = (image.getpalette("RGB") or [])[: 3 * 256]
        colors = list(zip(*[iter(palette)] * 3, strict=True))
        counts = image.crop(box).histogram()
        free = next((index for index, count in enumerate(counts) if not count), None)
        if (255, 255, 255) in colors:
            white = colors.index((255, 255, 255))
        elif free is not None:
            white = free
            palette += [0] * (3 * (free + 1) - len(palette))
            palette[3 * free : 3 * free + 3] = [255] * 3
            image.putpalette(palette)
        else:
            image, white = image.convert("RGB"), (255, 255, 255)
    image.paste(white, mask=around)
    return image


def _composited(image: Image.Image) -> Image.Image:
    """Transparency on white, 16-bit grey to 8 bits; any other image unchanged."""
    if image.mode.startswith("I"):  # I;16, I;16B, or I holding 16-bit values
        return _in_bands(image, "L", _eight_bit)
    return _in_bands(image, "RGB", _on_white) if image.has_transparency_data else image


def _in_bands(image: Image.Image, mode: str, change: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """`change` of a few rows after another, into an image of `mode`: a large picture is not copied whole."""
    width, height = image.size
    rows = max(1, BAND_PIXELS // width)
    if rows >= height:
        return change(image)
    changed = Image.new(mode, image.size)
    for top in range(0, height, rows):
        changed.paste(change(image.crop((0, top, width, min(top + rows, height)))), (0, top))
    return changed


def _eight_bit(image: Image.Image) -> Image.Image:
    grey = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
    return Image.fromarray(((grey + 128) // 257).astype(np.uint8))


def _on_white(image: Image.Image) -> Image.Image:
    rgba = image.convert("RGBA")
    white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, rgba).convert("RGB")


def _describe(error: Exception) -> str:
    """The decoder's words, without object addresses and paths."""
    if isinstance(error, UnidentifiedImageError):
        return "damaged: its header cannot be read"
    text = re.sub(r"<[^>]*>|(?<!\d)0x[0-9a-fA-F]+|(?:/[\w.-]+)+", "…", str(error)).strip()
    if isinstance(error, SyntaxError):  # how a plugin of Pillow says that it cannot read a file
        return f"damaged: {text:.200}"
    return f"{type(error).__name__}: {text:.200}" if text else type(error).__name__


def _require(value: str, allowed: tuple[str, ...], name: str) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}; found {value!r}")
