"""The proof that a model repository carries, and the one comparison of a server's answers with it.

A build proves one machine. The one that serves may have another CPU, GPU or library, or a damaged file. So the model
`proof` hands out proof.json: a few pictures with the embeddings and scores that were verified, and the recipe's limits.
Whoever wants to know whether a server may be trusted asks for it, sends the pictures and compares.

Standard library only. clients/clipsieve/proof_format.py is the same file to the letter, because the client imports
nothing of this tree.
"""

from __future__ import annotations

import base64
import json
import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

FORMAT = 1
"""Format of proof.json that this code reads."""
HEAD_TOLERANCE = 1e-4
"""Largest difference of a head's scores of the same embeddings, relative to the largest: another release or batch
differs by 1e-6."""

Row = Sequence[float]
Rows = Sequence[Row]


class ProofUnreadable(ValueError):
    """The text is no proof of this format."""


@dataclass(frozen=True)
class ProofPicture:
    """A picture with its embeddings, each (D,)."""

    name: str
    file: bytes
    """Encoded, in a format and within the limits that the recipe serves."""
    reference: Row
    """Embedding by the model's library in torch."""
    verified: Row
    """Embedding by the served file, when the build verified it."""

    @property
    def cosine(self) -> float:
        """Cosine of the two, as the build measured it."""
        return cosine(self.reference, self.verified)


@dataclass(frozen=True)
class ProofHead:
    """Scores that one revision of a head gives the pictures, each (N, L)."""

    name: str
    revision: int
    scores: Rows
    """Scores of the reference embeddings."""
    image_scores: Rows | None
    """Scores of the verified embeddings, which image_score must give; None for a head that it does not have."""


@dataclass(frozen=True)
class Proof:
    """proof.json."""

    recipe: str
    encoder: Mapping[str, Any]
    """The fingerprint of encoder.json."""
    onnx_sha256: str
    precision: str
    minimum_cosine: float
    """Lowest cosine of a served embedding to its reference."""
    maximum_score_difference: float
    """Largest difference of a score by image_score from the verified one, relative to the larger of 1 and that."""
    batch_size: int
    """Pictures in one request."""
    verified_on: str
    """The machine and the library that the build verified with, for people."""
    pictures: tuple[ProofPicture, ...]
    heads: tuple[ProofHead, ...]
    """One revision of each head; after a rollout also the one that it replaced, which other servers may still have."""

    @property
    def head_names(self) -> list[str]:
        return list(dict.fromkeys(head.name for head in self.heads))

    @property
    def image_heads(self) -> list[str]:
        """Names of those that image_score has."""
        return list(dict.fromkeys(head.name for head in self.heads if head.image_scores is not None))

    @property
    def smallest_picture(self) -> bytes:
        """The file that costs least to send: what regular health checks score."""
        return min((picture.file for picture in self.pictures), key=len)

    def batches(self) -> Iterator[tuple[ProofPicture, ...]]:
        """The pictures as they are sent."""
        for start in range(0, len(self.pictures), self.batch_size):
            yield self.pictures[start : start + self.batch_size]


@dataclass(frozen=True)
class HeadAnswer:
    """A server's scores of the pictures, by one head."""

    revisions: Sequence[int]
    """(N,)"""
    scores: Rows
    """(N, L)"""


@dataclass(frozen=True)
class Answers:
    """Answers that a server gives to the questions of a proof."""

    embeddings: Rows
    """(N, D) of image_embedding."""
    heads: Mapping[str, HeadAnswer] = field(default_factory=dict)
    """Answers of each `<head>_head` to the reference embeddings."""
    images: Mapping[str, HeadAnswer] = field(default_factory=dict)
    """Answers of image_score to the pictures."""


# The comparison


def cosine(first: Row, second: Row) -> float:
    """NaN, which fails every limit, where either has no length."""
    lengths = math.sqrt(math.fsum(value * value for value in first) * math.fsum(value * value for value in second))
    product = math.fsum(one * other for one, other in zip(first, second, strict=True))
    return product / lengths if lengths else math.nan


def misses(proof: Proof, answers: Answers) -> list[str]:
    """A line for each answer that is outside the limits, and for each that is missing; none for a server to trust."""
    lines = embedding_misses(proof, answers.embeddings)
    for name in proof.head_names:
        lines += head_misses(proof, name, answers.heads.get(name))
    for name in proof.image_heads:
        lines += image_misses(proof, name, answers.images.get(name))
    return lines


