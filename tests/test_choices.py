"""Choices between pictures: as read, as kept in the store, and as scores."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from tiny_encoder import write_tiny_encoder

from common import paths
from common.manifest import EncoderFingerprint
from recipes.errors import run_step
from recipes.head_section import Head
from recipes.schema import load_recipe
from training import bradley_terry, embed
from training.bradley_terry import choice_texts, contradictions, groups_of
from training.choices import read_choices
from training.datasets import samples_in
from training.errors import StepError
from training.labelled import labelled_rows
from training.sources import HeadData
from training.store import store_folder
from training.store_view import Embeddings, read_embeddings
from training.tables import Columns

RANKING = Head(name="taste", task="ranking", class_names=["taste"])


def _write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def _scores(pairs: list[tuple[int, int]], count: int) -> np.ndarray:
    return bradley_terry.bradley_terry(np.array(pairs), count)


def test_the_better_of_two_pictures_has_the_higher_score() -> None:
    scores = _scores([(0, 1), (1, 2), (0, 2)], 3)
    assert scores[0] > scores[1] > scores[2]
    assert scores.sum() == pytest.approx(0, abs=1e-4)


def test_a_picture_that_never_lost_has_a_finite_score_which_further_wins_raise() -> None:
    once, often = (_scores([(0, 1)] * wins, 2)[0] for wins in (1, 50))
    assert 0 < once < often < 5


def test_scores_are_those_of_a_logistic_regression_with_the_same_penalty() -> None:
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(0)
    pairs = np.array([rng.choice(8, 2, replace=False) for _ in range(60)])
    contests = np.zeros((60, 8))
    contests[np.arange(60), pairs[:, 0]], contests[np.arange(60), pairs[:, 1]] = 1, -1
    model = LogisticRegression(C=bradley_terry.PRIOR_STD**2, fit_intercept=False, tol=1e-8)
    model.fit(np.concatenate([contests, -contests]), [1] * 60 + [0] * 60, sample_weight=np.full(120, 0.5))
    assert bradley_terry.bradley_terry(pairs, 8) == pytest.approx(model.coef_[0], abs=1e-3)


def test_more_choices_come_nearer_to_the_true_order() -> None:
    rng = np.random.default_rng(0)
    truth = rng.normal(size=400) * 2
    agreement = []
    for each in (1, 10):
        pairs = np.stack([np.repeat(np.arange(400), each), rng.integers(0, 400, 400 * each)], axis=1)
        pairs = pairs[pairs[:, 0] != pairs[:, 1]]
        wins = rng.random(len(pairs)) < 1 / (1 + np.exp(truth[pairs[:, 1]] - truth[pairs[:, 0]]))
        pairs[~wins] = pairs[~wins][:, ::-1]
        agreement.append(np.corrcoef(bradley_terry.bradley_terry(pairs, 400), truth)[0, 1])
    assert 0.5 < agreement[0] < agreement[1]
    assert agreement[1] > 0.9


def test_groups_that_no_choice_joins_are_named() -> None:
    pairs = np.array([(0, 1), (1, 2), (4, 5)])
    assert groups_of(pairs, 6).tolist() == [0, 0, 0, 2, 1, 1]
    texts = choice_texts(pairs, ["a", "b", "c", "d", "e", "f"])
    assert texts[0] == "3 between 5 pictures"
    assert "2 groups" in texts[1]
    assert "e (2)" in texts[1]


def test_contradictions_are_counted() -> None:
    pairs = np.array([(0, 1), (1, 0), (0, 1), (2, 1)])
    assert contradictions(pairs) == 1
    assert "1 pairs were decided both ways" in " ".join(choice_texts(pairs, ["a", "b", "c"]))
    assert _scores([(0, 1), (1, 0)], 2) == pytest.approx([0, 0], abs=1e-6)


def test_a_table_of_choices_is_read(tmp_path: Path) -> None:
    table = _write(tmp_path / "choices.csv", "when,Winner,loser\n1,a.jpg,b.jpg\n2,c.jpg,a.jpg\n")
    choices = read_choices(table)
    assert choices.paths == ["a.jpg", "b.jpg", "c.jpg"]
    assert choices.pairs.tolist() == [[0, 1], [2, 0]]


def test_rows_that_are_no_choice_are_failures_with_their_row(tmp_path: Path) -> None:
    table = _write(tmp_path / "choices.csv", "winner,loser\na.jpg,a.jpg\na.jpg,\na.jpg,b.jpg\nhttp://x/a.jpg,b.jpg\n")
    data = samples_in(str(table), RANKING, Columns())
    assert [failure.code for failure in data.failures] == ["SAME_PICTURE", "NO_CHOICE", "NOT_LOCAL"]
    assert "row 2" in data.failures[0].message
    assert [sample.key for sample in data.samples] == ["a.jpg", "b.jpg"]
    assert data.choices == [tuple(sample.stored_path for sample in data.samples)]


def test_a_table_without_a_choice_is_refused(tmp_path: Path) -> None:
    table = _write(tmp_path / "choices.csv", "winner,loser\na.jpg,a.jpg\n")
    with pytest.raises(StepError, match=r"no row is a choice.*between a picture and itself"):
        read_choices(table)


def test_choices_are_refused_for_a_head_of_classes(tmp_path: Path) -> None:
    table = _write(tmp_path / "choices.csv", "winner,loser\na.jpg,b.jpg\n")
    with pytest.raises(StepError, match="regression or ranking head, nsfw is binary"):
        samples_in(str(table), Head(name="nsfw", class_names=["safe", "nsfw"]), Columns())


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe whose head ranks, with a tiny encoder."""
    monkeypatch.setattr(paths, "ARTIFACTS", tmp_path / "artifacts")
    demo = load_recipe("demo")
    settings = demo.model_dump(mode="json", exclude_unset=True) | {
        "name": "taste",
        "heads": [{"name": "taste", "task": "ranking", "class_names": ["taste"]}],
    }
    file = tmp_path / "taste.yaml"
    file.write_text(yaml.safe_dump(settings), encoding="utf-8")
    write_tiny_encoder(paths.encoder_folder(load_recipe(file)))
    for number in range(6):
        Image.new("RGB", (20, 20), (number * 40, 100, 50)).save(tmp_path / f"{number}.png")
    return file


