"""Exports image towers of open_clip, timm or transformers to one ONNX file with a manifest, checked against torch.

    python -m build.encoder --recipe demo
    python -m build.encoder --list 'ViT-L*'      # what is supported; a pattern adds parameters and GFLOP

Writes artifacts/encoders/<id>/model.onnx (`pixels` UINT8 [B, H, W, 3] → `embedding` FP32 [B, D]; cast,
mean/std and L2 normalisation inside) and encoder.json; for a recipe in fp16 or int8 also the file made from it,
in artifacts/encoders/<id>-<precision>/. A file that would come out the same is kept. Nothing is written
when a check fails. Of an image classifier the backbone is exported; its last layer lies beside it, in
classifier.safetensors, for training.import_classifier. A recipe with `decode: scaled` has an <id> of its own; what its
decoding does to embeddings of photographs is in encoder.json, under `parity`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from build.errors import INTERRUPTED, BuildError
from build.reachable import missing_weights
from build.weights import source_sha256
from common.classifier_layer import FILE as CLASSIFIER
from common.cpu import find_cpu
from common.manifest import (
    EncoderManifest,
    ManifestError,
    Parity,
    Tensor,
    onnx_files,
    read_encoder,
    sha256_of,
    tool_versions,
    write_manifest,
)
from common.paths import encoder_folder
from common.writing import check_writable, writing
from recipes.arguments import add_recipe_options, recipe_of
from recipes.build_section import Precision
from recipes.errors import run_step
from recipes.schema import Recipe, RecipeError
from recipes.serving_section import Serving

if TYPE_CHECKING:
    import numpy as np

    from build.parity import Reference
    from build.tower import Tower

# torch takes seconds to import, and a build that finds everything made should not: functions import it.

VERIFICATION = "verification.npz"
"""File beside each model.onnx: (N, embed_dim) float32 of the verification's pictures, as `embeddings` and `torch`."""


def make_encoder(recipe: Recipe) -> list[EncoderManifest]:
    """Build what is missing or out of date: the fp32 file, then the one of the recipe's precision if it is another.

    Raises:
        RecipeError: a tower cannot be loaded as the recipe says.
        BuildError: a file does not compute what the library computes.
    """
    folder = encoder_folder(recipe, "fp32")
    manifests = [up_to_date(recipe, folder) or build_encoder(recipe, folder)]
    precision = recipe.build.precision
    if precision != "fp32":
        reduced = encoder_folder(recipe)
        manifests.append(
            up_to_date(recipe, reduced, precision, manifests[0].onnx_sha256) or reduce_encoder(recipe, folder, reduced)
        )
    return manifests


def build_encoder(recipe: Recipe, folder: Path) -> EncoderManifest:
    """Export, check and install the recipe's encoder in fp32 into `folder`; raises the errors of `make_encoder`."""
    from build.decode_parity import check_decode
    from build.export import EncoderGraph, export_onnx, release_weights
    from build.onnx_embeddings import onnx_embeddings
    from build.parity import check_embeddings, torch_reference
    from build.tower import load_tower

    check_writable(folder)
    towers = [load_tower(encoder) for encoder in recipe.encoder.towers]
    reference = torch_reference(towers, recipe)
    manifest = describe(recipe, towers, reference.embeddings.shape[1])
    folder.mkdir(parents=True, exist_ok=True)
    with writing(folder), tempfile.TemporaryDirectory(dir=folder, prefix=".partial-") as partial:
        path = Path(partial) / "model.onnx"
        graph = EncoderGraph(towers)
        export_onnx(graph, recipe.build.opset, path)
        release_weights(graph)  # memory for onnxruntime's copy of them
        embeddings = onnx_embeddings(path, reference.pixels)
        parity = check_embeddings(reference, embeddings, recipe, "fp32")
        parity = parity.model_copy(update=check_decode(path, manifest.preprocessing, recipe))
        layer = _last_layer(towers, reference)
        return _install(manifest, parity, path, folder, layer, torch=reference.embeddings, embeddings=embeddings)


