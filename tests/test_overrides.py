"""Recipe values from the command line: `--set key=value` of every step, checked as the file is."""

from __future__ import annotations

import argparse
import ast
import subprocess
from pathlib import Path

import pytest
import yaml
from artefacts import write_head
from tiny_encoder import write_tiny_encoder

from build.head import main as build_head
from common import paths
from common.manifest import ManifestError, read_head
from common.paths import ROOT
from common.recipe_record import differences, write_record
from recipes.arguments import add_recipe_options, recipe_if_any, recipe_of, recipe_options
from recipes.errors import ExpectedError, run_step
from recipes.overrides import overridden, parse_override
from recipes.schema import Recipe, load_recipe, main
from serving.embedded import compare_with_build
from serving.triton_wheel import ServingError
from tuning.candidates import Setting
from tuning.recipe import tuned_text


def fit_of(*overrides: str):
    return load_recipe("demo", overrides).heads[0].fit


def error_of(*overrides: str, recipe: str = "demo") -> str:
    with pytest.raises(ExpectedError) as caught:
        load_recipe(recipe, overrides)
    return str(caught.value)


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("serving.max_batch_size=8", lambda recipe: recipe.serving.max_batch_size == 8),
        ("heads.0.fit.max_epochs=3", lambda recipe: recipe.heads[0].fit.max_epochs == 3),
        ("heads.demo.fit.max_epochs=3", lambda recipe: recipe.heads[0].fit.max_epochs == 3),
        ("heads.demo.fit.hidden_sizes=[8, 4]", lambda recipe: recipe.heads[0].fit.hidden_sizes == [8, 4]),
        ("heads.demo.fit.hidden_sizes.0=8", lambda recipe: recipe.heads[0].fit.hidden_sizes == [8]),
        ("heads.demo.fit.learning_rate=1e-4", lambda recipe: recipe.heads[0].fit.learning_rate == 1e-4),
        ("heads.demo.operating_points=[f1]", lambda recipe: recipe.heads[0].operating_points == ["f1"]),
        ("heads.demo.search.trials=7", lambda recipe: recipe.heads[0].search.trials == 7),
        ("build.engine.tf32=true", lambda recipe: recipe.build.engine.tf32),
        ("serving={max_batch_size: 4}", lambda recipe: recipe.serving.intra_op_threads is None),
        ("notice=", lambda recipe: recipe.notice is None),
        ("description=a = b", lambda recipe: recipe.description == "a = b"),
    ],
)  # fmt: skip
def test_a_value_is_yaml_and_takes_the_place_of_the_files(override, value):
    assert value(load_recipe("demo", [override]))


def test_several_are_taken_in_their_order_and_the_rest_stays():
    fit = fit_of("heads.demo.fit.seed=1", "heads.demo.fit.patience=7", "heads.demo.fit.seed=2")
    assert (fit.seed, fit.patience, fit.hidden_sizes) == (2, 7, load_recipe("demo").heads[0].fit.hidden_sizes)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("servng.goal=1", "demo.yaml --set servng.goal=1: servng: unknown key; did you mean 'serving'?"),
        ("heads.demo.fit.maxepochs=1", "heads.0.fit.maxepochs: unknown key; did you mean 'max_epochs'?"),
        ("heads.demo.fit.max_epochs=many", "heads.0.fit.max_epochs: Input should be a valid integer"),
        ("serving.max_batch_size=0", "greater than or equal to 1 (found 0)"),
        ("heads.dem.fit.seed=1", "--set heads.dem.fit.seed: heads has no entry 'dem'; did you mean 'demo'?"),
        ("heads.1.fit.seed=1", "heads has no entry '1'; it has demo (0)"),
        ("heads.demo.class_names=[no, yes]", 'quote them: class_names: ["no", "yes"]'),
        ("encoder.model.size=3", "encoder.model is 'clipsieve-demo-vit', which has no keys; set encoder.model itself"),
        ("serving.max_batch_size", "--set serving.max_batch_size: write key=value, such as"),
        ("=8", "--set =8: write key=value"),
        ("serving..x=8", "--set serving..x=8: write key=value"),
        ("serving.formats=[JPEG", "--set serving.formats=[JPEG: the value is not valid YAML"),
        ("heads.demo.thresholds=[0.9, 0.1]", "thresholds must ascend"),
    ],
)
def test_mistakes_are_explained_as_those_of_a_file(override, expected):
    assert expected in error_of(override)


def test_values_that_yaml_shares_by_an_anchor_change_in_one_place():
    text = "a: &shared {x: 1, y: 2}\nb: *shared"
    data = yaml.safe_load(text)
    changed, written = overridden(data, yaml.load(text, yaml.BaseLoader), [parse_override("b.x=5")])
    assert changed == {"a": {"x": 1, "y": 2}, "b": {"x": 5, "y": 2}}
    assert written["b"]["x"] == "5"
    assert data["b"]["x"] == 1


def test_the_options_are_the_same_wherever_they_are_added():
    parser = argparse.ArgumentParser()
    parser.add_argument("texts", nargs="*")
    add_recipe_options(parser)
    words = ["a map", "serving.watch=false", "--recipe", "demo", "--set", "serving.watch=true", "--set", "notice="]
    arguments = parser.parse_args(words)
    assert arguments.texts == ["a map", "serving.watch=false"]  # a text of one's own, whatever it looks like
    assert recipe_of(arguments).serving.watch
    assert recipe_options(arguments) == ["--recipe", "demo", "--set", "serving.watch=true", "--set", "notice="]
    assert recipe_of(parser.parse_args(recipe_options(arguments))) == recipe_of(arguments)


