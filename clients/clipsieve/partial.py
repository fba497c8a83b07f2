"""The rows of a run that is not finished, in a folder `<output>.partial` beside the output.

    run.json                what the run is; only the same command may go on with it
    rows-000001-00512.parquet   committed rows: number of the part, number of rows
    finished.json           the output is complete and only has to be moved to its place
    output                  the finished table, before it is moved
    lock                    held by the process that writes

A file of rows gets its name when it is complete and on disk, so a process that is killed at any moment leaves
whole parts, and what it did not commit is done again.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from clipsieve.exceptions import OutputRefused
from clipsieve.joined import check_replaceable
from clipsieve.outputs import table_from_rows
from clipsieve.scoring import Row

if TYPE_CHECKING:
    import pyarrow as pa

_FORMAT = 1
_REMEDY = "repeat the command as it was to go on with it, or give --overwrite to start anew"


class PartialRun:
    """One run's committed rows. A context manager, which keeps other processes out.

    Args:
        out: the output file.
        identity: what makes this the same run: its inputs and options, as JSON values.
        schema: of the rows.
        overwrite: start anew and replace what is there.
        replaces: the output is there, and what this run writes takes its place.

    Raises:
        OutputRefused: the output is there already, or was not written by this package; the folder belongs to another
            command, or another process writes to it.
    """

    def __init__(
        self,
        out: Path,
        identity: Mapping[str, Any],
        schema: pa.Schema,
        overwrite: bool = False,
        *,
        replaces: bool = False,
    ) -> None:
        self.out = out
        self.folder = folder_of(out)
        self.schema = schema
        self._identity = {"format": _FORMAT, "columns": schema.names, **identity}
        if not replaces:
            check_free(out, overwrite)
        self._lock = _locked(self.folder)
        try:
            self._open(overwrite)
        except BaseException:
            self._lock.close()
            raise

    def __enter__(self) -> PartialRun:
        return self

    def __exit__(self, *exception: object) -> None:
        if self.folder.exists() and not self._parts and self.finished is None:
            shutil.rmtree(self.folder)  # nothing was committed, so there is nothing to go on with
        self._lock.close()

    @property
    def finished(self) -> Mapping[str, Any] | None:
        """Summary that `finish` was given, when all that is left to do is to `publish`."""
        try:
            return json.loads((self.folder / "finished.json").read_bytes())
        except FileNotFoundError:
            return None

    @property
    def rows(self) -> int:
        """Number of committed rows."""
        return sum(_rows_of(path) for path in self._parts)

    def last(self, column: str) -> Any:
        """The last value of a column that is not null; None when there is none."""
        for path in reversed(self._parts):
            values = _read(path, [column])[column].drop_null()
            if len(values):
                return values[-1].as_py()
        return None

    def commit(self, rows: Sequence[Row]) -> None:
        """Write rows so that they stay, whatever happens next.

        Raises:
            OSError: the disk is full, for example; what was committed before is still there.
        """
        import pyarrow.parquet as pq

        number = len(self._parts) + 1
        path = self.folder / f"rows-{number:06}-{len(rows):05}.parquet"
        table = table_from_rows(rows, self.schema)
        _write_whole(path, lambda file: pq.write_table(table, file))
        self._parts.append(path)

    def tables(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """The committed rows, part by part, in the order they were committed."""
        return (_read(path, columns) for path in self._parts)

    def discard(self) -> None:
        """Drop what was committed."""
        for path in self._parts:
            path.unlink()
        self._parts = []

    def finish(self, write: Callable[[BinaryIO], Any], summary: Mapping[str, Any]) -> None:
        """Write the output and put it in its place; the committed rows are dropped then.

        Args:
            write: writes the whole output into a file.
            summary: value of `finished` when the process is killed before the output is in its place.
        """
        _write_whole(self.folder / "output", write)
        _write_whole(self.folder / "finished.json", lambda file: file.write(json.dumps(summary).encode()))
        self.publish()

    def publish(self) -> None:
        """Move a finished output to its place; also when that had been begun."""
        if (self.folder / "output").exists():
            (self.folder / "output").replace(self.out)
            sync_folder(self.out.parent)
        mark = self.folder / "finished.json"
        for path in self.folder.iterdir():
            if path != mark:
                path.unlink()
        mark.unlink(missing_ok=True)  # last: until then the rest of this can be done again
        self.folder.rmdir()

    def _open(self, overwrite: bool) -> None:
        run_file = self.folder / "run.json"
        for path in self.folder.iterdir():
            if path.name != "lock" and (overwrite or path.suffix == ".tmp"):
                path.unlink()
        if run_file.exists():
            self._check_identity(json.loads(run_file.read_bytes()))
        elif parts := list(self.folder.glob("rows-*")):
            raise OutputRefused(f"{self.folder} has {len(parts)} parts of rows and no run.json; {_REMEDY}")
        else:
            if overwrite and self.out.exists():
                (self.folder / "replaces").touch()
            _write_whole(run_file, lambda file: file.write(json.dumps(self._identity, indent=1).encode()))
        self._parts = sorted(self.folder.glob("rows-*.parquet"), key=_number_of)

    def _check_identity(self, stored: Mapping[str, Any]) -> None:
        identity = json.loads(json.dumps(self._identity))
        differing = [
            f"{key}: {_shown(stored.get(key))}, now {_shown(identity.get(key))}"
            for key in {**stored, **identity}
            if stored.get(key) != identity.get(key)
        ]
        if differing:
            raise OutputRefused(f"{self.folder} is an unfinished run with other {'; '.join(differing)}. {_REMEDY}")


def folder_of(out: Path) -> Path:
    return out.with_name(f"{out.name}.partial")


def check_free(out: Path, overwrite: bool) -> None:
    """Refuse to replace what is there. A run that was to do so, or had just put it there, may go on.

    Raises:
        OutputRefused: the output is there already; or is, whatever `overwrite` says, none of this package's tables.
    """
    begun = folder_of(out) / "finished.json", folder_of(out) / "replaces"
    if out.exists() and not overwrite and not any(path.exists() for path in begun):
        raise OutputRefused(f"{out} already exists; give --overwrite to replace it")
    if overwrite:
        check_replaceable(out)


def _locked(folder: Path) -> BinaryIO:
    """The lock, held until it is closed or the process ends in whatever way."""
    folder.mkdir(exist_ok=True)
    lock = (folder / "lock").open("wb")
    try:
        import fcntl

        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:
        pass  # Windows has no flock; there two runs into one output are not noticed
    except OSError:
        lock.close()
        raise OutputRefused(f"another process is writing to {folder}; wait for it, or name another --out") from None
    return lock


def _write_whole(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """The file has its name only when it is complete and on disk."""
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: str | Path) -> None:
    """Have a folder's names on disk, where the system can do that."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _read(path: Path, columns: Sequence[str] | None) -> pa.Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as part:
            return part.read(list(columns) if columns else None)
    except pa.ArrowException as error:
        raise OutputRefused(f"{path} is damaged ({error}); {_REMEDY}") from None


def _number_of(path: Path) -> int:
    return int(path.stem.split("-")[1])


def _rows_of(path: Path) -> int:
    return int(path.stem.split("-")[2])


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
