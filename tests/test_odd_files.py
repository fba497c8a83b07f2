"""Odd files and full or closed disks: a row or a line of text, never the end of a run, and what is done is kept."""

from __future__ import annotations

import csv
import io
import os
import subprocess
import sys
import tarfile
import threading
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from pictures import encoded, noise
from tiny_encoder import write_tiny_encoder

from clipsieve import Client
from common import paths
from common.manifest import Preprocessing
from common.pixels import served_module, served_transform
from recipes.errors import run_step
from recipes.schema import RECIPES, load_recipe
from training import audit, embed, evaluate, fit, ingest, relabel
from training.sample import Sample
from training.sources import is_there
from training.store import part_files, store_folder
from trials.hostile_images import png_chunk

LONG = zlib.compress(b"x" * 3_000_000)
LONG_CHUNKS = {
    "a text": png_chunk(b"zTXt", b"Comment\0\0" + LONG),
    "an international text": png_chunk(b"iTXt", b"Comment\0\1\0\0\0" + LONG),
    "XMP": png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + LONG),
    "plain XMP": png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + b"x" * 3_000_000),
    "EXIF as a text": png_chunk(b"zTXt", b"Raw profile type exif\0\0" + LONG),
    "EXIF of an unknown packing": png_chunk(b"zTXt", b"Raw profile type exif\0\7" + LONG),
    "a colour profile": png_chunk(b"iCCP", b"a\0\0" + LONG),
}
PLAIN = encoded(noise(120, 90), "PNG")


def png_with(chunk: bytes, after_pixels: bool = False) -> bytes:
    place = PLAIN.rindex(b"IEND") - 4 if after_pixels else 33
    return PLAIN[:place] + chunk + PLAIN[place:]


@pytest.fixture
def artifacts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder of the artefacts, with a tiny encoder where the demo recipe's would lie."""
    monkeypatch.setattr(paths, "ARTIFACTS", tmp_path / "artifacts")
    write_tiny_encoder(paths.encoder_folder(load_recipe("demo")))
    return tmp_path / "artifacts"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Forty pictures, each another, in the demo's two classes."""
    for number in range(40):
        path = tmp_path / "data" / ("angular", "round")[number % 2] / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(noise(24, 24, seed=number), "PNG"))
    return tmp_path / "data"


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """The demo, with nothing taken for a near-duplicate."""
    text = yaml.safe_load((RECIPES / "demo.yaml").read_text())
    text["heads"][0]["fit"] = {"near_duplicate_cosine": None, "max_epochs": 3}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(text))
    return tmp_path / "mine.yaml"


def run(main: Callable, *arguments: object) -> int:
    return run_step("training.step", lambda: main([str(each) for each in arguments]))


def command(artifacts: Path, *arguments: object, stdout: object = subprocess.PIPE, limit: int | None = None):
    """A step in a process of its own, as from a shell; `limit` is the most KiB that a file may have."""
    shell = f"ulimit -f {limit}; " if limit is not None else ""
    return subprocess.run(
        ["bash", "-c", f'{shell}exec "$@"', "bash", sys.executable, "-m", *map(str, arguments)],
        cwd=paths.ROOT,
        env=os.environ | {"CLIPSIEVE_ARTIFACTS": str(artifacts), "PYTHONIOENCODING": "utf-8:strict"},
        stdout=stdout,  # pyright: ignore[reportArgumentType, reportCallIssue] (a file or PIPE)
        stderr=subprocess.PIPE,
        text=True,
        errors="surrogateescape",
        check=False,
    )


def last_line(text: str) -> str:
    assert "Traceback" not in text
    return text.strip().splitlines()[-1]


# ---- pictures ----


@pytest.mark.parametrize("after_pixels", [False, True])
@pytest.mark.parametrize("kind", LONG_CHUNKS)
def test_a_long_chunk_changes_no_pixel(kind, after_pixels):
    data = png_with(LONG_CHUNKS[kind], after_pixels)
    assert np.array_equal(transform()(data), transform()(PLAIN))
    assert transform().size_of(data) == (120, 90)


