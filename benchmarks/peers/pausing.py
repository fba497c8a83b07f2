"""Stops the processes of the peers that are not being measured, and lets them go on again.

An idle server is not quite idle: threads that poll, timers, and caches that its neighbours push out. With SIGSTOP all
processes of a peer stand still, and SIGCONT lets them go on where they were.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import psutil

from benchmarks.peers.processes import process_tree, wait_until

_STOP_DEADLINE_S = 5.0


class Paused:
    """The peers that stand still; a context manager at whose end all of them go on, whatever happened."""

    def __init__(self) -> None:
        self._pids: set[int] = set()

    def __enter__(self) -> Paused:
        return self

    def __exit__(self, *exception: object) -> None:
        for pid in list(self._pids):
            self.go_on(pid)

    def stop(self, pid: int) -> None:
        """Stop a process and all it started."""
        self._pids.add(pid)  # before the first signal: an interruption may come between two of them
        stop_tree(pid)

    def go_on(self, pid: int) -> None:
        """Let a process and all it started go on."""
        continue_tree(pid)
        self._pids.discard(pid)

    @contextlib.contextmanager
    def awake(self, pid: int | None) -> Iterator[None]:
        """Let one peer go on for as long as it is measured; nothing for a peer without a process of its own."""
        if pid is None:
            yield
            return
        self.go_on(pid)
        try:
            yield
        finally:
            self.stop(pid)


def stop_tree(pid: int) -> None:
    """Stop a process, then what it started, until nothing new is found: one that stands still starts no others."""
    stopped: set[int] = set()
    while fresh := [process for process in process_tree(pid) if process.pid not in stopped]:
        for process in fresh:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.suspend()
            stopped.add(process.pid)
        wait_until(lambda fresh=fresh: all(map(_stands_still, fresh)), _STOP_DEADLINE_S)


def _stands_still(process: psutil.Process) -> bool:
    """True once the signal has arrived, which a busy machine takes its time for, and of a process that has ended."""
    try:
        return process.status() in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return True


def continue_tree(pid: int) -> None:
    """Let all processes go on, the starter last: one that finds a child standing still may take it for dead."""
    for process in reversed(process_tree(pid)):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.resume()
