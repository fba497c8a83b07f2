"""Loads an open_clip image tower, with its own preprocessing config."""

from __future__ import annotations

import contextlib
import difflib
import json
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import open_clip
import torch
from open_clip.pretrained import download_pretrained, download_pretrained_from_hf
from open_clip.transform import Compose, PreprocessCfg, image_transform_v2, merge_preprocess_dict

from build.checkpoint import misfit
from build.weights import (
    OPEN_CLIP_CONFIG,
    download_advice,
    first_line,
    hub_revision,
    is_file_of_tag,
    offline_if_unreachable,
    weights_file,
    weights_folder,
)
from common.manifest import Preprocessing, WeightsSource
from recipes.encoder_section import Encoder
from recipes.schema import RecipeError


def load_open_clip(encoder: Encoder) -> tuple[torch.nn.Module, Compose, Preprocessing, WeightsSource]:
    """The image tower as it is created, its transform, the same transform as data, and where its weights came from.

    Raises:
        RecipeError: unknown model or tag (with the nearest names), a missing or unfit weights file, or
            weights that could not be downloaded (with what to fetch and where to put it).
    """
    model, source = load_clip(encoder)
    visual = model.get_submodule("visual")
    config = PreprocessCfg(**cast(dict[str, Any], visual.preprocess_cfg))
    return visual, cast(Compose, image_transform_v2(config, is_train=False)), _preprocessing(config), source


def load_clip(encoder: Encoder) -> tuple[torch.nn.Module, WeightsSource]:
    """Both towers as they are created, and where their weights came from; raises the errors of `load_open_clip`."""
    with _config_registered(encoder):
        _check_names(encoder)
        checkpoint, source = _checkpoint(encoder)
        torch.manual_seed(encoder.seed)
        return _load_model(encoder, checkpoint), source


def _checkpoint(encoder: Encoder) -> tuple[Path | None, WeightsSource]:
    """The file of the weights, downloaded if it has to be; None for random ones."""
    path = weights_file(encoder)
    if path is not None:
        is_of_tag = None
        if encoder.pretrained is not None:
            url = open_clip.get_pretrained_cfg(encoder.model, encoder.pretrained).get("url")
            is_of_tag = is_file_of_tag(encoder, path, url)
        source = WeightsSource(encoder=encoder.id, file=path.name, sha256=encoder.weights_sha256)
        return path, source.model_copy(update={"is_file_of_tag": is_of_tag})
    if encoder.pretrained is None:
        return None, WeightsSource(encoder=encoder.id, file=None)
    config = open_clip.get_pretrained_cfg(encoder.model, encoder.pretrained)
    repository, _, name = str(config.get("hf_hub", "")).rpartition("/")
    if encoder.revision is not None and not repository:
        raise RecipeError(f"encoder.revision: {encoder.pretrained} of {encoder.model} is not on the Hugging Face hub")
    try:
        with offline_if_unreachable(config.get("url"), on_hub=bool(repository)):
            if encoder.revision is None:
                path = Path(download_pretrained(config))
            else:
                path = Path(download_pretrained_from_hf(repository, name or None, encoder.revision))
    except Exception as error:
        raise RecipeError(download_advice(encoder, config, first_line(error))) from error
    revision = hub_revision(repository, encoder.revision) if repository else None
    return path, WeightsSource(encoder=encoder.id, file=path.name, hub=repository or None, revision=revision)


def _load_model(encoder: Encoder, checkpoint: Path | None) -> torch.nn.Module:
    folder = weights_folder(encoder)
    if checkpoint is None:  # random weights are what the recipe asks for: no warning
        logging.disable(logging.WARNING)
    try:
        if folder is not None:
            return open_clip.create_model(f"local-dir:{folder}", pretrained_text=False)
        return open_clip.create_model(
            encoder.model,
            pretrained=None if checkpoint is None else str(checkpoint),
            pretrained_image=False,
            pretrained_text=False,
            force_preprocess_cfg=preprocessing_of_tag(encoder),
        )
    except Exception as error:
        if checkpoint is not None:
            name = encoder.model if folder is None else f"local-dir:{folder}"
            raise RecipeError(
                misfit(checkpoint, encoder.model, "open_clip", error, lambda: _model_without_weights(name))
            ) from error
        raise
    finally:
        logging.disable(logging.NOTSET)


