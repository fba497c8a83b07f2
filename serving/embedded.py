"""Runs the real tritonserver on this machine, without a container, on loopback.

    python -m serving.embedded --recipe demo

Starts the server of the wheel nvidia-pytriton with the python-based `onnxruntime` backend, waits
until a real inference succeeds, prints the URLs, and stops cleanly on SIGINT or SIGTERM. For
development, tests and small CPU deployments; its release (2.51) is older than the security fixes of
2025 and 2026, so it stays on loopback.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import tritonclient.grpc as grpc

from recipes.paths import ARTIFACTS, repository_folder
from recipes.schema import RecipeError, load_recipe
from serving.probe import probe
from serving.triton_wheel import ServingError, TritonWheel, find_wheel, lay_out_backends

HOST = "127.0.0.1"
SHARED_MEMORY_BYTES = 16 * 2**20  # of each Python process, at the start and by growth
CURL_SED = 's/.*/{"inputs":[{"name":"image","datatype":"BYTES","shape":[1,1],"data":["&"]}]}/'


class EmbeddedServer:
    """A tritonserver process; use it as a context manager.

    Args:
        repository: a model repository made by `build.repository`.
        http_port, grpc_port, metrics_port: loopback ports; 0 picks a free one.
        log_path: where the server's log goes.
        ready_timeout_s: how long models may take to load.
        exit_timeout_s: how long requests in flight may take when it stops.

    Raises:
        ServingError: on entering, when the server cannot start or answer; with the end of its log.
    """

    def __init__(
        self,
        repository: Path,
        *,
        http_port: int = 8000,
        grpc_port: int = 8001,
        metrics_port: int = 8002,
        log_path: Path,
        ready_timeout_s: float = 300,
        exit_timeout_s: int = 30,
    ) -> None:
        self.repository = repository
        self.http_port, self.grpc_port, self.metrics_port = free_ports(http_port, grpc_port, metrics_port)
        self.log_path = log_path
        self.ready_timeout_s = ready_timeout_s
        self.exit_timeout_s = exit_timeout_s
        self._process: subprocess.Popen | None = None
        self._folder: Path | None = None

    @property
    def http_url(self) -> str:
        return f"{HOST}:{self.http_port}"

    @property
    def grpc_url(self) -> str:
        return f"{HOST}:{self.grpc_port}"

    @property
    def metrics_url(self) -> str:
        return f"http://{HOST}:{self.metrics_port}/metrics"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def __enter__(self) -> EmbeddedServer:
        wheel = find_wheel()
        if not (self.repository / "image_score" / "config.pbtxt").is_file():
            raise ServingError(f"{self.repository}: no model repository; build it with: make engines")
        self._folder = Path(tempfile.mkdtemp(prefix="clipsieve-"))
        try:
            self._start(wheel, self._folder)
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def poll(self) -> int | None:
        """The server's exit status, or None while it runs."""
        assert self._process is not None
        return self._process.poll()

    def wait(self) -> int:
        """Block until the server ends by itself; its exit status."""
        assert self._process is not None
        return self._process.wait()

    def stop(self) -> None:
        """Let requests in flight finish, then end the server and every process it started."""
        if self._process is not None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(self.exit_timeout_s + 5)
            kill_group(self._process.pid)
            self._process.wait()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def log_tail(self, lines: int = 25) -> str:
        """The last lines of the log that say something: no tables, no mere information."""
        text = self.log_path.read_text(errors="replace") if self.log_path.is_file() else ""
        telling = [line for line in text.splitlines() if line and not re.match(r"[|+]|I\d{4} ", line)]
        return "\n".join(telling[-lines:])

    def _start(self, wheel: TritonWheel, folder: Path) -> None:
        lay_out_backends(wheel, folder / "backends")
        # The server crashes on a space in its repository's path; a link has none.
        (folder / "models").symlink_to(self.repository.resolve(), target_is_directory=True)
        (folder / "empty").mkdir()
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        with self.log_path.open("wb") as log:
            self._process = subprocess.Popen(
                self._command(wheel, folder),
                cwd=folder / "empty",  # the current directory comes first on the Python processes' sys.path
                env=self._environment(wheel),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a Ctrl-C reaches us alone; we end the server in order
            )

    def _command(self, wheel: TritonWheel, folder: Path) -> list[str]:
        return [
            str(wheel.tritonserver),
            f"--model-repository={folder / 'models'}",
            f"--backend-directory={folder / 'backends'}",
            "--model-control-mode=none",
            "--disable-auto-complete-config",
            f"--http-address={HOST}",
            f"--http-port={self.http_port}",
            f"--grpc-address={HOST}",
            f"--grpc-port={self.grpc_port}",
            f"--metrics-address={HOST}",
            f"--metrics-port={self.metrics_port}",
            f"--exit-timeout-secs={self.exit_timeout_s}",
            f"--backend-config=python,shm-default-byte-size={SHARED_MEMORY_BYTES}",
            f"--backend-config=python,shm-growth-byte-size={SHARED_MEMORY_BYTES}",
        ]

    def _environment(self, wheel: TritonWheel) -> dict[str, str]:
        """The Python processes run the first python3 on PATH, and heed nothing else of the environment."""
        path = f"{wheel.environment.resolve() / 'bin'}:{os.environ.get('PATH', '')}"
        return os.environ | {"PATH": path, "LD_LIBRARY_PATH": str(wheel.libraries)}

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + self.ready_timeout_s
        with grpc.InferenceServerClient(self.grpc_url) as client:
            for problem in self._problems(client):
                if problem is None:
                    return
                if time.monotonic() > deadline:
                    raise ServingError(
                        f"no successful inference within {self.ready_timeout_s:.0f} s ({problem}); "
                        f"end of {self.log_path}:\n{self.log_tail()}"
                    )
                time.sleep(0.1)

    def _problems(self, client: grpc.InferenceServerClient) -> Iterator[str | None]:
        """What keeps the server from answering, again and again; None once it answers."""
        while True:
            if (status := self.poll()) is not None:
                raise ServingError(
                    f"tritonserver ended with status {status}; end of {self.log_path}:\n{self.log_tail()}"
                )
            problem = probe(client)
            if problem is not None and "is not healthy" in problem:  # a dead Python process is never restarted
                raise ServingError(f"{problem}; end of {self.log_path}:\n{self.log_tail()}")
            yield problem


