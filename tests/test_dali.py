"""`preprocess: dali`: the sizes that DALI gets, the same picture from it, and bad files that harm nobody."""

from __future__ import annotations

import base64
import io
import json
import sys
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc
import yaml
from artefacts import encoder_manifest, write_head
from pictures import SVG, encoded, jpeg, noise, png_bomb
from PIL import Image
from tritonclient.utils import InferenceServerException
from waiting import until

from build import dali_parity, verify
from build.dali_parity import jpeg_pictures, measure_dali
from build.dali_pipeline import CODE, DaliError, batches_module, decoder_module, write_pipelines
from build.dali_variant import THREADS, variant_problems
from build.errors import ParityError
from build.repository import install
from build.repository_check import check
from build.repository_configs import stamped
from clipsieve import Client
from common.manifest import Preprocessing
from common.model_config import read_config
from common.photos import sample_photos
from common.pixels import import_served, served_module, served_transform
from recipes.errors import run_step
from recipes.schema import Recipe, RecipeError, load_recipe, parse_recipe
from recipes.serving_section import Serving
from serving.embedded import EmbeddedServer, ServerSettings
from serving.triton_wheel import find_wheel
from trials.hostile_images import jpeg_of_scans, jpeg_segment

batches = batches_module()
clip_pixels = served_module()
image_counts, metric_counters = import_served("image_counts"), import_served("metric_counters")

MODES = ["shortest", "longest", "squash"]
SIZES = [(121, 90), (90, 121), (65, 300), (40, 31)]
"""Margins that are whole, and that are halves; larger than the view, and smaller."""


def view(image_size=64, **fields) -> Preprocessing:
    defaults = {"resize_mode": "shortest", "interpolation": "bicubic", "mean": (0, 0, 0), "std": (1, 1, 1)}
    return Preprocessing.model_validate(defaults | {"image_size": image_size} | fields)


def stored(orientation: int, size=(121, 90), **options) -> bytes:
    """A JPEG that EXIF says to turn."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(noise(*size), "JPEG", quality=95, exif=exif, **options)


def truncated() -> bytes:
    return jpeg(300, 200)[:-2000]


def damaged() -> bytes:
    """A whole JPEG by its header and its end, whose Huffman table is one that no decoder takes."""
    data = bytearray(jpeg(300, 200))
    table = data.index(b"\xff\xc4")
    data[table + 5 : table + 21] = b"\xff" * 16  # more codes than there can be, of every length
    return bytes(data)


class PillowDecoder:
    """A stand-in for DALI's decoder that uses Pillow; it fails on batches with `poison` without naming it."""

    def __init__(self, views, poison: bytes | None = None) -> None:
        self.views = views
        self.poison = poison
        self.sizes: list[int] = []

    def __call__(self, files, windows):
        self.sizes.append(len(files))
        if self.poison in files:
            raise RuntimeError("Critical error in pipeline")
        return [
            np.stack([self.square(file, seen[number], of_view) for file, seen in zip(files, windows, strict=True)])
            for number, of_view in enumerate(self.views)
        ]

    @staticmethod
    def square(file, window, of_view):
        (height, width), (top, left), edge = window.size, window.corner, of_view.image_size
        with Image.open(io.BytesIO(file)) as image:
            resized = image.convert("RGB").resize((width, height), clip_pixels.INTERPOLATIONS[of_view.interpolation])
        square = Image.new("RGB", (edge, edge), (of_view.fill_color,) * 3)
        square.paste(resized, (-left, -top))
        return np.asarray(square)


def pair(*views, serving: Serving | None = None, poison: bytes | None = None, max_batch_size: int = 8):
    """The exact transform, and the batches of a decoder that stands in for DALI."""
    transform = served_transform(views or (view(),), serving or Serving())
    decoder = PillowDecoder(transform.views, poison)
    return transform, batches.Batches(transform, decoder, max_batch_size=max_batch_size, threads=2), decoder


