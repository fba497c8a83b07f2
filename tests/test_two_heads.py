"""Two heads on one encoder, served: one encoding for both, and none that was not requested."""

from __future__ import annotations

import csv
import io
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc
from artefacts import write_head
from pictures import encoded, jpeg, noise
from PIL import Image, ImageOps
from waiting import until

from build.head import build_head
from build.repository import install
from clipsieve import Client, UnknownHead
from recipes.schema import parse_recipe
from serving.embedded import EmbeddedServer, ServerSettings


@pytest.fixture(scope="module")
def two_heads(demo, encoder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    data = demo.model_dump(mode="json", exclude_defaults=True) | {"name": "two"}
    if find_spec("pillow_heif") is not None:
        data["serving"] = {"formats": ["JPEG", "PNG", "HEIC", "TIFF"]}
    data["heads"] = [
        {"name": "nsfw", "class_names": ["safe", "nsfw"], "source": str(folder / "nsfw")},
        {"name": "taste", "task": "ranking", "class_names": ["taste"], "source": str(folder / "taste")},
    ]
    recipe = parse_recipe(data)
    for seed, head in enumerate(recipe.heads):
        assert head.source is not None
        thresholds = tuple(head.fixed_thresholds)
        options = {"name": head.name, "task": head.task, "seed": seed, "thresholds": thresholds}
        options["deviation"] = head.name == "taste"
        write_head(head.source, encoder, head.class_names, **options)
        build_head(head.source, recipe.build.opset)
    install(recipe, folder / "models")
    with EmbeddedServer(folder / "models", ServerSettings.on_free_ports(folder / "log", exit_timeout_s=4)) as server:
        yield server


MODELS = ("preprocess", "clip_encoder", "nsfw_head", "taste_head")


def executions(server) -> dict[str, int]:
    """Images each model has run. A model counts one a moment after its answer left, so tests wait for their counts."""
    with tritonclient.grpc.InferenceServerClient(server.grpc_url) as client:
        answer = client.get_inference_statistics()
        assert answer is not None
        return {model.name: model.inference_count for model in answer.model_stats if model.name in MODELS}


def settled(server) -> dict[str, int]:
    """The counts, once those of what was answered before have come."""
    counts = [executions(server)]

    def unchanged() -> bool:
        counts.append(executions(server))
        return len(counts) > 20 and all(each == counts[-1] for each in counts[-20:])

    until(unchanged, "counts that stay", pause_s=0.05)
    return counts[-1]


def infer(server, outputs: list[str]) -> dict[str, np.ndarray]:
    tensor = tritonclient.grpc.InferInput("image", [1, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[jpeg()]], dtype=object))
    requested = [tritonclient.grpc.InferRequestedOutput(name) for name in outputs]
    with tritonclient.grpc.InferenceServerClient(server.grpc_url) as client:
        result = client.infer("image_score", [tensor], outputs=requested)
        assert result is not None
        return {name: np.asarray(result.as_numpy(name)) for name in outputs}


def test_both_heads_are_scored_in_one_encoding(two_heads):
    before = settled(two_heads)
    scores = infer(two_heads, ["nsfw", "taste"])
    until(lambda: executions(two_heads) == {name: count + 1 for name, count in before.items()}, "one run of each model")
    assert scores["nsfw"] != scores["taste"]


def test_a_head_nobody_asked_for_is_not_run(two_heads):
    before = settled(two_heads)
    infer(two_heads, ["nsfw", "nsfw_revision"])
    expected = {name: count + (name != "taste_head") for name, count in before.items()}
    until(lambda: executions(two_heads) == expected, f"{expected}")


def test_clients_name_the_heads_they_want_or_have_all(two_heads):
    with Client(two_heads.grpc_url) as client:
        assert [head.name for head in client.heads()] == ["nsfw", "taste"]
        (one,) = client.score([jpeg()], heads="nsfw")
        assert one.model_version.startswith("nsfw-")
        (both,) = client.score([jpeg()])
        assert list(both.heads) == ["nsfw", "taste"]
        assert both.heads["nsfw"].scores == pytest.approx(one.scores, abs=1e-6)
        with pytest.raises(UnknownHead, match="no head 'clip'; this server has: nsfw, taste"):
            client.score([jpeg()], heads="clip")


