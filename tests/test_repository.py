"""build.repository: what is stamped, what is installed, and every disagreement that is noticed."""

from __future__ import annotations

import shutil
from pathlib import Path

import onnx
import open_clip
import pytest
from artefacts import encoder_manifest, write_head

from build import repository_check, repository_configs
from build.head import build_head
from build.repository import install, main, read_artefacts
from build.repository_check import RepositoryError, check, check_texts, compare_configs
from build.repository_configs import ConfigError, read_config, stamped
from recipes.manifest import EncoderManifest, HeadManifest, ManifestError, read_encoder
from recipes.paths import DEFAULT_RECIPE, MODEL_REPOSITORY, encoder_folder
from recipes.schema import Head, load_recipe, parse_recipe


@pytest.fixture
def copy(repository, tmp_path):
    """The installed demo repository, to be spoiled."""
    return Path(shutil.copytree(repository, tmp_path / "model_repository"))


def default_encoder() -> EncoderManifest:
    """As the default recipe's build would describe it, from open_clip's own config and without the weights."""
    recipe = load_recipe(DEFAULT_RECIPE)
    config = open_clip.get_model_config(recipe.encoder.model)
    assert config is not None
    assert config["vision_cfg"]["image_size"] == 224
    output = {"name": "embedding", "dtype": "FP32", "dims": [config["embed_dim"]]}
    return encoder_manifest(id=recipe.encoder.id, output=output)


def default_heads(folder: Path) -> list[HeadManifest]:
    return [
        write_head(
            folder / head.name,
            default_encoder(),
            head.class_names,
            name=head.name,
            task=head.task,
            thresholds=tuple(head.fixed_thresholds),
        )
        for head in load_recipe(DEFAULT_RECIPE).heads
    ]


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_checked_in_texts_are_wired():
    assert check_texts(MODEL_REPOSITORY) == []


def test_checked_in_texts_are_what_the_default_recipe_stamps(tmp_path):
    """A fact that lives twice, in the recipe and in config.pbtxt, must agree."""
    recipe = load_recipe(DEFAULT_RECIPE)
    compare_configs(stamped(recipe, default_encoder(), default_heads(tmp_path)), MODEL_REPOSITORY)


def test_a_default_recipe_that_was_edited_is_noticed(tmp_path):
    recipe = load_recipe(DEFAULT_RECIPE)
    edited = recipe.model_copy(update={"serving": recipe.serving.model_copy(update={"max_batch_size": 64})})
    with pytest.raises(RepositoryError, match=r"clip_encoder/config.pbtxt: max_batch_size: installed 32, .* wants 64"):
        compare_configs(stamped(edited, default_encoder(), default_heads(tmp_path)), MODEL_REPOSITORY)


def test_installed_repository_has_no_problems(repository):
    assert check(repository) == []


def test_installed_configs_carry_the_recipes_numbers(repository):
    preprocess = read_config(repository / "preprocess" / "config.pbtxt")
    assert list(preprocess.output[0].dims) == [112, 112, 3]
    assert preprocess.parameters["image_size"].string_value == "112"
    assert read_config(repository / "demo_head" / "config.pbtxt").parameters["class_names"].string_value
    assert not (repository / "nsfw_head").exists()


def test_served_preprocessing_is_the_checked_in_file(repository):
    for name in ("clip_pixels.py", "model.py"):
        assert (repository / "preprocess/1" / name).read_text() == (
            MODEL_REPOSITORY / "preprocess/1" / name
        ).read_text()


def test_every_head_gets_outputs_and_a_step(tmp_path):
    heads = [write_head(tmp_path / name, encoder_manifest(), ["no", name], name=name) for name in ("nsfw", "aesthetic")]
    ensemble = stamped(load_recipe(DEFAULT_RECIPE), encoder_manifest(), heads)["image_score"]
    assert [output.name for output in ensemble.output] == [
        "nsfw", "nsfw_decision", "nsfw_revision", "aesthetic", "aesthetic_decision", "aesthetic_revision",
    ]  # fmt: skip
    steps = ensemble.ensemble_scheduling.step
    assert [step.model_name for step in steps] == ["preprocess", "clip_encoder", "nsfw_head", "aesthetic_head"]
    assert steps[3].output_map["score"] == "aesthetic"


SPOILED_TEXTS = [
    ("clip_encoder/config.pbtxt", "max_batch_size", "max_batchsize", "config.pbtxt:4:1 : "),
    ("clip_encoder/config.pbtxt", "dims: 128", "dims: 64", "image_score: demo_head takes embedding TYPE_FP32 [128]"),
    ("image_score/config.pbtxt", '"demo_head"', '"dem_head"', "step dem_head is not in the repository"),
    ("image_score/config.pbtxt", 'value: "pixels"', 'value: "pixel"', "input pixels of clip_encoder is fed by nothing"),
    ("demo_head/config.pbtxt", "max_batch_size: 32", "max_batch_size: 8", "is over the 8 of demo_head"),
    ("demo_head/config.pbtxt", 'name: "demo_head"', 'name: "x_head"', "name is 'x_head', the folder is 'demo_head'"),
]  # fmt: skip


@pytest.mark.parametrize(("file", "old", "new", "expected"), SPOILED_TEXTS)
def test_spoiled_texts_are_found(copy, file, old, new, expected):
    edit(copy / file, old, new)
    assert any(expected in problem for problem in check_texts(copy)), check_texts(copy)


