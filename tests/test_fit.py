from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file
from stores import DemoStore, Row, demo_store
from tiny_encoder import EMBED_DIM, write_tiny_encoder

from common import paths
from common.head_figures import LabelMetrics
from common.head_training import Refit
from common.manifest import EncoderFingerprint, Linear, Relu, Standardize, read_head, sha256_of
from recipes.errors import run_step
from recipes.schema import load_recipe
from training import fit, head_files
from training.labelled import Labelled, labelled_rows
from training.leakage import group_rows
from training.split import Split, saved_split

CLASSES = ["angular", "round"]
FILES = {
    "head.json",
    "head.safetensors",
    "scores.safetensors",
    "report.json",
    "loss_curve.png",
    "score_histogram.png",
    "roc.png",
    "reliability.png",
}


def _row(number: int, label: str | None, embedding: np.ndarray, sha256: str | None = None) -> Row:
    return Row(f"{number}.png", f"{number}.png", sha256 or f"{number:064x}", 9, 9, label, None, embedding)


def _rows(count: int, separation: float = 1.5) -> list[Row]:
    """Embeddings of two overlapping clusters."""
    rng = np.random.default_rng(0)
    embeddings = rng.normal(size=(count, EMBED_DIM)).astype(np.float32)
    embeddings[1::2, 0] += separation
    return [_row(number, CLASSES[number % 2], embedding) for number, embedding in enumerate(embeddings)]


@pytest.fixture
def encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EncoderFingerprint:
    monkeypatch.setattr(paths, "ARTIFACTS", tmp_path / "artifacts")
    return write_tiny_encoder(paths.encoder_folder(load_recipe("demo"))).fingerprint()


@pytest.fixture
def store(encoder: EncoderFingerprint) -> DemoStore:
    return demo_store(encoder)


def _fit(*arguments: object) -> int:
    return run_step("training.fit", lambda: fit.main(["--recipe", "demo", *map(str, arguments)]))


def _head_folder() -> Path:
    return paths.ARTIFACTS / "demo" / "heads" / "demo"


def _split(store: DemoStore, data: Labelled) -> Split:
    """As the fit drew it."""
    settings = load_recipe("demo").heads[0].fit
    groups = group_rows(data.sha256, data.embedding, settings.near_duplicate_cosine)
    return saved_split(store.folder, data.label, data.sha256, CLASSES, settings, groups.ids)


def _scores_by_hand(folder: Path, embeddings: np.ndarray) -> np.ndarray:
    """What head.json and head.safetensors say, in numpy."""
    manifest, tensors, x = read_head(folder), load_file(folder / "head.safetensors"), embeddings
    for layer in manifest.layers:
        if isinstance(layer, Linear):
            x = x @ tensors[layer.weight].T + tensors[layer.bias]
        elif isinstance(layer, Standardize):
            x = (x - tensors[layer.mean]) / tensors[layer.std]
        elif isinstance(layer, Relu):
            x = np.maximum(x, 0)
    assert manifest.calibration is not None
    x = x.astype(np.float64) * manifest.calibration.scale + manifest.calibration.offset
    return 1 / (1 + np.exp(-x[:, 0]))


def test_all_files_are_written_and_the_manifest_is_printed(store: DemoStore, capsys) -> None:
    store.append(_rows(200))
    assert _fit() == 0
    out, err = capsys.readouterr()
    assert out == f"{_head_folder() / 'head.json'}\n"
    assert {path.name for path in _head_folder().iterdir()} == FILES
    assert "AUROC" in err
    for name in FILES:
        if name.endswith(".png"):
            assert (_head_folder() / name).read_bytes().startswith(b"\x89PNG")


def test_values_of_the_command_line_are_in_the_manifest_and_a_fit_without_them_is_another(store, capsys) -> None:
    store.append(_rows(60))
    values = ("--set", "heads.demo.fit.max_epochs=3", "--set", "heads.demo.fit.folds=0")
    assert _fit("--if-changed", *values) == 0
    assert read_head(_head_folder()).recipe["fit"]["max_epochs"] == 3
    assert _fit("--if-changed", *values) == 0
    assert "nothing to do" in capsys.readouterr().err
    assert _fit("--if-changed") == 0
    assert "nothing to do" not in capsys.readouterr().err
    assert read_head(_head_folder()).recipe["fit"]["max_epochs"] == 300