def test_a_head_gives_the_deviation_of_its_score_too(two_heads, tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(jpeg())
    with Client(two_heads.grpc_url) as client:
        nsfw, taste = client.heads()
        assert (nsfw.gives_deviation, taste.gives_deviation, taste.task) == (False, True, "ranking")
        (both,) = client.score([path])
        deviation = both.heads["taste"].deviation
        assert deviation is not None
        assert deviation > 0
        assert both.heads["nsfw"].deviation is None
        (embedding,) = client.embed([path])
        stored = client.score_embeddings("taste", embedding.vector[None])
        assert stored.deviations == pytest.approx([deviation], rel=1e-3)
        assert client.score_embeddings("nsfw", embedding.vector[None]).deviations is None
    served = infer(two_heads, ["taste_deviation"])["taste_deviation"]
    assert served.shape == (1, 1)
    assert served.item() == pytest.approx(deviation, rel=1e-5)


def test_a_ranking_without_thresholds_decides_nothing(two_heads):
    assert infer(two_heads, ["taste_decision"])["taste_decision"].tolist() == [[0]]


# ---- formats that this recipe takes, and the default one does not ----


@pytest.fixture(scope="module")
def phone_photos(tmp_path_factory) -> Path:
    """A folder as phones and scanners fill it, each picture with a PNG of what its decoder gives; and a text."""
    pillow_heif = pytest.importorskip("pillow_heif", reason="pillow-heif is not installed: make heic")
    pillow_heif.register_heif_opener()
    folder, reference = tmp_path_factory.mktemp("phone"), tmp_path_factory.mktemp("reference")
    exif = Image.Exif()
    exif[0x0112] = 6
    pictures = {
        "a.HEIC": encoded(noise(400, 300), "HEIF", quality=80, exif=exif.tobytes()),
        "b.heif": encoded(noise(600, 500, seed=1), "HEIF", quality=80, tile_size=256),
        "c.tif": encoded(noise(400, 300, seed=2), "TIFF", compression="tiff_lzw", exif=exif),
        "d.TIFF": encoded(noise(400, 300, "L", seed=3), "TIFF"),
    }
    for name, data in pictures.items():
        (folder / name).write_bytes(data)
        with Image.open(io.BytesIO(data)) as image:
            ImageOps.exif_transpose(image).save(reference / f"{name}.png")
    (folder / "notes.txt").write_text("no picture")
    return folder


def test_a_folder_of_heic_and_tiff_is_scored_as_their_decoders_pixels(two_heads, phone_photos):
    run = clipsieve("score", phone_photos, "--url", two_heads.grpc_url)
    assert run.returncode == 0, run.stderr
    assert "passed over: 1 .txt" in run.stderr
    names = [Path(row["image_path"]).name for row in csv.DictReader(io.StringIO(run.stdout))]
    assert names == ["a.HEIC", "b.heif", "c.tif", "d.TIFF"]
    with Client(two_heads.grpc_url) as client:
        assert client.formats() == ("JPEG", "PNG", "HEIC", "TIFF")
        paths = sorted(phone_photos.glob("*.[hHtT][eEiI]*"))
        expected = sorted(phone_photos.parent.glob("reference0/*.png"))
        for score, reference in zip(client.score(paths), client.score(expected), strict=True):
            for name, head in reference.heads.items():  # batches may be of other sizes
                np.testing.assert_allclose(score.heads[name].scores, head.scores, rtol=1e-4, atol=1e-6)


def test_a_damaged_heic_is_a_row(two_heads, phone_photos, tmp_path):
    (tmp_path / "cut.heic").write_bytes((phone_photos / "a.HEIC").read_bytes()[:2000])
    run = clipsieve("score", tmp_path, "--url", two_heads.grpc_url)
    assert run.returncode == 3
    assert "DECODE_FAILED: truncated: 2000 bytes" in run.stdout


def test_a_folder_of_heic_alone_is_passed_over_where_it_is_not_taken(server, phone_photos, tmp_path):
    (tmp_path / "a.heic").write_bytes((phone_photos / "a.HEIC").read_bytes())
    run = clipsieve("score", tmp_path, "--url", server.grpc_url)
    assert run.returncode == 2
    assert "nothing to do: no image files; see --pattern (passed over: 1 .heic; --pattern takes them)" in run.stderr
    named = clipsieve("score", tmp_path / "a.heic", "--url", server.grpc_url)
    assert named.returncode == 3
    assert "a HEIC picture; convert it to JPEG or PNG, or add HEIC to serving.formats" in named.stdout


def clipsieve(*arguments: object) -> subprocess.CompletedProcess:
    command = [str(Path(sys.executable).parent / "clipsieve"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
