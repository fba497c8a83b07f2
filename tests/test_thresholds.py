"""Other thresholds for a head that is fitted: as a fit would have chosen them, without one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import yaml
from stores import DemoStore, Row, demo_store
from tiny_encoder import EMBED_DIM, write_tiny_encoder

from common import paths
from common.manifest import HeadManifest, read_head
from recipes.errors import run_step
from recipes.schema import load_recipe
from training import fit, thresholds
from training.errors import StepError
from training.sources import HeadData, Mention, Source, mentions_table, write_source
from training.store import Embedded, Store, store_folder
from training.thresholds import head_with

CLASSES = ["angular", "round"]
HEAD = load_recipe("demo").heads[0]


def _rows(count: int) -> list[Row]:
    """Embeddings of two clusters that overlap."""
    rng = np.random.default_rng(0)
    embeddings = rng.normal(size=(count, EMBED_DIM)).astype(np.float32)
    embeddings[1::2, 0] += 2
    return [
        Row(f"{at}.png", f"{at}.png", f"{at:064x}", 9, 9, CLASSES[at % 2], None, row)
        for at, row in enumerate(embeddings)
    ]


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory):
    """The demo's head, fitted, and its folder."""
    folder = tmp_path_factory.mktemp("artifacts")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paths, "ARTIFACTS", folder)
        patch.setenv("CLIPSIEVE_ARTIFACTS", str(folder))
        patch.delenv(thresholds.ADMIN_KEY, raising=False)
        encoder = write_tiny_encoder(paths.encoder_folder(load_recipe("demo"))).fingerprint()
        store: DemoStore = demo_store(encoder)
        store.append(_rows(400))
        assert _fit("demo") == 0
        yield paths.head_folder(load_recipe("demo"), HEAD)


def _fit(recipe: str) -> int:
    return run_step("training.fit", lambda: fit.main(["--recipe", recipe]))


def _change(*arguments: str, recipe: str = "demo") -> int:
    return run_step("training.thresholds", lambda: thresholds.main(["--recipe", recipe, *arguments]))


def _values(manifest: HeadManifest) -> list[float]:
    return [point.value for point in manifest.thresholds[0]]


def _served_decisions(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    embeddings = np.random.default_rng(1).normal(size=(200, EMBED_DIM)).astype(np.float32) * 2
    scores, decisions = session.run(["score", "decision"], {"embedding": embeddings})
    return np.asarray(scores)[:, 0], np.asarray(decisions)[:, 0]


def test_numbers_become_the_decisions_of_the_head_that_is_served(fitted: Path, capsys) -> None:
    before = read_head(fitted)
    assert _change("0.3", "0.8") == 0
    out, err = capsys.readouterr()
    after = read_head(fitted)
    assert out == f"{fitted / 'head.json'}\n"
    assert _values(after) == [0.3, 0.8]
    assert after.revision != before.revision
    assert after.weights_sha256 == before.weights_sha256
    scores, decisions = _served_decisions(fitted)
    assert (decisions == (scores >= np.float32(0.3)).astype(int) + (scores >= np.float32(0.8))).all()
    assert set(decisions) == {0, 1, 2}
    assert "write under the head demo: thresholds: [0.3, 0.8]" in err
    assert "python -m build.repository --recipe demo" in err


def test_an_operating_point_is_the_one_that_a_fit_chooses(fitted: Path, tmp_path: Path) -> None:
    assert _change("recall>=0.9", "precision>=0.9") == 0
    changed, report = read_head(fitted), json.loads((fitted / "report.json").read_text())
    recipe = load_recipe("demo").model_dump(mode="json", exclude_defaults=True)
    recipe["heads"][0] |= {"operating_points": ["recall>=0.9", "precision>=0.9"]}
    path = tmp_path / "demo.yaml"
    path.write_text(yaml.safe_dump(recipe))
    assert _fit(str(path)) == 0
    fresh = read_head(fitted)
    assert changed.thresholds == fresh.thresholds
    assert changed.metrics == fresh.metrics
    again = json.loads((fitted / "report.json").read_text())
    assert report["operating_points"] == again["operating_points"]
    assert all(point.realised is not None for point in fresh.thresholds[0])


def test_without_values_the_recipes_are_taken_and_a_fit_finds_nothing_to_do(fitted: Path, tmp_path: Path, capsys):
    recipe = load_recipe("demo").model_dump(mode="json", exclude_defaults=True)
    path = tmp_path / "demo.yaml"
    path.write_text(yaml.safe_dump(recipe))
    assert _fit(str(path)) == 0
    recipe["heads"][0] |= {"thresholds": [0.25]}
    path.write_text(yaml.safe_dump(recipe))
    assert _change(recipe=str(path)) == 0
    assert _values(read_head(fitted)) == [0.25]
    capsys.readouterr()
    assert run_step("training.fit", lambda: fit.main(["--recipe", str(path), "--if-changed"])) == 0
    assert "nothing to do" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["0.8", "0.3"], r"must ascend, found \[0.8, 0.3\]"),
        (["1.5"], r"lie between 0 and 1, found \[1.5\]"),
        (["nan"], "thresholds nan"),
        (["0.3", "f1"], "give numbers or operating points, not both"),
        (["high"], "operating point 'high' is not understood; write recall>=X"),
    ],
)
def test_what_are_no_thresholds_is_refused(values: list[str], expected: str) -> None:
    with pytest.raises(StepError, match=expected):
        head_with(HEAD, values)


