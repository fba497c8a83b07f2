"""A recipe's head is its own, and what it was made for is what the recipe says."""

from __future__ import annotations

from pathlib import Path

import pytest
from artefacts import encoder_manifest, write_head

from build.head import main as build_head
from common import paths
from common.manifest import EncoderManifest, ManifestError, write_manifest
from common.recipe_heads import read_recipe_head
from recipes.head_section import Head
from recipes.schema import Recipe, load_recipe


@pytest.fixture
def artifacts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(paths, "ARTIFACTS", tmp_path / "artifacts")
    return tmp_path / "artifacts"


@pytest.fixture
def encoder() -> EncoderManifest:
    return encoder_manifest(id="demo")


def recipe_named(name: str, **head: object) -> Recipe:
    data = {"name": "nsfw", "class_names": ["safe", "nsfw"]} | head
    return load_recipe("demo").model_copy(update={"name": name, "heads": [Head.model_validate(data)]})


def test_two_recipes_with_a_head_of_one_name_have_a_folder_each(artifacts, encoder) -> None:
    made = {}
    for seed, name in enumerate(("alpha", "beta")):
        recipe = recipe_named(name)
        folder = paths.head_folder(recipe, recipe.heads[0])
        made[name] = write_head(folder, encoder, ["safe", "nsfw"], name="nsfw", seed=seed).revision
        assert folder == artifacts / name / "heads" / "nsfw"
    for name, revision in made.items():
        recipe = recipe_named(name)
        assert read_recipe_head(recipe, recipe.heads[0], encoder).revision == revision


def test_classes_that_were_swapped_after_the_fit_are_refused(artifacts, encoder) -> None:
    recipe = recipe_named("alpha", class_names=["nsfw", "safe"])
    write_head(paths.head_folder(recipe, recipe.heads[0]), encoder, ["safe", "nsfw"], name="nsfw")
    with pytest.raises(
        ManifestError, match=r"class_names \['safe', 'nsfw'\], the recipe alpha says \['nsfw', 'safe'\]"
    ):
        read_recipe_head(recipe, recipe.heads[0], encoder)


def test_another_recipes_head_is_taken_only_by_its_path(artifacts, encoder) -> None:
    recipe = recipe_named("beta")
    folder = paths.head_folder(recipe, recipe.heads[0])
    manifest = write_head(folder, encoder, ["safe", "nsfw"], name="nsfw").model_copy(update={"made_by": "alpha"})
    write_manifest(manifest, folder / "head.json")
    with pytest.raises(ManifestError, match="made by recipe alpha, not by beta"):
        read_recipe_head(recipe, recipe.heads[0], encoder)
    borrowed = recipe_named("beta", source=str(folder))
    assert read_recipe_head(borrowed, borrowed.heads[0], encoder).made_by == "alpha"


def test_a_head_from_before_heads_belonged_to_a_recipe_is_named_with_the_command_that_moves_it(artifacts, encoder):
    recipe = recipe_named("alpha")
    write_head(artifacts / "heads" / "nsfw", encoder, ["safe", "nsfw"], name="nsfw")
    with pytest.raises(ManifestError) as caught:
        read_recipe_head(recipe, recipe.heads[0], encoder)
    command = str(caught.value).partition("move it: ")[2]
    assert command == f"mkdir -p {artifacts}/alpha/heads && mv {artifacts}/heads/nsfw {artifacts}/alpha/heads/nsfw"


def test_build_head_refuses_a_head_of_other_classes(artifacts, encoder, tmp_path: Path) -> None:
    recipe = load_recipe("demo")
    write_manifest(encoder, paths.encoder_folder(recipe) / "encoder.json")
    write_head(paths.head_folder(recipe, recipe.heads[0]), encoder, ["round", "angular"])
    with pytest.raises(ManifestError, match="the recipe demo says"):
        build_head(["--recipe", "demo"])
