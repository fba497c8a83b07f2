"""One prepared run on a machine with a GPU: encoders as a share of the card, decoding, DALI, the whole server.

    python -m benchmarks.gpu --out gpu                 # about 9 minutes on a card, never more than 10
    python -m benchmarks.gpu --dry-run                 # every part on the CPU with a tiny model, about a minute
    python -m benchmarks.gpu --only matmul torch

CLIP ViT-B/32 and ViT-L/14 in fp16 with random weights, which cost what trained ones do: torch, torch.compile and
onnxruntime's CUDA, in images/s and as a share of the matrix product that torch reaches on the same card in the same
run; decoding by one process and one a core, exact and scaled; the ensemble on the embedded server, which uses the GPU
where the environment .triton has onnxruntime-gpu; DALI beside exact decoding. Each part runs in a process of its own
with a time of its own, so that one that fails, or lacks something, says so and the others go on. Writes gpu.json and
gpu.md, prints the tables, and as its last line JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.gpu.figures import page, with_shares
from benchmarks.gpu.part import CANNOT_RUN, FUNCTIONS
from benchmarks.gpu.plan import DRY_LIMIT_S, Part, Settings, chosen, limit_of, parts_of
from benchmarks.machine import machine, print_result
from common.paths import ARTIFACTS, ROOT
from recipes.errors import run_step
from serving.tritonserver import kill_group

BUDGET_S = 570.0


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, with a tiny model; no GPU is looked for")
    parser.add_argument("--only", nargs="+", choices=FUNCTIONS, metavar="KIND", help=f"of {', '.join(FUNCTIONS)}")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement (default %(default)s)")
    parser.add_argument("--budget", type=float, metavar="SECONDS", help=f"of all parts (default {BUDGET_S:g})")
    parser.add_argument("--out", type=Path, default=ARTIFACTS / "gpu", metavar="FOLDER", help="default: artifacts/gpu")
    return parser


def run_part(part: Part, settings: Settings, folder: Path, limit_s: float | None) -> dict[str, Any]:
    """The outcome of a part, whatever it was."""
    result = {"part": part.name, "kind": part.kind, "rows": [], "seconds": 0}
    if limit_s is None:
        return result | {"status": "not run", "reason": "the time of all parts was over"}
    rows, log, words = folder / "rows.json", folder / "part.log", folder / "settings.json"
    rows.unlink(missing_ok=True)
    words.write_text(settings.to_json(), encoding="utf-8")
    command = [sys.executable, "-m", "benchmarks.gpu.part", part.kind, part.model or "", str(words), str(rows)]
    environment = os.environ | {"CLIPSIEVE_ARTIFACTS": str(folder / "artifacts")}
    if settings.dry_run:
        environment["OMP_NUM_THREADS"] = "1"  # a tiny model gains nothing from a second thread
    started = time.perf_counter()
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=output, stderr=output, start_new_session=True
        )
        try:
            status: int | None = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            kill_group(process.pid)  # servers and workers of a part that was stopped
            process.wait()
    result["seconds"] = round(time.perf_counter() - started, 1)
    result["rows"] = json.loads(rows.read_text(encoding="utf-8")) if rows.is_file() else []
    return result | state_of(status, log.read_text(encoding="utf-8", errors="replace"), limit_s)


def state_of(status: int | None, log: str, limit_s: float) -> dict[str, str]:
    """The end of a part and its cause, from its exit status (None when it was stopped) and its log."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    last = lines[-1][:400] if lines else "it said nothing"
    if status == 0:
        return {"status": "measured"}
    if status is None:
        return {"status": "stopped", "reason": f"it took longer than {limit_s:.0f} s; its last line was: {last}"}
    return {"status": "cannot run" if status == CANNOT_RUN else f"failed ({status})", "reason": last}


def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    settings, hardware, started = Settings.of(arguments.dry_run, arguments.seconds), machine(), time.perf_counter()
    budget_s = arguments.budget or (DRY_LIMIT_S * len(FUNCTIONS) if arguments.dry_run else BUDGET_S)
    results = []
    with tempfile.TemporaryDirectory(prefix="clipsieve-gpu-", ignore_cleanup_errors=True) as folder:
        for part in chosen(parts_of(settings), arguments.only):
            limit_s = limit_of(part, budget_s - (time.perf_counter() - started))
            results.append(run_part(part, settings, Path(folder), limit_s))
            state = results[-1]
            print(f"gpu: {part.name}: {state['status']}, {state['seconds']} s", file=sys.stderr, flush=True)
    results = with_shares(results)
    text = page(results, hardware, arguments.dry_run)
    arguments.out.mkdir(parents=True, exist_ok=True)
    figures = {"dry_run": arguments.dry_run, "parts": results}
    (arguments.out / "gpu.md").write_text(text, encoding="utf-8")
    (arguments.out / "gpu.json").write_text(json.dumps(figures | {"machine": hardware}, indent=1), encoding="utf-8")
    print(text)
    print_result("benchmarks.gpu", hardware, **figures)
    return 0 if all(result["status"] in ("measured", "cannot run") for result in results) else 1


if __name__ == "__main__":
    sys.exit(run_step("benchmarks.gpu", main))