def embedding_misses(proof: Proof, embeddings: Rows) -> list[str]:
    """Compare (N, D) embeddings of the pictures with their references."""
    dims = [len(picture.reference) for picture in proof.pictures]
    if [len(row) for row in embeddings] != dims:
        return [f"embeddings have {[len(row) for row in embeddings]} dims, the pictures' references {dims}"]
    return [
        f"{picture.name}: cosine {here:.7f} to the reference, {picture.cosine:.7f} at the build; "
        f"at least {proof.minimum_cosine:g} is wanted"
        for picture, here in zip(proof.pictures, cosines(proof, embeddings), strict=True)
        if not here >= proof.minimum_cosine  # NaN fails as well
    ]


def cosines(proof: Proof, embeddings: Rows) -> list[float]:
    """(N,), to the references."""
    return [cosine(picture.reference, row) for picture, row in zip(proof.pictures, embeddings, strict=True)]


def head_misses(proof: Proof, name: str, answer: HeadAnswer | None) -> list[str]:
    """Compare what `<head>_head` made of the reference embeddings with the file's own scores."""
    model = f"{name}_head"
    head, problem = _spoken(proof, name, model, answer)
    if head is None or answer is None:
        return [problem]
    allowed = HEAD_TOLERANCE * max(1.0, *(abs(value) for row in head.scores for value in row))
    return _score_misses(proof, model, head.scores, answer.scores, [[allowed] * len(row) for row in head.scores])


def image_misses(proof: Proof, name: str, answer: HeadAnswer | None) -> list[str]:
    """Compare the scores that image_score gave the pictures with the verified ones."""
    head, problem = _spoken(proof, name, "image_score", answer)
    if head is None or answer is None:
        return [problem]
    if head.image_scores is None:
        return [f"image_score: has scores of {name}, which it should not have"]
    limit = proof.maximum_score_difference
    allowed = [[limit * max(1.0, abs(value)) for value in row] for row in head.image_scores]
    return _score_misses(proof, f"image_score: {name}", head.image_scores, answer.scores, allowed)


def _spoken(proof: Proof, name: str, where: str, answer: HeadAnswer | None) -> tuple[ProofHead | None, str]:
    """The revision that answered, or why it is none of the proof's."""
    known = {head.revision: head for head in proof.heads if head.name == name}
    answered = {int(revision) for revision in answer.revisions} if answer is not None else set()
    if len(answered) == 1 and answered <= known.keys():
        return known[min(answered)], ""
    answering = ", ".join(f"{revision:016x}" for revision in sorted(answered)) or "none"
    proved = ", ".join(f"{revision:016x}" for revision in known)
    return None, f"{where}: revision {answering} of {name} answers, known are {proved}"


def _score_misses(proof: Proof, where: str, expected: Rows, scores: Rows, allowed: Rows) -> list[str]:
    """Describe, for each picture, the largest difference that is not allowed."""
    if [len(row) for row in scores] != [len(row) for row in expected]:
        return [f"{where}: {[len(row) for row in scores]} scores, expected {[len(row) for row in expected]}"]
    lines = []
    for picture, verified, served, limits in zip(proof.pictures, expected, scores, allowed, strict=True):
        differing = [
            (value, known, limit)
            for value, known, limit in zip(served, verified, limits, strict=True)
            if not abs(value - known) <= limit  # NaN fails as well
        ]
        if differing:
            value, known, limit = max(differing, key=lambda each: _badness(each[0] - each[1]))
            lines.append(
                f"{where}: {picture.name}: score {value:.6g}, {known:.6g} at the build; ±{limit:.2g} is allowed"
            )
    return lines


def _badness(difference: float) -> float:
    return math.inf if math.isnan(difference) else abs(difference)


def failure_message(proof: Proof, lines: Sequence[str], here: str | None = None) -> str:
    """Message that names the misses, the place, and what to do.

    Args:
        here: the machine that serves, and its library; None when that is not known.
    """
    served_on = f"served on {here}, " if here else ""
    return "\n  ".join(
        [
            f"the server does not answer as its build (recipe {proof.recipe}, {proof.precision}) verified:",
            *lines,
            f"{served_on}verified on {proof.verified_on}",
            "build again on the machine that serves (make engines), or with another build.precision; "
            "if a file was damaged on its way, install the repository again",
        ]
    )


def success_message(proof: Proof, embeddings: Rows) -> str:
    """`4 proof pictures: cosine >= 0.999998 (limit 0.99999)`"""
    lowest = min(cosines(proof, embeddings))
    return f"{len(proof.pictures)} proof pictures: cosine >= {_floor(lowest)} (limit {proof.minimum_cosine:g})"


