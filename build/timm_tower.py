"""Loads any timm image model as an image tower, with the preprocessing of its pretrained config.

The embedding is what a CLIP head is trained on. timm keeps the projection of a CLIP image tower in the
place of the classifier, with as many "classes" as the embedding has dims: that one stays, and the
embedding equals open_clip's. A real classifier is taken off; the embedding is then the pooled features. Of a folder
or repository of the hub, which is a classifier's, its last layer is kept for a head.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, cast

import timm
import torch
from PIL import Image
from timm.data.config import resolve_model_data_config
from timm.data.transforms_factory import create_transform
from torchvision.transforms import Compose

import common.small_cnn  # noqa: F401 (registers its model)
from build.checkpoint import misfit
from build.classifier import Classifier, parted
from build.classifier_folder import check_library, folder_source, read_config
from build.weights import (
    checkpoint_in,
    first_line,
    hub_revision,
    is_file_of_tag,
    offline_if_unreachable,
    weights_file,
)
from common.classifier_layer import LayerDescription
from common.manifest import Preprocessing, WeightsSource
from common.timm_preprocessing import timm_preprocessing
from recipes.encoder_section import Encoder
from recipes.schema import RecipeError

CLIP_EMBED_DIMS = {384, 512, 640, 768, 1024, 1152, 1280}
"""Widths of CLIP projections. No classifier of timm has as many classes."""


def load_timm(encoder: Encoder) -> tuple[torch.nn.Module, Compose, Preprocessing, WeightsSource]:
    """The image model as it is created, its transform, the same transform as data, and where its weights came from.

    Raises:
        RecipeError: unknown model or tag (with the nearest names), QuickGELU weights in another
            model, a missing or unfit weights file, weights that could not be downloaded, an image_size that
            the model does not take, or a preprocessing that is not served.
    """
    _check_names(encoder)
    _check_quick_gelu(encoder)
    if encoder.image_size is not None:
        _check_image_size(encoder, encoder.image_size)
    torch.manual_seed(encoder.seed)
    model = _load_model(encoder)
    if not is_projection(cast(dict[str, Any], model.pretrained_cfg)):
        cast(Any, model).reset_classifier(0)
    config = resolve_model_data_config(model, {"img_size": encoder.image_size})
    steps = cast(Compose, create_transform(**config, is_training=False)).transforms
    return model, Compose([_to_rgb, *steps]), timm_preprocessing(config), _source(encoder)


def load_timm_classifier(encoder: Encoder, folder: Path) -> tuple[Classifier, Compose, Preprocessing]:
    """The parted classifier in `folder`, its transform, and the same transform as data.

    Raises:
        RecipeError: the folder is of an unknown model, of another library or checkpoint; its preprocessing is not
            served; see `build.classifier.parted`.
    """
    check_library(folder, encoder)
    architecture = _check_architecture(folder, encoder)
    if encoder.image_size is not None:
        _check_image_size(encoder.model_copy(update={"model": architecture, "pretrained": None}), encoder.image_size)
    model = _load_folder(folder, encoder, architecture)
    config = resolve_model_data_config(model, {"img_size": encoder.image_size})
    preprocessing = timm_preprocessing(config)
    steps = cast(Compose, create_transform(**config, is_training=False)).transforms
    labels = cast(dict[str, Any], model.pretrained_cfg).get("label_names")
    description = LayerDescription(
        library="timm",
        labels=[str(name) for name in labels] if labels else None,
        source=folder_source(encoder, folder),
    )
    classifier = parted(model.eval().float(), preprocessing.image_size, description, str(folder))
    return classifier, Compose([_to_rgb, *steps]), preprocessing


def is_projection(pretrained_cfg: dict[str, Any]) -> bool:
    """True if the layer that timm calls the classifier is a CLIP projection."""
    return pretrained_cfg["num_classes"] in CLIP_EMBED_DIMS


def timm_name(encoder: Encoder) -> str:
    """The model's name in timm: `model`, or `model.tag`."""
    return encoder.model if encoder.pretrained is None else f"{encoder.model}.{encoder.pretrained}"


