"""build.repository: stamped configs, installed files, and every disagreement that is noticed."""

from __future__ import annotations

import importlib.util
import io
import json
import shutil
import subprocess
from pathlib import Path

import onnx
import pytest
import yaml
from artefacts import encoder_manifest, write_head
from PIL import Image
from tritonclient.utils import deserialize_bytes_tensor

from build import repository_check
from build.head import build_head
from build.repository import install, main, read_artefacts
from build.repository_check import RepositoryError, check, check_texts, compare_configs
from build.repository_configs import stamped, to_text
from build.repository_queues import LIMITED, queue_problems
from build.repository_warmup import draw_picture, sample_problems, warmup_file, warmup_tensor
from common.instances import Processors, recorded_processors
from common.manifest import EncoderManifest, HeadManifest, ManifestError, read_encoder
from common.model_config import ConfigError, read_config
from common.paths import DEFAULT_RECIPE, MODEL_REPOSITORY, ROOT, encoder_folder
from common.pixels import served_transform
from common.score_watch.steps import add_watches
from recipes.errors import run_step
from recipes.head_section import Head
from recipes.schema import Recipe, load_recipe, parse_recipe


@pytest.fixture
def copy(repository, tmp_path):
    """The installed demo repository, to be spoiled."""
    return Path(shutil.copytree(repository, tmp_path / "model_repository"))


def open_clip_config(model: str) -> dict:
    """open_clip's own config of a model, from its file: importing open_clip takes ten seconds."""
    package = importlib.util.find_spec("open_clip")
    assert package is not None
    assert package.origin is not None
    return json.loads((Path(package.origin).parent / "model_configs" / f"{model}.json").read_text())


def default_encoder() -> EncoderManifest:
    """The manifest that the default recipe's build would write, from open_clip's own config and without the weights."""
    recipe = load_recipe(DEFAULT_RECIPE)
    config = open_clip_config(recipe.encoder.model)
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
    with pytest.raises(RepositoryError, match=r"clip_encoder/.*: max_batch_size: installed 32, the recipe says 64"):
        compare_configs(stamped(edited, default_encoder(), default_heads(tmp_path)), MODEL_REPOSITORY)


def test_tf32_is_the_recipes(tmp_path):
    data = load_recipe(DEFAULT_RECIPE).model_dump(mode="json", exclude_defaults=True)
    for tf32, option in ((False, "0"), (True, "1")):
        recipe = parse_recipe(data | {"build": {"engine": {"tf32": tf32}}})
        config = stamped(recipe, default_encoder(), default_heads(tmp_path / option))["clip_encoder"]
        (cuda,) = config.optimization.execution_accelerators.gpu_execution_accelerator
        assert (cuda.name, dict(cuda.parameters)) == ("cuda", {"use_tf32": option})


def test_a_goal_lays_the_encoders_out_for_a_machine_which_is_recorded(tmp_path):
    recipe = load_recipe(DEFAULT_RECIPE)
    fast = recipe.model_copy(update={"serving": recipe.serving.model_copy(update={"goal": "throughput"})})
    configs = stamped(fast, default_encoder(), default_heads(tmp_path), Processors(16))
    encoder, preprocess = configs["clip_encoder"], configs["preprocess"]
    assert (encoder.instance_group[0].count, preprocess.instance_group[0].count) == (8, 16)
    assert encoder.parameters["intra_op_thread_count"].string_value == "2"
    assert list(encoder.dynamic_batching.preferred_batch_size) == [8]
    text = to_text(encoder, "fast")
    (tmp_path / "clip_encoder").mkdir()
    (tmp_path / "clip_encoder" / "config.pbtxt").write_text(text)
    assert recorded_processors(tmp_path) == Processors(16)
    assert read_config(tmp_path / "clip_encoder" / "config.pbtxt") == encoder


def test_without_a_goal_the_machine_decides_nothing(tmp_path):
    recipe, encoder, heads = load_recipe(DEFAULT_RECIPE), default_encoder(), default_heads(tmp_path)
    assert stamped(recipe, encoder, heads, Processors(64, 2)) == stamped(recipe, encoder, heads, Processors(1))


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


def test_a_deviation_is_an_output_of_its_own(tmp_path):
    options = {"name": "taste", "task": "ranking", "deviation": True}
    heads = [write_head(tmp_path, encoder_manifest(), ["taste"], **options)]
    configs = stamped(load_recipe(DEFAULT_RECIPE), encoder_manifest(), heads)
    ensemble, head = configs["image_score"], configs["taste_head"]
    names = ["taste", "taste_decision", "taste_revision", "taste_deviation"]
    assert [output.name for output in ensemble.output] == names
    assert [output.name for output in head.output] == ["score", "decision", "revision", "deviation"]
    assert [list(output.dims) for output in head.output] == [[1]] * 4
    assert ensemble.ensemble_scheduling.step[2].output_map["deviation"] == "taste_deviation"


def test_a_deviation_passes_the_watch_by(demo, tmp_path):
    options = {"name": "taste", "task": "ranking", "deviation": True}
    heads = [write_head(tmp_path, encoder_manifest(), ["taste"], **options)]
    data = demo.model_dump(mode="json", exclude_defaults=True) | {"name": "watched", "serving": {"watch": True}}
    recipe = parse_recipe(data | {"heads": [{"name": "taste", "task": "ranking", "class_names": ["taste"]}]})
    configs = stamped(recipe, encoder_manifest(), heads)
    add_watches(configs, recipe, heads)
    (step,) = (step for step in configs["image_score"].ensemble_scheduling.step if step.model_name == "taste_head")
    assert dict(step.output_map) == {
        "score": "taste_head.score",
        "decision": "taste_head.decision",
        "revision": "taste_head.revision",
        "deviation": "taste_deviation",
    }


SPOILED_TEXTS = [
    ("clip_encoder/config.pbtxt", "max_batch_size", "max_batchsize", "config.pbtxt:4:1: "),
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
    with pytest.raises(ConfigError, match=r"config\.pbtxt:2:1: .*no field named \"max_batch\"; correct it"):
        read_config(tmp_path / "config.pbtxt")


@pytest.mark.parametrize("options", [["--check"], ["--target", "onnx"]])
def test_a_misspelt_field_ends_the_command_with_its_place(copy, monkeypatch, capsys, options):
    """The place is in the installed file, or in the checked-in text that an installation starts from."""
    if "--check" in options:
        path = copy / "clip_encoder" / "config.pbtxt"
    else:
        path = Path(shutil.copytree(MODEL_REPOSITORY, copy.parent / "texts")) / "clip_encoder" / "config.pbtxt"
        monkeypatch.setattr("build.repository_configs.MODEL_REPOSITORY", copy.parent / "texts")
    monkeypatch.setattr("build.repository.repository_folder", lambda recipe: copy)
    path.write_text("max_batch: 3\n" + path.read_text())
    before = {file: file.stat().st_mtime_ns for file in copy.rglob("*")}
    assert run_step("build.repository", lambda: main(["--recipe", "demo", *options])) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert f'build.repository: {path}:1:1: Message type "inference.ModelConfig" has no field named' in output.err
    assert "correct it there or, where a build has written it, have it written again: make engines" in output.err
    assert {file: file.stat().st_mtime_ns for file in copy.rglob("*")} == before


def test_a_config_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "config.pbtxt").write_bytes(b"name: \xff")
    with pytest.raises(ConfigError, match=r"config\.pbtxt: not UTF-8 text \(invalid start byte at byte 6\)"):
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
    with pytest.raises(ManifestError, match=r"made for class_names .*, the recipe demo says \['square', 'round'\]"):
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


def test_command_installs_checks_and_prints_the_folder(repository, patient_demo, tmp_path, capsys):
    recipe = tmp_path / "demo.yaml"
    recipe.write_text(yaml.safe_dump(patient_demo.model_dump(mode="json", exclude_defaults=True)))
    assert run_step("build.repository", lambda: main(["--recipe", str(recipe), "--check"])) == 0
    assert capsys.readouterr().out.strip() == str(repository)
    assert run_step("build.repository", lambda: main(["--recipe", "nsfw-vit-l-14", "--texts"])) == 0
    assert run_step("build.repository", lambda: main(["--recipe", "nsfw-vit-l-14", "--check"])) == 1
    assert "encoder.json: not found; make it with" in capsys.readouterr().err


def test_stamped_text_says_where_it_comes_from(repository):
    text = (repository / "image_score/config.pbtxt").read_text()
    assert text.startswith("# Stamped by `python -m build.repository --recipe demo`; do not edit.")
    assert read_config(repository / "image_score/config.pbtxt").platform == "ensemble"


# ---- queue limits and warm-up ----


def with_serving(name: str, **changes) -> Recipe:
    recipe = load_recipe(name)
    return parse_recipe(recipe.model_dump(mode="json") | {"serving": recipe.serving.model_dump(mode="json") | changes})


def policies(config) -> dict[int, tuple[int, int, bool]]:
    """The queues by priority level: the most requests, their wait in microseconds, and its override by a request."""
    return {
        level: (policy.max_queue_size, policy.default_timeout_microseconds, policy.allow_timeout_override)
        for level, policy in config.dynamic_batching.priority_queue_policy.items()
    }


@pytest.mark.parametrize("model", ["preprocess", "clip_encoder"])
def test_queue_limits_are_the_recipes(tmp_path, model):
    recipe = with_serving(DEFAULT_RECIPE, queue_timeout_ms=300, max_queue_size=50)
    config = stamped(recipe, default_encoder(), default_heads(tmp_path))[model]
    assert policies(config) == {1: (50, 300_000, True), 2: (50, 9_000_000, True)}
    assert (config.dynamic_batching.priority_levels, config.dynamic_batching.default_priority_level) == (2, 1)


@pytest.mark.parametrize("model", ["preprocess", "clip_encoder"])
def test_without_limits_there_is_one_plain_queue(tmp_path, model):
    recipe = with_serving(DEFAULT_RECIPE, queue_timeout_ms=0, max_queue_size=0)
    batching = stamped(recipe, default_encoder(), default_heads(tmp_path))[model].dynamic_batching
    assert (batching.priority_levels, batching.default_priority_level, len(batching.priority_queue_policy)) == (0, 0, 0)


def test_heads_have_no_queue_limits(tmp_path):
    for name, config in stamped(load_recipe(DEFAULT_RECIPE), default_encoder(), default_heads(tmp_path)).items():
        assert name in LIMITED or not queue_problems(config)
        assert name in LIMITED or not policies(config)


HARMFUL_QUEUES = [
    (
        "demo_head",
        "dynamic_batching {",
        "dynamic_batching { default_queue_policy { max_queue_size: 8 }",
        "can wedge the",
    ),
    (
        "clip_encoder",
        "dynamic_batching {",
        "dynamic_batching { max_queue_delay_microseconds: 9",
        "beside a queue policy",
    ),
]


@pytest.mark.parametrize(("model", "old", "new", "expected"), HARMFUL_QUEUES)
def test_limits_that_do_harm_are_noticed(copy, model, old, new, expected):
    edit(copy / model / "config.pbtxt", old, new)
    assert any(expected in problem for problem in check_texts(copy)), check_texts(copy)


@pytest.mark.parametrize(
    ("warmup", "expected"),
    [
        ("full", {"preprocess": [1], "clip_encoder": [1, 8], "nsfw_head": [1, 8], "image_score": []}),
        ("single", {"preprocess": [1], "clip_encoder": [1], "nsfw_head": [1], "image_score": []}),
        ("none", {"preprocess": [], "clip_encoder": [], "nsfw_head": [], "image_score": []}),
    ],
)
def test_warmup_batches_are_the_recipes(tmp_path, warmup, expected):
    recipe = with_serving(DEFAULT_RECIPE, warmup=warmup, max_batch_size=8)
    configs = stamped(recipe, default_encoder(), default_heads(tmp_path))
    sizes = {name: [sample.batch_size for sample in configs[name].model_warmup] for name in expected}
    assert sizes == expected


