"""A tritonserver process on loopback, from the wheel nvidia-pytriton: how it starts, gets ready and stops."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import tritonclient.grpc as grpc

from common.proof import Proof
from serving.no_proxy import grpc_client
from serving.probe import Finding, probe
from serving.processes import shared_regions
from serving.proof import proof_to_serve, prove
from serving.triton_wheel import ServingError, TritonWheel, check_decoders, find_wheel, lay_out_backends
from serving.tritonserver_options import Control, control_options, tracing_options

HOST = "127.0.0.1"
SHARED_MEMORY = Path("/dev/shm")
MOST_SHARED_BYTES = 16 * 2**20  # of each Python process, at the start and by growth
LEAST_SHARED_BYTES = 2**20
SHARED_PARTS = (
    16  # of a small /dev/shm, such as Docker's 64 MB: each process has one at the start, the rest is for growth
)
STACK_BYTES = 64 * 2**20  # 2.51 ends by a stack overflow on deeply nested JSON, and on bodies in many small chunks


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """Settings of an embedded server: its ports, log, time limits and control."""

    http_port: int = 8000
    """Port on loopback, as are the others; 0 picks a free one on entering."""
    grpc_port: int = 8001
    metrics_port: int = 8002
    log_path: Path
    """Where the server's log goes."""
    ready_timeout_s: float = 300
    """How long models may take to load."""
    exit_timeout_s: int = 30
    """How long requests in flight may take when it stops."""
    control: Control = "none"
    """`explicit` lets those with the `admin_key` load other versions of a model; see `control_options`."""
    admin_key: str | None = None
    tracing_url: str | None = None
    """Where OpenTelemetry's spans go; see `tracing_options`."""
    options: Sequence[str] = ()
    """More of tritonserver's own."""
    stops_with_us: bool = False
    """Stop the server when the thread that started it ends in whatever way, killed as well. Needs Linux's setpriv."""

    @classmethod
    def on_free_ports(cls, log_path: Path, **others: Any) -> ServerSettings:
        """Settings of a server whose three ports are free ones, picked on entering."""
        return cls(http_port=0, grpc_port=0, metrics_port=0, log_path=log_path, **others)

    def triton_options(self) -> list[str]:
        return [*control_options(self.control, self.admin_key), *tracing_options(self.tracing_url), *self.options]


def folder_without_spaces() -> Path:
    """The folder for temporary files, or another if its path has a space: the server's own commands part paths there.

    Raises:
        ServingError: there is none.
    """
    folders = [Path(tempfile.gettempdir()), Path("/tmp"), Path("/var/tmp")]
    for folder in folders:
        if " " not in str(folder.resolve()) and os.access(folder, os.W_OK):
            return folder
    raise ServingError(
        f"no folder for temporary files without a space in its path: {', '.join(map(str, folders))}; set TMPDIR to one"
    )


