"""Checks that a server answers as its build verified: asks it for its proof, sends the pictures and compares.

The proof is a model of the server's repository (`proof`): a few pictures with the embeddings and scores that the build
measured, and the recipe's limits. `Client.health` uses it; see `proof_format` for what is compared.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from clipsieve.exceptions import AccessDenied, InferenceFailed
from clipsieve.proof_format import Answers, HeadAnswer, Proof, ProofUnreadable, proof_from_json
from clipsieve.transport import PROBE_ID, Request, Tensor, Transport, embedding_tensor, image_tensor

PROOF_MODEL = "proof"
NO_PROOF = "not proved: the server shows no model `proof`; install its repository again (make engines) to have it"
"""Message for a server without a proof, and for a proxy that hides the model."""

_ABSENT = ("NOT_FOUND", "UNIMPLEMENTED", "HTTP_405")
"""Codes of a server without the model, or of a proxy that lets the others through alone."""


async def fetch_proof(transport: Transport, timeout_s: float) -> Proof | None:
    """The server's proof; None when it has none, or does not show it to us.

    Raises:
        ProofUnreadable: it is damaged, or of a newer format.
        ClipsieveError: the server fails.
    """
    newest_format = Tensor("format", "INT32", (1,), [np.array([1], "<i4").tobytes()])
    try:
        answer = await transport.infer(Request(PROOF_MODEL, newest_format, ("proof",), id=PROBE_ID), timeout_s)
    except AccessDenied:
        return None
    except InferenceFailed as error:
        if error.code in _ABSENT:
            return None
        raise
    texts = answer["proof"].reshape(-1).tolist()
    if len(texts) != 1 or not isinstance(texts[0], bytes):
        raise ProofUnreadable(f"{len(texts)} texts, expected one")
    return proof_from_json(texts[0])


async def ask(transport: Transport, proof: Proof, timeout_s: float) -> Answers:
    """All that the proof covers, in few requests.

    Args:
        timeout_s: deadline for one picture; a request has so much for each of its own.

    Raises:
        ClipsieveError: the server fails, refuses or takes too long.
    """

    async def infer(model: str, tensors: Iterator[Tensor], outputs: list[str]) -> dict[str, np.ndarray]:
        parts = [
            await transport.infer(Request(model, tensor, outputs, id=PROBE_ID), timeout_s * proof.batch_size)
            for tensor in tensors
        ]
        return {name: np.concatenate([part[name] for part in parts]) for name in outputs}

    def pictures() -> Iterator[Tensor]:
        return (image_tensor(*(picture.file for picture in batch)) for batch in proof.batches())

    def references() -> Iterator[Tensor]:
        rows = ([picture.reference for picture in batch] for batch in proof.batches())
        return (embedding_tensor(np.array(batch, np.float32)) for batch in rows)

    heads = {name: await infer(f"{name}_head", references(), ["score", "revision"]) for name in proof.head_names}
    outputs = [f"{name}{suffix}" for name in proof.image_heads for suffix in ("", "_revision")]
    images = await infer("image_score", pictures(), outputs) if outputs else {}
    embeddings = await infer("image_embedding", pictures(), ["embedding"])
    return Answers(
        embeddings["embedding"].tolist(),
        {name: _answer(answer["score"], answer["revision"]) for name, answer in heads.items()},
        {name: _answer(images[name], images[f"{name}_revision"]) for name in proof.image_heads},
    )


def _answer(scores: np.ndarray, revisions: np.ndarray) -> HeadAnswer:
    return HeadAnswer(revisions.reshape(-1).tolist(), scores.tolist())
