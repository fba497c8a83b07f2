"""Heads replaced under load: failed and mixed-up answers, and how long requests waited meanwhile.

    make demo  # builds what is served
    python -m trials.rollouts --rollouts 20

Two heads on the demo's encoder, whose scores of one picture are known, take turns on a server that is asked without
pause. An answer is mixed up when its score is not that of the revision it names. For comparison the same load runs
afterwards without a change. Prints a table and one JSON line; exits with 1 when an answer failed or was mixed up.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import tritonclient.grpc as grpc
from rich.console import Console
from rich.progress import track
from tritonclient.utils import InferenceServerException

from benchmarks.machine import machine, print_result
from benchmarks.tables import print_table
from build.head import build_head
from common.manifest import Threshold, read_head, write_manifest
from common.paths import head_folder, repository_folder
from recipes.errors import run_step
from recipes.schema import load_recipe
from serving.embedded import EmbeddedServer, ServerSettings
from serving.model_control import ControlledServer
from serving.no_proxy import grpc_client
from serving.probe import tiny_png
from serving.rollout import roll_out
from training.errors import StepError

KEY = "trials-rollouts-key"
CLIENTS = 4
TOLERANCE = 1e-4
PROGRESS = Console(stderr=True)


@dataclass
class Load:
    """Load by `CLIENTS` threads: the revision, the score and the time of each answer."""

    answers: list[tuple[int, float]] = field(default_factory=list)
    waits_ms: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    done: threading.Event = field(default_factory=threading.Event)

    def run(self, url: str) -> None:
        with grpc_client(url) as client:
            while not self.done.is_set():
                start = time.perf_counter()
                try:
                    self.answers.append(answer_of(client))
                except InferenceServerException as error:
                    self.failures.append(str(error))
                self.waits_ms.append((time.perf_counter() - start) * 1000)


@dataclass(frozen=True)
class Result:
    """Result of one phase of the load."""

    phase: str
    rollouts: int
    answers: int
    failed: int
    mixed_up: int
    p50_ms: float
    p99_ms: float
    longest_ms: float


def answer_of(client: grpc.InferenceServerClient) -> tuple[int, float]:
    tensor = grpc.InferInput("image", [1, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[tiny_png()]], dtype=object))
    result = client.infer("image_score", [tensor], client_timeout=60)
    assert result is not None
    revision, score = (np.asarray(result.as_numpy(name))[0, 0] for name in ("demo_revision", "demo"))
    return int(revision), float(score)


@contextmanager
def load_on(url: str) -> Iterator[Load]:
    load = Load()
    threads = [threading.Thread(target=load.run, args=(url,)) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    try:
        yield load
    finally:
        load.done.set()
        for thread in threads:
            thread.join()


def measured(phase: str, rollouts: int, load: Load, known: dict[int, float]) -> Result:
    mixed = sum(abs(score - known.get(revision, np.inf)) > TOLERANCE for revision, score in load.answers)
    p50, p99, longest = np.percentile(load.waits_ms, [50, 99, 100]).round(1).tolist()
    return Result(phase, rollouts, len(load.answers), len(load.failures), mixed, p50, p99, longest)


def two_heads(folder: Path) -> list[Path]:
    """The demo's head, and one that differs from it in its offset and its threshold, both built."""
    recipe = load_recipe("demo")
    source = head_folder(recipe, recipe.heads[0])
    if not (source / "head.safetensors").is_file():
        raise StepError(f"{source}: no head; make the demo first: make demo")
    folders = [Path(shutil.copytree(source, folder / name)) for name in ("as_trained", "shifted")]
    manifest = read_head(folders[1])
    offset = [1.0] * len(manifest.labels)
    calibration = {"method": "platt", "scale": [0.5] * len(offset), "offset": offset}
    thresholds = [[Threshold(value=0.4, operating_point="fixed") for _ in row] for row in manifest.thresholds]
    changed = manifest.model_validate({**manifest.model_dump(), "calibration": calibration, "thresholds": thresholds})
    write_manifest(changed, folders[1] / "head.json")
    for each in folders:
        build_head(each, recipe.build.opset)
    return folders


def measure(folder: Path, rollouts: int) -> list[Result]:
    heads = two_heads(folder)
    models = Path(shutil.copytree(repository_folder(load_recipe("demo")), folder / "models"))
    server = EmbeddedServer(models, ServerSettings.on_free_ports(folder / "log", control="explicit", admin_key=KEY))
    with (
        server,
        ControlledServer(server.grpc_url, KEY) as connection,
        grpc_client(server.grpc_url) as client,
    ):
        known = {}
        for head in reversed(heads):  # ends with the one that is replaced first
            roll_out("demo", models, head, connection)
            known |= dict([answer_of(client)])
        start = time.perf_counter()
        with load_on(server.grpc_url) as changing:
            for head in track(
                list(itertools.islice(itertools.cycle(reversed(heads)), rollouts)), "rollouts", console=PROGRESS
            ):
                roll_out("demo", models, head, connection)
        seconds = time.perf_counter() - start
        with load_on(server.grpc_url) as still:
            time.sleep(seconds)
    return [measured("unchanged", 0, still, known), measured("replaced", rollouts, changing, known)]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m trials.rollouts", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rollouts", type=int, default=20)
    arguments, hardware = parser.parse_args(argv), machine()
    with tempfile.TemporaryDirectory(prefix="clipsieve-rollouts-") as folder:
        results = measure(Path(folder), arguments.rollouts)
    print_table([asdict(row) for row in results])
    print_result("trials.rollouts", hardware, results=[asdict(row) for row in results])
    return 1 if any(row.failed or row.mixed_up for row in results) else 0


if __name__ == "__main__":
    sys.exit(run_step("trials.rollouts", main))
