"""HEIC and TIFF, where a recipe takes them: pixels, orientation, cost, damage, and a decoder that is missing."""

from __future__ import annotations

import io
import json
import sys

import numpy as np
import pytest
from pictures import encoded, noise
from PIL import Image, ImageOps

from common.manifest import Preprocessing
from common.pixels import served_module, served_transform
from recipes.schema import RecipeError, load_recipe
from recipes.serving_section import Serving
from serving.triton_wheel import ServingError, TritonWheel, check_decoders
from trials.hostile_images import heic_boxes, heic_of_items, heic_of_tiles, tiff_of_pages, tiff_of_tags, tiff_of_tiles

pillow_heif = pytest.importorskip("pillow_heif", reason="pillow-heif is not installed: make heic")
# Pillow warns of damaged tags; the served code silences that, pytest makes it errors again.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

ImageError = served_module().ImageError
PREPROCESSING = Preprocessing(
    image_size=64, resize_mode="shortest", interpolation="bicubic", mean=(0, 0, 0), std=(1, 1, 1)
)
FORMATS = ["JPEG", "PNG", "HEIC", "TIFF"]


def transform_for(**serving):
    return served_transform([PREPROCESSING], Serving.model_validate({"formats": FORMATS} | serving))


pillow_heif.register_heif_opener()


def heic(image: Image.Image, **options) -> bytes:
    return encoded(image, "HEIF", **({"quality": 90} | options))


def tiff(image: Image.Image, **options) -> bytes:
    return encoded(image, "TIFF", **options)


def of_png(image: Image.Image) -> np.ndarray:
    """Pixels of the same picture as a PNG."""
    return transform_for()(encoded(image, "PNG"))


def refusal(data: bytes, **serving) -> tuple[str, str]:
    with pytest.raises(ImageError) as caught:
        transform_for(**serving)(data)
    return caught.value.code, caught.value.message


# ---- pixels ----


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
def test_a_heic_has_the_pixels_that_its_decoder_gives(mode):
    data = heic(noise(120, 90, mode))
    reference = pillow_heif.open_heif(data).to_pillow()
    assert np.array_equal(transform_for()(data), of_png(reference))
    assert transform_for().size_of(data) == (120, 90)


