"""Runs TensorRT's builder in a thread, so that the main one hears Ctrl-C while the builder is inside a long step."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from typing import TYPE_CHECKING, NoReturn, TypeVar

if TYPE_CHECKING:
    from build.tensorrt_plan import Progress

T = TypeVar("T")

NAME = "tensorrt-builder"
WAIT_SECONDS = 0.5


def run_in_thread(build: Callable[[], T], progress: Progress) -> T:
    """Return or raise what `build` does. Ctrl-C asks it to stop at its next step; a second one does not wait for that.

    Raises:
        KeyboardInterrupt: it was stopped; after the second Ctrl-C its thread still runs (see `leave`).
    """
    outcome: Future[T] = Future()
    thread = threading.Thread(target=_run, args=(build, outcome), name=NAME, daemon=True)
    with stop_on_interrupt(progress):
        thread.start()
        while not wait([outcome], WAIT_SECONDS).done:
            progress.heartbeat()
    return outcome.result()


def leave(status: int) -> NoReturn:
    """End the process with this status; at once where a builder still runs, since exit handlers would crash it."""
    if any(thread.name == NAME for thread in threading.enumerate()):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


@contextlib.contextmanager
def stop_on_interrupt(progress: Progress) -> Iterator[None]:
    """Let the first Ctrl-C set `progress.stopped`, and the second raise KeyboardInterrupt."""

    def stop(number: int, frame: object) -> None:
        if progress.stopped:
            progress.report("stopped at once; what this build has measured is not kept")
            raise KeyboardInterrupt
        progress.stopped = True
        progress.report("stopping at the builder's next step, to keep what it has measured; Ctrl-C again stops at once")

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _run(build: Callable[[], T], outcome: Future[T]) -> None:
    try:
        outcome.set_result(build())
    except BaseException as error:
        outcome.set_exception(error)