def transform():
    size = {"image_size": 64, "resize_mode": "shortest", "interpolation": "bicubic"}
    view = Preprocessing.model_validate(size | {"mean": (0, 0, 0), "std": (1, 1, 1)})
    return served_transform([view], load_recipe("demo").serving)


def test_the_server_scores_what_training_decodes(server):
    with Client(server.grpc_url) as client:
        plain, *odd = client.score([PLAIN, *(png_with(chunk) for chunk in LONG_CHUNKS.values())])
    for score in odd:
        np.testing.assert_allclose(score.scores, plain.scores, atol=1e-6)


def test_an_orientation_within_the_limit_is_applied():
    xmp = zlib.compress(b'<x:xmpmeta tiff:Orientation="3"/>')
    upright = transform()(png_with(png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + xmp)))
    assert not np.array_equal(upright, transform()(PLAIN))


@pytest.mark.parametrize("error", [RuntimeError("odd"), MemoryError(), KeyError("size"), RecursionError()])
def test_a_decoder_that_raises_anything_is_a_row_and_the_run_goes_on(artifacts, data, recipe, monkeypatch, error):
    module, number = served_module(), iter(range(1000))

    def decode(self, data: bytes):
        if next(number) == 3:
            raise error
        return original(self, data)

    original = module.Transform.size_of
    monkeypatch.setattr(module.Transform, "size_of", decode)
    assert run(embed.main, "--recipe", recipe, "--data", data) == 0
    [row] = errors()
    assert (row["code"], row["message"].split(":")[0]) == ("DECODE_FAILED", type(error).__name__)


