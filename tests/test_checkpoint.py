"""Checkpoints that do not fit: the message has the file, what differs, and what to do; small ones, written by torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch
from safetensors.torch import save_file

from build.tower import load_tower
from recipes.encoder_section import Encoder
from recipes.schema import RecipeError, load_recipe

SMALL = "resnet10t"
VIT = "vit_xsmall_patch16_clip_224"

State = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def resnet() -> State:
    return timm.create_model(SMALL).state_dict()


@pytest.fixture(scope="module")
def clip() -> State:
    """Of the demo's open_clip model, both towers."""
    return open_clip.CLIP(**(load_recipe("demo").encoder.open_clip_config or {})).state_dict()


def timm_encoder(path: Path, model: str = SMALL) -> Encoder:
    return Encoder.model_validate({"library": "timm", "model": model, "weights": path})


def demo_encoder(path: Path) -> Encoder:
    return load_recipe("demo").encoder.model_copy(update={"weights": path})


def message_of(encoder: Encoder) -> str:
    with pytest.raises(RecipeError) as refused:
        load_tower(encoder)
    assert str(encoder.weights) in str(refused.value)
    return str(refused.value)


def prefixed(state: State, prefix: str) -> State:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def saved(content: Any, tmp_path: Path) -> Path:
    torch.save(content, tmp_path / "wrong.pt")
    return tmp_path / "wrong.pt"


@pytest.mark.parametrize("level", ["", "state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_what_timm_takes_is_loaded(resnet, tmp_path, level, prefix):
    content = prefixed(resnet, prefix)
    tower = load_tower(timm_encoder(saved({level: content} if level else content, tmp_path)))
    assert torch.equal(tower.visual.state_dict()["layer1.0.conv1.weight"], resnet["layer1.0.conv1.weight"])


@pytest.mark.parametrize("level", ["", "state_dict"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_what_open_clip_takes_is_loaded(clip, tmp_path, level, prefix):
    content = prefixed(clip, prefix)
    tower = load_tower(demo_encoder(saved({level: content} if level else content, tmp_path)))
    assert torch.equal(tower.visual.state_dict()["conv1.weight"], clip["visual.conv1.weight"])


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_missing_and_unexpected_keys_and_shapes_are_named(resnet, tmp_path, suffix):
    state = dict(resnet)
    for name in ("layer1.0.conv1.weight", "layer2.0.conv1.weight", "layer3.0.conv1.weight", "layer4.0.conv1.weight"):
        del state[name]
    state |= {"extra.weight": torch.zeros(1), "layer1.0.bn1.weight": torch.zeros(7)}
    path = tmp_path / f"odd{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    lines = message_of(timm_encoder(path)).splitlines()
    assert lines[0] == f"encoder.weights {path}: not a checkpoint of resnet10t:"
    assert lines[1].startswith(f"  missing keys (4 of the model's {len(resnet)}): layer1.0.conv1.weight, ")
    assert lines[1].endswith(", layer3.0.conv1.weight, …")
    assert lines[2] == "  unexpected keys (1): extra.weight"
    assert lines[3] == "  other shapes (1): layer1.0.bn1.weight [7] in the file, [64] in the model"
    assert lines[4].startswith("  is resnet10t the model that the file is of? Look at encoder.model")
    assert len(lines) == 5


@pytest.mark.parametrize(
    ("level", "prefix", "advice"),
    [
        ("", "model.", "fit without the prefix 'model.'; save the file anew with them: "),
        ("", "visual.", "fit without the prefix 'visual.'; save the file anew with them: "),
        ("teacher", "", "fit in its part 'teacher'; save the file anew with them: "),
        ("teacher", "backbone.", "fit in its part 'teacher' and without the prefix 'backbone.'; save the file anew"),
        ("state_dict", "model.", "fit in its part 'state_dict' and without the prefix 'model.'; save"),
    ],
)
def test_a_prefix_or_a_level_is_found_and_the_advice_helps(resnet, tmp_path, level, prefix, advice):
    content = prefixed(resnet, prefix)
    path = saved({level: content, "epoch": 3} if level else content, tmp_path)
    message = message_of(timm_encoder(path))
    assert (
        f" of the model's {len(resnet)}): conv1.0.weight, conv1.1.weight, " in message
    )  # no batch counters among them
    assert f"{len(resnet)} keys {advice}" in message
    command = message.partition("with them: ")[2]
    exec(command, {"torch": torch, "FILE": path, "NEW_FILE": tmp_path / "right.pt"})
    load_tower(timm_encoder(tmp_path / "right.pt"))


@pytest.mark.parametrize("level", ["model", "teacher"])
def test_open_clip_is_told_the_same(clip, tmp_path, level):
    message = message_of(demo_encoder(saved({level: clip, "epoch": 3}, tmp_path)))
    assert f"missing keys ({len(clip)} of the model's {len(clip)}): " in message
    assert f"{len(clip)} keys fit in its part '{level}'" in message


def test_an_image_tower_without_its_text_tower_is_named(clip, tmp_path):
    visual = {name: tensor for name, tensor in clip.items() if name.startswith("visual.")}
    message = message_of(demo_encoder(saved(visual, tmp_path)))
    assert "the file has the image tower alone" in message
    assert "): positional_embedding, text_projection" in message


def test_the_other_librarys_file_is_recognised(clip, tmp_path):
    vit = timm.create_model(VIT).state_dict()
    message = message_of(demo_encoder(saved(vit, tmp_path)))
    assert "its keys are timm's; take library: timm" in message
    message = message_of(timm_encoder(saved(clip, tmp_path), "vit_tiny_patch16_224"))
    assert "its keys are open_clip's; take library: open_clip" in message
    hugging_face = {"vision_model.encoder.layers.0.mlp.fc1.weight": torch.zeros(2)}
    message = message_of(timm_encoder(saved(hugging_face, tmp_path), "vit_tiny_patch16_224"))
    assert "Hugging Face transformers'; take the file of the same weights for timm" in message


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({}, "the file has no tensors, but a dict of "),
        ([1, 2], "the file has no tensors, but a list of 1, 2"),
        ({"epoch": 3, "args": "x"}, "the file has no tensors, but a dict of epoch, args"),
    ],
)
def test_a_file_without_tensors_says_what_it_has(tmp_path, content, words):
    path = saved(content, tmp_path)
    assert words in message_of(timm_encoder(path))
    assert words in message_of(demo_encoder(path))
