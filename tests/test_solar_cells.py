"""The photographs of solar cells: laid out by whole runs, the same every time, with the classes of the recipe."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from recipes.schema import load_recipe
from training.solar_cells import CLASS_NAMES, RUN, PicturesMissing, cells_in, main, parted

COUNT = 10 * RUN + 5
PROBABILITIES = ("1.0", "0.0", "0.0", "0.3333333333333333", "0.0")


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A folder as the package has it: of five cells one is defective and one may be."""
    folder = tmp_path / "data"
    (folder / "images").mkdir(parents=True)
    lines = []
    for number in range(1, COUNT + 1):
        name = f"images/cell{number:04}.png"
        (folder / name).write_bytes(bytes([number % 256]))
        lines.append(f"{name}  {PROBABILITIES[number % 5]}   mono")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder


def test_classes_are_the_recipes():
    assert list(CLASS_NAMES) == load_recipe("solar-vit-s-14").heads[0].class_names


def test_cells_that_experts_were_sure_of_are_taken(package):
    cells = cells_in(package)
    assert [cell.path.stem for cell in cells[:5]] == ["cell0001", "cell0002", "cell0004", "cell0005", "cell0006"]
    assert [cell.label for cell in cells[:5]] == ["functional"] * 3 + ["defective", "functional"]
    sure = RUN * 4 // 5
    assert [cells[at].run for at in (0, sure - 1, sure, len(cells) - 1)] == [0, 0, 1, 10]
    assert len(cells) == 10 * sure + 4


@pytest.mark.parametrize(("count", "held_out"), [(60, 30), (1000, 40), (5, 5)])
def test_no_run_is_on_both_sides(package, count, held_out):
    training, held = parted(cells_in(package), count, held_out)
    assert {cell.run for cell in training}.isdisjoint(cell.run for cell in held)
    assert len(held) == held_out
    assert 0 < len(training) <= count
    assert len({cell.path for cell in training + held}) == len(training) + len(held)
    assert (training, held) == parted(cells_in(package), count, held_out)


def test_it_writes_a_table_and_folders(package, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("training.solar_cells.FOLDER", package)
    out = tmp_path / "images"
    for _ in range(2):  # the second finds everything there
        main([str(out), "--count", "50", "--held-out", "25"])
    assert capsys.readouterr().out.split() == [str(out)] * 2
    with open(out / "train.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 50
    assert {row["label"] for row in rows} == set(CLASS_NAMES)
    assert all(Path(row["image_path"]).is_file() for row in rows)
    held = list((out / "held_out").glob("*/*.png"))
    assert len(held) == 25
    assert {path.parent.name for path in held} == set(CLASS_NAMES)
    assert all(path.read_bytes() == (package / "images" / path.name).read_bytes() for path in held)


def test_a_package_that_is_not_there_is_named_with_its_remedy(tmp_path):
    with pytest.raises(PicturesMissing, match=r"labels\.csv: not found; install the pictures with: make \.solar/"):
        cells_in(tmp_path)
