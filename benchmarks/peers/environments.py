"""The peers' own environments, `.peers/<name>`, which see the torch and open_clip of this one: 5 GB less each.

Nothing here asks for weights, and the peers run with the hub switched off.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from common.manifest import write_atomically
from common.paths import ROOT
from recipes.errors import ExpectedError

PEERS = ROOT / ".peers"
SHARED = ("torch", "torchvision", "torchaudio", "open-clip-torch", "timm")
"""Taken from this environment, whichever version a peer asks for: the comparison is of what surrounds them."""
QUIET = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "DO_NOT_TRACK": "1",
    "WANDB_MODE": "disabled",
    "INFINITY_ANONYMOUS_USAGE_STATS": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "TOKENIZERS_PARALLELISM": "false",
}


class PeerError(ExpectedError):
    """A peer cannot be installed or started, or answers wrongly; the run goes on without it."""


@dataclass(frozen=True)
class Environment:
    """A virtual environment for one peer."""

    name: str
    requirements: tuple[str, ...]
    """Requirements, as `uv pip install` takes them."""
    distribution: str
    """Distribution whose version is shown."""

    @property
    def folder(self) -> Path:
        return PEERS / self.name

    @property
    def bin(self) -> Path:
        return self.folder / "bin"

    @property
    def problem_file(self) -> Path:
        """File with the error of the last installation; empty when it worked."""
        return PEERS / f"{self.name}.problem"

    def variables(self, threads: int | None = None) -> dict[str, str]:
        """The environment of its processes; `threads` is for each of them."""
        path = {"PATH": f"{self.bin}:{os.environ.get('PATH', '')}", "PYTHONPATH": str(ROOT)}
        limits = {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
        return os.environ | QUIET | path | limits

    def check(self) -> None:
        """
        Raises:
            PeerError: it is not installed, with the installer's own last line when it was tried.
        """
        if not self.problem_file.is_file():
            raise PeerError("not installed; run: python -m benchmarks.peers --install")
        if problem := self.problem_file.read_text().strip():
            raise PeerError(f"could not be installed: {problem}")

    def version(self) -> str:
        """Installed version of the peer's distribution."""
        ask = f"import importlib.metadata as m; print(m.version({self.distribution!r}))"
        finished = subprocess.run([self.bin / "python", "-c", ask], capture_output=True, text=True, check=False)
        return finished.stdout.strip() or "unknown"


ENVIRONMENTS = {
    environment.name: environment
    for environment in (
        Environment("fastapi", ("fastapi", "uvicorn[standard]", "python-multipart"), "fastapi"),
        Environment("litserve", ("litserve==0.2.19", "pillow"), "litserve"),
        Environment(
            "transformers",
            ("transformers==5.24.0", "fastapi", "uvicorn[standard]", "python-multipart", "pillow"),
            "transformers",
        ),
        Environment("mlflow", ("--requirements", str(ROOT / "requirements" / "mlflow.txt")), "mlflow"),
        # clip-anytorch imports pkg_resources, which newer setuptools leave out.
        Environment("clip-retrieval", ("clip-retrieval", "setuptools<81"), "clip-retrieval"),
        # Its command line breaks with newer clicks, and it imports from transformers what 4.49 removed.
        Environment(
            "infinity",
            ("infinity-emb[server,torch]", "transformers<4.49", "optimum<2", "click<8.2", "pillow", "einops"),
            "infinity-emb",
        ),
    )
}


def install(environment: Environment) -> str:
    """Make the environment anew; empty, or the last line of what went wrong."""
    PEERS.mkdir(exist_ok=True)
    problem = _last_line_of_failure([sys.executable, "-m", "venv", "--without-pip", "--clear", environment.folder])
    if not problem:
        _share_packages(environment)
        problem = _last_line_of_failure(_install_command(environment))
    write_atomically(environment.problem_file, problem.encode())
    return problem


def overrides() -> str:
    """uv's overrides that leave the shared packages out, whoever asks for them."""
    return "".join(f"{name} ; python_version < '3'\n" for name in SHARED)


def last_line(text: str) -> str:
    """The last line that says something, without its frame."""
    lines = [stripped for line in text.splitlines() if (stripped := line.strip(" ╰─▶│×\t"))]
    return lines[-1] if lines else ""


def _install_command(environment: Environment) -> list[str | Path]:
    listed = PEERS / "overrides.txt"
    write_atomically(listed, overrides().encode())
    uv = Path(sys.executable).parent / "uv"
    target = ["--python", environment.bin / "python", "--override", listed]
    return [uv, "pip", "install", "--quiet", *target, *environment.requirements]


def _share_packages(environment: Environment) -> None:
    """A .pth file puts this environment's packages after the peer's own."""
    (site_packages,) = environment.folder.glob("lib/python*/site-packages")
    (site_packages / "shared.pth").write_text(f"{sysconfig.get_path('purelib')}\n")


def _last_line_of_failure(command: list[str | Path]) -> str:
    try:
        finished = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        return f"{command[0]}: {error.strerror}"
    if finished.returncode == 0:
        return ""
    return last_line(finished.stderr) or f"{Path(command[0]).name} ended with status {finished.returncode}"
