"""Last layer of the encoder's image classifier → artifacts/<recipe>/heads/<head>/: head.safetensors and head.json.

    python -m build.encoder --recipe nsfw-marqo
    python -m training.import_classifier --recipe nsfw-marqo

Makes each head of the recipe that has `classifier`, as training.fit would write it, not calibrated and without figures.
The pair of exported encoder and head must give the logits of the whole model, in its own library, on the pictures of
the verification; else nothing is written. What would come out the same is kept, and so is a head that training.fit
calibrated on labelled pictures. Prints the path of each head.json.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.numpy

from common.classifier_layer import ClassifierLayer, read_classifier_layer
from common.head_training import ClassifierSource, HeadTraining
from common.manifest import (
    HeadManifest,
    ManifestError,
    read_encoder,
)
from common.paths import encoder_folder, head_folder
from recipes.arguments import add_recipe_options, recipe_of
from recipes.errors import run_step
from recipes.head_section import Head
from recipes.schema import Recipe
from training.classifier_weights import ClassifierWeights, classifier_weights
from training.errors import INTERRUPTED, StepError
from training.head_manifest import (
    check_without_labels,
    fixed_thresholds,
    is_fitted_to_labels,
    new_head,
    write_new_head,
)
from training.progress import say

LIMIT = 1e-4
"""Largest difference of a logit from the whole model's, relative to the largest logit (or 1): a hundred times what the
order of float32 sums makes of it, and too little to move a score by a ten-thousandth of its logit."""
NOT_CALIBRATED = "the model's own last layer, without labelled pictures"


def import_classifier(recipe: Recipe, head: Head) -> Path:
    """Write the head, unless what is there is as good; returns the path of head.json.

    Raises:
        StepError: the model has other classes than the recipe, the pair gives other logits, the recipe asks for what
            takes labelled pictures, or a head that was trained here is in the way.
        ManifestError: the encoder is not built, or is of no classifier.
    """
    folder = head_folder(recipe, head)
    encoder, own = read_encoder(encoder_folder(recipe, "fp32")), own_classifier(recipe, head)
    made, source = own.weights, own.source

    def is_same(there: HeadManifest) -> bool:
        return there.training.classifier == source and there.encoder == encoder.fingerprint()

    if is_fitted_to_labels(folder, recipe, head, is_same, "of another layer or encoder", "the model's own"):
        say(f"head {head.name}: calibrated on labelled pictures, of the same layer; it stays")
        return folder / "head.json"
    check_without_labels(head)
    weights = safetensors.numpy.save(made.tensors)
    manifest = new_head(
        head,
        weights,
        ("numpy", "safetensors"),
        encoder=encoder.fingerprint(),
        layers=made.layers,
        activation=made.activation,
        class_names=made.class_names,
        thresholds=fixed_thresholds(head, made.class_names[1:] if head.task == "binary" else made.class_names),
        training=HeadTraining(classifier=source, calibration=NOT_CALIBRATED),
        made_by=recipe.name,
        notice=recipe.notice,
    )
    if not write_new_head(folder, manifest, weights):
        say(f"head {head.name}: imported before, nothing to do")
        return folder / "head.json"
    say(
        f"head {head.name}: {len(made.class_names)} classes of {encoder.id}; logits of {source.pictures} pictures are "
        f"within {source.max_difference:.1e} of those by {source.library}, which reach {source.largest_logit:.3g}"
    )
    return folder / "head.json"


@dataclass(frozen=True)
class OwnClassifier:
    """The layer of a recipe's head as it is to be served, and where it came from."""

    weights: ClassifierWeights
    source: ClassifierSource

    def in_manifest(self, manifest: HeadManifest) -> HeadManifest:
        """The manifest of a head that was calibrated on labelled pictures, with where its layer came from."""
        return manifest.model_copy(
            update={"training": manifest.training.model_copy(update={"classifier": self.source})}
        )


def own_classifier(recipe: Recipe, head: Head) -> OwnClassifier:
    """The layer of the recipe's encoder for a head; raises the errors of `import_classifier`."""
    folder = encoder_folder(recipe, "fp32")
    layer = read_classifier_layer(folder, read_encoder(folder))
    return OwnClassifier(classifier_weights(head, layer), verified(layer, folder))


def verified(layer: ClassifierLayer, folder: Path) -> ClassifierSource:
    """Where the layer came from, after encoder and layer gave the whole model's logits.

    Args:
        layer: beside the encoder.
        folder: of the fp32 encoder.

    Raises:
        StepError: they gave others.
    """
    logits = _embeddings(folder).astype(np.float64) @ layer.weight.T.astype(np.float64) + layer.bias
    if logits.shape != layer.logits.shape:
        raise StepError(f"{folder}: logits {logits.shape}, the whole model's are {layer.logits.shape}; build it again")
    difference, largest = float(np.abs(logits - layer.logits).max()), float(np.abs(layer.logits).max())
    if not difference <= LIMIT * max(1.0, largest):  # NaN fails as well
        raise StepError(
            f"{folder}: encoder and last layer give logits up to {difference:.2g} beside those of the whole model, "
            f"which reach {largest:.3g}; at most {LIMIT} of that is allowed. The exported encoder is not the model's "
            "backbone: build it again, and report a model that stays so"
        )
    said = layer.description
    return ClassifierSource(
        library=said.library,
        file=said.source.file,
        sha256=said.source.sha256,
        hub=said.source.hub,
        revision=said.source.revision,
        labels=said.labels or [],
        pictures=len(logits),
        max_difference=difference,
        largest_logit=largest,
    )


def _embeddings(folder: Path) -> np.ndarray:
    path = folder / "verification.npz"
    if not path.is_file():
        raise ManifestError(f"{path}: not found; make it with: python -m build.encoder --recipe RECIPE")
    with np.load(path) as arrays:
        return arrays["embeddings"]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m training.import_classifier",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_recipe_options(parser)
    parser.add_argument("--head", help="only this one of the recipe's heads")
    arguments = parser.parse_args(argv)
    recipe = recipe_of(arguments)
    heads = (
        [head for head in recipe.heads if head.classifier] if arguments.head is None else [recipe.head(arguments.head)]
    )
    if not heads:
        say(f"recipe {recipe.name} has no heads of an image classifier: nothing to import")
        return
    if heads[0].classifier is None:
        raise StepError(
            f"head {heads[0].name} has no classifier; add `classifier: {{}}`, or train it with training.fit"
        )
    for head in heads:
        print(import_classifier(recipe, head))


if __name__ == "__main__":
    sys.exit(run_step("training.import_classifier", main, INTERRUPTED))
