"""training.scores: a table of what a head says of the store's pictures, as `clipsieve review` reads it."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import graded_store
import numpy as np
import onnxruntime
import pytest
import safetensors.numpy
from artefacts import write_head
from scipy.special import expit
from tiny_encoder import write_tiny_encoder

from build.head import build_head
from clipsieve.review.pictures import pictures_in_table
from clipsieve.run_record import read_record
from common import paths
from common.manifest import EncoderManifest, head_weights, read_head
from recipes.errors import run_step
from recipes.schema import load_recipe
from tests.pictures import jpeg
from training import embed, fit, relabel, scores
from training.head import head_from_layers, logits_of
from training.sources import HeadData
from training.store import store_folder
from training.store_view import read_embeddings


@pytest.fixture
def encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EncoderManifest:
    """A tiny encoder where the demo recipe's would lie."""
    monkeypatch.setattr(paths, "ARTIFACTS", tmp_path / "artifacts")
    return write_tiny_encoder(paths.encoder_folder(load_recipe("demo")))


@pytest.fixture
def table(encoder: EncoderManifest, tmp_path: Path) -> Path:
    """Six pictures, four of them labelled; the last two are equal."""
    for number in range(6):
        (tmp_path / f"{number}.jpg").write_bytes(jpeg(seed=min(number, 4)))
    rows = [f"{number}.jpg,{['angular', 'round'][number % 2] if number < 4 else ''}\n" for number in range(6)]
    (tmp_path / "labels.csv").write_text("path,label\n" + "".join(rows))
    embed.main(["--recipe", "demo", "--data", str(tmp_path / "labels.csv")])
    return tmp_path / "scores.csv"


def _rows(table: Path) -> dict[str, dict[str, str]]:
    with table.open(newline="") as text:
        return {Path(row["image_path"]).name: row for row in csv.DictReader(text)}


def test_before_a_head_is_fitted_pictures_have_no_score(table: Path) -> None:
    scores.main(["--recipe", "demo", "--out", str(table)])
    rows = _rows(table)
    assert sorted(rows) == [f"{number}.jpg" for number in range(6)]
    assert {row["demo_score"] for row in rows.values()} == {""}
    assert [rows[f"{number}.jpg"]["label"] for number in range(6)] == ["angular", "round", "angular", "round", "", ""]
    assert rows["4.jpg"]["group"] == rows["5.jpg"]["group"]
    assert len({row["group"] for row in rows.values()}) == 5
    pictures = pictures_in_table(table, Path())
    assert pictures.scores[0].class_names == ("angular", "round")
    assert pictures.groups is not None
    assert (pictures.groups >= 0).sum() == 2


def test_scores_are_those_of_the_head(table: Path, encoder: EncoderManifest, tmp_path: Path) -> None:
    recipe = load_recipe("demo")
    folder = paths.head_folder(recipe, recipe.heads[0])
    write_head(folder, encoder, recipe.heads[0].class_names, thresholds=(0.4, 0.6))
    scores.main(["--recipe", "demo", "--out", str(table)])
    data = HeadData(store_folder(recipe), "demo", "demo")
    stored = read_embeddings(data, encoder.fingerprint())
    manifest = read_head(folder)
    tensors = safetensors.numpy.load_file(head_weights(manifest, folder))
    logits = logits_of(head_from_layers(manifest.layers, tensors), stored.embedding)
    expected = expit(logits[:, 0]).astype(np.float32)
    rows = _rows(table)
    for path, score in zip(stored.path, expected, strict=True):
        row = rows[Path(path).name]
        assert float(row["demo_score"]) == pytest.approx(score, abs=1e-6)
        assert row["demo_decision"] == ("block" if score >= 0.6 else "review" if score >= 0.4 else "allow")
        assert row["demo_class_name"] == ("round" if score >= 0.4 else "angular")
    record = read_record(table).scores["demo_score"]
    assert [threshold.value for threshold in record.thresholds] == pytest.approx([0.4, 0.6])


def test_a_correction_is_the_label(table: Path, tmp_path: Path) -> None:
    (tmp_path / "more.csv").write_text(f"path,label\n{tmp_path}/0.jpg,round\n")
    relabel.main(["--recipe", "demo", str(tmp_path / "more.csv")])
    scores.main(["--recipe", "demo", "--out", str(table)])
    assert _rows(table)["0.jpg"]["label"] == "round"


def test_the_head_is_described(encoder: EncoderManifest, capsys: pytest.CaptureFixture[str]) -> None:
    scores.main(["--recipe", "demo", "--describe"])
    facts = json.loads(capsys.readouterr().out)
    assert facts == {
        "recipe": "demo", "head": "demo", "task": "binary", "class_names": ["angular", "round"], "fitted": False
    }  # fmt: skip


@pytest.mark.parametrize(
    ("out", "message"), [("scores.parquet", "the table is a .csv"), ("scores.csv", "no such embedding store")]
)
def test_what_cannot_be_is_told(encoder: EncoderManifest, tmp_path: Path, capsys, out: str, message: str) -> None:
    command = ["--recipe", "demo", "--out", str(tmp_path / out)]
    assert run_step("training.scores", lambda: scores.main(command)) == 1
    assert message in capsys.readouterr().err


def test_a_deviation_is_a_column_as_the_served_head_gives_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "ARTIFACTS", tmp_path / "artifacts")
    file = graded_store.write_recipe(tmp_path, fit={"loss": "nll", "max_epochs": 20})
    graded_store.write_store(file)
    fit.main(["--recipe", str(file)])
    recipe = load_recipe(file)
    folder = paths.head_folder(recipe, recipe.heads[0])
    build_head(folder, recipe.build.opset)
    scores.main(["--recipe", str(file), "--out", str(tmp_path / "scores.csv")])
    stored = read_embeddings(HeadData(store_folder(recipe), "taste", "taste"), read_head(folder).encoder)
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    served = map(np.asarray, session.run(["score", "deviation"], {"embedding": stored.embedding}))
    rows, divider = _rows(tmp_path / "scores.csv"), read_head(folder).thresholds[0][0].value
    for path, score, deviation in zip(stored.path, *(output[:, 0] for output in served), strict=True):
        assert float(rows[path]["taste_score"]) == pytest.approx(score, rel=1e-4, abs=1e-5)
        assert float(rows[path]["taste_deviation"]) == pytest.approx(deviation, rel=1e-4)
        assert rows[path]["taste_decision"] == ("good" if float(rows[path]["taste_score"]) >= divider else "bad")
