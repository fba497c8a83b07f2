"""Decoding on the machine's cores, exact and scaled, and by DALI."""

from __future__ import annotations

import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from benchmarks.gpu.plan import CannotRun, Rows, Settings, recipe_of_model
from benchmarks.preprocessing import photographs, transform_of
from common.cpu import core_count

DECODES = ("exact", "scaled")


def decoding(model: str | None, settings: Settings, rows: Rows) -> None:
    """Images/s from JPEG files to an encoder's pixels, by one process and by one a core."""
    for megapixels in settings.megapixels:
        files = photographs(megapixels)
        for workers in sorted({1, core_count()}):
            with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
                list(pool.map(_imported, range(workers)))
                for decode in DECODES:
                    tasks = [pool.submit(rate, files, decode, settings.seconds) for _ in range(workers)]
                    images_per_s = sum(task.result() for task in tasks)
                    rows.add(decode=decode, megapixels=megapixels, processes=workers, images_per_s=images_per_s)


def rate(files: list[bytes], decode: str, seconds: float) -> float:
    """Images/s of this process alone, over at least one pass through the files."""
    transform, images, started = transform_of(decode), 0, time.perf_counter()
    while images == 0 or time.perf_counter() - started < seconds:
        for data in files:
            transform(data)
        images += len(files)
    return images / (time.perf_counter() - started)


def _imported(number: int) -> int:
    """Make a worker import what it needs before anything is timed."""
    transform_of("exact")
    return number


def dali(model: str, settings: Settings, rows: Rows) -> None:
    """Cosines of embeddings from DALI's pixels to exact ones, and its images/s, on each device it has here."""
    from build.dali_parity import dali_pixels, jpeg_pictures, measure_dali
    from build.dali_pipeline import DaliError, devices, import_dali, write_pipelines
    from common.manifest import read_encoder
    from common.paths import encoder_folder

    try:
        import_dali()
    except DaliError as error:
        raise CannotRun(str(error)) from error
    recipe, pictures = recipe_of_model(model), jpeg_pictures()
    encoder = read_encoder(encoder_folder(recipe, "fp32"))
    parities = {parity.device: parity for parity in measure_dali(recipe)}
    times = 1 if settings.dry_run else 40
    with tempfile.TemporaryDirectory() as folder:
        write_pipelines(encoder.preprocessing, recipe.serving.max_batch_size, Path(folder))
        for device in devices():
            taken = []
            for repeats in (times, 2 * times):  # the difference leaves the pipeline's start out
                started = time.perf_counter()
                dali_pixels(Path(folder), device, encoder, recipe.serving, pictures * repeats)
                taken.append(time.perf_counter() - started)
            rows.add(
                device=device,
                dali=parities[device].dali,
                cosine_min=parities[device].cosine_min,
                cosine_mean=parities[device].cosine_mean,
                images_per_s=times * len(pictures) / max(taken[1] - taken[0], 1e-9),
            )
