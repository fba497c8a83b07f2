"""The processes of a running embedded server by name, and the memory they hold."""

from __future__ import annotations

from pathlib import Path

from serving.processes import STUB, children


def stubs(server_pid: int) -> dict[str, list[int]]:
    """Process ids of the Python processes by model, such as `preprocess`."""
    by_model: dict[str, list[int]] = {}
    for child in children(server_pid):
        if child.name == STUB and child.state != "Z":  # a dead one has no command line
            model_file = Path(f"/proc/{child.pid}/cmdline").read_bytes().decode().split("\0")[1]
            by_model.setdefault(Path(model_file).parent.parent.name, []).append(child.pid)
    return by_model


def resident_mib(server_pid: int) -> dict[str, float]:
    """Resident memory of the server and of each Python process, shared pages included.

    Raises:
        FileNotFoundError: one of them ended.
    """
    held = {"tritonserver": _resident_mib(server_pid)}
    for model, pids in sorted(stubs(server_pid).items()):
        for index, pid in enumerate(sorted(pids)):
            held[model if len(pids) == 1 else f"{model} {index}"] = _resident_mib(pid)
    return held


def held_mib(files: list[Path]) -> float:
    """Memory that the running ones of these processes take."""
    return sum(path.stat().st_blocks * 512 for path in files if path.exists()) / 2**20


def _resident_mib(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024
