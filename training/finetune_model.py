"""The model of a fine-tuning: created by timm, its lower layers frozen, its parameters grouped for AdamW."""

from __future__ import annotations

import difflib
import fnmatch
import json
from pathlib import Path
from typing import Any, cast

import timm
import torch
from timm.data.config import resolve_model_data_config
from timm.models import group_parameters
from timm.optim._param_groups import param_groups_layer_decay

import common.small_cnn  # noqa: F401 (registers its model)
from common.hub import first_line, offline_if_unreachable
from common.paths import named_path
from recipes.encoder_section import Finetune
from training.errors import StepError

CROP_MODES = {"shortest": "center", "squash": "squash"}
"""What a recipe calls a way of resizing → timm's crop_mode."""


def new_model(settings: Finetune, outputs: int) -> torch.nn.Module:
    """The model with pretrained weights, or given or random ones, and a new last layer.

    Raises:
        StepError: an unknown model, weights that are not there or not of this model, a size it does not take, or no
            parameter left to train.
    """
    if not timm.is_model(settings.model):
        nearest = difflib.get_close_matches(settings.model.partition(".")[0], timm.list_models(), n=3)
        raise StepError(
            f"finetune.model {settings.model!r} is unknown to timm; nearest: {', '.join(nearest) or '-'} "
            "(python -m build.encoder --list; a tag follows after a dot)"
        )
    torch.manual_seed(settings.seed)
    model = _loaded(settings) if settings.weights else _pretrained(settings)
    if not isinstance(getattr(model, "num_features", None), int):
        raise StepError(f"finetune.model {settings.model}: it has no pooled features; take another model")
    cast(Any, model).reset_classifier(outputs)
    _check_runs(model, settings, outputs)
    freeze(model, settings.freeze)
    return model


def data_config(model: torch.nn.Module, settings: Finetune) -> dict[str, Any]:
    """timm's description of the model's preprocessing, as the recipe wants it."""
    own: dict[str, Any] = {}
    if settings.image_size is not None:
        own["input_size"] = (3, settings.image_size, settings.image_size)
    if settings.resize is not None:
        own |= {"crop_mode": CROP_MODES[settings.resize], "crop_pct": 1.0}
    return resolve_model_data_config(model, own)


def freeze(model: torch.nn.Module, which: int | list[str]) -> None:
    """Let the parameters that the recipe names keep their weights; the last layer never does.

    Raises:
        StepError: a pattern that no parameter has, or more layers than there are.
    """
    names = [name for name, _ in model.named_parameters()]
    last = {id(parameter) for parameter in cast(Any, model).get_classifier().parameters()}
    frozen = _of_lowest_layers(model, which) if isinstance(which, int) else _of_patterns(names, which)
    for name, parameter in model.named_parameters():
        parameter.requires_grad = name not in frozen or id(parameter) in last


def training_mode(model: torch.nn.Module) -> None:
    """Training mode, but for normalisations that are frozen: their running statistics stay, too."""
    model.train()
    for module in model.modules():
        own = list(module.parameters(recurse=False))
        if own and list(module.buffers(recurse=False)) and not any(parameter.requires_grad for parameter in own):
            module.eval()


def optimizer_of(model: torch.nn.Module, settings: Finetune) -> torch.optim.Optimizer:
    """AdamW with a learning rate for each layer, as timm groups them."""
    fixed = cast(Any, model).no_weight_decay() if hasattr(model, "no_weight_decay") else ()
    groups = param_groups_layer_decay(
        model, settings.weight_decay, no_weight_decay_list=fixed, layer_decay=settings.layer_decay
    )
    for group in groups:
        group["lr"] = settings.learning_rate * group["lr_scale"]
    return torch.optim.AdamW(groups, lr=settings.learning_rate)


def _pretrained(settings: Finetune) -> torch.nn.Module:
    """The model with the weights of its tag, or random ones where it has no tag."""
    tag = settings.model.partition(".")[2]
    config = timm.get_pretrained_cfg(settings.model) if tag else None
    url, on_hub = (str(config.url) if config.url else None, bool(config.hf_hub_id)) if config else (None, False)
    try:
        with offline_if_unreachable(url, on_hub):
            return timm.create_model(settings.model, pretrained=bool(tag), **_options(settings))
    except Exception as error:
        if not tag:
            raise StepError(f"finetune.model {settings.model}: {first_line(error)}") from error
        where = [f"{config.hf_hub_id} on the Hugging Face hub" if on_hub and config else "", url or ""]
        raise StepError(
            f"finetune.model {settings.model}: its weights could not be downloaded: {first_line(error)}\nOn a machine "
            f"with a network fetch {' or '.join(filter(None, where)) or 'them'} (its .safetensors, .bin or .pth file), "
            "put it into weights/, and name it in the recipe:\n  finetune:\n    weights: weights/<file>"
        ) from error


