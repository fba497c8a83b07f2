"""Published head → artifacts/<recipe>/heads/<head>/: head.safetensors and head.json, as training.fit would write them.

    python -m training.import_head --recipe nsfw-vit-l-14
    python -m training.import_head --recipe nsfw-vit-l-14 --head nsfw --verify 10000
    python -m training.import_head --name laion-nsfw-b32 --file clip_autokeras_nsfw_b32.zip --out heads/nsfw
    python -m training.import_head --list

Imports each head of the recipe that has `published`, from its local `file` or from its owner's repository;
sha256 is checked either way. What is imported already stays. Prints the path of each head.json.
"""

from __future__ import annotations

import argparse
import functools
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from common import paths
from common.download import unreachable
from common.head_training import HeadTraining, PublishedSource
from common.manifest import (
    EncoderFingerprint,
    HeadManifest,
    Layer,
    ManifestError,
    Threshold,
    read_head,
    sha256_of,
)
from common.writing import check_writable
from recipes.arguments import add_recipe_options, recipe_of
from recipes.encoder_section import Decode
from recipes.errors import run_step
from recipes.head_section import Head, Published
from recipes.schema import Recipe
from training.download import check_sha256, download
from training.errors import INTERRUPTED, StepError
from training.head_manifest import new_head, write_new_head
from training.progress import say
from training.published import PREPROCESSING, PUBLISHED, PublishedHead, published_head
from training.published_keras import VARIANTS, Variant, import_keras
from training.published_torch import import_torch
from training.thresholds import changed_thresholds, with_recipes_thresholds

_VERIFY = 2000


@dataclass(frozen=True)
class Options:
    """Options that the step was called with."""

    verify: int = _VERIFY
    """Vectors of each kind on which a Keras head must agree with its original graph."""
    accept_unknown_sha256: bool = False
    replace: bool = False
    """Whether a head that was trained here may be replaced."""


@dataclass(frozen=True)
class Imported:
    """The contents of a published file."""

    layers: list[Layer]
    tensors: dict[str, np.ndarray]
    figures: dict[str, Any]


def import_head(
    head: Head, notice: str | None, folder: Path, options: Options, made_by: str | None = None, decode: Decode = "exact"
) -> Path:
    """Import `head.published` into `folder`; returns the path of head.json. Nothing is written on failure.

    Args:
        head: with `published`.
        notice: the recipe's, for head.json.
        folder: of the head.
        options: of the command line.
        made_by: the recipe's name.
        decode: of the encoder that the head is for.

    Raises:
        StepError: the file cannot be had, is not the published one, or does not score as the original does.
    """
    choice, published = _chosen(head), published_head(_chosen(head).name)
    _check_head(head, published)
    if (there := _imported(head, folder, decode)) is not None:
        if there.recipe != head.settings():
            changed_thresholds(folder, with_recipes_thresholds(there, head), head).write(folder)
        say(f"head {head.name}: {published.name} is imported already")
        return folder / "head.json"
    _check_replaceable(folder, options.replace)
    check_writable(folder)
    file = published_file(choice, published, options.accept_unknown_sha256)
    imported = _read(file, published, choice.variant, options.verify)
    weights = safetensors.numpy.save({name: np.ascontiguousarray(array) for name, array in imported.tensors.items()})
    manifest = head_manifest(head, notice, published, imported, sha256_of(file), weights, made_by, decode)
    write_new_head(folder, manifest, weights)
    return folder / "head.json"


def published_file(choice: Published, published: PublishedHead, accept_unknown_sha256: bool) -> Path:
    """The published file on this machine, its sum checked; downloaded unless the recipe names a local copy.

    Raises:
        StepError: it is not there, cannot be downloaded, has another sum, or its sum is not known to anyone.
    """
    expected = _expected_sha256(choice, published)
    if choice.file is None:
        _check_known(published, expected, accept_unknown_sha256, sha256=None)
        return _downloaded(published, expected)
    file = paths.ROOT / choice.file
    if not file.is_file():
        raise StepError(f"{file}: no such file; fetch {published.url}, or leave published.file out to download it")
    _check_known(published, expected, accept_unknown_sha256, sha256=sha256_of(file))
    check_sha256(file, expected, str(file))
    return file


