"""Asks a server for all that its proof covers, over gRPC, and compares: see `common.proof`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tritonclient.grpc as grpc
from tritonclient.utils import InferenceServerException

from common.cpu import processors
from common.manifest import ManifestError, onnx_files, read_encoder, sha256_of
from common.preflight import model_problems
from common.proof import Answers, HeadAnswer, Proof, failure_message, misses
from common.proof_file import ProofFileError, read_proof
from common.triton_messages import HIGHEST_PRIORITY, PROBE_ID
from serving.probe import Finding, finding_from
from serving.triton_wheel import ServingError, TritonWheel, find_wheel

PICTURE_TIMEOUT_S = 30.0
"""Time limit for each picture that is encoded: the largest encoder on one slow core takes a third of it."""


class ProofMissed(ServingError):
    """A server answers otherwise than its build verified; starting it again changes nothing."""


class _Call(NamedTuple):
    """One request of a proof."""

    model: str
    tensor: grpc.InferInput
    outputs: list[str]


def proof_to_serve(repository: Path) -> Proof:
    """The proof of a repository that can be served on this machine, as far as that is known before it is.

    Raises:
        ServingError: there is none, it is of other models than lie there, or the CPU cannot run the encoder.
    """
    if problems := model_problems(repository):
        raise ServingError("\n".join(problems))
    return installed_proof(repository)


def installed_proof(repository: Path) -> Proof:
    """`read_proof` for those who serve; raises ServingError."""
    try:
        return read_proof(repository)
    except ProofFileError as error:
        raise ServingError(str(error)) from error


def prove(client: grpc.InferenceServerClient, proof: Proof, repository: Path) -> Finding | None:
    """Send the pictures to the embedded server; None when its answers are within the limits, or why there was none.

    Args:
        repository: what it serves, to look for damage.

    Raises:
        ProofMissed: an answer is not; the message names it, both machines and what to do.
    """
    try:
        answers = ask(client, proof)
    except InferenceServerException as error:
        return finding_from("proof", error)
    if lines := misses(proof, answers):
        raise ProofMissed(failure_message(proof, [*lines, *damage(repository)], embedded_machine(find_wheel())))
    return None


def ask(client: grpc.InferenceServerClient, proof: Proof) -> Answers:
    """All that the proof covers, in few requests.

    Raises:
        InferenceServerException: the server fails, refuses or takes too long.
    """
    deadline = time.monotonic() + PICTURE_TIMEOUT_S * len(proof.pictures)

    def infer(call: _Call) -> dict[str, np.ndarray]:
        result = client.infer(
            call.model,
            [call.tensor],
            outputs=[grpc.InferRequestedOutput(name) for name in call.outputs],
            request_id=PROBE_ID,
            priority=HIGHEST_PRIORITY,
            client_timeout=max(0.01, deadline - time.monotonic()),
        )
        assert result is not None
        return {name: np.asarray(result.as_numpy(name)) for name in call.outputs}

    def joined(calls: list[_Call]) -> dict[str, np.ndarray]:
        parts = [infer(call) for call in calls]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    pictures = [_images([picture.file for picture in batch]) for batch in proof.batches()]
    references = [_embeddings([picture.reference for picture in batch]) for batch in proof.batches()]
    image_outputs = [f"{name}{suffix}" for name in proof.image_heads for suffix in ("", "_revision")]
    heads = {
        name: joined([_Call(f"{name}_head", tensor, ["score", "revision"]) for tensor in references])
        for name in proof.head_names
    }
    embeddings = joined([_Call("image_embedding", tensor, ["embedding"]) for tensor in pictures])["embedding"]
    images = joined([_Call("image_score", tensor, image_outputs) for tensor in pictures]) if image_outputs else {}
    return Answers(
        embeddings.tolist(),
        {name: head_answer(outputs["score"], outputs["revision"]) for name, outputs in heads.items()},
        {name: head_answer(images[name], images[f"{name}_revision"]) for name in proof.image_heads},
    )


def head_answer(scores: np.ndarray, revisions: np.ndarray) -> HeadAnswer:
    """Answer made of `score` (N, L) and `revision` (N, 1)."""
    return HeadAnswer(revisions.reshape(-1).tolist(), scores.tolist())


def damage(repository: Path) -> list[str]:
    """A line when the encoder's file is not the one that was installed, which takes a second for each GB."""
    version = repository / "clip_encoder" / "1"
    path = version / "model.onnx"
    try:
        expected = read_encoder(version).onnx_sha256
    except ManifestError:
        return []
    if not path.is_file() or (actual := sha256_of(*onnx_files(path))) == expected:
        return []
    return [f"{path} is damaged: its sha256 is {actual}, encoder.json says {expected}"]


def embedded_machine(wheel: TritonWheel) -> str:
    """Description of the embedded server's machine: the processors, and the onnxruntime of its environment."""
    versions = [path.stem.split("-")[1] for path in wheel.site_packages.glob("onnxruntime*-*.dist-info")]
    return f"{processors()} with onnxruntime {', '.join(versions) or '(none)'}"


def _images(files: list[bytes]) -> grpc.InferInput:
    tensor = grpc.InferInput("image", [len(files), 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[file] for file in files], dtype=object))
    return tensor


def _embeddings(rows: list) -> grpc.InferInput:
    values = np.array(rows, np.float32)
    tensor = grpc.InferInput("embedding", list(values.shape), "FP32")
    tensor.set_data_from_numpy(values)
    return tensor