def _floor(value: float) -> str:
    """Round down to at most seven digits, so that the printed value is never too high."""
    return f"{math.floor(value * 1e7) / 1e7:.7g}"


# proof.json


def proof_to_json(proof: Proof) -> str:
    """Strict JSON.

    Raises:
        ValueError: a number is not finite.
    """
    document = {
        "format": FORMAT,
        "recipe": proof.recipe,
        "encoder": dict(proof.encoder),
        "onnx_sha256": proof.onnx_sha256,
        "precision": proof.precision,
        "minimum_cosine": proof.minimum_cosine,
        "maximum_score_difference": proof.maximum_score_difference,
        "batch_size": proof.batch_size,
        "verified_on": proof.verified_on,
        "pictures": [
            {
                "name": picture.name,
                "file": base64.b64encode(picture.file).decode(),
                "reference": _packed(picture.reference),
                "verified": _packed(picture.verified),
            }
            for picture in proof.pictures
        ],
        "heads": [
            {
                "name": head.name,
                "revision": f"{head.revision:016x}",
                "scores": head.scores,
                "image_scores": head.image_scores,
            }
            for head in proof.heads
        ],
    }
    return json.dumps(document, indent=1, allow_nan=False) + "\n"


def proof_from_json(text: str | bytes) -> Proof:
    """Read what `proof_to_json` wrote.

    Raises:
        ProofUnreadable: truncated, another format, a field missing or malformed, or a number that is not finite.
    """
    try:
        document = json.loads(text, parse_constant=_no_constant)
        if document["format"] != FORMAT:
            raise ProofUnreadable(f"format {document['format']!r}, this version reads {FORMAT}")
        proof = _proof(document)
    except ProofUnreadable:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, struct.error) as error:
        raise ProofUnreadable(f"{type(error).__name__}: {error}") from error
    _check(proof)
    return proof


def _proof(document: Mapping[str, Any]) -> Proof:
    pictures = tuple(
        ProofPicture(
            str(each["name"]),
            base64.b64decode(each["file"], validate=True),
            _unpacked(each["reference"]),
            _unpacked(each["verified"]),
        )
        for each in document["pictures"]
    )
    heads = tuple(
        ProofHead(
            str(each["name"]),
            int(each["revision"], 16),
            _rows(each["scores"]),
            None if each["image_scores"] is None else _rows(each["image_scores"]),
        )
        for each in document["heads"]
    )
    return Proof(
        recipe=str(document["recipe"]),
        encoder=dict(document["encoder"]),
        onnx_sha256=str(document["onnx_sha256"]),
        precision=str(document["precision"]),
        minimum_cosine=float(document["minimum_cosine"]),
        maximum_score_difference=float(document["maximum_score_difference"]),
        batch_size=int(document["batch_size"]),
        verified_on=str(document["verified_on"]),
        pictures=pictures,
        heads=heads,
    )


def _check(proof: Proof) -> None:
    """Refuse a proof that is well written and makes no sense."""
    embeddings = [row for picture in proof.pictures for row in (picture.reference, picture.verified)]
    scores = [rows for head in proof.heads for rows in (head.scores, head.image_scores) if rows is not None]
    numbers = [value for rows in (embeddings, *scores) for row in rows for value in row]
    if not proof.pictures or not all(picture.file for picture in proof.pictures) or not proof.heads:
        raise ProofUnreadable("no pictures, an empty picture, or no heads")
    if len({len(row) for row in embeddings}) != 1 or any(len(rows) != len(proof.pictures) for rows in scores):
        raise ProofUnreadable("embeddings of several lengths, or scores of another number of pictures")
    if not all(map(math.isfinite, (proof.minimum_cosine, proof.maximum_score_difference, *numbers))):
        raise ProofUnreadable("a number is not finite")
    if not 0 < proof.minimum_cosine <= 1 or proof.maximum_score_difference <= 0 or proof.batch_size < 1:
        raise ProofUnreadable("a limit or the batch size is out of range")


def _packed(row: Row) -> str:
    """float32, little-endian, as base64."""
    return base64.b64encode(struct.pack(f"<{len(row)}f", *row)).decode()


def _unpacked(text: str) -> Row:
    data = base64.b64decode(text, validate=True)
    return struct.unpack(f"<{len(data) // 4}f", data)


def _rows(rows: Sequence[Sequence[Any]]) -> Rows:
    return tuple(tuple(float(value) for value in row) for row in rows)


def _no_constant(name: str) -> float:
    raise ProofUnreadable(f"{name} is no number")
