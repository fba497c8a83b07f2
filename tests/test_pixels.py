"""The served transform against open_clip's own, its deliberate differences, and its refusals."""

from __future__ import annotations

import base64
import contextlib
import io
import struct
import time
from typing import cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.transform import Compose, image_transform
from pictures import SVG, encoded, jpeg, noise, png_bomb
from PIL import Image, ImageOps

from common.manifest import Preprocessing
from common.photos import sample_photos
from common.pixels import pixel_parameters, served_module, served_transform
from recipes.serving_section import Serving
from trials.hostile_images import (
    gif_of_blocks,
    gif_of_frames,
    jpeg_of_scans,
    jpeg_of_segments,
    jpeg_segment,
    png_of_profiles,
    run_length_bmp,
    webp_canvas,
    webp_of_frames,
)

ImageError = served_module().ImageError
BatchError = served_module().BatchError
PREPROCESSING = Preprocessing(
    image_size=64, resize_mode="shortest", interpolation="bicubic", mean=(0, 0, 0), std=(1, 1, 1)
)


def transform_for(image_size=64, resize_mode="shortest", interpolation="bicubic", fill_color=0, **serving):
    fields = {"resize_mode": resize_mode, "interpolation": interpolation, "fill_color": fill_color}
    preprocessing = Preprocessing.model_validate(
        {"image_size": image_size, "mean": (0, 0, 0), "std": (1, 1, 1)} | fields
    )
    return served_transform([preprocessing], Serving(**serving))


def open_clip_pixels(image, image_size=64, resize_mode="shortest", interpolation="bicubic", fill_color=0):
    """open_clip's transform on a decoded PIL image, as uint8."""
    options = {"resize_mode": resize_mode, "interpolation": interpolation, "fill_color": fill_color}
    transform = image_transform(image_size, is_train=False, mean=(0, 0, 0), std=(1, 1, 1), **options)
    assert isinstance(transform, Compose)
    return (cast(torch.Tensor, transform(image)).permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)


def code_of(transform, data):
    with pytest.raises(ImageError) as caught:
        transform(data)
    return caught.value.code


# ---- equal to open_clip ----


@pytest.mark.parametrize("path", sample_photos(), ids=lambda path: path.name)
@pytest.mark.parametrize("mode", ["shortest", "squash", "longest"])
def test_photographs_are_bit_equal_to_open_clip(path, mode):
    expected = open_clip_pixels(Image.open(path), 224, mode)
    assert np.array_equal(transform_for(224, mode)(path.read_bytes()), expected)


@given(width=st.integers(1, 400), height=st.integers(1, 400), mode=st.sampled_from(["shortest", "squash"]))
@settings(max_examples=60, deadline=None)
def test_any_size_is_bit_equal_to_open_clip(width, height, mode):
    data = encoded(noise(width, height, seed=width * height), "PNG")
    expected = open_clip_pixels(Image.open(io.BytesIO(data)), 64, mode)
    assert np.array_equal(transform_for(64, mode)(data), expected)


def test_four_to_three_is_truncated_as_torchvision_does():
    assert transform_for(224).views[0].resized(4000, 3000) == (298, 224)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_interpolation_follows_the_encoder(interpolation):
    data = jpeg(300, 200)
    expected = open_clip_pixels(Image.open(io.BytesIO(data)), interpolation=interpolation)
    assert np.array_equal(transform_for(interpolation=interpolation)(data), expected)


@pytest.mark.parametrize("fill_color", [0, 127])
def test_padding_has_the_encoders_fill_color(fill_color):
    data = jpeg(300, 100)
    expected = open_clip_pixels(Image.open(io.BytesIO(data)), resize_mode="longest", fill_color=fill_color)
    assert np.array_equal(transform_for(resize_mode="longest", fill_color=fill_color)(data), expected)


ORDINARY = {
    "grey.jpg": encoded(noise(130, 90, "L"), "JPEG"),
    "cmyk.jpg": encoded(noise(130, 90, "CMYK"), "JPEG"),
    "progressive.jpg": jpeg(progressive=True),
    "grey.png": encoded(noise(130, 90, "L"), "PNG"),
    "one-bit.png": encoded(noise(130, 90, "L").convert("1"), "PNG"),
    "palette.png": encoded(noise(130, 90).quantize(64), "PNG"),
    "palette.gif": encoded(noise(130, 90).quantize(64), "GIF"),
    "photo.webp": encoded(noise(130, 90), "WEBP", quality=90),
    "lossless.webp": encoded(noise(130, 90), "WEBP", lossless=True),
    "photo.bmp": encoded(noise(130, 90), "BMP"),
    "1x1.png": encoded(noise(1, 1), "PNG"),
    "exact-size.png": encoded(noise(64, 64), "PNG"),
}


