"""The table that `training.embed`, `training.ingest` and `training.fit` print: what a head's pictures are."""

from __future__ import annotations

from collections import Counter

from rich.table import Table

from training.bradley_terry import choice_texts
from training.labels import LabelError, names_in
from training.progress import console
from training.sources import Changes, HeadData, Source, read_sources
from training.split import Split
from training.store_view import SIDES, Pictures

_MOST_CLASSES = 12


def print_overview(
    data: HeadData, pictures: Pictures, changes: Changes | None = None, split: Split | None = None
) -> None:
    """Print it to stderr.

    Args:
        data: of the head.
        pictures: what the store says of it.
        changes: since the last time, where a data set was just read.
        split: as it was drawn, where one was.
    """
    table = Table(title=f"{data}", show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in overview(read_sources(data), pictures, changes, split):
        table.add_row(name, text)
    console.print(table)


def overview(
    sources: list[Source], pictures: Pictures, changes: Changes | None = None, split: Split | None = None
) -> list[tuple[str, str]]:
    """The rows of the table: what, and how many."""
    rows = [("pictures", _pictures_text(sources, pictures)), ("labels", _labels_text(pictures))]
    if len(pictures.choices):
        rows += [("choices", text) for text in choice_texts(pictures.choices, pictures.path)]
    rows.append(("split", _split_text(pictures, split)))
    rows += [("left out", reason) for reason in _left_out(sources, pictures, split)]
    rows += [("note", note) for source in sources for note in source.notes]
    if changes is not None:
        rows += [("since last time", text) for text in _changes_texts(changes)]
    return rows


def _pictures_text(sources: list[Source], pictures: Pictures) -> str:
    files = int(pictures.files.sum())
    where = sources[0].identity if len(sources) == 1 else f"{len(sources)} data sets"
    return f"{len(pictures)} in {files} files of {where}"


def _labels_text(pictures: Pictures) -> str:
    counts: Counter[str] = Counter()
    for label in pictures.label:
        if label is not None:
            counts.update(_names(label))
    if not counts:
        return "none"
    if len(counts) > _MOST_CLASSES:
        return f"{sum(label is not None for label in pictures.label)} pictures with {len(counts)} different labels"
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))


def _names(label: str) -> list[str]:
    """A class or a number is one name, a multilabel row has several, or none."""
    if not label.startswith("["):
        return [label]
    try:
        return names_in(label) or ["none of them"]
    except LabelError:
        return [label]


def _split_text(pictures: Pictures, split: Split | None) -> str:
    prescribed = Counter(side for side in pictures.split if side is not None)
    by_data = ", ".join(f"{side} {prescribed[side]}" for side in SIDES if prescribed[side])
    if split is None:
        return f"by the data: {by_data}" if by_data else "drawn by training.fit"
    drawn = ", ".join(f"{side} {len(rows)}" for side, rows in split.parts().items())
    return f"{drawn} ({f'by the data: {by_data}' if by_data else 'drawn'})"


def _left_out(sources: list[Source], pictures: Pictures, split: Split | None) -> list[str]:
    reasons: Counter[str] = Counter()
    for source in sources:
        reasons.update(source.left_out)
    undecided = len(pictures.disputed) - sum(
        content in pictures.disputed and corrected
        for content, corrected in zip(pictures.sha256, pictures.corrected, strict=True)
    )
    unlabelled = sum(label is None for label in pictures.label) - undecided
    texts = [f"{count} {reason}" for reason, count in sorted(reasons.items())]
    if undecided:
        texts.append(f"{undecided} pictures with several labels; {_first_disputed(pictures)}")
    if unlabelled:
        texts.append(f"{unlabelled} pictures without a label")
    if split is not None and len(split.left_out):
        texts.append(f"{len(split.left_out)} pictures whose group is fixed to a more held-out side")
    return texts


def _first_disputed(pictures: Pictures) -> str:
    files = next(iter(pictures.disputed.values()))
    return "the first: " + ", ".join(f"{path} is {label}" for path, label in files[:3])


def _changes_texts(changes: Changes) -> list[str]:
    counts = (
        (changes.new, "new"),
        (changes.gone, "gone"),
        (changes.moved, "in another place"),
        (changes.relabelled, "with another label"),
    )
    texts = [", ".join(f"{count} {word}" for count, word in counts if count)] if any(c for c, _ in counts) else []
    texts += [
        f"{identity} is no longer there: its {files} files count no more (--keep-missing counts them)"
        for identity, files in changes.missing.items()
    ]
    return texts or ["nothing is different"]