def _model_without_weights(name: str) -> torch.nn.Module:
    logging.disable(logging.WARNING)  # that it has none is what is wanted
    return open_clip.create_model(name, load_weights=False, pretrained_image=False, pretrained_text=False)


def preprocessing_of_tag(encoder: Encoder) -> dict[str, Any]:
    """The preprocessing that the tag's weights were trained with, which open_clip forgets when it is given their file.

    Without a tag it is what all tags of the model agree on, such as SigLIP's mean and std of 0.5.

    Raises:
        RecipeError: there is a file and no tag, and the model's tags differ.
    """
    tags = [encoder.pretrained] if encoder.pretrained else open_clip.list_pretrained_tags_by_model(encoder.model)
    candidates = []
    for tag in tags:
        config = open_clip.get_pretrained_cfg(encoder.model, tag)
        preprocessing = merge_preprocess_dict(PreprocessCfg(), config)
        preprocessing.pop("size")  # the model's own
        candidates += [preprocessing] if preprocessing not in candidates else []
    if len(candidates) > 1 and encoder.weights is not None:
        raise RecipeError(
            f"encoder.weights: the weights of {encoder.model} were trained with different preprocessing "
            f"({', '.join(tags)}); name the one that the file is of under encoder.pretrained"
        )
    return candidates[0] if len(candidates) == 1 else {}


def _check_names(encoder: Encoder) -> None:
    if weights_folder(encoder) is not None:  # the folder has a config of its own
        weights_file(encoder)
        _check_quick_gelu(encoder)
        return
    models = open_clip.list_models()
    if encoder.model not in models:
        nearest = difflib.get_close_matches(encoder.model, models, n=3)
        raise RecipeError(
            f"encoder.model {encoder.model!r} is unknown to open_clip; nearest: {', '.join(nearest) or '-'}"
        )
    tags = open_clip.list_pretrained_tags_by_model(encoder.model)
    if encoder.pretrained is not None and encoder.pretrained not in tags:
        raise RecipeError(
            f"encoder.pretrained {encoder.pretrained!r} is no tag of {encoder.model}; "
            f"known: {', '.join(tags) or 'none'}. A local file goes under encoder.weights."
        )
    _check_quick_gelu(encoder)


def _check_quick_gelu(encoder: Encoder) -> None:
    """OpenAI's weights and a few others were trained with QuickGELU; in a GELU tower they embed wrongly."""
    of_tag = open_clip.get_pretrained_cfg(encoder.model, encoder.pretrained or "").get("quick_gelu", False)
    of_model = _model_config(encoder).get("quick_gelu", False)
    if encoder.pretrained is not None and of_tag != of_model:
        stem = encoder.model.removesuffix("-quickgelu")
        raise RecipeError(
            f"encoder.pretrained {encoder.pretrained!r} was trained with quick_gelu={of_tag}, encoder.model "
            f"{encoder.model!r} computes with quick_gelu={of_model}: its embeddings would be wrong. "
            f"Use the model {stem + '-quickgelu' if of_tag else stem!r}."
        )


def _model_config(encoder: Encoder) -> dict[str, Any]:
    """open_clip's config of the tower; of a weights folder, its own."""
    folder = weights_folder(encoder)
    if folder is None:
        return open_clip.get_model_config(encoder.model) or {}
    try:
        return dict(json.loads((folder / OPEN_CLIP_CONFIG).read_text(encoding="utf-8"))["model_cfg"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RecipeError(f"{folder / OPEN_CLIP_CONFIG}: not a model config of open_clip: {error!r}") from error


@contextlib.contextmanager
def _config_registered(encoder: Encoder) -> Iterator[None]:
    """open_clip learns of model configs from JSON files only."""
    if encoder.open_clip_config is None:
        yield
        return
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / f"{encoder.model}.json").write_text(json.dumps(encoder.open_clip_config))
        open_clip.add_model_config(folder)
        yield


def _preprocessing(config: PreprocessCfg) -> Preprocessing:
    size = config.size if isinstance(config.size, int) else config.size[0]
    if not isinstance(config.size, int) and len(set(config.size)) != 1:
        raise RecipeError(f"image size {config.size}: only square inputs are supported")
    return Preprocessing.model_validate(
        {
            "image_size": size,
            "resize_mode": config.resize_mode,
            "interpolation": config.interpolation,
            "fill_color": config.fill_color,
            "mean": config.mean,
            "std": config.std,
        }
    )
