from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from stores import DemoStore, Row, demo_store
from tiny_encoder import EMBED_DIM, write_tiny_encoder

from common import paths
from common.head_figures import LabelMetrics
from common.manifest import read_encoder, read_head
from recipes.errors import run_step
from recipes.schema import load_recipe
from training import evaluate, fit

CLASSES = ["angular", "round"]


def _rows(count: int, first: int = 0, label: str | None = None) -> list[Row]:
    rng = np.random.default_rng(first)
    embeddings = rng.normal(size=(count, EMBED_DIM)).astype(np.float32)
    embeddings[1::2, 0] += 2
    return [
        Row(f"{n}", f"{n + first}.png", f"{n + first:064x}", 9 + n % 3, n, label or CLASSES[n % 2], None, embedding)
        for n, embedding in enumerate(embeddings)
    ]


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Artefacts of a fit."""
    artifacts = tmp_path_factory.mktemp("fitted")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paths, "ARTIFACTS", artifacts)
        encoder = write_tiny_encoder(paths.encoder_folder(load_recipe("demo"))).fingerprint()
        demo_store(encoder).append(_rows(300))
        assert run_step("training.fit", lambda: fit.main(["--recipe", "demo"])) == 0
    return artifacts


@pytest.fixture
def store(fitted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DemoStore:
    """Its own copy of them."""
    shutil.copytree(fitted, tmp_path / "artifacts")
    monkeypatch.setattr(paths, "ARTIFACTS", tmp_path / "artifacts")
    encoder = read_encoder(paths.encoder_folder(load_recipe("demo"))).fingerprint()
    return demo_store(encoder)


def _evaluate(out: Path, *arguments: object) -> int:
    return run_step(
        "training.evaluate", lambda: evaluate.main(["--recipe", "demo", "--out", str(out), *map(str, arguments)])
    )


def _report(out: Path) -> dict:
    return json.loads((out / "report.json").read_text())


def _head_folder() -> Path:
    return paths.ARTIFACTS / "demo" / "heads" / "demo"


def test_the_report_agrees_with_the_fit(store: DemoStore, tmp_path: Path, capsys) -> None:
    capsys.readouterr()
    assert _evaluate(tmp_path / "out") == 0
    assert capsys.readouterr().out == f"{tmp_path / 'out' / 'report.json'}\n"
    report, manifest = _report(tmp_path / "out"), read_head(_head_folder())
    metrics = manifest.metrics
    assert isinstance(metrics, LabelMetrics)
    assert report["rows"]["which"] == "test"
    assert report["same_data_as_trained"]
    assert report["metrics"]["auroc"] == pytest.approx(metrics.auroc)
    assert metrics.confusion is not None
    assert report["metrics"]["confusion"] == metrics.confusion.model_dump()
    fitted = json.loads((_head_folder() / "report.json").read_text())
    assert report["calibration"]["after"]["ece"] == pytest.approx(fitted["calibration"]["after"]["ece"])
    [point] = report["operating_points"]["round"]
    assert point["recall"]["value"] == pytest.approx(metrics.recall)


def test_plots_and_a_card_lie_beside_it(store: DemoStore, tmp_path: Path) -> None:
    assert _evaluate(tmp_path / "out") == 0
    names = {path.name for path in (tmp_path / "out").iterdir()}
    pictures = {"roc", "precision_recall", "reliability", "score_histogram", "threshold_sweep", "loss_curve"}
    assert names == {"report.json", "model_card.md", *(f"{name}.png" for name in pictures)}
    card = (tmp_path / "out" / "model_card.md").read_text()
    for words in ("# Head `demo`", "AUROC", "not stated", "a calibrated probability", "![roc](roc.png)"):
        assert words in card
    assert str(load_recipe("demo").notice) in card


def test_all_rows_are_said_to_flatter(store: DemoStore, tmp_path: Path) -> None:
    assert _evaluate(tmp_path / "out", "--all") == 0
    assert _report(tmp_path / "out")["rows"]["n"] == 300
    assert "flatter" in (tmp_path / "out" / "model_card.md").read_text()


def test_rows_added_since_do_not_bring_trained_rows_into_the_test(store: DemoStore, tmp_path: Path) -> None:
    assert _evaluate(tmp_path / "before") == 0
    store.append(_rows(200, first=1000))
    assert _evaluate(tmp_path / "after") == 0
    before, after = _report(tmp_path / "before"), _report(tmp_path / "after")
    assert not after["same_data_as_trained"]
    assert before["rows"]["n"] == 60
    assert after["rows"]["n"] == pytest.approx(100, abs=2)


@pytest.mark.parametrize(("column", "names"), [("width", {"width=9", "width=10", "width=11"}), ("height", None)])
def test_slices_add_up(store: DemoStore, tmp_path: Path, column: str, names: set[str] | None) -> None:
    assert _evaluate(tmp_path / "out", "--slice", column) == 0
    report = _report(tmp_path / "out")
    assert sum(figures["n"] for figures in report["slices"].values()) == report["rows"]["n"]
    assert set(report["slices"]) == names if names else len(report["slices"]) == 4
    assert "## Slices" in (tmp_path / "out" / "model_card.md").read_text()


def test_a_slice_of_one_class_says_why_it_has_no_figures(store: DemoStore, tmp_path: Path) -> None:
    assert _evaluate(tmp_path / "out", "--slice", "label") == 0
    reasons = [figures["reason"] for figures in _report(tmp_path / "out")["slices"].values()]
    assert sorted(reason.split(",")[0] for reason in reasons) == ["no positives", "only positives"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--slice", "camera"], "no column 'camera' to slice by; there are key, path"),
        (["--slice", "path"], "more than 50; slice by a column that groups"),
        (["--store", "nowhere"], "no such embedding store"),
        (["--head", "other"], "head 'other' is not one of"),
    ],
)
def test_what_cannot_be_evaluated_writes_nothing(store, tmp_path, capsys, arguments: list[str], words: str) -> None:
    assert _evaluate(tmp_path / "out", "--all", *arguments) == 1
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_weights_of_another_head_are_refused(store: DemoStore, tmp_path: Path, capsys) -> None:
    path = _head_folder() / "head.safetensors"
    save_file({name: tensor + 1 for name, tensor in load_file(path).items()}, path)
    assert _evaluate(tmp_path / "out") == 1
    assert "head.json says" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_head_of_another_encoder_is_refused(store: DemoStore, tmp_path: Path, capsys) -> None:
    write_tiny_encoder(paths.encoder_folder(load_recipe("demo")), seed=1)
    assert _evaluate(tmp_path / "out") == 1
    assert "weights_sha256: the head was trained on" in capsys.readouterr().err
