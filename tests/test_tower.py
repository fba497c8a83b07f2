"""The source of a tower's weights, the choice of its layers, and the catalogue of models."""

from __future__ import annotations

import functools
import hashlib
import http.server
import io
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import huggingface_hub
import open_clip
import pytest
import torch
from open_clip.transform import Compose, PreprocessCfg, image_transform_v2, merge_preprocess_dict
from PIL import Image
from safetensors.torch import save_file

from build.encoder import build_encoder, main, up_to_date
from build.layers import HiddenLayers
from build.open_clip_tower import preprocessing_of_tag
from build.parity import embed_through_hooks
from build.reachable import missing_weights, open_clip_tags
from build.tower import load_tower
from build.weights import downloaded_file, is_file_of_tag
from common.manifest import Preprocessing, sha256_of
from common.photos import verification_pictures
from common.pixels import served_transform
from recipes.encoder_section import Encoder
from recipes.schema import Recipe, RecipeError, parse_recipe
from recipes.serving_section import Serving

ZEROS = "0" * 64
FIELDS = ("resize_mode", "interpolation", "fill_color", "mean", "std")


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format, *args):
        pass


@pytest.fixture(scope="module")
def site(tmp_path_factory, demo) -> Iterator[tuple[str, Path]]:
    """A web server of a folder with the checkpoint `clip.safetensors` of a demo tower: its address, the folder."""
    folder = tmp_path_factory.mktemp("site")
    torch.manual_seed(7)
    save_file(state_of(demo), folder / "clip.safetensors")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", folder
    server.shutdown()
    thread.join()
    server.server_close()


def state_of(demo: Recipe) -> dict[str, torch.Tensor]:
    config = demo.encoder.open_clip_config
    assert config is not None
    return {name: value.contiguous() for name, value in open_clip.CLIP(**config).state_dict().items()}


def changed(encoder: Encoder, **part: Any) -> Encoder:
    return Encoder.model_validate(encoder.model_dump() | part)


def test_weights_at_an_address_are_downloaded_once_and_built(site, demo, tmp_path):
    url, folder = site
    sha256 = sha256_of(folder / "clip.safetensors")
    encoder = changed(demo.encoder, weights=f"{url}/clip.safetensors?download=true", weights_sha256=sha256)
    local = changed(demo.encoder, weights=folder / "clip.safetensors")
    assert encoder.id == local.id == "clipsieve-demo-vit-file-clip.safetensors"
    assert load_tower(encoder).weights_sha256 == load_tower(local).weights_sha256
    recipe = demo.model_copy(update={"encoder": encoder})
    manifest = build_encoder(recipe, tmp_path)
    assert manifest.source_sha256 == [sha256]
    downloaded_file(encoder).unlink()
    assert up_to_date(recipe, tmp_path) == manifest  # nothing is fetched to find that out
    assert not downloaded_file(encoder).exists()


def test_an_address_that_sends_another_file_is_refused(site, demo):
    url, folder = site
    encoder = changed(demo.encoder, weights=f"{url}/clip.safetensors", weights_sha256=ZEROS)
    sha256 = hashlib.sha256((folder / "clip.safetensors").read_bytes()).hexdigest()
    with pytest.raises(RecipeError, match=f"sha256 is {sha256}, expected {ZEROS}"):
        load_tower(encoder)
    assert not downloaded_file(encoder).exists()


def test_an_unreachable_address_says_what_to_fetch_and_where_to_put_it(demo):
    encoder = changed(demo.encoder, weights="http://127.0.0.1:9/clip.pt", weights_sha256=ZEROS)
    with pytest.raises(
        RecipeError, match=r"127.0.0.1:9/clip\.pt: could not be downloaded .*\n.*\n.*\n    weights: weig"
    ):
        load_tower(encoder)


