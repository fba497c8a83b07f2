"""Every kind of bad file through the real command line and server: a row each, status 3, nothing dies."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import cast

import numpy as np
import pyarrow.parquet
import pytest
import torch
from open_clip.transform import Compose, image_transform
from pictures import SVG, encoded, jpeg, noise, png_bomb
from PIL import Image

from clipsieve import Client
from common.pixels import served_module
from trials.hostile_images import gif_of_frames, jpeg_of_scans, jpeg_of_segments, png, png_chunk, run_length_bmp

GOOD = {
    "photo.jpg": jpeg(),
    "cmyk.jpg": encoded(noise(120, 90, "CMYK"), "JPEG"),
    "grey16.png": encoded(Image.fromarray(np.asarray(noise(90, 70, "L")).astype(np.uint16) * 257), "PNG"),
    "palette-alpha.png": encoded(noise(90, 70).quantize(16), "PNG", transparency=2),
    "animated.gif": encoded(noise(90, 70), "GIF", save_all=True, append_images=[noise(90, 70, seed=1)]),
    "animated.webp": encoded(noise(90, 70), "WEBP", save_all=True, append_images=[noise(90, 70, seed=1)]),
    "1x1.png": encoded(noise(1, 1), "PNG"),
}
BAD = {
    "empty.jpg": (b"", "EMPTY"),
    "truncated.jpg": (jpeg()[:-300], "DECODE_FAILED"),
    "text.jpg": (b"I am a text file", "NOT_AN_IMAGE"),
    "vector.jpg": (SVG, "NOT_AN_IMAGE"),
    "bomb.png": (png_bomb(), "TOO_MANY_PIXELS"),
    "long.png": (encoded(Image.new("L", (1, 20_000)), "PNG"), "TOO_ELONGATED"),
    "huge.jpg": (b"\xff\xd8\xff" + bytes(33 * 2**20), "TOO_MANY_BYTES"),
    "scans.jpg": (jpeg_of_scans(4000, 5000), "TOO_MANY_SCANS"),
    "comments.jpg": (jpeg_of_segments(300_000), "TOO_MANY_PARTS"),
    "frames.gif": (gif_of_frames(1001), "TOO_MANY_FRAMES"),
    "runs.bmp": (run_length_bmp(8000, 8000, b"\1\5\0\0" * 8000), "TOO_MANY_PIXELS"),
    "short.png": (png(8, 8, 0, bytes(20)), "DECODE_FAILED"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for name, data in GOOD.items():
        (folder / name).write_bytes(data)
    for name, (data, _) in BAD.items():
        (folder / name).write_bytes(data)
    return folder


def clipsieve(*arguments: str, **options) -> subprocess.CompletedProcess:
    command = [str(Path(sys.executable).parent / "clipsieve"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, **options)


@pytest.fixture(scope="module", params=["grpc", "http"])
def run(request, server, folder):
    url = server.grpc_url if request.param == "grpc" else server.http_url
    return clipsieve("score", str(folder), "--url", url, "--protocol", request.param)


@pytest.fixture(scope="module")
def rows(run) -> dict[str, dict[str, str]]:
    return {Path(row["image_path"]).name: row for row in csv.DictReader(io.StringIO(run.stdout))}


def test_status_3_and_a_summary_on_stderr(run):
    assert run.returncode == 3
    assert f"{len(GOOD)} scored, {len(BAD)} failed" in run.stderr
    assert "notice: This is the demo recipe" in run.stderr


def test_columns_are_the_contracts(run):
    assert run.stdout.splitlines()[0] == "image_path,probability,prediction,class_name,decision,error,model_version"


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_a_row_with_its_code_and_no_score(rows, name):
    row = rows[name]
    assert row["error"].split(":")[0] == BAD[name][1]
    assert (row["probability"], row["prediction"], row["class_name"], row["model_version"]) == ("", "", "", "")


@pytest.mark.parametrize("name", GOOD)
def test_a_good_file_is_scored(rows, name):
    row = rows[name]
    assert row["error"] == ""
    assert 0 <= float(row["probability"]) <= 1
    assert row["class_name"] in {"angular", "round"}
    assert row["model_version"].startswith("demo-")


def test_scores_are_those_of_open_clips_own_pixels(rows, server, demo, encoder):
    """A file in an ordinary mode scores as its pixels through open_clip's transform would."""
    (view,) = encoder.preprocessing
    transform = image_transform(view.image_size, is_train=False, mean=(0, 0, 0), std=(1, 1, 1))
    assert isinstance(transform, Compose)
    for name in ("photo.jpg", "cmyk.jpg", "1x1.png"):
        pixels = cast(torch.Tensor, transform(Image.open(io.BytesIO(GOOD[name]))))
        reference = Image.fromarray((pixels.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8))
        with Client(server.grpc_url) as client:
            expected = client.score([encoded(reference, "PNG")])[0].scores[0]
        assert float(rows[name]["probability"]) == pytest.approx(float(expected), abs=1e-5)


