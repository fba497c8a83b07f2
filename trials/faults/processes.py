"""Faults of processes: SIGKILL, SIGSTOP, SIGTERM, and a clock that jumps."""

from __future__ import annotations

import os
import re
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from benchmarks.server_processes import held_mib, stubs
from serving.processes import shared_regions
from trials.faults.load import Group
from trials.faults.scene import ORDERS, Fault, Scene, Skipped, condition, set_verbosity, wait_for_restart
from trials.prefixed_server import PrefixedServer

LOG_DATE = re.compile(r"^[IWE](\d{4}) ", re.MULTILINE)  # month and day
_FAKETIME = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))


def plain_server(repository: Path, folder: Path) -> PrefixedServer:
    return PrefixedServer(repository, log_path=folder / "tritonserver.log", exit_timeout_s=10)


def signal_stubs(model_end: str, number: signal.Signals) -> Callable[[Scene], str]:
    """Send a signal to every Python process of the model whose name ends so, and wait for the restart."""

    def harm(scene: Scene) -> str:
        pids = next(pids for model, pids in stubs(scene.server.pid).items() if model.endswith(model_end))
        for pid in pids:
            os.kill(pid, number)
        wait_for_restart(scene)
        return "restarted by the supervisor on the same ports"

    return harm


def kill_server(scene: Scene) -> str:
    files = shared_regions(scene.server.pid)
    os.kill(scene.server.pid, signal.SIGKILL)
    wait_for_restart(scene)
    return f"restarted by the supervisor on the same ports; {held_mib(files):.0f} MiB left behind in /dev/shm"


def kill_server_alone(scene: Scene) -> str:
    files = shared_regions(scene.server.pid)
    os.kill(scene.server.pid, signal.SIGKILL)
    time.sleep(3)
    for path in files:
        path.unlink(missing_ok=True)  # tritonserver was killed and leaves it behind
    return f"{condition(scene)}; nobody restarts it"


def terminate(scene: Scene) -> str:
    """Send SIGTERM: requests under way must be answered, with a score or a refusal, and later ones refused."""
    signalled = time.monotonic()
    os.kill(scene.server.pid, signal.SIGTERM)
    scene.server.wait(scene.server.exit_timeout_s + 10)
    took = time.monotonic() - signalled
    answers = ", ".join(f"{count} {outcome}" for outcome, count in under_way(scene.load.groups[0], signalled).items())
    return f"under way when signalled: {answers}; {condition(scene)} after {took:.1f} s"


def under_way(group: Group, moment_s: float) -> Counter[str]:
    """Outcomes of the requests that were sent before a moment and ended after it, retries included."""
    deadline = time.monotonic() + group.timeout_s
    while sum(request.ended_s > moment_s for request in group.requests) < group.workers:
        if time.monotonic() > deadline:
            break
        time.sleep(0.05)
    return Counter(request.outcome for request in group.requests if request.sent_s < moment_s < request.ended_s)


def clock_server(repository: Path, folder: Path) -> PrefixedServer:
    """Server whose wall clock a file sets; its monotonic clock stays the machine's."""
    if not _FAKETIME:
        raise Skipped("libfaketime is not installed (apt-get install faketime)")
    (folder / "clock").write_text("+0")
    environment = {
        "LD_PRELOAD": str(_FAKETIME[0]),
        "FAKETIME_TIMESTAMP_FILE": str(folder / "clock"),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    return PrefixedServer(repository, log_path=folder / "tritonserver.log", environment=environment, **ORDERS)


def jump_clock(scene: Scene) -> str:
    """The dates in the server's log show that it took the jumps."""
    set_verbosity(scene.server, 1)
    for offset in ("+1d", "-1d", "+0"):
        (scene.folder / "clock").write_text(offset)
        time.sleep(3)
    set_verbosity(scene.server, 0)
    log = scene.server.log_path.read_text(errors="replace")
    return f"{condition(scene)}; dates in its log: {', '.join(dict.fromkeys(LOG_DATE.findall(log)))}"


FAULTS = [
    Fault("kill -9 of preprocess", signal_stubs("preprocess", signal.SIGKILL), plain_server, supervised=True),
    Fault("kill -9 of the encoder", signal_stubs("encoder", signal.SIGKILL), plain_server, supervised=True),
    Fault("kill -9 of the head", signal_stubs("head", signal.SIGKILL), plain_server, supervised=True),
    Fault("SIGSTOP of the encoder", signal_stubs("encoder", signal.SIGSTOP), plain_server, supervised=True),
    Fault("kill -9 of the server", kill_server, plain_server, supervised=True),
    Fault("kill -9, no supervisor", kill_server_alone, plain_server, settle_s=0),
    Fault("SIGTERM", terminate, plain_server, settle_s=0),
    Fault("clock: a day on, two back", jump_clock, clock_server),
]