def tasks(transform, images):
    return [batches.Task(image, transform) for image in images]


def difference(first, second) -> np.ndarray:
    return np.abs(first.astype(int) - second.astype(int))


# ---- what DALI is given ----


@pytest.mark.parametrize(
    "data",
    [
        jpeg(),
        jpeg(progressive=True),
        encoded(noise(120, 90, "L"), "JPEG"),
        jpeg() + b"trailing bytes",
        base64.b64encode(jpeg()),
        b"data:image/jpeg;base64," + base64.b64encode(jpeg()),
        jpeg(comment=b"ballast"),
    ],
    ids=["baseline", "progressive", "grey", "trailing", "base64", "data-uri", "comment"],
)
def test_dali_is_given_ordinary_jpegs(data):
    jpeg_for_dali = batches.sift(pair()[0], data)
    assert (jpeg_for_dali.width, jpeg_for_dali.height, jpeg_for_dali.orientation) == (120, 90, 1)
    assert jpeg_for_dali.file.startswith(b"\xff\xd8\xff")
    assert b"ballast" not in jpeg_for_dali.file
    assert jpeg_for_dali.received_bytes == len(data)


NOT_FOR_DALI = {
    "png": encoded(noise(120, 90), "PNG"),
    "webp": encoded(noise(120, 90), "WEBP"),
    "gif": encoded(noise(120, 90).quantize(64), "GIF"),
    "bmp": encoded(noise(120, 90), "BMP"),
    "transparent": encoded(noise(120, 90, "RGBA"), "PNG"),
    "grey16": encoded(Image.fromarray(np.arange(10_000, dtype=np.uint16).reshape(100, 100)), "PNG"),
    "cmyk": encoded(noise(120, 90, "CMYK"), "JPEG"),
    "rgb": encoded(noise(120, 90), "JPEG", keep_rgb=True),
    "arithmetic": jpeg_of_scans(64, 1, 0xCA),
    "empty": b"",
    "svg": SVG,
    "bomb": png_bomb(),
    "base64": b"/9j/****",
    "truncated": truncated(),
    "header": jpeg()[:300],
    "scans": jpeg_of_scans(64, 65),
    "marker": jpeg().replace(b"\xff\0", b"\xff\xf0", 1),
    "frames": jpeg(40, 40).replace(b"\xff\xda", jpeg_segment(0xC0, b"\x08\0\x28\0\x28\1\1\x11\0") + b"\xff\xda", 1),
}


@pytest.mark.parametrize("name", NOT_FOR_DALI)
def test_dali_is_not_given(name):
    transform, both, decoder = pair()
    assert batches.sift(transform, NOT_FOR_DALI[name]) is None
    (result,) = both(tasks(transform, [NOT_FOR_DALI[name]]))
    expected = batches._exact(batches.Task(NOT_FOR_DALI[name], transform))
    assert type(result) is type(expected)
    assert str(result) == str(expected)
    assert decoder.sizes == []


@pytest.mark.parametrize("limits", [{"max_pixels": 10_799}, {"max_bytes": 1000}, {"formats": ["PNG"]}])
def test_limits_are_checked_before_dali_sees_a_file(limits):
    assert batches.sift(pair(serving=Serving(**limits))[0], jpeg()) is None
    assert batches.sift(pair(serving=Serving(max_pixels=10_800))[0], jpeg()) is not None


def test_a_run_holds_so_many_images_and_pixels():
    jpegs = {index: batches.Jpeg(b"", 0, 10, height, 1) for index, height in enumerate([1, 1, 1, 5, 9, 1])}
    assert list(batches.runs(jpegs, 2, 1000)) == [[0, 1], [2, 3], [4, 5]]
    assert list(batches.runs(jpegs, 9, 70)) == [[0, 1, 2], [3], [4], [5]]
    assert list(batches.runs({}, 9, 100)) == []


