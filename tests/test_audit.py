from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import yaml
from stores import DemoStore, Row, demo_store
from tiny_encoder import write_tiny_encoder
from two_classes import TwoClasses, bayes_auroc, two_classes

from common import paths
from common.manifest import EncoderFingerprint
from recipes.errors import run_step
from recipes.schema import RECIPES, load_recipe
from training import audit, relabel
from training.audit import Finding, Labelled, audit_rows

CLASSES = ["angular", "round"]


def _labelled(data: TwoClasses) -> Labelled:
    names = [str(row) for row in range(len(data.label))]
    return Labelled(data.embedding, data.label, data.sha256, names, names)


def _rows_of(findings: list[Finding], kind: str) -> list[int]:
    return [finding.row for finding in findings if finding.kind == kind]


@pytest.fixture(scope="module")
def spoiled() -> TwoClasses:
    return two_classes(2000)


@pytest.fixture(scope="module")
def findings(spoiled: TwoClasses) -> list[Finding]:
    return audit_rows(_labelled(spoiled), CLASSES, 0.97)


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The demo recipe, looking for near-duplicates."""
    monkeypatch.setattr(paths, "ARTIFACTS", tmp_path / "artifacts")
    settings = yaml.safe_load((RECIPES / "demo.yaml").read_text())
    settings["heads"][0]["fit"] = {"near_duplicate_cosine": 0.999}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(settings))
    return tmp_path / "recipe.yaml"


@pytest.fixture
def encoder(recipe: Path) -> EncoderFingerprint:
    return write_tiny_encoder(paths.encoder_folder(load_recipe(recipe))).fingerprint()


@pytest.fixture
def store(encoder: EncoderFingerprint) -> DemoStore:
    return demo_store(encoder)


def _row(name: str, label: str | None, embedding: np.ndarray, sha256: str | None = None) -> Row:
    return Row(name, name, sha256 or f"{abs(hash(name)):064x}", 9, 9, label, None, embedding.astype(np.float32))


def _clusters(count: int = 60, names: list[str] = CLASSES) -> list[Row]:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(count, 8)) + 4 * np.eye(8)[np.arange(count) % len(names)]
    return [_row(f"{n:03d}.png", names[n % len(names)], vector, f"{n:064x}") for n, vector in enumerate(vectors)]


def _audit(recipe: Path, tmp_path: Path) -> tuple[int, list[dict[str, str]]]:
    out = tmp_path / "audit.csv"
    status = run_step("training.audit", lambda: audit.main(["--recipe", str(recipe), "--out", str(out)]))
    if not out.exists():
        return status, []
    with out.open(newline="") as file:
        return status, list(csv.DictReader(file))


def test_flipped_labels_are_found(spoiled: TwoClasses, findings: list[Finding]) -> None:
    flagged = np.zeros(2000, bool)
    flagged[_rows_of(findings, "label")] = True
    wrong = spoiled.label != spoiled.true_label
    assert spoiled.flipped.sum() == 100
    assert wrong.sum() == 140
    assert flagged[spoiled.flipped].mean() >= 0.9, "recall"
    assert wrong[flagged].mean() >= 0.85, "precision"


def test_suggestions_are_the_true_classes(spoiled: TwoClasses, findings: list[Finding]) -> None:
    found = [finding for finding in findings if finding.kind == "label" and spoiled.flipped[finding.row]]
    assert all(finding.suggested == spoiled.true_label[finding.row] for finding in found)
    assert all(0.5 <= finding.confidence <= 1 for finding in found)


def test_near_duplicates_across_classes_are_all_found(spoiled: TwoClasses, findings: list[Finding]) -> None:
    copies = np.flatnonzero(spoiled.copy_of >= 0)
    found = _rows_of(findings, "near-duplicate")
    assert set(found) == {*copies.tolist(), *spoiled.copy_of[copies].tolist()}
    assert len(found) == 80
    [one] = [finding for finding in findings if finding.kind == "near-duplicate" and finding.row == copies[0]]
    assert one.confidence == pytest.approx(0.985, abs=1e-3)
    assert f"of {spoiled.copy_of[copies[0]]}, labelled" in one.reason


def test_clean_data_has_few_suspects() -> None:
    clean = two_classes(1000, separation=4.0, flipped=0, copied=0)
    assert audit_rows(_labelled(clean), CLASSES, 0.97) == []


def test_the_synthetic_bayes_auroc_is_what_the_best_score_reaches() -> None:
    data = two_classes(40_000, embed_dim=32, separation=1.0, flipped=0, copied=0)
    direction = data.embedding[data.true_label == 1].mean(0) - data.embedding[data.true_label == 0].mean(0)
    assert audit._auroc(data.true_label, np.stack([1 - data.embedding @ direction, data.embedding @ direction], 1)) == (
        pytest.approx(bayes_auroc(32, 1.0), abs=0.005)
    )


def test_a_row_far_from_all_others_is_an_outlier() -> None:
    rng = np.random.default_rng(0)
    label = np.arange(400) % 2
    embedding = (np.eye(8)[label] + 0.1 * rng.normal(size=(400, 8))).astype(np.float32)
    embedding[7] = np.eye(8)[5]
    names = [str(row) for row in range(400)]
    findings = audit_rows(Labelled(embedding, label, names, names, names), CLASSES, None)
    outliers = sorted((f for f in findings if f.kind == "outlier"), key=lambda f: -f.confidence)
    assert outliers[0].row == 7
    assert outliers[0].confidence > 0.8
    assert len(outliers) <= 4
    assert "far from its 10 neighbours (mean cosine 0." in outliers[0].reason


def test_the_csv_is_sorted_and_has_one_line_a_row(store: DemoStore, recipe: Path, tmp_path: Path, capsys) -> None:
    rows = _clusters()
    wrong = _row("wrong.png", "round", rows[0].embedding + 0.01)
    store.append([*rows, wrong])
    status, lines = _audit(recipe, tmp_path)
    assert status == 0
    out, err = capsys.readouterr()
    assert out == f"{tmp_path / 'audit.csv'}\n"
    assert "of 61 labelled pictures to look at" in err
    assert list(lines[0]) == list(audit.COLUMNS)
    assert [float(line["confidence"]) for line in lines] == sorted(
        (float(x["confidence"]) for x in lines), reverse=True
    )
    [line] = [line for line in lines if line["path"] == "wrong.png"]
    assert (line["given_label"], line["suggested_label"]) == ("round", "angular")
    assert "near-duplicate (cosine " in line["reason"]
    assert len({line["path"] for line in lines}) == len(lines)


def test_several_classes_are_audited(spoiled: TwoClasses) -> None:
    rng = np.random.default_rng(0)
    true = np.arange(600) % 3
    embedding = (rng.normal(size=(600, 32)) + 4 * np.eye(32)[true]).astype(np.float32)
    label = true.copy()
    label[:30] = (label[:30] + 1) % 3
    data = TwoClasses(embedding, label, true, label != true, np.full(600, -1), 1.0)
    findings = audit_rows(_labelled(data), ["a", "b", "c"], 0.999)
    flagged = _rows_of(findings, "label")
    assert len(set(flagged) & set(range(30))) >= 28
    assert len(flagged) <= 40
    assert all(f.suggested == true[f.row] for f in findings if f.kind == "label" and f.row < 30)


def test_equal_files_with_two_labels_are_listed_until_relabelled(store, recipe, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = _clusters()
    copies = [
        _row("one.png", "round", rows[1].embedding, "f" * 64),
        _row("two.png", "angular", rows[1].embedding, "f" * 64),
    ]
    store.append([*rows, *copies])
    _, lines = _audit(recipe, tmp_path)
    same = [line for line in lines if "same content" in line["reason"]]
    assert {line["path"] for line in same} == {"one.png", "two.png"}
    assert all("one.png is labelled round, two.png is labelled angular" in line["reason"] for line in same)
    assert [line["path"] for line in lines[:2]] == ["one.png", "two.png"]
    Path("fix.csv").write_text("path,label\none.png,round\n")
    assert run_step("training.relabel", lambda: relabel.main(["--recipe", str(recipe), "fix.csv"])) == 0
    _, lines = _audit(recipe, tmp_path)
    assert not [line for line in lines if "same content" in line["reason"]]


def test_accepted_lines_are_applied_and_the_next_audit_sees_it(store, encoder, recipe, tmp_path) -> None:
    rows = _clusters()
    store.append([*rows, _row("wrong.png", "round", rows[0].embedding + 0.5)])
    _, lines = _audit(recipe, tmp_path)
    [line] = [line for line in lines if line["path"] == "wrong.png"]
    line["accept"] = "x"
    with (tmp_path / "edited.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)
    edited = str(tmp_path / "edited.csv")
    assert run_step("training.relabel", lambda: relabel.main(["--recipe", str(recipe), edited])) == 0
    stored = store.read()
    assert dict(zip(stored.path, stored.label, strict=True))["wrong.png"] == "angular"
    assert not [line for line in _audit(recipe, tmp_path)[1] if line["path"] == "wrong.png"]


def _with_nan() -> list[Row]:
    rows = _clusters()
    rows[5].embedding[0] = np.nan
    return rows


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([], "no such embedding store"),
        ([row for row in _clusters() if row.label == "round"], "the store has no images of angular"),
        (_clusters()[:9], "class 'round' has 4 different images (near-duplicates count once), fewer than the 5 folds"),
        ([*_clusters(), _row("odd.png", "2", np.ones(8))], "odd.png is labelled '2', which is not one of the head's"),
        (_with_nan(), "the embedding of 005.png is not finite"),
    ],
)
def test_bad_stores_are_refused_and_nothing_is_overwritten(store, recipe, tmp_path, capsys, rows, words) -> None:
    store.append(rows)
    (tmp_path / "audit.csv").write_text("mine\n")
    arguments = ["--recipe", str(recipe), "--out", str(tmp_path / "audit.csv")]
    assert run_step("training.audit", lambda: audit.main(arguments)) == 1
    out, err = capsys.readouterr()
    assert words in err
    assert out == ""
    assert (tmp_path / "audit.csv").read_text() == "mine\n"


def test_copies_do_not_make_up_the_numbers(store, recipe, tmp_path, capsys) -> None:
    rows = _clusters(20)
    few = [row for row in rows if row.label == "angular"][:3]
    copies = [_row(f"copy{n}.png", "angular", few[0].embedding, few[0].sha256) for n in range(10)]
    store.append([*few, *copies, *(row for row in rows if row.label == "round")])
    assert _audit(recipe, tmp_path) == (1, [])
    assert "class 'angular' has 3 different images" in capsys.readouterr().err


def test_other_tasks_are_refused(recipe, encoder, tmp_path, capsys) -> None:
    settings = yaml.safe_load(recipe.read_text())
    settings["heads"] = [{"name": "tags", "task": "multilabel", "class_names": ["a", "b"]}]
    recipe.write_text(yaml.safe_dump(settings))
    assert _audit(recipe, tmp_path) == (1, [])
    assert "head tags is multilabel; the audit knows binary and multiclass heads" in capsys.readouterr().err