def test_a_local_file_of_another_sum_is_refused(site, demo):
    _, folder = site
    encoder = changed(demo.encoder, weights=folder / "clip.safetensors", weights_sha256=ZEROS)
    with pytest.raises(RecipeError, match=rf"clip\.safetensors: sha256 is .*, expected {ZEROS}.*give the file's own"):
        load_tower(encoder)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_truncated_file_is_refused(demo, tmp_path, suffix):
    path = tmp_path / f"clip{suffix}"
    save_file(state_of(demo), path) if suffix == ".safetensors" else torch.save(state_of(demo), path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(RecipeError, match=rf"clip\{suffix}: not a checkpoint of clipsieve-demo-vit"):
        load_tower(changed(demo.encoder, weights=path))


def write_folder(folder: Path, demo: Recipe, config: object, weights: str | None) -> Encoder:
    """A folder as open_clip publishes it on the Hugging Face hub, and the encoder that names it."""
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    if weights is not None:
        state = state_of(demo)
        save_file(state, folder / weights) if weights.endswith(".safetensors") else torch.save(state, folder / weights)
    return Encoder(model="anything", weights=folder)


@pytest.mark.parametrize("weights", ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"])
def test_a_folder_of_the_hub_brings_its_config_and_preprocessing(demo, tmp_path, weights):
    preprocessing = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bilinear", "resize_mode": "squash"}
    config = {"model_cfg": demo.encoder.open_clip_config, "preprocess_cfg": preprocessing}
    encoder = write_folder(tmp_path / "hub", demo, config, weights)
    tower = load_tower(encoder)
    assert tower.preprocessing.id == "exact-squash-bilinear-112"
    assert tower.preprocessing.mean == (0.5, 0.5, 0.5)
    same = load_tower(changed(demo.encoder, weights=tmp_path / "hub" / weights))
    assert tower.weights_sha256 == same.weights_sha256
    assert encoder.id == "anything-file-hub"


@pytest.mark.parametrize(
    ("config", "weights", "expected"),
    [
        ({"model_cfg": "demo"}, None, "the folder has none of open_clip_model.safetensors"),
        ({"vision": 1}, "open_clip_model.safetensors", "not a model config of open_clip"),
        ("text", "open_clip_model.safetensors", "not a model config of open_clip"),
        ({"model_cfg": "small"}, "open_clip_model.safetensors", "not a checkpoint of anything"),
    ],
)
def test_a_folder_that_is_not_whole_is_refused(demo, tmp_path, config, weights, expected):
    models = {"demo": demo.encoder.open_clip_config, "small": {**(demo.encoder.open_clip_config or {}), "embed_dim": 8}}
    if isinstance(config, dict) and "model_cfg" in config:
        config = {"model_cfg": models[config["model_cfg"]]}
    with pytest.raises(RecipeError, match=expected):
        load_tower(write_folder(tmp_path / "hub", demo, config, weights))


def test_a_folder_without_a_config_is_refused(tmp_path):
    with pytest.raises(RecipeError, match=r"the folder has no open_clip_config\.json"):
        load_tower(Encoder(model="anything", weights=tmp_path))


def test_quick_gelu_weights_in_a_folder_without_it_are_refused(demo, tmp_path):
    config = {"model_cfg": demo.encoder.open_clip_config}
    encoder = write_folder(tmp_path / "hub", demo, config, "open_clip_model.safetensors")
    named = encoder.model_copy(update={"model": "ViT-B-32-quickgelu", "pretrained": "openai"})
    with pytest.raises(RecipeError, match="was trained with quick_gelu=True"):
        load_tower(named)


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        ({"weights": "https://host/clip.pt"}, "weights at an address need weights_sha256"),
        ({"weights_sha256": ZEROS}, "weights_sha256 is of weights, which is not given"),
        ({"weights": "clip.pt", "weights_sha256": "abc"}, "encoder.weights_sha256"),
        ({"layers": []}, "encoder.layers"),
        ({"layers": [-1]}, "encoder.layers.0"),
        ({"layers": [1, 1]}, r"layers must differ, found \[1, 1\]"),
        ({"library": "torchvision"}, "encoder.library"),
        ({"library": "timm", "open_clip_config": {}}, "open_clip_config is for library: open_clip"),
        ({"library": "timm", "model": "vit.a", "pretrained": "b"}, "model names the tag 'a', pretrained 'b'"),
    ],
)
def test_encoder_sections_that_make_no_sense_are_refused(demo, part, expected):
    data = demo.model_dump(mode="json") | {"encoder": {"model": "ViT-B-32"} | part}
    with pytest.raises(RecipeError, match=expected):
        parse_recipe(data)