# ---- the same picture ----


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("orientation", [1, 2, 3, 4, 5, 6, 7, 8, 9])
def test_the_square_lies_where_the_exact_transform_cuts_it(orientation, mode, size):
    """Turned before resizing or after, a value is rounded otherwise; a row of displacement is far more."""
    transform, both, decoder = pair(view(resize_mode=mode, fill_color=99))
    data = stored(orientation, size)
    (pixels,) = both(tasks(transform, [data]))
    assert decoder.sizes == [1]
    assert difference(pixels, transform(data)).max() <= 3


def test_views_lie_below_one_another():
    transform, both, _ = pair(view(64), view(48, resize_mode="longest"), view(32, resize_mode="squash", resize_size=40))
    images = [stored(orientation, (150, 101)) for orientation in (1, 6)]
    for pixels, data in zip(both(tasks(transform, images)), images, strict=True):
        assert pixels.shape == (144, 64, 3)
        assert difference(pixels, transform(data)).max() <= 3


def test_pixels_come_back_in_order():
    transform, both, decoder = pair(max_batch_size=3)
    images = [jpeg(100 + n, 90, n) if n % 3 else encoded(noise(100 + n, 90, seed=n), "PNG") for n in range(12)]
    for pixels, data in zip(both(tasks(transform, images)), images, strict=True):
        assert np.array_equal(pixels, transform(data))
    assert decoder.sizes == [3, 3, 2]


# ---- errors ----


def test_a_batch_that_dali_fails_on_is_decoded_one_by_one():
    poison = truncated() + b"\xff\xd9"
    transform = pair()[0]
    transform, both, decoder = pair(poison=batches.sift(transform, poison).file)
    images = [jpeg(seed=1), poison, damaged(), jpeg(seed=2)]
    results = both(tasks(transform, images))
    for index in (0, 3):
        assert np.array_equal(results[index], transform(images[index]))
    assert results[2].code == "DECODE_FAILED"
    (alone,) = both(tasks(transform, [jpeg(seed=3)]))
    assert np.array_equal(alone, transform(jpeg(seed=3)))
    assert decoder.sizes == [4, 1]


def test_one_request_is_all_or_nothing_with_the_words_of_the_exact_transform():
    transform, both, _ = pair()
    images = [jpeg(), b"", encoded(noise(50, 50), "PNG"), SVG]
    with pytest.raises(clip_pixels.BatchError) as exact:
        transform.batch(images)
    with pytest.raises(clip_pixels.BatchError) as refusal:
        batches.pixels_of_request(both(tasks(transform, images)))
    assert str(refusal.value) == str(exact.value)
    good = batches.pixels_of_request(both(tasks(transform, images[::2])))
    assert np.array_equal(good, transform.batch(images[::2]))


class Registry:
    """Triton's map of parameters, as a dict."""

    def __init__(self) -> None:
        self.values: dict[str, float] = {}

    def increment(self, name, labels, amount):
        key = " ".join([name, *(value for _, value in labels)])
        self.values[key] = self.values.get(key, 0) + amount

    def set(self, name, labels, value):
        raise AssertionError(name)


def test_images_are_counted_as_ever_and_those_of_dali_once_more():
    registry = Registry()
    counters = metric_counters.Counters(registry)
    transform, both, _ = pair(poison=batches.sift(pair()[0], jpeg(seed=5)).file, max_batch_size=2)
    counted = image_counts.CountedTransform.of(transform, counters)
    images = [jpeg(seed=1), jpeg(seed=2), jpeg(seed=3), jpeg(seed=5), encoded(noise(50, 50), "PNG"), SVG]
    both(tasks(counted, images))
    both(tasks(transform, images))  # probes
    counters.flush()
    assert registry.values["clipsieve_images_total"] == 6
    assert registry.values["clipsieve_dali_images_total"] == 2
    assert registry.values["clipsieve_dali_failures_total"] == 2
    assert registry.values["clipsieve_image_failures_total NOT_AN_IMAGE"] == 1
    assert registry.values["clipsieve_image_bytes_bucket +Inf"] == 6
    assert registry.values["clipsieve_image_pixels_bucket +Inf"] == 5


