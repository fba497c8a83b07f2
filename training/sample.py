"""One image of a data set, not yet opened."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from clipsieve.paths import text_from_path
from clipsieve.shards import Member


@dataclass(frozen=True)
class Sample:
    """One image file, or one member of a shard."""

    key: str
    """Its place within the data set, with forward slashes: `round/00001.jpg`."""
    path: Path
    label: str | None
    """As `training.labels` writes it for the head's task."""
    split: str | None = None
    """The split that the data set itself prescribes, if it does."""
    member: Member | None = None
    """Set for a member of the uncompressed shard at `path`; its name is never used as a path."""
    origin: str | None = None
    """Where a list names this file, for messages: `labels.csv row 7`."""

    @property
    def stored_path(self) -> str:
        """What the store's `path` says: the file, or `<shard>#<member>`."""
        return text_from_path(str(self.path) if self.member is None else f"{self.path}#{self.member.name}")

    def read(self) -> bytes:
        """The encoded image.

        Raises:
            OSError: the file cannot be read.
        """
        if self.member is None:
            return self.path.read_bytes()
        with self.path.open("rb") as file:
            file.seek(self.member.data)
            return file.read(self.member.size)