@pytest.mark.parametrize("name", ORDINARY)
def test_ordinary_modes_are_bit_equal_to_open_clip(name):
    data = ORDINARY[name]
    assert np.array_equal(transform_for()(data), open_clip_pixels(Image.open(io.BytesIO(data))))


# ---- deliberate differences ----


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation):
    upright = noise(120, 80)
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # orientation → the Transpose that stores it so
    stored = upright if orientation == 1 else upright.transpose(Image.Transpose(undo[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    expected = open_clip_pixels(upright)
    assert np.array_equal(transform_for()(encoded(stored, "PNG", exif=exif)), expected)


# Pillow warns of it, and warnings are errors here; a server only logs them.
@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_exif_leaves_the_picture_readable():
    data = jpeg(exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert np.array_equal(transform_for()(data), open_clip_pixels(Image.open(io.BytesIO(data))))


def composited(rgba):
    white = Image.new("RGBA", rgba.size, "white")
    return Image.alpha_composite(white, rgba).convert("RGB")


@pytest.mark.parametrize("format", ["PNG", "WEBP"])
def test_transparency_is_composited_on_white(format):
    data = encoded(noise(120, 90, "RGBA"), format, **({"lossless": True} if format == "WEBP" else {}))
    expected = open_clip_pixels(composited(Image.open(io.BytesIO(data)).convert("RGBA")))
    assert np.array_equal(transform_for()(data), expected)


def test_colour_hidden_under_full_transparency_is_white():
    hidden = noise(120, 90, "RGBA")
    hidden.putalpha(0)
    assert (transform_for()(encoded(hidden, "PNG")) == 255).all()


def test_palette_and_grey_transparency_are_composited():
    palette = noise(120, 90).quantize(16)
    data = encoded(palette, "PNG", transparency=3)
    expected = open_clip_pixels(composited(Image.open(io.BytesIO(data)).convert("RGBA")))
    assert np.array_equal(transform_for()(data), expected)
    grey = encoded(noise(120, 90, "LA"), "PNG")
    expected = open_clip_pixels(composited(Image.open(io.BytesIO(grey)).convert("RGBA")))
    assert np.array_equal(transform_for()(grey), expected)


def test_sixteen_bit_grey_is_scaled_not_clipped():
    eight_bit = noise(120, 90, "L")
    sixteen_bit = Image.fromarray(np.asarray(eight_bit).astype(np.uint16) * 257)
    data = encoded(sixteen_bit, "PNG")
    assert Image.open(io.BytesIO(data)).mode.startswith("I")
    assert np.array_equal(transform_for()(data), open_clip_pixels(eight_bit))


PALETTES = {
    "with white": [(200, 60, 30), (255, 255, 255), (30, 90, 200)],
    "with room": [(200, 60, 30), (30, 90, 200), (1, 2, 3)],
    "with a color that the frame lacks": [(200, 60, 30), (30, 90, 200), *((x, 0, 7) for x in range(254))],
    "of greys": [(x, x, x) for x in range(256)],
}


@pytest.mark.parametrize("what", PALETTES)
def test_a_first_frame_that_covers_part_of_its_screen_is_on_white(what):
    colors = PALETTES[what]
    frame = np.asarray(noise(50, 40, "L")).astype(int) // 86
    data = gif_of_part(frame, colors, screen=(100, 80), place=(30, 20))
    expected = np.full((80, 100, 3), 255, np.uint8)
    expected[20:60, 30:80] = np.array(colors, np.uint8)[frame]
    image = (
        Image.fromarray(expected[..., 0])
        if what == "of greys"
        else Image.fromarray(expected).quantize(8, dither=Image.Dither.NONE)
    )
    assert np.array_equal(np.asarray(image.convert("RGB")), expected)  # a palette too, so that both are resized alike
    assert np.array_equal(transform_for()(data), transform_for()(encoded(image, "PNG")))


def test_a_first_frame_of_all_256_colors_is_on_white():
    colors = [(x, 255 - x, 7) for x in range(256)]
    frame = np.arange(256).reshape(16, 16)
    data = gif_of_part(frame, colors, screen=(32, 32), place=(8, 8))
    expected = np.full((32, 32, 3), 255, np.uint8)
    expected[8:24, 8:24] = np.array(colors, np.uint8)[frame]
    assert np.array_equal(transform_for()(data), open_clip_pixels(Image.fromarray(expected)))


def gif_of_part(
    frame: np.ndarray, colors: list[tuple[int, int, int]], screen: tuple[int, int], place: tuple[int, int]
) -> bytes:
    """A GIF whose only frame, (H, W) indices of `colors`, lies at `place` on a larger screen, without transparency."""
    image = Image.fromarray(frame.astype(np.uint8), "P")
    image.putpalette([channel for color in colors for channel in color])
    height, width = frame.shape
    whole = encoded(image, "GIF", optimize=False)
    at = whole.index(b"," + bytes(4) + struct.pack("<HH", width, height))
    flags, palette = whole[10], whole[13 : 13 + 3 * 2 ** ((whole[10] & 7) + 1)]
    head = whole[:6] + struct.pack("<HH", *screen) + bytes([flags, 0, 0]) + palette
    return head + b"," + struct.pack("<HHHH", *place, width, height) + whole[at + 9 :]


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG"])
def test_first_frame_of_an_animation_is_scored(format):
    frames = [noise(100, 80, seed=seed) for seed in range(3)]
    data = encoded(frames[0], format, save_all=True, append_images=frames[1:], duration=50)
    first = Image.open(io.BytesIO(data))
    first.seek(0)
    assert np.array_equal(transform_for()(data), open_clip_pixels(first))


# ---- refusals ----


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "EMPTY"),
        (b"\0", "NOT_AN_IMAGE"),
        (b"hello, I am a text file", "NOT_AN_IMAGE"),
        (SVG, "NOT_AN_IMAGE"),
        (b"%!PS-Adobe-3.0 EPSF-3.0", "NOT_AN_IMAGE"),
        (b"%PDF-1.7", "NOT_AN_IMAGE"),
        (b"8BPS\0\1", "NOT_AN_IMAGE"),
        (encoded(noise(20, 20), "TIFF"), "NOT_AN_IMAGE"),
        (encoded(noise(20, 20), "PPM"), "NOT_AN_IMAGE"),
        (encoded(noise(20, 20), "ICO"), "NOT_AN_IMAGE"),
        (b"\xff\xd8\xff\xe0", "DECODE_FAILED"),
        (jpeg()[:-200], "DECODE_FAILED"),
        (jpeg()[:100], "DECODE_FAILED"),
        (ORDINARY["grey.png"][:-300], "DECODE_FAILED"),
        (ORDINARY["photo.webp"][:-50], "DECODE_FAILED"),
        (ORDINARY["palette.gif"][:200], "DECODE_FAILED"),
        (png_bomb(), "TOO_MANY_PIXELS"),
        (encoded(Image.new("L", (1, 20_000)), "PNG"), "TOO_ELONGATED"),
        (encoded(Image.new("L", (20_000, 1)), "PNG"), "TOO_ELONGATED"),
    ],
)
def test_refusals_have_stable_codes(data, code):
    assert code_of(transform_for(224), data) == code


@pytest.mark.parametrize("cut", [30, 60, 0.5, -13, -5, -1])
@pytest.mark.parametrize("name", ["grey.jpg", "progressive.jpg", "grey.png", "photo.webp", "palette.gif", "photo.bmp"])
def test_a_file_that_ends_early_is_said_to(name, cut):
    data = ORDINARY[name]
    short = data[: int(len(data) * cut) if cut == 0.5 else cut]
    if cut == -1 and name in ("palette.gif", "photo.bmp"):  # every pixel is there
        assert np.array_equal(transform_for()(short), transform_for()(data))
        return
    with pytest.raises(ImageError, match=rf"^DECODE_FAILED: truncated: {len(short)} "):
        transform_for()(short)


def test_what_is_missing_of_a_png_is_named():
    data = ORDINARY["grey.png"]
    with pytest.raises(ImageError, match=f"truncated: {len(data) - 12} bytes without the chunk IEND"):
        transform_for()(data[:-12])
    with pytest.raises(
        ImageError, match=f"{len(data) - 20} bytes, of which a chunk IDAT alone would reach {len(data) - 12}"
    ):
        transform_for()(data[:-20])


def test_a_file_that_is_whole_is_not_said_to_end_early():
    data = bytearray(ORDINARY["grey.png"])
    data[data.index(b"IDAT") + 40] ^= 1
    with pytest.raises(ImageError, match="the checksum of chunk IDAT of a PNG is wrong"):
        transform_for()(bytes(data))


def test_pixel_limit_is_the_recipes():
    data = jpeg(120, 90)
    assert transform_for(max_pixels=120 * 90)(data).shape == (64, 64, 3)
    assert code_of(transform_for(max_pixels=120 * 90 - 1), data) == "TOO_MANY_PIXELS"


def test_byte_limit_is_the_recipes():
    data = jpeg()
    assert transform_for(max_bytes=len(data))(data).shape == (64, 64, 3)
    assert code_of(transform_for(max_bytes=len(data) - 1), data) == "TOO_MANY_BYTES"
    assert code_of(transform_for(max_bytes=len(data) - 1), base64.b64encode(data)) == "TOO_MANY_BYTES"


def test_only_the_recipes_formats_are_decoded():
    png_only = transform_for(formats=["PNG"])
    assert png_only(ORDINARY["grey.png"]).shape == (64, 64, 3)
    assert code_of(png_only, jpeg()) == "NOT_AN_IMAGE"


def test_messages_hold_no_addresses_or_paths():
    describe = served_module()._describe
    text = describe(OSError("cannot identify <_io.BytesIO object at 0x7f001234> in /home/user/secret.jpg"))
    assert text == "OSError: cannot identify … in …"


@given(
    data=st.binary(max_size=300), prefix=st.sampled_from([b"", b"\xff\xd8\xff", b"GIF89a", b"BM", b"data:", b"/9j/"])
)
@settings(max_examples=300, deadline=None)
def test_random_bytes_are_refused_not_crashed_on(data, prefix):
    with contextlib.suppress(ImageError):
        assert transform_for()(prefix + data).shape == (64, 64, 3)


@given(
    name=st.sampled_from(["grey.jpg", "palette.png", "palette.gif", "photo.webp", "photo.bmp"]),
    position=st.floats(0, 1),
    value=st.integers(0, 255),
    cut=st.integers(0, 200),
)
@settings(max_examples=300, deadline=None)
def test_damaged_files_are_refused_or_decoded_as_pillow_would(name, position, value, cut):
    data = bytearray(ORDINARY[name])
    data[int(position * (len(data) - 1))] = value
    damaged = bytes(data[: len(data) - cut])
    try:
        pixels = transform_for()(damaged)
    except ImageError:
        return
    decoded = Image.open(io.BytesIO(damaged))
    decoded.load()  # the reference decoder takes it too
    assert pixels.shape == (64, 64, 3)


# ---- what a file may cost ----


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (jpeg_of_scans(64, 65), "TOO_MANY_SCANS"),
        (jpeg_of_scans(64, 65, 0xCA), "TOO_MANY_SCANS"),
        (jpeg_of_segments(300_000), "TOO_MANY_PARTS"),
        (jpeg_of_segments(400, bytes(65_000), 0xDB), "TOO_MANY_PARTS"),
        (b"\xff\xd8" + b"\xff" * 4_000_000, "DECODE_FAILED"),
        (jpeg_of_segments(20_000, b"Exif\0\0MM\0*" + bytes(100), 0xE1), "DECODE_FAILED"),
        (webp_of_frames(1001), "TOO_MANY_FRAMES"),
        (webp_canvas(16_000_000), "TOO_MANY_PIXELS"),
        (gif_of_frames(1001), "TOO_MANY_FRAMES"),
        (gif_of_blocks(300_000), "TOO_MANY_PARTS"),
        (run_length_bmp(8000, 8000, b"\1\5\0\0" * 8000), "TOO_MANY_PIXELS"),
        (run_length_bmp(100, 100, b"\1\5" * 1_000_000), "TOO_MANY_PARTS"),
        (b"/9j/ " + b"AA " * 2_000_000, "DECODE_FAILED"),
    ],
)
def test_files_that_ask_for_more_than_their_pixels_are_refused_at_once(data, code):
    started = time.process_time()
    assert code_of(transform_for(), data) == code
    assert time.process_time() - started < 2


