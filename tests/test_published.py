"""The table of published heads, and the import of their files."""

from __future__ import annotations

import pickle
import re

import numpy as np
import pytest
import torch
from torch import nn

from recipes.schema import load_recipe
from training.errors import StepError
from training.head import head_from_layers
from training.published import PUBLISHED, published_head
from training.published_torch import expected_shapes, import_torch

TORCH = [head.name for head in PUBLISHED.values() if head.format == "torch"]


def original_module(name):
    """The module as its authors wrote it, with its state dict's names."""
    published = PUBLISHED[name]
    steps, width = [], published.embed_dim
    for step in published.sequence:
        if isinstance(step, int):
            steps.append(nn.Linear(width, step))
            width = step
        else:
            steps.append(nn.ReLU() if step == "relu" else nn.Dropout(float(step)))
    if published.key == "{part}":
        return steps[0]
    module = nn.Module()
    module.layers = nn.Sequential(*steps)
    module.forward = module.layers.forward
    return module


@pytest.mark.parametrize("name", TORCH)
def test_a_state_dict_becomes_the_same_function(name, tmp_path):
    torch.manual_seed(0)
    module = original_module(name).eval()
    torch.save(module.state_dict(), tmp_path / "head.pth")
    layers, tensors = import_torch(tmp_path / "head.pth", PUBLISHED[name])
    x = torch.randn(20, PUBLISHED[name].embed_dim)
    with torch.inference_mode():
        torch.testing.assert_close(head_from_layers(layers, tensors).eval()(x), module(x))


def test_the_h14_head_is_laid_out_as_the_field_knows_it():
    shapes = expected_shapes(PUBLISHED["laion-nsfw-h14"])
    widths = [shape[0] for name, shape in shapes.items() if name.endswith("weight")]
    assert widths == [1024, 2048, 1024, 256, 128, 16, 1]
    assert [int(name.split(".")[1]) for name in shapes if name.endswith("weight")] == [0, 3, 6, 9, 12, 15, 16]


def test_encoders_are_those_of_the_recipes():
    for recipe in ("nsfw-vit-b-32", "nsfw-vit-l-14", "nsfw-vit-h-14"):
        encoder = load_recipe(recipe).encoder.model_copy(update={"decode": "exact"})
        for head in load_recipe(recipe).heads:
            assert head.published is not None
            assert published_head(head.published.name).encoder.id == encoder.id


def test_files_are_named_as_published():
    assert PUBLISHED["laion-aesthetic-v2"].file == "sac+logos+ava1-l14-linearMSE.pth"
    for head in PUBLISHED.values():
        assert head.url.startswith("https://raw.githubusercontent.com/")
        assert head.sha256 is None or re.fullmatch("[0-9a-f]{64}", head.sha256)


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(StepError, match="did you mean 'laion-nsfw-l14'"):
        published_head("laion-nsfw-l-14")


class Code:
    def __reduce__(self):
        return (print, ("this must never run",))


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_pickle_with_code_is_refused_and_not_run(tmp_path, capsys, protocol):
    (tmp_path / "head.pth").write_bytes(pickle.dumps({"weight": Code()}, protocol=protocol))
    with pytest.raises(StepError, match=r"head\.pth: refused, because it holds more than tensors"):
        import_torch(tmp_path / "head.pth", PUBLISHED["laion-aesthetic-v1-b32"])
    torch.save({"weight": Code()}, tmp_path / "head.pth")
    with pytest.raises(StepError, match=r"head\.pth: refused"):
        import_torch(tmp_path / "head.pth", PUBLISHED["laion-aesthetic-v1-b32"])
    assert "never run" not in capsys.readouterr().out


def _state(**changes):
    return {"weight": torch.zeros(1, 512), "bias": torch.zeros(1)} | changes


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (_state(weight=torch.zeros(1, 768)), r"not laion-aesthetic-v1-b32: weight is \(1, 768\), expected \(1, 512\)"),
        (_state(more=torch.zeros(1)), r"more is \(1,\), expected none"),
        ({"weight": torch.zeros(1, 512)}, r"bias is missing, expected \(1,\)"),
        (_state(bias=torch.tensor([np.nan])), "the tensor bias is not finite"),
        ([1, 2], "a list, expected a state dict"),
        ({"weight": 3}, "a dict, expected a state dict"),
    ],
)
def test_what_is_not_the_head_is_refused(tmp_path, content, expected):
    torch.save(content, tmp_path / "head.pth")
    with pytest.raises(StepError, match=expected):
        import_torch(tmp_path / "head.pth", PUBLISHED["laion-aesthetic-v1-b32"])


@pytest.mark.parametrize("content", [b"", b"<html>404</html>", b"PK\x03\x04 broken"])
def test_what_is_no_torch_file_is_refused(tmp_path, content):
    (tmp_path / "head.pth").write_bytes(content)
    with pytest.raises(StepError, match=r"head\.pth: (not a PyTorch file|refused)"):
        import_torch(tmp_path / "head.pth", PUBLISHED["laion-aesthetic-v1-b32"])