# ---- recipes, configs and what is installed ----


def with_dali(**changes) -> Recipe:
    data = load_recipe("demo").model_dump(mode="json", exclude_defaults=True)
    serving = data["serving"] | {"preprocess": "dali", "preprocess_instances": 2} | changes.pop("serving", {})
    return parse_recipe(data | {"serving": serving} | changes)


def test_dali_is_off_unless_asked_for():
    assert load_recipe("demo").serving.preprocess == "python"
    with pytest.raises(RecipeError, match=r"serving.preprocess: .*'python' or 'dali'"):
        with_dali(serving={"preprocess": "nvjpeg"})


@pytest.mark.parametrize(
    "changes", [{"encoder": {"model": "ViT-B-32", "decode": "scaled"}}, {"serving": {"formats": ["PNG"]}}]
)
def test_what_dali_does_not_do_is_refused(changes):
    with pytest.raises(RecipeError, match=r"serving\.preprocess: dali is for JPEGs with decode: exact, found decode: "):
        with_dali(**changes)


def test_the_config_is_that_of_preprocess_with_one_process_for_each_gpu(tmp_path):
    encoder = encoder_manifest()
    heads = [write_head(tmp_path, encoder, ["angular", "round"])]
    python, dali = (stamped(recipe, encoder, heads)["preprocess"] for recipe in (load_recipe("demo"), with_dali()))
    (group,) = dali.instance_group
    assert (group.count, group.kind) == (1, group.KIND_AUTO)
    assert list(dali.dynamic_batching.preferred_batch_size) == []
    assert dali.parameters[THREADS].string_value == "2"
    for config in (python, dali):
        config.dynamic_batching.ClearField("preferred_batch_size")
        config.ClearField("instance_group")
        config.parameters.pop(THREADS, None)
    assert python == dali


