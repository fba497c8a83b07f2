"""Loads an image classifier of transformers, with the preprocessing of its own image processor.

ViT, Swin, ConvNeXt, BEiT, DINOv2, SigLIP, EfficientNet, …: any that transformers has for image classification, as it
is, if its scores are those of one linear layer at its end. The package is an extra: `make transformers`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import Compose

from build.checkpoint import misfit
from build.classifier import Classifier, parted
from build.classifier_folder import check_library, folder_source, read_config
from build.weights import PROCESSOR_CONFIG as PROCESSOR
from build.weights import checkpoint_in, first_line
from common.classifier_layer import LayerDescription
from common.manifest import Preprocessing
from recipes.encoder_section import Encoder
from recipes.schema import RecipeError

_INTERPOLATIONS = {Image.Resampling.BILINEAR: "bilinear", Image.Resampling.BICUBIC: "bicubic"}
_PROBLEM = {"multi_label_classification": True, "single_label_classification": False, "regression": None, None: None}
_NO_LABEL = re.compile(r"LABEL_\d+")
"""Names that transformers makes up for a config without any."""


def load_transformers(encoder: Encoder, folder: Path) -> tuple[Classifier, Compose, Preprocessing]:
    """The parted classifier in `folder`, its transform, and the same transform as data.

    Raises:
        RecipeError: a file in the folder is missing; the folder is of an unknown model, of another
            library or checkpoint; its preprocessing is not served; see `build.classifier.parted`.
    """
    check_library(folder, encoder)
    processor = _load_processor(folder)
    preprocessing = processor_preprocessing(processor, str(folder / PROCESSOR))
    steps = Compose([_to_rgb, LibraryPixels(processor), LibraryTensor(processor)])
    model = Logits(_load_model(folder, encoder)).eval().float()
    config = model.model.config
    description = LayerDescription(
        library="transformers",
        labels=labels_of(config.id2label),
        multilabel=_PROBLEM.get(getattr(config, "problem_type", None)),
        source=folder_source(encoder, folder),
    )
    return parted(model, preprocessing.image_size, description, str(folder)), steps, preprocessing


class Logits(torch.nn.Module):
    """A model of transformers as one from pixels to logits: (B, 3, H, W) float32 → (B, classes) float32."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.model(pixel_values=inputs, return_dict=True).logits


class LibraryPixels:
    """The image processor's resizing and cropping alone: an RGB image → a square one."""

    def __init__(self, processor: Any) -> None:
        self._processor = processor

    def __call__(self, image: Image.Image) -> Image.Image:
        only = {"do_rescale": False, "do_normalize": False, "return_tensors": "np"}
        if hasattr(self._processor, "include_top"):
            only["include_top"] = False
        return Image.fromarray(self._processor(image, **only)["pixel_values"][0].astype(np.uint8).transpose(1, 2, 0))


class LibraryTensor:
    """What the image processor does to a square image after cropping: → (3, S, S) float32."""

    def __init__(self, processor: Any) -> None:
        self._processor = processor

    def __call__(self, image: Image.Image) -> torch.Tensor:
        options = {"do_resize": False, "do_center_crop": False, "return_tensors": "pt"}
        return self._processor(image, **options)["pixel_values"][0].float()


def processor_preprocessing(processor: Any, where: str) -> Preprocessing:
    """The preprocessing that an image processor of transformers describes.

    Raises:
        RecipeError: its result is not square, or it does what is not served.
    """
    for switch in ("do_pad", "do_flip_channel_order"):
        if getattr(processor, switch, None):
            raise RecipeError(f"{where}: {switch} is not served")
    if not processor.do_resize:
        raise RecipeError(f"{where}: do_resize is off, and pictures come in all sizes; the model needs one")
    interpolation = _INTERPOLATIONS.get(processor.resample)
    if interpolation is None:
        raise RecipeError(f"{where}: resample {processor.resample!r}: only bilinear (2) and bicubic (3) are served")
    mean, std = _mean_and_std(processor)
    geometry = _geometry(processor, where)
    return Preprocessing.model_validate({"interpolation": interpolation, "mean": mean, "std": std} | geometry)


def labels_of(id2label: Any) -> list[str] | None:
    """The names of the outputs in their order; None where a config has none of its own."""
    names = [str(id2label[index]) for index in sorted(id2label)] if id2label else []
    return None if not names or all(_NO_LABEL.fullmatch(name) for name in names) else names