@pytest.mark.parametrize(
    "data", [jpeg_of_scans(64, 64), webp_of_frames(1000), gif_of_frames(1000), png_of_profiles(500)]
)
def test_files_within_the_limits_are_decoded(data):
    assert transform_for()(data).shape == (64, 64, 3)


def test_limits_are_the_recipes():
    assert code_of(transform_for(max_scans=9), ORDINARY["progressive.jpg"]) == "TOO_MANY_SCANS"
    assert code_of(transform_for(max_frames=1), gif_of_frames(2)) == "TOO_MANY_FRAMES"
    assert transform_for(max_scans=10)(ORDINARY["progressive.jpg"]).shape == (64, 64, 3)
    assert transform_for(max_frames=1)(gif_of_frames(1)).shape == (64, 64, 3)


def test_frames_of_every_animated_format_are_counted():
    frames = [noise(40, 30, seed=seed) for seed in range(3)]
    for format in ("GIF", "WEBP", "PNG", "AVIF"):
        data = encoded(frames[0], format, save_all=True, append_images=frames[1:], duration=50)
        assert code_of(transform_for(max_frames=2, formats=[format]), data) == "TOO_MANY_FRAMES"
        assert transform_for(max_frames=3, formats=[format])(data).shape == (64, 64, 3)


