"""A peer's process: started with a log, measured with all it started, and ended with them."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

import psutil

from benchmarks.peers.environments import PeerError
from common.paths import ROOT

GRACE_S = 10.0


class Process:
    """A command in a process group of its own; a context manager that ends the group.

    Args:
        command: program and arguments.
        variables: its whole environment.
        log: takes what it writes to stderr, and to stdout unless that is a pipe.
        pipe: whether lines are written to its stdin and read from its stdout.
    """

    def __init__(
        self, command: Sequence[str | Path], variables: Mapping[str, str], log: Path, pipe: bool = False
    ) -> None:
        self.command, self.variables, self.log, self.pipe = command, variables, log, pipe
        self.started_s = 0.0  # by time.perf_counter
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Process:
        with self.log.open("wb") as log:
            self.started_s = time.perf_counter()
            try:
                self._process = subprocess.Popen(
                    self.command,
                    cwd=ROOT,
                    env=dict(self.variables),
                    stdin=subprocess.PIPE if self.pipe else subprocess.DEVNULL,
                    stdout=subprocess.PIPE if self.pipe else log,
                    stderr=log if self.pipe else subprocess.STDOUT,
                    start_new_session=True,
                    text=True,
                )
            except OSError as error:
                raise PeerError(f"{Path(self.command[0]).name} cannot be started: {error.strerror}") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        process, started = self.popen, process_tree(self.popen.pid)
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        for left in started:  # in a group of its own, such as the tritonserver behind a gateway
            with contextlib.suppress(psutil.NoSuchProcess):
                left.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):  # what was never read by the dead
                    pipe.close()

    @property
    def popen(self) -> subprocess.Popen[str]:
        assert self._process is not None
        return self._process

    @property
    def pid(self) -> int:
        return self.popen.pid

    def check(self) -> None:
        """
        Raises:
            PeerError: it has ended, with the last line of its log.
        """
        if (status := self.popen.poll()) is not None:
            raise PeerError(f"ended with status {status}: {self.last_words()}")

    def wait(self, timeout_s: float) -> None:
        """Wait until it has ended without an error.

        Raises:
            PeerError: it failed, or took longer.
        """
        try:
            status = self.popen.wait(timeout_s)
        except subprocess.TimeoutExpired as error:
            raise PeerError(f"not finished after {timeout_s:.0f} s: {self.last_words()}") from error
        if status:
            raise PeerError(f"ended with status {status}: {self.last_words()}")

    def last_words(self) -> str:
        """The last line of its log."""
        lines = [line for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        return lines[-1].strip()[:300] if lines else "it said nothing"


def cpu_s(pid: int) -> float:
    """Processor time of a process and all it started that live."""
    total = 0.0
    for process in process_tree(pid):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def resident_mib(pid: int) -> float:
    """Memory of a process and all it started; what several share is counted once."""
    total = 0
    for process in process_tree(pid):
        with contextlib.suppress(psutil.NoSuchProcess):
            total += process.memory_full_info().pss
    return total / 2**20


def wait_until(is_so: Callable[[], bool], deadline_s: float, pause_s: float = 0.05) -> bool:
    """Ask again and again; whether it became so in time."""
    end = time.monotonic() + deadline_s
    while not is_so():
        if time.monotonic() > end:
            return False
        time.sleep(pause_s)
    return True


def process_tree(pid: int) -> list[psutil.Process]:
    """A process, then all that it started and that live; empty when it has ended."""
    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def busy_s() -> float:
    """Processor time of the whole machine so far, in user and system mode, of all cores together."""
    times = psutil.cpu_times()
    return times.user + times.nice + times.system