def _geometry(processor: Any, where: str) -> dict[str, Any]:
    """The resize and the crop, as fields of a Preprocessing."""
    size, crop = processor.size, None
    if getattr(processor, "do_center_crop", False):
        crop = _square(processor.crop_size, "crop_size", where)
    if size.shortest_edge and not size.longest_edge:
        edge = int(size.shortest_edge)
        crop_pct = getattr(processor, "crop_pct", None)
        if crop_pct is not None:  # ConvNeXt's: resized by it and cropped, from 384 pixels on squashed
            return _resized("shortest" if edge < 384 else "squash", edge, int(edge / crop_pct) if edge < 384 else edge)
        if crop is None:
            raise RecipeError(f"{where}: pictures keep their shapes (size {dict(size)} without a crop); not served")
        return _resized("shortest", crop, edge)
    edge = _square(size, "size", where)
    return _resized("squash", crop or edge, edge)


def _resized(mode: str, image_size: int, resize_size: int) -> dict[str, Any]:
    crops = mode == "shortest" or resize_size != image_size
    return {
        "resize_mode": mode,
        "image_size": image_size,
        "resize_size": None if resize_size == image_size else resize_size,
        "crop": "floor" if crops else "round",
    }


def _square(size: Any, key: str, where: str) -> int:
    if not size or not size.height or size.height != size.width:
        raise RecipeError(f"{where}: {key} {dict(size or {})}: only square inputs are supported")
    return int(size.height)


def _mean_and_std(processor: Any) -> tuple[list[float], list[float]]:
    """Mean and std of values from 0 to 1 that equal the processor's rescaling and normalisations.

    It gives `(x * factor - shift - mean) / std` of bytes x, and some models' divide by std once more.
    """
    factor = processor.rescale_factor if processor.do_rescale else 1.0
    shift = 1.0 if processor.do_rescale and getattr(processor, "rescale_offset", False) else 0.0
    means, stds = [0.0] * 3, [1.0] * 3
    if processor.do_normalize:
        means, stds = ([float(v) for v in np.broadcast_to(x, 3)] for x in (processor.image_mean, processor.image_std))
    again = (
        [float(v) for v in np.broadcast_to(processor.image_std, 3)] if getattr(processor, "include_top", False) else []
    )
    all_stds = [std * other for std, other in zip(stds, again or [1.0] * 3, strict=True)]
    scale = 255 * factor
    return [(mean + shift) / scale for mean in means], [std / scale for std in all_stds]


def _load_processor(folder: Path) -> Any:
    """The image processor that works on Pillow's images, as those that models were trained with did."""
    from transformers import AutoImageProcessor  # pyright: ignore[reportMissingImports] (its extra)

    if not (folder / PROCESSOR).is_file():
        raise RecipeError(
            f"{folder}: the folder has no {PROCESSOR}, which says how pictures are prepared; fetch it from where the "
            "model is from, or write it with the image processor's save_pretrained"
        )
    try:
        return AutoImageProcessor.from_pretrained(folder, local_files_only=True, backend="pil", trust_remote_code=False)
    except Exception as error:
        raise RecipeError(
            f"{folder / PROCESSOR}: not an image processor of transformers: {first_line(error)}"
        ) from error


def _load_model(folder: Path, encoder: Encoder) -> Any:
    from transformers import AutoModelForImageClassification  # pyright: ignore[reportMissingImports] (its extra)
    from transformers.utils import logging  # pyright: ignore[reportMissingImports] (its extra)

    checkpoint = checkpoint_in(folder)
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    options = {"local_files_only": True, "trust_remote_code": False, "output_loading_info": True}
    try:
        model, loaded = AutoModelForImageClassification.from_pretrained(
            folder, use_safetensors=checkpoint.suffix == ".safetensors", dtype=torch.float32, **options
        )
    except (KeyError, ValueError) as error:
        kind = read_config(folder).get("model_type")
        raise RecipeError(
            f"{folder}: transformers has no image classifier of model_type {kind!r}: {first_line(error)}"
        ) from error
    except Exception as error:
        raise RecipeError(
            misfit(checkpoint, encoder.model, "transformers", error, lambda: _without_weights(folder))
        ) from error
    wrong = {key: sorted(map(str, loaded[f"{key}_keys"])) for key in ("missing", "mismatched")}
    if any(wrong.values()):
        differing = "; ".join(
            f"{key} keys ({len(names)}): {', '.join(names[:3])}" for key, names in wrong.items() if names
        )
        raise RecipeError(f"{checkpoint}: not a checkpoint of the model in {folder / 'config.json'}: {differing}")
    return model


def _without_weights(folder: Path) -> torch.nn.Module:
    from transformers import AutoConfig, AutoModelForImageClassification  # pyright: ignore[reportMissingImports] (its extra)

    return AutoModelForImageClassification.from_config(AutoConfig.from_pretrained(folder, local_files_only=True))


def _to_rgb(image: Image.Image) -> Image.Image:
    return image.convert("RGB")