def _embed(recipe: Path, table: Path) -> int:
    return run_step("training.embed", lambda: embed.main(["--recipe", str(recipe), "--data", str(table)]))


def _read(recipe: Path) -> Embeddings:
    loaded = load_recipe(recipe)
    data = HeadData(store_folder(loaded), "taste", "taste")
    return read_embeddings(data, _fingerprint(recipe))


def _fingerprint(recipe: Path) -> EncoderFingerprint:
    from common.manifest import read_encoder

    return read_encoder(paths.encoder_folder(load_recipe(recipe))).fingerprint()


def test_the_store_keeps_choices_and_their_scores_are_the_labels(recipe: Path, tmp_path: Path, capsys) -> None:
    rows = "".join(f"{high}.png,{low}.png\n" for high in range(6) for low in range(high))
    assert _embed(recipe, _write(tmp_path / "choices.csv", f"winner,loser\n{rows}5.png,gone.png\n")) == 0
    embeddings = _read(recipe)
    data = labelled_rows(embeddings, ["taste"], "ranking")
    by_name = sorted(zip(embeddings.key, data.label.tolist(), strict=True))
    assert [score for _, score in by_name] == sorted(data.label.tolist())
    assert len(data.choices) == 15
    names = [embeddings.key[row] for row in data.row]
    assert all(names[better] > names[other] for better, other in data.choices.tolist())
    shown = capsys.readouterr().err
    assert "15 between 6 pictures" in shown
    assert "1 name a picture that has no embedding" in " ".join(shown.split())


