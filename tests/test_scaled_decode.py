"""`decode: scaled`: files that are decoded smaller, the same picture from them, and heads bound to one decoding."""

from __future__ import annotations

import io

import numpy as np
import pytest
from artefacts import encoder_manifest, write_head
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import encoded, jpeg, noise
from PIL import Image

from build.decode_parity import FRACTIONS, LONGEST_SHORT_EDGE, check_decode, enlarged, large_photographs
from build.encoder import build_encoder, up_to_date
from build.errors import ParityError
from common.manifest import ManifestError, Preprocessing, compare_fingerprints, preprocessing_id
from common.paths import encoder_folder
from common.photos import sample_photos
from common.pixels import pixel_parameters, served_module, served_transform
from recipes.schema import Recipe, RecipeError, parse_recipe
from recipes.serving_section import Serving
from trials.hostile_images import jpeg_of_scans, jpeg_segment

ImageError = served_module().ImageError
MODES = ["shortest", "longest", "squash"]
UNDO = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}
"""EXIF orientation → the Transpose that stores an upright picture so."""


def view(image_size=64, decode="scaled", **fields):
    defaults = {"resize_mode": "shortest", "interpolation": "bicubic", "mean": (0, 0, 0), "std": (1, 1, 1)}
    return Preprocessing.model_validate(defaults | {"image_size": image_size, "decode": decode} | fields)


def transforms(image_size=64, **fields):
    """The scaled transform and its exact sibling."""
    return [served_transform([view(image_size, decode, **fields)], Serving()) for decode in ("scaled", "exact")]


def ramps(width, height):
    """A picture in which red rises to the right and green downwards, so that half a pixel's shift changes the mean."""
    rows, columns = np.mgrid[0:height, 0:width]
    red, green = columns * 255 / (width - 1), rows * 255 / (height - 1)
    return Image.fromarray(np.stack([red, green, np.full_like(red, 128)], axis=-1).round().astype(np.uint8))


def difference(first, second):
    return first.astype(int) - second.astype(int)


