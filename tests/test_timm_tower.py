"""timm models as encoders: their own preprocessing bit for bit, their embedding, and clear refusals."""

from __future__ import annotations

import io
from typing import Any, cast

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.data.transforms_factory import create_transform

from build.encoder import build_encoder, up_to_date
from build.layers import HiddenLayers
from build.parity import embed_through_hooks
from build.timm_tower import is_projection, timm_preprocessing
from build.tower import load_tower
from common.pixels import pixel_parameters, served_transform
from recipes.encoder_section import Encoder
from recipes.schema import RecipeError, parse_recipe
from recipes.serving_section import Serving

CLIP = "vit_xsmall_patch16_clip_224"  # the smallest CLIP tower of timm, here with random weights
TINY = "vit_tiny_patch16_224"


def encoder_of(model: str, **part: Any) -> Encoder:
    return Encoder.model_validate({"library": "timm", "model": model} | part)


def picture(width: int, height: int) -> Image.Image:
    values = np.random.default_rng(width).integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    return Image.fromarray(values).resize((width, height), Image.Resampling.BICUBIC)


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("size", [(640, 427), (427, 640), (224, 224), (333, 500), (100, 90), (251, 250)])
@pytest.mark.parametrize("crop_mode", ["center", "squash"])
@pytest.mark.parametrize("crop_pct", [1.0, 0.95, 0.9, 0.875])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_served_pixels_are_timms_own(size, crop_mode, crop_pct, interpolation):
    config = {"input_size": (3, 224, 224), "mean": (0.5,) * 3, "std": (0.5,) * 3}
    config |= {"crop_mode": crop_mode, "crop_pct": crop_pct, "interpolation": interpolation}
    image = picture(*size)
    expected = image
    steps: Any = create_transform(**cast(Any, config), is_training=False)
    for step in steps.transforms[:2]:
        expected = step(expected)
    served = served_transform([timm_preprocessing(config)], Serving())(png(image))
    np.testing.assert_array_equal(served, np.asarray(expected))


def test_a_resize_size_is_part_of_the_preprocessings_id():
    cropped = load_tower(encoder_of(TINY)).preprocessing
    assert (cropped.resize_size, cropped.id) == (248, "exact-shortest-bicubic-224-resize248")
    whole = cropped.model_copy(update={"resize_size": None})
    assert whole.id == "exact-shortest-bicubic-224"
    assert cropped.model_copy(update={"resize_size": 224}).id == whole.id


def test_a_resize_size_is_stamped_only_where_it_differs():
    cropped = load_tower(encoder_of(TINY)).preprocessing
    assert pixel_parameters([cropped], Serving())["resize_size"] == "248"
    assert "resize_size" not in pixel_parameters([cropped.model_copy(update={"resize_size": None})], Serving())


@pytest.mark.parametrize("change", [{"resize_size": 223}, {"resize_mode": "longest"}])
def test_a_resize_size_that_makes_no_sense_is_refused(change):
    cropped = load_tower(encoder_of(TINY)).preprocessing
    with pytest.raises(ValueError, match="resize_size must be at least image_size 224"):
        served_transform([cropped.model_copy(update=change)], Serving())


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"input_size": (3, 224, 192)}, "only square RGB inputs"),
        ({"input_size": (1, 224, 224)}, "only square RGB inputs"),
        ({"crop_mode": "border"}, "timm crop_mode 'border': only center, squash"),
        ({"interpolation": "nearest"}, "timm interpolation 'nearest'"),
    ],
)
def test_a_preprocessing_that_is_not_served_is_refused(change, expected):
    config = {"input_size": (3, 224, 224), "mean": (0.5,) * 3, "std": (0.5,) * 3, "crop_pct": 1.0}
    config |= {"crop_mode": "center", "interpolation": "bicubic"} | change
    with pytest.raises(RecipeError, match=expected):
        timm_preprocessing(config)


def test_a_clip_tower_keeps_its_projection_and_a_classifier_goes():
    inputs = torch.zeros(1, 3, 224, 224)
    with torch.inference_mode():
        assert load_tower(encoder_of(CLIP)).visual(inputs).shape == (1, 512)
        assert load_tower(encoder_of(TINY)).visual(inputs).shape == (1, 192)


def test_only_clip_towers_have_as_many_classes_as_an_embedding_has_dims():
    towers = ("clip", "_mci", "vit_pe_core", "tinyclip")
    for name in timm.list_pretrained():
        config = cast(Any, timm.models.get_pretrained_cfg(name))
        if is_projection({"num_classes": config.num_classes}):
            assert any(part in name for part in towers), name