def test_configs_stamped_before_these_limits_are_still_read():
    parameters = pixel_parameters([PREPROCESSING], Serving())
    older = {key: value for key, value in parameters.items() if key not in ("max_frames", "max_scans")}
    assert served_module().Transform.from_parameters(older) == served_module().Transform.from_parameters(parameters)


def test_a_scan_hidden_in_a_segment_among_pixels_is_no_scan():
    data = ORDINARY["progressive.jpg"]
    end = data.rindex(b"\xff\xd9")
    hidden = jpeg_segment(0xFE, b"\xff\xda" * 100)
    expected = transform_for()(data)
    assert np.array_equal(transform_for()(data[:end] + hidden + data[end:]), expected)
    assert np.array_equal(transform_for()(data + b"\xff\xda" * 100), expected)  # after the picture's end


@pytest.mark.parametrize("orientation", [1, 3, 6])
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_leaving_metadata_out_keeps_the_orientation_and_the_pixels(format, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"exif": exif, "icc_profile": bytes(3000)} | ({"comment": b"hello"} if format == "JPEG" else {})
    data = encoded(noise(120, 80), format, **options)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert np.array_equal(transform_for()(data), open_clip_pixels(upright))


def test_orientation_in_xmp_is_applied():
    xmp = b'<x:xmpmeta tiff:Orientation="3"/>'
    expected = open_clip_pixels(ImageOps.exif_transpose(Image.open(io.BytesIO(jpeg(xmp=xmp)))))
    assert np.array_equal(transform_for()(jpeg(xmp=xmp)), expected)
    assert not np.array_equal(transform_for()(jpeg()), expected)


