"""Trains anew through the commands of the toolchain, one process after another, and says how far they are.

    python -m training.embed --recipe R --data <all pictures>           once, so that all of them get scores
    python -m training.embed --recipe R --data labels.csv --decides     or grades.csv and pairs.csv, of a head of grades
    python -m training.fit --recipe R
    python -m training.scores --recipe R --out review-scores.csv

They run in the folder of the toolchain: this package imports nothing of it.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from clipsieve.exceptions import InputRefused, ToolchainFailed

WORK = ".clipsieve-review"
"""Folder beside the answers for what only the steps read."""
_LINES_KEPT = 30

State = Literal["idle", "running", "failed", "done"]


@dataclass(frozen=True)
class HeadFacts:
    """The head of a recipe, as `training.scores --describe` prints it."""

    name: str
    task: str
    class_names: tuple[str, ...]
    fitted: bool

    @property
    def is_graded(self) -> bool:
        return self.task in ("regression", "ranking")


@dataclass(frozen=True)
class Toolchain:
    """Commands of the steps for one head of a recipe."""

    root: Path
    """Folder that holds `training/`."""
    recipe: str
    head: str | None = None
    store: Path | None = None
    overrides: tuple[str, ...] = ()
    """Values in place of the recipe's, as `key=value`."""
    python: str = sys.executable

    def describe(self) -> HeadFacts:
        """
        Raises:
            ToolchainFailed: there is no toolchain, or no such recipe or head; says what the step said.
        """
        if not (self.root / "training" / "scores.py").is_file():
            raise InputRefused(
                f"{self.root}: is not clipsieve's toolchain (no training/scores.py), which --recipe needs; name its "
                "folder with --toolchain"
            )
        ended = subprocess.run(
            self.command("scores", "--describe"), cwd=self.root, capture_output=True, text=True, check=False
        )
        if ended.returncode:
            raise ToolchainFailed(reason(ended.stderr))
        facts = json.loads(ended.stdout)
        return HeadFacts(facts["head"], facts["task"], tuple(facts["class_names"]), facts["fitted"])

    def command(self, step: str, *arguments: str | Path) -> list[str]:
        """The command of a step; `fit` and `embed` write to the store, the others read it."""
        chosen = ["--recipe", self.recipe, *(["--head", self.head] if self.head else [])]
        chosen += ["--store", str(self.store)] if self.store else []
        chosen += [word for text in self.overrides for word in ("--set", text)]
        return [self.python, "-m", f"training.{step}", *chosen, *map(str, arguments)]

    def score_command(self, out: Path) -> list[str]:
        return self.command("scores", "--out", out)

    def training_commands(self, folder: Path, graded: bool, pictures: Path | None) -> list[list[str]]:
        """All steps from the answers in a folder to the scores of the head trained on them.

        Args:
            folder: of the answers.
            graded: grades and pairs are learnt, not labels.
            pictures: a table of pictures to embed first, whether they were answered or not.

        Raises:
            InputRefused: there are no answers yet.
        """
        names = ("grades.csv", "pairs.csv") if graded else ("labels.csv",)
        answers = [folder / name for name in names if (folder / name).is_file()]
        if not any(map(_has_rows, answers)):
            raise InputRefused(f"there is nothing to learn from yet: {' and '.join(names)} have no rows")
        commands = [self.command("embed", "--data", pictures)] if pictures else []
        commands += [self.command("embed", "--data", file, "--decides") for file in answers]
        return [*commands, self.command("fit"), self.score_command(scores_file(folder))]


def reason(stderr: str) -> str:
    """Why a step failed, in a line: the first of its message, which begins with its name; else what it said last."""
    lines = stderr.strip().splitlines() or ["it said nothing"]
    messages = [line for line in lines if re.match(r"training\.\w+: ", line)]
    return messages[-1] if messages and "Traceback" not in stderr else lines[-1]


def scores_file(folder: Path) -> Path:
    """The table of scores that training anew writes, beside the answers."""
    return folder / "review-scores.csv"


def write_pictures(folder: Path, names: Sequence[str]) -> Path:
    """Write a table of all pictures without a label, for `training.embed`; returns it."""
    file = folder / WORK / "pictures.csv"
    file.parent.mkdir(exist_ok=True)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["path", "label"])
    writer.writerows([name, ""] for name in names)
    temporary = file.with_suffix(".new")
    temporary.write_text(text.getvalue(), encoding="utf-8")
    temporary.replace(file)
    return file


@dataclass
class Job:
    """Commands that run one after another in a thread.

    Args:
        root: folder in which they run.
        finished: is called when all have ended well.
    """

    root: Path
    finished: Callable[[], None]
    state: State = "idle"
    line: str = ""
    """The last line that was printed, or why it failed."""
    step: str = ""
    lines: list[str] = field(default_factory=list)
    _process: subprocess.Popen[str] | None = None
    _thread: threading.Thread | None = None
    _stopped: bool = False

    def start(self, commands: Sequence[Sequence[str]]) -> None:
        """
        Raises:
            InputRefused: it runs already.
        """
        if self.state == "running":
            raise InputRefused("a training runs already")
        self.state, self.line, self.step = "running", "", ""
        self._thread = threading.Thread(target=self._run, args=(commands,), name="training", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End what runs; the steps go on from there when they are started again."""
        self._stopped = True
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
        if self._thread is not None:
            self._thread.join(timeout=10)

    def _run(self, commands: Sequence[Sequence[str]]) -> None:
        try:
            for number, command in enumerate(commands, 1):
                self.step = f"{command[2]} ({number} of {len(commands)})"
                if self._stopped or self._ended(command):
                    said = reason("\n".join(self.lines))
                    self.state = "failed"
                    self.line = said if said.startswith(command[2]) else f"{command[2]}: {said}"
                    return
            self.finished()
            self.state = "done"
        except Exception as error:  # of whatever is read at the end: the page says it, and the old order stays
            self.state, self.line = "failed", str(error)

    def _ended(self, command: Sequence[str]) -> int:
        """Run a command to its end; its exit status."""
        self.lines = []
        self._process = subprocess.Popen(
            command,
            cwd=self.root,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
        )
        assert self._process.stdout is not None
        with self._process.stdout as output:
            for line in output:
                if line.strip():
                    self.line = line.strip()
                    self.lines = [*self.lines[-_LINES_KEPT:], self.line]
        return self._process.wait()


def _has_rows(file: Path) -> bool:
    return len(file.read_bytes().splitlines()) > 1