def head_manifest(
    head: Head,
    notice: str | None,
    published: PublishedHead,
    imported: Imported,
    sha256: str,
    weights: bytes,
    made_by: str | None,
    decode: Decode,
) -> HeadManifest:
    """head.json for the weights, which are the bytes of head.safetensors."""
    source = {"name": published.name, "file": published.file, "sha256": sha256, "url": published.url}
    thresholds = [Threshold(value=value, operating_point="fixed") for value in head.thresholds or published.thresholds]
    return new_head(
        head,
        weights,
        ("torch", "numpy", "safetensors"),
        encoder=EncoderFingerprint(
            id=published.encoder.model_copy(update={"decode": decode}).id,
            weights_sha256=None,
            preprocessing=PREPROCESSING.replace("exact", decode, 1),
            normalize=True,
            embed_dim=published.embed_dim,
        ),
        layers=imported.layers,
        activation=published.activation,
        thresholds=[thresholds],
        training=HeadTraining(published=PublishedSource.model_validate(source | imported.figures)),
        made_by=made_by,
        notice=notice,
        licence=published.licence,
    )


def _read(file: Path, published: PublishedHead, variant: Variant, verify: int) -> Imported:
    if published.format == "torch":
        return Imported(*import_torch(file, published), figures={"variant": "published"})
    with tempfile.TemporaryDirectory(prefix="clipsieve-import-") as work:
        head = import_keras(file, published, variant, verify, Path(work))
    figures = {"variant": variant, "verified": head.verified, "variants": head.variants}
    return Imported(head.layers, head.tensors, figures)


def _chosen(head: Head) -> Published:
    if head.published is None:
        raise StepError(f"head {head.name} names no published head; add `published: {{name: …}}`, or train it")
    return head.published


def _check_head(head: Head, published: PublishedHead) -> None:
    """Refuse what a published head cannot give."""
    if head.task != published.task:
        raise StepError(f"head {head.name}: its task is {head.task}, {published.name} is a {published.task} head")
    for key in ("operating_points", "prevalence"):
        if getattr(head, key):
            raise StepError(
                f"head {head.name}: {key} {getattr(head, key)} would need held-out data, which {published.name} "
                "came without; give thresholds, or train a head"
            )
    if published.format == "torch" and _chosen(head).variant != "published":
        raise StepError(f"head {head.name}: variant {_chosen(head).variant!r} is for Keras heads, not {published.name}")


def _check_encoder(recipe: Recipe, published: PublishedHead) -> None:
    if recipe.encoder.model_copy(update={"decode": published.encoder.decode}).id != published.encoder.id:
        raise StepError(
            f"recipe {recipe.name}: its encoder is {recipe.encoder.id}, {published.name} was trained on "
            f"{published.encoder.id}; use encoder model {published.encoder.model!r} and pretrained "
            f"{published.encoder.pretrained!r} with normalize on"
        )


def _expected_sha256(choice: Published, published: PublishedHead) -> str | None:
    if published.sha256 and choice.sha256 and choice.sha256 != published.sha256:
        raise StepError(
            f"published.sha256 is {choice.sha256}, but {published.file} was published with {published.sha256}"
        )
    return published.sha256 or choice.sha256


def _check_known(published: PublishedHead, expected: str | None, accept: bool, sha256: str | None) -> None:
    if expected is None and not accept:
        its = f", this one's is {sha256}" if sha256 else ""
        raise StepError(
            f"{published.file}: the sha256 of {published.url} is not known here{its}. If you trust the file, write its "
            "sum into the recipe as published.sha256, or pass --accept-unknown-sha256"
        )


def missing_files(heads: list[Head], folders: list[Path], decode: Decode = "exact") -> list[str]:
    """A text with its remedy for each head whose file is not on this machine and cannot be fetched."""
    problems, reached = {}, functools.cache(unreachable)
    for head, folder in zip(heads, folders, strict=True):
        published, file = published_head(_chosen(head).name), _chosen(head).file
        if _imported(head, folder, decode) is not None:
            continue
        if file is not None and not (paths.ROOT / file).is_file():
            problems[published.name] = f"{paths.ROOT / file}: no such file; fetch {published.url}"
        elif file is None and not _download_path(published).is_file() and (problem := reached(_host(published))):
            problems[published.name] = _with_remedy(published, f"{published.url}: could not be downloaded ({problem})")
    return list(problems.values())


def _host(published: PublishedHead) -> str:
    """The start of its address, which several heads share."""
    return "/".join(published.url.split("/")[:3])


def _download_path(published: PublishedHead) -> Path:
    return paths.ARTIFACTS / "downloads" / published.file


