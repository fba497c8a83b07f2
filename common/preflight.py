"""Checks of the model repository and the machine, made before a server starts.

    python -m common.preflight model_repository

TensorRT plans fit this GPU and TensorRT, the proof is of the encoder and the heads that lie there, and the CPU can run
an int8 encoder. Each problem is a line with its remedy; encoders laid out for another machine are a note. It runs in
the server's image, with pydantic and PyYAML alone.
"""

from __future__ import annotations

import sys
from pathlib import Path

from common import cpu, plans
from common.instances import Processors, other_machine_note
from common.manifest import ManifestError, read_encoder
from common.proof_file import proof_problems


def problems(repository: Path) -> list[str]:
    """All of them; none for a folder without an encoder, which Triton itself will speak of."""
    if not (repository / "clip_encoder").is_dir():
        return []
    return [*plans.repository_problems(repository), *model_problems(repository)]


def model_problems(repository: Path) -> list[str]:
    """Problems that do not depend on a GPU: of the proof and of the CPU."""
    return [*proof_problems(repository), *_int8_problems(repository / "clip_encoder" / "1")]


def _int8_problems(version: Path) -> list[str]:
    try:
        encoder = read_encoder(version)
    except ManifestError:
        return []  # the proof's check says so
    is_onnx = encoder.precision == "int8" and (version / "model.onnx").is_file()
    problem = cpu.int8_problem(cpu.find_cpu()) if is_onnx else None
    return [] if problem is None else [f"{version}: {problem}"]


def main(argv: list[str]) -> int:
    if len(argv) != 1:
        print("usage: python -m common.preflight MODEL_REPOSITORY", file=sys.stderr)
        return 2
    repository = Path(argv[0])
    if note := other_machine_note(repository, Processors.of_this_machine()):
        print(f"common.preflight: {note}", file=sys.stderr)
    lines = problems(repository)
    for problem in lines:
        print(f"common.preflight: {problem}", file=sys.stderr)
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
