"""Labels for pictures that the store does not know: they are embedded, and stay."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Sequence
from pathlib import Path

import pytest
from stores import head_data
from tiny_encoder import write_tiny_encoder

from common import paths
from common.manifest import read_encoder
from recipes.errors import run_step
from recipes.schema import load_recipe
from tests.pictures import jpeg
from training import embed, relabel
from training.sources import read_sources
from training.store import store_folder
from training.store_view import read_embeddings


@pytest.fixture(autouse=True)
def encoder_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny encoder where the demo recipe's would lie."""
    monkeypatch.setattr(paths, "ARTIFACTS", tmp_path / "artifacts")
    folder = paths.encoder_folder(load_recipe("demo"))
    write_tiny_encoder(folder)
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Four labelled pictures that are in the store, and beside them three new ones."""
    for number in range(4):
        _write(tmp_path / "photos" / ["angular", "round"][number % 2] / f"{number}.jpg", number)
    for number in range(4, 7):
        _write(tmp_path / "new" / f"{number}.jpg", number)
    _embed(tmp_path / "photos")
    return tmp_path / "photos"


def _write(file: Path, seed: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(jpeg(seed=seed))


def _embed(data: Path) -> None:
    command = ["--recipe", "demo", "--data", str(data)]
    assert run_step("training.embed", lambda: embed.main(command)) == 0


def _relabel(folder: Path, rows: Sequence[tuple[object, ...]], *arguments: str) -> int:
    """Give the labels of a table that lies where a browser saves files."""
    file = folder / "Downloads" / "marks.csv"
    file.parent.mkdir(exist_ok=True)
    with file.open("w", newline="") as text:
        csv.writer(text).writerows([("path", "sha256", "label") if len(rows[0]) == 3 else ("path", "label"), *rows])
    command = [str(file), *(arguments or ("--recipe", "demo"))]
    return run_step("training.relabel", lambda: relabel.main(command))


def _labels(encoder_folder: Path) -> dict[str, str | None]:
    """Label of each picture by its file's name; each has an embedding."""
    rows = read_embeddings(head_data(_store()), read_encoder(encoder_folder).fingerprint())
    assert len(rows.embedding) == len(rows.pictures)
    return {Path(path).name: label for path, label in zip(rows.path, rows.label, strict=True)}


def _store() -> Path:
    return store_folder(load_recipe("demo"))


KNOWN = {"0.jpg": "angular", "1.jpg": "round", "2.jpg": "angular", "3.jpg": "round"}


def test_one_table_changes_known_pictures_and_embeds_new_ones(photos, encoder_folder, tmp_path, capsys) -> None:
    rows = [(photos / "angular" / "0.jpg", "round"), (photos / "round" / "1.jpg", "round")]
    rows += [(tmp_path / "new" / "4.jpg", "angular"), (tmp_path / "new" / "5.jpg", "round")]
    capsys.readouterr()
    assert _relabel(tmp_path, rows) == 0
    out, err = capsys.readouterr()
    assert out == "3\n"
    assert "2 new pictures have their label now, 2 of them embedded" in err
    assert "1 of 2 known pictures have another label now" in err
    assert _labels(encoder_folder) == KNOWN | {"0.jpg": "round", "4.jpg": "angular", "5.jpg": "round"}


def test_the_same_table_again_changes_nothing(photos, encoder_folder, tmp_path, capsys) -> None:
    rows = [(photos / "angular" / "0.jpg", "round"), (tmp_path / "new" / "4.jpg", "angular")]
    assert _relabel(tmp_path, rows) == 0
    capsys.readouterr()
    assert _relabel(tmp_path, rows) == 0
    out, err = capsys.readouterr()
    assert out == "0\n"
    assert "0 of 2 known pictures have another label now" in err
    assert "new pictures" not in err


def test_labels_given_by_hand_outlast_their_files_and_other_data_sets(photos, encoder_folder, tmp_path) -> None:
    """A second table adds to the first; embedding a data set anew takes nothing away, nor do files that are gone."""
    assert _relabel(tmp_path, [(tmp_path / "new" / "4.jpg", "angular")]) == 0
    assert _relabel(tmp_path, [(tmp_path / "new" / "5.jpg", "round"), (tmp_path / "new" / "4.jpg", "round")]) == 0
    (tmp_path / "new" / "4.jpg").unlink()
    _embed(photos)
    assert _labels(encoder_folder) == KNOWN | {"4.jpg": "round", "5.jpg": "round"}
    kinds = sorted(source.identity.split()[0] for source in read_sources(head_data(_store())))
    assert kinds == ["folders", "marks"]


