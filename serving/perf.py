"""Loads a running server with the real perf_analyzer and real photographs of varied size.

    make serve RECIPE=demo            # in one shell
    make perf RECIPE=demo             # in another
    python -m serving.perf --recipe demo --images photos/ --concurrency 1 8 32 --seconds 3

Prints throughput and latency at several concurrencies, one line each, and a JSON line at the end.
"""

from __future__ import annotations

import argparse
import base64
import csv
import importlib.metadata
import json
import math
import struct
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tritonclient.utils import InferenceServerException

from common.manifest import sha256_of
from common.paths import ROOT
from common.photos import sample_photos
from recipes.arguments import add_recipe_options, recipe_of
from recipes.errors import run_step
from serving import no_proxy
from serving.triton_wheel import ServingError, find_wheel

PERF_ANALYZER = ROOT / ".perf" / "bin" / "perf_analyzer"
# Libraries that perf_analyzer wants by name; the server's wheel carries them under hashed names.
LIBRARIES = {"libb64.so.0d": "libb64-*.so*", "libcudart.so.12": "libcudart-*.so*"}
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".avif"}
MOST_PICTURES, MOST_BYTES = 100, 128 * 2**20  # perf_analyzer holds all of them in memory, as base64
LONGEST_WINDOW_MS = 60_000
_ANSWERS_WITHIN_S = 10.0
TOO_SHORT = ("No valid requests recorded", "failed to find the requested model version")
"""Messages of perf_analyzer for a window without a whole request; in the second case the server counted none."""


@dataclass(frozen=True)
class Windows:
    """Measuring windows of perf_analyzer: it goes on until three agree within the first of these percentages.

    On a machine where they do not, within the next; the row says which it was.
    """

    window_ms: int = 2000
    stability_percentages: tuple[int, ...] = (15, 100)

    @staticmethod
    def of(seconds: float) -> Windows:
        """Three windows that take so long together, however well they agree."""
        return Windows(math.ceil(1000 * seconds / 3), (100, 1000))


UNTIL_STABLE = Windows()


def pictures_in(folder: Path) -> list[Path]:
    """Image files in a folder and below it; of very many an evenly spaced selection.

    Raises:
        ServingError: there is no such folder, or it has none.
    """
    if not folder.is_dir():
        raise ServingError(f"{folder}: no such folder of images")
    pictures = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not pictures:
        raise ServingError(f"{folder}: no images in it; it needs files that end in {', '.join(sorted(SUFFIXES))}")
    chosen = pictures[:: math.ceil(len(pictures) / MOST_PICTURES)]
    while sum(path.stat().st_size for path in chosen) > MOST_BYTES and len(chosen) > 1:
        chosen = chosen[::2]
    return chosen


def input_data(photos: list[Path]) -> dict:
    """perf_analyzer's JSON for a BYTES tensor: base64 of a 4-byte little-endian length and the file."""
    files = [path.read_bytes() for path in photos]
    encoded = [base64.b64encode(struct.pack("<I", len(data)) + data).decode() for data in files]
    return {"data": [{"image": {"b64": text, "shape": [1]}} for text in encoded]}


def link_libraries(wheel_libraries: Path, folder: Path) -> None:
    for name, pattern in LIBRARIES.items():
        files = sorted(wheel_libraries.glob(pattern))
        if not files:
            raise ServingError(f"no {pattern} in {wheel_libraries}; install the server again: make triton")
        (folder / name).symlink_to(files[0])


def check_serves(url: str, recipe: str) -> None:
    """Ask for a server that is ready, before anything is measured.

    Raises:
        ServingError: there is none; the message says how one is started.
    """
    with no_proxy.grpc_client(url) as client:
        try:
            if client.is_server_ready(client_timeout=_ANSWERS_WITHIN_S):
                return
            problem = "is not ready: it is still loading its models, or one failed to load"
        except InferenceServerException as error:
            problem = f"does not answer ({error.message().splitlines()[0]})"
    raise ServingError(f"the server at {url} {problem}; start one in another shell: make serve RECIPE={recipe}")


def measure(
    url: str,
    photos: list[Path],
    concurrencies: list[int],
    outputs_folder: Path,
    wheel_libraries: Path,
    batch_size: int = 1,
    windows: Windows = UNTIL_STABLE,
    keep_going: bool = False,
) -> list[dict]:
    """One row per concurrency: concurrency, images_per_s, p50_ms, p90_ms, p99_ms, stable_within_percent.

    Args:
        concurrencies: requests in flight.
        batch_size: images in a request.
        keep_going: a concurrency that cannot be measured is a row with an `error`.
    """
    data = outputs_folder / "images.json"
    data.write_text(json.dumps(input_data(photos)))
    link_libraries(wheel_libraries, outputs_folder)
    environment = no_proxy.environment() | {"LD_LIBRARY_PATH": f"{outputs_folder}:{wheel_libraries}"}
    rows = []
    for concurrency in concurrencies:
        try:
            rows.append(_measure_one(url, concurrency, batch_size, data, environment, windows))
        except ServingError as error:
            if not keep_going:
                raise
            rows.append({"concurrency": concurrency, "error": str(error)})
    return rows


