"""The recipe's schema: every recipe is valid, and mistakes are explained."""

from __future__ import annotations

import pytest
import yaml

from recipes.errors import run_step
from recipes.schema import RECIPES, RecipeError, load_recipe, main, parse_recipe, recipe_names


def minimal(**changes):
    heads = [{"name": "nsfw", "class_names": ["safe", "nsfw"]}]
    return {"name": "mine", "description": "", "encoder": {"model": "ViT-B-32"}, "heads": heads} | changes


def error_of(data) -> str:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(data, "mine.yaml")
    return str(caught.value)


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_is_valid_and_named_as_its_file(name):
    assert load_recipe(name).name == name


def test_a_recipe_may_be_a_path(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(minimal()))
    assert load_recipe(path).encoder.id == "vit-b-32-random-0"


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (minimal(encodr={}), "mine.yaml: encodr: unknown key; did you mean 'encoder'?"),
        (minimal(encoder={"model": "x", "pretraind": "openai"}), "encoder.pretraind: unknown key; did you mean 'pre"),
        (
            minimal(heads=[{"name": "a", "class_names": ["x", "y"], "fit": {"batchsize": 1}}]),
            "heads.0.fit.batchsize: unknown key; did you mean 'batch_size'?",
        ),
        (minimal(serving={"max_pixls": 3}), "serving.max_pixls: unknown key; did you mean 'max_pixels'?"),
        (minimal(serving={"zzz": 3}), "serving.zzz: unknown key; valid keys: max_batch_size"),
        (minimal(serving={"max_batch_size": 0}), "serving.max_batch_size: Input should be greater than"),
        (minimal(serving={"queue_timeout_ms": -1}), "serving.queue_timeout_ms: Input should be greater than"),
        (minimal(serving={"max_queue_delay_us": 5}), "set max_queue_size and queue_timeout_ms to 0, or leave it 0"),
        (minimal(serving={"warmup": "some"}), "serving.warmup: Input should be 'full'"),
        (minimal(heads=[]), "heads: List should have at least 1 item"),
        (minimal(encoder={}), "encoder: model is required, or concatenate with several encoders"),
        (minimal(heads=[{"name": "a", "class_names": ["x", "y", "z"]}]), "a binary head has 2 class_names, found 3"),
        (minimal(heads=[{"name": "a", "class_names": ["x", "x"]}]), "class_names must differ"),
        (minimal(heads=[{"name": "A b", "class_names": ["x", "y"]}]), "heads.0.name: String should match"),
        (minimal(heads=[{"name": "a_head", "class_names": ["x", "y"]}]), "may not end in _decision"),
        (minimal(heads=[{"name": "a", "class_names": ["x", "y"]}] * 2), "head names must be unique"),
        (minimal(serving={"formats": ["EPS"]}), "serving.formats.0: Input should be 'JPEG'"),
        ([], "a recipe is a mapping of keys, found list"),
    ],
)  # fmt: skip
def test_mistakes_name_the_key_and_the_remedy(data, expected):
    assert expected in error_of(data)


def test_the_value_found_is_in_the_message():
    assert error_of(minimal(serving={"max_batch_size": 0})).endswith("greater than or equal to 1 (found 0)")


def test_all_mistakes_are_reported_at_once():
    assert len(error_of(minimal(encodr={}, servng={})).splitlines()) == 2


def test_a_batching_delay_goes_without_queue_limits():
    serving = parse_recipe(
        minimal(serving={"max_queue_delay_us": 5, "max_queue_size": 0, "queue_timeout_ms": 0})
    ).serving
    assert not serving.limits_queues


def test_unknown_recipe_names_the_nearest():
    with pytest.raises(RecipeError, match="did you mean 'demo'"):
        load_recipe("dmo")


@pytest.mark.parametrize(
    ("names", "line"),
    [
        ("[no, yes]", 'class_names: ["no", "yes"]'),
        ("[off, on]", 'class_names: ["off", "on"]'),
        ("[safe, null]", 'class_names: ["safe", "null"]'),
        ("[2, 1.50]", 'class_names: ["2", "1.50"]'),
        ("[2024-01-01, caf\u00e9]", 'class_names: ["2024-01-01", "caf\u00e9"]'),
    ],
)
def test_names_that_yaml_reads_as_no_text_are_refused_with_the_line_to_write(tmp_path, names, line):
    text = yaml.safe_dump(minimal(heads=[{"name": "mine", "class_names": "HERE"}]))
    path = tmp_path / "mine.yaml"
    path.write_text(text.replace("HERE", names), encoding="utf-8")
    with pytest.raises(RecipeError) as error:
        load_recipe(path)
    assert f"{path}: heads.0.class_names: YAML reads no, yes" in str(error.value)
    assert str(error.value).count(line) == 1
    path.write_text(text.replace("class_names: HERE", line), encoding="utf-8")
    assert len(load_recipe(path).heads[0].class_names) == 2


def test_class_names_that_differ_only_in_unicodes_composition_are_refused():
    with pytest.raises(RecipeError, match="class_names must differ"):
        parse_recipe(minimal(heads=[{"name": "mine", "class_names": ["caf\u00e9", "cafe\u0301"]}]))


def test_missing_file_and_broken_yaml(tmp_path):
    with pytest.raises(RecipeError, match="no such recipe file"):
        load_recipe(tmp_path / "absent.yaml")
    (tmp_path / "broken.yaml").write_text("a: [1")
    with pytest.raises(RecipeError, match="not valid YAML"):
        load_recipe(tmp_path / "broken.yaml")


def test_encoder_id_names_model_weights_and_normalisation():
    recipe = parse_recipe(minimal(encoder={"model": "ViT-B-32", "pretrained": "openai", "normalize": False}))
    assert recipe.encoder.id == "vit-b-32-openai-unnormalized"


def test_heads_are_found_by_name_or_alone():
    recipe = parse_recipe(minimal())
    assert recipe.head(None).name == recipe.head("nsfw").name == "nsfw"
    with pytest.raises(RecipeError, match=r"not one of \['nsfw'\]"):
        recipe.head("nsfv")


def test_command_prints_the_recipe_with_its_defaults(capsys):
    assert run_step("recipes.schema", lambda: main(["demo"])) == 0
    assert yaml.safe_load(capsys.readouterr().out)["serving"]["max_batch_size"] == 32
    assert run_step("recipes.schema", lambda: main(["dmo"])) == 1
    with pytest.raises(SystemExit):
        main([])


def test_recipes_state_how_to_use_them():
    for name in recipe_names():
        assert "#     make " in (RECIPES / f"{name}.yaml").read_text()


def test_the_score_of_the_taste_recipe_is_that_of_what_to_delete():
    """Sorted by it, what its user looks for comes first."""
    assert load_recipe("taste-vit-b-32").head(None).labels == ["delete"]