def test_a_point_out_of_reach_changes_nothing(fitted: Path, capsys) -> None:
    before = {path.name: path.read_bytes() for path in fitted.iterdir()}
    assert _change("recall>=0.99999") == 1
    assert "recall" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in fitted.iterdir()} == before


def test_with_a_key_another_number_of_thresholds_is_refused_before_anything_changes(
    fitted: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(thresholds.ADMIN_KEY, "0123456789abcdef")
    count, before = len(_values(read_head(fitted))), (fitted / "head.json").read_bytes()
    assert _change(*(["0.2", "0.6"] if count == 1 else ["0.5"])) == 1
    assert "--allow-other-decisions" in capsys.readouterr().err
    assert (fitted / "head.json").read_bytes() == before


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda path: path.unlink(), "not found; the head is from before its scores were kept"),
        (lambda path: path.write_bytes(b"no tensors"), "not readable"),
        (
            lambda path: path.write_bytes(path.read_bytes().replace(b"weights_sha256", b"weights_sha2_6")),
            "other weights",
        ),
    ],
)
def test_scores_that_are_gone_damaged_or_of_another_head(fitted: Path, capsys, damage, expected: str) -> None:
    path = fitted / "scores.safetensors"
    content = path.read_bytes()
    try:
        damage(path)
        assert _change("f1") == 1
        err = capsys.readouterr().err
        assert expected in err
        assert "python -m training.fit --recipe demo" in err
    finally:
        path.write_bytes(content)


def test_a_head_of_grades_keeps_its_divider_until_numbers_take_its_place(
    fitted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paths, "ARTIFACTS", tmp_path)
    monkeypatch.setenv("CLIPSIEVE_ARTIFACTS", str(tmp_path))
    recipe = load_recipe("demo").model_dump(mode="json", exclude_defaults=True)
    recipe |= {"name": "graded", "heads": [{"name": "taste", "task": "regression", "class_names": ["taste"]}]}
    path = tmp_path / "graded.yaml"
    path.write_text(yaml.safe_dump(recipe))
    encoder = write_tiny_encoder(paths.encoder_folder(load_recipe(str(path)))).fingerprint()
    store = DemoStore(store_folder(load_recipe(str(path))), encoder)
    store.data = HeadData(store.folder, "graded", "taste")
    rows = [replace(row, label=str(round(5 + float(row.embedding[0]), 3))) for row in _rows(200)]
    _write(store, rows)
    assert _fit(str(path)) == 0
    folder = tmp_path / "graded" / "heads" / "taste"
    before = read_head(folder)
    assert [point.operating_point for point in before.thresholds[0]] == ["good"]
    assert _change("5.5", "6.5", recipe=str(path)) == 0
    assert _values(read_head(folder)) == [5.5, 6.5]
    assert read_head(folder).metrics == before.metrics
    assert _change(recipe=str(path)) == 0
    assert read_head(folder).thresholds == before.thresholds
    capsys.readouterr()
    assert _change("f1", recipe=str(path)) == 1
    assert "operating points are for classes" in capsys.readouterr().err


def _write(store: DemoStore, rows: list[Row]) -> None:
    new = Store(store.folder, store.encoder, None)
    new.append([Embedded(row.sha256, row.width, row.height, row.embedding) for row in rows])
    mentions = [Mention(row.key, row.path, row.sha256, row.label, row.split, row.group) for row in rows]
    write_source(store.data, Source("folder /", mentions_table(mentions)))
