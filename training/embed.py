"""Labelled images → embedding store, through the exported encoder and the served preprocessing.

    python -m training.embed --recipe demo --data /tmp/shapes/train
    python -m training.embed --recipe demo --data /tmp/more --store artifacts/embeddings/shapes
    python -m training.embed --recipe demo --data labels.csv --path-column file --label-column class
    python -m training.embed --recipe demo --data 'shards/*.tar' --dtype float16
    python -m training.embed --recipe demo --data photos/labels.csv --decides

--data is a folder with one subfolder per class, a table of paths and labels (CSV, JSON, JSON lines, Parquet), a table
of choices (winner, loser; see training.choices), or WebDataset shards; --format names it where it is not as it looks.
Embeddings that exist already are taken in by training.ingest.

The store follows the data: running this again embeds only what is new, so that an interrupted run is finished by
repeating it, and files that are gone, moved or relabelled are so in the store, too; a data set that is no longer where
it was counts no more (--keep-missing keeps both). With --decides its labels count alone where other data sets say
otherwise, for as long as it says them: it may be emptied, too. Embeddings are shared by all recipes with the encoder;
labels and splits are this head's. Files that cannot be embedded are listed in <store>.errors.csv (path, code, message,
data, head) and the run goes on. Prints the store's folder.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from clipsieve.paths import path_from_text
from common.cpu import core_count
from common.manifest import write_atomically
from common.paths import encoder_folder
from common.pixels import served_module, served_transform
from common.writing import check_writable
from recipes.arguments import add_recipe_options, recipe_of
from recipes.errors import run_step
from training.data_options import add_data_options, columns_of
from training.datasets import samples_in
from training.encoder import OnnxEncoder
from training.errors import INTERRUPTED, StepError
from training.finetuned import with_finetuned_sides
from training.overview import print_overview
from training.progress import say, tracked
from training.sample import Failure, Sample
from training.sources import HeadData, Mention, Source, adopt_former_files, mentions_table, write_source
from training.store import Embedded, Store, adopt_former_folder, store_folder
from training.store_view import read_pictures
from training.unserved import format_of, unserved, unserved_texts

ROWS_PER_PART = 512
_ERROR_COLUMNS = ("path", "code", "message", "data", "head")
_DECODING_THREADS = core_count()  # Pillow releases the GIL


class Transform(Protocol):
    """`clip_pixels.Transform`, which is loaded from the served file."""

    def __call__(self, data: bytes) -> np.ndarray:
        """Encoded file → (H, W, 3) uint8, or `clip_pixels.ImageError`."""
        ...

    def size_of(self, data: bytes) -> tuple[int, int]:
        """(width, height) as stored."""
        ...


@dataclass(frozen=True)
class Decoded:
    """A file that was read; `pixels` is None, and its size 0, when its content is in the store already."""

    sample: Sample
    sha256: str
    width: int
    height: int
    pixels: np.ndarray | None  # (H, W, 3) uint8


@dataclass
class Summary:
    """Counts of a run, in images."""

    embedded: int = 0
    known: int = 0
    """Files whose content had been embedded before, wherever it lay."""
    mentions: list[Mention] = field(default_factory=list)
    """Of each file that has an embedding, in the order of the samples."""
    failures: list[Failure] = field(default_factory=list)


def embed_samples(
    samples: list[Sample],
    store: Store,
    encode: Callable[[np.ndarray], np.ndarray],
    transform: Transform,
    batch_size: int = 32,
    rows_per_part: int = ROWS_PER_PART,
) -> Summary:
    """Embed each content that the store does not hold yet.

    Decoding runs ahead in threads by a few batches at most. What was embedded before an interruption is kept.

    Args:
        samples: the files.
        store: open for the encoder that `encode` runs.
        encode: (B, H, W, 3) uint8 → (B, embed_dim) float32.
        transform: the served one.
        batch_size: images per call of `encode`.
        rows_per_part: rows after which a part of the store is written.
    """
    summary = Summary()
    writer = _RowWriter(store, encode, rows_per_part, summary)
    batch: list[Decoded] = []
    try:
        decoded = _in_order(samples, lambda sample: _decode(sample, transform, store), ahead=4 * batch_size)
        for item in tracked(decoded, "embedding", len(samples), "images"):
            if isinstance(item, Failure):
                summary.failures.append(item)
                continue
            summary.mentions.append(_mention(item))
            if writer.knows(item.sha256) or any(item.sha256 == other.sha256 for other in batch):
                summary.known += 1
            else:
                batch.append(item)
            if len(batch) == batch_size:
                writer.add(batch)
                batch = []
        writer.add(batch)
    finally:
        writer.flush()
    return summary


class _RowWriter:
    """Embeds batches of new contents and hands them to the store, a part at a time."""

    def __init__(self, store: Store, encode: Callable[[np.ndarray], np.ndarray], rows: int, summary: Summary) -> None:
        self._store = store
        self._encode = encode
        self._rows_per_part = rows
        self._summary = summary
        self._rows: dict[str, Embedded] = {}

    def knows(self, sha256: str) -> bool:
        return sha256 in self._rows or self._store.holds(sha256)

    def add(self, batch: list[Decoded]) -> None:
        if not batch:
            return
        embeddings = self._encode(np.stack([item.pixels for item in batch if item.pixels is not None]))
        for item, embedding in zip(batch, embeddings, strict=True):
            self._rows[item.sha256] = Embedded(item.sha256, item.width, item.height, embedding)
        self._summary.embedded += len(batch)
        if len(self._rows) >= self._rows_per_part:
            self.flush()

    def flush(self) -> None:
        try:
            self._store.append(list(self._rows.values()))
        except OSError as error:
            kept = self._summary.embedded - len(self._rows)
            problem = (
                f"{error.filename}: {error.strerror}. {kept} new embeddings are kept; run the command again to go on"
            )
            raise StepError(problem) from error
        self._rows = {}


def append_errors(path: Path, failures: list[Failure], identity: str, data: HeadData) -> None:
    """Write the failures of one data set into the CSV, in the place of those it had before; others' rows stay."""
    rows = [[failure.path, failure.code, failure.message, identity, str(data)] for failure in failures]
    kept = [row for row in _error_rows(path) if row[3:] != [identity, str(data)]]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_ERROR_COLUMNS)
    writer.writerows([*kept, *rows])
    write_atomically(path, text.getvalue().encode(errors="backslashreplace"))


