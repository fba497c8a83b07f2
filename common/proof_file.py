"""proof.json in a model repository: where it lies, how it changes, and whether it is of the models beside it."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path

from common.manifest import ManifestError, read_encoder, read_head, write_atomically
from common.proof import Proof, ProofHead, ProofUnreadable, proof_from_json, proof_to_json
from recipes.errors import ExpectedError

REMEDY = "install the repository again, with the artefacts of its build: make engines"


class ProofFileError(ExpectedError):
    """proof.json is missing or cannot be read."""


def proof_path(repository: Path) -> Path:
    return repository / "proof" / "1" / "proof.json"


def read_proof(repository: Path) -> Proof:
    """The proof of a repository.

    Raises:
        ProofFileError: there is none, or it is damaged; with the remedy.
    """
    path = proof_path(repository)
    try:
        return proof_from_json(path.read_bytes())
    except OSError as error:
        reason = "not found" if isinstance(error, FileNotFoundError) else error.strerror
        raise ProofFileError(f"{path}: {reason}; without it nobody knows what is served here; {REMEDY}") from error
    except ProofUnreadable as error:
        raise ProofFileError(f"{path}: damaged ({error}); {REMEDY}") from error


def write_proof(repository: Path, proof: Proof) -> None:
    """Replace the proof; the server hands out the new one from the next request on."""
    write_atomically(proof_path(repository), proof_to_json(proof).encode())


def set_head(repository: Path, head: ProofHead | None, name: str, kept: Collection[int]) -> None:
    """Make the proof say of the head `name` what it said of the revisions `kept`, then what `head` says, and no more.

    Raises:
        ProofFileError: there is no proof.
    """
    with _only_writer(repository):
        proof = read_proof(repository)
        others = [each for each in proof.heads if each.name != name]
        revisions = {*kept} - ({head.revision} if head is not None else set())
        before = [each for each in proof.heads if each.name == name and each.revision in revisions]
        write_proof(repository, replace(proof, heads=(*others, *before, *([] if head is None else [head]))))


def proof_problems(repository: Path) -> list[str]:
    """List why a repository's proof is none of the encoder and the heads that lie there; empty when it is."""
    try:
        proof = read_proof(repository)
        encoder = read_encoder(repository / "clip_encoder" / "1")
        installed = {folder.name.removesuffix("_head"): _revisions(folder) for folder in repository.glob("*_head")}
    except (ProofFileError, ManifestError) as error:
        return [str(error)]
    path = proof_path(repository)
    here = encoder.fingerprint().model_dump() | {"onnx_sha256": encoder.onnx_sha256, "precision": encoder.precision}
    proved = dict(proof.encoder) | {"onnx_sha256": proof.onnx_sha256, "precision": proof.precision}
    problems = [
        f"{path}: of another encoder: its {key} is {proved.get(key)!r}, encoder.json says {value!r}; {REMEDY}"
        for key, value in here.items()
        if proved.get(key) != value
    ]
    for name in sorted({*installed, *proof.head_names}):
        known = {head.revision for head in proof.heads if head.name == name}
        if not known & installed.get(name, set()):
            problems.append(
                f"{path}: of another head {name}: it knows {_listed(known)}, installed is "
                f"{_listed(installed.get(name, set()))}; {REMEDY}"
            )
    return problems


def _revisions(model: Path) -> set[int]:
    """Those of a head that are installed; which of them is served is another question."""
    return {read_head(path.parent).revision for path in model.glob("[0-9]*/head.json")}


def _listed(revisions: set[int]) -> str:
    return ", ".join(f"revision {revision:016x}" for revision in sorted(revisions)) or "none"


@contextlib.contextmanager
def _only_writer(repository: Path) -> Iterator[None]:
    """Two rollouts of different heads change one file: each waits for the other."""
    handle = os.open(proof_path(repository).parent, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
