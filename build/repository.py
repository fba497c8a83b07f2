"""Installs a recipe's encoder and heads into the model repository that Triton loads, and checks it.

    python -m build.repository --recipe demo            # install, then check
    python -m build.repository --recipe demo --check    # check what is installed
    python -m build.repository --recipe nsfw-vit-b-32 --texts   # check the checked-in texts alone

The checked-in model_repository/ is written for the default recipe: there only binaries are added,
and the texts must already say what the recipe says. For any other recipe a stamped copy is made
under artifacts/<recipe>/model_repository.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from build import repository_check, repository_configs
from build.repository_check import RepositoryError
from recipes.manifest import (
    EncoderManifest,
    HeadManifest,
    ManifestError,
    compare_fingerprints,
    read_encoder,
    read_head,
)
from recipes.paths import MODEL_REPOSITORY, encoder_folder, head_folder, repository_folder
from recipes.schema import Recipe, RecipeError, load_recipe


@dataclass(frozen=True)
class Artefacts:
    """What is installed: the folders with model.onnx, and their manifests."""

    encoder_folder: Path
    encoder: EncoderManifest
    head_folders: list[Path]
    heads: list[HeadManifest]


def read_artefacts(recipe: Recipe) -> Artefacts:
    """Read what the earlier steps made.

    Raises:
        ManifestError: something is missing or a head does not fit the encoder.
    """
    encoder = read_encoder(encoder_folder(recipe.encoder))
    folders = [head_folder(head) for head in recipe.heads]
    heads = [read_head(folder) for folder in folders]
    for head, manifest in zip(recipe.heads, heads, strict=True):
        compare_fingerprints(manifest, encoder)
        if manifest.class_names != head.class_names:
            raise ManifestError(
                f"head {head.name!r}: trained for class_names {manifest.class_names}, "
                f"the recipe says {head.class_names}"
            )
    return Artefacts(encoder_folder(recipe.encoder), encoder, folders, heads)


def install(recipe: Recipe, target: Path) -> None:
    """Put the recipe's models into `target`.

    Raises:
        ManifestError: an artefact is missing or does not fit.
        RepositoryError: the default recipe no longer agrees with the checked-in configs.
    """
    artefacts = read_artefacts(recipe)
    configs = repository_configs.stamped(recipe, artefacts.encoder, artefacts.heads)
    if target == MODEL_REPOSITORY:
        repository_check.compare_configs(configs, target)
        _install_binaries(artefacts, target)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".partial-") as partial:
        fresh = Path(partial) / "model_repository"
        for name, config in configs.items():
            version = fresh / name / "1"
            version.mkdir(parents=True)
            (fresh / name / "config.pbtxt").write_text(repository_configs.to_text(config, recipe.name))
        for source in (MODEL_REPOSITORY / "preprocess" / "1").glob("*.py"):
            shutil.copy(source, fresh / "preprocess" / "1")
        _install_binaries(artefacts, fresh)
        if target.exists():
            target.rename(Path(partial) / "previous")
        fresh.rename(target)


def check_installed(recipe: Recipe, target: Path) -> list[str]:
    """Problems of an installed repository in itself and against the recipe; see `repository_check`."""
    artefacts = read_artefacts(recipe)
    repository_check.compare_configs(repository_configs.stamped(recipe, artefacts.encoder, artefacts.heads), target)
    return repository_check.check(target)


def _install_binaries(artefacts: Artefacts, target: Path) -> None:
    _install_model(artefacts.encoder_folder, "encoder.json", target / "clip_encoder" / "1")
    for folder, head in zip(artefacts.head_folders, artefacts.heads, strict=True):
        _install_model(folder, "head.json", target / f"{head.name}_head" / "1")


def _install_model(source: Path, manifest: str, version: Path) -> None:
    """Copy model.onnx and its manifest; a plan from an earlier build would win over the ONNX file."""
    if not (source / "model.onnx").is_file():
        raise ManifestError(f"{source / 'model.onnx'}: not found; make it with: make engines")
    version.mkdir(parents=True, exist_ok=True)
    for name in ("model.onnx", manifest):
        partial = version / f".{name}.partial"
        shutil.copy(source / name, partial)
        partial.replace(version / name)
    for plan in version.glob("*.plan"):
        plan.unlink()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m build.repository", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--recipe", required=True, help="a name in recipes/ or the path of a YAML file")
    parser.add_argument("--check", action="store_true", help="change nothing; check what is installed")
    parser.add_argument("--texts", action="store_true", help="check only the checked-in config.pbtxt files")
    arguments = parser.parse_args(argv)
    try:
        recipe = load_recipe(arguments.recipe)
        target = MODEL_REPOSITORY if arguments.texts else repository_folder(recipe)
        if not (arguments.check or arguments.texts):
            install(recipe, target)
        problems = repository_check.check_texts(target) if arguments.texts else check_installed(recipe, target)
    except (RecipeError, ManifestError, RepositoryError) as error:
        print(f"build.repository: {error}", file=sys.stderr)
        return 1
    for problem in problems:
        print(f"build.repository: {problem}", file=sys.stderr)
    if problems:
        return 1
    print(target)
    return 0


if __name__ == "__main__":
    sys.exit(main())