def _load_model(encoder: Encoder) -> torch.nn.Module:
    """Create an exportable model: attention is two matrix products with the scale on one side, not one operator."""
    name, weights = timm_name(encoder), weights_file(encoder)
    pretrained = weights is not None or encoder.pretrained is not None
    overlay = None if weights is None else {"file": str(weights), "custom_load": False}
    if encoder.revision is not None:
        overlay = {"hf_hub_id": f"{_hub_repository(encoder)}@{encoder.revision}"}
    source = timm.models.get_pretrained_cfg(name) if pretrained and weights is None else None
    url, on_hub = (str(source.url) if source.url else None, bool(source.hf_hub_id)) if source else (None, False)
    options = {"pretrained": pretrained, "pretrained_cfg_overlay": overlay, "img_size": _fixed_size(encoder)}
    try:
        with offline_if_unreachable(url, on_hub):
            return timm.create_model(name, exportable=True, **cast(Any, options))
    except Exception as error:
        if weights is not None:
            raise RecipeError(misfit(weights, name, "timm", error, lambda: _model_without_weights(encoder))) from error
        if pretrained:
            raise RecipeError(_download_advice(encoder, error)) from error
        raise


def _check_architecture(folder: Path, encoder: Encoder) -> str:
    """The architecture in config.json, if timm knows it and the recipe does not name another."""
    architecture = str(read_config(folder)["architecture"])
    if not timm.is_model(architecture):
        nearest = difflib.get_close_matches(architecture, timm.list_models(), n=3)
        raise RecipeError(
            f"{folder / 'config.json'}: architecture {architecture!r} is unknown to timm {timm.__version__}; nearest: "
            f"{', '.join(nearest) or '-'}. A newer timm may have it"
        )
    if timm.is_model(encoder.model) and encoder.model != architecture:
        raise RecipeError(
            f"encoder.model is {encoder.model}, the folder {folder} holds a {architecture}; name that one, or a name "
            "of your own"
        )
    return architecture


def _load_folder(folder: Path, encoder: Encoder, architecture: str) -> torch.nn.Module:
    """The classifier of a folder, exportable."""
    name, size = f"local-dir:{folder}", {"img_size": encoder.image_size} if encoder.image_size else {}
    fixed = cast(Any, timm.models.get_pretrained_cfg(architecture))
    size = size if fixed is not None and fixed.fixed_input_size else {}
    try:
        return timm.create_model(name, pretrained=True, exportable=True, **cast(Any, size))
    except Exception as error:
        raise RecipeError(
            misfit(
                checkpoint_in(folder), architecture, "timm", error, lambda: timm.create_model(name, pretrained=False)
            )
        ) from error


def _model_without_weights(encoder: Encoder) -> torch.nn.Module:
    return timm.create_model(encoder.model, exportable=True, **cast(Any, {"img_size": _fixed_size(encoder)}))


def _fixed_size(encoder: Encoder) -> int | None:
    """The image_size for a model that is made for one size; the others, such as ResNets, take no img_size."""
    config = timm.models.get_pretrained_cfg(timm_name(encoder))
    return encoder.image_size if config is not None and config.fixed_input_size else None


def _check_image_size(encoder: Encoder, size: int) -> None:
    """Refuse, before weights are fetched, what would cut the picture's edge off, or does not run."""
    try:
        model = _model_without_weights(encoder)
        with torch.inference_mode():
            model.eval()(torch.zeros(1, 3, size, size))
    except Exception as error:
        raise RecipeError(
            f"encoder.image_size {size}: {encoder.model} cannot run at this size: {first_line(error)}; take a multiple "
            "of its patch (of 32 where it has none), or leave image_size out"
        ) from error
    patch = getattr(getattr(model, "patch_embed", None), "patch_size", 1)
    patch = patch if isinstance(patch, int) else patch[0]
    if size % patch:
        below = size // patch * patch
        raise RecipeError(
            f"encoder.image_size {size}: {encoder.model} sees patches of {patch} pixels, which do not fill it; "
            f"take {below} or {below + patch}"
        )


