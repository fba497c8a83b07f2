"""The container's health check: a real inference through every model, and at a server's start its proof.

    python3 serving/container/health.py http://127.0.0.1:8000

Triton's health URLs stay green when a model's process is dead. The first time that a server answers it is held against
the proof of its repository (`common.proof`): it never becomes healthy when its answers are not those that the build
verified. A marker in the temporary folder remembers that they were; later checks score and embed one small picture.

Standard library only, because it runs in the server's image; exits 1 and says what is wrong. A server that is merely
busy is healthy, once it was proved: a restart would only make it worse.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
import tempfile
import time
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Iterable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the image has no PYTHONPATH

from common.cpu import processors
from common.proof import Answers, HeadAnswer, Proof, ProofUnreadable, failure_message, misses, proof_from_json
from common.triton_messages import ENSEMBLES, HIGHEST_PRIORITY, PROBE_ID, is_queue_refusal

REQUEST = {"id": PROBE_ID, "parameters": {"priority": HIGHEST_PRIORITY}}
TIMEOUT_S = 8.0
"""Time limit of each request of a regular check."""
PROOF_TIMEOUT_S = 45.0
"""Time limit of a whole proof; the probes that run this give it a minute."""
MARKERS = Path(tempfile.gettempdir())
"""Folder of the marker files, one for each server that was proved."""
INIT = Path("/proc/1/stat")
"""The container's first process is the server (start.sh becomes it)."""

DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Opens URLs without a proxy: $http_proxy would be used for loopback as well."""


class Unhealthy(Exception):
    """The server does not answer as it should."""


class Busy(Exception):
    """The server works and has no room for the request now."""


def check(url: str) -> str | None:
    """Prove a server that was not proved yet, probe another; None when it is healthy, else what is wrong."""
    try:
        text = fetch_proof(url)
        proof = proof_from_json(text)
        marker = marker_path(url, text)
        if marker.exists():
            return probe(url, proof.smallest_picture)
        prove(url, proof)
    except ProofUnreadable as error:
        return f"the server's proof cannot be read: {error}; install its repository again: make engines"
    except (Unhealthy, Busy) as error:
        return str(error)
    remember(marker)
    return None


def probe(url: str, picture: bytes) -> str | None:
    """Score and embed a picture; None when it worked or the server is busy, else what went wrong."""
    for model in ENSEMBLES:
        try:
            infer(url, model, images([picture]), TIMEOUT_S)
        except Busy as error:
            print(f"busy: {error}", file=sys.stderr)
        except Unhealthy as error:
            return str(error)
    return None


def prove(url: str, proof: Proof) -> None:
    """Send the proof's pictures and compare.

    Raises:
        Unhealthy: an answer is outside the limits, or there is none.
        Busy: the server has no room for them now.
    """
    give_up_at = time.monotonic() + PROOF_TIMEOUT_S

    def ask(model: str, tensors: Iterable[dict[str, Any]]) -> dict[str, list[list[float]]]:
        joined: dict[str, list[list[float]]] = {}
        for tensor in tensors:
            for name, rows in infer(url, model, tensor, give_up_at - time.monotonic()).items():
                joined.setdefault(name, []).extend(rows)
        return joined

    def answer(outputs: dict[str, list[list[float]]], score: str, revision: str) -> HeadAnswer:
        if score not in outputs or revision not in outputs:
            raise Unhealthy(f"no outputs {score} and {revision}, only {', '.join(outputs)}")
        return HeadAnswer([int(row[0]) for row in outputs[revision]], outputs[score])

    heads = {name: ask(f"{name}_head", references(proof)) for name in proof.head_names}
    scores = ask("image_score", pictures(proof))
    embeddings = ask("image_embedding", pictures(proof))
    answers = Answers(
        embeddings.get("embedding", []),
        {name: answer(outputs, "score", "revision") for name, outputs in heads.items()},
        {name: answer(scores, name, f"{name}_revision") for name in proof.image_heads},
    )
    if missed := misses(proof, answers):
        raise Unhealthy(failure_message(proof, missed, processors()))


def fetch_proof(url: str) -> bytes:
    """The text of proof.json, from the server itself.

    Raises:
        Unhealthy: it gives none, which a server that is starting does not do either.
    """
    newest_format = {"name": "format", "datatype": "INT32", "shape": [1], "data": [1]}
    outputs = post(url, "proof", newest_format, TIMEOUT_S)
    try:
        (output,) = outputs
        (text,) = output["data"]
        return text.encode()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Unhealthy(f"proof: {error!r:.200}") from error


def infer(url: str, model: str, tensor: dict[str, Any], timeout_s: float) -> dict[str, list[list[float]]]:
    """The outputs' rows by name.

    Raises:
        Unhealthy: no answer, no outputs, or a number that is not finite.
        Busy: no room.
    """
    outputs = post(url, model, tensor, timeout_s)
    try:
        wrong = [output["name"] for output in outputs if not all(map(math.isfinite, output["data"]))]
        if wrong or not outputs:
            raise Unhealthy(f"{model}: outputs {wrong} are not finite numbers" if wrong else f"{model}: no outputs")
        return {output["name"]: rows(output) for output in outputs}
    except (KeyError, TypeError, ValueError) as error:
        raise Unhealthy(f"{model}: {error!r:.200}") from error


def rows(output: dict[str, Any]) -> list[list[float]]:
    """The numbers of one output, of which JSON has the rows one after another."""
    count = output["shape"][0]
    width = len(output["data"]) // count
    return [output["data"][index * width : (index + 1) * width] for index in range(count)]


def post(url: str, model: str, tensor: dict[str, Any], timeout_s: float) -> list[dict[str, Any]]:
    """One request; its outputs as they come. Raises as `infer`."""
    body = json.dumps({**REQUEST, "inputs": [tensor]}).encode()
    request = urllib.request.Request(f"{url}/v2/models/{model}/infer", body, {"Content-Type": "application/json"})
    try:
        with DIRECT.open(request, timeout=max(0.1, timeout_s)) as response:
            return list(json.load(response)["outputs"])
    except urllib.error.HTTPError as error:
        with error:
            text = error.read().decode(errors="replace")
        problem = (
            f"{model}: HTTP {error.code}: {text:.300}" if not is_busy(error.code, text) else f"{model}: {text:.300}"
        )
        raise (Busy if is_busy(error.code, text) else Unhealthy)(problem) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Unhealthy(f"{model}: {error}") from error


def images(files: list[bytes]) -> dict[str, Any]:
    texts = [b64encode(file).decode() for file in files]
    return {"name": "image", "datatype": "BYTES", "shape": [len(texts), 1], "data": texts}


def pictures(proof: Proof) -> Iterable[dict[str, Any]]:
    return (images([picture.file for picture in batch]) for batch in proof.batches())


def references(proof: Proof) -> Iterable[dict[str, Any]]:
    for batch in proof.batches():
        numbers = [value for picture in batch for value in picture.reference]
        shape = [len(batch), len(numbers) // len(batch)]
        yield {"name": "embedding", "datatype": "FP32", "shape": shape, "data": numbers}


def is_busy(status: int, text: str) -> bool:
    """Check that the server refused because a queue is full."""
    return status == 503 and is_queue_refusal(text)


def marker_path(url: str, proof: bytes) -> Path:
    """A file that is there once the server of this start was proved against this proof."""
    try:
        started = INIT.read_text().rpartition(")")[2].split()[19]  # field 22 of proc(5): when the process began
    except (OSError, IndexError):
        started = "unknown"
    key = hashlib.sha256(b"\0".join([url.encode(), started.encode(), proof])).hexdigest()
    return MARKERS / f"clipsieve-proved-{key[:32]}"


def remember(marker: Path) -> None:
    try:
        marker.touch()
    except OSError as error:  # then every check is a whole proof
        print(f"{marker}: {error.strerror}; the server will be proved again", file=sys.stderr)


def main(argv: list[str]) -> int:
    problem = check(argv[0] if argv else "http://127.0.0.1:8000")
    if problem is not None:
        print(f"unhealthy: {problem}", file=sys.stderr)
    return 0 if problem is None else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