def test_a_large_transparent_picture_is_composited_as_a_whole_one_would_be():
    rgba = noise(1500, 1500, "RGBA")
    assert np.array_equal(transform_for()(encoded(rgba, "PNG")), open_clip_pixels(composited(rgba)))


# ---- text input ----


@pytest.mark.parametrize("name", ORDINARY)
def test_base64_of_a_file_gives_the_same_pixels(name):
    data = ORDINARY[name]
    assert np.array_equal(transform_for()(base64.b64encode(data)), transform_for()(data))


def test_data_uri_and_line_breaks_are_understood():
    data = jpeg()
    uri = b"data:image/jpeg;base64," + base64.encodebytes(data)
    assert np.array_equal(transform_for()(uri), transform_for()(data))


@pytest.mark.parametrize("text", [b"data:image/jpeg,raw", b"data:image/png;base64", b"/9j/!!!!", b"iVBORw0KGgo"])
def test_broken_base64_says_so(text):
    assert code_of(transform_for(), text) == "BAD_BASE64"


def test_empty_data_uri_is_empty():
    assert code_of(transform_for(), b"data:image/jpeg;base64,") == "EMPTY"


def test_urls_are_not_fetched():
    assert code_of(transform_for(), b"http://127.0.0.1/a.jpg") == "NOT_AN_IMAGE"


# ---- batches and parameters ----


def test_a_batch_is_stacked_in_order():
    first, second = jpeg(seed=1), jpeg(200, 80, seed=2)
    batch = transform_for().batch([first, second])
    assert batch.dtype == np.uint8
    assert np.array_equal(batch, np.stack([transform_for()(first), transform_for()(second)]))


def test_a_batch_with_bad_images_names_each_of_them():
    with pytest.raises(BatchError) as caught:
        transform_for().batch([jpeg(), b"", jpeg(), SVG])
    message = str(caught.value)
    assert message.startswith("image 1: EMPTY: 0 bytes; image 3: NOT_AN_IMAGE: ")
    assert "image 0" not in message
    assert "image 2" not in message


@pytest.mark.parametrize(
    ("key", "value"),
    [("resize_mode", "stretch"), ("interpolation", "nearest"), ("formats", "JPEG,EPS"), ("image_size", "wide")],
)
def test_parameters_that_make_no_sense_are_refused(key, value):
    parameters = pixel_parameters([PREPROCESSING], Serving()) | {key: value}
    with pytest.raises(ValueError, match=value.split(",")[-1]):
        served_module().Transform.from_parameters(parameters)
