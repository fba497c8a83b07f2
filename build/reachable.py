"""Names the weights that a build would have to download and cannot, in a moment, before anything slow is begun."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

from huggingface_hub import constants, try_to_load_from_cache

from build.classifier_folder import classifier_folder, folder_advice, is_cached, missing_library
from build.weights import FOLDER_CHECKPOINTS, download_advice, downloaded_file
from common.download import unreachable
from common.manifest import sha256_of
from recipes.encoder_section import Encoder
from recipes.schema import Recipe, RecipeError


def missing_weights(recipe: Recipe) -> list[str]:
    """A text with its remedy for each tower whose weights are not on this machine and cannot be fetched.

    It knows open_clip's tags, image classifiers on the hub and addresses in recipes. What it does not know is left to
    the build, which says as much.
    """
    return [text for tower in recipe.encoder.towers if (text := _missing(tower)) is not None]


def _missing(encoder: Encoder) -> str | None:
    if isinstance(encoder.weights, str):
        file = downloaded_file(encoder)
        if file.is_file() and sha256_of(file) == encoder.weights_sha256:
            return None
        problem = unreachable(encoder.weights)
        return problem and download_advice(encoder, {"url": encoder.weights}, problem)
    if (missing := missing_library(encoder)) is not None:
        return missing
    if encoder.is_repository and encoder.weights is None:
        problem = None if is_cached(encoder) else _hub_problem()
        return problem and folder_advice(encoder, problem)
    if isinstance(encoder.weights, Path) and (encoder.is_repository or encoder.library == "transformers"):
        return _folder_problem(encoder)
    if encoder.weights is not None or encoder.pretrained is None or encoder.library != "open_clip":
        return None
    tag = open_clip_tags().get(encoder.model, {}).get(encoder.pretrained, {})
    repository, _, name = str(tag.get("hf_hub", "")).rpartition("/")
    if not repository or _is_cached(repository, name, encoder.revision):
        return None  # the few tags that have an address alone are the build's matter
    problem = _hub_problem()
    return problem and download_advice(encoder, tag, problem)


def _folder_problem(encoder: Encoder) -> str | None:
    """What is wrong with the folder of an image classifier, at a glance."""
    try:
        classifier_folder(encoder)
    except RecipeError as error:
        return str(error)
    return None


def _hub_problem() -> str | None:
    """Why nothing can be had from the hub; None where it answers."""
    return "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else unreachable(constants.ENDPOINT)


def _is_cached(repository: str, name: str, revision: str | None) -> bool:
    names = [name] if name else []
    return any(
        isinstance(try_to_load_from_cache(repository, file, revision=revision), str)
        for file in [*names, name.replace(".bin", ".safetensors"), *FOLDER_CHECKPOINTS]
        if file
    )


def open_clip_tags() -> dict[str, dict[str, dict[str, Any]]]:
    """open_clip's own table of models and tags, read without the library, which takes ten seconds to import."""
    name = "_open_clip_without_torch"
    spec = importlib.util.find_spec("open_clip")
    assert spec is not None
    package = types.ModuleType(name)
    package.__path__ = list(spec.submodule_search_locations or ())
    hidden = {"safetensors.torch": sys.modules.get("safetensors.torch")}
    sys.modules[name] = package
    sys.modules["safetensors.torch"] = None  # type: ignore[assignment] (it would import torch, and is optional there)
    try:
        return importlib.import_module(f"{name}.pretrained")._PRETRAINED
    finally:
        del sys.modules["safetensors.torch"]
        sys.modules.update({key: module for key, module in hidden.items() if module is not None})
        for key in [key for key in sys.modules if key.partition(".")[0] == name]:
            del sys.modules[key]
