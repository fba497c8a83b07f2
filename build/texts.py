"""Texts of a recipe's heads → artifacts/<recipe>/texts.safetensors: their embeddings, by the encoder's own text tower.

    python -m build.texts --recipe policy-vit-b-32
    python -m build.texts --recipe policy-vit-b-32 --out /tmp/two.safetensors 'a map' 'a street map'

Reads encoder.json, and takes the text tower of the very weights that were exported. The mean of each class's texts is
compared with open_clip's own zero-shot classifier, and the step fails where they differ. What would come out the same
is kept. Texts that are longer than what the tower reads are named. A recipe without prompts has nothing to do.
Prints the path of the file.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from build.errors import INTERRUPTED, BuildError, ParityError
from common.manifest import EncoderManifest, ManifestError, read_encoder, tool_versions
from common.paths import encoder_folder, texts_file
from common.text_embeddings import TextEmbeddings, TextsDescription, read_texts, write_texts
from common.writing import check_writable
from recipes.arguments import add_recipe_options, recipe_of
from recipes.encoder_section import Encoder
from recipes.errors import run_step
from recipes.prompts import all_texts, texts_of
from recipes.schema import Recipe

if TYPE_CHECKING:
    from build.text_tower import TextTower

# torch takes seconds to import, and a step that finds everything made should not: functions import what needs it.


MOST_DIFFERENCE = 1e-5
"""Largest distance between a class's direction, of length 1, and that of the library's zero-shot classifier."""


def make_texts(
    recipe: Recipe, encoder: EncoderManifest, texts: list[str], path: Path, classes: list[list[str]] | None = None
) -> TextEmbeddings:
    """Embed the texts into the file, unless it holds them already.

    Args:
        recipe: of the encoder.
        encoder: its encoder.json.
        texts: to be embedded, each once.
        path: of the file.
        classes: those of the texts that are averaged together, to be compared with the library.

    Raises:
        RecipeError: the text tower or its tokenizer cannot be loaded.
        BuildError: it belongs to other weights than the exported encoder.
        ParityError: the library would make other classes of the texts.
    """
    there = _up_to_date(encoder, texts, path)
    if there is not None:
        return there
    check_writable(path.parent)
    made = embed_texts(recipe.encoder, encoder, texts, classes or [])
    write_texts(made, path)
    return made


def embed_texts(
    encoder: Encoder, manifest: EncoderManifest, texts: list[str], classes: list[list[str]]
) -> TextEmbeddings:
    """Embed texts with the text tower of the encoder; raises the errors of `make_texts`."""
    from build.text_tower import load_text_tower

    tower = load_text_tower(encoder)
    if tower.image_weights_sha256 != manifest.weights_sha256:
        raise BuildError(
            f"encoder {manifest.id}: the weights that the recipe names now are {tower.image_weights_sha256[:12]}…, "
            f"the exported encoder's {manifest.weights_sha256[:12]}…; export it again: python -m build.encoder"
        )
    embedding, cut = tower.embed(texts)
    description = TextsDescription(
        encoder=manifest.fingerprint(),
        texts=texts,
        cut=cut,
        logit_scale=tower.logit_scale,
        logit_bias=tower.logit_bias,
        versions=_versions(),
    )
    made = TextEmbeddings(description, embedding)
    _check_against_library(made, tower, classes)
    return made


def _check_against_library(made: TextEmbeddings, tower: TextTower, classes: list[list[str]]) -> None:
    differences = [float(np.linalg.norm(made.mean_of(part) - tower.library_direction(part))) for part in classes]
    if not differences:
        return
    if not max(differences) <= MOST_DIFFERENCE:
        worst = classes[int(np.argmax(differences))]
        raise ParityError(
            f"the mean of {', '.join(map(repr, worst))} is {max(differences):.2g} from that of open_clip's zero-shot "
            f"classifier (limit {MOST_DIFFERENCE:g})"
        )
    print(
        f"{len(classes)} classes from words, each within {max(differences):.1e} of open_clip's zero-shot classifier",
        file=sys.stderr,
    )


def _up_to_date(encoder: EncoderManifest, texts: list[str], path: Path) -> TextEmbeddings | None:
    try:
        there = read_texts(path)
    except ManifestError:
        return None
    made = there.description
    same = (made.texts, made.encoder, made.versions) == (texts, encoder.fingerprint(), _versions())
    return there if same else None


def _versions() -> dict[str, str]:
    return tool_versions("torch", "open_clip_torch")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m build.texts", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_recipe_options(parser)
    parser.add_argument("--out", type=Path, help="the file to write; needs texts")
    parser.add_argument("texts", nargs="*", metavar="TEXT", help="instead of those of the recipe's heads; needs --out")
    arguments = parser.parse_args(argv)
    if bool(arguments.texts) != bool(arguments.out):
        parser.error("texts and --out go together")
    recipe = recipe_of(arguments)
    texts = list(dict.fromkeys(arguments.texts or (text for head in recipe.heads for text in all_texts(head))))
    if not texts:
        print(f"recipe {recipe.name} has no heads from words: nothing to embed", file=sys.stderr)
        return
    path = arguments.out or texts_file(recipe)
    classes = [] if arguments.texts else [part for head in recipe.heads for part in texts_of(head).values()]
    made = make_texts(recipe, read_encoder(encoder_folder(recipe)), texts, path, classes)
    for text in made.description.cut:
        print(f"warning: {text!r} is longer than what the tower reads; its end was cut off", file=sys.stderr)
    print(path)


if __name__ == "__main__":
    sys.exit(run_step("build.texts", main, INTERRUPTED))
