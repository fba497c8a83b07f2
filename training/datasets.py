"""Finds labelled images where they lie: a folder per class, a table of paths and labels, or shards.

photos/safe/…, photos/nsfw/…            folders: one subfolder per class, or train/, val/ and test/ with those
labels.csv (.json, .jsonl, .parquet)    table: a row per image, see training.tables
choices.csv                             table: of pairs, which of two pictures is better, see training.choices
photos/metadata.csv (.jsonl, .parquet)  table: beside its images, as the Hugging Face hub has them; or per split
data/train-00000-of-00002.parquet, …    table: the hub's Parquet files, with the pictures inside
shards/, 'shards/*.tar', one.tar        shards: WebDataset tars, see training.shards
"""

from __future__ import annotations

import glob
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from clipsieve.paths import text_from_path
from clipsieve.table_batches import SUFFIXES
from recipes.head_section import Head
from training.choices import is_choices, samples_in_choices
from training.class_folders import has_class_folders, samples_in_class_folders, subfolder_names
from training.errors import StepError
from training.files_below import files_below
from training.labels import check_classes_listed
from training.sample import DataSet, split_called
from training.shards import samples_in_shards
from training.tables import Columns, has_labels, read_table, samples_in_table

Format = Literal["folders", "table", "shards"]

_EMBEDDING_FILES = ("img_emb", "positive.npy", "negative.npy", "x.npy", "x_*.npy", "*.npz")
_METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")


def samples_in(
    data: str, head: Head, columns: Columns, form: Format | None = None, may_be_empty: bool = False
) -> DataSet:
    """Every labelled image of a data set, and what of it is none.

    Args:
        data: a folder, a table, a shard or a pattern of shards.
        head: whose task and class_names say what a label may be.
        columns: of a table; `columns.label` is also the label's name in a shard's json.
        form: how the data lies, by default as it looks.
        may_be_empty: a table may have no rows, as answers that were all taken back.

    Raises:
        StepError: there is no such data, or it is not as its format should be.
        LabelError: the recipe lists no classes of the head.
    """
    check_classes_listed(head)
    form = form or detected_format(data, head.class_names)
    if form == "shards":
        return samples_in_shards(_shards(data), head, columns.label, identity=_identity("shards", data))
    if form == "table":
        files = _tables(Path(data))
        if may_be_empty and not any(read_table(file).rows for file, _ in files):
            return DataSet([], _identity("table", data), notes=["it has no rows: what it said before counts no more"])
        unlabelled = [file for file, _ in files if file.name in _METADATA and not has_labels(file, head, columns)]
        if not unlabelled or not _has_classes(Path(data), head.class_names):
            return _samples_in_tables(data, files, head, columns)
    if head.task == "multilabel" or head.is_graded:
        raise StepError(f"{data}: subfolders cannot say a {head.task} head's labels; give a table of paths and labels")
    data_set = samples_in_class_folders(Path(data), head.class_names)
    if form == "table":
        data_set.notes.append(f"labels: from the folders; {_METADATA[0]} has no column {columns.label!r}")
    return data_set


def detected_format(data: str, class_names: Sequence[str] = ()) -> Format:
    """Return the layout of the data.

    Args:
        data: as for `samples_in`.
        class_names: a folder that has a subfolder for each is one of folders, whatever lies beside them.

    Raises:
        StepError: it holds embeddings and no images, is not local, or is nothing that can be read.
    """
    path = Path(data)
    if "://" in data or data.startswith("pipe:"):
        raise StepError(f"{data}: only local files are read; fetch them first")
    if path.is_dir():
        return _format_of_folder(path, class_names)
    if path.suffix == ".tar":
        return "shards"
    if glob.has_magic(data) and not path.exists():
        return "table" if path.suffix.lower() in SUFFIXES else "shards"
    if path.suffix.lower() in SUFFIXES:
        return "table"
    if path.suffix.lower() in (".npy", ".npz") and path.exists():
        raise StepError(f"{data}: holds embeddings; run python -m training.ingest on it")
    if path.exists():
        raise StepError(f"{data}: neither a folder, a shard (.tar) nor a table ({', '.join(SUFFIXES)})")
    raise StepError(f"{data}: no such folder; --data is a folder with one subfolder per class, a table or shards")


def _format_of_folder(folder: Path, class_names: Sequence[str]) -> Format:
    names = [name for name in _EMBEDDING_FILES if any(folder.glob(name))]
    if names:
        raise StepError(f"{folder}: holds embeddings ({', '.join(names)}); run python -m training.ingest on it")
    if _metadata_files(folder):
        return "table"
    if class_names and _has_classes(folder, class_names):
        return "folders"
    if any(folder.glob("*.tar")):
        return "shards"
    return "table" if _parquet_files(folder) else "folders"


def _has_classes(folder: Path, class_names: Sequence[str]) -> bool:
    """Return True if the subfolders, or those of a folder per split, are the classes."""
    names = subfolder_names(folder)
    if names and all(map(split_called, names)) and not has_class_folders(names, list(class_names)):
        names = [name for split in names for name in subfolder_names(folder / split)]
    return has_class_folders(names, list(class_names))


def _tables(path: Path) -> list[tuple[Path, str | None]]:
    """The tables of a data set, each with the split that its folder or its name says."""
    if path.is_dir():
        files = _metadata_files(path) or _parquet_files(path)
        return [(file, _split_in_name(file, path)) for file in files]
    if path.exists() or not glob.has_magic(str(path)):
        return [(path, None)]
    names = sorted(glob.glob(str(path), recursive=True))
    if not names:
        raise StepError(f"{path}: no such tables")
    return [(Path(name), _split_in_name(Path(name), Path(name).parent)) for name in names]


def _metadata_files(folder: Path) -> list[Path]:
    """The hub's metadata of a folder of images, or of its folders train, validation and test."""
    folders = [folder, *(folder / name for name in subfolder_names(folder) if split_called(name))]
    return [place / name for place in folders for name in _METADATA if (place / name).is_file()]


def _parquet_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.parquet")) or sorted(folder.glob("data/*.parquet"))


def _split_in_name(file: Path, folder: Path) -> str | None:
    """`train` of train/metadata.csv, and of train-00000-of-00002.parquet; None of train.csv."""
    if file.parent != folder and file.parent.name != "data":
        return split_called(file.parent.name)
    return split_called(re.split(r"[-.]", file.name)[0]) if file.suffix == ".parquet" else None


def _samples_in_tables(data: str, files: list[tuple[Path, str | None]], head: Head, columns: Columns) -> DataSet:
    whole = DataSet([], _identity("table", data))
    for file, split in files:
        if is_choices(file):
            part = samples_in_choices(file, head, columns.image_root)
        else:
            part = samples_in_table(file, head, columns, split)
        whole.samples.extend(part.samples)
        whole.failures.extend(part.failures)
        whole.notes.extend(part.notes)
        whole.choices.extend(part.choices)
    splits = [f"{file.parent.name}/{file.name}" for file, split in files if split]
    if splits:
        whole.notes.append(f"split: from the names {', '.join(splits[:4])}{' …' if len(splits) > 4 else ''}")
    if not whole.samples:
        raise StepError(f"{data}: has no rows")
    named = {sample.path for sample in whole.samples}
    for file, _ in files:
        if file.name in _METADATA:
            root = file.parent.resolve()
            others = sum(root / name not in named for name in files_below(file.parent).paths)
            whole.pass_over(f"files that {file.name} does not name", others)
    return whole


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