def jpeg_of_lossless(width, height):
    """A flat grey picture, of lossless coding: libjpeg decodes it at no other size than its own."""
    frame = jpeg_segment(0xC3, bytes([8, *height.to_bytes(2, "big"), *width.to_bytes(2, "big"), 1]) + b"\1\x11\0")
    table = jpeg_segment(0xC4, b"\0" + b"\1" + bytes(15) + b"\0")  # one code of one bit: no change
    return b"\xff\xd8" + frame + table + jpeg_segment(0xDA, b"\1\1\0\1\0\0") + bytes(width * height // 8) + b"\xff\xd9"


# ---- what is decoded smaller ----


@pytest.mark.parametrize(
    ("short_edge", "fraction"), [(60, 1), (255, 1), (256, 2), (511, 2), (512, 4), (1023, 4), (1024, 8), (2100, 8)]
)
@pytest.mark.parametrize("upright", [True, False])
def test_the_smallest_decoding_of_twice_the_size_is_taken(short_edge, fraction, upright):
    size = (short_edge, short_edge + 70) if upright else (short_edge + 70, short_edge)
    data = encoded(Image.new("RGB", size), "JPEG")
    picture = transforms(64)[0]._decoded(data)
    assert picture.size == size
    assert picture.image.size == tuple(-(-edge // fraction) for edge in size)
    assert picture.box == (0, 0, size[0] / fraction, size[1] / fraction)


@given(
    width=st.integers(60, 900),
    height=st.integers(60, 900),
    mode=st.sampled_from(MODES),
    sizes=st.lists(st.sampled_from([16, 24, 56]), min_size=1, max_size=2, unique=True),
)
@settings(max_examples=80, deadline=None)
def test_twice_the_pixels_of_every_view_remain(width, height, mode, sizes):
    transform = served_transform([view(size, resize_mode=mode) for size in sizes], Serving())
    picture = transform._decoded(encoded(Image.new("L", (width, height)), "JPEG"))
    fraction = round(width / picture.box[2])
    needed = np.max([of_view.resized(width, height) for of_view in transform.views], axis=0) * 2
    kept = np.array([width, height])
    assert fraction == 1 or (kept >= fraction * needed).all()
    assert fraction == 8 or not (kept >= 2 * fraction * needed).all()  # smaller would have been too small


@given(width=st.integers(1, 5000), height=st.integers(1, 5000), mode=st.sampled_from(MODES))
def test_no_view_tells_wide_from_tall(width, height, mode):
    """The decoder's size is computed before the picture is turned."""
    (of_view,) = transforms(224, resize_mode=mode)[0].views
    assert of_view.resized(width, height) == of_view.resized(height, width)[::-1]


def test_the_size_before_the_crop_counts():
    data = encoded(Image.new("RGB", (300, 280)), "JPEG")
    assert transforms(64)[0]._decoded(data).image.size == (150, 140)
    assert transforms(64, resize_size=72)[0]._decoded(data).image.size == (300, 280)


@pytest.mark.parametrize(
    "data",
    [
        jpeg(255, 250),
        encoded(noise(900, 700), "PNG"),
        encoded(noise(900, 700), "WEBP"),
        encoded(noise(900, 700), "BMP"),
        encoded(noise(900, 700).quantize(64), "GIF"),
    ],
    ids=["small.jpg", "large.png", "large.webp", "large.bmp", "large.gif"],
)
def test_everything_else_is_decoded_exactly(data):
    scaled, exact = transforms()
    assert np.array_equal(scaled(data), exact(data))


def test_a_lossless_jpeg_is_decoded_exactly():
    """libjpeg gives rows of its full width whatever size is set; Pillow, expecting narrow ones, fails."""
    data = jpeg_of_lossless(1024, 800)
    scaled, exact = transforms()
    assert scaled._decoded(data).image.size == (1024, 800)
    assert np.array_equal(scaled(data), exact(data))


# ---- the same picture ----


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [(1021, 771), (771, 1021), (1025, 1031)])
def test_a_scaled_picture_stays_in_its_place(size, mode):
    data = encoded(ramps(*size), "JPEG", quality=95)
    scaled, exact = (transform(data) for transform in transforms(resize_mode=mode))
    assert np.abs(difference(scaled, exact)).max() <= 4
    assert (np.abs(difference(scaled, exact).mean(axis=(0, 1))) < 0.35).all()  # 0.85 if the box were not minded


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_scaled_picture_is_turned_as_an_exact_one(orientation):
    upright = ramps(1031, 1025)
    stored = upright if orientation == 1 else upright.transpose(Image.Transpose(UNDO[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(stored, "JPEG", quality=95, exif=exif)
    scaled, exact = (transform(data) for transform in transforms())
    assert np.abs(difference(scaled, exact)).max() <= 4
    assert (np.abs(difference(scaled, exact).mean(axis=(0, 1))) < 0.35).all()  # 0.85 if the box were not minded


@pytest.mark.parametrize("path", sample_photos(), ids=lambda path: path.name)
def test_photographs_look_the_same(path):
    data = enlarged(path, 1100).data
    scaled, exact = (transform(data) for transform in transforms())
    assert 0 < np.abs(difference(scaled, exact)).mean() < 2


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGB"])
def test_the_colour_mode_stays(mode):
    data = encoded(noise(700, 600, mode), "JPEG", quality=95)
    scaled, exact = transforms()
    assert scaled._decoded(data).image.mode == mode
    assert np.abs(difference(scaled(data), exact(data))).mean() < 3


def test_progressive_and_arithmetic_coding_are_scaled():
    progressive = jpeg(700, 600, progressive=True)
    scaled, exact = transforms()
    assert scaled._decoded(progressive).image.size == (175, 150)
    assert np.abs(difference(scaled(progressive), exact(progressive))).mean() < 3
    arithmetic = jpeg_of_scans(512, 3, 0xCA)
    assert scaled._decoded(arithmetic).image.size == (128, 128)


def test_views_are_cut_from_one_decoding():
    data = jpeg(1000, 800)
    both = served_transform([view(48), view(32, resize_mode="squash")], Serving())(data)
    large = served_transform([view(48)], Serving())(data)
    assert np.array_equal(both[:48], large)


# ---- limits ----


def test_limits_are_those_of_the_header():
    data = jpeg(1000, 800)
    allowed, refused = (served_transform([view()], Serving(max_pixels=limit)) for limit in (800_000, 799_999))
    assert allowed(data).shape == (64, 64, 3)
    with pytest.raises(ImageError, match=r"TOO_MANY_PIXELS: 1000 × 800"):
        refused(data)


@pytest.mark.parametrize("kept", [0.02, 0.5, 0.98])
def test_a_truncated_file_is_refused(kept):
    data = jpeg(1000, 800)
    with pytest.raises(ImageError, match="DECODE_FAILED"):
        transforms()[0](data[: int(kept * len(data))])


# ---- recipes, configs and manifests ----


def test_the_config_names_the_decoding_only_when_it_is_not_exact():
    assert pixel_parameters([view()], Serving())["decode"] == "scaled"
    parameters = pixel_parameters([view(decode="exact")], Serving())
    assert "decode" not in parameters
    assert served_module().Transform.from_parameters(parameters).decode == "exact"
    with pytest.raises(ValueError, match="decode must be one of exact, scaled; found 'fast'"):
        served_module().Transform.from_parameters(parameters | {"decode": "fast"})


def test_a_head_fitted_on_exact_pixels_is_not_served_with_scaled_ones(tmp_path):
    exact = encoder_manifest()
    scaled = encoder_manifest(preprocessing=[exact.preprocessing[0].model_copy(update={"decode": "scaled"})])
    assert preprocessing_id(scaled.preprocessing) == "scaled-shortest-bicubic-224"
    for trained_on, served_by in ((exact, scaled), (scaled, exact)):
        head = write_head(tmp_path / trained_on.preprocessing[0].decode, trained_on, ["safe", "nsfw"])
        compare_fingerprints(head, trained_on)
        values = f"{preprocessing_id(trained_on.preprocessing)}.*{preprocessing_id(served_by.preprocessing)}"
        with pytest.raises(ManifestError, match=values):
            compare_fingerprints(head, served_by)


def with_decode(demo: Recipe, **build) -> Recipe:
    data = demo.model_dump(mode="json", exclude_defaults=True)
    return parse_recipe(data | {"encoder": data["encoder"] | {"decode": "scaled"}, "build": build})


def test_a_scaled_encoder_has_a_folder_of_its_own(demo):
    assert encoder_folder(with_decode(demo)).name == f"{encoder_folder(demo).name}-scaled"


def test_encoders_that_share_a_picture_share_its_decoding(demo):
    data = demo.model_dump(mode="json", exclude_defaults=True)
    towers = [{"model": "ViT-B-32", "decode": "scaled"}, {"model": "ViT-B-16"}]
    with pytest.raises(RecipeError, match=r"decoded once for all encoders of concatenate.*'scaled', 'exact'"):
        parse_recipe(data | {"encoder": {"concatenate": towers}})
    towers[1]["decode"] = "scaled"
    assert parse_recipe(data | {"encoder": {"concatenate": towers}}).encoder.id.count("-scaled") == 2


# ---- the build's check ----


def test_every_photograph_of_the_check_is_decoded_smaller():
    transform = served_transform([view(112)], Serving())
    fractions = set()
    for photograph in large_photographs(112):
        picture = transform._decoded(photograph.data)
        fractions.add(round(picture.size[0] / picture.image.width))
    assert fractions == set(FRACTIONS)
    with Image.open(io.BytesIO(enlarged(sample_photos()[0], LONGEST_SHORT_EDGE).data)) as largest:
        assert min(largest.size) == LONGEST_SHORT_EDGE


def test_a_scaled_build_says_what_it_does_to_embeddings(demo, encoder, tmp_path):
    recipe = with_decode(demo)
    manifest = build_encoder(recipe, tmp_path)
    assert [of_view.decode for of_view in manifest.preprocessing] == ["scaled"]
    assert manifest.weights_sha256 == encoder.weights_sha256
    assert manifest.parity.cosine_min >= 0.99999  # torch and ONNX, on the same scaled pixels
    assert manifest.parity.scaled_pictures == len(sample_photos())
    scaled = manifest.parity.scaled()
    assert 0.995 <= scaled["scaled_cosine_min"] <= scaled["scaled_cosine_mean"] < 1
    assert up_to_date(recipe, tmp_path) == manifest
    assert up_to_date(demo, tmp_path) is None
    assert up_to_date(with_decode(demo, minimum_cosine={"scaled": 1.0}), tmp_path) is None


def test_a_decoding_below_the_recipes_limit_is_refused(demo, encoder):
    path = encoder_folder(demo) / "model.onnx"
    scaled = [encoder.preprocessing[0].model_copy(update={"decode": "scaled"})]
    assert check_decode(path, encoder.preprocessing, demo) == {}
    with pytest.raises(ParityError, match=r"mean cosine 0\.\d+ .* is below build.minimum_cosine.scaled 1.0"):
        check_decode(path, scaled, with_decode(demo, minimum_cosine={"scaled": 1.0}))