@pytest.mark.parametrize("layers", [[0, 2, 4], [1], [3, 0]])
def test_hidden_layers_are_what_hooks_see(demo, layers):
    tower = load_tower(changed(demo.encoder, layers=layers))
    assert isinstance(tower.visual, HiddenLayers)
    inputs = torch.randn(2, 3, 112, 112)
    with torch.inference_mode():
        embedding = tower.visual(inputs)
        torch.testing.assert_close(embedding, embed_through_hooks(tower.visual, inputs))
        final = tower.visual.model(inputs)
    assert embedding.shape == (2, sum(192 if layer else 128 for layer in layers))
    if layers[0] == 0:
        torch.testing.assert_close(embedding[:, :128], final)


def test_a_model_with_another_pool_gives_the_mean_of_its_patches(demo):
    config = demo.encoder.open_clip_config
    averaging = config | {"vision_cfg": config["vision_cfg"] | {"pool_type": "avg"}}
    tower = load_tower(changed(demo.encoder, model="averaging", open_clip_config=averaging, layers=[1, 3]))
    assert isinstance(tower.visual, HiddenLayers)
    inputs = torch.randn(2, 3, 112, 112)
    with torch.inference_mode():
        torch.testing.assert_close(tower.visual(inputs), embed_through_hooks(tower.visual, inputs))


def test_the_layers_are_part_of_what_a_head_is_bound_to(demo):
    sums = {
        load_tower(changed(demo.encoder, layers=layers)).weights_sha256 for layers in ([0], [1], [2], [1, 2], [2, 1])
    }
    assert len(sums) == 5


def test_layers_beyond_the_first_block_are_refused(demo):
    with pytest.raises(RecipeError, match=r"layers \[5\]: the model has 4 blocks; the layers are 0 to 4"):
        load_tower(changed(demo.encoder, layers=[5]))


def test_a_network_without_blocks_has_no_hidden_layers():
    with pytest.raises(RecipeError, match="are those of vision transformers, this model is a ModifiedResNet"):
        load_tower(Encoder(model="RN50", layers=[1]))


def test_a_recipe_with_layers_is_built_and_checked(demo, tmp_path):
    recipe = demo.model_copy(update={"encoder": changed(demo.encoder, layers=[0, 2])})
    manifest = build_encoder(recipe, tmp_path)
    assert manifest.id == "clipsieve-demo-vit-random-20-layers-0-2"
    assert manifest.embed_dim == 128 + 192
    assert manifest.parity.cosine_min >= 0.99999


def listed(capsys, pattern: str) -> list[dict[str, str]]:
    assert main(["--list", pattern]) == 0
    header, *lines = (line.split("\t") for line in capsys.readouterr().out.splitlines())
    return [dict(zip(header, line, strict=True)) for line in lines]


def test_the_list_counts_without_weights(capsys):
    (row,) = listed(capsys, "vit-b-32-quickgelu")
    assert (row["library"], row["model"]) == ("open_clip", "ViT-B-32-quickgelu")
    assert (row["embed_dim"], row["image_size"], row["parameters"]) == ("512", "224", "87849216")
    assert float(row["gflop_per_image"]) == pytest.approx(8.8, abs=0.1)  # 4.4 billion multiply-adds
    assert "openai" in row["pretrained"].split(",")


def test_the_list_knows_timms_models(capsys):
    tiny, tower = listed(capsys, "vit_[tx]*_patch16_clip_224") + listed(capsys, "vit_tiny_patch16_224")
    assert {tiny["library"], tower["library"]} == {"timm"}
    assert {tiny["embed_dim"], tower["embed_dim"]} == {"512", "192"}


def test_the_list_without_a_pattern_is_quick_and_complete(capsys):
    assert main(["--list"]) == 0
    output = capsys.readouterr()
    assert len(output.out.splitlines()) > 1000
    assert "give a pattern" in output.err


def test_a_pattern_without_a_match_is_an_error(capsys):
    assert main(["--list", "nope"]) == 1
    assert "no model matches 'nope'; try '*nope*'" in capsys.readouterr().err


# ---- the preprocessing that goes with the weights ----


