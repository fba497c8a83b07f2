"""Faults of what a server stands on: disk, shared memory, file descriptors, and model files that are broken."""

from __future__ import annotations

import contextlib
import io
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

from PIL import Image

from clipsieve import Client
from serving.embedded import EmbeddedServer
from serving.no_proxy import urlopen
from serving.tritonserver_options import ADMIN_HEADER
from trials.faults.scene import KEY, ORDERS, Fault, Scene, Skipped, condition, set_verbosity
from trials.prefixed_server import PrefixedServer

MOUNT_SHM = 'mount -t tmpfs -o size=160m tmpfs /dev/shm && exec "$@"'
LOG_BYTES = 512 * 1024
OPEN_FILES = 256


@contextlib.contextmanager
def small_disk_server(repository: Path, folder: Path) -> Iterator[EmbeddedServer]:
    """Server whose log lies in a file system of its own."""
    (disk := folder / "disk").mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={LOG_BYTES}", "tmpfs", str(disk)]
    if (mounted := subprocess.run(command, capture_output=True, text=True, check=False)).returncode:
        raise Skipped(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
    try:
        with PrefixedServer(repository, log_path=disk / "tritonserver.log", **ORDERS) as server:
            yield server
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def fill_disk(scene: Scene) -> str:
    """Fill it, and make the server write a line for each request."""
    log = scene.server.log_path
    fill(log.with_name("filler"))
    set_verbosity(scene.server, 1)
    time.sleep(4)
    left = shutil.disk_usage(log.parent).free
    set_verbosity(scene.server, 0)
    return f"{condition(scene)}, {left} bytes left for its log"


def fill(path: Path) -> None:
    """Write until the disk is full."""
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while file.write(bytes(1 << 12)):
            pass


def small_shm_server(repository: Path, folder: Path) -> PrefixedServer:
    """Server with a /dev/shm of its own, which no other process sees."""
    probe = ["unshare", "-m", "sh", "-c", MOUNT_SHM, "sh", "true"]
    if (tried := subprocess.run(probe, capture_output=True, text=True, check=False)).returncode:
        raise Skipped(f"a server cannot be given its own /dev/shm here: {tried.stderr.strip()}")
    return PrefixedServer(repository, log_path=folder / "tritonserver.log", prefix=probe[:-1])


def fill_shm(scene: Scene) -> str:
    """Fill it, send what would need more of it, and make room again."""
    shm = Path(f"/proc/{scene.server.pid}/root/dev/shm")
    used = shutil.disk_usage(shm).used
    fill(shm / "filler")
    photo = large_photo()
    with Client(scene.server.grpc_url, timeout_s=8, concurrency=2) as client:
        during = [outcome(client, photo) for _ in range(3)]
        with contextlib.suppress(FileNotFoundError):
            (shm / "filler").unlink()
        time.sleep(1)
        after = outcome(client, photo)
    report = f"{used >> 20} MiB used before; a 20 MB photo: {', '.join(during)}; with room again: {after}"
    return f"{report}; {condition(scene)}"


def large_photo() -> bytes:
    file = io.BytesIO()
    Image.effect_noise((3000, 2400), 120).convert("RGB").save(file, "PNG", compress_level=0)
    return file.getvalue()


def outcome(client: Client, picture: bytes) -> str:
    try:
        result = client.score([picture])[0]
    except Exception as error:  # whatever a harmed server leads to is the finding
        return type(error).__name__
    return "ok" if result.error is None else f"{result.error.code} ({result.error.message[:60]})"


def few_files_server(repository: Path, folder: Path) -> PrefixedServer:
    limit = ["prlimit", f"--nofile={OPEN_FILES}:{OPEN_FILES}"]
    return PrefixedServer(repository, log_path=folder / "tritonserver.log", prefix=limit)


def use_up_files(scene: Scene) -> str:
    """Connections that say nothing, over both protocols, until the server can open no more."""
    opened = []
    with contextlib.ExitStack() as stack:
        for url in (scene.server.http_url, scene.server.grpc_url) * OPEN_FILES:
            host, port = url.split(":")
            with contextlib.suppress(OSError):
                opened.append(stack.enter_context(socket.create_connection((host, int(port)), 1)))
        time.sleep(1)
        files = len(list(Path(f"/proc/{scene.server.pid}/fd").iterdir()))
        with Client(scene.server.grpc_url, timeout_s=3) as client:
            meanwhile = client.health(timeout_s=3).status
    time.sleep(1)
    with Client(scene.server.grpc_url, timeout_s=5) as client:
        after = client.health().status
    files_open = f"{files} of {OPEN_FILES} files open with {len(opened)} connections"
    return f"{files_open}; a new client meanwhile: {meanwhile}, afterwards: {after}; {condition(scene)}"


@contextlib.contextmanager
def explicit_server(repository: Path, folder: Path) -> Iterator[EmbeddedServer]:
    """Server that loads models on request, from a copy of the repository."""
    models = Path(shutil.copytree(repository, folder / "models"))
    log = folder / "tritonserver.log"
    with PrefixedServer(models, log_path=log, **ORDERS) as server:
        yield server


def reload_broken(model: str, file_name: str, keep: float) -> Callable[[Scene], str]:
    """Add a version 2 that is cut off and have it loaded.

    Args:
        keep: the share of version 1's bytes that is left.
    """

    def harm(scene: Scene) -> str:
        folder = next(scene.server.repository.glob(f"*{model}"))
        whole = (folder / "1/model.onnx").read_bytes()
        (folder / "2").mkdir()
        for described in (folder / "1").glob("*.json"):
            shutil.copy(described, folder / "2")
        (folder / "2" / file_name).write_bytes(whole[: int(len(whole) * keep)])
        return f"the load API says {load(scene.server, folder.name)}; {condition(scene)}"

    return harm


def load(server: EmbeddedServer, model: str) -> str:
    """Load a model; returns the HTTP status and the beginning of the answer."""
    url = f"http://{server.http_url}/v2/repository/models/{model}/load"
    request = urllib.request.Request(url, b"{}", {ADMIN_HEADER: KEY})
    try:
        with urlopen(request, timeout=60) as answer:
            return str(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return f"{error.code} {error.read(100).decode(errors='replace')}"


FAULTS = [
    Fault("log's disk is full", fill_disk, small_disk_server),
    Fault("/dev/shm is full", fill_shm, small_shm_server),
    Fault("no file descriptors left", use_up_files, few_files_server),
    Fault("reload: empty ONNX", reload_broken("_head", "model.onnx", 0), explicit_server),
    Fault("reload: half an ONNX", reload_broken("clip_encoder", "model.onnx", 0.5), explicit_server),
    Fault("reload: truncated plan", reload_broken("_head", "model.plan", 0.3), explicit_server),
]
