from __future__ import annotations

import csv
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import onnx
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from stores import head_data
from tiny_encoder import EMBED_DIM, write_tiny_encoder

from common import paths
from common.manifest import ManifestError, read_encoder
from common.pixels import served_transform
from recipes.errors import run_step
from recipes.schema import RECIPES, Recipe, load_recipe
from training import embed
from training.datasets import samples_in_class_folders
from training.encoder import OnnxEncoder
from training.errors import INTERRUPTED, StepError
from training.sources import heads_in
from training.store import Store, part_files, store_folder
from training.store_view import Embeddings, read_embeddings

CLASSES = ["angular", "round"]


def _write_image(path: Path, colour: tuple[int, int, int], size: tuple[int, int] = (20, 30)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


@pytest.fixture
def recipe() -> Recipe:
    return load_recipe("demo")


@pytest.fixture
def encoder_folder(tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny encoder where the demo recipe's would lie."""
    monkeypatch.setattr(paths, "ARTIFACTS", tmp_path / "artifacts")
    folder = paths.encoder_folder(recipe)
    write_tiny_encoder(folder)
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Twelve images of twelve colours."""
    for number in range(12):
        _write_image(tmp_path / "data" / CLASSES[number % 2] / f"{number:02d}.png", (number * 20, 100, 50))
    return tmp_path / "data"


def _embed(encoder_folder: Path, data: Path, store: Path, recipe: Recipe, rows_per_part: int = 5) -> embed.Summary:
    encoder = OnnxEncoder(encoder_folder)
    transform = served_transform(encoder.manifest.preprocessing, recipe.serving)
    opened = Store(store, encoder.manifest.fingerprint())
    samples = samples_in_class_folders(data, CLASSES).samples
    return embed.embed_samples(samples, opened, encoder, transform, batch_size=4, rows_per_part=rows_per_part)


def _sums(encoder_folder: Path, store: Path) -> dict[str, np.ndarray]:
    """Content → embedding of all that the store holds."""
    opened = Store(store, read_encoder(encoder_folder).fingerprint())
    sums = [sum256 for part in part_files(store) for sum256 in pq.read_table(part)["sha256"].to_pylist()]
    return {sum256: opened.embedding_of(sum256) for sum256 in sums}


def _rows(encoder_folder: Path, store: Path) -> Embeddings:
    """The pictures of the demo's head."""
    return read_embeddings(head_data(store), read_encoder(encoder_folder).fingerprint())


def _run(*arguments: object) -> int:
    return run_step("training.embed", lambda: embed.main([str(argument) for argument in arguments]))


def test_embeddings_are_the_encoders_of_the_served_pixels(encoder_folder, data, tmp_path, recipe) -> None:
    summary = _embed(encoder_folder, data, tmp_path / "store", recipe)
    assert (summary.embedded, summary.known, summary.failures) == (12, 0, [])
    embeddings = _sums(encoder_folder, tmp_path / "store")
    assert len(embeddings) == len(summary.mentions) == 12
    encoder = OnnxEncoder(encoder_folder)
    transform = served_transform(encoder.manifest.preprocessing, recipe.serving)
    for mention in summary.mentions:
        expected = encoder(transform(Path(mention.path).read_bytes())[None])[0]
        assert expected.shape == (EMBED_DIM,)
        np.testing.assert_allclose(embeddings[mention.sha256], expected, rtol=1e-5)
        assert mention.label == Path(mention.path).parent.name
        assert mention.key == Path(mention.path).relative_to(data.resolve()).as_posix()


def test_embedding_again_adds_nothing(encoder_folder, data, tmp_path, recipe) -> None:
    _embed(encoder_folder, data, tmp_path / "store", recipe)
    before = part_files(tmp_path / "store")
    summary = _embed(encoder_folder, data, tmp_path / "store", recipe)
    assert (summary.embedded, summary.known) == (0, 12)
    assert part_files(tmp_path / "store") == before


def test_only_new_content_is_embedded(encoder_folder, data, tmp_path, recipe) -> None:
    _embed(encoder_folder, data, tmp_path / "store", recipe)
    _write_image(data / "round" / "new.png", (1, 2, 3))
    (data / "round" / "again.png").write_bytes((data / "round" / "01.png").read_bytes())
    summary = _embed(encoder_folder, data, tmp_path / "store", recipe)
    assert (summary.embedded, summary.known) == (1, 13)
    assert len(_sums(encoder_folder, tmp_path / "store")) == 13
    sum_of = {mention.key: mention.sha256 for mention in summary.mentions}
    assert sum_of["round/01.png"] == sum_of["round/again.png"]


def test_equal_files_in_one_batch_are_embedded_once(encoder_folder, data, tmp_path, recipe) -> None:
    for name in ("02.png", "04.png"):
        (data / "angular" / name).write_bytes((data / "angular" / "00.png").read_bytes())
    summary = _embed(encoder_folder, data, tmp_path / "store", recipe)
    assert (summary.embedded, summary.known, len(summary.mentions)) == (10, 2, 12)
    assert len(_sums(encoder_folder, tmp_path / "store")) == 10


def test_a_relabelled_file_is_not_embedded_again(encoder_folder, data) -> None:
    assert _run("--recipe", "demo", "--data", data) == 0
    store = store_folder(load_recipe("demo"))
    before = part_files(store)
    (data / "angular" / "00.png").rename(data / "round" / "00.png")
    assert _run("--recipe", "demo", "--data", data) == 0
    rows = _rows(encoder_folder, store)
    assert part_files(store) == before
    assert len(rows) == 12
    assert {label for key, label in zip(rows.key, rows.label, strict=True) if key.endswith("00.png")} == {"round"}


def test_one_content_with_two_labels_is_left_out_and_both_files_are_named(encoder_folder, data, capsys) -> None:
    (data / "round" / "copy.png").write_bytes((data / "angular" / "00.png").read_bytes())
    assert _run("--recipe", "demo", "--data", data) == 0
    rows = _rows(encoder_folder, store_folder(load_recipe("demo")))
    assert (len(rows), rows.label.count(None)) == (12, 1)
    words = " ".join(capsys.readouterr().err.split())
    assert "1 pictures with several labels; the first:" in words


def test_files_that_are_gone_and_a_folder_that_moved_are_followed(encoder_folder, data, capsys) -> None:
    store = store_folder(load_recipe("demo"))
    assert _run("--recipe", "demo", "--data", data) == 0
    for number in (0, 2, 3):
        (data / CLASSES[number % 2] / f"{number:02d}.png").unlink()
    moved = data.rename(data.parent / "photos")
    assert _run("--recipe", "demo", "--data", moved) == 0
    rows = _rows(encoder_folder, store)
    assert len(rows) == 9
    assert all(path.startswith(str(moved.resolve())) for path in rows.path)
    words = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert "0 embedded, 9 known before, 0 failed" in words
    assert "3 gone, 9 in another place" in words
    assert "is no longer there: its 12 files count no more" in words


def test_recipes_with_one_encoder_share_its_embeddings_and_no_label(encoder_folder, data, tmp_path, capsys) -> None:
    assert _run("--recipe", "demo", "--data", data) == 0
    settings = yaml.safe_load((RECIPES / "demo.yaml").read_text()) | {"name": "other"}
    settings["heads"][0]["name"] = "shapes"
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(settings))
    capsys.readouterr()
    assert _run("--recipe", tmp_path / "other.yaml", "--data", data) == 0
    assert "0 embedded, 12 known before, 0 failed" in capsys.readouterr().err
    assert [str(head) for head in heads_in(store_folder(load_recipe("demo")))] == [
        "head demo of recipe demo",
        "head shapes of recipe other",
    ]


def test_a_check_reads_the_data_set_and_needs_no_encoder(data, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(paths, "ARTIFACTS", tmp_path / "artifacts")
    assert _run("--recipe", "demo", "--data", data, "--check") == 0
    assert "12 samples, 0 failures in folders " in capsys.readouterr().err
    assert _run("--recipe", "demo", "--data", tmp_path / "typo", "--check") == 1
    assert "typo: no such folder" in capsys.readouterr().err
    assert not (tmp_path / "artifacts").exists()


def test_a_png_with_a_long_text_is_embedded(encoder_folder, data) -> None:
    notes = PngInfo()
    notes.add_text("notes", "x" * 3_000_000, zip=True)
    Image.new("RGB", (20, 30), (9, 9, 9)).save(data / "round" / "long.png", pnginfo=notes)
    assert _run("--recipe", "demo", "--data", data) == 0
    assert len(_rows(encoder_folder, store_folder(load_recipe("demo")))) == 13


def test_a_name_that_is_not_utf8_is_embedded(encoder_folder, data) -> None:
    (data / "round" / "01.png").rename(data / "round" / "caf\udce9.png")
    assert _run("--recipe", "demo", "--data", data) == 0
    assert "round/caf\\udce9.png" in _rows(encoder_folder, store_folder(load_recipe("demo"))).key


def test_errors_of_another_data_set_stay(encoder_folder, data, tmp_path) -> None:
    (data / "round" / "notes.txt.png").write_text("not an image")
    assert _run("--recipe", "demo", "--data", data) == 0
    other = tmp_path / "other"
    for name in CLASSES:
        _write_image(other / name / "a.png", (len(name), 1, 2))
    (other / "round" / "bad.jpg").write_text("no image either")
    assert _run("--recipe", "demo", "--data", other) == 0
    names = [Path(row["path"]).name for row in _errors()]
    assert names == ["notes.txt.png", "bad.jpg"]
    (other / "round" / "bad.jpg").unlink()
    assert _run("--recipe", "demo", "--data", other) == 0
    assert [Path(row["path"]).name for row in _errors()] == ["notes.txt.png"]


def _errors() -> list[dict[str, str]]:
    """The rows of errors.csv."""
    store = store_folder(load_recipe("demo"))
    with store.with_name(f"{store.name}.errors.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_bad_files_are_error_rows_and_the_rest_goes_on(encoder_folder, data, tmp_path, recipe) -> None:
    (data / "round" / "notes.jpg").write_text("not an image")
    (data / "round" / "empty.jpg").write_bytes(b"")
    (data / "angular" / "cut.png").write_bytes((data / "angular" / "00.png").read_bytes()[:60])
    summary = _embed(encoder_folder, data, tmp_path / "store", recipe)
    codes = {Path(failure.path).name: failure.code for failure in summary.failures}
    assert codes == {"notes.jpg": "NOT_AN_IMAGE", "empty.jpg": "EMPTY", "cut.png": "DECODE_FAILED"}
    assert len(_sums(encoder_folder, tmp_path / "store")) == 12


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_without_permission_is_an_error_row(encoder_folder, data, tmp_path, recipe) -> None:
    (data / "round" / "01.png").chmod(0)
    [failure] = _embed(encoder_folder, data, tmp_path / "store", recipe).failures
    assert (failure.code, failure.message) == ("UNREADABLE", "Permission denied")


def test_a_file_that_vanishes_is_an_error_row(encoder_folder, data, tmp_path, recipe) -> None:
    encoder = OnnxEncoder(encoder_folder)
    samples = samples_in_class_folders(data, CLASSES).samples
    samples[3].path.unlink()
    transform = served_transform(encoder.manifest.preprocessing, recipe.serving)
    store = Store(tmp_path / "store", encoder.manifest.fingerprint())
    summary = embed.embed_samples(samples, store, encoder, transform)
    assert [(failure.path, failure.code) for failure in summary.failures] == [(str(samples[3].path), "UNREADABLE")]
    assert summary.embedded == 11


def test_width_and_height_are_the_files(encoder_folder, data, tmp_path, recipe) -> None:
    _embed(encoder_folder, data, tmp_path / "store", recipe)
    table = pq.read_table(part_files(tmp_path / "store")[0])
    assert set(table["width"].to_pylist()) == {20}
    assert set(table["height"].to_pylist()) == {30}


def test_what_was_embedded_before_a_failure_is_kept(encoder_folder, data, tmp_path, recipe) -> None:
    encoder = OnnxEncoder(encoder_folder)
    calls = []

    def encode_twice(pixels: np.ndarray) -> np.ndarray:
        calls.append(len(pixels))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return encoder(pixels)

    transform = served_transform(encoder.manifest.preprocessing, recipe.serving)
    store = Store(tmp_path / "store", encoder.manifest.fingerprint())
    with pytest.raises(KeyboardInterrupt):
        embed.embed_samples(
            samples_in_class_folders(data, CLASSES).samples, store, encode_twice, transform, batch_size=4
        )
    assert len(_sums(encoder_folder, tmp_path / "store")) == 8
    assert _embed(encoder_folder, data, tmp_path / "store", recipe).embedded == 4


KILLED_RUN = """
import os, sys
from pathlib import Path
from common.pixels import served_transform
from recipes.schema import load_recipe
from training import embed
from training.datasets import samples_in_class_folders
from training.encoder import OnnxEncoder
from training.store import Store

folder, data, store = map(Path, sys.argv[1:])
encoder, calls = OnnxEncoder(folder), []

def encode(pixels):
    calls.append(pixels)
    if len(calls) == 3:
        os.kill(os.getpid(), 9)
    return encoder(pixels)

transform = served_transform(encoder.manifest.preprocessing, load_recipe("demo").serving)
samples = samples_in_class_folders(data, ["angular", "round"]).samples
embed.embed_samples(samples, Store(store, encoder.manifest.fingerprint()), encode, transform, 4, rows_per_part=4)
"""


def test_a_killed_run_leaves_a_store_that_the_next_run_finishes(encoder_folder, data, tmp_path, recipe) -> None:
    store = tmp_path / "store"
    command = [sys.executable, "-c", KILLED_RUN, encoder_folder, data, store]
    assert subprocess.run(command, cwd=paths.ROOT, check=False, stderr=subprocess.DEVNULL).returncode == -9
    assert len(_sums(encoder_folder, store)) == 8
    summary = _embed(encoder_folder, data, store, recipe)
    assert (summary.embedded, summary.known) == (4, 8)
    assert len(_sums(encoder_folder, store)) == 12


def test_command_prints_the_store_and_writes_errors_beside_it(encoder_folder, data, capsys) -> None:
    (data / "round" / "notes.jpg").write_text("not an image")
    assert _run("--recipe", "demo", "--data", data) == 0
    out, err = capsys.readouterr()
    store = store_folder(load_recipe("demo"))
    assert out == f"{store}\n"
    assert "12 embedded, 0 known before, 1 failed" in err
    [error] = _errors()
    assert (Path(error["path"]).name, error["code"]) == ("notes.jpg", "NOT_AN_IMAGE")
    (data / "round" / "notes.jpg").unlink()
    assert _run("--recipe", "demo", "--data", data) == 0
    assert _errors() == []


def test_nothing_but_bad_files_fails(encoder_folder, tmp_path, capsys) -> None:
    for name in CLASSES:
        (tmp_path / "bad" / name).mkdir(parents=True)
    (tmp_path / "bad" / "round" / "a.jpg").write_text("text")
    assert _run("--recipe", "demo", "--data", tmp_path / "bad") == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "none of the 1 files could be embedded; see " in err


def test_another_encoders_store_is_refused(encoder_folder, data, capsys) -> None:
    assert _run("--recipe", "demo", "--data", data) == 0
    write_tiny_encoder(encoder_folder, seed=1)
    assert _run("--recipe", "demo", "--data", data) == 1
    assert "weights_sha256: the store has '000" in capsys.readouterr().err


def test_a_model_that_is_not_the_manifests_is_refused(encoder_folder: Path) -> None:
    model = onnx.load(encoder_folder / "model.onnx")
    model.doc_string = "changed"
    onnx.save(model, encoder_folder / "model.onnx")
    with pytest.raises(StepError, match="do not belong together"):
        OnnxEncoder(encoder_folder)


def test_a_missing_encoder_says_how_to_make_it(encoder_folder: Path) -> None:
    (encoder_folder / "model.onnx").unlink()
    with pytest.raises(StepError, match=r"python -m build\.encoder"):
        OnnxEncoder(encoder_folder)
    (encoder_folder / "encoder.json").unlink()
    with pytest.raises(ManifestError, match=r"python -m build\.encoder"):
        OnnxEncoder(encoder_folder)


def test_an_interrupted_step_says_so(capsys) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    assert run_step("training.embed", interrupted, INTERRUPTED) == 130
    assert "run the same command to go on" in capsys.readouterr().err


def test_a_table_names_the_images_and_their_split(encoder_folder, data, tmp_path, capsys) -> None:
    (tmp_path / "labels.csv").write_text(
        "file,kind,side\ndata/angular/00.png,angular,test\ndata/round/01.png,1,\ndata/gone.png,0,\n"
    )
    columns = ("--path-column", "file", "--label-column", "kind", "--split-column", "side")
    assert _run("--recipe", "demo", "--data", tmp_path / "labels.csv", *columns) == 0
    store = store_folder(load_recipe("demo"))
    rows = _rows(encoder_folder, store)
    found = {key: (label, split) for key, label, split in zip(rows.key, rows.label, rows.split, strict=True)}
    assert found == {"data/angular/00.png": ("angular", "test"), "data/round/01.png": ("round", None)}
    [error] = _errors()
    assert error["message"] == "No such file or directory (labels.csv row 4)"
    assert "2 embedded, 0 known before, 1 failed" in capsys.readouterr().err


def test_shards_are_embedded_without_unpacking_and_again_adds_nothing(encoder_folder, data, tmp_path, capsys) -> None:
    shard = tmp_path / "shards" / "0.tar"
    shard.parent.mkdir()
    with tarfile.open(shard, "w") as archive:
        for number in range(6):
            file = data / CLASSES[number % 2] / f"{number:02d}.png"
            archive.add(file, f"../{number}.png")
            (tmp_path / "cls").write_text(CLASSES[number % 2])
            archive.add(tmp_path / "cls", f"../{number}.cls")
    assert _run("--recipe", "demo", "--data", shard.parent, "--dtype", "float16") == 0
    assert _run("--recipe", "demo", "--data", f"{shard.parent}/*.tar") == 0
    err = capsys.readouterr().err
    assert "6 embedded, 0 known before, 0 failed" in err
    assert "0 embedded, 6 known before, 0 failed" in err
    rows = _rows(encoder_folder, store_folder(load_recipe("demo")))
    assert sorted(rows.key) == [f"../{number}" for number in range(6)]
    assert sorted(rows.path)[3] == f"{shard.resolve()}#../3.png"
    assert dict(zip(rows.key, rows.label, strict=True))["../3"] == "round"
    assert not list(tmp_path.glob("*.png"))
    _embed(encoder_folder, data, tmp_path / "other", load_recipe("demo"))
    expected = _sums(encoder_folder, tmp_path / "other")[rows.sha256[0]].astype(np.float16)
    np.testing.assert_array_equal(rows.embedding[0], expected.astype(np.float32))


def test_a_bad_data_set_writes_nothing(encoder_folder, data, tmp_path, capsys) -> None:
    (tmp_path / "labels.csv").write_text("path,label\ndata/angular/00.png,angular\ndata/round/01.png,2\n")
    assert _run("--recipe", "demo", "--data", tmp_path / "labels.csv") == 1
    assert "labels.csv row 3 (data/round/01.png): label '2' is neither 0 or 1" in capsys.readouterr().err
    assert not (paths.ARTIFACTS / "embeddings").exists()