def test_two_tables_of_choices_count_together(recipe: Path, tmp_path: Path) -> None:
    _embed(recipe, _write(tmp_path / "one.csv", "winner,loser\n0.png,1.png\n"))
    _embed(recipe, _write(tmp_path / "two.csv", "winner,loser\n1.png,2.png\n"))
    embeddings = _read(recipe)
    scores = {key: float(str(label)) for key, label in zip(embeddings.key, embeddings.label, strict=True)}
    assert scores["0.png"] > scores["1.png"] > scores["2.png"]


def test_grades_are_the_labels_beside_choices(recipe: Path, tmp_path: Path) -> None:
    _embed(recipe, _write(tmp_path / "choices.csv", "winner,loser\n0.png,1.png\n1.png,2.png\n"))
    _embed(recipe, _write(tmp_path / "grades.csv", "path,score\n0.png,3\n1.png,7\n"))
    embeddings = _read(recipe)
    assert dict(zip(embeddings.key, embeddings.label, strict=True)) == {"0.png": "3.0", "1.png": "7.0", "2.png": None}
    assert len(labelled_rows(embeddings, ["taste"], "ranking").choices) == 1


def test_two_files_of_one_picture_are_no_choice(recipe: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "copy.png").write_bytes((tmp_path / "0.png").read_bytes())
    _embed(recipe, _write(tmp_path / "choices.csv", "winner,loser\n0.png,copy.png\n0.png,1.png\n"))
    assert len(_read(recipe).pictures.choices) == 1
    assert "two files of the same picture" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("grade", ["inf", "nan", "-Infinity", "7,5"])
def test_a_grade_that_is_no_finite_number_is_refused_with_its_row(recipe: Path, tmp_path: Path, capsys, grade) -> None:
    assert _embed(recipe, _write(tmp_path / "grades.csv", "path,score\n0.png,3\n1.png,4\n")) == 0
    capsys.readouterr()
    assert _embed(recipe, _write(tmp_path / "grades.csv", f'path,score\n0.png,3\n1.png,"{grade}"\n')) == 1
    assert f"grades.csv row 3 (1.png): label '{grade}' is no finite number" in " ".join(capsys.readouterr().err.split())
    assert sorted(label or "" for label in _read(recipe).label) == ["3.0", "4.0"]


def test_missing_files_and_pictures_without_a_grade_are_counted(recipe: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "scores.json").write_text('{"0.png": 1215.9, "1.png": NaN, "gone.png": 1300}', encoding="utf-8")
    assert _embed(recipe, tmp_path / "scores.json") == 0
    shown = " ".join(capsys.readouterr().err.split())
    assert "1 UNREADABLE" in shown
    assert "1 pictures without a label" in shown


def test_grades_that_are_all_equal_teach_nothing(recipe: Path, tmp_path: Path) -> None:
    _embed(recipe, _write(tmp_path / "grades.csv", "path,score\n0.png,3\n1.png,3\n"))
    with pytest.raises(StepError, match="all of one value"):
        labelled_rows(_read(recipe), ["taste"], "ranking")


def test_the_step_writes_scores_that_are_a_table_of_labels(tmp_path: Path, capsys) -> None:
    table = _write(tmp_path / "choices.csv", "winner,loser\na.jpg,b.jpg\nb.jpg,c.jpg\nc.jpg,c.jpg\n")
    out = tmp_path / "scores.csv"
    assert run_step("training.bradley_terry", lambda: bradley_terry.main([str(table), "--out", str(out)])) == 0
    printed, shown = capsys.readouterr()
    assert printed == f"{out}\n"
    assert "SAME_PICTURE" in shown
    with out.open(newline="", encoding="utf-8") as file:
        assert [row["path"] for row in csv.DictReader(file)] == ["a.jpg", "b.jpg", "c.jpg"]
    samples = samples_in(str(out), RANKING, Columns()).samples
    assert [sample.key for sample in samples] == ["a.jpg", "b.jpg", "c.jpg"]