@pytest.mark.parametrize(
    ("model", "mean", "preprocessing"),
    [
        ("ViT-B-16-SigLIP", 0.5, "exact-squash-bicubic-224"),
        ("ViT-B-16-SigLIP2-256", 0.5, "exact-squash-bicubic-256"),
        ("MobileCLIP2-S0", 0.0, "exact-shortest-bilinear-256"),
        ("ViT-H-14-CLIPA", 0.485, "exact-squash-bilinear-224"),
        ("ViT-B-32-quickgelu", 0.48145466, "exact-shortest-bicubic-224"),
    ],
)
def test_preprocessing_is_what_the_tags_weights_were_trained_with(model, mean, preprocessing):
    """open_clip keeps it with the tag; a file, or random weights, of the model have it all the same."""
    tag = open_clip.list_pretrained_tags_by_model(model)[0]
    expected = merge_preprocess_dict(PreprocessCfg(), open_clip.get_pretrained_cfg(model, tag))
    for part in ({}, {"pretrained": tag, "weights": "a file"}):
        of_tag = preprocessing_of_tag(Encoder.model_validate({"model": model} | part))
        assert of_tag == {key: value for key, value in expected.items() if key != "size"}
    assert of_tag["mean"][0] == mean
    assert preprocessing.split("-")[1:3] == [of_tag["resize_mode"], of_tag["interpolation"]]


def test_a_file_of_a_model_whose_tags_differ_needs_the_tag():
    with pytest.raises(RecipeError, match=r"ViT-L-14 were trained with different preprocessing .*encoder.pretrained"):
        preprocessing_of_tag(Encoder.model_validate({"model": "ViT-L-14", "weights": "l14.pt"}))
    assert preprocessing_of_tag(Encoder.model_validate({"model": "ViT-L-14"})) == {}  # random weights: open_clip's


def test_a_file_is_preprocessed_as_its_tag_says_and_compared_with_it(tmp_path, capsys, monkeypatch):
    """A small tower whose mean and std are not OpenAI's; its tag gets a sum, which it has not got."""
    model = "MobileCLIP-S1"
    tags = open_clip.pretrained._PRETRAINED[model]
    monkeypatch.setitem(tags, "datacompdr", tags["datacompdr"] | {"url": "https://example.org/s1-00000000.pt"})
    whole = open_clip.create_model(model)
    torch.save(whole.state_dict(), tmp_path / "weights.pt")
    encoder = Encoder.model_validate({"model": model, "pretrained": "datacompdr", "weights": tmp_path / "weights.pt"})
    tower = load_tower(encoder)
    assert (tower.preprocessing.mean, tower.preprocessing.std) == ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    assert tower.preprocessing.id == "exact-shortest-bilinear-256"
    assert tower.source.is_file_of_tag is False
    assert "weights.pt is not the file of datacompdr" in capsys.readouterr().err


def test_weights_that_are_nowhere_are_named_without_the_library(demo, tmp_path, monkeypatch):
    """As open_clip's own table has them, which takes ten seconds to import with the library around it."""
    assert open_clip_tags() == open_clip.pretrained._PRETRAINED
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    recipe = demo.model_copy(update={"encoder": Encoder.model_validate(OPENAI)})
    [text] = missing_weights(recipe)
    assert "weights of ViT-B-32-quickgelu (openai) could not be downloaded: HF_HUB_OFFLINE is set" in text
    assert "fetch timm/vit_base_patch32_clip_224.openai on the Hugging Face hub" in text
    snapshot = tmp_path / "models--timm--vit_base_patch32_clip_224.openai" / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs" / "main").write_text("a" * 40)
    (snapshot / "open_clip_model.safetensors").touch()
    assert missing_weights(recipe) == []
    address = {"model": "x", "weights": "http://127.0.0.1:9/x.pt", "weights_sha256": "0" * 64}
    [text] = missing_weights(demo.model_copy(update={"encoder": Encoder.model_validate(address)}))
    assert "127.0.0.1: Connection refused" in text
    assert "weights: weights/x.pt" in text
    assert missing_weights(demo) == []


OPENAI = {"model": "ViT-B-32-quickgelu", "pretrained": "openai"}


def test_weights_beside_a_tag_are_compared_with_its_sum(tmp_path, capsys):
    """As far as it can be told: the same weights in another format have another sum."""
    url = open_clip.get_pretrained_cfg(*OPENAI.values())["url"]
    (tmp_path / "mine.pt").write_bytes(b"weights")
    mine = Encoder.model_validate(OPENAI | {"weights": tmp_path / "mine.pt"})
    assert is_file_of_tag(mine, tmp_path / "mine.pt", url) is False
    warning = capsys.readouterr().err
    assert "encoder vit-b-32-quickgelu-openai: mine.pt is not the file of openai (its sha256 begins " in warning
    assert "that of ViT-B-32.pt 40d365715913" in warning
    assert "leave out encoder.pretrained" in warning
    assert is_file_of_tag(mine, tmp_path / "mine.pt", "https://example.org/b32.pt") is None
    start = hashlib.sha256(b"weights").hexdigest()[:8]
    assert is_file_of_tag(mine, tmp_path / "mine.pt", f"https://example.org/vit-{start}.pt") is True
    assert not capsys.readouterr().err


