"""Heads from words: equal to the library's zero-shot classifier, and made again when their texts change."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import open_clip
import pytest
import torch
from open_clip.zero_shot_classifier import build_zero_shot_classifier
from pictures import jpeg
from safetensors.torch import save_file
from words import BINARY, CONFIGS, MULTICLASS, MULTILABEL, words_recipe, write_recipe

from build import encoder as encoder_step
from build import head as head_step
from build import texts as texts_step
from build.open_clip_tower import load_clip
from build.text_tower import load_text_tower
from common import paths
from common.manifest import HeadManifest, ManifestError, read_head
from common.text_embeddings import read_texts
from recipes.encoder_section import Encoder
from recipes.errors import run_step
from recipes.prompts import NEUTRAL_TEXTS, TEMPLATES
from recipes.schema import load_recipe
from training import prompts, text_head


@pytest.fixture(scope="module", params=["clip", "sigmoid"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def made(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe whose encoder is exported and whose three heads are made of words and built."""
    path = write_recipe(tmp_path_factory.mktemp("recipe"), words_recipe(kind, MULTICLASS, BINARY, MULTILABEL))
    assert run_step("build.encoder", lambda: encoder_step.main(["--recipe", str(path)])) == 0
    assert make(path) == 0
    head_step.main(["--recipe", str(path)])
    return path


def make(path: Path) -> int:
    """Make the heads, as make engines does."""
    return run_step("build.texts", lambda: texts_step.main(["--recipe", str(path)])) or run_step(
        "training.text_head", lambda: text_head.main(["--recipe", str(path)])
    )


def scores(path: Path, name: str, embedding: np.ndarray) -> np.ndarray:
    """Scores of the ONNX file that would be served."""
    recipe = load_recipe(path)
    file = paths.head_folder(recipe, recipe.head(name)) / "model.onnx"
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["score"], {"embedding": embedding})[0])


def manifest_of(path: Path, name: str) -> HeadManifest:
    recipe = load_recipe(path)
    return read_head(paths.head_folder(recipe, recipe.head(name)))


def pictures() -> np.ndarray:
    """(64, 32) float32 of length 1."""
    rows = np.random.default_rng(0).normal(size=(64, 32))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


class Library:
    """open_clip's own zero-shot classifier of the recipe's weights."""

    def __init__(self, path: Path) -> None:
        encoder = load_recipe(path).encoder
        self.model: Any = load_clip(encoder)[0].eval()
        self.tokenizer = open_clip.get_tokenizer(encoder.model)

    def logits(self, templates: list[list[str]]) -> torch.Tensor:
        """(64, classes): of each class its sentences, which the library takes as templates of a class's name."""
        columns = [
            build_zero_shot_classifier(self.model, self.tokenizer, [""], [f"{text}{{}}" for text in sentences])
            for sentences in templates
        ]
        with torch.no_grad():
            logits = self.model.logit_scale.exp() * torch.from_numpy(pictures()) @ torch.cat(columns, dim=1)
            bias = getattr(self.model, "logit_bias", None)
            return logits if bias is None else logits + bias


def sentences(texts: list[str]) -> list[str]:
    return [template.format(text) for text in texts for template in TEMPLATES]


def test_classes_score_as_in_the_librarys_zero_shot_classifier(made, kind):
    logits = Library(made).logits(
        [sentences(["a map", "a street map"]), sentences(["a screenshot of a chat"]), sentences(["a receipt"])]
    )
    expected = logits.softmax(dim=1) if kind == "clip" else logits.sigmoid()
    np.testing.assert_allclose(scores(made, "policy", pictures()), expected, atol=1e-5, rtol=0)


def test_a_binary_head_scores_the_second_class_against_the_first(made):
    logits = Library(made).logits([sentences(["people", "a tool"]), sentences(["a person holding a weapon"])])
    expected = logits.softmax(dim=1)[:, 1:]
    np.testing.assert_allclose(scores(made, "weapons", pictures()), expected, atol=1e-5, rtol=0)


def test_a_label_is_held_against_its_negatives_or_neutral_texts(made, kind):
    cat, outdoors = sentences(["a cat"]), sentences(["a landscape", "a street"])
    library = Library(made)
    outdoors_score = library.logits([sentences(["a room"]), outdoors]).softmax(dim=1)[:, 1]
    cat_score = library.logits([list(NEUTRAL_TEXTS), cat]).softmax(dim=1)[:, 1]
    if kind == "sigmoid":
        cat_score = library.logits([cat]).sigmoid()[:, 0]
    expected = torch.stack([cat_score, outdoors_score], dim=1)
    np.testing.assert_allclose(scores(made, "tags", pictures()), expected, atol=1e-5, rtol=0)


