"""Images/s of one core from a JPEG file to the encoder's pixels: open_clip's transform, and ours, exact and scaled.

    python -m benchmarks.preprocessing
    python -m benchmarks.preprocessing --rounds 15 --encoder artifacts/encoders/vit-b-32-quickgelu-random-1

Photographs at 0.3, 2 and 12 megapixels, each in turn through every method, in one process on one core; medians of
interleaved rounds. `decoding alone` is Pillow's, exact: the limit of every method that decodes so. open_clip ends with
a normalised float tensor, ours with uint8 pixels, because normalisation is part of the encoder's graph; `exact as
float` adds it, for equal work. Then the cosine of embeddings, scaled to exact, through a ViT-B/32 (`--encoder` names
its folder; by default one with seeded random weights is exported, half a minute): of photographs as they are, enlarged
(no detail finer than they had), and as mosaics (all of it); random weights put all pictures close together, so the
cosine of an exact picture to another one stands beside it. Prints tables, and as its last line JSON.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.comparison import Comparison, comparisons_json
from benchmarks.machine import machine, print_result
from benchmarks.results.views import terminal_text
from build.cosine import cosines
from common.manifest import Preprocessing, read_encoder
from common.photos import sample_photos
from common.pixels import served_transform
from recipes.serving_section import Serving

MEGAPIXELS = (0.3, 2.0, 12.0)
TARGET_SPEEDS = {("exact", None): 1.0, ("scaled", 12.0): 3.0}
"""Images/s relative to open_clip: (method, megapixels or any) → at least."""
TARGET_COSINE = 0.995
VIEW = Preprocessing(
    image_size=224,
    resize_mode="shortest",
    interpolation="bicubic",
    mean=(0.48145466, 0.4578275, 0.40821073),  # OpenAI's
    std=(0.26862954, 0.26130258, 0.27577711),
)

Method = Callable[[bytes], Any]


def methods() -> dict[str, Method]:
    """Functions to time, by name: an encoded file in, the encoder's input out."""
    import torch
    from open_clip.transform import image_transform

    library: Any = image_transform(224, is_train=False, mean=VIEW.mean, std=VIEW.std)
    normalize = library.transforms[-1]
    exact, scaled = transform_of("exact"), transform_of("scaled")

    def as_float(data: bytes) -> torch.Tensor:
        return normalize(torch.from_numpy(exact(data).copy()).permute(2, 0, 1).contiguous().float().div(255))

    return {
        "open_clip": lambda data: library(Image.open(io.BytesIO(data))),
        "exact": exact,
        "exact as float": as_float,
        "scaled": scaled,
        "decoding alone": lambda data: Image.open(io.BytesIO(data)).load(),
    }


def transform_of(decode: str) -> Method:
    return served_transform([VIEW.model_copy(update={"decode": decode})], Serving())


def photographs(megapixels: float | None) -> list[bytes]:
    """The sample photographs as JPEGs of a size, or of their own."""
    return [jpeg(resized(photograph, megapixels)) for photograph in _originals()]


def mosaics(megapixels: float) -> list[bytes]:
    """Photographs, each mirrored at its edges until it is that large: its finest detail stays."""
    pictures = []
    for photograph in _originals():
        height, width = (round(edge) for edge in _edges(photograph, megapixels)[::-1])
        pixels = np.asarray(photograph)
        more = ((0, height - len(pixels)), (0, width - pixels.shape[1]), (0, 0))
        pictures.append(jpeg(Image.fromarray(np.pad(pixels, np.maximum(more, 0), mode="symmetric"))))
    return pictures


def _originals() -> list[Image.Image]:
    return [Image.open(path).convert("RGB") for path in sample_photos()]


def resized(photograph: Image.Image, megapixels: float | None) -> Image.Image:
    """Resample to another size of the same aspect ratio; resampling adds no noise."""
    if megapixels is None:
        return photograph
    width, height = _edges(photograph, megapixels)
    return photograph.resize((round(width), round(height)), Image.Resampling.LANCZOS)


def _edges(photograph: Image.Image, megapixels: float) -> tuple[float, float]:
    scale = (megapixels * 1e6 / (photograph.width * photograph.height)) ** 0.5
    return photograph.width * scale, photograph.height * scale


def jpeg(image: Image.Image, quality: int = 90) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return file.getvalue()


def timed(files: list[bytes], timed_methods: dict[str, Method], rounds: int) -> dict[str, np.ndarray]:
    """(rounds,) seconds of each method for all files; each file goes through every method before the next does."""
    names = list(timed_methods)
    seconds = {name: np.zeros(rounds) for name in names}
    for round_ in range(-1, rounds):  # the first warms up
        for index, data in enumerate(files):
            first = (round_ + index) % len(names)
            for name in names[first:] + names[:first]:
                start = time.perf_counter()
                timed_methods[name](data)
                if round_ >= 0:
                    seconds[name][round_] += time.perf_counter() - start
    return seconds