def reduce_encoder(recipe: Recipe, source: Path, folder: Path) -> EncoderManifest:
    """Make, check and install into `folder` the recipe's precision of the fp32 encoder in `source`."""
    import numpy as np

    from build.onnx_embeddings import onnx_embeddings
    from build.parity import Reference, check_embeddings
    from build.quantize import to_int8
    from build.speed import images_per_second, speed_report
    from common.photos import calibration_pictures, verification_pictures
    from common.pixels import served_pixels

    check_writable(folder)
    precision, full = recipe.build.precision, read_encoder(source)
    pictures = verification_pictures()
    pixels = served_pixels(full.preprocessing, Serving(), pictures)
    expected = np.load(source / VERIFICATION)["torch"]
    reference = Reference([picture.name for picture in pictures], pixels, expected)
    folder.mkdir(parents=True, exist_ok=True)
    with writing(folder), tempfile.TemporaryDirectory(dir=folder, prefix=".partial-") as partial:
        path = Path(partial) / "model.onnx"
        if precision == "fp16":
            embeddings = _to_float16(source / "model.onnx", path, pixels)
        else:
            calibration = served_pixels(full.preprocessing, Serving(), calibration_pictures())
            to_int8(source / "model.onnx", path, calibration)
            embeddings = onnx_embeddings(path, pixels)
            speeds = images_per_second([path, source / "model.onnx"], pixels)
            print(f"encoder {full.id}: {speed_report(precision, *speeds)}", file=sys.stderr)
        parity = check_embeddings(reference, embeddings, recipe, precision)
        parity = parity.model_copy(update=full.parity.scaled())
        here = str(find_cpu())
        made = {"precision": precision, "made_from": full.onnx_sha256, "cpu": here, "classifier_sha256": None}
        return _install(full.model_copy(update=made), parity, path, folder, embeddings=embeddings)


def _to_float16(source: Path, path: Path, pixels: np.ndarray) -> np.ndarray:
    """Write the fp16 file, run it once, and return its embeddings as a GPU would compute them."""
    from build.float16 import to_float16, write_as_gpu
    from build.onnx_embeddings import onnx_embeddings

    to_float16(source, path)
    onnx_embeddings(path, pixels[:4])
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        write_as_gpu(path, Path(folder) / "as_gpu.onnx")
        return onnx_embeddings(Path(folder) / "as_gpu.onnx", pixels, optimize=False)


def _last_layer(towers: list[Tower], reference: Reference) -> bytes:
    """Contents of classifier.safetensors; empty for towers that are no classifier's."""
    classifier = towers[0].classifier
    if classifier is None or reference.logits is None:
        return b""
    return classifier.layer(reference.logits).to_bytes()


def describe(recipe: Recipe, towers: list[Tower], embed_dim: int) -> EncoderManifest:
    """The manifest of the fp32 file before the export: without its sum and the check's figures."""
    from build.tower import combined_sha256, layer_widths, pixel_dims, views_of

    return EncoderManifest(
        id=recipe.encoder.id,
        recipe=recipe_part(recipe),
        weights_sha256=combined_sha256(towers),
        source_sha256=[source_sha256(encoder) for encoder in recipe.encoder.towers],
        onnx_sha256="",
        input=Tensor(name="pixels", dtype="UINT8", dims=pixel_dims(views_of(towers))),
        output=Tensor(name="embedding", dtype="FP32", dims=[embed_dim]),
        layer_widths=layer_widths(towers, embed_dim),
        preprocessing=views_of(towers),
        normalize=all(tower.normalize for tower in towers),
        precision="fp32",
        sources=[tower.source for tower in towers],
        parity=Parity(),
        cpu=str(find_cpu()),
        versions=versions(recipe),
    )


def _install(
    manifest: EncoderManifest, parity: Parity, path: Path, folder: Path, layer: bytes = b"", **arrays: np.ndarray
) -> EncoderManifest:
    """Move a checked file, with its weights and its embeddings, into `folder`; the manifest is written last.

    Args:
        manifest: of the file, without what is only known now.
        parity: the check's figures.
        path: the file.
        folder: of the encoder.
        layer: contents of classifier.safetensors; empty for an encoder that is no classifier's.
        arrays: embeddings for the verification.
    """
    import numpy as np

    np.savez(path.with_name(VERIFICATION), allow_pickle=False, **arrays)
    files = onnx_files(path)
    manifest = manifest.model_copy(update={"parity": parity, "onnx_sha256": sha256_of(*files)})
    beside = [path.with_name(VERIFICATION)]
    if layer:
        beside.append(path.with_name(CLASSIFIER))
        beside[-1].write_bytes(layer)
        manifest = manifest.model_copy(update={"classifier_sha256": sha256_of(beside[-1])})
    (folder / "encoder.json").unlink(missing_ok=True)  # never a manifest beside another file's weights
    for name in ("model.onnx.data", VERIFICATION, CLASSIFIER):
        (folder / name).unlink(missing_ok=True)
    for file in [*files, *beside]:
        file.replace(folder / file.name)
    write_manifest(manifest, folder / "encoder.json")
    return manifest