def test_a_tag_may_be_in_the_name_or_a_key_of_its_own():
    in_name = encoder_of("vit_large_patch14_clip_quickgelu_224.openai")
    assert in_name == encoder_of("vit_large_patch14_clip_quickgelu_224", pretrained="openai")
    assert in_name.id == "timm-vit-large-patch14-clip-quickgelu-224-openai"


def test_an_openai_checkpoint_gives_openai_embeddings(tmp_path):
    """timm's L/14 with QuickGELU would take 1 GB; its B/32 sibling here, from open_clip's random weights."""
    open_clip_encoder = Encoder(model="ViT-B-32-quickgelu", seed=3)
    ours = load_tower(open_clip_encoder)
    state = {f"visual.{name}": value.contiguous() for name, value in ours.visual.state_dict().items()}
    save_file(state, tmp_path / "clip.safetensors")
    theirs = load_tower(encoder_of("vit_base_patch32_clip_quickgelu_224", weights=tmp_path / "clip.safetensors"))
    inputs = torch.randn(1, 3, 224, 224)
    with torch.inference_mode():
        expected, embeddings = ours.visual(inputs), theirs.visual(inputs)
    assert torch.nn.functional.cosine_similarity(expected, embeddings).item() > 0.999999
    assert theirs.weights_sha256 != ours.weights_sha256


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        ({"model": "vit_tiny_patch16_225"}, "unknown to timm; nearest: vit_tiny_patch16_224"),
        ({"model": f"{TINY}.opena1"}, f"'opena1' is no tag of timm's {TINY}; known: augreg_in21k"),
        (
            {"model": "vit_large_patch14_clip_224.openai"},
            "trained with QuickGELU.*Use the model 'vit_large_patch14_clip_quickgelu_224'",
        ),
        ({"model": TINY, "weights": "/nowhere/tiny.pt"}, "no file /nowhere/tiny.pt"),
        ({"model": TINY, "weights": "."}, r"the folder has no config\.json, which an image classifier's has"),
    ],
)
def test_models_that_cannot_be_loaded_say_what_to_do(part, expected):
    with pytest.raises(RecipeError, match=expected):
        load_tower(encoder_of(**part))


def test_weights_that_cannot_be_downloaded_are_named(monkeypatch):
    def unreachable(*arguments, **options):
        raise OSError("network is unreachable")

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", unreachable)
    expected = r"unreachable\n.*fetch timm/vit_tiny_patch16_224\.augreg_in21k_ft_in1k on.*\n.*\n +weights: weights/"
    with pytest.raises(RecipeError, match=expected):
        load_tower(encoder_of(f"{TINY}.augreg_in21k_ft_in1k"))


def test_a_local_file_is_loaded_and_another_models_refused(tmp_path):
    torch.manual_seed(5)
    state = timm.create_model(TINY).state_dict()
    torch.save(state, tmp_path / "tiny.pt")
    tower = load_tower(encoder_of(TINY, weights=tmp_path / "tiny.pt"))
    assert torch.equal(tower.visual.state_dict()["norm.weight"], state["norm.weight"])
    assert torch.equal(tower.visual.state_dict()["cls_token"], state["cls_token"])
    with pytest.raises(RecipeError, match=r"tiny\.pt: not a checkpoint of vit_small_patch16_224"):
        load_tower(encoder_of("vit_small_patch16_224", weights=tmp_path / "tiny.pt"))
    del state["norm.weight"]
    torch.save(state, tmp_path / "partial.pt")
    with pytest.raises(RecipeError, match=r"partial\.pt: not a checkpoint of vit_tiny_patch16_224"):
        load_tower(encoder_of(TINY, weights=tmp_path / "partial.pt"))


@pytest.mark.parametrize("model", [TINY, "vit_base_patch16_siglip_224", "eva02_tiny_patch14_224"])
def test_hidden_layers_are_what_hooks_see(model):
    tower = load_tower(encoder_of(model, layers=[2, 0, 5]))
    assert isinstance(tower.visual, HiddenLayers)
    inputs = torch.randn(2, 3, tower.preprocessing.image_size, tower.preprocessing.image_size)
    with torch.inference_mode():
        embedding = tower.visual(inputs)
        torch.testing.assert_close(embedding, embed_through_hooks(tower.visual, inputs))
        width = embedding.shape[1] // 3
        torch.testing.assert_close(embedding[:, width : 2 * width], tower.visual.model(inputs))


