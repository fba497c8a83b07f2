"""What a recipe may say of a head from words."""

from __future__ import annotations

from typing import Any

import pytest
from words import BINARY, MULTICLASS, MULTILABEL, words_recipe

from recipes.head_section import Head
from recipes.prompts import NEUTRAL_TEXTS, all_texts, negatives_of, texts_of
from recipes.schema import RecipeError, load_recipe, parse_recipe

PROMPTS: dict[str, Any] = MULTICLASS["prompts"]


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (MULTICLASS | {"prompts": PROMPTS | {"map": ["a map", " "]}}, "texts of map must not be empty"),
        (MULTICLASS | {"prompts": PROMPTS | {"map": []}}, "texts of map must not be empty"),
        (MULTICLASS | {"prompts": PROMPTS | {"chat": ["A  Map"]}}, "'A  Map' is a text of map and of chat"),
        (MULTICLASS | {"prompts": {"map": "a map"}}, "prompts need two classes or more"),
        (MULTICLASS | {"prompts": {"map": "a map", "chat": "a chat"}}, "no texts for receipt"),
        (MULTICLASS | {"prompts": PROMPTS | {"photo": "a photo"}}, "prompts name photo, which is none of class_names"),
        (MULTICLASS | {"templates": ["a photo"]}, "a template has {} where the text goes, found 'a photo'"),
        (MULTICLASS | {"negatives": {"map": "a chat"}}, "negatives are for multilabel heads"),
        (MULTILABEL | {"negatives": {"cat": "a cat"}}, "'a cat' is a text of cat and of its negatives"),
        (BINARY | {"published": {"name": "laion-nsfw-l14"}}, "give prompts or published, not both"),
        (BINARY | {"source": "heads/other"}, "give prompts or source, not both"),
        (BINARY | {"task": "regression", "class_names": ["beauty"]}, "prompts name classes, and a regression has none"),
        (BINARY | {"fit": {"hidden_sizes": [8]}}, "fit.hidden_sizes is for weights that are trained"),
        (BINARY | {"fit": {"loss": "bce"}}, "fit.loss is for weights that are trained"),
        (BINARY | {"fit": {"start": "prompts", "hidden_sizes": [8]}}, "trains one linear layer with lbfgs"),
        (BINARY | {"fit": {"start": "prompts", "learning_rate": 0.1}}, "trains one linear layer with lbfgs"),
        (BINARY | {"fit": {"start": "prompts", "loss": "mse"}}, "starts from logits, which loss mse has not"),
        (BINARY | {"prompts": {}, "fit": {"start": "prompts"}}, "starts from the head's prompts, and head weapons has"),
        (BINARY | {"prompts": {}, "templates": ["{}"]}, "templates go with prompts"),
    ],
)
def test_texts_that_make_no_head_are_refused(head, message):
    with pytest.raises(RecipeError) as raised:
        parse_recipe(words_recipe("clip", head))
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("encoder", "reason"),
    [
        ({"library": "timm", "model": "vit_tiny"}, "whose models have an image tower alone"),
        ({"model": "ViT-B-32", "layers": [0, 1]}, "no text is comparable with"),
        ({"model": "ViT-B-32", "normalize": False}, "compared by the angle"),
        ({"concatenate": [{"model": "ViT-B-32"}, {"model": "ViT-B-16"}]}, "several encoders are concatenated"),
    ],
)
def test_encoders_without_a_text_tower_are_refused(encoder, reason):
    with pytest.raises(RecipeError, match=f"head policy has prompts: .*{reason}"):
        parse_recipe(words_recipe("clip", MULTICLASS) | {"encoder": encoder})


def test_every_text_stands_in_every_template():
    head = Head.model_validate(MULTICLASS | {"templates": ["{}!", "see {}"]})
    assert texts_of(head)["map"] == ["a map!", "see a map", "a street map!", "see a street map"]
    assert texts_of(head)["receipt"] == ["a receipt!", "see a receipt"]


def test_a_multilabel_head_needs_its_negatives_and_neutral_texts_too():
    head = Head.model_validate(MULTILABEL | {"templates": []})
    assert negatives_of(head) == {"outdoors": ["a room"]}
    assert all_texts(head) == ["a cat", "a landscape", "a street", "a room", *NEUTRAL_TEXTS]


def test_of_several_classes_one_number_is_calibrated_unless_the_recipe_says_otherwise():
    assert Head.model_validate(MULTICLASS).calibration == "temperature"
    assert Head.model_validate(MULTICLASS | {"calibration": "platt"}).calibration == "platt"
    assert Head.model_validate(BINARY).calibration == "platt"


def test_a_head_without_prompts_is_described_as_before_there_were_any():
    head = load_recipe("demo").heads[0]
    described = head.model_dump(mode="json")
    assert not {"prompts", "templates", "negatives"} & set(described)
    assert "start" not in described["fit"]
    assert Head.model_validate(described) == head


def test_the_example_is_served_without_training_data():
    (head,) = load_recipe("policy-vit-b-32").heads
    assert len(head.class_names) == len(texts_of(head)) == 4