def test_manifest_says_what_was_trained(store: DemoStore, encoder: EncoderFingerprint) -> None:
    store.append(_rows(200))
    assert _fit() == 0
    manifest = read_head(_head_folder())
    assert (manifest.labels, manifest.class_names) == (["round"], CLASSES)
    assert (manifest.activation, manifest.calibrated) == ("sigmoid", True)
    assert [[(t.value, t.operating_point) for t in label] for label in manifest.thresholds] == [[(0.5, "fixed")]]
    assert manifest.encoder == encoder
    assert manifest.weights_sha256 == sha256_of(_head_folder() / "head.safetensors")
    assert manifest.notice == load_recipe("demo").notice
    assert manifest.training.counts == {
        "train": {"angular": 65, "round": 65},
        "validation": {"angular": 15, "round": 15},
        "test": {"angular": 20, "round": 20},
    }
    assert manifest.training.seed == 0
    assert {"python", "torch"} <= manifest.versions.keys()


def test_the_written_head_has_the_metrics_it_claims(store: DemoStore, encoder: EncoderFingerprint) -> None:
    store.append(_rows(200, separation=4))
    assert _fit() == 0
    data = labelled_rows(store.read(), CLASSES)
    split = _split(store, data)
    scores, labels = _scores_by_hand(_head_folder(), data.embedding[split.test]), data.label[split.test]
    metrics = read_head(_head_folder()).metrics
    assert isinstance(metrics, LabelMetrics)
    wins = (scores[labels == 1][:, None] > scores[labels == 0][None]).mean()
    assert metrics.auroc == pytest.approx(wins)
    assert metrics.accuracy == pytest.approx(((scores >= 0.5) == labels).mean())
    assert metrics.auroc is not None
    assert metrics.auroc_95_interval is not None
    assert metrics.auroc_95_interval[0] <= metrics.auroc <= metrics.auroc_95_interval[1]
    assert metrics.n == 40
    assert metrics.auroc > 0.9  # the best possible is 0.998


def test_the_score_distribution_is_of_all_rows_each_scored_by_weights_that_never_saw_it(store: DemoStore) -> None:
    store.append(_rows(200))
    assert _fit() == 0
    found = read_head(_head_folder()).score_distribution
    assert found is not None
    assert (found.images, len(found.ratios)) == (200, 1)


def test_what_the_weights_were_fitted_to_is_said(store: DemoStore, capsys) -> None:
    store.append(_rows(200))
    assert _fit() == 0
    report = json.loads((_head_folder() / "report.json").read_text())
    assert report["training"]["refit"] == {"folds": 5, "rows": 160}
    assert read_head(_head_folder()).training.refit == Refit(folds=5, rows=160)
    err = capsys.readouterr().err
    assert "160 images" in err
    assert "held out 0." in err, "the epochs are shown"


def test_what_must_not_be_missed_is_printed_and_stored(store: DemoStore, capsys) -> None:
    rng = np.random.default_rng(3)
    noise = rng.normal(size=(40, EMBED_DIM)).astype(np.float32)
    store.append([Row(f"{n}.png", f"{n}.png", f"{n:064x}", 9, 9, CLASSES[n % 2], None, noise[n]) for n in range(40)])
    assert _fit() == 0
    [warning, *_] = read_head(_head_folder()).training.warnings or [""]
    assert "may be no better than chance: AUROC" in warning
    assert f"warning: {warning}" in capsys.readouterr().err


def test_report_holds_the_loss_curve(store: DemoStore) -> None:
    store.append(_rows(100))
    assert _fit() == 0
    report = json.loads((_head_folder() / "report.json").read_text())
    validation = report["loss"]["validation"]
    assert validation.index(min(validation)) == report["training"]["best_epoch"]
    assert report["metrics"] == read_head(_head_folder()).metrics.model_dump()


def test_fits_are_equal_whatever_the_order_of_embedding(
    store: DemoStore, encoder: EncoderFingerprint, tmp_path
) -> None:
    rows = _rows(100)
    store.append(rows)
    assert _fit() == 0
    first = read_head(_head_folder())
    other = DemoStore(tmp_path / "other", encoder)
    other.append(rows[60:])
    other.append(rows[:60])
    assert _fit("--store", tmp_path / "other") == 0
    assert read_head(_head_folder()) == first
    assert read_head(_head_folder()).revision == first.revision


def test_if_changed_leaves_a_head_of_the_same_data_and_no_other(store: DemoStore) -> None:
    store.append(_rows(80))
    assert _fit("--if-changed") == 0
    file = _head_folder() / "head.json"
    before = file.stat().st_mtime_ns
    assert _fit("--if-changed") == 0
    assert file.stat().st_mtime_ns == before
    (_head_folder() / "head.safetensors").write_bytes(b"damaged")
    assert _fit("--if-changed") == 0
    assert (repaired := file.stat().st_mtime_ns) > before
    store.append([_row(80, CLASSES[0], np.zeros(EMBED_DIM, np.float32))])
    assert _fit("--if-changed") == 0
    assert file.stat().st_mtime_ns > repaired