def test_the_server_outlives_them_all(run, server):
    assert clipsieve("health", "--url", server.grpc_url).returncode == 0


@pytest.mark.parametrize("suffix", [".csv", ".json", ".jsonl", ".parquet"])
def test_every_table_format_holds_a_row_per_file(server, folder, tmp_path, suffix):
    out = tmp_path / f"scores{suffix}"
    assert clipsieve("score", str(folder), "--url", server.grpc_url, "--out", str(out)).returncode == 3
    if suffix == ".parquet":
        rows = pyarrow.parquet.read_table(out).to_pylist()
    elif suffix == ".csv":
        rows = list(csv.DictReader(io.StringIO(out.read_text())))
    elif suffix == ".json":
        rows = json.loads(out.read_text())
    else:
        rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(rows) == len(GOOD) + len(BAD)
    assert sum(bool(row["error"]) for row in rows) == len(BAD)


def test_paths_from_stdin_and_a_threshold_of_ones_own(server, folder):
    names = "\n".join(str(folder / name) for name in GOOD)
    run = clipsieve("score", "-", "--url", server.grpc_url, "--threshold", "0", input=names)
    assert run.returncode == 0
    assert all(row["prediction"] == "1" for row in csv.DictReader(io.StringIO(run.stdout)))


# ---- found by trials.fuzz_images: files that Pillow alone takes, and a reference decoder refuses ----


def transform():
    module = served_module()
    view = module.View(64, "shortest", "bicubic")
    return module.Transform(views=(view,), max_bytes=2**25, max_pixels=10**6, formats=("PNG",))


def grey_png(rows: bytes | None = None, **pieces: bytes) -> bytes:
    return png(8, 8, 0, (b"\0" + b"\1" * 8) * 8 if rows is None else rows, **pieces)


def with_byte_changed(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 0x40]) + data[at + 1 :]


def without_palette() -> bytes:
    data = encoded(noise(20, 20).quantize(4), "PNG")
    at = data.index(b"PLTE") - 4
    return data[:at] + data[at + 12 + int.from_bytes(data[at : at + 4], "big") :]


WRONG_PNG = {
    "pixels that end early": grey_png((b"\0" + b"\1" * 8) * 7),
    "no pixels": grey_png(b""),
    "a pixel checksum that is wrong": with_byte_changed(grey_png(), grey_png().index(b"IEND") - 5),
    "no end": grey_png()[:-12],
    "a header after the header": grey_png(before=grey_png()[8:33]),
    "pixels apart": grey_png(after=png_chunk(b"tEXt", b"a\0b") + png_chunk(b"IDAT", b"more")),
    "a chunk before the header": grey_png()[:8] + png_chunk(b"tEXt", b"a\0b") + grey_png()[8:],
    "a compression that nobody knows": grey_png().replace(bytes([8, 0, 0]), bytes([8, 0, 16]), 1),
    "a critical chunk that nobody knows": grey_png(before=png_chunk(b"ABCD", b"")),
    "a chunk whose name is no name": grey_png(before=png_chunk(b"a\x10cd", b"")),
    "colours without a palette": without_palette(),
}


@pytest.mark.parametrize("what", WRONG_PNG)
def test_a_png_that_libpng_refuses_has_no_pixels(what):
    with pytest.raises(served_module().ImageError, match=r"^DECODE_FAILED: "):
        transform()(WRONG_PNG[what])


def test_a_png_whose_last_row_is_black_has_pixels():
    assert transform()(grey_png()).any()
    assert not transform()(grey_png(bytes(9 * 8))).any()