def _with_remedy(published: PublishedHead, problem: object) -> str:
    return (
        f"{published.name}: {problem}\nWithout a network, fetch {published.file} from {published.url} elsewhere "
        "and name your copy in the recipe as published.file (or with --file)"
    )


def _downloaded(published: PublishedHead, expected: str | None) -> Path:
    try:
        return download(published.url, _download_path(published), expected)
    except StepError as error:
        raise StepError(_with_remedy(published, error)) from error


def _imported(head: Head, folder: Path, decode: Decode) -> HeadManifest | None:
    """The manifest of this very head for such an encoder if `folder` holds it already, be it with other thresholds."""
    try:
        manifest = read_head(folder)
        weights_sha256 = sha256_of(folder / "head.safetensors")
    except (ManifestError, OSError):
        return None
    same = with_recipes_thresholds(manifest, head).recipe == head.settings()
    same = same and manifest.encoder.preprocessing.startswith(f"{decode}-")
    is_it = manifest.training.published is not None and same and weights_sha256 == manifest.weights_sha256
    return manifest if is_it else None


def _check_replaceable(folder: Path, replace: bool) -> None:
    try:
        trained_here = read_head(folder).training.published is None
    except ManifestError:
        return
    if trained_here and not replace:
        raise StepError(
            f"{folder} holds a head that was trained here; move it away, or pass --overwrite to lose it. "
            "To serve it, remove `published` from the recipe"
        )


def _recipe_heads(recipe: Recipe, name: str | None) -> list[Head]:
    heads = [head for head in recipe.heads if head.published] if name is None else [recipe.head(name)]
    for head in heads:
        _check_encoder(recipe, published_head(_chosen(head).name))
    return heads


def _direct_head(name: str, file: Path | None, variant: Variant) -> Head:
    published = published_head(name)
    return Head(
        name=name.replace("-", "_"),
        task=published.task,
        class_names=published.class_names,
        published=Published(name=name, file=None if file is None else file.resolve(), variant=variant),
    )


def _print_list() -> None:
    """A line for each head: name, encoder, licence and address."""
    names = ("name", "encoder", "licence", "address")
    rows = [names, *((head.name, head.encoder.id, head.licence, head.url) for head in PUBLISHED.values())]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m training.import_head", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_mutually_exclusive_group(required=True)
    add_recipe_options(parser, group=what)
    what.add_argument("--name", help="a published head, without a recipe; needs --out")
    what.add_argument("--list", action="store_true", help="show the published heads that are known")
    parser.add_argument("--head", help="with --recipe: only this head")
    parser.add_argument("--file", type=Path, help="with --name: a local copy instead of a download")
    parser.add_argument("--out", type=Path, help="with --name: the folder to write")
    parser.add_argument("--variant", choices=VARIANTS, default="published", help="with --name: see recipes/README.md")
    parser.add_argument(
        "--verify", type=int, default=_VERIFY, help="vectors of each kind checked (default %(default)s)"
    )
    parser.add_argument("--accept-unknown-sha256", action="store_true", help="import a file whose sum nobody knows")
    parser.add_argument("--check", action="store_true", help="only say which files are missing and cannot be fetched")
    parser.add_argument("--overwrite", action="store_true", help="replace a head that was trained here")
    arguments = parser.parse_args(argv)
    if arguments.verify < 1:
        parser.error(f"--verify is at least 1, found {arguments.verify}")
    if arguments.name and not arguments.out:
        parser.error("--name needs --out, the folder to write")
    return arguments


def main(argv: list[str] | None = None) -> None:
    arguments = _arguments(argv)
    options = Options(arguments.verify, arguments.accept_unknown_sha256, arguments.overwrite)
    if arguments.list:
        _print_list()
    elif arguments.name:
        head = _direct_head(arguments.name, arguments.file, arguments.variant)
        print(import_head(head, None, arguments.out, options))
    else:
        recipe = recipe_of(arguments)
        heads = _recipe_heads(recipe, arguments.head)
        if arguments.check:
            folders = [paths.head_folder(recipe, head) for head in heads]
            missing = missing_files(heads, folders, recipe.encoder.decode)
            if missing:
                raise StepError("\n".join(missing))
            return
        if not heads:
            say(f"recipe {recipe.name} has no published heads: nothing to import")
        for head in heads:
            folder = paths.head_folder(recipe, head)
            print(import_head(head, recipe.notice, folder, options, recipe.name, recipe.encoder.decode))


if __name__ == "__main__":
    sys.exit(run_step("training.import_head", main, INTERRUPTED))
