"""The answers about pictures: a label, a grade, or which of two is better. Each is in its file when a call returns.

    labels.csv   path,label
    grades.csv   path,label       a number, 1 to 10
    pairs.csv    winner,loser

They lie in one folder, and the steps of training read them as they are. Paths are written from the root.
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from clipsieve.paths import path_from_text, text_from_path
from clipsieve.review.answer_file import GRADES, LABELS, PAIRS, AnswerFile, check_folder

Kind = Literal["label", "grade"]
KINDS: tuple[Kind, ...] = ("label", "grade")


@dataclass(frozen=True)
class Done:
    """An answer that can be taken back."""

    kind: Literal["label", "grade", "pair"]
    paths: tuple[str, ...]
    """The picture; of a pair the winner and the loser."""
    before: str | None
    after: str | None


class Answers:
    """All answers of a folder; safe to share between threads.

    Args:
        folder: is made where it is not there.

    Raises:
        AnswersRefused: a file cannot be read or written; by every method.
    """

    def __init__(self, folder: Path) -> None:
        check_folder(folder)
        self.folder = folder
        self._files = {
            "label": AnswerFile(folder / "labels.csv", LABELS),
            "grade": AnswerFile(folder / "grades.csv", GRADES),
        }
        self._pairs = AnswerFile(folder / "pairs.csv", PAIRS)
        self._root = os.path.abspath(folder)
        self._paths: dict[str, str] = {}  # of each cell, because a change looks at all rows
        self._lock = threading.Lock()
        self._done: list[Done] = []
        self._given: dict[tuple[Kind, str], str] = {}
        """What was answered here, to see whether somebody saved an older file over it."""
        self._read: dict[str, tuple[int, dict[str, str]]] = {}
        self._read_pairs: tuple[int, list[tuple[str, str]]] = (0, [])

    def of(self, kind: Kind) -> dict[str, str]:
        """Answers by the pictures' paths; of several rows of one picture the last."""
        with self._lock:
            return self._of(kind)

    def pairs(self) -> list[tuple[str, str]]:
        """Paths of winner and loser of each choice."""
        with self._lock:
            return self._pairs_now()

    def version(self) -> str:
        """Changes whenever an answer does, whoever gave it."""
        with self._lock:
            files = (*self._files.values(), self._pairs)
            for file in files:
                file.refresh()
            return "-".join(str(file.version) for file in files)

    def give(self, kind: Kind, path: str, answer: str | None) -> None:
        """Give a picture a label or a grade in place of the one it has; None takes it away."""
        with self._lock:
            before = self._of(kind).get(path)
            if before == answer:
                return
            self._put(kind, path, answer)
            self._done.append(Done(kind, (path,), before, answer))

    def choose(self, winner: str, loser: str) -> None:
        """Say which of two pictures is better."""
        with self._lock:
            self._pairs.append(text_from_path(winner), text_from_path(loser))
            self._done.append(Done("pair", (winner, loser), None, None))

    @property
    def can_undo(self) -> bool:
        return bool(self._done)

    def undo(self) -> Done | None:
        """Take the last answer of this page back, and say which; None where there is none."""
        with self._lock:
            if not self._done:
                return None
            last = self._done[-1]
            if last.kind == "pair":
                self._pairs.remove_last(lambda *cells: tuple(map(self._path, cells)) == last.paths)
            else:
                self._put(last.kind, last.paths[0], last.before)
            return self._done.pop()

    def lost(self) -> int:
        """Number of answers given here whose pictures the files name no more: somebody saved an older file."""
        with self._lock:
            return len(self._lost())

    def put_back(self) -> int:
        """Write the lost answers again; how many they were."""
        with self._lock:
            lost = self._lost()
            for kind, path in lost:
                self._put(kind, path, self._given[kind, path])
            return len(lost)

    def forget_lost(self) -> None:
        """Let the lost answers be: they were removed on purpose."""
        with self._lock:
            for key in self._lost():
                del self._given[key]

    def notices(self) -> list[str]:
        """What is wrong with the files, and stays as it is."""
        with self._lock:
            found = [
                f"{file.file.name} line {file.odd[0]} has not as many fields as the first line"
                + (f", nor have {len(file.odd) - 1} more" if len(file.odd) > 1 else "")
                + ": training refuses such a file, mend it in an editor"
                for file in (*self._files.values(), self._pairs)
                if file.odd
            ]
            for kind, file in self._files.items():
                counts = Counter(self._path(cell) for cell, answer in file.pairs() if answer)
                several = [path for path, count in counts.items() if count > 1]
                if several:
                    found.append(
                        f"{file.file.name} has several rows of {len(several)} pictures, such as "
                        f"{text_from_path(os.path.basename(several[0]))}: here the last of them counts"
                    )
                    if kind == "label":
                        found[-1] += ", in training the majority"
            return found

    def _lost(self) -> list[tuple[Kind, str]]:
        present = {kind: self._of(kind) for kind in KINDS}
        return [(kind, path) for kind, path in self._given if path not in present[kind]]

    def _put(self, kind: Kind, path: str, answer: str | None) -> None:
        self._files[kind].put(answer, lambda cell: self._path(cell) == path, text_from_path(path))
        if answer is None:
            self._given.pop((kind, path), None)
        else:
            self._given[kind, path] = answer

    def _of(self, kind: Kind) -> dict[str, str]:
        file = self._files[kind]
        file.refresh()
        version, answers = self._read.get(kind, (0, {}))
        if version != file.version:
            answers = {self._path(cell): answer for cell, answer in file.pairs() if cell and answer.strip()}
            self._read[kind] = (file.version, answers)
        return answers

    def _pairs_now(self) -> list[tuple[str, str]]:
        self._pairs.refresh()
        if self._read_pairs[0] != self._pairs.version:
            rows = [(self._path(winner), self._path(loser)) for winner, loser in self._pairs.pairs()]
            self._read_pairs = (self._pairs.version, [row for row in rows if row[0] != row[1]])
        return self._read_pairs[1]

    def _path(self, cell: str) -> str:
        """The path that a cell names; a relative one starts from the file, as in training."""
        path = self._paths.get(cell)
        if path is None:
            path = os.path.normpath(os.path.join(self._root, path_from_text(cell)))
            self._paths[cell] = path
        return path


def grades(answers: dict[str, str]) -> dict[str, float]:
    """The answers that are numbers."""
    numbers: dict[str, float] = {}
    for path, answer in answers.items():
        try:
            numbers[path] = float(answer)
        except ValueError:
            continue
    return numbers


def class_names_in(answers: dict[str, str], most: int = 9) -> Sequence[str]:
    """The labels that were given, the most frequent first."""
    return [name for name, _ in Counter(answers.values()).most_common(most)]
