"""Loads a running server with the real perf_analyzer and real photographs of varied size.

    make serve RECIPE=demo            # in one shell
    make perf RECIPE=demo             # in another

Prints throughput and latency at several concurrencies, one line each, and a JSON line at the end.
"""

from __future__ import annotations

import argparse
import base64
import csv
import json
import os
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

from recipes.paths import ROOT
from recipes.photos import sample_photos
from recipes.schema import RecipeError, load_recipe
from serving.triton_wheel import ServingError, find_wheel

PERF_ANALYZER = ROOT / ".perf" / "bin" / "perf_analyzer"
STABILITY_PERCENTAGES = (15, 100)
# Libraries that perf_analyzer wants by name; the server's wheel carries them under hashed names.
LIBRARIES = {"libb64.so.0d": "libb64-*.so*", "libcudart.so.12": "libcudart-*.so*"}


def input_data(photos: list[Path]) -> dict:
    """perf_analyzer's JSON for a BYTES tensor: base64 of a 4-byte little-endian length and the file."""
    files = [path.read_bytes() for path in photos]
    encoded = [base64.b64encode(struct.pack("<I", len(data)) + data).decode() for data in files]
    return {"data": [{"image": {"b64": text, "shape": [1]}} for text in encoded]}


def link_libraries(wheel_libraries: Path, folder: Path) -> None:
    for name, pattern in LIBRARIES.items():
        found = sorted(wheel_libraries.glob(pattern))
        if not found:
            raise ServingError(f"no {pattern} in {wheel_libraries}; install the server again: make triton")
        (folder / name).symlink_to(found[0])


def measure(
    url: str,
    photos: list[Path],
    concurrencies: list[int],
    outputs_folder: Path,
    wheel_libraries: Path,
    batch_size: int = 1,
) -> list[dict]:
    """One row per concurrency: concurrency, images_per_s, p50_ms, p90_ms, p99_ms, stable_within_percent.

    Args:
        concurrencies: requests in flight.
        batch_size: images in a request.
    """
    data = outputs_folder / "images.json"
    data.write_text(json.dumps(input_data(photos)))
    link_libraries(wheel_libraries, outputs_folder)
    environment = os.environ | {"LD_LIBRARY_PATH": f"{outputs_folder}:{wheel_libraries}"}
    return [_measure_one(url, concurrency, batch_size, data, environment) for concurrency in concurrencies]


def _measure_one(url: str, concurrency: int, batch_size: int, data: Path, environment: dict[str, str]) -> dict:
    """Measure until three windows agree within 15 %; on a noisy machine, within 100 %, and say so in the row."""
    report, output = data.with_name(f"report-{concurrency}.csv"), ""
    for percentage in STABILITY_PERCENTAGES:
        command = [str(PERF_ANALYZER), "-m", "image_score", "-u", url, "-i", "grpc", "--input-data", str(data)]
        command += ["--concurrency-range", str(concurrency), "--measurement-interval", "2000", "-f", str(report)]
        command += ["--stability-percentage", str(percentage), "--max-trials", "6", "--async", "-b", str(batch_size)]
        finished = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        output = finished.stdout + finished.stderr
        if finished.returncode == 0 and report.is_file():
            return _row(report, concurrency, percentage)
        if "Failed to obtain stable measurement" not in output:
            break
    raise ServingError(f"perf_analyzer failed at concurrency {concurrency}:\n{output}")


def _row(report: Path, concurrency: int, percentage: int) -> dict:
    with report.open(newline="") as file:
        row = next(csv.DictReader(file))
    percentiles = {f"p{p}_ms": round(float(row[f"p{p} latency"]) / 1000, 2) for p in (50, 90, 99)}
    throughput = {"concurrency": concurrency, "images_per_s": float(row["Inferences/Second"])}
    return throughput | percentiles | {"stable_within_percent": percentage}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m serving.perf", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--recipe", required=True, help="what the running server serves; named in the output")
    parser.add_argument("--url", default="127.0.0.1:8001", help="gRPC address of the server")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 4, 16])
    arguments = parser.parse_args(argv)
    try:
        recipe = load_recipe(arguments.recipe)
        if not PERF_ANALYZER.is_file():
            raise ServingError(f"no {PERF_ANALYZER}; run: make perf")
        with tempfile.TemporaryDirectory(prefix="clipsieve-perf-") as folder:
            rows = measure(arguments.url, sample_photos(), arguments.concurrency, Path(folder), find_wheel().libraries)
    except (RecipeError, ServingError) as error:
        print(f"serving.perf: {error}", file=sys.stderr)
        return 1
    print(f"image_score of {recipe.name}, {len(sample_photos())} photographs, gRPC, one image per request")
    print(f"{'concurrency':>11}{'images/s':>10}{'p50 ms':>9}{'p90 ms':>9}{'p99 ms':>9}  windows agree within")
    for row in rows:
        latencies = "".join(f"{row[f'p{p}_ms']:>9.1f}" for p in (50, 90, 99))
        print(f"{row['concurrency']:>11}{row['images_per_s']:>10.1f}{latencies}  {row['stable_within_percent']} %")
    print(json.dumps({"benchmark": "perf_analyzer", "recipe": recipe.name, "rows": rows}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