def _error_rows(path: Path) -> list[list[str]]:
    """The rows of an earlier run; none of a file that is not there, or that has other columns."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        header, *rows = [*csv.reader(file)] or [[]]
    return [row for row in rows if len(row) == len(header)] if header == list(_ERROR_COLUMNS) else []


def _decode(sample: Sample, transform: Transform, store: Store) -> Decoded | Failure:
    try:
        data = sample.read()
    except Exception as error:  # OSError; ValueError of a NUL in a path; MemoryError; whatever Arrow raises
        return _unreadable(sample, error)
    sha256 = hashlib.sha256(data).hexdigest()
    try:
        pixels = None if store.holds(sha256) else transform(data)
        width, height = (0, 0) if pixels is None else transform.size_of(data)
    except served_module().ImageError as error:
        if error.code == "NOT_AN_IMAGE" and (format := format_of(data)) is not None:
            return unserved(sample.stored_path, format)
        return Failure(sample.stored_path, error.code, error.message)
    except Exception as error:  # none is known; one odd picture must not end the run of all others
        return Failure(sample.stored_path, "DECODE_FAILED", f"{type(error).__name__}: {error}")
    return Decoded(sample, sha256, width, height, pixels)


def _unreadable(sample: Sample, error: Exception) -> Failure:
    reason = (error.strerror if isinstance(error, OSError) else str(error)) or type(error).__name__
    return Failure(sample.stored_path, "UNREADABLE", f"{reason} ({sample.origin})" if sample.origin else reason)


def _mention(item: Decoded) -> Mention:
    sample = item.sample
    return Mention(sample.key, sample.stored_path, item.sha256, sample.label, sample.split, sample.group)


def with_choices(mentions: list[Mention], choices: Sequence[tuple[str, str]]) -> tuple[list[Mention], list[str]]:
    """The mentions with what each was preferred to, and notes of the choices that are lost.

    Args:
        mentions: of the files that have an embedding.
        choices: pairs of paths, the better one first.
    """
    content_of = {mention.path: mention.sha256 for mention in mentions}
    beats: dict[str, list[str]] = {}
    lost = same = 0
    for winner, loser in choices:
        better, worse = content_of.get(winner), content_of.get(loser)
        if better is None or worse is None:
            lost += 1
        elif better == worse:
            same += 1
        else:
            beats.setdefault(winner, []).append(worse)
    notes = [f"choices: {lost} name a picture that has no embedding and are left out"] if lost else []
    notes += [f"choices: {same} are between two files of the same picture and are left out"] if same else []
    return [replace(mention, beats=tuple(beats.get(mention.path, ()))) for mention in mentions], notes


def _notes_of_names(mentions: list[Mention]) -> list[str]:
    count = sum(path_from_text(mention.path) != mention.path for mention in mentions)
    return [f"names: {count} are not UTF-8; tables show each such byte as \\udc80 to \\udcff"] if count else []


def _in_order(
    samples: list[Sample], decode: Callable[[Sample], Decoded | Failure], ahead: int
) -> Iterator[Decoded | Failure]:
    """Each sample decoded, in order, by threads that are at most `ahead` samples in front."""
    pool = ThreadPoolExecutor(_DECODING_THREADS)
    pending: deque[Future[Decoded | Failure]] = deque()
    try:
        for sample in samples:
            pending.append(pool.submit(decode, sample))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m training.embed", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_recipe_options(parser)
    parser.add_argument("--head", help="the head whose class_names the subfolders have; needed if there are several")
    add_data_options(parser)
    parser.add_argument("--store", type=Path, help="default: artifacts/embeddings/<encoder>")
    parser.add_argument("--dtype", choices=["float32", "float16"], help="of a new store; default: float32")
    parser.add_argument(
        "--keep-missing", action="store_true", help="go on counting files and data sets that are no longer there"
    )
    parser.add_argument(
        "--decides", action="store_true", help="its labels count alone where other data sets say otherwise"
    )
    parser.add_argument("--check", action="store_true", help="only read what the data set says, and embed nothing")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    arguments = _arguments(argv)
    recipe = recipe_of(arguments)
    head = recipe.head(arguments.head)
    data_set = samples_in(arguments.data, head, columns_of(arguments), arguments.format, may_be_empty=arguments.decides)
    if arguments.check:
        say(f"{len(data_set.samples)} samples, {len(data_set.failures)} failures in {data_set.identity}")
        return
    encoder = OnnxEncoder(encoder_folder(recipe))
    folder = arguments.store or store_folder(recipe)
    check_writable(folder)
    if arguments.store is None:
        adopt_former_folder(recipe, encoder.manifest.fingerprint())
    store = Store(folder, encoder.manifest.fingerprint(), arguments.dtype)
    transform = served_transform(encoder.manifest.preprocessing, recipe.serving)
    summary = embed_samples(data_set.samples, store, encoder, transform, recipe.serving.max_batch_size)
    failures = [*data_set.failures, *summary.failures]
    data = HeadData(folder, recipe.name, head.name)
    errors = folder.with_name(f"{folder.name}.errors.csv")
    append_errors(errors, failures, data_set.identity, data)
    say(f"{summary.embedded} embedded, {summary.known} known before, {len(failures)} failed")
    for text in unserved_texts(failures):
        say(text)
    if failures:
        say(f"why they failed: {errors}")
    if failures and not summary.mentions:
        raise StepError(f"none of the {len(failures)} files could be embedded; see {errors}")
    adopt_former_files(data)
    data_set.notes.extend(_notes_of_names(summary.mentions))
    mentions, notes = with_choices(summary.mentions, data_set.choices)
    mentions, sides = with_finetuned_sides(mentions, recipe.encoder, encoder.manifest)
    data_set.notes.extend([*notes, *sides])
    reasons = data_set.passed_over | Counter(failure.code for failure in failures)
    source = Source(
        data_set.identity, mentions_table(mentions), dict(reasons), data_set.notes, decides=arguments.decides
    )
    changes = write_source(data, source, arguments.keep_missing)
    print_overview(data, read_pictures(data), changes)
    print(folder)


if __name__ == "__main__":
    sys.exit(run_step("training.embed", main, INTERRUPTED))
