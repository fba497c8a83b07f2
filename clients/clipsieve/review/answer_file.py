"""A CSV of answers that this page, another one and a person with an editor may all write.

A new answer is one more line at the end. A changed one takes the place of its line, in a new file under the old name:
training joins several rows of one picture as the words of several raters, so a picture has one row. The file is read
again whenever it is another than the one that was read, and pages write one after the other, by the lock of a file
beside it. Columns and rows that are not ours stay as they are.
"""

from __future__ import annotations

import contextlib
import csv
import io
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from clipsieve.exceptions import AnswersRefused
from clipsieve.lists import PATH_COLUMNS, column_like

_DELIMITERS = ",;\t"
_UTF16 = (b"\xff\xfe", b"\xfe\xff")

Names = tuple[tuple[str, ...], tuple[str, ...]]
"""What the first and the second column may be called; a new file takes the first name of each."""
LABELS: Names = (("path", *PATH_COLUMNS), ("label",))
GRADES: Names = (("path", *PATH_COLUMNS), ("label", "score", "grade"))
PAIRS: Names = (("winner",), ("loser",))


class AnswerFile:
    """Two columns of a CSV, in memory as the file has them.

    Args:
        file: need not be there.
        names: of the columns.

    Raises:
        AnswersRefused: by every method, when the file is no such CSV or cannot be read or written.
    """

    def __init__(self, file: Path, names: Names) -> None:
        self.file = file.resolve()  # where it is a link, the file itself is replaced
        self.version = 0
        """Changes whenever the rows do."""
        self.odd: list[int] = []
        """Lines that have not as many fields as the header; they stay, and training refuses the file."""
        self._names = names
        self._state: tuple[int, int, int] | None = None
        self._header: list[str] = []
        self._delimiter, self._end = ",", "\n"
        self._rows: list[list[str]] = []
        self._places = (0, 1)
        self.refresh()

    def refresh(self) -> bool:
        """Read the file again if it is another one now; True if it was."""
        state = _state_of(self.file)
        if state == self._state and self.version:
            return False
        try:
            text = _text_of(self.file) if state else ""
        except OSError as error:
            raise AnswersRefused(f"{self.file}: cannot be read: {error.strerror or error}") from error
        self._parse(text)
        self._state = state
        self.version += 1
        return True

    def pairs(self) -> Iterator[tuple[str, str]]:
        """Both columns of each whole row, in order."""
        first, second = self._places
        return ((row[first], row[second]) for row in self._rows if len(row) == len(self._header))

    def append(self, first: str, second: str) -> None:
        """Add a row; it is on the disk when this returns."""
        with self._changing():
            self._append(first, second)

    def put(self, second: str | None, is_it: Callable[[str], bool], first: str) -> None:
        """Give the one picture that `is_it` accepts this answer in place of all it had; with None it has none.

        Args:
            second: the answer.
            is_it: gets the first column of a row.
            first: what a new row says there.
        """
        with self._changing():
            place, answer = self._places
            same = [number for number, row in self._whole() if is_it(row[place])]
            if not same and second is None:
                return
            if not same:
                self._append(first, second or "")
                return
            kept = [list(row) for row in self._rows]
            if second is not None:
                kept[same[0]][answer] = second
            gone = set(same if second is None else same[1:])
            self._write([row for number, row in enumerate(kept) if number not in gone])

    def remove_last(self, is_it: Callable[[str, str], bool]) -> bool:
        """Remove the last row that `is_it` accepts; False where there is none."""
        with self._changing():
            one, other = self._places
            same = [number for number, row in self._whole() if is_it(row[one], row[other])]
            if same:
                self._write([row for number, row in enumerate(self._rows) if number != same[-1]])
            return bool(same)

    def _whole(self) -> Iterator[tuple[int, list[str]]]:
        return ((number, row) for number, row in enumerate(self._rows) if len(row) == len(self._header))

    @contextmanager
    def _changing(self) -> Iterator[None]:
        try:
            with _locked(self.file.with_name(f".{self.file.name}.lock")):
                self.refresh()
                yield
                self.refresh()
        except OSError as error:
            raise AnswersRefused(f"{self.file}: cannot be written: {error.strerror or error}") from error

    def _parse(self, text: str) -> None:
        rows = _parsed(text, delimiter := _delimiter_of(text))
        header = rows[0] if rows else [names[0] for names in self._names]
        places = [next((header.index(like) for name in names if (like := column_like(header, name))), None)
                  for names in self._names]  # fmt: skip
        if None in places or places[0] == places[1]:
            wanted = " and ".join(names[0] for names in self._names)
            raise AnswersRefused(
                f"{self.file}: its first line is {delimiter.join(header)!r:.80}, expected columns {wanted}; "
                "give it such a line, or name another folder with --out"
            )
        self._header, self._rows, self._delimiter = header, rows[1:], delimiter
        self._places = (places[0] or 0, places[1] or 0)
        self._end = "\r\n" if "\r\n" in text else "\n"
        self.odd = [number for number, row in enumerate(self._rows, 2) if len(row) not in (0, len(header))]

    def _line(self, row: Sequence[str]) -> str:
        line = io.StringIO()
        csv.writer(line, delimiter=self._delimiter, lineterminator=self._end).writerow(row)
        return line.getvalue()

    def _append(self, first: str, second: str) -> None:
        row = [""] * len(self._header)
        row[self._places[0]], row[self._places[1]] = first, second
        is_new = self._state is None or self._state[1] == 0
        ending = "" if is_new else self._ending()
        line = (self._line(self._header) if is_new else ending) + self._line(row)
        data = line.encode("utf-8", "surrogateescape")
        state = _append_to(self.file, data)
        if not ending and state[1] == len(data) + (self._state[1] if self._state else 0):
            self._rows.append(row)  # without reading all of it again
            self._state = state
            self.version += 1

    def _ending(self) -> str:
        """What ends a last line that somebody left open or cut off, so that the next row is one of its own."""
        with self.file.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            if file.read(1) in (b"\n", b"\r"):
                return ""
        text = _text_of(self.file)
        quote = '"' if _is_open(text, self._delimiter) else ""
        missing = len(self._header) - len(self._rows[-1]) if self._rows else 0
        return quote + self._delimiter * max(missing, 0) + self._end

    def _write(self, rows: list[list[str]]) -> None:
        """The whole file anew: the old one is there until the new one is on the disk."""
        text = "".join(self._line(row) for row in [self._header, *rows] if row)
        temporary = self.file.with_name(f".{self.file.name}.new")
        with temporary.open("wb") as file:
            file.write(text.encode("utf-8", "surrogateescape"))
            file.flush()
            os.fsync(file.fileno())
        shutil.copymode(self.file, temporary)
        os.replace(temporary, self.file)
        _sync_folder(self.file.parent)


