"""Measures one setting: a repository with it, the embedded server on free ports, perf_analyzer.

Both run as the commands that people type, `python -m serving.embedded` and `python -m serving.perf`.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from build import repository_configs
from build.errors import BuildError
from build.repository import install, read_artefacts, stamped_configs
from common.manifest import write_atomically
from common.paths import ROOT
from common.proof_file import read_proof, write_proof
from recipes.schema import Recipe
from tuning.candidates import Setting
from tuning.rows import Figures

STOP_S = 60
TOLD_LINES, LONGEST_LINE = 12, 300
"""The last lines of a failed command that are kept, and how much of each."""


class CandidateError(BuildError):
    """The server did not start with a setting, or could not be measured: a row with an error."""


@dataclass(frozen=True)
class Load:
    """What perf_analyzer sends: one picture a request, so many requests in flight, for so long each."""

    concurrencies: tuple[int, ...]
    seconds: float
    images: Path | None
    """A folder; None for the photographs that the project brings."""

    def options(self) -> list[str]:
        concurrencies = [str(concurrency) for concurrency in self.concurrencies]
        images = [] if self.images is None else ["--images", str(self.images)]
        return ["--concurrency", *concurrencies, "--seconds", str(self.seconds), *images]


class Bench:
    """A model repository in `folder`, whose configs are stamped anew for every setting.

    Args:
        recipe_reference: the recipe's name or path, as the commands take it.

    Raises:
        ManifestError: the recipe is not built.
        RepositoryError: it does not fit the checked-in configs.
    """

    def __init__(self, recipe: Recipe, recipe_reference: str, load: Load, folder: Path) -> None:
        self._recipe, self._reference, self._load, self._folder = recipe, recipe_reference, load, folder
        self._repository = folder / "model_repository"
        install(recipe, self._repository, "onnx")

    def measure(self, setting: Setting) -> dict[int, Figures | str]:
        """What was found at each concurrency, or why nothing was.

        Raises:
            CandidateError: the server did not start.
        """
        stamp(setting.applied_to(self._recipe), self._repository)
        with served(self._reference, self._repository, self._folder) as url:
            printed = _run("serving.perf", self._reference, "--url", url, "--keep-going", *self._load.options())
        rows = json.loads(printed.splitlines()[-1])["rows"]
        return {row["concurrency"]: _figures(row) for row in rows}


def stamp(recipe: Recipe, repository: Path) -> None:
    """Write the recipe's numbers into a repository that holds its models: its configs, and its proof's requests."""
    for name, config in stamped_configs(recipe, read_artefacts(recipe), []).items():
        text = repository_configs.to_text(config, recipe.name)
        write_atomically(repository / name / "config.pbtxt", text.encode())
    proof = read_proof(repository)
    requests = min(len(proof.pictures), recipe.serving.max_batch_size)
    write_proof(repository, replace(proof, batch_size=requests))


@contextlib.contextmanager
def served(recipe_reference: str, repository: Path, folder: Path) -> Iterator[str]:
    """The embedded server's gRPC address, while it runs; its log and what it says go into `folder`.

    Raises:
        CandidateError: it did not start.
    """
    options = ["--repository", str(repository), "--http-port", "0", "--grpc-port", "0", "--metrics-port", "0"]
    options += ["--log", str(folder / "tritonserver.log"), "--no-restart", "--json"]
    command = _command("serving.embedded", recipe_reference, *options)
    errors = folder / "embedded.log"
    with (
        errors.open("wb") as said,
        subprocess.Popen(command, env=_environment(), stdout=subprocess.PIPE, stderr=said, text=True) as process,
    ):
        try:
            assert process.stdout is not None
            if not (line := process.stdout.readline()):
                raise CandidateError(_reason(errors.read_text(errors="replace"), "serving.embedded"))
            yield json.loads(line)["grpc"]
        finally:
            _stop(process)


def check_load(recipe_reference: str, load: Load) -> dict[str, Any]:
    """The number of pictures, their sha256, and versions of what serves and measures.

    Raises:
        BuildError: perf_analyzer, the server or the pictures are missing.
    """
    try:
        return json.loads(_run("serving.perf", recipe_reference, "--check", *load.options()))
    except CandidateError as error:
        raise BuildError(str(error).removeprefix("serving.perf: ")) from error


def _figures(row: dict[str, Any]) -> Figures | str:
    if "error" in row:
        return _end_of(row["error"], 2)
    return Figures(**{name: row[name] for name in Figures.model_fields})


def _run(module: str, recipe_reference: str, *options: str) -> str:
    """What a command prints on stdout.

    Raises:
        CandidateError: it failed; with what it said.
    """
    command = _command(module, recipe_reference, *options)
    finished = subprocess.run(command, env=_environment(), capture_output=True, text=True, check=False)
    if finished.returncode:
        raise CandidateError(_reason(finished.stderr, module))
    return finished.stdout


def _command(module: str, recipe_reference: str, *options: str) -> list[str]:
    return [sys.executable, "-m", module, "--recipe", recipe_reference, *options]


def _environment() -> dict[str, str]:
    """The project's modules are found whatever the current directory is."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return os.environ | {"PYTHONPATH": path}


def _reason(text: str, module: str) -> str:
    """Why a command failed, in the first line, and what else it said: its message begins with its name."""
    lines = _end_of(text, len(text)).splitlines()
    at = next((at for at in reversed(range(len(lines))) if lines[at].startswith(f"{module}: ")), -1)
    others = lines[at + 1 :] if at >= 0 else lines[:-1]
    return "\n".join([lines[at], *others[1 - TOLD_LINES :]])


def _end_of(text: str, most_lines: int = TOLD_LINES) -> str:
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return "\n".join(line[:LONGEST_LINE] for line in lines[-most_lines:]) or "it ended and said nothing"


def _stop(process: subprocess.Popen) -> None:
    process.terminate()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
