"""Reports a run's progress on stderr: as a bar, as JSON lines, or not at all."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.progress import Progress

_EVENT_EVERY_S = 2.0


class Tally:
    """Counts of a run's images, by outcome."""

    def __init__(self, kept: int = 0) -> None:
        self.kept = kept
        """Rows that were there when it began."""
        self.done = 0
        self.failures: Counter[str] = Counter()
        """Images without a result, by error code."""
        self._started = time.perf_counter()

    @property
    def failed(self) -> int:
        return self.failures.total()

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._started

    def count(self, error: str | None) -> None:
        self.done += 1
        if error is not None:
            self.failures[error.partition(":")[0]] += 1

    def summary(self, verb: str, unit: str = "images") -> str:
        """`98 scored, 2 failed (UNREADABLE 2) in 0.5 s: 196 images/s; 50 rows were there before`"""
        seconds = self.seconds
        codes = ", ".join(f"{code} {count}" for code, count in self.failures.most_common())
        failed = f"{self.failed} failed ({codes})" if self.failed else "0 failed"
        good = self.done - self.failed
        kept = f"; {self.kept} rows were there before" if self.kept else ""
        return f"{good} {verb}, {failed} in {seconds:.1f} s: {good / seconds:.0f} {unit}/s{kept}"

    def figures(self) -> dict[str, Any]:
        """Counts for the JSON lines."""
        seconds = self.seconds
        return {
            "done": self.done,
            "failed": self.failed,
            "failures": dict(self.failures),
            "kept": self.kept,
            "seconds": round(seconds, 3),
            "images_per_s": round(self.done / seconds, 1),
        }


class Reporter:
    """Messages and progress.

    Args:
        quiet: no progress and no summary; notices and errors are still printed.
        as_json: each line is a JSON object with an `event`.
        bar: draw a progress bar; never where it would mix with rows on the same terminal.
    """

    def __init__(self, quiet: bool = False, as_json: bool = False, bar: bool = False) -> None:
        self._quiet = quiet
        self._as_json = as_json
        self._has_bar = bar and not quiet and not as_json
        self._bar: Progress | None = None
        self._reported_at = time.monotonic()

    def say(self, message: str, event: str = "notice", **figures: Any) -> None:
        """Something that anyone should know."""
        if self._as_json:
            print(json.dumps({"event": event, "message": message, **figures}), file=sys.stderr, flush=True)
        elif self._bar is not None:
            self._bar.console.print(message, markup=False, highlight=False, soft_wrap=True)
        else:
            print(message, file=sys.stderr)

    def tell(self, message: str, event: str, **figures: Any) -> None:
        """Something that --quiet leaves out."""
        if not self._quiet:
            self.say(message, event, **figures)

    @contextmanager
    def watching(self, tally: Tally) -> Iterator[Callable[[], None]]:
        """Yields the function to call after each image."""
        with _bar(self._has_bar) as bar:
            self._bar = bar
            task = bar.add_task("images", total=None, failed=0) if bar else None

            def advance() -> None:
                if bar and task is not None:
                    bar.update(task, completed=tally.done, failed=tally.failed)
                elif self._as_json and not self._quiet and time.monotonic() - self._reported_at > _EVENT_EVERY_S:
                    self._reported_at = time.monotonic()
                    self.say(f"{tally.done} done", "progress", **tally.figures())

            try:
                yield advance
            finally:
                self._bar = None

    @contextmanager
    def logged(self) -> Iterator[None]:
        """Report what the library logs meanwhile, such as a server that went away."""
        log, handler = logging.getLogger("clipsieve"), _Said(self)
        log.addHandler(handler)
        try:
            yield
        finally:
            log.removeHandler(handler)


class _Said(logging.Handler):
    def __init__(self, reporter: Reporter) -> None:
        super().__init__()
        self._reporter = reporter

    def emit(self, record: logging.LogRecord) -> None:
        self._reporter.say(record.getMessage(), "server")


@contextmanager
def _bar(shown: bool) -> Iterator[Progress | None]:
    if not shown:
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (
        SpinnerColumn(),
        TextColumn("{task.completed:.0f} images, {task.fields[failed]} failed"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(file=sys.stderr), transient=True) as progress:
        yield progress