def _source(encoder: Encoder) -> WeightsSource:
    if encoder.weights is not None:
        path, config = weights_file(encoder), timm.get_pretrained_cfg(timm_name(encoder))
        url = config.url if config is not None and encoder.pretrained and isinstance(config.url, str) else None
        source = WeightsSource(encoder=encoder.id, file=encoder.weights_name, sha256=encoder.weights_sha256)
        return source.model_copy(update={"is_file_of_tag": path and is_file_of_tag(encoder, path, url)})
    if encoder.pretrained is None:
        return WeightsSource(encoder=encoder.id, file=None)
    repository = _hub_repository(encoder)
    revision = hub_revision(repository, encoder.revision) if repository else None
    return WeightsSource(encoder=encoder.id, file=timm_name(encoder), hub=repository, revision=revision)


def _hub_repository(encoder: Encoder) -> str | None:
    """The hub's repository of the tag's weights; RecipeError if the recipe pins a revision and there is none."""
    config = timm.models.get_pretrained_cfg(timm_name(encoder))
    repository = (config.hf_hub_id or "").rstrip("/") if config else ""
    if encoder.revision is not None and not repository:
        raise RecipeError(f"encoder.revision: {timm_name(encoder)} is not on the Hugging Face hub")
    return repository or None


def _check_names(encoder: Encoder) -> None:
    if not timm.is_model(encoder.model):
        nearest = difflib.get_close_matches(encoder.model, timm.list_models(), n=3)
        raise RecipeError(f"encoder.model {encoder.model!r} is unknown to timm; nearest: {', '.join(nearest) or '-'}")
    tags = tags_of(encoder.model)
    if encoder.pretrained is not None and encoder.pretrained not in tags:
        raise RecipeError(
            f"encoder.pretrained {encoder.pretrained!r} is no tag of timm's {encoder.model}; "
            f"known: {', '.join(tags) or 'none'}. A local file goes under encoder.weights."
        )


def tags_of(model: str) -> list[str]:
    return [name.partition(".")[2] for name in timm.list_pretrained(f"{model}.*")]


def _check_quick_gelu(encoder: Encoder) -> None:
    """timm notes which weights were trained with QuickGELU; its plain models compute with GELU."""
    notes = str(getattr(timm.models.get_pretrained_cfg(timm_name(encoder)), "notes", None))
    if encoder.pretrained is not None and "QuickGELU" in notes and "quickgelu" not in encoder.model:
        model = encoder.model.replace("_clip_", "_clip_quickgelu_")
        raise RecipeError(
            f"encoder.pretrained {encoder.pretrained!r} was trained with QuickGELU, encoder.model {encoder.model!r} "
            f"computes with GELU: its embeddings would be wrong. Use the model {model!r}."
        )


def _download_advice(encoder: Encoder, error: Exception) -> str:
    source = timm.models.get_pretrained_cfg(timm_name(encoder))
    where = [f"{source.hf_hub_id.rstrip('/')} on the Hugging Face hub"] if source and source.hf_hub_id else []
    where += [str(source.url)] if source and source.url else []
    return (
        f"weights of {timm_name(encoder)} could not be downloaded: {first_line(error)}\n"
        f"On a machine with a network fetch {' or '.join(where)} (its .safetensors, .bin or .pth file), "
        f"put it into weights/, and name it in the recipe:\n  encoder:\n    weights: weights/<file>"
    )


def _to_rgb(image: Image.Image) -> Image.Image:
    return image.convert("RGB")
