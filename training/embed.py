"""Labelled images → embedding store, through the exported encoder and the served preprocessing.

    python -m training.embed --recipe demo --data /tmp/shapes/train
    python -m training.embed --recipe demo --data /tmp/more --store artifacts/embeddings/shapes
    python -m training.embed --recipe demo --data labels.csv --path-column file --label-column class
    python -m training.embed --recipe demo --data 'shards/*.tar' --dtype float16

--data is a folder with one subfolder per class, a table of paths and labels (CSV, JSON, JSON lines, Parquet)
or WebDataset shards; what it is, is seen or said with --format. Embeddings that exist already are taken in
by training.ingest. Running it again embeds only what is new, so an interrupted run is finished by repeating
it. Files that cannot be embedded are listed in <store>.errors.csv (path, code,
message) and the run goes on. Prints the store's folder.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import sys
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from common.cpu import core_count
from common.manifest import write_atomically
from common.paths import encoder_folder
from common.pixels import served_module, served_transform
from recipes.errors import run_step
from recipes.schema import load_recipe
from training.datasets import samples_in
from training.encoder import OnnxEncoder
from training.errors import INTERRUPTED, StepError
from training.progress import say, tracked
from training.sample import Failure, Sample
from training.store import Row, Store, store_folder
from training.tables import Columns

ROWS_PER_PART = 512
_DECODING_THREADS = core_count()  # Pillow releases the GIL


@dataclass(frozen=True)
class Decoded:
    """A file that was read; `pixels` is None when its content is in the store already."""

    sample: Sample
    sha256: str
    width: int
    height: int
    pixels: np.ndarray | None  # (H, W, 3) uint8


@dataclass
class Summary:
    """What a run did, in images."""

    embedded: int = 0
    reused: int = 0
    """New rows whose content had been embedded before, e.g. a file that moved to another class."""
    unchanged: int = 0
    failures: list[Failure] = field(default_factory=list)


def embed_samples(
    samples: list[Sample],
    store: Store,
    encode: Callable[[np.ndarray], np.ndarray],
    transform: Callable[[bytes], np.ndarray],
    batch_size: int = 32,
    rows_per_part: int = ROWS_PER_PART,
) -> Summary:
    """Add a row to the store for each sample that it does not hold yet.

    Decoding runs ahead in threads by a few batches at most. What was embedded before an interruption is kept.

    Args:
        samples: the files.
        store: open for the encoder that `encode` runs.
        encode: (B, H, W, 3) uint8 → (B, embed_dim) float32.
        transform: encoded file → (H, W, 3) uint8, or `clip_pixels.ImageError`.
        batch_size: images per call of `encode`.
        rows_per_part: rows after which a part of the store is written.
    """
    summary = Summary()
    writer = _RowWriter(store, encode, rows_per_part, summary)
    label_of: dict[str, Sample] = {}
    batch: list[Decoded] = []
    try:
        decoded = _in_order(samples, lambda sample: _decode(sample, transform, store), ahead=4 * batch_size)
        for item in tracked(decoded, "embedding", len(samples), "images"):
            if isinstance(item, Decoded):
                item = _without_conflict(item, label_of.setdefault(item.sha256, item.sample))
            if isinstance(item, Failure):
                summary.failures.append(item)
            elif store.holds(item.sample.stored_path, item.sha256, item.sample.label):
                summary.unchanged += 1
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
    """Embeds batches and hands their rows to the store, a part at a time."""

    def __init__(self, store: Store, encode: Callable[[np.ndarray], np.ndarray], rows: int, summary: Summary) -> None:
        self._store = store
        self._encode = encode
        self._rows_per_part = rows
        self._summary = summary
        self._rows: list[Row] = []
        self._fresh: dict[str, np.ndarray] = {}  # sha256 → embedding that is not in the store yet

    def add(self, batch: list[Decoded]) -> None:
        pixels = {item.sha256: item.pixels for item in batch if not self._knows(item.sha256)}
        if pixels:
            embeddings = self._encode(np.stack([image for image in pixels.values() if image is not None]))
            self._fresh.update(zip(pixels, embeddings, strict=True))
        self._rows += [_row(item, self._embedding_of(item.sha256)) for item in batch]
        self._summary.embedded += len(pixels)
        self._summary.reused += len(batch) - len(pixels)
        if len(self._rows) >= self._rows_per_part:
            self.flush()

    def flush(self) -> None:
        self._store.append(self._rows)
        self._rows, self._fresh = [], {}

    def _knows(self, sha256: str) -> bool:
        return sha256 in self._fresh or self._store.knows(sha256)

    def _embedding_of(self, sha256: str) -> np.ndarray:
        return self._fresh[sha256] if sha256 in self._fresh else self._store.embedding_of(sha256)


def write_errors(path: Path, failures: list[Failure]) -> None:
    """The failures of one run as CSV; without any, only the header."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["path", "code", "message"])
    writer.writerows([failure.path, failure.code, failure.message] for failure in failures)
    write_atomically(path, text.getvalue().encode())