def test_data_fingerprint_follows_content_and_label() -> None:
    def fingerprint(contents: list[str], labels: list[int]) -> str:
        return Labelled(np.zeros((2, 1), np.float32), np.array(labels), contents).fingerprint

    assert fingerprint(["a", "b"], [0, 1]) == fingerprint(["b", "a"], [1, 0])
    assert fingerprint(["a", "b"], [0, 1]) != fingerprint(["a", "b"], [1, 0])
    assert fingerprint(["a", "b"], [0, 1]) != fingerprint(["a", "c"], [0, 1])


def test_copies_stay_on_one_side(store: DemoStore, encoder: EncoderFingerprint) -> None:
    rows = _rows(60)
    copies = [_row(100 + n, row.label, row.embedding, row.sha256) for n, row in enumerate(rows)]
    store.append(rows + copies)
    data = labelled_rows(store.read(), CLASSES)
    split = _split(store, data)
    held = [{data.sha256[row] for row in rows} for rows in split.parts().values()]
    assert sum(map(len, held)) == 60


def test_unlabelled_rows_are_left_out(store: DemoStore) -> None:
    store.append([*_rows(60), _row(900, None, np.full(EMBED_DIM, np.nan, np.float32))])
    assert _fit() == 0
    counts = read_head(_head_folder()).training.counts
    assert counts is not None
    assert sum(sum(part.values()) for part in counts.values()) == 60


def _one_class() -> list[Row]:
    return [row for row in _rows(60) if row.label == "round"]


def _with_nan() -> list[Row]:
    rows = _rows(60)
    rows[7].embedding[2] = np.nan
    return rows


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([], "no such embedding store; make it with: python -m training.embed"),
        (_one_class(), "labelled images of round only; a head needs both angular and round"),
        (_rows(4), "class 'angular' has 2 different images in the store"),
        (_with_nan(), "1 of 60 embeddings are not finite, the first of them: 7.png"),
        ([*_rows(60), _row(70, "oval", np.zeros(EMBED_DIM, np.float32))], "the store has labels ['oval']"),
        ([_row(1, None, np.zeros(EMBED_DIM, np.float32))], "labelled images of no class only"),
    ],
)
def test_unusable_stores_are_refused_and_the_old_head_stays(
    store: DemoStore, rows: list[Row], words: str, capsys
) -> None:
    _head_folder().mkdir(parents=True)
    (_head_folder() / "head.json").write_text("the old head")
    store.append(rows)
    assert _fit() == 1
    out, err = capsys.readouterr()
    assert words in err
    assert "Traceback" not in err
    assert out == ""
    assert [path.name for path in _head_folder().iterdir()] == ["head.json"]
    assert (_head_folder() / "head.json").read_text() == "the old head"


def test_a_failing_plot_overwrites_nothing(store: DemoStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> bytes:
        raise RuntimeError("no plot")

    store.append(_rows(60))
    monkeypatch.setattr(head_files, "score_pngs", fail)
    with pytest.raises(RuntimeError):
        _fit()
    assert not _head_folder().exists()


def test_a_store_of_another_encoder_is_refused(store: DemoStore, capsys) -> None:
    store.append(_rows(60))
    write_tiny_encoder(paths.encoder_folder(load_recipe("demo")), seed=1)
    assert _fit() == 1
    assert "weights_sha256: the store has" in capsys.readouterr().err


def test_an_unknown_recipe_and_head_are_named(encoder: EncoderFingerprint, capsys) -> None:
    assert run_step("training.fit", lambda: fit.main(["--recipe", "dem"])) == 1
    assert "did you mean 'demo'" in capsys.readouterr().err
    assert _fit("--head", "nope") == 1
    assert "head 'nope' is not one of ['demo']" in capsys.readouterr().err


def test_a_head_that_comes_from_elsewhere_is_not_overwritten(tmp_path: Path, encoder, capsys) -> None:
    recipe = load_recipe("demo").model_dump(mode="json")
    recipe["heads"][0]["source"] = str(tmp_path / "published")
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(recipe))
    assert run_step("training.fit", lambda: fit.main(["--recipe", str(tmp_path / "mine.yaml")])) == 1
    assert "it is not trained here" in capsys.readouterr().err
