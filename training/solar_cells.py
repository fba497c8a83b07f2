"""Lays out photographs of solar cells, sound and defective, so that a trained encoder shows something of the world.

    make .solar/.installed
    python -m training.solar_cells artifacts/solar-vit-s-14/images                # 600 to train on, 150 held out
    python -m training.solar_cells /tmp/cells --count 1800 --held-out 400         # nearly all of them

The package elpv-dataset 1.0.0.post1 carries 2,624 pictures of 300 by 300 pixels, cut out of electroluminescence
photographs of 44 solar modules. Experts said how likely each cell is to be defective: those that they were sure of are
taken, 2,223. By Buerhop-Lutz, Deitsch and others (EU PVSEC 2018, Solar Energy 185); CC BY-NC-SA 4.0, which forbids
commercial use of the pictures.

Writes train.csv (image_path, label, run) and held_out/{functional,defective}/. The package does not say which module a
cell is of, but its numbers follow the modules: RUN of them in a row are held out, or not, together. Among cells drawn
singly a head finds others of the modules that it was trained on, and its AUROC is 0.05 too good.
"""

from __future__ import annotations

import argparse
import csv
import io
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.manifest import write_atomically
from common.paths import ROOT
from recipes.errors import ExpectedError, run_step
from training.errors import INTERRUPTED

FOLDER = ROOT / ".solar" / "elpv_dataset" / "data"
CLASS_NAMES = ("functional", "defective")
RUN = 60
"""Cells in a row that share a side of every split, about those of a module."""
_SEED = 0


class PicturesMissing(ExpectedError):
    """The package that carries the pictures is not installed."""


@dataclass(frozen=True)
class Cell:
    """A picture, its class and the run of pictures that it is of."""

    path: Path
    label: str
    run: int


def cells_in(folder: Path | None = None) -> list[Cell]:
    """Cells that experts were sure of, in the order of their numbers.

    Raises:
        PicturesMissing: with how to install them.
    """
    folder = folder or FOLDER
    table = folder / "labels.csv"
    if not table.is_file():
        raise PicturesMissing(f"{table}: not found; install the pictures with: make .solar/.installed")
    cells = []
    for number, line in enumerate(table.read_text(encoding="utf-8").splitlines()):
        name, probability, _ = line.split()
        if float(probability) in (0, 1):
            cells.append(Cell(folder / name, CLASS_NAMES[float(probability) == 1], number // RUN))
    return cells


def parted(cells: list[Cell], count: int, held_out: int) -> tuple[list[Cell], list[Cell]]:
    """Cells to train on and cells to hold out, drawn from runs of their own; the same every time."""
    rng = np.random.default_rng(_SEED)
    runs = rng.permutation(cells[-1].run + 1)
    held_runs = set(runs[: max(1, round(len(runs) * held_out / (count + held_out)))].tolist())
    sides = [cell for cell in cells if cell.run not in held_runs], [cell for cell in cells if cell.run in held_runs]
    training, held = (
        [side[at] for at in sorted(rng.permutation(len(side))[:number])]
        for side, number in zip(sides, (count, held_out), strict=True)
    )
    return training, held


def lay_out(folder: Path, training: list[Cell], held_out: list[Cell]) -> None:
    """Write the table and copy what is held out; what is there already stays."""
    for cell in held_out:
        target = folder / "held_out" / cell.label / cell.path.name
        if not target.is_file():
            write_atomically(target, cell.path.read_bytes())
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerows([("image_path", "label", "run"), *((cell.path, cell.label, cell.run) for cell in training)])
    write_atomically(folder / "train.csv", text.getvalue().encode())


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m training.solar_cells", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, metavar="OUT_FOLDER", help="made if missing")
    parser.add_argument("--count", type=int, default=600, help="training pictures (default %(default)s)")
    parser.add_argument("--held-out", type=int, default=150, help="held-out pictures (default %(default)s)")
    arguments = parser.parse_args(argv)
    lay_out(arguments.folder, *parted(cells_in(), arguments.count, arguments.held_out))
    print(arguments.folder)


if __name__ == "__main__":
    sys.exit(run_step("training.solar_cells", main, INTERRUPTED))