def test_another_file_by_the_name_of_the_tags_is_refused(tmp_path):
    url = open_clip.get_pretrained_cfg(*OPENAI.values())["url"]
    path = tmp_path / "ViT-B-32.pt"
    path.write_bytes(b"half of it")
    with pytest.raises(RecipeError, match=r"ViT-B-32\.pt: these are not the weights of openai, .* fetch it again"):
        is_file_of_tag(Encoder.model_validate(OPENAI | {"weights": path}), path, url)


# ---- the hub ----


@pytest.fixture
def hub(demo, tmp_path, monkeypatch) -> Path:
    """The cache that huggingface_hub leaves after a download, of a tag of the demo's tower."""
    repository = tmp_path / "hub" / "models--clipsieve--demo"
    for commit, seed in {"a" * 40: 1, "b" * 40: 2}.items():
        snapshot = repository / "snapshots" / commit
        snapshot.mkdir(parents=True)
        torch.manual_seed(seed)
        save_file(state_of(demo), snapshot / "open_clip_model.safetensors")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("b" * 40)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    tags = {"clipsieve-demo-vit": {"shapes": {"hf_hub": "clipsieve/demo/"}}}
    monkeypatch.setattr("open_clip.pretrained._PRETRAINED", tags)
    return repository


def test_the_commit_of_the_hub_is_recorded(hub, demo):
    newest = load_tower(changed(demo.encoder, pretrained="shapes"))
    assert newest.source.hub == "clipsieve/demo"
    assert newest.source.revision == "b" * 40
    assert newest.source.file == "open_clip_model.safetensors"


def test_a_pinned_commit_is_taken(hub, demo):
    pinned = load_tower(changed(demo.encoder, pretrained="shapes", revision="a" * 40))
    assert pinned.source.revision == "a" * 40
    assert pinned.weights_sha256 != load_tower(changed(demo.encoder, pretrained="shapes")).weights_sha256


def test_a_commit_that_is_not_there_says_what_to_fetch(hub, demo):
    with pytest.raises(RecipeError, match=r"weights of clipsieve-demo-vit .shapes. could not be downloaded"):
        load_tower(changed(demo.encoder, pretrained="shapes", revision="c" * 40))


def test_a_revision_of_weights_outside_the_hub_is_refused(demo, monkeypatch):
    tags = {"clipsieve-demo-vit": {"shapes": {"url": "https://example.org/demo.pt"}}}
    monkeypatch.setattr("open_clip.pretrained._PRETRAINED", tags)
    with pytest.raises(RecipeError, match="shapes of clipsieve-demo-vit is not on the Hugging Face hub"):
        load_tower(changed(demo.encoder, pretrained="shapes", revision="c" * 40))


@pytest.mark.parametrize(
    ("model", "tag"), [("ViT-B-16-SigLIP", "webli"), ("ViT-B-16-SigLIP2-256", "webli"), ("MobileCLIP2-S0", "dfndr2b")]
)
def test_served_pixels_are_open_clips_own_for_the_tag(model, tag):
    """SigLIP squashes where OpenAI's models crop; both on every picture of the verification."""
    preprocessing = preprocessing_of_tag(Encoder(model=model, pretrained=tag))
    config = open_clip.get_model_config(model)
    assert config is not None
    cfg = merge_preprocess_dict(PreprocessCfg(), open_clip.get_pretrained_cfg(model, tag))
    cfg["size"] = size = config["vision_cfg"]["image_size"]
    steps = cast(Compose, image_transform_v2(PreprocessCfg(**cfg), is_train=False))
    served = served_transform(
        [Preprocessing(image_size=size, **{key: preprocessing[key] for key in FIELDS})], Serving()
    )
    mean, std = (torch.tensor(cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    for picture in verification_pictures():
        with Image.open(io.BytesIO(picture.data)) as image:
            expected = cast(torch.Tensor, steps(image)) * std + mean
        pixels = torch.from_numpy(served(picture.data).copy()).permute(2, 0, 1)
        assert torch.equal((expected * 255).round().to(torch.uint8), pixels), picture.name
