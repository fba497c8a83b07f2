"""Files to arrange, and what was done with them: what `file_times` and `file_links` have in common."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar

from clipsieve.paths import text_from_path

_Action = TypeVar("_Action")


def shown(path: str) -> str:
    """A path on one line of a terminal, without what a terminal would obey."""
    text = text_from_path(path)
    return text if text.isprintable() else repr(text)


class Scored(NamedTuple):
    """One row of a result."""

    path: str
    score: float | None
    """None, or NaN, when the file could not be scored."""
    band: str | None
    """`allow`, `review`, `block` or the name of a class; None when there is none."""


ScoredRow = Scored | tuple[str, float | None, str | None]
"""A file to arrange: path, score and band."""


@dataclass
class Arranged(Generic[_Action]):
    """Result of a run: the actions that were done, or with `dry_run` would be."""

    actions: list[_Action] = field(default_factory=list)
    already: int = 0
    """Links that were there before."""
    unscored: int = 0
    """Rows without a score, or for links without a band: left alone."""
    failed: list[tuple[str, str]] = field(default_factory=list)
    """Path and reason of each file that could not be arranged."""
    elsewhere: list[str] = field(default_factory=list)
    """Links in another band to a file that has just been linked: of an earlier run, with other scores."""

    def __str__(self) -> str:
        text = f"{len(self.actions)} arranged, {self.already} already so"
        text += f", {self.unscored} without a score left alone" if self.unscored else ""
        text += f", {len(self.failed)} failed" if self.failed else ""
        return text + (f", {len(self.elsewhere)} old links in other bands" if self.elsewhere else "")
