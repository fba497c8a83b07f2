"""A server to be harmed: the load on it, who restarts it, and the row of the table in the end."""

from __future__ import annotations

import contextlib
import json
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.photos import verification_pictures
from serving.embedded import EmbeddedServer
from serving.no_proxy import urlopen
from serving.supervisor import Pace, Supervisor, ending
from serving.triton_wheel import ServingError
from serving.tritonserver_options import ADMIN_HEADER
from trials.faults.load import Load, bulk, interactive

KEY = "only-for-this-benchmark"
ORDERS: dict[str, Any] = {"control": "explicit", "admin_key": KEY}
"""Options of a server that takes orders from the benchmark."""

PACE = Pace(interval_s=1, deadline_s=3, max_restarts=20)


class Skipped(Exception):
    """This machine does not allow the fault; the message says why."""


@dataclass
class Scene:
    server: EmbeddedServer
    folder: Path
    """Folder for the fault's own files."""
    load: Load
    supervisor_messages: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Fault:
    """One row of the table.

    Attributes:
        name: what is done.
        harm: does it, under load, and tells what the server did; it takes as long as it takes.
        start: makes the server from a repository and a folder.
        supervised: whether `serving.supervisor` watches the server.
        settle_s: how long the load goes on afterwards.
    """

    name: str
    harm: Callable[[Scene], str]
    start: Callable[[Path, Path], contextlib.AbstractContextManager[EmbeddedServer]]
    supervised: bool = False
    settle_s: float = 3.0


@dataclass(frozen=True)
class Row:
    fault: str
    client_saw: str
    server_did: str
    gap_s: float
    """The longest time without a score for the clients that show errors."""
    lost: int
    wrong: int
    skipped: str | None = None


@contextlib.contextmanager
def watched(server: EmbeddedServer, messages: list[str]) -> Iterator[None]:
    """Restart the server in a thread whenever its supervisor says so."""
    supervisor, leaving = Supervisor(server, PACE, messages.append), threading.Event()

    def watch() -> None:
        with contextlib.suppress(ServingError):
            while True:
                problem = supervisor.next_problem()
                if leaving.is_set():
                    return
                supervisor.restart(problem)

    thread = threading.Thread(target=watch, name="supervisor")
    thread.start()
    try:
        yield
    finally:
        leaving.set()
        server.stop()
        thread.join()


def row_of(fault: Fault, repository: Path, folder: Path) -> Row:
    """Start a server and its clients, do the harm, and see."""
    load = None
    try:
        with contextlib.ExitStack() as stack:
            server = stack.enter_context(fault.start(repository, folder))
            scene = Scene(server, folder, load := Load(server.grpc_url, pictures(), [interactive(), bulk()]))
            if fault.supervised:
                stack.enter_context(watched(server, scene.supervisor_messages))
            with load:
                time.sleep(1.5)
                did = fault.harm(scene)
                time.sleep(fault.settle_s)
            did = "; ".join([did, *(line for line in scene.supervisor_messages if line.startswith("restarting"))])
    except Skipped as reason:
        return Row(fault.name, "", "", 0.0, 0, 0, skipped=str(reason))
    saw = "; ".join(str(group) for group in load.groups)
    return Row(fault.name, saw, did, round(load.groups[0].longest_gap_s(), 2), load.lost, load.wrong)


def pictures() -> list[bytes]:
    """Small ones, so that the load is of requests and not of pixels."""
    return [picture.data for picture in verification_pictures() if len(picture.data) < 100_000]


def condition(scene: Scene) -> str:
    """State of the server: running, or how it ended."""
    status = scene.server.poll()
    return "the server lives" if status is None else f"the server ended {ending(status)}"


def wait_for_restart(scene: Scene, within_s: float = 60.0) -> None:
    """Wait until the supervisor has reported that the server serves again.

    Raises:
        ServingError: it has not in that time.
    """
    deadline = time.monotonic() + within_s
    while not any(line.startswith("serving again") for line in scene.supervisor_messages):
        if time.monotonic() > deadline:
            raise ServingError(f"no restart within {within_s:.0f} s; the supervisor said: {scene.supervisor_messages}")
        time.sleep(0.1)


def set_verbosity(server: EmbeddedServer, level: int) -> None:
    """Set how much a server that takes `ORDERS` writes into its log: 0 as usual, 1 lines for every request."""
    body = json.dumps({"log_verbose_level": level}).encode()
    request = urllib.request.Request(f"http://{server.http_url}/v2/logging", body, {ADMIN_HEADER: KEY})
    with urlopen(request, timeout=10) as answer:
        answer.read()