def test_values_without_a_recipe_are_refused():
    parser = argparse.ArgumentParser()
    add_recipe_options(parser, required=False)
    assert recipe_if_any(parser.parse_args([])) is None
    with pytest.raises(ExpectedError, match="name it with --recipe"):
        recipe_if_any(parser.parse_args(["--set", "serving.watch=true"]))


def test_every_step_that_reads_a_recipe_takes_them():
    """No step adds --recipe by itself."""
    steps = [path for folder in ("build", "serving", "training", "tuning") for path in (ROOT / folder).rglob("*.py")]
    readers = [path for path in steps if "add_recipe_options(" in path.read_text()]
    assert len(readers) >= 24
    for path in steps:
        calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        names = [(ast.unparse(call.func), ast.unparse(call.args[0])) for call in calls if call.args]
        own = [name for name, first in names if name.endswith("add_argument") and first == "'--recipe'"]
        assert own == [], f"{path.relative_to(ROOT)}: use recipes.arguments.add_recipe_options"
        loads = [name for name, first in names if name == "load_recipe" and first.startswith("arguments.")]
        assert loads == [], f"{path.relative_to(ROOT)}: use recipes.arguments.recipe_of, which heeds --set"


def test_recipes_schema_prints_the_recipe_with_them(capsys):
    assert run_step("recipes.schema", lambda: main(["demo", "--set", "serving.max_batch_size=8"])) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["serving"]["max_batch_size"] == 8
    assert run_step("recipes.schema", lambda: main(["demo", "--set", "serving.max_batch=8"])) == 1


def test_make_passes_them_to_every_step_of_a_target():
    values = "SET=heads.demo.operating_points=[recall>=0.9] serving.max_batch_size=8"
    for target in ("train", "finetune", "engines", "serve", "demo", "perf", "tune"):
        command = ["make", "--dry-run", "--always-make", target, "RECIPE=demo", "DATA=photos", values]
        printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        steps = [line for line in printed.replace("\\\n", " ").splitlines() if " --recipe demo" in line]
        assert steps
        for line in steps:
            options = "--recipe demo --set 'heads.demo.operating_points=[recall>=0.9]' --set 'serving.max_batch_size=8'"
            assert line.count(options) == line.count("--recipe")


@pytest.fixture
def artifacts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(paths, "ARTIFACTS", tmp_path)
    return tmp_path


def test_a_head_of_other_classes_is_refused_by_the_step_that_does_not_say_so(artifacts):
    recipe = load_recipe("demo", ["heads.demo.class_names=[flat, round]"])
    encoder = write_tiny_encoder(paths.encoder_folder(recipe))
    write_head(paths.head_folder(recipe, recipe.heads[0]), encoder, recipe.heads[0].class_names)
    with pytest.raises(ManifestError, match=r"made for class_names \['flat', 'round'\], the recipe demo says"):
        build_head(["--recipe", "demo"])
    build_head(["--recipe", "demo", "--set", "heads.demo.class_names=[flat, round]"])
    assert read_head(paths.head_folder(recipe, recipe.heads[0])).class_names == ["flat", "round"]


def test_another_name_keeps_the_artefacts_apart(artifacts):
    assert paths.repository_folder(load_recipe("demo", ["name=mine"])) == artifacts / "mine" / "model_repository"


def test_an_encoder_of_another_seed_is_not_the_one_that_was_built(artifacts):
    write_tiny_encoder(paths.encoder_folder(load_recipe("demo", ["encoder.seed=3"])))
    with pytest.raises(ManifestError, match="not found; make it with"):
        build_head(["--recipe", "demo"])


@pytest.fixture
def built(tmp_path: Path) -> Path:
    """A repository that remembers a batch of 8 and another seed of the head."""
    write_record(tmp_path, load_recipe("demo", ["serving.max_batch_size=8", "heads.demo.fit.seed=1"]))
    return tmp_path


def test_a_repository_remembers_what_it_was_built_with(built):
    assert differences(built, load_recipe("demo", ["serving.max_batch_size=8", "heads.demo.fit.seed=1"])) == []
    found = differences(built, load_recipe("demo"))
    assert list(map(str, found)) == ["heads.0.fit.seed 1, now 0", "serving.max_batch_size 8, now 32"]
    assert differences(built / "older", load_recipe("demo")) == []


def test_serving_says_that_the_recipe_is_another_one_now(built, capsys):
    compare_with_build(built, load_recipe("demo"), [])
    note = capsys.readouterr().err
    assert "serving.max_batch_size 8, now 32; build it anew: make engines RECIPE=demo\n" in note


def test_serving_refuses_values_that_were_not_built(built):
    values = ["serving.max_batch_size=8", "heads.demo.fit.seed=1"]
    compare_with_build(built, load_recipe("demo", values), values)
    with pytest.raises(ServingError, match=r"make engines RECIPE=demo SET=serving.max_batch_size=4$"):
        compare_with_build(built, load_recipe("demo", ["serving.max_batch_size=4"]), ["serving.max_batch_size=4"])


def test_the_tuned_copy_holds_them():
    values = ["serving.max_batch_size=8", "heads.demo.fit.seed=1"]
    recipe = load_recipe("demo", values)
    setting = Setting.of(recipe.serving).change(preprocess_instances=3)
    text = tuned_text((ROOT / "recipes" / "demo.yaml").read_text(), recipe, setting, [], values)
    copy = Recipe.model_validate(yaml.safe_load(text))
    assert (copy.serving.preprocess_instances, copy.serving.max_batch_size, copy.heads[0].fit.seed) == (3, 8, 1)
    assert "with the values of --set" in text
