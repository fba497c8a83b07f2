"""Several images in a request, and several requests at once: what each brings, and the batches the encoder gets."""

from __future__ import annotations

from typing import Any, NamedTuple

from benchmarks.growth.load import group_requests, kept_busy, per_second
from benchmarks.growth.photographs import photographs
from benchmarks.growth.rounds import Samples, interleaved
from benchmarks.growth.scene import MEGAPIXELS, Scene
from benchmarks.growth.spent import read_spent
from benchmarks.offered_load import percentile_ms

IN_FLIGHT = 32
"""Images, whatever number of them a request holds."""
IMAGES_PER_REQUEST = (1, 2, 4, 8, 16, 32)
CONCURRENCIES = (1, 2, 4, 8, 16, 32, 64)


class Case(NamedTuple):
    images_per_request: int
    concurrency: int
    """Requests under way."""


def measure(scene: Scene) -> dict[str, Any]:
    sizes = [size for size in IMAGES_PER_REQUEST if size <= scene.recipe.serving.max_batch_size]
    by_request = [Case(size, IN_FLIGHT // size) for size in sizes]
    by_concurrency = [Case(1, concurrency) for concurrency in CONCURRENCIES]
    requests = {size: group_requests(photographs(MEGAPIXELS), size) for size in sizes}
    samples = Samples[Case]()
    cases = list(dict.fromkeys([*by_request, *by_concurrency]))  # one is in both
    for case in interleaved("batches", cases, scene.settings.rounds):
        samples.add(case, **_measured(scene, case, requests[case.images_per_request]))

    def rows(chosen: list[Case]) -> list[dict[str, float]]:
        return [{**case._asdict(), **samples.medians(case)} for case in chosen]

    return {"in_flight": IN_FLIGHT, "by_request": rows(by_request), "by_concurrency": rows(by_concurrency)}


def _measured(scene: Scene, case: Case, requests: list[bytes]) -> dict[str, float]:
    """images_per_s, p50_ms of a request, and encoder_batch, the images in the encoder's batches on average."""
    before = read_spent(scene.server)
    answers = kept_busy(scene.server.grpc_url, requests, case.concurrency, scene.settings.seconds)
    encoder = read_spent(scene.server).since(before).counted["clip_encoder"]
    return {
        "images_per_s": case.images_per_request * per_second(answers),
        "p50_ms": percentile_ms(answers, 50),
        "encoder_batch": encoder.images_per_batch,
    }