def _measure_one(
    url: str, concurrency: int, batch_size: int, data: Path, environment: dict[str, str], windows: Windows
) -> dict:
    """A row; windows too short for a single answer grow."""
    report, output, window_ms = data.with_name(f"report-{concurrency}.csv"), "", windows.window_ms
    percentages = list(windows.stability_percentages)
    while percentages and window_ms <= LONGEST_WINDOW_MS:
        command = [str(PERF_ANALYZER), "-m", "image_score", "-u", url, "-i", "grpc", "--input-data", str(data)]
        command += ["--concurrency-range", str(concurrency), "--measurement-interval", str(window_ms)]
        command += ["--stability-percentage", str(percentages[0]), "--max-trials", "6", "-f", str(report)]
        command += ["--async", "-b", str(batch_size)]
        finished = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        output = finished.stdout + finished.stderr
        if finished.returncode == 0 and report.is_file():
            return _row(report, concurrency, percentages[0])
        if any(message in output for message in TOO_SHORT):
            window_ms *= 4
        elif "Failed to obtain stable measurement" in output:
            percentages.pop(0)
        else:
            break
    raise ServingError(f"perf_analyzer failed at concurrency {concurrency}:\n{output}")


def _row(report: Path, concurrency: int, percentage: int) -> dict:
    with report.open(newline="") as file:
        row = next(csv.DictReader(file))
    percentiles = {f"p{p}_ms": round(float(row[f"p{p} latency"]) / 1000, 2) for p in (50, 90, 99)}
    throughput = {"concurrency": concurrency, "images_per_s": float(row["Inferences/Second"])}
    return throughput | percentiles | {"stable_within_percent": percentage}


def conditions(photos: list[Path]) -> dict:
    """Conditions of a measurement besides the server's settings: the pictures, and versions of what takes part."""
    places = {
        "nvidia-pytriton": find_wheel().site_packages,
        "onnxruntime": find_wheel().site_packages,
        "tritonclient": PERF_ANALYZER.parent.parent,
    }
    versions = {name: _version(name, folder) for name, folder in places.items()}
    versions["perf_analyzer"] = versions.pop("tritonclient")  # the wheel it comes in
    return {"pictures": len(photos), "pictures_sha256": sha256_of(*photos), "versions": versions}


def _version(distribution: str, folder: Path) -> str:
    distributions = importlib.metadata.distributions(name=distribution, path=[str(folder)])
    return next((each.version for each in distributions), "unknown")


def print_table(rows: list[dict]) -> None:
    print(f"{'concurrency':>11}{'images/s':>10}{'p50 ms':>9}{'p90 ms':>9}{'p99 ms':>9}  windows agree within")
    for row in rows:
        if "error" in row:
            print(f"{row['concurrency']:>11}  failed: {row['error'].strip().splitlines()[-1]}")
            continue
        latencies = "".join(f"{row[f'p{p}_ms']:>9.1f}" for p in (50, 90, 99))
        print(f"{row['concurrency']:>11}{row['images_per_s']:>10.1f}{latencies}  {row['stable_within_percent']} %")


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m serving.perf", description=(__doc__ or "").splitlines()[0])
    add_recipe_options(parser, help="what the running server serves; named in the output")
    parser.add_argument("--url", default="127.0.0.1:8001", help="gRPC address of the server")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--images", type=Path, metavar="FOLDER", help="pictures to send instead of the photographs")
    parser.add_argument(
        "--seconds", type=float, metavar="S", help="of each measurement, instead of until three windows of 2 s agree"
    )
    parser.add_argument("--keep-going", action="store_true", help="a concurrency that fails is a row with its error")
    parser.add_argument("--check", action="store_true", help="measure nothing; print as JSON what would be used")
    return parser


def main(argv: list[str] | None = None) -> None:
    arguments = parser().parse_args(argv)
    recipe = recipe_of(arguments)
    if not PERF_ANALYZER.is_file():
        raise ServingError(f"no {PERF_ANALYZER}; run: make perf")
    photos = sample_photos() if arguments.images is None else pictures_in(arguments.images)
    if arguments.check:
        print(json.dumps(conditions(photos)))
        return
    check_serves(arguments.url, arguments.recipe)
    rows = _measure(arguments, photos)
    kind = "photographs" if arguments.images is None else "pictures"
    print(f"image_score of {recipe.name}, {len(photos)} {kind}, gRPC, one image per request")
    print_table(rows)
    print(json.dumps({"benchmark": "perf_analyzer", "recipe": recipe.name, "rows": rows}))


def _measure(arguments: argparse.Namespace, photos: list[Path]) -> list[dict]:
    windows = UNTIL_STABLE if arguments.seconds is None else Windows.of(arguments.seconds)
    with tempfile.TemporaryDirectory(prefix="clipsieve-perf-") as folder:
        return measure(
            arguments.url,
            photos,
            arguments.concurrency,
            Path(folder),
            find_wheel().libraries,
            windows=windows,
            keep_going=arguments.keep_going,
        )


if __name__ == "__main__":
    sys.exit(run_step("serving.perf", main))
