"""An imported image classifier served, against its encoder alone on the same server, in interleaved rounds.

    make .trained/.lite0                                  # the default: an EfficientNet-Lite0 of ImageNet's classes
    python -m benchmarks.classifier --rounds 8
    python -m benchmarks.classifier --recipe nsfw-marqo   # whose artefacts are built

Each round keeps the same number of requests under way, one photograph each, first for the scores of all heads
(`image_score`), then for the embedding alone (`image_embedding`), or the other way round; both decode and resize. The
ratio of the rates is what the imported last layer and its answer cost; that of the server's processor time per image
says the same on a machine that has other work. Takes about a minute. Prints a table and one JSON line.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from benchmarks.machine import machine, print_result
from benchmarks.offered_load import Answer, closed_loop, connect, score_request, served_per_s
from benchmarks.tables import print_table
from benchmarks.trained_weights import LITE0, efficientnet_lite0
from benchmarks.watch import server_cpu_s
from build.encoder import make_encoder
from build.head import build_head
from build.repository import install
from common.paths import ARTIFACTS, head_folder
from common.photos import sample_photos
from recipes.arguments import add_recipe_options, recipe_if_any
from recipes.errors import run_step
from recipes.schema import Recipe, parse_recipe
from serving.embedded import EmbeddedServer, ServerSettings
from training.import_classifier import import_classifier

TARGET = 0.95
"""Share of the encoder's own rate that an imported classifier reaches."""
CONCURRENCY = 32
MODELS = ("image_score", "image_embedding")


def lite0_recipe() -> Recipe:
    """The recipe of a trained EfficientNet-Lite0, built and imported; what is there already is kept."""
    folder = efficientnet_lite0(ARTIFACTS / "classifiers" / "efficientnet-lite0")
    encoder = {"library": "timm", "model": LITE0, "weights": str(folder), "normalize": False}
    head = {"name": "imagenet", "task": "multiclass", "classifier": {}}
    data = {"name": "efficientnet-lite0", "description": "ImageNet's classes", "encoder": encoder, "heads": [head]}
    recipe = parse_recipe(data)
    make_encoder(recipe)
    import_classifier(recipe, recipe.heads[0])
    build_head(head_folder(recipe, recipe.heads[0]), recipe.build.opset)
    return recipe


@dataclass(frozen=True)
class Rate:
    """The answers of a model while so many requests were under way."""

    images_per_s: float
    cpu_ms: float
    """Processor time of all the server's processes, per image."""


def measure(server: EmbeddedServer, model: str, images: list[bytes], seconds: float) -> Rate:
    """Keep requests for a model's answer under way for so many seconds."""
    before = server_cpu_s(server)
    answers = asyncio.run(answers_of(server.grpc_url, model, images, seconds))
    start = min(answer.sent_s for answer in answers)
    cpu_ms = 1000 * (server_cpu_s(server) - before) / len(answers)
    return Rate(served_per_s(answers, start, max(answer.end_s for answer in answers)), cpu_ms)


async def answers_of(url: str, model: str, images: list[bytes], seconds: float) -> list[Answer]:
    """A model's answers; RuntimeError if a request failed."""
    requests = [score_request(image, model=model) for image in images]
    async with connect(url, deadline_s=60) as caller:
        loops = [closed_loop(caller, request, CONCURRENCY // len(requests), seconds) for request in requests]
        answers: list[Answer] = [answer for part in await asyncio.gather(*loops) for answer in part]
    failed = [answer.status for answer in answers if answer.status != "OK"]
    if failed:
        raise RuntimeError(f"{model}: {len(failed)} of {len(answers)} requests failed, the first with {failed[0]}")
    return answers


def row_of(number: int, scores: Rate, embedding: Rate) -> dict[str, float]:
    """A round: the classifier and its encoder alone, and how much of the encoder's rate the classifier reaches."""
    return {
        "round": number,
        "image_score_per_s": scores.images_per_s,
        "image_embedding_per_s": embedding.images_per_s,
        "ratio": scores.images_per_s / embedding.images_per_s,
        "image_score_cpu_ms": scores.cpu_ms,
        "image_embedding_cpu_ms": embedding.cpu_ms,
        "cpu_ratio": embedding.cpu_ms / scores.cpu_ms,
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.classifier")
    add_recipe_options(
        parser, required=False, help="one whose artefacts are built; by default a trained EfficientNet-Lite0"
    )
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=3, help="of each measurement (default %(default)s)")
    arguments, hardware = parser.parse_args(), machine()
    images = [path.read_bytes() for path in sample_photos()][:8]
    rows: list[dict] = []
    with tempfile.TemporaryDirectory(prefix="clipsieve-classifier-") as temporary:
        folder = Path(temporary)
        recipe = recipe_if_any(arguments) or lite0_recipe()
        patient = recipe.serving.model_copy(update={"queue_timeout_ms": 60_000})  # rates, not refusals, are measured
        install(recipe.model_copy(update={"serving": patient}), folder / "models", "onnx")
        with EmbeddedServer(folder / "models", ServerSettings.on_free_ports(folder / "log")) as server:
            for model in MODELS:  # warm
                measure(server, model, images, 1)
            for number in range(arguments.rounds):
                order = MODELS if number % 2 == 0 else MODELS[::-1]
                rates = {model: measure(server, model, images, arguments.seconds) for model in order}
                rows.append(row_of(number + 1, *(rates[model] for model in MODELS)))
    print_table(rows)
    ratio, cpu_ratio = (statistics.median(row[key] for row in rows) for key in ("ratio", "cpu_ratio"))
    print(
        f"{recipe.encoder.id}: median ratio of rates {ratio:.3f} (at least {TARGET} is the aim), of processor time "
        f"{cpu_ratio:.3f}",
        file=sys.stderr,
    )
    print_result("benchmarks.classifier", hardware, rows=rows, ratio=ratio, cpu_ratio=cpu_ratio)
    return 0


if __name__ == "__main__":
    sys.exit(run_step("benchmarks.classifier", main))