def test_a_data_set_that_is_not_there_is_left_as_it_is(photos, encoder_folder, tmp_path) -> None:
    """Setting it aside is for training.embed."""
    photos.rename(tmp_path / "elsewhere")
    assert _relabel(tmp_path, [(tmp_path / "new" / "4.jpg", "angular")]) == 0
    assert _labels(encoder_folder) == KNOWN | {"4.jpg": "angular"}


def test_a_moved_picture_is_known_by_its_content(photos, encoder_folder, tmp_path, capsys) -> None:
    (photos / "angular" / "0.jpg").rename(tmp_path / "moved.jpg")
    content = hashlib.sha256((tmp_path / "moved.jpg").read_bytes()).hexdigest()
    for row in [(tmp_path / "moved.jpg", "round"), (tmp_path / "gone.jpg", content, "angular")]:
        capsys.readouterr()
        assert _relabel(tmp_path, [row]) == 0
        assert capsys.readouterr().out == "1\n"
        assert _labels(encoder_folder) == KNOWN | {"0.jpg": row[-1]}


def test_the_first_labels_of_all_may_be_marks(encoder_folder, tmp_path) -> None:
    for number in range(2):
        _write(tmp_path / "new" / f"{number}.jpg", number)
    assert _relabel(tmp_path, [(tmp_path / "new" / f"{n}.jpg", ["angular", "round"][n]) for n in range(2)]) == 0
    assert _labels(encoder_folder) == {"0.jpg": "angular", "1.jpg": "round"}


def test_two_copies_of_a_new_picture_are_one(photos, encoder_folder, tmp_path, capsys) -> None:
    _write(tmp_path / "new" / "copy.jpg", 4)
    assert _relabel(tmp_path, [(tmp_path / "new" / name, "round") for name in ("4.jpg", "copy.jpg")]) == 0
    assert "1 new pictures have their label now" in capsys.readouterr().err
    assert _relabel(tmp_path, [(tmp_path / "new" / "5.jpg", "round"), (tmp_path / "new" / "4.jpg", "angular")]) == 0
    assert _labels(encoder_folder) == KNOWN | {"4.jpg": "angular", "5.jpg": "round"}


def test_what_cannot_be_embedded_is_listed_and_the_rest_is_done(photos, encoder_folder, tmp_path, capsys) -> None:
    (tmp_path / "new" / "bad.jpg").write_text("no picture")
    rows = [(photos / "angular" / "0.jpg", "round")]
    rows += [(tmp_path / "new" / name, "round") for name in ("4.jpg", "bad.jpg")]
    assert _relabel(tmp_path, rows) == 0
    assert "1 new pictures cannot be embedded, the first: " in capsys.readouterr().err
    assert _labels(encoder_folder) == KNOWN | {"0.jpg": "round", "4.jpg": "round"}
    errors = (_store().parent / f"{_store().name}.errors.csv").read_text()
    assert "bad.jpg,NOT_AN_IMAGE" in errors
    assert _relabel(tmp_path, [rows[-1]]) == 1
    assert "none of its pictures can be embedded: nothing was changed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (("new/gone.jpg", "round"), "gone.jpg' is not in the store, and there is no such file"),
        (("new/4.jpg", "0" * 64, "round"), "has another content than when it was marked; make the report again"),
        (("new/4.jpg", "square"), "label 'square' is neither"),
        (("new", "round"), "is not in the store, and there is no such file"),
    ],
)
def test_a_row_that_cannot_be_leaves_all_as_it_was(photos, encoder_folder, tmp_path, capsys, row, words) -> None:
    first = (tmp_path / "new" / "5.jpg", *([""] if len(row) == 3 else []), "round")
    assert _relabel(tmp_path, [first, (tmp_path / row[0], *row[1:])]) == 1
    err = capsys.readouterr().err
    assert words in err
    assert "marks.csv row 3" in err
    assert "nothing was changed" in err
    assert _labels(encoder_folder) == KNOWN


def test_without_a_recipe_new_pictures_are_refused(photos, encoder_folder, tmp_path, capsys) -> None:
    row = (tmp_path / "new" / "4.jpg", "round")
    assert _relabel(tmp_path, [row], "--store", str(_store())) == 1
    assert "is not in the store; name the --recipe, whose encoder embeds new pictures" in capsys.readouterr().err