def speeds(megapixels: float, rounds: int) -> dict[str, Any]:
    """Speeds of each method: median images/s, and the median over rounds of its speed relative to open_clip's."""
    files = photographs(megapixels)
    seconds = timed(files, methods(), rounds)
    rows = {
        name: {
            "images_per_s": round(len(files) / float(np.median(taken)), 1),
            "relative": round(float(np.median(seconds["open_clip"] / taken)), 3),
        }
        for name, taken in seconds.items()
    }
    return {"megapixels": megapixels, "mean_bytes": sum(map(len, files)) // len(files), "methods": rows}


def likeness(files: list[bytes], embed: Callable[[np.ndarray], np.ndarray]) -> dict[str, Any]:
    """Cosine of embeddings, scaled to exact, over all files; `decoded_smaller` of them have other pixels at all."""
    exact, scaled = (np.stack([transform_of(decode)(data) for data in files]) for decode in ("exact", "scaled"))
    expected = embed(exact)
    cosine = cosines(expected, embed(scaled))
    return {
        "pictures": len(files),
        "decoded_smaller": int((exact != scaled).any(axis=(1, 2, 3)).sum()),
        "cosine_mean": round(float(cosine.mean()), 6),
        "cosine_min": round(float(cosine.min()), 6),
        "cosine_to_next_picture": round(float(cosines(expected, np.roll(expected, 1, axis=0)).mean()), 6),
    }


def embedder(folder: Path) -> Callable[[np.ndarray], np.ndarray]:
    """(N, 224, 224, 3) uint8 → (N, D) float32 through the encoder in `folder`."""
    import onnxruntime

    (view,) = read_encoder(folder).preprocessing
    if view.model_copy(update={"decode": "exact"}) != VIEW:
        raise SystemExit(f"{folder}: its pixels are {view.id}, this benchmark's are {VIEW.id}; name another --encoder")
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    return lambda pixels: np.concatenate(
        [np.asarray(session.run(["embedding"], {"pixels": pixels[at : at + 8]})[0]) for at in range(0, len(pixels), 8)]
    )


def random_encoder(folder: Path) -> Path:
    """A ViT-B/32 with seeded random weights, built as any recipe's."""
    from build.encoder import build_encoder
    from recipes.schema import parse_recipe

    head = {"name": "any", "class_names": ["no", "yes"]}
    encoder = {"model": "ViT-B-32-quickgelu", "seed": 1}
    build_encoder(parse_recipe({"name": "b32", "description": "b32", "encoder": encoder, "heads": [head]}), folder)
    return folder


def likenesses(folder: Path) -> dict[str, dict[str, Any]]:
    embed = embedder(folder)
    sets = {"as they are": photographs(None)}
    sets |= {f"enlarged to {size:g} MP": photographs(size) for size in MEGAPIXELS[1:]}
    sets |= {f"mosaics of {size:g} MP": mosaics(size) for size in MEGAPIXELS[1:]}
    return {name: likeness(files, embed) for name, files in sets.items()}


def comparisons(sizes: list[dict[str, Any]], cosine: dict[str, dict[str, Any]]) -> list[Comparison]:
    """Targets beside the measured values."""
    speeds = [
        Comparison(
            f"{name} / open_clip, {size['megapixels']:g} MP",
            size["methods"][name]["relative"],
            target,
            True,
            "open_clip",
        )
        for (name, megapixels), target in TARGET_SPEEDS.items()
        for size in sizes
        if megapixels in (None, size["megapixels"])
    ]
    mean_cosine = cosine.get("as they are", {}).get("cosine_mean")
    return [
        *speeds,
        Comparison("cosine of photographs, scaled to exact, mean", mean_cosine, TARGET_COSINE, True, "exact"),
    ]


def speeds_on_one_core(sizes: list[float], rounds: int) -> list[dict[str, Any]]:
    import torch

    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    torch.set_num_threads(1)
    try:
        return [speeds(megapixels, rounds) for megapixels in sizes]
    finally:
        os.sched_setaffinity(0, cores)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.preprocessing",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=7, help="timed passes over the photographs (default %(default)s)")
    parser.add_argument("--megapixels", type=float, nargs="+", default=MEGAPIXELS, help="default: 0.3 2 12")
    parser.add_argument("--encoder", type=Path, help="folder of a built ViT-B/32; by default one is built")
    parser.add_argument("--no-cosine", action="store_true", help="speed only")
    arguments = parser.parse_args()
    hardware = machine()
    sizes = speeds_on_one_core(list(arguments.megapixels), arguments.rounds)
    cosine: dict[str, Any] = {}
    if not arguments.no_cosine:
        with tempfile.TemporaryDirectory() as folder:
            cosine = likenesses(arguments.encoder or random_encoder(Path(folder)))
    result = {"rounds": arguments.rounds, "sizes": sizes, "cosine": cosine}
    result |= {"comparisons": comparisons_json(comparisons(sizes, cosine))}
    print(terminal_text({"benchmark": "preprocessing"} | result))
    print_result("benchmarks.preprocessing", hardware, **result)


if __name__ == "__main__":
    sys.exit(main())
