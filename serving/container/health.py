"""The container's health check: a real inference through every model.

    python3 serving/container/health.py http://127.0.0.1:8000

Triton's health URLs stay green when a model's process is dead. Standard library only, because it runs in the server's
image; exits 1 and says what is wrong.
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
TIMEOUT_S = 8.0


def probe(url: str, timeout_s: float = TIMEOUT_S) -> str | None:
    """Score and embed a tiny picture; None when it worked, else what went wrong."""
    image = {"name": "image", "datatype": "BYTES", "shape": [1, 1], "data": [GREY_PNG]}
    body = json.dumps({"inputs": [image]}).encode()
    for model in ENSEMBLES:
        request = urllib.request.Request(f"{url}/v2/models/{model}/infer", body, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=timeout_s) as response:
                outputs = json.load(response)["outputs"]
        except urllib.error.HTTPError as error:
            return f"{model}: HTTP {error.code}: {error.read().decode(errors='replace'):.300}"
        except (OSError, ValueError, KeyError) as error:
            return f"{model}: {error}"
        wrong = [output["name"] for output in outputs if not all(map(math.isfinite, output["data"]))]
        if wrong or not outputs:
            return f"{model}: outputs {wrong} are not finite numbers" if wrong else f"{model}: no outputs"
    return None


def main(argv: list[str]) -> int:
    problem = probe(argv[0] if argv else "http://127.0.0.1:8000")
    if problem is not None:
        print(f"unhealthy: {problem}", file=sys.stderr)
    return 0 if problem is None else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
