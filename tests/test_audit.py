from __future__ import annotations

import csv
import json
from dataclasses import replace
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
from training.audit import audit_rows
from training.suspects import Finding, Labelled, auroc

CLASSES = ["angular", "round"]


def _labelled(data: TwoClasses, class_names: list[str] = CLASSES) -> Labelled:
    names = [str(row) for row in range(len(data.label))]
    return Labelled(data.embedding, data.label, [class_names[label] for label in data.label], data.sha256, names, names)


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


def _relabelled(store: DemoStore, recipe: Path, tmp_path: Path, lines: list[dict[str, str]]) -> dict[str, str | None]:
    """The labels after the audit's table came back."""
    with (tmp_path / "edited.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)
    edited = str(tmp_path / "edited.csv")
    assert run_step("training.relabel", lambda: relabel.main(["--recipe", str(recipe), edited])) == 0
    stored = store.read()
    return dict(zip(stored.path, stored.label, strict=True))


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
    assert all(finding.suggested == CLASSES[spoiled.true_label[finding.row]] for finding in found)
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
    assert auroc(data.true_label, np.stack([1 - data.embedding @ direction, data.embedding @ direction], 1)) == (
        pytest.approx(bayes_auroc(32, 1.0), abs=0.005)
    )


def test_a_row_far_from_all_others_is_an_outlier() -> None:
    rng = np.random.default_rng(0)
    label = np.arange(400) % 2
    embedding = (np.eye(8)[label] + 0.1 * rng.normal(size=(400, 8))).astype(np.float32)
    embedding[7] = np.eye(8)[5]
    names = [str(row) for row in range(400)]
    findings = audit_rows(Labelled(embedding, label, names, names, names, names), CLASSES, None)
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
    order = [(not line["suggested_label"], -float(line["confidence"])) for line in lines]
    assert order == sorted(order)
    [line] = [line for line in lines if line["path"] == "wrong.png"]
    assert (line["given_label"], line["suggested_label"]) == ("round", "angular")
    assert "near-duplicate (cosine " in line["reason"]
    assert len({line["path"] for line in lines}) == len(lines)


def test_rows_with_a_suggestion_come_first(tmp_path: Path) -> None:
    names = ["a", "b", "c", "d"]
    data = Labelled(np.zeros((4, 2)), np.zeros(4), ["round"] * 4, names, names, names)
    findings = [
        Finding(0, "outlier", None, 0.99, "far"),
        Finding(1, "label", "angular", 0.6, "looks like angular"),
        Finding(1, "near-duplicate", None, 0.98, "near"),
        Finding(2, "outlier", None, 0.3, "far"),
        Finding(3, "label", "angular", 0.8, "looks like angular"),
    ]
    audit.write_findings(tmp_path / "a.csv", data, findings, [["e", "", "round", "", "1.0000", "same content", "", ""]])
    with (tmp_path / "a.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [(line["path"], line["suggested_label"], line["confidence"]) for line in lines] == [
        ("e", "", "1.0000"),
        ("d", "angular", "0.8000"),
        ("b", "angular", "0.6000"),
        ("a", "", "0.9900"),
        ("c", "", "0.3000"),
    ]
    assert lines[2]["reason"] == "looks like angular; near"


def test_several_classes_are_audited(spoiled: TwoClasses) -> None:
    rng = np.random.default_rng(0)
    true = np.arange(600) % 3
    embedding = (rng.normal(size=(600, 32)) + 4 * np.eye(32)[true]).astype(np.float32)
    label = true.copy()
    label[:30] = (label[:30] + 1) % 3
    data = TwoClasses(embedding, label, true, label != true, np.full(600, -1), 1.0)
    findings = audit_rows(_labelled(data, ["a", "b", "c"]), ["a", "b", "c"], 0.999, task="multiclass")
    flagged = _rows_of(findings, "label")
    assert len(set(flagged) & set(range(30))) >= 28
    assert len(flagged) <= 40
    assert all(f.suggested == "abc"[true[f.row]] for f in findings if f.kind == "label" and f.row < 30)


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
    assert _relabelled(store, recipe, tmp_path, lines)["wrong.png"] == "angular"
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
        ([*_clusters(), _row("odd.png", "2", np.ones(8))], "odd.png: label '2' is not one of the head's class_names"),
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


TAGS = ["gore", "nude", "text"]


def _tagged(count: int = 600) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings whose first three dims say which tags apply, and those (n, 3) 0 or 1."""
    rng = np.random.default_rng(0)
    tags = (rng.random((count, 3)) < (0.2, 0.4, 0.5)).astype(np.int64)
    embedding = rng.normal(size=(count, 16))
    embedding[:, :3] += 6 * tags - 3
    return embedding.astype(np.float32), tags


def _set(tags: np.ndarray) -> str:
    return json.dumps([name for name, is_on in zip(TAGS, tags, strict=True) if is_on])


def test_wrong_labels_of_a_set_are_found_each_on_its_own() -> None:
    embedding, true = _tagged()
    tags = true.copy()
    tags[:20, 0] ^= 1
    tags[10:30, 2] ^= 1  # ten rows have two wrong labels
    names = [f"{row:064x}" for row in range(600)]
    data = Labelled(embedding, tags, [_set(row) for row in tags], names, names, names)
    findings = [f for f in audit_rows(data, TAGS, 0.999, task="multilabel") if f.kind == "label"]
    flagged = {finding.row for finding in findings}
    assert len(flagged & set(range(30))) >= 28, "recall"
    assert len(flagged) <= 36, "precision"
    right = [finding.suggested == _set(true[finding.row]) for finding in findings if finding.row < 30]
    assert np.mean(right) >= 0.9
    [one] = [finding for finding in findings if finding.row == 12]
    assert one.confidence > 0.9
    assert all(word in one.reason for word in ("gore (", "text (", "looks "))


def test_numbers_far_from_what_is_predicted_are_found() -> None:
    rng = np.random.default_rng(0)
    embedding = rng.normal(size=(600, 16)).astype(np.float32)
    true = 1400 + 30 * embedding[:, 0].astype(float) + 5 * rng.normal(size=600)
    given = true.copy()
    given[:20] += 60 * (-1) ** np.arange(20)
    names = [f"{row:064x}" for row in range(600)]
    data = Labelled(embedding, given, [repr(value) for value in given.tolist()], names, names, names)
    findings = [f for f in audit_rows(data, ["grade"], 0.999, task="regression") if f.kind == "label"]
    assert {finding.row for finding in findings} >= set(range(20)), "recall"
    assert len(findings) <= 30, "precision"
    for finding in findings[:20]:
        assert finding.suggested is not None
        assert abs(float(finding.suggested) - true[finding.row]) < 20
        assert len(finding.suggested) <= 6, "no more digits than mean something"
    assert "half of all labels are within" in findings[0].reason


def test_near_duplicates_disagree_where_numbers_are_far_apart() -> None:
    rng = np.random.default_rng(0)
    embedding = rng.normal(size=(300, 16)).astype(np.float32)
    embedding[1::2] = embedding[::2] + 0.01
    value = 3 + embedding[:, 0].astype(float) + 0.1 * rng.normal(size=300)
    value[5] += 2
    names = [f"{row:064x}" for row in range(300)]
    text = [repr(number) for number in value.tolist()]
    findings = audit_rows(Labelled(embedding, value, text, names, names, names), ["score"], 0.99, task="regression")
    near = {finding.row: finding.suggested for finding in findings if finding.kind == "near-duplicate"}
    assert near[5] == text[4]
    assert near[4] is None, "its own number is the likely one"
    assert len(near) <= 4


def _of_task(recipe: Path, **head: object) -> None:
    settings = yaml.safe_load(recipe.read_text())
    settings["heads"] = [{"name": "demo", "fit": {"near_duplicate_cosine": 0.999}, **head}]
    recipe.write_text(yaml.safe_dump(settings))


def test_accepted_label_sets_are_applied(store: DemoStore, recipe: Path, tmp_path: Path) -> None:
    _of_task(recipe, task="multilabel", class_names=TAGS)
    embedding, tags = _tagged(200)
    sets = [_set(row) for row in tags]
    sets[0] = _set(tags[0] ^ [1, 0, 0])
    plain = next(row for row in range(1, 200) if not tags[row].any())
    sets[plain] = '["text"]'
    store.append([_row(f"{n:03d}.png", text, embedding[n, :8]) for n, text in enumerate(sets)])
    status, lines = _audit(recipe, tmp_path)
    assert status == 0
    wrong = [line for line in lines if line["path"] in ("000.png", f"{plain:03d}.png")]
    assert {line["given_label"] for line in wrong} == {sets[0], '["text"]'}
    for line in wrong:
        line["accept"] = "x"
    other = next(line for line in lines if line not in wrong) if len(lines) > 2 else None
    if other is not None:
        other["label"] = '["text","gore"]'
    labels = _relabelled(store, recipe, tmp_path, lines)
    assert (labels["000.png"], labels[f"{plain:03d}.png"]) == (_set(tags[0]), "[]")
    assert other is None or labels[other["path"]] == '["gore", "text"]', "in the recipe's order"


def test_accepted_numbers_are_applied(store: DemoStore, recipe: Path, tmp_path: Path) -> None:
    _of_task(recipe, task="regression", class_names=["grade"])
    rng = np.random.default_rng(0)
    embedding = rng.normal(size=(200, 8)).astype(np.float32)
    value = 5 + embedding[:, 0].astype(float) + 0.1 * rng.normal(size=200)
    value[:2] += 3
    store.append([_row(f"{n:03d}.png", repr(float(number)), embedding[n]) for n, number in enumerate(value)])
    status, lines = _audit(recipe, tmp_path)
    assert status == 0
    by_path = {line["path"]: line for line in lines}
    by_path["000.png"]["accept"] = "x"
    by_path["001.png"]["label"] = "5.25"
    labels = _relabelled(store, recipe, tmp_path, lines)
    assert abs(float(labels["000.png"] or "nan") - (value[0] - 3)) < 0.5
    assert labels["001.png"] == "5.25"
    assert not {"000.png"} & {line["path"] for line in _audit(recipe, tmp_path)[1] if line["suggested_label"]}


def test_a_rare_label_is_left_out_and_named(store: DemoStore, recipe: Path, tmp_path: Path, capsys) -> None:
    _of_task(recipe, task="multilabel", class_names=[*TAGS, "rare"])
    embedding, tags = _tagged(100)
    rows = [_row(f"{n:03d}.png", _set(row), embedding[n, :8]) for n, row in enumerate(tags)]
    store.append([*rows, _row("rare.png", '["rare"]', embedding[0, :8] + 0.1)])
    assert _audit(recipe, tmp_path)[0] == 0
    assert "labels that are not audited, with fewer different images" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("head", "labels", "words"),
    [
        ({"task": "multilabel", "class_names": TAGS}, ['["gore"]', '["gone"]'], "label 'gone' is not one of ['gore'"),
        ({"task": "multilabel", "class_names": TAGS}, ['["gore"]', "[]"], "every label has fewer different images"),
        ({"task": "regression", "class_names": ["grade"]}, ["1.5", "good"], "label 'good' is no finite number"),
        ({"task": "regression", "class_names": ["grade"]}, ["1.5", "2.5"], "2 different labelled images"),
        ({"task": "regression", "class_names": ["grade"]}, ["1.5"] * 12, "all 12 labels are 1.5"),
    ],
)
def test_labels_that_cannot_be_audited_are_refused(store, recipe, tmp_path, capsys, head, labels, words) -> None:
    _of_task(recipe, **head)
    embedding = np.random.default_rng(0).normal(size=(len(labels), 8))
    store.append([_row(f"{n}.png", label, embedding[n]) for n, label in enumerate(labels)])
    assert _audit(recipe, tmp_path) == (1, [])
    assert words in capsys.readouterr().err


def test_pictures_of_one_group_do_not_vouch_for_one_anothers_labels() -> None:
    """All pictures of a person have the wrong label, and look a little like one another."""
    rng = np.random.default_rng(3)
    label = np.repeat([0, 1], 150)
    embedding = rng.normal(scale=0.3, size=(300, 16))
    embedding[:, 0] += 2.0 * (label - 0.5)
    of_person = set(range(20))
    embedding[:20, 1] += 1.5
    label[:20] = 1
    names = [str(row) for row in range(300)]
    text = [CLASSES[each] for each in label]
    data = Labelled(embedding.astype(np.float32), label, text, names, names, names)
    groups: list[tuple[str, ...]] = [("person",) if row in of_person else () for row in range(300)]
    alone = _rows_of(audit_rows(data, CLASSES, None), "label")
    together = _rows_of(audit_rows(replace(data, together=groups), CLASSES, None), "label")
    assert len(of_person.intersection(alone)) < 5
    assert len(of_person.intersection(together)) > 10
