"""Progress for people, on stderr."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from training.losses import Curve

Item = TypeVar("Item")

console = Console(stderr=True)


def say(message: str) -> None:
    """Print a line as it is: a path is not broken at the terminal's width, and brackets are no markup."""
    console.print(message, soft_wrap=True, markup=False, highlight=False)


def tracked(items: Iterable[Item], doing: str, total: int, unit: str) -> Iterator[Item]:
    """The items themselves, with a bar that shows how many there are per second."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(unit), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        yield from progress.track(items, total=total, description=doing)


@contextlib.contextmanager
def epochs_shown(doing: str) -> Iterator[Callable[[int, int, Curve], None]]:
    """A bar of epochs with the losses of the last one, for `training.optimize`."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[loss]}"))
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(doing, total=None, loss="")

        def show(done: int, most: int, curve: Curve) -> None:
            loss = f"loss {curve.train[-1]:.4f}, held out {curve.validation[-1]:.4f} (best {min(curve.validation):.4f})"
            progress.update(task, completed=done, total=most, loss=loss)

        yield show


@contextlib.contextmanager
def pictures_shown(doing: str) -> Iterator[Callable[[str, int, int], None]]:
    """A bar of an epoch's pictures with their number per second: called with a text, how many are done, and of what."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate("images"))
    with Progress(*columns, TimeRemainingColumn(), TextColumn("{task.fields[text]}"), console=console) as progress:
        task = progress.add_task(doing, total=None, text="")

        def show(text: str, done: int, total: int) -> None:
            if done < progress.tasks[task].completed:
                progress.reset(task)
            progress.update(task, completed=done, total=total, text=text)

        yield show


@contextlib.contextmanager
def trials_shown(doing: str, done: int, total: int) -> Iterator[Callable[[int, str], None]]:
    """A bar of trials, with the best so far: called with how many are done and that text."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[best]}"))
    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
        task = progress.add_task(doing, total=total, completed=done, best="")
        yield lambda count, best: progress.update(task, completed=count, best=best)


class _Rate(ProgressColumn):
    def __init__(self, unit: str) -> None:
        super().__init__()
        self._unit = unit

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.0f} {self._unit}/s")