def test_a_heic_of_tiles_as_phones_make_them_has_its_pixels():
    data = heic(noise(1200, 900), tile_size=512)
    assert data.count(b"hvc1") > 4
    assert np.array_equal(transform_for()(data), of_png(pillow_heif.open_heif(data).to_pillow()))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_heic_is_turned_once(orientation):
    """Its decoder turns it by irot and imir; what its EXIF says, which phones write as well, is not applied again."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = noise(120, 80)
    data = heic(stored, exif=exif.tobytes(), quality=-1, chroma=444, matrix_coefficients=0)
    assert bytes([0x01, 0x12, 0, 3, 0, 0, 0, 1, 0, orientation]) in data
    stored.getexif()[0x0112] = orientation
    upright = ImageOps.exif_transpose(stored)
    assert transform_for().size_of(data) == upright.size
    assert np.array_equal(transform_for()(data), of_png(upright))


def test_the_primary_picture_of_a_heic_is_scored():
    file = pillow_heif.from_pillow(noise(100, 80))
    file.add_from_pillow(noise(100, 80, seed=1))
    saved = io.BytesIO()
    file.save(saved, primary_index=1, quality=90)
    reference = pillow_heif.open_heif(saved.getvalue())
    assert reference.primary_index == 1
    assert np.array_equal(transform_for()(saved.getvalue()), of_png(reference[1].to_pillow()))
    assert refusal(saved.getvalue(), max_frames=1)[0] == "TOO_MANY_FRAMES"


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate", "packbits"])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "CMYK"])
def test_a_tiff_has_the_pixels_of_its_picture(mode, compression):
    image = noise(120, 90, mode)
    expected = of_png(image) if mode != "CMYK" else transform_for()(tiff(image))
    assert np.array_equal(transform_for()(tiff(image, compression=compression)), expected)
    if mode == "CMYK":  # resized as it is, and converted last, as a JPEG of it is
        assert np.abs(expected.astype(int) - of_png(image.convert("RGB"))).mean() < 2


def test_other_kinds_of_tiff_have_the_pixels_of_their_picture():
    image = noise(120, 90)
    assert np.array_equal(transform_for()(tiff(image.quantize(16))), of_png(image.quantize(16)))
    assert np.array_equal(transform_for()(tiff(image.convert("1"), compression="group4")), of_png(image.convert("1")))
    assert np.array_equal(transform_for()(tiff(image, big_tiff=True)), of_png(image))
    as_jpeg = transform_for()(tiff(image, compression="jpeg", quality=95))
    assert np.abs(as_jpeg.astype(int) - of_png(image)).mean() < 4


@pytest.mark.parametrize("order", ["<", ">"])
def test_sixteen_bits_of_a_tiff_are_scaled_in_grey_and_cut_in_colour(order):
    grey = noise(120, 90, "L")
    sixteen = Image.fromarray((np.asarray(grey).astype(np.uint16) * 257).astype(f"{order}u2"))
    assert np.array_equal(transform_for()(tiff(sixteen)), of_png(grey))
    colours = np.asarray(noise(40, 30)).astype(np.uint16) * 257
    data = tiff_of_tags(colours.astype(f"{order}u2").tobytes(), 40, 30, order=order, bits=16, samples=3)
    assert np.array_equal(transform_for()(data), of_png(noise(40, 30)))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_tiff_is_turned_once(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = noise(120, 80)
    for compression in ("raw", "tiff_lzw"):
        data = tiff(stored, exif=exif, compression=compression)
        stored.getexif()[0x0112] = orientation
        upright = ImageOps.exif_transpose(stored)
        assert transform_for().size_of(data) == upright.size
        assert np.array_equal(transform_for()(data), of_png(upright))


def test_the_first_page_of_a_tiff_is_scored():
    pages = [noise(100, 80, seed=seed) for seed in range(3)]
    data = tiff(pages[0], save_all=True, append_images=pages[1:])
    assert np.array_equal(transform_for()(data), of_png(pages[0]))
    assert refusal(data, max_frames=2) == ("TOO_MANY_FRAMES", "the TIFF has over 2 pages, the limit")


@pytest.mark.parametrize("values", [np.float32, np.int32])
def test_numbers_of_which_nobody_knows_what_is_white_are_refused(values):
    data = tiff(Image.fromarray(np.zeros((40, 30), values)))
    code, message = refusal(data)
    assert code == "DECODE_FAILED"
    assert "save it as grey or RGB of 8 or 16 bits" in message


def test_a_preview_is_not_taken_for_the_picture():
    data = tiff_of_tags(bytes(40 * 30 * 3), 40, 30, samples=3, more={0x00FE: 1})
    assert refusal(data) == (
        "DECODE_FAILED",
        "the first picture of the TIFF is a preview, as in camera raw; convert it",
    )


# ---- what a file may cost ----

SMALL = heic(noise(64, 64))


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (heic_of_items(size=(9000, 9000), parts=1), "TOO_MANY_PIXELS"),
        (heic_of_items(size=(64, 64), parts=62_500, part_size=(4000, 4000)), "TOO_MANY_PIXELS"),
        (heic_of_items(size=(64, 64), parts=1, loop=True), "TOO_MANY_PARTS"),
        (heic_of_items(size=(64, 64), parts=1, part_size=None), "DECODE_FAILED"),
        (heic_boxes(300_000), "TOO_MANY_PARTS"),
        (tiff_of_tiles(64, 64, 30_000), "TOO_MANY_PIXELS"),
        (tiff_of_pages(1001), "TOO_MANY_FRAMES"),
        (tiff_of_tags(bytes(3), 1, 1, samples=3, more=dict.fromkeys(range(40000, 45000), 0)), "TOO_MANY_PARTS"),
        (tiff_of_tags(bytes(3), 9000, 9000, samples=3), "TOO_MANY_PIXELS"),
    ],
)
def test_files_that_ask_for_more_than_their_pixels_are_refused_before_decoding(data, code, monkeypatch):
    monkeypatch.setattr(pillow_heif.HeifImageFile, "load", None)
    monkeypatch.setattr(served_module().TiffImagePlugin.TiffImageFile, "load", None)
    assert refusal(data)[0] == code


def test_a_compressed_picture_larger_than_it_says_is_refused():
    """libheif bounds what a compressed picture says of itself by the size of its item."""
    data = heic(noise(1000, 1000))
    at = data.index(b"ispe") + 8
    code, message = refusal(data[:at] + (64).to_bytes(4, "big") * 2 + data[at + 8 :])
    assert code == "DECODE_FAILED"
    assert "1000x1000 exceeds" in message


def test_metadata_is_not_handed_to_the_decoder():
    exif = Image.Exif()
    exif[0x010E] = "word " * 1000
    data = heic(noise(64, 64), exif=exif.tobytes())
    unlinked = served_module().unlinked_heif(data, transform_for().limits)
    assert len(unlinked) == len(data)
    assert pillow_heif.open_heif(data).info["exif"]
    assert not pillow_heif.open_heif(unlinked).info["exif"]


def test_tiles_within_the_limit_are_decoded():
    assert heic_of_tiles(2, 2)[:12] == SMALL[:12]
    assert transform_for()(heic_of_tiles(2, 2)).shape == (64, 64, 3)


# ---- damage ----


@pytest.mark.parametrize("cut", [16, 100, 500, -200, -5, -1])
def test_a_file_that_ends_early_is_said_to(cut):
    for data in (heic(noise(120, 90)), tiff(noise(120, 90)), tiff(noise(120, 90), compression="tiff_lzw")):
        code, message = refusal(data[:cut])
        assert code == "DECODE_FAILED"
        assert message.startswith(f"truncated: {len(data[:cut])} ")


def test_what_libheif_says_of_a_damaged_file_is_passed_on():
    at = SMALL.index(b"hvcC")
    code, message = refusal(SMALL[: at + 4] + bytes(30) + SMALL[at + 34 :])
    assert code == "DECODE_FAILED"
    assert "0x" not in message


# ---- recipes and environments ----


def test_formats_are_named_as_people_do(tmp_path):
    formats = Serving.model_validate({"formats": ["jpg", "png", "heif", "tif"]}).formats
    assert formats == ["JPEG", "PNG", "HEIC", "TIFF"]
    recipe = tmp_path / "mine.yaml"
    text = (load_recipe("demo").model_dump(mode="json", exclude_unset=True)) | {"serving": {"formats": ["heic"]}}
    recipe.write_text(json.dumps(text))
    with pytest.raises(RecipeError, match=r"serving\.formats: .*write \[JPEG, PNG, WEBP, GIF, BMP, HEIC\]"):
        load_recipe(str(recipe))


def test_without_its_package_heic_is_refused_with_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(ValueError, match=r"HEIC .* needs the package pillow-heif; run: make heic .*pip install"):
        transform_for()
    assert transform_for(formats=["PNG", "TIFF"])


def test_a_server_without_the_package_is_not_started(tmp_path):
    environment = tmp_path / "triton"
    packages = environment / "lib" / "python3.11" / "site-packages"
    packages.mkdir(parents=True)
    wheel = TritonWheel(environment, packages, "3.11")
    (tmp_path / "preprocess").mkdir()
    config = tmp_path / "preprocess" / "config.pbtxt"
    config.write_text('parameters { key: "formats" value { string_value: "JPEG,HEIC" } }')
    with pytest.raises(ServingError, match=rf"takes HEIC .*{environment} has no pillow-heif; .*make heic"):
        check_decoders(wheel, tmp_path)
    config.write_text('parameters { key: "formats" value { string_value: "JPEG,TIFF" } }')
    check_decoders(wheel, tmp_path)