def test_config_and_onnx_must_agree(copy):
    edit(copy / "demo_head/config.pbtxt", 'name: "revision"', 'name: "version"')
    model = copy / "demo_head/1"
    problems = repository_check._check_model_file(model, read_config(copy / "demo_head/config.pbtxt"))
    assert problems == [
        "demo_head: outputs are ['decision', 'score', 'version'] in config.pbtxt, "
        "['decision', 'revision', 'score'] in model.onnx"
    ]


def test_types_and_dims_of_the_onnx_file_are_compared(copy):
    config = read_config(copy / "clip_encoder/config.pbtxt")
    config.input[0].data_type, config.output[0].dims[:] = 11, [64]  # TYPE_FP32
    assert repository_check._check_model_file(copy / "clip_encoder/1", config) == [
        "clip_encoder: input pixels is TYPE_FP32 in config.pbtxt, UINT8 in model.onnx",
        "clip_encoder: output embedding has dims [64] in config.pbtxt, [128] in model.onnx",
    ]


def test_exactly_one_model_file_may_be_installed(copy):
    (copy / "clip_encoder/1/model.plan").write_bytes(b"plan")
    assert any("found model.onnx, model.plan" in problem for problem in check(copy))
    (copy / "clip_encoder/1/model.plan").unlink()
    (copy / "clip_encoder/1/model.onnx").unlink()
    assert any("found neither; run: make engines" in problem for problem in check(copy))


def test_another_encoders_binary_is_noticed(copy):
    path = copy / "clip_encoder/1/model.onnx"
    model = onnx.load(path)
    model.producer_name = "somebody else"
    onnx.save(model, path)
    assert any("encoder.json says" in problem for problem in check(copy))


def test_a_head_of_another_encoder_is_noticed(copy, encoder):
    other = encoder.model_copy(update={"weights_sha256": "0" * 64})
    write_head(copy / "demo_head/1", other, ["angular", "round"])
    assert any("does not fit encoder" in problem for problem in check(copy))


def test_a_head_binary_that_is_not_the_manifests_is_noticed(copy, encoder, demo):
    write_head(copy / "demo_head/1", encoder, demo.heads[0].class_names, seed=3)
    assert any("revision is" in problem for problem in check(copy))


def test_missing_repository_says_how_to_make_it(tmp_path):
    assert check(tmp_path / "absent") == [f"{tmp_path / 'absent'}: no such folder; make it with: make engines"]


def test_unknown_fields_are_errors_with_line_and_column(tmp_path):
    (tmp_path / "config.pbtxt").write_text('name: "a"\nmax_batch: 3\n')
    with pytest.raises(ConfigError, match=r"config.pbtxt:2:1 : .*max_batch"):
        read_config(tmp_path / "config.pbtxt")


def test_installing_again_replaces_the_repository(repository, demo, tmp_path):
    target = tmp_path / "models"
    install(demo, target)
    (target / "leftover").mkdir()
    install(demo, target)
    assert not (target / "leftover").exists()
    assert check(target) == []
    assert [path.name for path in tmp_path.iterdir()] == ["models"]


def test_installing_without_artefacts_installs_nothing(demo, repository, tmp_path):
    absent = demo.model_copy(update={"heads": [demo.heads[0].model_copy(update={"source": tmp_path / "none"})]})
    with pytest.raises(ManifestError, match=r"head.json: not found; make it with: python -m training.fit"):
        install(absent, tmp_path / "models")
    assert not (tmp_path / "models").exists()


def test_class_names_of_recipe_and_head_must_agree(demo, repository):
    renamed = Head(name="demo", class_names=["square", "round"])
    with pytest.raises(ManifestError, match=r"trained for class_names .*, the recipe says \['square', 'round'\]"):
        read_artefacts(demo.model_copy(update={"heads": [renamed]}))


def test_two_heads_are_installed_and_wired(demo, encoder, tmp_path):
    data = demo.model_dump(mode="json") | {"name": "two"}
    data["heads"] = [
        {"name": name, "class_names": ["no", name], "source": str(tmp_path / name)} for name in ("first", "second")
    ]
    recipe = parse_recipe(data)
    for head in recipe.heads:
        assert head.source is not None
        write_head(head.source, read_encoder(encoder_folder(demo)), head.class_names, name=head.name)
        build_head(head.source, recipe.build.opset)
    install(recipe, tmp_path / "models")
    assert check(tmp_path / "models") == []


def test_command_installs_checks_and_prints_the_folder(repository, capsys):
    assert main(["--recipe", "demo", "--check"]) == 0
    assert capsys.readouterr().out.strip() == str(repository)
    assert main(["--recipe", "nsfw-vit-l-14", "--texts"]) == 0
    assert main(["--recipe", "nsfw-vit-l-14", "--check"]) == 1
    assert "encoder.json: not found; make it with" in capsys.readouterr().err


def test_stamped_text_says_where_it_comes_from(repository):
    text = (repository / "image_score/config.pbtxt").read_text()
    assert text.startswith("# Stamped by `python -m build.repository --recipe demo`; do not edit.")
    assert repository_configs.read_config(repository / "image_score/config.pbtxt").platform == "ensemble"