def free_ports(*ports: int) -> list[int]:
    """The ports themselves, with a free one in place of each 0.

    Raises:
        ServingError: a port is taken.
    """
    sockets = [socket.socket() for _ in ports]
    try:
        for opened, port in zip(sockets, ports, strict=True):
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                opened.bind((HOST, port))
            except OSError as error:
                raise ServingError(
                    f"port {port} is taken ({error.strerror}); choose another, e.g. --grpc-port"
                ) from error
        return [opened.getsockname()[1] for opened in sockets]
    finally:
        for opened in sockets:
            opened.close()


def kill_group(pid: int) -> None:
    """End whatever is left of a process group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m serving.embedded", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--recipe", required=True, help="a name in recipes/ or the path of a YAML file")
    parser.add_argument("--http-port", type=int, default=8000)
    parser.add_argument("--grpc-port", type=int, default=8001)
    parser.add_argument("--metrics-port", type=int, default=8002)
    parser.add_argument("--log", type=Path, default=ARTIFACTS / "tritonserver.log", help="the server's log")
    arguments = parser.parse_args(argv)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _raise_stop)
    try:
        recipe = load_recipe(arguments.recipe)
        refuse_plans(repository_folder(recipe))
        with EmbeddedServer(
            repository_folder(recipe),
            http_port=arguments.http_port,
            grpc_port=arguments.grpc_port,
            metrics_port=arguments.metrics_port,
            log_path=arguments.log,
        ) as server:
            print(welcome(server, recipe.name, recipe.notice), file=sys.stderr, flush=True)
            status = server.wait()
            raise ServingError(f"tritonserver ended with status {status}; end of its log:\n{server.log_tail()}")
    except (RecipeError, ServingError) as error:
        print(f"serving.embedded: {error}", file=sys.stderr)
        return 1
    except _Stop:
        return 0


def refuse_plans(repository: Path) -> None:
    """The wheel has no TensorRT backend; say so before Triton says it at length."""
    if plans := list(repository.glob("*/1/*.plan")):
        raise ServingError(f"{plans[0]}: the embedded server cannot run a TensorRT plan; run: make engines TARGET=onnx")


class _Stop(BaseException):
    """SIGINT or SIGTERM arrived."""


def _raise_stop(number: int, frame: object) -> None:
    for again in (signal.SIGINT, signal.SIGTERM):
        signal.signal(again, signal.SIG_IGN)  # stopping is under way; a second Ctrl-C must not leave processes
    print("stopping: requests in flight are finished first", file=sys.stderr, flush=True)
    raise _Stop


def welcome(server: EmbeddedServer, recipe_name: str, notice: str | None) -> str:
    return "\n".join(
        [
            f"serving {recipe_name} (log: {server.log_path}); Ctrl-C stops it",
            *([notice] if notice else []),
            f"  gRPC     {server.grpc_url}",
            f"  HTTP     http://{server.http_url}",
            f"  metrics  {server.metrics_url}",
            "score a folder:",
            f"  clipsieve score PHOTOS --url {server.grpc_url}",
            "score one file with curl:",
            "  base64 -w0 photo.jpg | sed '"
            + CURL_SED
            + f"' | curl -d @- http://{server.http_url}/v2/models/image_score/infer",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
