"""clip-retrieval's own command on the folder of pictures; it writes embeddings, and what its loop took."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.peers.environments import ENVIRONMENTS, PeerError
from benchmarks.peers.material import CHECKED, Material, PictureAnswer
from benchmarks.peers.processes import Process

TIMEOUT_S = 600.0
BATCH_SIZE = 16
REPEATS = 4
"""Copies of each picture in the folder: with many, the start of its readers weighs little."""
READERS = 2


@dataclass(frozen=True)
class FolderRun:
    """One run of the command."""

    images: int
    seconds: float
    """Duration of its loop over batches, by its own statistics: reading, inference and writing, without the start."""
    start_s: float
    """Duration of everything but the loop: imports, weights, warm-up."""
    answers: list[PictureAnswer]
    """Its answers to the first pictures."""


def run_folder(material: Material, folder: Path) -> FolderRun:
    """
    Raises:
        PeerError: it is not installed, failed, or left out pictures.
    """
    environment = ENVIRONMENTS["clip-retrieval"]
    environment.check()
    repeat_pictures(material)
    started = time.perf_counter()
    with Process(command(material, folder), environment.variables(), folder.with_suffix(".log")) as process:
        process.wait(TIMEOUT_S)
    took = time.perf_counter() - started
    return read_run(folder, took, REPEATS * len(material.pictures))


def repeat_pictures(material: Material) -> None:
    """Links to the pictures, one folder for each repetition."""
    for number in range(REPEATS):
        folder = repeated_folder(material) / str(number)
        folder.mkdir(parents=True, exist_ok=True)
        for path in material.picture_folder.glob("*.jpg"):
            (folder / path.name).unlink(missing_ok=True)
            (folder / path.name).symlink_to(path.resolve())


def repeated_folder(material: Material) -> Path:
    return material.folder / "repeated"


def command(material: Material, folder: Path) -> list[str]:
    model = f"open_clip:{material.model}/{material.weights.resolve()}"  # what follows the slash is `pretrained`
    options = {
        "input_dataset": repeated_folder(material),
        "output_folder": folder,
        "clip_model": model,
        "batch_size": BATCH_SIZE,
        "num_prepro_workers": READERS,
        "enable_text": False,
        "enable_wandb": False,
        "use_jit": False,
    }
    program = ENVIRONMENTS["clip-retrieval"].bin / "clip-retrieval"
    return [str(program), "inference", *(f"--{name}={value}" for name, value in options.items())]


def read_run(folder: Path, took_s: float, pictures: int) -> FolderRun:
    """Read the output folder of the command.

    Raises:
        PeerError: it is not what the command should leave.
    """
    try:
        (statistics,) = (json.loads(path.read_text()) for path in (folder / "stats").glob("*.json"))
        embeddings = np.concatenate([np.load(path) for path in sorted((folder / "img_emb").glob("*.npy"))])
        images, seconds = statistics["sample_count"], statistics["total_duration"]
    except (OSError, ValueError, KeyError) as error:
        raise PeerError(f"no complete output: {type(error).__name__}: {error}") from error
    if not images == len(embeddings) == pictures:
        raise PeerError(f"embedded {len(embeddings)} of {pictures} pictures, and counted {images}")
    answers = [PictureAnswer(embedding=row.astype(np.float32)) for row in embeddings[:CHECKED]]
    return FolderRun(images, seconds, took_s - seconds, answers)