def test_without_dali_nothing_is_installed_and_the_extra_is_named(repository, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    with pytest.raises(
        DaliError, match=r"needs the extra `dali`, the package nvidia-dali-cuda120.* preprocess: python"
    ):
        install(with_dali(), tmp_path / "models")
    assert not (tmp_path / "models").exists()


def test_a_server_without_dali_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    (tmp_path / "dali.json").write_text(json.dumps({"versions": {"dali": "2.4.0"}}))
    with pytest.raises(RuntimeError, match=r"this Python has no DALI .*; install nvidia-dali-cuda120==2\.4\.0 here"):
        decoder_module().DaliDecoder(tmp_path, gpu=None, threads=1, max_batch_size=4)


def test_the_checks_pictures_are_jpegs_of_every_orientation():
    transform = served_transform([view()], Serving())
    sifted = [batches.sift(transform, picture.data) for picture in jpeg_pictures()]
    assert {of_picture.orientation for of_picture in sifted} == set(range(1, 9))


def test_the_model_is_thin():
    assert len((CODE / "model.py").read_text().splitlines()) <= 60


# ---- the real DALI ----


@pytest.fixture(scope="module")
def dali():
    return pytest.importorskip("nvidia.dali", reason="the extra `dali` (nvidia-dali-cuda120) is not installed")


@pytest.fixture
def real(dali, tmp_path):
    """The exact transform of three views and the batches of the real decoder, on the CPU."""
    views = [view(64), view(48, resize_mode="longest", fill_color=99), view(56, resize_mode="squash")]
    views.append(view(40, interpolation="bilinear", resize_size=52))
    write_pipelines(views, 4, tmp_path)
    decoder = decoder_module().DaliDecoder(tmp_path, gpu=None, threads=2, max_batch_size=4)
    transform = served_transform(views, Serving())
    both = batches.Batches(transform, decoder, max_batch_size=4, threads=2)
    yield transform, both
    both.close()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_dali_gives_the_exact_transforms_picture(real, orientation):
    transform, both = real
    data = stored(orientation, (321, 202))
    (pixels,) = both.decoded([batches.sift(transform, data)])
    assert difference(pixels, transform(data)).mean() < 0.5
    assert difference(pixels, transform(data)).max() < 16


def test_dali_decodes_photographs_in_batches_of_any_size(real):
    transform, both = real
    images = [path.read_bytes() for path in sample_photos()]
    for pixels, data in zip(both(tasks(transform, images)), images, strict=True):
        assert difference(pixels, transform(data)).mean() < 1


def test_a_file_that_dali_fails_on_harms_no_other(real):
    transform, both = real
    images = [jpeg(seed=1), damaged(), jpeg(seed=2)]
    for _ in range(2):  # a pipeline that has failed is replaced
        results = both(tasks(transform, images))
        assert results[1].code == "DECODE_FAILED"
        assert np.array_equal(results[0], transform(images[0]))
    assert both.decoded([batches.sift(transform, images[0])])[0].shape == transform(images[0]).shape


def test_dali_decodes_nothing_that_the_exact_transform_refuses(real):
    """Damaged pixels come out alike from both."""
    transform, both = real
    rng, decoded = np.random.default_rng(0), 0
    for number in range(150):
        data = bytearray(jpeg(200, 150, progressive=number % 3 == 0, restart_marker_blocks=number % 2 * 4))
        pixels = data.index(b"\xff\xda") if number % 2 else 2
        for place in rng.integers(pixels, len(data), 4):
            data[place] = rng.integers(0, 256)
        expected, jpeg_for_dali = (
            batches._exact(batches.Task(bytes(data), transform)),
            batches.sift(transform, bytes(data)),
        )
        if jpeg_for_dali is None:
            continue
        try:
            (served,) = both.decoded([jpeg_for_dali])
        except RuntimeError:
            continue
        decoded += 1
        assert difference(served, expected).mean() < 1
    assert decoded > 100


def test_pipelines_of_another_dali_are_refused(real, tmp_path):
    manifest = json.loads((tmp_path / "dali.json").read_text())
    (tmp_path / "dali.json").write_text(json.dumps(manifest | {"versions": {"dali": "0.1"}}))
    with pytest.raises(RuntimeError, match=r"made with DALI 0\.1, here is .*install nvidia-dali-cuda120==0\.1"):
        decoder_module().DaliDecoder(tmp_path, gpu=None, threads=1, max_batch_size=4)


def test_the_build_says_what_dali_does_to_embeddings(dali, demo, encoder, capsys):
    (parity,) = measure_dali(with_dali())
    assert parity.pictures == len(jpeg_pictures())
    assert 0.995 <= parity.cosine_min <= parity.cosine_mean < 1
    assert 0 < parity.pixel_mean_abs_difference < 1
    dali_parity.main(["--recipe", "demo"])
    assert json.loads(capsys.readouterr().out)["dali"] == dali.__version__


def test_pixels_below_the_recipes_limit_are_refused(dali, demo, encoder):
    with pytest.raises(ParityError, match=r"cosine 0\.\d+ between DALI's .* is below build.minimum_cosine.dali 1.0"):
        measure_dali(with_dali(build={"minimum_cosine": {"dali": 1.0}}))


@pytest.mark.parametrize(("limit", "status"), [(0.9, 0), (1.0, 1)])
def test_verifying_a_recipe_that_serves_with_dali_measures_it(dali, repository, tmp_path, capsys, limit, status):
    recipe = with_dali(build={"minimum_cosine": {"dali": limit}})
    (tmp_path / "dali.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json", exclude_defaults=True)))
    assert run_step("build.verify", lambda: verify.main(["--recipe", str(tmp_path / "dali.yaml")])) == status
    message = "build.minimum_cosine.dali 1.0" if status else f"DALI {dali.__version__} (cpu) against exact pixels"
    assert message in capsys.readouterr().err


