"""The Python processes of a running tritonserver, as the kernel sees them: which are dead or stopped."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import NamedTuple

STUB = "triton_python_b"  # the kernel keeps 15 characters of triton_python_backend_stub
CONDITIONS = {"Z": "is dead", "X": "is dead", "T": "is stopped"}


class Child(NamedTuple):
    pid: int
    name: str
    """Name of the process, at most 15 characters."""
    state: str
    """One letter, as proc(5) has them."""


def broken_stubs(server_pid: int, settle_s: float = 1.0) -> list[str]:
    """A line for each Python process that is dead or stopped, such as `Python process 12 is dead`.

    Those that are in that state a second time after `settle_s`: a model that is unloaded leaves one for a moment.
    """
    broken = _broken(server_pid)
    if not broken:
        return []
    time.sleep(settle_s)
    still = _broken(server_pid)
    return [f"Python process {pid} {CONDITIONS[state]}" for pid, state in still.items() if pid in broken]


def shared_regions(server_pid: int) -> list[Path]:
    """The files in /dev/shm that the server shares with its Python processes; it deletes them unless it is killed."""
    try:
        maps = Path(f"/proc/{server_pid}/maps").read_text()
    except OSError:  # it ended
        return []
    return sorted({Path(region) for region in re.findall(r"/dev/shm/triton_\S+", maps)})


def children(parent_pid: int) -> list[Child]:
    """The direct children of a process."""
    result = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = path.read_text(errors="replace")
        except OSError:
            continue  # it ended meanwhile
        before, _, after = text.rpartition(")")  # a name may hold spaces and brackets
        state, parent = after.split()[:2]
        if int(parent) == parent_pid:
            result.append(Child(int(path.parent.name), before.partition("(")[2], state))
    return result


def _broken(server_pid: int) -> dict[int, str]:
    """State by process id."""
    return {
        child.pid: child.state for child in children(server_pid) if child.name == STUB and child.state in CONDITIONS
    }
