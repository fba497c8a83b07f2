"""The container's health check: a real inference through every model.

    python3 serving/container/health.py http://127.0.0.1:8000

Triton's health URLs stay green when a model's process is dead. Standard library only, because it runs in the server's
image; exits 1 and says what is wrong. A server that is merely busy is healthy: a restart would only make it worse.
"""

from __future__ import annotations

import json
import math
import sys
import urllib.error
import urllib.request

ENSEMBLES = ("image_score", "image_embedding")
GREY_PNG = (
    "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAAAAADhZOFXAAAAEElEQVR42mNsYIAAJgaKGAAmCACQtTEKkQAAAABJRU5ErkJggg=="  # 8 × 8
)
REQUEST = {"id": "probe", "parameters": {"priority": 1}}  # is not counted, and passes what waits in a queue
QUEUE_REFUSALS = ("maximum queue size", "timeout expired")
TIMEOUT_S = 8.0


def probe(url: str, timeout_s: float = TIMEOUT_S) -> str | None:
    """Score and embed a tiny picture; None when it worked or the server is busy, else what went wrong."""
    image = {"name": "image", "datatype": "BYTES", "shape": [1, 1], "data": [GREY_PNG]}
    body = json.dumps({**REQUEST, "inputs": [image]}).encode()
    for model in ENSEMBLES:
        request = urllib.request.Request(f"{url}/v2/models/{model}/infer", body, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=timeout_s) as response:
                outputs = json.load(response)["outputs"]
        except urllib.error.HTTPError as error:
            text = error.read().decode(errors="replace")
            if is_busy(error.code, text):
                print(f"busy: {model}: {text:.300}", file=sys.stderr)
                continue
            return f"{model}: HTTP {error.code}: {text:.300}"
        except (OSError, ValueError, KeyError) as error:
            return f"{model}: {error}"
        wrong = [output["name"] for output in outputs if not all(map(math.isfinite, output["data"]))]
        if wrong or not outputs:
            return f"{model}: outputs {wrong} are not finite numbers" if wrong else f"{model}: no outputs"
    return None


def is_busy(status: int, text: str) -> bool:
    """Whether a refusal is for want of room in a queue."""
    return status == 503 and any(refusal in text.lower() for refusal in QUEUE_REFUSALS)


def main(argv: list[str]) -> int:
    problem = probe(argv[0] if argv else "http://127.0.0.1:8000")
    if problem is not None:
        print(f"unhealthy: {problem}", file=sys.stderr)
    return 0 if problem is None else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
