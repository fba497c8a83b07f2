"""What a sweep's figures depend on besides the tuned keys: the models, the machine, the pictures, versions."""

from __future__ import annotations

import os
import platform

from build.repository import read_artefacts
from common.cpu import core_count, find_cpu
from common.gpu import find_machine
from common.manifest import ManifestError, onnx_files
from common.paths import encoder_folder
from recipes.schema import Recipe
from tuning.rows import Conditions
from tuning.server import Load, check_load

COPY_BYTES_PER_FILE_BYTE = 2
"""onnxruntime holds the weights, and again as its kernels want them."""
MEMORY_SHARE = 0.5
"""Of the machine's memory, for copies of the encoder."""


def conditions(recipe: Recipe, recipe_reference: str, load: Load) -> Conditions:
    """What must be the same for measurements to be compared.

    Raises:
        ManifestError: the recipe is not built.
        BuildError: perf_analyzer, the server or the pictures are missing.
    """
    artefacts = read_artefacts(recipe)
    offered = check_load(recipe_reference, load)
    return {
        "recipe": recipe.name,
        "encoder": artefacts.encoder.id,
        "onnx_sha256": artefacts.encoder.onnx_sha256,
        "heads": {head.name: head.revision for head in artefacts.heads},
        "serving": recipe.serving.model_dump(mode="json"),
        "cpu": find_cpu().name,
        "cores": core_count(),
        "gpus": [gpu.name for gpu in find_machine().gpus],
        "concurrencies": list(load.concurrencies),
        "seconds": load.seconds,
        "pictures": offered["pictures"],
        "pictures_sha256": offered["pictures_sha256"],
        "versions": offered["versions"] | {"python": platform.python_version()},
    }


def machine_line(known: Conditions) -> str:
    """`AMD EPYC, 2 cores`."""
    return ", ".join([known["cpu"], f"{known['cores']} cores", *known["gpus"]])


def most_copies(file_bytes: int, memory_bytes: int) -> int:
    """Of an encoder whose file is so large, in the share of a machine's memory."""
    return max(1, int(MEMORY_SHARE * memory_bytes) // (COPY_BYTES_PER_FILE_BYTE * file_bytes))


def encoder_bytes(recipe: Recipe) -> int:
    """Of the recipe's ONNX file, its weights included.

    Raises:
        ManifestError: it is not there.
    """
    path = encoder_folder(recipe) / "model.onnx"
    if not path.is_file():
        raise ManifestError(f"{path}: not found; make it with: make engines")
    return sum(file.stat().st_size for file in onnx_files(path))


def memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def load_average() -> float:
    """Processes that ran or waited to run, over the last minute."""
    return os.getloadavg()[0]
