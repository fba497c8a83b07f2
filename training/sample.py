"""One image of a data set, not yet opened, and what a data set holds.

Sample     one image, with what the data set says of it
Failure    a file or row that was meant and cannot be
DataSet    all of them, and what was passed over

`split_called` knows the names of splits.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass, field
from pathlib import Path

from clipsieve.paths import text_from_path
from clipsieve.shards import Member
from training.parquet_images import Place, read_image

_SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}
_SPLIT_CALLED = {name: split for split, names in _SPLITS.items() for name in names}


def split_called(name: str) -> str | None:
    """`train`, `validation` or `test`, by the names that data sets use, such as `val`; None for any other."""
    return _SPLIT_CALLED.get(name.strip().lower())


@dataclass(frozen=True)
class Sample:
    """One image file, one member of a shard, or one row of a Parquet file."""

    key: str
    """Its place within the data set, with forward slashes: `round/00001.jpg`."""
    path: Path
    label: str | None
    """As `training.labels` writes it for the head's task."""
    split: str | None = None
    """The split that the data set itself prescribes, if it does: `train`, `validation` or `test`."""
    group: str | None = None
    """The person, burst or video it belongs to, if the data set says: rows of one group keep to one side of a split."""
    member: Member | None = None
    """Set for a member of the uncompressed shard at `path`; its name is never used as a path."""
    place: Place | None = None
    """Set for a picture inside the Parquet file at `path`."""
    origin: str | None = None
    """Where a list names this file, for messages: `labels.csv row 7`."""

    @property
    def stored_path(self) -> str:
        """Return the store's `path`: the file, `<shard>#<member>` or `<Parquet file>#<row, from 1>`."""
        if self.place is not None:
            return text_from_path(f"{self.path}#{self.place.number}")
        return text_from_path(str(self.path) if self.member is None else f"{self.path}#{self.member.name}")

    def read(self) -> bytes:
        """The encoded image.

        Raises:
            OSError, ValueError: the file cannot be read.
        """
        if self.place is not None:
            return read_image(self.path, self.place)
        if not stat.S_ISREG(self.path.stat().st_mode):  # of a pipe or a device there is no end
            raise OSError(None, "neither a file nor a link to one")
        if self.member is None:
            return self.path.read_bytes()
        with self.path.open("rb") as file:
            file.seek(self.member.data)
            return file.read(self.member.size)


@dataclass(frozen=True)
class Failure:
    """A file or row that gets no embedding, or no label that can be trained on: a row of errors.csv."""

    path: str
    code: str
    """What is wrong, in capitals: `DANGLING_LINK`, or a code of `clip_pixels.ImageError`."""
    message: str


@dataclass(frozen=True)
class DataSet:
    """The images of a data set, and what of it is none."""

    samples: list[Sample]
    identity: str
    """Kind and resolved place, `folders /data/set`: the key by which reading it again replaces what it said before."""
    failures: list[Failure] = field(default_factory=list)
    """What was meant as an image or a label and cannot be one, each named."""
    passed_over: dict[str, int] = field(default_factory=dict)
    """How many files or rows were left out as not meant, by reason: `{"hidden files": 3}`."""
    choices: list[tuple[str, str]] = field(default_factory=list)
    """Pairs of samples, by their `stored_path`: the better picture, then the other."""
    notes: list[str] = field(default_factory=list)
    """Facts to print, a line each: `split: from the folders train, val, test`."""

    def pass_over(self, reason: str, count: int = 1) -> None:
        """Count what is left out."""
        if count:
            self.passed_over[reason] = self.passed_over.get(reason, 0) + count
