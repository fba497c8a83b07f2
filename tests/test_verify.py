"""The report of the whole chain: its figures are those of the files, and a step below its limit stops the build."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from artefacts import write_head

from build.encoder import VERIFICATION, make_encoder
from build.head import build_head
from build.verify import main, verify
from common import paths
from common.manifest import (
    BatchProfile,
    EncoderManifest,
    EngineManifest,
    ManifestError,
    Parity,
    read_encoder,
    write_manifest,
)
from common.paths import encoder_folder, head_folder
from common.photos import verification_pictures
from recipes.errors import run_step
from recipes.schema import Recipe, load_recipe


@pytest.fixture
def chain(encoder, demo, tmp_path, monkeypatch) -> Recipe:
    """The demo's artefacts in a folder of their own, with a head that has random weights."""
    built = encoder_folder(demo)
    monkeypatch.setattr(paths, "ARTIFACTS", tmp_path)
    monkeypatch.setattr("build.verify.ARTIFACTS", tmp_path)
    folder = encoder_folder(demo)
    folder.mkdir(parents=True)
    for name in ("model.onnx", "encoder.json", VERIFICATION):
        (folder / name).symlink_to(built / name)
    write_head(head_folder(demo, demo.heads[0]), encoder, demo.heads[0].class_names)
    build_head(head_folder(demo, demo.heads[0]), demo.build.opset)
    return demo


def change_embeddings(recipe: Recipe, by: float) -> None:
    """Change the saved embeddings as if the exported file computed something else: noise of `by` on unit vectors."""
    path = encoder_folder(recipe) / VERIFICATION
    with np.load(path) as arrays:
        torch, embeddings = arrays["torch"], arrays["embeddings"]
    path.unlink()
    noise = np.random.default_rng(0).normal(size=embeddings.shape) * by
    np.savez(path, torch=torch, embeddings=(embeddings + noise).astype(np.float32))


def add_plan(recipe: Recipe, encoder: EncoderManifest, *, onnx_sha256: str, sign: float = 1) -> None:
    folder = encoder_folder(recipe) / "engines" / "9.0"
    folder.mkdir(parents=True)
    manifest = EngineManifest(
        encoder=encoder.fingerprint(), onnx_sha256=onnx_sha256, plan_sha256="", tensorrt="10.16.1.11",
        gpu="NVIDIA L4", compute_capability="8.9", workspace_bytes=2**30, precision="fp32", parity=Parity(),
        versions={}, profile=BatchProfile(min_batch_size=1, opt_batch_size=1, max_batch_size=1),
        input=encoder.input, output=encoder.output,
    )  # fmt: skip
    write_manifest(manifest, folder / "engine.json")
    with np.load(encoder_folder(recipe) / VERIFICATION) as arrays:
        np.savez(folder / VERIFICATION, embeddings=sign * arrays["embeddings"])


def test_the_report_is_of_every_picture_and_head(chain, capsys):
    assert run_step("build.verify", lambda: main(["--recipe", "demo"])) == 0
    output = capsys.readouterr()
    report = json.loads(Path(output.out.strip()).read_text())
    (stage,) = report["stages"]
    assert stage["stage"] == "ONNX fp32"
    assert stage["embeddings"]["pictures"] == len(verification_pictures())
    assert stage["embeddings"]["cosine_min"] >= 0.99999
    assert stage["passed"]
    (head,) = stage["heads"]
    assert (head["head"], head["scores"], head["decisions_changed"]) == ("demo", len(verification_pictures()), 0)
    assert "0 of 25" in output.err


def test_a_step_below_its_limit_stops_the_build(chain, capsys):
    change_embeddings(chain, 0.01)
    assert run_step("build.verify", lambda: main(["--recipe", "demo"])) == 1
    assert "ONNX fp32: cosine 0.99" in capsys.readouterr().err
    (comparison,) = verify(chain)
    assert comparison.heads[0].score_max_abs_difference > 1e-4


def test_embeddings_that_are_not_numbers_fail(chain):
    change_embeddings(chain, float("nan"))
    assert not verify(chain)[0].passed


def test_a_changed_decision_is_counted(chain):
    change_embeddings(chain, 5.0)
    assert verify(chain)[0].heads[0].decisions_changed > 0


def test_a_plan_of_the_served_file_is_a_step_and_another_is_not(chain, encoder):
    add_plan(chain, encoder, onnx_sha256="another")
    assert len(verify(chain)) == 1


def test_a_plan_that_computes_something_else_fails(chain, encoder, capsys):
    add_plan(chain, encoder, onnx_sha256=read_encoder(encoder_folder(chain)).onnx_sha256, sign=-1)
    assert [comparison.passed for comparison in verify(chain)] == [True, False]
    assert run_step("build.verify", lambda: main(["--recipe", "demo"])) == 1
    assert "TensorRT 10.16.1.11 NVIDIA L4: cosine -1.0000000 is below" in capsys.readouterr().err


def test_a_limit_made_stricter_is_held_without_building_again(chain):
    build = chain.build.model_copy(update={"minimum_cosine": chain.build.minimum_cosine.model_copy(update={"fp32": 1})})
    assert not verify(chain.model_copy(update={"build": build}))[0].passed


def test_missing_artefacts_name_the_step_that_makes_them(chain):
    (head_folder(chain, chain.heads[0]) / "model.onnx").unlink()
    with pytest.raises(ManifestError, match=r"python -m build\.head"):
        verify(chain)
    (encoder_folder(chain) / VERIFICATION).unlink()
    with pytest.raises(ManifestError, match="not found; make it with: make engines"):
        verify(chain)


def test_a_second_make_finds_everything(encoder, monkeypatch):
    monkeypatch.setattr("build.encoder.build_encoder", None)
    assert make_encoder(load_recipe("demo")) == [encoder]
