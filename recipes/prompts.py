"""Heads from words: the texts that a recipe gives for its classes, and what it may say of them."""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from recipes.encoder_section import Encoder
    from recipes.head_section import Fit, Head

TEMPLATES = ("a photo of {}.", "a picture of {}.", "an image of {}.")
"""Sentences that a text stands in, unless the recipe has its own."""
NEUTRAL_TEXTS = ("a photo.", "a picture.", "an image.")
"""Texts that a label of a multilabel head is held against where it has no `negatives`."""

_OF_TRAINING = (
    *(
        "architecture",
        "hidden_sizes",
        "dropout",
        "input_dropout",
        "output_dropout",
        "merge_layers",
        "loss",
        "class_weights",
        "optimizer",
        "learning_rate",
    ),
    *("weight_decay", "warmup_epochs", "schedule", "batch_size", "max_epochs", "patience"),
)
"""Settings of `fit` that mean nothing where the weights stay those of the texts."""


def texts_of(head: Head) -> dict[str, list[str]]:
    """The sentences of each class, in the order of `class_names`: every text in every template."""
    return {name: _filled(head, head.prompts[name]) for name in head.class_names} if head.prompts else {}


def negatives_of(head: Head) -> dict[str, list[str]]:
    """The sentences that each label of a multilabel head is held against; none for a label without its own."""
    return {name: _filled(head, head.negatives[name]) for name in head.class_names if name in head.negatives}


def all_texts(head: Head) -> list[str]:
    """Every sentence that the head needs, each once."""
    parts = [*texts_of(head).values(), *negatives_of(head).values()]
    neutral = NEUTRAL_TEXTS if head.prompts and head.task == "multilabel" else ()
    return list(dict.fromkeys([*(text for part in parts for text in part), *neutral]))


def why_no_texts(encoder: Encoder) -> str | None:
    """The reason why texts cannot be compared with an encoder's embeddings; None where they can."""
    if encoder.concatenate:
        return "several encoders are concatenated, and a text has no embedding in what they give together"
    if encoder.finetune is not None:
        return (
            "the encoder is fine-tuned, and its embeddings are no longer those that the text tower was trained with; "
            "take the encoder as it was, or a head that is trained"
        )
    if encoder.library != "open_clip":
        return f"the encoder is of {encoder.library}, whose models have an image tower alone; take one of open_clip"
    if encoder.layers != [0]:
        return f"the encoder gives hidden layers, {encoder.layers}, which no text is comparable with; take layers: [0]"
    if not encoder.normalize:
        return "texts are compared by the angle, and the encoder has normalize: false"
    return None


def check_prompts(head: Head) -> None:
    """Refuse texts that make no head, and settings that do not go with texts.

    Raises:
        ValueError: saying which, for the schema.
    """
    if not head.prompts:
        _check_absent(head)
        return
    if head.is_graded:
        raise ValueError(f"prompts name classes, and a {head.task} has none; take another task")
    for key in ("published", "source"):
        if getattr(head, key) is not None:
            raise ValueError(f"give prompts or {key}, not both")
    if len(head.prompts) < 2 and head.task != "multilabel":
        raise ValueError(f"prompts need two classes or more, found {list(head.prompts)}; say what the others look like")
    _check_names("prompts", list(head.prompts), head.class_names)
    if missing := [name for name in head.class_names if name not in head.prompts]:
        raise ValueError(f"prompts have no texts for {', '.join(missing)}; every class needs one or more")
    if head.negatives and head.task != "multilabel":
        raise ValueError(
            f"negatives are for multilabel heads; of a {head.task} head the other classes are the negatives"
        )
    _check_names("negatives", list(head.negatives), head.class_names)
    for template in head.templates or ():
        if "{}" not in template:
            raise ValueError(f"a template has {{}} where the text goes, found {template!r}; [] takes texts as they are")
    _check_texts(head)
    _check_fit(head.fit)


def _check_absent(head: Head) -> None:
    for key in ("negatives", "templates"):
        if getattr(head, key):
            raise ValueError(f"{key} go with prompts, which head {head.name} has not")
    if head.fit.start == "prompts":
        raise ValueError(f"fit.start: prompts starts from the head's prompts, and head {head.name} has none")


def _check_names(key: str, names: list[str], class_names: list[str]) -> None:
    if unknown := [name for name in names if name not in class_names]:
        raise ValueError(f"{key} name {', '.join(unknown)}, which is none of class_names {class_names}")


def _check_texts(head: Head) -> None:
    """Refuse empty texts, and one that stands for two things."""
    owner: dict[str, str] = {}
    for name in head.class_names:
        _check_not_empty(name, head.prompts[name])
        for text in head.prompts[name]:
            if (other := owner.setdefault(_read_by_the_tower(text), name)) != name:
                raise ValueError(f"{text!r} is a text of {other} and of {name}; it cannot tell one from the other")
    for name, texts in head.negatives.items():
        _check_not_empty(f"the negatives of {name}", texts)
        for text in texts:
            if owner.get(_read_by_the_tower(text)) == name:
                raise ValueError(
                    f"{text!r} is a text of {name} and of its negatives; it cannot tell one from the other"
                )


def _check_not_empty(name: str, texts: list[str]) -> None:
    if not texts or not all(text.strip() for text in texts):
        raise ValueError(f"the texts of {name} must not be empty, found {texts}")


def _read_by_the_tower(text: str) -> str:
    """The text without what tokenizers do not look at."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def settings_of_training(fit: Fit) -> list[str]:
    """The keys that a recipe sets of those that train weights."""
    fields = type(fit).model_fields
    return [key for key in _OF_TRAINING if getattr(fit, key) != fields[key].get_default(call_default_factory=True)]


def _check_fit(fit: Fit) -> None:
    """Refuse settings of a training that there is not, or that does not begin with texts."""
    changed = settings_of_training(fit)
    if fit.start is None and changed:
        raise ValueError(
            f"fit.{changed[0]} is for weights that are trained, and without fit.start: prompts they stay those of the "
            "texts, which labelled pictures only calibrate; remove it, or add start: prompts"
        )
    if fit.start is not None and fit.optimizer != "lbfgs":
        raise ValueError(
            "fit.start: prompts trains one linear layer with lbfgs; remove hidden layers, and other optimizers with "
            "their settings"
        )
    if fit.start is not None and fit.loss not in (None, "bce", "cross_entropy"):
        raise ValueError(f"fit.start: prompts starts from logits, which loss {fit.loss} has not; leave loss out")


def _filled(head: Head, texts: list[str]) -> list[str]:
    templates = TEMPLATES if head.templates is None else head.templates
    return list(dict.fromkeys(template.replace("{}", text) for text in texts for template in templates or ("{}",)))