def up_to_date(
    recipe: Recipe, folder: Path, precision: Precision = "fp32", made_from: str | None = None
) -> EncoderManifest | None:
    """The manifest in `folder` if building again would make the same file and it passed the limit; else None."""
    try:
        manifest = read_encoder(folder)
    except ManifestError:
        return None
    path, scaled = folder / "model.onnx", manifest.parity.scaled_cosine_mean
    same = (
        manifest.recipe == recipe_part(recipe)
        and manifest.versions == versions(recipe)
        and (manifest.precision, manifest.made_from) == (precision, made_from)
        and manifest.parity.cosine_min >= recipe.build.minimum_cosine.at(precision)
        and (scaled is None or scaled >= recipe.build.minimum_cosine.scaled)
        and manifest.source_sha256 == [source_sha256(encoder) for encoder in recipe.encoder.towers]
        and path.is_file()
        and (folder / VERIFICATION).is_file()
        and manifest.classifier_sha256 in (None, _sum_if_there(folder / CLASSIFIER))
        and manifest.onnx_sha256 == sha256_of(*onnx_files(path))
        and not (precision == "int8" and _saturates(path))
    )
    return manifest if same else None


def _sum_if_there(path: Path) -> str | None:
    return sha256_of(path) if path.is_file() else None


def _saturates(path: Path) -> bool:
    """True if an int8 file computes something else on some CPUs, as those of older builds do."""
    from build.quantize import saturating_products

    return bool(saturating_products(path))


def recipe_part(recipe: Recipe) -> dict:
    """The part of the recipe that decides the exported encoder, for its manifest."""
    return {
        "encoder": recipe.encoder.model_dump(mode="json", exclude_defaults=True, exclude={"finetune"}),
        "build": {"opset": recipe.build.opset},
    }


def versions(recipe: Recipe) -> dict[str, str]:
    distributions = {"open_clip": "open_clip_torch", "timm": "timm", "transformers": "transformers"}
    libraries = sorted({distributions[encoder.library] for encoder in recipe.encoder.towers})
    return tool_versions("torch", *libraries, "onnx", "onnxruntime", "pillow")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m build.encoder", description=(__doc__ or "").splitlines()[0])
    what = parser.add_mutually_exclusive_group(required=True)
    add_recipe_options(parser, group=what)
    what.add_argument("--list", nargs="?", const="", metavar="PATTERN", help="show the models that can be built")
    parser.add_argument("--check", action="store_true", help="only say which weights are missing and cannot be fetched")
    arguments = parser.parse_args(argv)
    if arguments.list is not None:
        from build.catalogue import print_catalogue

        return print_catalogue(arguments.list)
    recipe = recipe_of(arguments)
    if arguments.check:
        missing = [] if up_to_date(recipe, encoder_folder(recipe, "fp32")) else missing_weights(recipe)
        if missing:
            raise RecipeError("\n".join(missing))
        return 0
    try:
        manifests = make_encoder(recipe)
    except OSError as error:
        file = "" if error.filename is None else f": {error.filename}"
        raise BuildError(f"nothing was installed: {error.strerror or error}{file}") from error
    for manifest in manifests:
        _report(manifest)
    print(encoder_folder(recipe) / "encoder.json")
    return 0


def _report(manifest: EncoderManifest) -> None:
    parity, views = manifest.parity, " and ".join(str(view.image_size) for view in manifest.preprocessing)
    pixels = "pixels bit-equal"
    if parity.scaled_cosine_mean is not None:
        pixels += f" when decoded exactly, mean cosine {parity.scaled_cosine_mean:.5f} to them when scaled"
    print(
        f"encoder {manifest.id}, {manifest.precision}: {manifest.embed_dim} dims, {views} px; "
        f"{parity.pictures:.0f} pictures against torch: {pixels}, cosine ≥ {parity.cosine_min:.7f}",
        file=sys.stderr,
    )


if __name__ == "__main__":
    sys.exit(run_step("build.encoder", main, INTERRUPTED))