def test_the_manifest_says_that_it_is_of_words_and_not_calibrated(made, kind):
    manifest = manifest_of(made, "policy")
    words = manifest.training.words
    assert words is not None
    assert words.texts["map"] == sentences(["a map", "a street map"])
    assert (words.logit_bias is None, words.weights) == (kind == "clip", "texts")
    assert not manifest.calibrated
    assert manifest.training.calibration == text_head.NOT_CALIBRATED


def test_what_is_made_is_kept_and_other_texts_make_another_revision(made, tmp_path, capsys):
    before = manifest_of(made, "policy").revision
    assert make(made) == 0
    assert "nothing to do" in capsys.readouterr().err
    assert manifest_of(made, "policy").revision == before
    recipe = load_recipe(made).model_dump(mode="json")
    recipe["heads"][0]["prompts"]["map"] = ["an atlas"]
    changed = write_recipe(tmp_path, recipe)
    with pytest.raises(ManifestError, match=r"not made of the texts that the recipe words-.* has now"):
        head_step.main(["--recipe", str(changed)])
    assert make(changed) == 0
    assert manifest_of(made, "policy").revision != before
    assert make(made) == 0  # as the other tests have it
    assert manifest_of(made, "policy").revision == before


def test_texts_as_they_are(made, kind, tmp_path):
    head = {**MULTICLASS, "name": "bare", "templates": []}
    path = write_recipe(tmp_path, words_recipe(kind, head) | {"name": f"bare-{kind}"})
    assert make(path) == 0
    words = manifest_of(path, "bare").training.words
    assert words is not None
    assert words.texts["map"] == ["a map", "a street map"]


def test_a_text_that_is_too_long_is_named(made, tmp_path, capsys):
    long, fits = " ".join(["map"] * 15), " ".join(["map"] * 14)  # 16 tokens with the two ends
    file = tmp_path / "texts.safetensors"
    texts_step.main(["--recipe", str(made), "--out", str(file), long, fits])
    assert read_texts(file).description.cut == [long]
    assert f"{long!r} is longer than what the tower reads" in capsys.readouterr().err


def test_other_weights_than_the_exported_are_refused(made, kind, tmp_path, capsys):
    path = write_recipe(tmp_path, words_recipe(kind, {**MULTICLASS, "templates": ["{}"]}))
    other = paths.encoder_folder(load_recipe(path))
    text = (other / "encoder.json").read_text(encoding="utf-8")
    weights = manifest_of(made, "policy").encoder.weights_sha256
    assert weights is not None
    (other / "encoder.json").write_text(text.replace(weights, "0" * 64), encoding="utf-8")
    status = run_step("build.texts", lambda: texts_step.main(["--recipe", str(path)]))
    (other / "encoder.json").write_text(text, encoding="utf-8")
    assert status == 1
    assert "export it again" in capsys.readouterr().err


def test_classes_that_the_library_would_not_make_are_refused(made, kind, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(texts_step, "MOST_DIFFERENCE", -1.0)
    path = write_recipe(tmp_path, words_recipe(kind, MULTICLASS | {"templates": ["{}, perhaps"]}) | {"name": "differ"})
    assert run_step("build.texts", lambda: texts_step.main(["--recipe", str(path)])) == 1
    assert "from that of open_clip's zero-shot classifier (limit -1)" in capsys.readouterr().err
    assert not paths.texts_file(load_recipe(path)).exists()


def test_operating_points_take_labelled_pictures(made, kind, tmp_path, capsys):
    head = {**BINARY, "name": "points", "operating_points": ["recall>=0.99"]}
    path = write_recipe(tmp_path, words_recipe(kind, head) | {"name": f"points-{kind}"})
    assert make(path) == 1
    assert "takes labelled pictures" in capsys.readouterr().err


def test_a_tokenizer_that_is_not_here_is_named_with_its_files(tmp_path, capsys):
    config = words_recipe("clip", MULTICLASS)["encoder"]["open_clip_config"]
    config = config | {"text_cfg": config["text_cfg"] | {"hf_tokenizer_name": "nobody/nothing"}}
    recipe = words_recipe("clip", MULTICLASS, model="words-test-hub", open_clip_config=config)
    path = write_recipe(tmp_path, recipe | {"name": "hub"})
    encoder_step.main(["--recipe", str(path)])
    assert run_step("build.texts", lambda: texts_step.main(["--recipe", str(path)])) == 1
    message = capsys.readouterr().err
    assert "tokenizer.json, tokenizer_config.json and special_tokens_map.json of nobody/nothing" in message
    assert "weights: weights/<folder>" in message


WORDS = ["<pad>", "</s>", "<unk>", "a", "of", "map", "street", "screenshot", "chat", "receipt", "photo", "the", "."]


def _write_siglip(folder: Path, name: str) -> dict[str, Any]:
    """A folder as the hub has a SigLIP of open_clip, with a tokenizer of its own; the recipe that names it."""
    tokenizers = pytest.importorskip("tokenizers", reason="tokenizers of the hub take transformers: make transformers")
    pytest.importorskip("transformers", reason="tokenizers of the hub take transformers: make transformers")
    folder.mkdir()
    config = CONFIGS["sigmoid"]
    text = config["text_cfg"] | {"vocab_size": len(WORDS), "hf_tokenizer_name": "nobody/siglip"}
    text |= {"tokenizer_kwargs": {"clean": "canonicalize"}}
    config = config | {"text_cfg": text}
    drawn = load_clip(Encoder(model="words-test-siglip", open_clip_config=config, seed=3))[0]
    save_file(drawn.state_dict(), folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    ends = [("</s>", WORDS.index("</s>"))]
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(single="$A </s>", special_tokens=ends)
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **names}))
    recipe = words_recipe("sigmoid", MULTICLASS)
    return recipe | {"name": name, "encoder": {"model": "words-test-siglip", "weights": str(folder)}}