@pytest.fixture(scope="module")
def models(dali, repository, tmp_path_factory) -> Path:
    """The demo's model repository, with DALI."""
    target = tmp_path_factory.mktemp("dali") / "models"
    install(with_dali(), target)
    return target


def test_an_installed_variant_is_checked(models):
    assert check(models) == []
    config = read_config(models / "preprocess" / "config.pbtxt")
    version = models / "preprocess" / "1"
    pipeline, code = (version / "cpu.dali").read_bytes(), (version / "model.py").read_text()
    try:
        (version / "cpu.dali").write_bytes(pipeline + b"\0")
        (version / "model.py").write_text("")
        config.max_batch_size = 64
        problems = variant_problems(models, config)
    finally:
        (version / "cpu.dali").write_bytes(pipeline)
        (version / "model.py").write_text(code)
    assert [problem.split(": ")[1].split(" ")[0] for problem in problems] == ["not", "sha256", "max_batch_size"]


# ---- the real server ----


@pytest.fixture(scope="module")
def dali_server(models, tmp_path_factory):
    if not (find_wheel().site_packages / "nvidia" / "dali").is_dir():
        pytest.skip("nvidia.dali is not installed in the server's environment (.triton or $CLIPSIEVE_TRITON)")
    log = tmp_path_factory.mktemp("log") / "tritonserver.log"
    with EmbeddedServer(models, ServerSettings.on_free_ports(log)) as running:
        yield running


def infer(server, images: list[bytes]):
    """Send several images in one request."""
    tensor = tritonclient.grpc.InferInput("image", [len(images), 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[image] for image in images], dtype=object))
    with tritonclient.grpc.InferenceServerClient(server.grpc_url) as client:
        return client.infer("image_score", [tensor])


def metric(server, name: str) -> float:
    with urllib.request.urlopen(server.metrics_url) as response:
        lines = [line for line in response.read().decode().splitlines() if line.startswith(name)]
    return sum(float(line.split()[-1]) for line in lines)


def test_served_scores_are_those_of_exact_pixels_within_the_parity(server, dali_server):
    images = [picture.data for picture in jpeg_pictures()]
    with Client(server.grpc_url) as exact, Client(dali_server.grpc_url) as dali:
        vectors = [np.stack([result.vector for result in client.embed(images)]) for client in (exact, dali)]
        scores = [np.stack([score.scores for score in client.score(images)]) for client in (exact, dali)]
    assert (vectors[0] * vectors[1]).sum(axis=1).min() >= 0.995
    assert 0 < np.abs(scores[0] - scores[1]).max() < 0.05


def test_bad_files_are_refused_with_the_same_words_and_harm_no_neighbour(server, dali_server):
    bad = [b"", SVG, truncated(), damaged(), png_bomb(), b"/9j/****"]
    for data in bad:
        with pytest.raises(InferenceServerException) as exact:
            infer(server, [jpeg(), data])
        with pytest.raises(InferenceServerException) as refusal:
            infer(dali_server, [jpeg(), data])
        assert (refusal.value.message(), refusal.value.status()) == (exact.value.message(), exact.value.status())
    images = [bad[index % len(bad)] if index % 4 == 0 else jpeg(seed=index % 5) for index in range(64)]
    with Client(dali_server.grpc_url, concurrency=32) as client:
        results = client.score(images)
    assert [result.ok for result in results] == [index % 4 != 0 for index in range(64)]


def test_the_server_counts_what_dali_decoded(dali_server):
    before = metric(dali_server, "clipsieve_dali_images_total")
    with Client(dali_server.grpc_url) as client:
        assert all(result.ok for result in client.score([jpeg(seed=seed) for seed in range(16)]))
    until(lambda: metric(dali_server, "clipsieve_dali_images_total") >= before + 16)  # it hears once a second
