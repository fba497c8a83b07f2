"""Image classifiers of timm and transformers: what a recipe may say of them, as an encoder and as a head."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from recipes.prompts import settings_of_training

if TYPE_CHECKING:
    from recipes.encoder_section import Encoder
    from recipes.head_section import Head

_REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w.-]+")


def is_repository(name: str) -> bool:
    """True for a name as the Hugging Face hub has it, `owner/name`."""
    return _REPOSITORY.fullmatch(name) is not None


def check_classifier_encoder(encoder: Encoder) -> None:
    """Refuse what an encoder of transformers, or of a repository, cannot be.

    Raises:
        ValueError: saying which, for the schema.
    """
    if encoder.is_repository and encoder.pretrained is not None:
        raise ValueError(
            f"model {encoder.model} is a repository, which has no tags; remove pretrained, and pin a commit as revision"
        )
    if encoder.library != "transformers":
        return
    if encoder.weights is None and not encoder.is_repository:
        raise ValueError(
            f"library: transformers takes a repository of the hub as model (owner/name), or a folder as weights; found "
            f"model {encoder.model!r} and no weights"
        )
    if encoder.pretrained is not None:
        raise ValueError("pretrained is a tag of open_clip's or timm's; with library: transformers name the repository")
    if isinstance(encoder.weights, str):
        raise ValueError(
            "weights of library: transformers is a folder (config.json, preprocessor_config.json, model.safetensors); "
            f"found the address {encoder.weights}"
        )
    if encoder.image_size is not None:
        raise ValueError("image_size is for library: timm; a model of transformers has the size of its own config")
    if encoder.layers != [0]:
        raise ValueError(
            f"layers are for open_clip and timm; with library: transformers leave them out, found {encoder.layers}"
        )


def why_no_classifier(encoder: Encoder) -> str | None:
    """The reason why an encoder cannot come with a classifier's last layer; None where it can."""
    if encoder.concatenate:
        return "several encoders are concatenated, and a last layer is that of one"
    if encoder.library == "open_clip":
        return "the encoder is of open_clip, whose models have no classifier; take library: timm or transformers"
    if encoder.layers != [0]:
        return (
            f"the encoder gives hidden layers, {encoder.layers}, the last layer takes the final one; take layers: [0]"
        )
    if encoder.normalize:
        return "its layer takes features as they are, with their lengths; write normalize: false under encoder"
    if isinstance(encoder.weights, str) or (encoder.weights is None and not encoder.is_repository):
        return (
            "the encoder is no image classifier; name a folder with config.json and model.safetensors as weights, or "
            "a repository of the hub (owner/name) as model"
        )
    return None


def check_classifier(head: Head) -> None:
    """Refuse what does not go with an imported last layer.

    Raises:
        ValueError: saying which, for the schema.
    """
    if head.classifier is None:
        return
    for key in ("published", "source", "prompts"):
        if getattr(head, key):
            raise ValueError(f"give classifier or {key}, not both")
    if head.is_graded:
        raise ValueError(f"classifier is for classes, and a {head.task} has none; take another task")
    if changed := settings_of_training(head.fit):
        raise ValueError(
            f"fit.{changed[0]} is for weights that are trained, and with classifier they stay the model's own, which "
            "labelled pictures only calibrate; remove it"
        )
    combine = head.classifier.combine
    if combine and not head.class_names:
        raise ValueError(
            "classifier.combine makes classes, which class_names must list; of two the last is the score's"
        )
    if unknown := [name for name in combine if name not in head.class_names]:
        raise ValueError(
            f"classifier.combine names {', '.join(unknown)}, which is none of class_names {head.class_names}"
        )
    if empty := [name for name, members in combine.items() if not members or len(set(members)) != len(members)]:
        raise ValueError(
            f"classifier.combine.{empty[0]} lists different classes of the model, found {combine[empty[0]]}"
        )