def shared_bytes_of_process(folder: Path = SHARED_MEMORY) -> int:
    """Shared memory that each Python process of the server starts with, and grows by, in bytes; a power of two."""
    try:
        free = shutil.disk_usage(folder).free
    except OSError:  # no such place: the server will say so
        return MOST_SHARED_BYTES
    part = max(free // SHARED_PARTS, 1)
    return int(min(MOST_SHARED_BYTES, max(LEAST_SHARED_BYTES, 2 ** (part.bit_length() - 1))))


class EmbeddedServer:
    """A tritonserver process; use it as a context manager.

    Args:
        repository: a model repository made by `build.repository`.
        settings: see there.

    Raises:
        ServingError: on entering, when the server cannot start or answer, with the end of its log; a `ProofMissed`
            when it answers otherwise than its build verified.
    """

    def __init__(self, repository: Path, settings: ServerSettings) -> None:
        self._options = settings.triton_options()
        self._stops_with_us = settings.stops_with_us
        self._regions: list[Path] = []
        self.repository = repository
        self.http_port = settings.http_port
        self.grpc_port = settings.grpc_port
        self.metrics_port = settings.metrics_port
        self._held_ports = contextlib.ExitStack()
        self.log_path = settings.log_path
        self.ready_timeout_s = settings.ready_timeout_s
        self.exit_timeout_s = settings.exit_timeout_s
        self._proof: Proof | None = None
        self._process: subprocess.Popen | None = None
        self._is_stopped = False
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
    def proof(self) -> Proof:
        """The proof that its answers are compared with at each start."""
        assert self._proof is not None, "the server was not started"
        return self._proof

    @property
    def picture(self) -> bytes:
        """Picture that a probe sends: one that the server can decode."""
        return self.proof.smallest_picture

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def __enter__(self) -> EmbeddedServer:
        with contextlib.ExitStack() as stack:
            ports = held_ports(self.http_port, self.grpc_port, self.metrics_port)
            self.http_port, self.grpc_port, self.metrics_port = stack.enter_context(ports)
            self._start_and_wait("wb")
            self._held_ports = stack.pop_all()
        return self

    def start_again(self) -> None:
        """Start again after `stop`, with the same repository and ports; the log is continued.

        Raises:
            ServingError: it cannot start or answer.
        """
        self._start_and_wait("ab")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        self._held_ports.close()

    def poll(self) -> int | None:
        """The server's exit status, or None while it runs."""
        assert self._process is not None
        return self._process.poll()

    def wait(self, timeout_s: float | None = None) -> int | None:
        """Block until the server ends by itself; its exit status, or None when it still runs after `timeout_s`."""
        assert self._process is not None
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None

    def stop(self, grace_s: float | None = None) -> None:
        """Let requests in flight finish, for `grace_s` at most, then end the server and every process it started."""
        if self._process is not None and not self._is_stopped:
            self._regions = shared_regions(self._process.pid) or self._regions
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(self.exit_timeout_s + 5 if grace_s is None else grace_s)
            kill_group(self._process.pid)
            self._process.wait()
            self._is_stopped = True  # from now on its number may be another's
            for region in self._regions:
                region.unlink(missing_ok=True)  # where the server was killed it is still there, and holds memory
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def log_tail(self, lines: int = 25) -> str:
        """The last lines of the log that say something: no tables, no mere information."""
        text = self.log_path.read_text(errors="replace") if self.log_path.is_file() else ""
        telling = [line for line in text.splitlines() if line and not re.match(r"[|+]|I\d{4} ", line)]
        return "\n".join(telling[-lines:])

    def _start_and_wait(self, log_mode: Literal["wb", "ab"]) -> None:
        wheel = find_wheel()
        if not (self.repository / "image_score" / "config.pbtxt").is_file():
            raise ServingError(f"{self.repository}: no model repository; build it with: make engines")
        check_decoders(wheel, self.repository)
        self._proof = proof_to_serve(self.repository)
        self._folder = Path(tempfile.mkdtemp(prefix="clipsieve-", dir=folder_without_spaces()))
        try:
            self._start(wheel, self._folder, log_mode)
            self._wait_until_ready()
            self._regions = shared_regions(self.pid)
        except BaseException:
            self.stop()
            raise

    def _start(self, wheel: TritonWheel, folder: Path, log_mode: Literal["wb", "ab"]) -> None:
        lay_out_backends(wheel, folder / "backends")
        # The server crashes on a space in its repository's path; a link has none.
        (folder / "models").symlink_to(self.repository.resolve(), target_is_directory=True)
        (folder / "empty").mkdir()
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        with self.log_path.open(log_mode) as log:
            self._process = subprocess.Popen(
                self._command(wheel, folder),
                cwd=folder / "empty",  # the current directory comes first on the Python processes' sys.path
                env=self._environment(wheel),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a Ctrl-C reaches us alone; we end the server in order
            )
        self._is_stopped = False

    def _command(self, wheel: TritonWheel, folder: Path) -> list[str]:
        larger_stacks = ["prlimit", f"--stack={STACK_BYTES}:"] if shutil.which("prlimit") else []
        stops_with_us = ["setpriv", "--pdeathsig=TERM"] if self._stops_with_us and shutil.which("setpriv") else []
        shared_bytes = shared_bytes_of_process()
        return [
            *stops_with_us,
            *larger_stacks,
            str(wheel.tritonserver),
            f"--model-repository={folder / 'models'}",
            f"--backend-directory={folder / 'backends'}",
            "--disable-auto-complete-config",
            f"--http-address={HOST}",
            f"--http-port={self.http_port}",
            f"--grpc-address={HOST}",
            f"--grpc-port={self.grpc_port}",
            f"--metrics-address={HOST}",
            f"--metrics-port={self.metrics_port}",
            f"--exit-timeout-secs={self.exit_timeout_s}",
            "--grpc-infer-allocation-pool-size=1",  # else it keeps the memory of its eight largest requests
            f"--backend-config=python,shm-default-byte-size={shared_bytes}",
            f"--backend-config=python,shm-growth-byte-size={shared_bytes}",
            *self._options,
        ]

    def _environment(self, wheel: TritonWheel) -> dict[str, str]:
        """The Python processes run the first python3 on PATH, and heed nothing else of the environment."""
        path = f"{wheel.environment.resolve() / 'bin'}:{os.environ.get('PATH', '')}"
        temporary = str(folder_without_spaces())
        return os.environ | {"PATH": path, "LD_LIBRARY_PATH": str(wheel.libraries), "TMPDIR": temporary}

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + self.ready_timeout_s
        with grpc_client(self.grpc_url) as client:
            for problem in self._problems(client):
                if problem is None:
                    return
                if time.monotonic() > deadline:
                    raise ServingError(
                        f"no successful inference within {self.ready_timeout_s:.0f} s ({problem}); "
                        f"end of {self.log_path}:\n{self.log_tail()}"
                    )
                time.sleep(0.1)

    def _problems(self, client: grpc.InferenceServerClient) -> Iterator[Finding | None]:
        """Yield what keeps the server from answering, again and again; None once it answers as its build verified.

        Raises:
            ProofMissed: it answers otherwise.
            ServingError: it ended, or never will answer.
        """
        while True:
            if (status := self.poll()) is not None:
                raise ServingError(
                    f"tritonserver ended with status {status}; end of {self.log_path}:\n{self.log_tail()}"
                )
            problem = probe(client, self.picture) or prove(client, self.proof, self.repository)
            if problem is not None and (problem.is_final or problem.kind == "refused"):
                raise ServingError(f"{problem}; end of {self.log_path}:\n{self.log_tail()}")
            yield problem


@contextlib.contextmanager
def held_ports(*ports: int) -> Iterator[list[int]]:
    """The ports themselves, with a free one in place of each 0; the system gives them to nobody else meanwhile.

    They are bound by sockets that do not listen: a server that sets SO_REUSEADDR, as tritonserver does, binds beside
    them, and again after a restart.

    Raises:
        ServingError: a port is taken.
    """
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in ports]
        for opened, port in zip(sockets, ports, strict=True):
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                opened.bind((HOST, port))
            except OSError as error:
                raise ServingError(
                    f"port {port} is taken ({error.strerror}); choose another, e.g. --grpc-port"
                ) from error
        yield [opened.getsockname()[1] for opened in sockets]


def free_ports(*ports: int) -> list[int]:
    """The ports of `held_ports`, held no longer: for a server that does not set SO_REUSEADDR."""
    with held_ports(*ports) as free:
        return free


def kill_group(pid: int) -> None:
    """End whatever is left of a process group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