def _loaded(settings: Finetune) -> torch.nn.Module:
    """The model with the weights of a file, or of a folder as the hub has it, every one of them."""
    path = named_path(cast(Path, settings.weights))
    name = settings.model.partition(".")[0]
    if path.is_dir():
        _check_architecture(path, name)
        path = path / "model.safetensors"
    if not path.is_file():
        raise StepError(f"finetune.weights: no file {path}; give a checkpoint, or a folder with model.safetensors")
    try:
        state = timm.models.load_state_dict(str(path))  # of a pickle the tensors alone
    except Exception as error:
        raise StepError(
            f"finetune.weights {path}: cannot be read as weights: {first_line(error)}; a checkpoint holds tensors by "
            "name (.safetensors, or torch.save of a state_dict), and no code is run from it"
        ) from error
    last = (timm.get_pretrained_cfg(name) or timm.models.PretrainedCfg()).classifier or ""
    layer = state.get(f"{last}.weight")
    options: dict[str, Any] = _options(settings) | {"num_classes": 0 if layer is None else len(layer)}
    overlay = {"file": str(path), "custom_load": False, "num_classes": options["num_classes"]}
    try:
        return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **cast(Any, options))
    except Exception as error:
        problem = " ".join(str(error).split())[:300]
        raise StepError(
            f"finetune.weights {path}: these are not the weights of {name} ({problem}); name the model that they are "
            "of as finetune.model"
        ) from error


def _check_architecture(folder: Path, name: str) -> None:
    try:
        architecture = json.loads((folder / "config.json").read_text(encoding="utf-8"))["architecture"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StepError(f"finetune.weights {folder}: has no config.json of timm ({first_line(error)})") from error
    if architecture != name:
        raise StepError(
            f"finetune.weights {folder}: holds a {architecture}, finetune.model is {name}; name the same model"
        )


def _options(settings: Finetune) -> dict[str, Any]:
    """Arguments of timm.create_model; what is left out is the model's own."""
    config = timm.get_pretrained_cfg(settings.model)
    options: dict[str, Any] = {"drop_rate": settings.dropout, "drop_path_rate": settings.drop_path}
    if config is not None and config.fixed_input_size:
        options["img_size"] = settings.image_size
    return {key: value for key, value in options.items() if value is not None}


def _check_runs(model: torch.nn.Module, settings: Finetune, outputs: int) -> None:
    size = data_config(model, settings)["input_size"]
    try:
        with torch.inference_mode():
            logits = model.eval()(torch.zeros(1, *size))
    except Exception as error:
        raise StepError(
            f"finetune.image_size {size[-1]}: {settings.model} cannot run at this size: {first_line(error)}; take a "
            "multiple of its patch (of 32 where it has none), or leave image_size out"
        ) from error
    if logits.shape != (1, outputs):
        raise StepError(f"finetune.model {settings.model}: gives {tuple(logits.shape)}, and no logits; take another")


def _of_lowest_layers(model: torch.nn.Module, count: int) -> set[str]:
    if not count:
        return set()
    if not hasattr(model, "group_matcher"):
        raise StepError("freeze: timm does not know the order of this model's layers; give patterns of names")
    layer_of: dict[str, int] = cast(Any, group_parameters)(model, cast(Any, model).group_matcher(), reverse=True)
    layers = max(layer_of.values()) + 1
    if count >= layers:
        raise StepError(f"freeze {count}: the model has {layers} layers with its last one; freeze fewer")
    return {name for name, layer in layer_of.items() if layer < count}


def _of_patterns(names: list[str], patterns: list[str]) -> set[str]:
    frozen: set[str] = set()
    for pattern in patterns:
        matches = fnmatch.filter(names, pattern.removeprefix("!"))
        if not matches:
            shown = ", ".join(sorted({".".join(name.split(".")[:2]) for name in names})[:12])
            raise StepError(f"freeze {pattern!r}: no parameter is called so; those of the model begin with {shown}")
        frozen = frozen - set(matches) if pattern.startswith("!") else frozen | set(matches)
    return frozen