def _decode(sample: Sample, transform: Callable[[bytes], np.ndarray], store: Store) -> Decoded | Failure:
    try:
        data = sample.read()
    except (OSError, ValueError) as error:  # ValueError: a NUL in a path
        return _unreadable(sample, error)
    sha256 = hashlib.sha256(data).hexdigest()
    try:
        pixels = None if store.knows(sha256) else transform(data)
    except served_module().ImageError as error:
        return Failure(sample.stored_path, error.code, error.message)
    width, height = _size_in_header(data)
    return Decoded(sample, sha256, width, height, pixels)


def _unreadable(sample: Sample, error: Exception) -> Failure:
    reason = (error.strerror if isinstance(error, OSError) else str(error)) or type(error).__name__
    return Failure(sample.stored_path, "UNREADABLE", f"{reason} ({sample.origin})" if sample.origin else reason)


def _size_in_header(data: bytes) -> tuple[int, int]:
    """(width, height) as stored, before EXIF orientation; the transform has opened the file before."""
    with Image.open(io.BytesIO(served_module().raw_bytes(data, len(data)))) as image:
        return image.size


def _without_conflict(item: Decoded, first: Sample) -> Decoded | Failure:
    """Two files of one content and two labels cannot both be right: the second is a failure."""
    if item.sample.label == first.label:
        return item
    message = f"same content as {first.key}, so it is labelled {first.label} and {item.sample.label}; remove one"
    return Failure(item.sample.stored_path, "CONFLICTING_LABELS", message)


def _row(item: Decoded, embedding: np.ndarray) -> Row:
    sample = item.sample
    return Row(
        sample.key, sample.stored_path, item.sha256, item.width, item.height, sample.label, sample.split, embedding
    )


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


def _report(summary: Summary, errors: Path) -> None:
    say(
        f"{summary.embedded} embedded, {summary.reused} reused, {summary.unchanged} unchanged, "
        f"{len(summary.failures)} failed"
    )
    if summary.failures:
        say(f"why they failed: {errors}")


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m training.embed", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", required=True, help="a name in recipes/ or the path of a YAML file")
    parser.add_argument("--head", help="the head whose class_names the subfolders have; needed if there are several")
    parser.add_argument("--data", required=True, help="folder with one subfolder per class, table or shards")
    parser.add_argument("--format", choices=["folders", "table", "shards"], help="of --data; seen by default")
    parser.add_argument("--path-column", help="of a table; default: image_path, path, file, filename or file_name")
    parser.add_argument("--label-column", default="label", help="of a table, or in a shard's json; default: label")
    parser.add_argument("--split-column", help="of a table that prescribes train, validation and test")
    parser.add_argument("--store", type=Path, help="default: artifacts/embeddings/<recipe>")
    parser.add_argument("--dtype", choices=["float32", "float16"], help="of a new store; default: float32")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    arguments = _arguments(argv)
    recipe = load_recipe(arguments.recipe)
    columns = Columns(arguments.path_column, arguments.label_column, arguments.split_column)
    samples = samples_in(arguments.data, recipe.head(arguments.head), columns, arguments.format).samples
    encoder = OnnxEncoder(encoder_folder(recipe))
    folder = arguments.store or store_folder(recipe)
    store = Store(folder, encoder.manifest.fingerprint(), arguments.dtype)
    transform = served_transform(encoder.manifest.preprocessing, recipe.serving)
    summary = embed_samples(samples, store, encoder, transform, recipe.serving.max_batch_size)
    errors = folder.with_name(f"{folder.name}.errors.csv")
    write_errors(errors, summary.failures)
    _report(summary, errors)
    if len(summary.failures) == len(samples):
        raise StepError(f"none of the {len(samples)} files could be embedded; see {errors}")
    print(folder)


if __name__ == "__main__":
    sys.exit(run_step("training.embed", main, INTERRUPTED))
