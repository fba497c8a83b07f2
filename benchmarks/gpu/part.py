"""One part in a process of its own: what goes wrong in it stops no other.

Run by `benchmarks.gpu`: `python -m benchmarks.gpu.part KIND MODEL SETTINGS.json ROWS.json`.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from benchmarks.gpu.plan import CannotRun, Rows, Settings

CANNOT_RUN = 3
"""Exit status of a part that lacks what it measures; the reason is the last line on stderr."""
FUNCTIONS = {
    "matmul": "encoders.matmul",
    "torch": "encoders.torch_rates",
    "export": "encoders.export",
    "onnxruntime": "encoders.onnxruntime_rates",
    "decoding": "decoding.decoding",
    "served": "served.served",
    "dali": "decoding.dali",
}


def status_of(kind: str, model: str, settings: Settings, rows: Rows) -> int:
    """Run a part; its exit status."""
    module, _, function = FUNCTIONS[kind].partition(".")
    run = getattr(importlib.import_module(f"benchmarks.gpu.{module}"), function)
    try:
        run(model or None, settings, rows)
    except CannotRun as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return CANNOT_RUN
    return 0


def main(argv: list[str]) -> int:
    kind, model, settings, rows = argv
    return status_of(kind, model, Settings.from_json(Path(settings).read_text(encoding="utf-8")), Rows(Path(rows)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