def test_a_tokenizer_of_a_local_folder_reads_the_texts(tmp_path, capsys):
    path = write_recipe(tmp_path, _write_siglip(tmp_path / "siglip", "siglip"))
    encoder_step.main(["--recipe", str(path)])
    assert make(path) == 0
    assert "3 classes from words" in capsys.readouterr().err
    tower = load_text_tower(load_recipe(path).encoder)
    tokens = tower.tokenizer(["a map"])[0].tolist()
    assert tokens[:3] == [WORDS.index("a"), WORDS.index("map"), WORDS.index("</s>")]
    assert tower.embed(["a map", " ".join(["map"] * 40)])[1] == [" ".join(["map"] * 40)]
    same, other = tower.embed(["a Map.", "a receipt"])[0] @ tower.embed(["a map"])[0][0]
    assert same == pytest.approx(1, abs=1e-6)  # capitals and points are taken away, as SigLIP's are
    assert other < 0.999


def test_a_local_folder_without_a_tokenizer_is_named_with_its_files(tmp_path, capsys):
    path = write_recipe(tmp_path, _write_siglip(tmp_path / "siglip", "siglip-bare"))
    encoder_step.main(["--recipe", str(path)])
    (tmp_path / "siglip" / "tokenizer.json").unlink()
    assert run_step("build.texts", lambda: texts_step.main(["--recipe", str(path)])) == 1
    message = capsys.readouterr().err
    assert "tokenizer.json, tokenizer_config.json and special_tokens_map.json of nobody/siglip" in message


def test_a_vocabulary_that_the_tower_does_not_know_is_refused(encoder, demo, tmp_path, capsys):
    head = {"name": "words", "class_names": ["a", "b"], "prompts": {"a": "a square", "b": "a circle"}}
    recipe = demo.model_dump(mode="json") | {"name": "small", "heads": [head]}
    path = write_recipe(tmp_path, recipe)
    assert run_step("build.texts", lambda: texts_step.main(["--recipe", str(path)])) == 1
    assert "knows 64 words" in capsys.readouterr().err


def test_texts_typed_now_score_a_folder(made, kind, tmp_path, capsys):
    (tmp_path / "below").mkdir()
    for number in range(3):
        (tmp_path / "below" / f"{number}.jpg").write_bytes(jpeg(seed=number))
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    arguments = ["--recipe", str(made), "--images", str(tmp_path), "--format", "csv", "a map", "a, chat"]
    prompts.main(arguments)
    shown = capsys.readouterr()
    header, *rows = shown.out.splitlines()
    assert header == 'path,a map,"a, chat"'
    assert [row.split(",")[0] for row in rows] == [f"below/{number}.jpg" for number in range(3)]
    assert "broken.jpg" in shown.err
    totals = [sum(map(float, row.split(",")[1:])) for row in rows]
    assert kind != "clip" or totals == pytest.approx([1] * 3, abs=1e-5)
    if kind == "clip":
        prompts.main(arguments)  # from the embeddings that were kept
        assert capsys.readouterr().out == shown.out
    assert run_step("training.prompts", lambda: prompts.main(["--recipe", str(made), "a map", " "])) == 1
    assert "a text is empty" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["clip"], scope="module", indirect=True)
def test_texts_alone_are_compared_with_each_other(made, capsys):
    prompts.main(["--recipe", str(made), "a map", "a chat"])
    assert capsys.readouterr().out.count("1.000") == 2