def errors() -> list[dict[str, str]]:
    store = store_folder(load_recipe("demo"))
    with store.with_name(f"{store.name}.errors.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_pipe_in_a_table_is_a_row_and_nothing_waits_for_it(artifacts, data, recipe):
    os.mkfifo(data / "pipe.png")
    rows = [f"{path.relative_to(data)},{path.parent.name}" for path in sorted(data.glob("*/*.png"))]
    (data / "labels.csv").write_text("\n".join(["path,label", "pipe.png,round", *rows]))
    assert run(embed.main, "--recipe", recipe, "--data", data / "labels.csv") == 0
    [row] = errors()
    assert (Path(row["path"]).name, row["code"]) == ("pipe.png", "UNREADABLE")
    assert "neither a file nor a link to one" in row["message"]


def test_a_pipe_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    caught: list[OSError] = []

    def read() -> None:
        try:
            Sample("pipe", tmp_path / "pipe", None).read()
        except OSError as error:
            caught.append(error)

    reading = threading.Thread(target=read, daemon=True)
    reading.start()
    reading.join(60)
    assert not reading.is_alive()
    assert [error.strerror for error in caught] == ["neither a file nor a link to one"]


# ---- names that are not UTF-8 ----


def test_every_step_takes_a_folder_and_files_whose_names_are_not_utf8(artifacts, data, recipe, capfd):
    pictures, place = data.rename(data.with_name("caf\udce9")), data.with_name("r\udce9sults")
    (pictures / "round" / "03.png").rename(pictures / "round" / "na\udcefve.png")
    where = ["--recipe", recipe, "--store", place / "store"]
    assert run(embed.main, *where, "--data", pictures) == 0
    assert "names: 40 are not UTF-8; tables show each such byte as \\udc80 to \\udcff" in said(capfd)
    assert run(embed.main, *where, "--data", pictures) == 0
    assert "nothing is different" in said(capfd)
    assert run(fit.main, *where) == 0
    assert run(evaluate.main, *where, "--all", "--out", place / "report") == 0
    assert run(audit.main, *where, "--out", place / "audit.csv") == 0
    (place / "fix.csv").write_text("key,label\nround/na\\udcefve.png,angular\n")
    assert run(relabel.main, *where, place / "fix.csv") == 0
    assert "1 of 1 known pictures have another label now" in said(capfd)


def said(capfd) -> str:
    """What went to stderr, with a table's lines joined."""
    return " ".join(capfd.readouterr().err.replace("│", " ").split())


def test_a_second_data_set_leaves_one_whose_folder_is_not_utf8(artifacts, data, recipe, capfd):
    place = data.rename(data.with_name("caf\udce9"))
    assert run(embed.main, "--recipe", recipe, "--data", place) == 0
    for name in ("angular", "round"):
        (data / name).mkdir(parents=True)
        (data / name / "a.png").write_bytes(encoded(noise(30, 30, seed=99), "PNG"))
    assert run(embed.main, "--recipe", recipe, "--data", data) == 0
    assert "no longer there" not in said(capfd)
    assert is_there(f"folders {data.with_name('caf')}\\udce9")
    assert not is_there(f"folders {data.with_name('caf')}\\udcea")


def test_embeddings_in_a_folder_whose_name_is_not_utf8_are_taken_in(artifacts, tmp_path, recipe):
    place = tmp_path / "caf\udce9"
    place.mkdir()
    vectors = np.random.default_rng(0).standard_normal((20, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    np.save(place / "positive.npy", vectors[:10])
    np.save(place / "negative.npy", vectors[10:])
    assert run(ingest.main, "--recipe", recipe, "--data", place, "--store", place / "store") == 0
    (source,) = (place / "store").rglob("source-*.parquet")
    with source.open("rb") as file:
        assert "caf\\udce9/negative.npy#0" in " ".join(pq.read_table(file)["path"].to_pylist())


def test_a_folder_whose_name_is_not_utf8_is_printed_as_its_bytes(artifacts, data, recipe):
    finished = command(artifacts, "training.embed", "--recipe", recipe, "--data", data, "--store", f"{data}\udce9")
    assert (finished.returncode, finished.stdout) == (0, f"{data}\udce9\n")


# ---- full and closed disks ----


def test_a_full_disk_is_a_line_and_what_was_embedded_is_kept(artifacts, data, recipe):
    where = ["--recipe", recipe, "--data", data]
    finished = command(artifacts, "training.embed", *where, limit=5)
    line = last_line(finished.stderr)
    assert finished.returncode == 1
    assert line.startswith(f"training.embed: {store_folder(load_recipe('demo'))}/part-00000-")
    assert "cannot be written (File too large); the size of a file is limited here; lift the limit (ulimit -f)" in line
    assert line.endswith(" new embeddings are kept; run the command again to go on")
    assert command(artifacts, "training.embed", *where).returncode == 0


def test_parts_written_before_the_disk_was_full_are_kept(artifacts, data, recipe, monkeypatch, capsys):
    """The disk fills after two parts of ten pictures."""
    monkeypatch.setattr(embed, "embed_samples", with_small_parts(embed.embed_samples))
    write, written = embed.Store.append, []

    def append(store, rows):
        if len(written) == 2:
            raise OSError(28, "cannot be written (No space left on device); make room", "part-00002.parquet")
        written.append(rows)
        write(store, rows)

    monkeypatch.setattr(embed.Store, "append", append)
    assert run(embed.main, "--recipe", recipe, "--data", data) == 1
    assert (
        capsys.readouterr()
        .err.rstrip()
        .endswith(
            "part-00002.parquet: cannot be written (No space left on device); make room. "
            "20 new embeddings are kept; run the command again to go on"
        )
    )
    assert len(part_files(store_folder(load_recipe("demo")))) == 2
    monkeypatch.setattr(embed.Store, "append", write)
    assert run(embed.main, "--recipe", recipe, "--data", data) == 0
    assert "20 embedded, 20 known before, 0 failed" in capsys.readouterr().err


def with_small_parts(embed_samples):
    def embed_small(samples, store, encode, transform, batch_size):
        return embed_samples(samples, store, encode, transform, batch_size=10, rows_per_part=10)

    return embed_small


def test_stdout_on_a_full_disk_is_a_line(artifacts, data, recipe):
    with Path("/dev/full").open("w") as full:
        finished = command(artifacts, "training.embed", "--recipe", recipe, "--data", data, stdout=full)
    assert finished.returncode == 1
    assert last_line(finished.stderr) == (
        "training.embed: a file cannot be written (No space left on device); make room there, or name another place "
        "(CLIPSIEVE_ARTIFACTS is the folder of all artefacts)"
    )


@pytest.fixture(params=["below a file", "where nothing can be made", "too long"])
def unwritable(request, tmp_path) -> tuple[Path, str]:
    """A folder that cannot be made, and what is said of it."""
    (tmp_path / "file").touch()
    return {
        "below a file": (tmp_path / "file" / "x", "Not a directory); a file lies where a folder should be"),
        "where nothing can be made": (Path("/proc/x"), "No such file or directory); name another place"),
        "too long": (tmp_path / ("x" * 300), "File name too long); name a shorter path"),
    }[request.param]


def test_a_place_that_cannot_be_written_ends_a_step_before_its_work(
    artifacts, data, recipe, unwritable, monkeypatch, capfd
):
    folder, reason = unwritable
    where = ["--recipe", recipe]
    assert run(embed.main, *where, "--data", data) == 0
    assert run(fit.main, *where) == 0
    capfd.readouterr()

    def work(*_, **__):
        raise AssertionError("the work was begun")

    for module, name in ((embed, "embed_samples"), (audit, "audit_rows"), (evaluate, "measure"), (fit, "fit_head")):
        monkeypatch.setattr(module, name, work)
    monkeypatch.setattr(fit, "head_folder", lambda *_: folder)
    assert run(embed.main, *where, "--data", data, "--store", folder) == 1
    assert f"{folder}: cannot be written ({reason}" in last_line(capfd.readouterr().err)
    assert run(audit.main, *where, "--out", folder / "audit.csv") == 1
    assert f"{folder}: cannot be written ({reason}" in last_line(capfd.readouterr().err)
    assert run(evaluate.main, *where, "--out", folder) == 1
    assert f"{folder}: cannot be written ({reason}" in last_line(capfd.readouterr().err)
    assert run(fit.main, *where) == 1
    assert f"{folder}: cannot be written ({reason}" in last_line(capfd.readouterr().err)


# ---- formats that the server does not decode ----

HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64)


def test_pictures_that_the_server_does_not_decode_are_named_as_what_they_are(artifacts, data, recipe, capfd):
    odd = {"a.heic": HEIC, "b.jpg": HEIC, "c.tif": encoded(noise(9, 9), "TIFF"), "d.avif": encoded(noise(9, 9), "AVIF")}
    for name, content in odd.items():
        (data / "round" / name).write_bytes(content)
    assert run(embed.main, "--recipe", recipe, "--data", data) == 0
    text = said(capfd)
    assert "2 HEIC pictures passed over: add HEIC to serving.formats of the recipe" in text
    assert "1 TIFF picture passed over: add TIFF to serving.formats of the recipe" in text
    assert "1 AVIF picture passed over: add AVIF to serving.formats of the recipe" in text
    assert "2 HEIC_NOT_SERVED" in text
    codes = {Path(row["path"]).name: row["code"] for row in errors()}
    assert codes == {
        "a.heic": "HEIC_NOT_SERVED",
        "b.jpg": "HEIC_NOT_SERVED",
        "c.tif": "TIFF_NOT_SERVED",
        "d.avif": "AVIF_NOT_SERVED",
    }


def test_training_decodes_avif_where_the_recipes_server_does(artifacts, data, recipe, capfd):
    text = yaml.safe_load(recipe.read_text())
    recipe.write_text(yaml.safe_dump(text | {"serving": {"formats": ["PNG", "AVIF"]}}))
    (data / "round" / "d.avif").write_bytes(encoded(noise(9, 9), "AVIF"))
    assert run(embed.main, "--recipe", recipe, "--data", data) == 0
    assert "41 embedded, 0 known before, 0 failed" in said(capfd)


def test_a_heic_in_a_shard_is_named(artifacts, tmp_path, recipe, capfd):
    members = {"a.png": PLAIN, "a.cls": b"0", "b.heic": HEIC, "b.cls": b"1"}
    with tarfile.open(tmp_path / "one.tar", "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    assert run(embed.main, "--recipe", recipe, "--data", tmp_path / "one.tar") == 0
    [row] = errors()
    assert (row["path"].partition("#")[2], row["code"]) == ("b.heic", "HEIC_NOT_SERVED")
