"""open_clip or timm image tower → one self-contained ONNX file with its manifest, checked against torch.

    python -m build.encoder --recipe demo
    python -m build.encoder --list 'ViT-L*'      # what is supported; a pattern adds parameters and GFLOP

Writes artifacts/encoders/<id>/model.onnx (`pixels` UINT8 [B, H, W, 3] → `embedding` FP32 [B, D]; cast,
mean/std and L2 normalisation inside) and encoder.json. Nothing is written when the check fails.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import onnx
import torch

from build.catalogue import print_catalogue
from build.parity import ParityError, check_parity
from build.tower import Tower, load_tower
from build.weights import source_sha256
from recipes.manifest import (
    EncoderManifest,
    ManifestError,
    Tensor,
    read_encoder,
    sha256_of,
    tool_versions,
    write_manifest,
)
from recipes.paths import encoder_folder
from recipes.schema import MAX_IR_VERSION, Recipe, RecipeError, load_recipe


class EncoderGraph(torch.nn.Module):
    """(B, H, W, 3) uint8 pixels → (B, embed_dim) float32 embedding."""

    scale: torch.Tensor
    offset: torch.Tensor

    def __init__(self, tower: Tower, normalize: bool) -> None:
        super().__init__()
        mean, std = torch.tensor(tower.preprocessing.mean), torch.tensor(tower.preprocessing.std)
        self.visual = tower.visual
        self.normalize = normalize
        self.register_buffer("scale", (1 / (255 * std)).view(1, 3, 1, 1))
        self.register_buffer("offset", (-mean / std).view(1, 3, 1, 1))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        inputs = pixels.to(torch.float32).permute(0, 3, 1, 2) * self.scale + self.offset
        embedding = self.visual(inputs)
        return torch.nn.functional.normalize(embedding, dim=-1) if self.normalize else embedding


def build_encoder(recipe: Recipe, folder: Path) -> EncoderManifest:
    """Export, check and install the recipe's encoder into `folder`.

    Raises:
        RecipeError: the tower cannot be loaded as the recipe says.
        ParityError: the exported graph does not compute what the library computes.
    """
    tower = load_tower(recipe.encoder)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".partial-") as partial:
        path = Path(partial) / "model.onnx"
        export_onnx(EncoderGraph(tower, recipe.encoder.normalize), tower.preprocessing.image_size, recipe, path)
        parity = check_parity(tower, path, recipe)
        manifest = describe(recipe, tower, path, parity)
        (folder / "encoder.json").unlink(missing_ok=True)  # never a manifest beside another file's weights
        path.replace(folder / "model.onnx")
    write_manifest(manifest, folder / "encoder.json")
    return manifest


def export_onnx(graph: torch.nn.Module, image_size: int, recipe: Recipe, path: Path) -> None:
    """Write `graph` with a dynamic batch, loadable by the oldest promised onnxruntime."""
    example = torch.zeros((2, image_size, image_size, 3), dtype=torch.uint8)
    with torch.inference_mode():
        torch.onnx.export(
            graph.eval(),
            (example,),
            path,
            input_names=["pixels"],
            output_names=["embedding"],
            dynamic_shapes={"pixels": {0: torch.export.Dim("batch", min=1, max=4096)}},
            opset_version=recipe.build.opset,
            external_data=False,
            dynamo=True,
            verbose=False,
        )
    model = onnx.load(path)
    feed_pixels_through_the_cast(model)
    model.ir_version = min(model.ir_version, MAX_IR_VERSION)
    del model.metadata_props[:]
    for node in model.graph.node:  # the exporter notes source lines and paths of this machine
        del node.metadata_props[:]
        node.doc_string = ""
    onnx.checker.check_model(model)
    onnx.save(model, path)


def feed_pixels_through_the_cast(model: onnx.ModelProto) -> None:
    """TensorRT takes a UINT8 input into a Cast alone; the exporter also reads the batch size from it."""
    nodes = model.graph.node
    (cast,) = (node for node in nodes if node.op_type == "Cast" and "pixels" in node.input)
    for node in nodes:
        if node is not cast:
            node.input[:] = [cast.output[0] if name == "pixels" else name for name in node.input]
    first = onnx.NodeProto()
    first.CopyFrom(cast)
    nodes.remove(cast)
    nodes.insert(0, first)


def up_to_date(recipe: Recipe, folder: Path) -> EncoderManifest | None:
    """The manifest in `folder` when building again would make the same file, else None."""
    try:
        manifest = read_encoder(folder)
    except ManifestError:
        return None
    same = (
        manifest.recipe == recipe_part(recipe)
        and manifest.versions == versions(recipe)
        and manifest.source_sha256 == source_sha256(recipe.encoder)
        and (folder / "model.onnx").is_file()
        and manifest.onnx_sha256 == sha256_of(folder / "model.onnx")
    )
    return manifest if same else None


def recipe_part(recipe: Recipe) -> dict:
    """What of the recipe decides the encoder, for its manifest."""
    return {
        "encoder": recipe.encoder.model_dump(mode="json", exclude_defaults=True),
        "build": recipe.build.model_dump(mode="json", exclude={"engine"}),
    }


def versions(recipe: Recipe) -> dict[str, str]:
    library = {"open_clip": "open_clip_torch", "timm": "timm"}[recipe.encoder.library]
    return tool_versions("torch", library, "onnx", "onnxruntime", "pillow")


def describe(recipe: Recipe, tower: Tower, path: Path, parity: dict[str, float]) -> EncoderManifest:
    output = onnx.load(path, load_external_data=False).graph.output[0]
    size = tower.preprocessing.image_size
    return EncoderManifest(
        id=recipe.encoder.id,
        recipe=recipe_part(recipe),
        weights_sha256=tower.weights_sha256,
        source_sha256=source_sha256(recipe.encoder),
        onnx_sha256=sha256_of(path),
        input=Tensor(name="pixels", dtype="UINT8", dims=[size, size, 3]),
        output=Tensor(name="embedding", dtype="FP32", dims=[output.type.tensor_type.shape.dim[1].dim_value]),
        preprocessing=tower.preprocessing,
        normalize=recipe.encoder.normalize,
        precision=recipe.build.precision,
        parity=parity,
        versions=versions(recipe),
    )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m build.encoder", description=(__doc__ or "").splitlines()[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--recipe", help="a name in recipes/ or the path of a YAML file")
    what.add_argument("--list", nargs="?", const="", metavar="PATTERN", help="show the models that can be built")
    arguments = parser.parse_args(argv)
    if arguments.list is not None:
        return print_catalogue(arguments.list)
    try:
        recipe = load_recipe(arguments.recipe)
        folder = encoder_folder(recipe.encoder)
        manifest = up_to_date(recipe, folder) or build_encoder(recipe, folder)
    except (RecipeError, ParityError) as error:
        print(f"build.encoder: {error}", file=sys.stderr)
        return 1
    parity = manifest.parity
    print(
        f"encoder {manifest.id}: {manifest.embed_dim} dims, {manifest.preprocessing.image_size} px; "
        f"{parity['photos']:.0f} photos against {recipe.encoder.library}: pixels bit-equal, "
        f"cosine ≥ {parity['cosine_min']:.7f}",
        file=sys.stderr,
    )
    print(folder / "encoder.json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
