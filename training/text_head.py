"""Texts' embeddings → artifacts/<recipe>/heads/<head>/: a head from words, before there is a single label.

    python -m build.texts --recipe policy-vit-b-32
    python -m training.text_head --recipe policy-vit-b-32

Makes each head of the recipe that has `prompts`: head.safetensors and head.json, as training.fit would write them, not
calibrated and without figures. What would come out the same is kept, and so is a head that training.fit made of the
same texts and labelled pictures. Prints the path of each head.json.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import safetensors.numpy

from common.head_training import HeadTraining
from common.manifest import (
    EncoderFingerprint,
    HeadManifest,
    ManifestError,
    read_encoder,
)
from common.paths import encoder_folder, head_folder, texts_file
from common.recipe_heads import is_of_words
from common.text_embeddings import TextEmbeddings, read_texts
from recipes.arguments import add_recipe_options, recipe_of
from recipes.errors import run_step
from recipes.head_section import Head
from recipes.schema import Recipe
from training.errors import INTERRUPTED, StepError
from training.head_manifest import (
    check_without_labels,
    fixed_thresholds,
    is_fitted_to_labels,
    new_head,
    write_new_head,
)
from training.progress import say
from training.text_weights import TextWeights, text_weights

NOT_CALIBRATED = "made from words, without labelled pictures"


def make_text_head(recipe: Recipe, head: Head, encoder: EncoderFingerprint, texts: TextEmbeddings) -> Path:
    """Write the head, unless what is there is as good; returns the path of head.json.

    Raises:
        StepError: a head of other texts was fitted to labelled pictures here, or the recipe asks for what takes some.
        ManifestError: a text of the head is not embedded.
    """
    folder = head_folder(recipe, head)

    def is_same(there: HeadManifest) -> bool:
        return is_of_words(there, head) and there.encoder == encoder

    differs = "from other texts or for another encoder"
    if is_fitted_to_labels(folder, recipe, head, is_same, differs, "one from words alone"):
        say(f"head {head.name}: fitted to labelled pictures, from the same texts; it stays")
        return folder / "head.json"
    check_without_labels(head)
    made = text_weights(head, texts)
    weights = safetensors.numpy.save(made.tensors)
    manifest = head_manifest(made, recipe, head, encoder, weights)
    if not write_new_head(folder, manifest, weights):
        say(f"head {head.name}: made of the same texts before, nothing to do")
        return folder / "head.json"
    say(f"head {head.name}: from the words of {len(head.prompts)} classes, not calibrated")
    return folder / "head.json"


def texts_for(recipe: Recipe, encoder: EncoderFingerprint) -> TextEmbeddings:
    """The embeddings of the recipe's texts.

    Raises:
        ManifestError: there are none, or they are of another encoder's text tower.
    """
    texts = read_texts(texts_file(recipe))
    if texts.description.encoder != encoder:
        raise ManifestError(
            f"{texts_file(recipe)}: its texts were embedded for encoder {texts.description.encoder.id}, "
            f"the recipe's is {encoder.id} with other weights or settings; "
            f"run: python -m build.texts --recipe {recipe.name}"
        )
    return texts


def head_manifest(
    made: TextWeights, recipe: Recipe, head: Head, encoder: EncoderFingerprint, weights: bytes
) -> HeadManifest:
    """head.json for the weights, which are the bytes of head.safetensors."""
    return new_head(
        head,
        weights,
        ("numpy", "safetensors"),
        encoder=encoder,
        layers=made.layers,
        activation=made.activation,
        thresholds=fixed_thresholds(head, head.labels),
        training=HeadTraining(words=made.words, calibration=NOT_CALIBRATED),
        made_by=recipe.name,
        notice=recipe.notice,
    )


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m training.text_head", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_recipe_options(parser)
    parser.add_argument("--head", help="only this one of the recipe's heads")
    arguments = parser.parse_args(argv)
    recipe = recipe_of(arguments)
    heads = [head for head in recipe.heads if head.prompts] if arguments.head is None else [recipe.head(arguments.head)]
    if not heads:
        say(f"recipe {recipe.name} has no heads from words: nothing to make")
        return
    if not heads[0].prompts:
        raise StepError(f"head {heads[0].name} has no prompts; it is trained with training.fit")
    encoder = read_encoder(encoder_folder(recipe)).fingerprint()
    texts = texts_for(recipe, encoder)
    for head in heads:
        print(make_text_head(recipe, head, encoder, texts))


if __name__ == "__main__":
    sys.exit(run_step("training.text_head", main, INTERRUPTED))