@pytest.mark.parametrize(
    ("model", "size", "resize"),
    [("vit_small_patch14_dinov2", 224, None), (TINY, 160, 177), ("resnet10t", 160, 182), ("convnext_atto", 192, 219)],
)
def test_an_image_size_is_the_models_and_the_preprocessings(model, size, resize):
    """A transformer is made for it; a convolutional network takes it as it is."""
    tower = load_tower(encoder_of(model, image_size=size))
    assert (tower.preprocessing.image_size, tower.preprocessing.resize_size) == (size, resize)
    served = served_transform([tower.preprocessing], Serving())(png(picture(300, 200)))
    assert served.shape == (size, size, 3)
    pixels = np.asarray(tower.transform.transforms[1:3][1](tower.transform.transforms[1](picture(300, 200))))
    np.testing.assert_array_equal(served, pixels)
    with torch.inference_mode():
        assert tower.visual(torch.zeros(1, 3, size, size)).shape[0] == 1


def test_positions_of_a_checkpoint_are_interpolated_by_timm(tmp_path):
    torch.manual_seed(5)
    torch.save(timm.create_model(TINY).state_dict(), tmp_path / "tiny.pt")
    small = load_tower(encoder_of(TINY, weights=tmp_path / "tiny.pt", image_size=160))
    assert small.visual.state_dict()["pos_embed"].shape == (1, 101, 192)
    own = load_tower(encoder_of(TINY, weights=tmp_path / "tiny.pt"))
    same = load_tower(encoder_of(TINY, weights=tmp_path / "tiny.pt", image_size=224))
    assert same.weights_sha256 == own.weights_sha256 != small.weights_sha256


@pytest.mark.parametrize(
    ("model", "size", "expected"),
    [
        ("vit_small_patch14_dinov2", 225, "encoder.image_size 225.*patches of 14 pixels.*take 224 or 238"),
        ("swin_tiny_patch4_window7_224", 250, "patches of 4 pixels.*take 248 or 252"),
        (TINY, 8, "cannot run at this size: .*take a multiple of its patch"),
        ("xcit_nano_12_p16_224", 250, "cannot run at this size: AssertionError: .*divide image dimensions"),
        ("maxvit_tiny_tf_224", 200, "encoder.image_size 200: maxvit_tiny_tf_224 cannot run at this size: "),
    ],
)
def test_an_image_size_that_the_model_cannot_see_is_refused(model, size, expected):
    with pytest.raises(RecipeError, match=expected):
        load_tower(encoder_of(model, image_size=size))


def test_an_image_size_is_part_of_the_encoders_name():
    assert encoder_of("vit_small_patch14_dinov2.lvd142m", image_size=224).id == (
        "timm-vit-small-patch14-dinov2-lvd142m-224px"
    )
    assert encoder_of(TINY).id == f"timm-{TINY.replace('_', '-')}-random-0"
    with pytest.raises(ValueError, match="image_size is for library: timm"):
        Encoder(model="ViT-B-32", image_size=256)


def test_a_network_without_blocks_has_no_hidden_layers():
    with pytest.raises(RecipeError, match="are those of vision transformers, this model is a ResNet"):
        load_tower(encoder_of("resnet10t", layers=[0, 1]))


def test_a_timm_recipe_is_built_and_checked(tmp_path):
    recipe = parse_recipe(
        {
            "name": "tiny",
            "description": "a tiny ViT with random weights, three of its layers",
            "encoder": {"library": "timm", "model": TINY, "layers": [0, 2, 5]},
            "heads": [{"name": "any", "class_names": ["a", "b"]}],
        }
    )
    manifest = build_encoder(recipe, tmp_path)
    assert (manifest.id, manifest.embed_dim) == ("timm-vit-tiny-patch16-224-random-0-layers-0-2-5", 3 * 192)
    assert manifest.parity.cosine_min >= 0.99999
    assert manifest.parity.cosine_min >= 0.99999
    assert "timm" in manifest.versions
    assert up_to_date(recipe, tmp_path) == manifest
    other = recipe.model_copy(update={"encoder": recipe.encoder.model_copy(update={"layers": [0, 2, 4]})})
    assert up_to_date(other, tmp_path) is None
    assert load_tower(other.encoder).weights_sha256 != manifest.weights_sha256