def check_folder(folder: Path) -> None:
    """
    Raises:
        AnswersRefused: no file can be made in the folder.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".clipsieve-review-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise AnswersRefused(
            f"{folder}: answers cannot be written there ({error.strerror or error}); "
            "name a folder of your own with --out"
        ) from error


def _state_of(file: Path) -> tuple[int, int, int] | None:
    """What tells a file from the one that was read; None where there is none."""
    try:
        status = file.stat()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise AnswersRefused(f"{file}: cannot be read: {error.strerror or error}") from error
    return status.st_mtime_ns, status.st_size, status.st_ino


def _text_of(file: Path) -> str:
    data = file.read_bytes()
    if data.startswith(_UTF16) or b"\0" in data:
        raise AnswersRefused(f"{file}: not UTF-8 text; save it as CSV UTF-8")
    return data.decode("utf-8-sig", "surrogateescape")


def _delimiter_of(text: str) -> str:
    line = text.partition("\n")[0]
    return max(_DELIMITERS, key=lambda delimiter: len(next(csv.reader([line], delimiter=delimiter), [])))


def _parsed(text: str, delimiter: str) -> list[list[str]]:
    return list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter))


def _is_open(text: str, delimiter: str) -> bool:
    """True if the text ends within quotes."""
    try:
        for _ in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True):
            pass
    except csv.Error:
        return text.count('"') % 2 == 1
    return False


def _append_to(file: Path, data: bytes) -> tuple[int, int, int]:
    """Write all bytes or, when the disk is full, none; the state of the file behind them."""
    is_new = not file.exists()
    descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        before = os.fstat(descriptor).st_size
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(descriptor, view) :]
            os.fsync(descriptor)
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(descriptor, before)
            raise
        status = os.fstat(descriptor)
    finally:
        os.close(descriptor)
    if is_new:
        _sync_folder(file.parent)
    return status.st_mtime_ns, status.st_size, status.st_ino


def _sync_folder(folder: Path) -> None:
    """Put a file's new name on the disk, where the system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Hold the lock of a file against other processes; on systems without such locks, hold nothing."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    with file.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield
