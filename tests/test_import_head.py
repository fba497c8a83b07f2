"""training.import_head: published files become heads that score as the originals, or nothing is written."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import yaml
from artefacts import encoder_manifest, write_head
from published_files import published_file

from build.head import build_head
from common.manifest import read_head, sha256_of
from common.paths import ARTIFACTS
from recipes.errors import run_step
from recipes.head_section import Head
from recipes.schema import load_recipe
from training.errors import StepError
from training.import_head import Options, import_head, main, missing_files
from training.published import PUBLISHED
from training.published_torch import expected_shapes

QUICK = Options(verify=100)
OFFLINE = ("Failed to fetch", "error sending request", "dns error", "No interpreter found")


def recipe_head(name, /, **changes):
    """A recipe's entry for the published head `name`, without `published.file`."""
    published = PUBLISHED[name]
    entry = {"name": "nsfw", "task": published.task, "class_names": published.class_names}
    return Head.model_validate(entry | {"published": {"name": name} | changes.pop("published", {})} | changes)


def real_head(name, **published):
    return recipe_head(name, published={"file": published_file(name), **published})


def made_file(folder, name="laion-nsfw-h14"):
    """A .pth with that head's tensors and random values, of a head whose sum is not known."""
    torch.manual_seed(0)
    path = folder / PUBLISHED[name].file
    torch.save({key: torch.randn(shape) / 30 for key, shape in expected_shapes(PUBLISHED[name]).items()}, path)
    return path


def built_scores(folder, x):
    build_head(folder, opset=18)
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    return np.asarray(session.run(["score"], {"embedding": x})[0])[:, 0]


def unit_vectors(count, width):
    x = np.random.default_rng(0).standard_normal((count, width))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def keras_head(tmp_path_factory):
    """laion-nsfw-b32 as published, imported through TensorFlow."""
    folder = tmp_path_factory.mktemp("keras")
    head = real_head("laion-nsfw-b32")
    try:
        import_head(head, None, folder, QUICK)
    except StepError as error:
        if any(phrase in str(error) for phrase in OFFLINE):
            pytest.skip(f"TensorFlow could not be installed: {error}")
        raise
    return folder


def test_a_keras_head_is_verified_against_its_original_graph(keras_head):
    manifest = read_head(keras_head)
    published = manifest.training.model_dump()["published"]
    assert published["sha256"] == PUBLISHED["laion-nsfw-b32"].sha256
    assert published["variant"] == "published"
    assert set(published["verified"]["max_difference"]) == {"float16", "float32", "float32_edges"}
    assert max(published["verified"]["max_difference"].values()) <= 1e-5
    assert published["variants"]["numeric"]["float16"]["max_difference"] > 0.1
    assert manifest.activation == "sigmoid"
    assert not manifest.calibrated
    assert manifest.licence == "MIT"
    assert manifest.encoder.id == "vit-b-32-quickgelu-openai"
    assert manifest.encoder.weights_sha256 is None
    assert [[point.value for point in row] for row in manifest.thresholds] == [[0.5]]


def test_a_keras_head_can_be_built(keras_head):
    scores = built_scores(keras_head, unit_vectors(50, 512))
    assert ((scores >= 0) & (scores <= 1)).all()


def test_what_is_imported_already_is_not_read_again(keras_head, monkeypatch):
    before = (keras_head / "head.json").stat().st_mtime_ns
    monkeypatch.setenv("PATH", "")  # neither uv nor TensorFlow would be found
    import_head(real_head("laion-nsfw-b32"), None, keras_head, QUICK)
    assert (keras_head / "head.json").stat().st_mtime_ns == before


def test_other_thresholds_are_taken_without_reading_the_file_again(keras_head, monkeypatch):
    monkeypatch.setenv("PATH", "")
    for thresholds, expected in (([0.3, 0.8], [0.3, 0.8]), ([], [0.5])):
        head = real_head("laion-nsfw-b32").model_copy(update={"thresholds": thresholds})
        import_head(head, None, keras_head, QUICK)
        manifest = read_head(keras_head)
        assert [[point.value for point in row] for row in manifest.thresholds] == [expected]
        assert manifest.recipe["thresholds"] == thresholds


def test_another_variant_is_another_import(tmp_path, keras_head, monkeypatch):
    """It is not taken for the one that is there; without uv it fails, and what was there stays."""
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    before = sha256_of(keras_head / "head.json")
    with pytest.raises(StepError, match="uv was not found"):
        import_head(real_head("laion-nsfw-b32", variant="numeric"), None, keras_head, QUICK)
    assert sha256_of(keras_head / "head.json") == before


@pytest.mark.parametrize("name", ["laion-aesthetic-v2", "laion-aesthetic-v1-b32", "laion-aesthetic-v1-l14"])
def test_linear_heads_fold_to_one_map_of_equal_scores(name, tmp_path):
    import_head(real_head(name), None, tmp_path, QUICK)
    x = unit_vectors(500, PUBLISHED[name].embed_dim)
    state = torch.load(published_file(name), weights_only=True, map_location="cpu")
    layered = torch.from_numpy(x)
    for key in [key for key in state if key.endswith("weight")]:
        layered = torch.nn.functional.linear(layered, state[key], state[key.replace("weight", "bias")])
    np.testing.assert_allclose(built_scores(tmp_path, x), layered[:, 0].numpy(), atol=1e-5)
    operators = [node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node]
    assert operators.count("Gemm") == 1
    manifest = read_head(tmp_path)
    assert manifest.activation == "none"
    assert manifest.thresholds == [[]]


def test_the_relu_head_keeps_its_relus(tmp_path):
    import_head(real_head("ava-logos-relu"), None, tmp_path, QUICK)
    build_head(tmp_path, opset=18)
    assert [node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node].count("Relu") == 4


def test_the_h14_head_gives_its_raw_value(tmp_path):
    """On made-up weights: the published file is not among the tests' data."""
    head = recipe_head("laion-nsfw-h14", published={"file": made_file(tmp_path)})
    import_head(head, None, tmp_path / "out", Options(accept_unknown_sha256=True))
    manifest = read_head(tmp_path / "out")
    assert manifest.activation == "none"
    assert manifest.task == "binary"
    assert manifest.encoder.normalize
    assert manifest.training.published is not None
    assert manifest.training.published.sha256 == sha256_of(tmp_path / "h14_nsfw.pth")
    built_scores(tmp_path / "out", unit_vectors(5, 1024))


def test_a_file_nobody_knows_needs_a_word_of_trust(tmp_path):
    file = made_file(tmp_path)
    with pytest.raises(StepError, match=f"this one's is {sha256_of(file)}.*--accept-unknown-sha256"):
        import_head(recipe_head("laion-nsfw-h14", published={"file": file}), None, tmp_path / "out", QUICK)
    assert not (tmp_path / "out").exists()
    pinned = {"file": file, "sha256": sha256_of(file)}
    import_head(recipe_head("laion-nsfw-h14", published=pinned), None, tmp_path / "out", QUICK)
    with pytest.raises(StepError, match="is not known here"):
        import_head(recipe_head("laion-nsfw-h14"), None, tmp_path / "elsewhere", QUICK)


def test_a_wrong_sum_is_refused_and_nothing_is_overwritten(tmp_path):
    write_head(tmp_path / "out", encoder_manifest(), ["safe", "nsfw"])
    before = sha256_of(tmp_path / "out" / "head.json")
    (tmp_path / "a.pth").write_bytes(b"something else")
    found = hashlib.sha256(b"something else").hexdigest()
    head = recipe_head("laion-aesthetic-v2", published={"file": tmp_path / "a.pth"})
    with pytest.raises(StepError, match=rf"a\.pth: sha256 is {found}, expected 21dd590f"):
        import_head(head, None, tmp_path / "out", Options(replace=True))
    assert sha256_of(tmp_path / "out" / "head.json") == before


def test_a_zip_that_is_not_the_saved_model_is_refused(tmp_path):
    (tmp_path / "a.zip").write_bytes(b"PK")
    with pytest.raises(StepError, match=r"a\.zip: sha256 is"):
        import_head(recipe_head("laion-nsfw-l14", published={"file": tmp_path / "a.zip"}), None, tmp_path, QUICK)


def test_a_head_trained_here_is_not_lost(tmp_path):
    file = made_file(tmp_path)
    head = recipe_head("laion-nsfw-h14", published={"file": file, "sha256": sha256_of(file)})
    write_head(tmp_path / "out", encoder_manifest(), ["safe", "nsfw"])
    with pytest.raises(StepError, match="holds a head that was trained here; move it away, or pass --overwrite"):
        import_head(head, None, tmp_path / "out", QUICK)
    import_head(head, None, tmp_path / "out", Options(replace=True))
    published = read_head(tmp_path / "out").training.published
    assert published is not None
    assert published.name == "laion-nsfw-h14"


@pytest.mark.parametrize(
    ("name", "changes", "expected"),
    [
        ("laion-nsfw-h14", {"operating_points": ["recall>=0.99"]}, "operating_points .* would need held-out data"),
        ("laion-nsfw-h14", {"prevalence": 0.01}, "prevalence 0.01 would need held-out data"),
        ("laion-nsfw-h14", {"published": {"variant": "numeric"}}, "variant 'numeric' is for Keras heads"),
        ("laion-aesthetic-v2", {"task": "binary", "class_names": ["a", "b"]}, "its task is binary, .* regression head"),
        ("laion-aesthetic-v2", {"published": {"sha256": "0" * 64}}, "published.sha256 is 000.* published with 21dd"),
        ("laion-aesthetic-v2", {"published": {"file": "absent.pth"}}, r"absent\.pth: no such file; fetch https://raw"),
        ("laion-nsfw-h14", {"published": {"name": "laion-nsfw-h41"}}, "did you mean 'laion-nsfw-h14'"),
    ],
)
def test_what_a_published_head_cannot_give_is_refused(name, changes, expected, tmp_path):
    with pytest.raises(StepError, match=expected):
        import_head(recipe_head(name, **changes), None, tmp_path / "out", QUICK)
    assert not (tmp_path / "out").exists()


def write_recipe(folder, head, encoder):
    entry = head.model_dump(mode="json", exclude_defaults=True)
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump({"name": "mine", "description": "", "encoder": encoder, "heads": [entry]}))
    return path


H14 = {"model": "ViT-H-14", "pretrained": "laion2b_s32b_b79k"}


def test_command_imports_a_recipes_heads(tmp_path, capsys):
    head = recipe_head("laion-nsfw-h14", name="imported", published={"file": made_file(tmp_path)})
    recipe = str(write_recipe(tmp_path, head, H14))
    main(["--recipe", recipe, "--accept-unknown-sha256"])
    assert capsys.readouterr().out == f"{ARTIFACTS / 'mine' / 'heads' / 'imported' / 'head.json'}\n"


def test_a_head_is_of_the_encoder_however_it_decodes(tmp_path):
    """Imported again when the recipe decodes otherwise: a head names the encoder that it is served on."""
    head = recipe_head("laion-nsfw-h14", published={"file": made_file(tmp_path)})
    for decode in ("exact", "scaled", "exact"):
        recipe = str(write_recipe(tmp_path, head, H14 | {"decode": decode}))
        main(["--recipe", recipe, "--accept-unknown-sha256"])
        fingerprint = read_head(ARTIFACTS / "mine" / "heads" / head.name).encoder
        assert fingerprint.id == load_recipe(recipe).encoder.id
        assert fingerprint.preprocessing == f"{decode}-shortest-bicubic-224"


@pytest.mark.parametrize(
    ("encoder", "expected"),
    [
        ({"model": "ViT-H-14", "pretrained": "other"}, "its encoder is vit-h-14-other, laion-nsfw-h14 was trained on"),
        (H14 | {"normalize": False}, "vit-h-14-laion2b-s32b-b79k-unnormalized, laion-nsfw-h14 was trained on"),
    ],
)
def test_command_refuses_another_encoder(tmp_path, capsys, encoder, expected):
    recipe = str(write_recipe(tmp_path, recipe_head("laion-nsfw-h14"), encoder))
    assert run_step("training.import_head", lambda: main(["--recipe", recipe])) == 1
    assert expected in capsys.readouterr().err


def test_command_needs_no_recipe(tmp_path, capsys):
    file = str(published_file("laion-aesthetic-v1-b32"))
    main(["--name", "laion-aesthetic-v1-b32", "--file", file, "--out", str(tmp_path / "out")])
    assert capsys.readouterr().out == f"{tmp_path / 'out' / 'head.json'}\n"
    assert read_head(tmp_path / "out").class_names == ["aesthetic"]


def test_command_leaves_trained_heads_alone(capsys):
    main(["--recipe", "demo"])
    assert capsys.readouterr().out == ""


def test_command_lists_what_it_knows(capsys):
    main(["--list"])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[0] for line in lines] == ["name", *PUBLISHED]
    assert [line[-1] for line in lines] == ["address", *(head.url for head in PUBLISHED.values())]


def test_without_a_network_the_file_to_fetch_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    head = recipe_head("laion-aesthetic-v2")
    expected = (
        r"could not be downloaded.*\n.*fetch sac\+logos\+ava1-l14-linearMSE\.pth from https://raw.*published\.file"
    )
    with pytest.raises(StepError, match=expected):
        import_head(head, None, tmp_path / "out", QUICK)
    assert not (tmp_path / "out").exists()


def test_all_files_that_are_nowhere_are_named_at_once(tmp_path, monkeypatch):
    names = ("laion-nsfw-l14", "laion-aesthetic-v2")
    heads = [recipe_head(name) for name in names]
    folders = [tmp_path / "a", tmp_path / "b"]
    for name in names:
        monkeypatch.setitem(PUBLISHED, name, replace(PUBLISHED[name], url=f"http://127.0.0.1:9/{name}"))
    texts = missing_files(heads, folders)
    assert [text.partition(":")[0] for text in texts] == list(names)
    assert all("Connection refused" in text and "published.file" in text for text in texts)
    there = recipe_head("laion-nsfw-l14", published={"file": tmp_path / "x.zip"})
    assert f"{tmp_path / 'x.zip'}: no such file" in missing_files([there], [tmp_path])[0]
    (tmp_path / "x.zip").touch()
    assert missing_files([there], [tmp_path]) == []
