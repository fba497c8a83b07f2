"""Finds the tritonserver that the wheel nvidia-pytriton carries, and lays out its backends.

The server has an environment of its own, `.triton` (`make triton`): its Python backend was compiled
against numpy 1, and under numpy 2 every tensor arrives as repetitions of its first byte.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from common.model_config import read_config
from common.paths import ROOT
from recipes.errors import ExpectedError

ONNXRUNTIME_BACKEND = Path(__file__).parent / "backends" / "onnxruntime" / "model.py"


class ServingError(ExpectedError):
    """The server cannot be started or did not become ready."""


@dataclass(frozen=True)
class TritonWheel:
    """Paths inside an environment with nvidia-pytriton.

    Attributes:
        environment: the virtual environment; the server's Python processes run on its interpreter.
        site_packages: where its packages lie.
        python: minor version, e.g. `3.11`.
    """

    environment: Path
    site_packages: Path
    python: str

    @property
    def tritonserver(self) -> Path:
        return self.site_packages / "pytriton" / "tritonserver" / "bin" / "tritonserver"

    @property
    def libraries(self) -> Path:
        return self.site_packages / "nvidia_pytriton.libs"

    @property
    def python_backend(self) -> Path:
        return self.site_packages / "pytriton" / "tritonserver" / "backends" / "python"

    @property
    def stub(self) -> Path:
        """The Python backend's worker, built for this environment's minor version."""
        stubs = self.site_packages / "pytriton" / "tritonserver" / "python_backend_stubs"
        return stubs / self.python / "triton_python_backend_stub"


def find_wheel() -> TritonWheel:
    """The wheel in the environment $CLIPSIEVE_TRITON or .triton/.

    Raises:
        ServingError: it is not there, has no stub for its Python, or has a numpy it cannot work with.
    """
    environment = Path(os.environ.get("CLIPSIEVE_TRITON", ROOT / ".triton"))
    folders = sorted(environment.glob("lib/python3.*/site-packages"))
    if not folders:
        raise ServingError(f"no tritonserver in {environment}; install it with: make triton")
    wheel = TritonWheel(environment, folders[0], folders[0].parent.name.removeprefix("python"))
    if not wheel.tritonserver.is_file():
        raise ServingError(f"no tritonserver in {environment}; install it with: make triton")
    if not wheel.stub.is_file():
        raise ServingError(f"the wheel in {environment} has no Python backend for Python {wheel.python} (3.8 to 3.13)")
    numpy = [path.stem.split("-")[1] for path in wheel.site_packages.glob("numpy-*.dist-info")]
    if len(numpy) != 1 or not numpy[0].startswith("1."):
        raise ServingError(f"{environment} has numpy {numpy or 'missing'}, the server's Python backend needs numpy 1.x")
    return wheel


def check_decoders(wheel: TritonWheel, repository: Path) -> None:
    """Raise ServingError if the repository takes HEIC, whose decoder the server's environment does not have."""
    path = repository / "preprocess" / "config.pbtxt"
    formats = read_config(path).parameters["formats"].string_value.split(",") if path.is_file() else []
    if "HEIC" in formats and not (wheel.site_packages / "pillow_heif").is_dir():
        raise ServingError(
            f"{repository} takes HEIC (serving.formats), and {wheel.environment} has no pillow-heif; install it with: "
            f"make heic (or: .venv/bin/uv pip install --python {wheel.environment}/bin/python -r requirements/heic.txt)"
        )


def lay_out_backends(wheel: TritonWheel, folder: Path) -> None:
    """Fill a --backend-directory. Copies, because Triton refuses a symlink that leaves the directory."""
    python = folder / "python"
    python.mkdir(parents=True)
    for source in (*wheel.python_backend.iterdir(), wheel.stub):
        if source.is_file():
            shutil.copy(source, python)
    (folder / "onnxruntime").mkdir()
    shutil.copy(ONNXRUNTIME_BACKEND, folder / "onnxruntime")
