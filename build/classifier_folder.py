"""Image classifiers as the Hugging Face hub has them: a folder, or a repository, with config.json beside the weights.

timm's `save_for_hf` writes config.json and model.safetensors, transformers' `save_pretrained` those and, by the image
processor, preprocessor_config.json. Nothing of a folder is run: weights are safetensors, or a pickle of tensors alone.
"""

from __future__ import annotations

import importlib.util
import json
import pickle
from pathlib import Path
from typing import Any

from huggingface_hub import constants, snapshot_download, try_to_load_from_cache

from build.weights import CLASSIFIER_CHECKPOINTS as CHECKPOINTS
from build.weights import CLASSIFIER_CONFIG as CONFIG
from build.weights import PROCESSOR_CONFIG as PROCESSOR
from build.weights import checkpoint_in, first_line, offline_if_unreachable, weights_file
from common.finetuned import RECORD
from common.manifest import WeightsSource
from common.paths import named_path
from recipes.encoder_section import Encoder
from recipes.schema import RecipeError


def classifier_folder(encoder: Encoder) -> Path | None:
    """The folder of the encoder's classifier, downloaded if it has to be; None for a model by its library's name.

    Raises:
        RecipeError: its library is not installed; it is missing, cannot be downloaded, or has other files than such a
            folder.
    """
    if (missing := missing_library(encoder)) is not None:
        raise RecipeError(missing)
    if encoder.is_repository and encoder.weights is None:
        folder = _downloaded(encoder)
    elif (folder := _local_folder(encoder)) is None:
        return None
    checkpoint = checkpoint_in(folder)
    if checkpoint.suffix == ".bin":
        _check_tensors_alone(checkpoint)
    return folder


def missing_library(encoder: Encoder) -> str | None:
    """How to install the library that the encoder takes, where it is missing."""
    if encoder.library != "transformers" or importlib.util.find_spec("transformers") is not None:
        return None
    return "library: transformers needs the package transformers, an extra; install it with: make transformers"


def read_config(folder: Path) -> dict[str, Any]:
    """config.json, or RecipeError."""
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RecipeError(f"{folder / CONFIG}: not readable as JSON: {first_line(error)}") from error
    if not isinstance(config, dict):
        raise RecipeError(f"{folder / CONFIG}: a mapping of keys is expected, found a {type(config).__name__}")
    return config


def check_library(folder: Path, encoder: Encoder) -> None:
    """Refuse, with a RecipeError, a folder of the other library, or of none."""
    config = read_config(folder)
    is_timm = isinstance(config.get("architecture"), str)  # which timm's own wrapper in transformers writes too
    library = "timm" if is_timm else "transformers" if "model_type" in config else None
    if library is None:
        raise RecipeError(
            f"{folder / CONFIG}: neither timm's (architecture) nor transformers' (model_type); found the keys "
            f"{', '.join(list(config)[:8]) or 'none'}"
        )
    if library != encoder.library:
        raise RecipeError(
            f"{folder}: the folder is {library}'s, the recipe says library: {encoder.library}; take {library}"
        )


def folder_source(encoder: Encoder, folder: Path) -> WeightsSource:
    """Where the folder's weights came from."""
    hub = encoder.model if encoder.is_repository else None
    downloaded = hub is not None and encoder.weights is None
    revision = folder.name if downloaded else None  # the hub's cache has a folder for each commit
    file = checkpoint_in(folder).name
    source = WeightsSource(encoder=encoder.id, file=file, sha256=encoder.weights_sha256, hub=hub, revision=revision)
    return source.model_copy(update={"finetuned": (folder / RECORD).is_file()})


def folder_advice(encoder: Encoder, problem: str) -> str:
    """The message about a repository that could not be downloaded: what to fetch, and where to put it."""
    files = [CONFIG, *([PROCESSOR] if encoder.library == "transformers" else []), CHECKPOINTS[0]]
    target = f"weights/{encoder.model.rpartition('/')[2]}"
    page = f"{constants.ENDPOINT}/{encoder.model}/tree/{encoder.revision or 'main'}"
    return (
        f"{encoder.model} could not be downloaded: {problem}\n"
        f"On a machine with a network fetch {', '.join(files)} from {page}, put them into {target}/, and name the "
        f"folder in the recipe:\n  encoder:\n    weights: {target}"
    )


def is_cached(encoder: Encoder) -> bool:
    """True if the hub's cache has the repository's config and weights."""

    def has(name: str) -> bool:
        return isinstance(try_to_load_from_cache(encoder.model, name, revision=encoder.revision), str)

    return has(CONFIG) and any(map(has, CHECKPOINTS))


def _local_folder(encoder: Encoder) -> Path | None:
    """The folder that `weights` names; RecipeError where it names something else and nothing else will do."""
    if not isinstance(encoder.weights, Path):
        return None
    folder = named_path(encoder.weights)
    if folder.is_dir():
        weights_file(encoder)  # its sum, where the recipe has one
        return folder
    if encoder.finetune is not None:
        raise RecipeError(
            f"encoder.weights: no folder {folder}; fine-tuning writes it: "
            "python -m training.finetune --recipe RECIPE --data FOLDER"
        )
    if encoder.is_repository:
        raise RecipeError(folder_advice(encoder, f"no folder {folder}"))
    if encoder.library == "transformers":
        raise RecipeError(
            f"encoder.weights: no folder {folder}; with library: transformers it is one with {CONFIG}, {PROCESSOR} and "
            f"{CHECKPOINTS[0]}, as save_pretrained of a model and its image processor write it"
        )
    return None


def _downloaded(encoder: Encoder) -> Path:
    names = [CONFIG, PROCESSOR, *CHECKPOINTS, "*.index.json"]
    try:
        with offline_if_unreachable(None, on_hub=True):
            return Path(snapshot_download(encoder.model, revision=encoder.revision, allow_patterns=names))
    except Exception as error:
        raise RecipeError(folder_advice(encoder, first_line(error))) from error


def _check_tensors_alone(path: Path) -> None:
    """Refuse a pickle with more than tensors in it, which would be code to run."""
    import torch  # takes seconds, and what asks whether a download is needed does not need it

    try:
        torch.load(path, map_location="meta", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise RecipeError(
            f"{path}: refused, because it holds more than tensors: loading it would run code "
            f"({str(error).splitlines()[0]}); take the model's safetensors file"
        ) from error
    except Exception as error:  # a damaged file, or one of another kind
        raise RecipeError(f"{path}: not a PyTorch file of tensors ({first_line(error)})") from error
