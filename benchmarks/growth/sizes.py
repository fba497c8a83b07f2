"""JPEG files of 0.05 to 12 megapixels, and where their time goes: decoding or encoder."""

from __future__ import annotations

from statistics import median
from typing import Any

from benchmarks.growth.load import one_by_one, saturated
from benchmarks.growth.photographs import photographs
from benchmarks.growth.rounds import Samples, interleaved, say
from benchmarks.growth.scene import Scene
from benchmarks.growth.spent import read_spent

MEGAPIXELS = (0.05, 0.3, 1.0, 2.0, 4.0, 12.0)
STEPS = {"preprocess": "preprocess", "encoder": "clip_encoder"}
"""Triton's model by what it is called here."""


def measure(scene: Scene) -> dict[str, Any]:
    say("sizes: making the files")
    files = {megapixels: photographs(megapixels) for megapixels in MEGAPIXELS}
    samples = Samples[float]()
    alone: dict[float, list[float]] = {megapixels: [] for megapixels in MEGAPIXELS}
    for megapixels in interleaved("sizes", MEGAPIXELS, scene.settings.rounds):
        samples.add(megapixels, **_under_load(scene, files[megapixels]))
        taken, steps = _alone(scene, files[megapixels])
        alone[megapixels] += taken
        samples.add(megapixels, **steps)
    rows = [
        {
            "megapixels": megapixels,
            "mean_bytes": sum(map(len, files[megapixels])) // len(files[megapixels]),
            "p50_ms": median(alone[megapixels]),
            **samples.medians(megapixels),
        }
        for megapixels in MEGAPIXELS
    ]
    return {"decode": scene.decode, "rows": rows}


def _under_load(scene: Scene, pictures: list[bytes]) -> dict[str, float]:
    """images_per_s; milliseconds of processor time for an image, the server's and those of two models in it."""
    server, settings = scene.server, scene.settings
    before = read_spent(server)
    rate = saturated(server.grpc_url, scene.heads(1), pictures, scene.concurrency, settings.seconds)
    spent = read_spent(server).since(before)
    each = {f"{step}_cpu_ms": 1000 * spent.model_cpu_s[model] / rate.images for step, model in STEPS.items()}
    return {"images_per_s": rate.images_per_s, "cpu_ms": 1000 * spent.cpu_s / rate.images, **each}


def _alone(scene: Scene, pictures: list[bytes]) -> tuple[list[float], dict[str, float]]:
    """Milliseconds of each picture with nothing else under way; and of the two steps in it, by Triton's statistics."""
    server = scene.server
    before = read_spent(server)
    target = (server.grpc_url, scene.heads(1))
    (taken,) = one_by_one({1: target}, pictures, scene.settings.seconds / 2).values()
    counted = read_spent(server).since(before).counted
    return taken, {f"{step}_ms": counted[model].compute_ms_per_image for step, model in STEPS.items()}
