"""Finds labelled images where they lie: a folder per class, a table of paths and labels, or shards.

photos/safe/…, photos/nsfw/…            folders: one subfolder per class
labels.csv (.json, .jsonl, .parquet)    table: a row per image, see training.tables
shards/, 'shards/*.tar', one.tar        shards: WebDataset tars, see training.shards
"""

from __future__ import annotations

import glob
from pathlib import Path
from typing import Literal

from clipsieve.paths import text_from_path
from clipsieve.table_batches import SUFFIXES
from recipes.schema import Head
from training.errors import StepError
from training.sample import DataSet, Sample
from training.shards import samples_in_shards
from training.tables import Columns, samples_in_table

Format = Literal["folders", "table", "shards"]

_EMBEDDING_FILES = ("img_emb", "positive.npy", "negative.npy", "x.npy")


def samples_in(data: str, head: Head, columns: Columns, form: Format | None = None) -> DataSet:
    """Every labelled image of a data set, and what of it is none.

    Args:
        data: a folder, a table, a shard or a pattern of shards.
        head: whose task and class_names say what a label may be.
        columns: of a table; `columns.label` is also the label's name in a shard's json.
        form: how the data lies, by default as it looks.

    Raises:
        StepError: there is no such data, or it is not as its format should be.
    """
    form = form or detected_format(data)
    if form == "table":
        return DataSet(samples_in_table(Path(data), head, columns), _identity("table", data))
    if form == "shards":
        return DataSet(samples_in_shards(_shards(data), head, columns.label), _identity("shards", data))
    if head.task in ("multilabel", "regression"):
        raise StepError(f"{data}: subfolders cannot say a {head.task} head's labels; give a table of paths and labels")
    return samples_in_class_folders(Path(data), head.class_names)


def detected_format(data: str) -> Format:
    """How the data lies.

    Raises:
        StepError: it holds embeddings and no images, is not local, or is nothing that can be read.
    """
    path = Path(data)
    if "://" in data or data.startswith("pipe:"):
        raise StepError(f"{data}: only local files are read; fetch them first")
    if path.is_dir():
        found = [name for name in _EMBEDDING_FILES if (path / name).exists()]
        if found:
            raise StepError(f"{data}: holds embeddings ({', '.join(found)}); run python -m training.ingest on it")
        return "shards" if any(path.glob("*.tar")) else "folders"
    if path.suffix == ".tar" or (glob.has_magic(data) and not path.exists()):
        return "shards"
    if path.suffix.lower() in SUFFIXES:
        return "table"
    if path.exists():
        raise StepError(f"{data}: neither a folder, a shard (.tar) nor a table ({', '.join(SUFFIXES)})")
    raise StepError(f"{data}: no such folder; --data is a folder with one subfolder per class, a table or shards")


def samples_in_class_folders(folder: Path, class_names: list[str]) -> DataSet:
    """Every file below `folder`/<class name>/, sorted by key; names that begin with a dot are skipped.

    Raises:
        StepError: the subfolders are not exactly the classes, or hold no file.
    """
    if not folder.is_dir():
        raise StepError(f"{folder}: no such folder; --data is a folder with one subfolder per class")
    found = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if found != sorted(class_names):
        raise StepError(
            f"{folder}: its subfolders must be the head's class_names.\n"
            f"  found:    {', '.join(found) or 'none'}\n"
            f"  expected: {', '.join(sorted(class_names))}\n"
            "Rename the subfolders, or the class_names in the recipe."
        )
    samples = [_sample(folder, path, name) for name in class_names for path in _files_below(folder / name)]
    if not samples:
        raise StepError(f"{folder}: no files in {', '.join(class_names)}; put images of each class there")
    return DataSet(sorted(samples, key=lambda sample: sample.key), _identity("folders", str(folder)))


def _identity(form: Format, data: str) -> str:
    return f"{form} {text_from_path(str(Path(data).resolve()))}"


def _shards(data: str) -> list[Path]:
    if Path(data).is_file():
        return [Path(data)]
    pattern = f"{glob.escape(data)}/*.tar" if Path(data).is_dir() else data
    paths = [Path(name) for name in sorted(glob.glob(pattern, recursive=True))]
    if not paths:
        raise StepError(f"{data}: no such shards; --data is a .tar, a folder of them or a pattern as 'shards/*.tar'")
    return paths


def _files_below(folder: Path) -> list[Path]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return [path for path in paths if not any(part.startswith(".") for part in path.relative_to(folder).parts)]


def _sample(folder: Path, path: Path, label: str) -> Sample:
    return Sample(key=path.relative_to(folder).as_posix(), path=path.resolve(), label=label)