def test_warmup_feeds_every_model_in_the_shapes_of_its_inputs(repository):
    for name in ("preprocess", "clip_encoder", "demo_head"):
        config = read_config(repository / name / "config.pbtxt")
        assert config.model_warmup
        assert sample_problems(config) == []


SPOILED_WARMUPS = [
    ("clip_encoder", "batch_size: 32\n", "batch_size: 33\n", "warm-up 'full' has batch_size 33, max_batch_size is 32"),
    ("demo_head", 'key: "embedding"', 'key: "pixels"', "demo_head: warm-up 'single' feeds {'pixels'"),
]  # fmt: skip


@pytest.mark.parametrize(("model", "old", "new", "expected"), SPOILED_WARMUPS)
def test_warmups_that_triton_would_refuse_are_noticed(copy, model, old, new, expected):
    path = copy / model / "config.pbtxt"
    text = path.read_text()
    start = text.index("model_warmup")
    path.write_text(text[:start] + text[start:].replace(old, new, 1))
    assert any(expected in problem for problem in check_texts(copy)), check_texts(copy)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (None, "warmup/image: not found; make it with: make engines"),
        (b"\x05\0\0\0abc", "promise 5, 3 follow; run: make engines"),
        (b"\x03\0\0\0abc", "preprocess refuses it (NOT_AN_IMAGE"),
    ],
)
def test_a_warmup_picture_that_would_keep_the_server_from_starting_is_noticed(copy, data, expected):
    path = warmup_file(copy)
    path.unlink()
    if data is not None:
        path.write_bytes(data)
    assert any(expected in problem for problem in check(copy)), check(copy)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "AVIF"])
def test_the_warmup_picture_is_in_a_format_that_is_served(demo, encoder, format):
    serving = with_serving("demo", formats=[format]).serving
    picture = draw_picture(serving)
    assert Image.open(io.BytesIO(picture)).format == format
    assert served_transform(encoder.preprocessing, serving)(picture).shape == (112, 112, 3)


def test_the_warmup_picture_keeps_the_recipes_limits(encoder):
    serving = with_serving("demo", max_bytes=3000, max_pixels=20_000, formats=["PNG", "JPEG"]).serving
    picture = draw_picture(serving)
    assert picture.startswith(b"\xff\xd8\xff")
    assert len(picture) <= 3000
    served_transform(encoder.preprocessing, serving)(picture)


def test_the_warmup_picture_is_a_bytes_tensor_of_one(demo):
    tensor = warmup_tensor(demo.serving)
    assert deserialize_bytes_tensor(tensor).tolist() == [draw_picture(demo.serving)]


def test_without_a_warmup_no_picture_is_written(demo, repository, tmp_path):
    install(with_serving("demo", warmup="none"), tmp_path / "models")
    assert not warmup_file(tmp_path / "models").exists()
    assert check(tmp_path / "models") == []


def test_the_warmup_picture_of_the_default_recipe_is_ignored_by_git():
    command = ["git", "check-ignore", "-q", str(warmup_file(MODEL_REPOSITORY))]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == 0


def test_after_a_rollout_the_served_version_is_checked(repository, tmp_path):
    target = Path(shutil.copytree(repository, tmp_path / "models"))
    head = target / "demo_head"
    shutil.copytree(head / "1", head / "2")
    with (head / "config.pbtxt").open("a") as config:
        config.write("version_policy { specific { versions: 2 } }\n")
    (head / "1" / "model.onnx").unlink()
    assert check(target) == []
    (head / "2" / "model.onnx").unlink()
    assert [problem for problem in check(target) if problem.startswith("demo_head/2: needs exactly one")]
