"""The whole ensemble on the embedded server: preprocessing, encoder in fp16 and a head with random weights."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import psutil
from safetensors.numpy import save_file

from benchmarks.gpu.plan import Rows, Settings, recipe_of_model
from benchmarks.growth.load import saturated
from build.head import build_head
from build.repository import install
from common.head_figures import head_metrics
from common.head_training import HeadTraining
from common.manifest import (
    EncoderManifest,
    HeadManifest,
    Linear,
    Threshold,
    read_encoder,
    sha256_of,
    write_manifest,
)
from common.paths import encoder_folder, head_folder
from common.photos import sample_photos
from recipes.schema import Recipe
from serving.embedded import EmbeddedServer, ServerSettings


def served(model: str, settings: Settings, rows: Rows) -> None:
    """Images/s with one picture a request, and whether the encoder ran on the GPU."""
    recipe = recipe_of_model(model)
    write_random_head(recipe, read_encoder(encoder_folder(recipe)))
    pictures = [path.read_bytes() for path in sample_photos()]
    with tempfile.TemporaryDirectory(prefix="clipsieve-gpu-") as folder:
        repository = Path(folder) / "model_repository"
        install(recipe, repository, "onnx")
        with EmbeddedServer(repository, ServerSettings.on_free_ports(Path(folder) / "log")) as server:
            for concurrency in sorted({1, settings.concurrency // 4, settings.concurrency}):
                saturated(server.grpc_url, ["any"], pictures, concurrency, settings.seconds / 2)  # warms up
                load = saturated(server.grpc_url, ["any"], pictures, concurrency, settings.seconds)
                rows.add(
                    model=model,
                    encoder_on="CUDA" if uses_cuda(server.pid) else "CPU",
                    concurrency=concurrency,
                    images_per_s=load.images_per_s,
                )


def write_random_head(recipe: Recipe, encoder: EncoderManifest) -> None:
    """The recipe's head, one linear layer, built for Triton."""
    head = recipe.heads[0]
    folder = head_folder(recipe, head)
    folder.mkdir(parents=True, exist_ok=True)
    weight = np.random.default_rng(0).standard_normal((1, encoder.embed_dim)).astype(np.float32)
    save_file({"weight": weight, "bias": np.zeros(1, np.float32)}, folder / "head.safetensors")
    manifest = HeadManifest(
        name=head.name,
        recipe={},
        made_by=recipe.name,
        encoder=encoder.fingerprint(),
        task=head.task,
        labels=head.labels,
        class_names=head.class_names,
        layers=[Linear(weight="weight", bias="bias")],
        activation="sigmoid",
        calibrated=False,
        thresholds=[[Threshold(value=0.5, operating_point="fixed")]],
        weights_sha256=sha256_of(folder / "head.safetensors"),
        metrics=head_metrics({}),
        training=HeadTraining(),
        versions={},
    )
    write_manifest(manifest, folder / "head.json")
    build_head(folder, recipe.build.opset)


def uses_cuda(server_pid: int) -> bool:
    """True if a process of the server has loaded onnxruntime's CUDA provider."""
    for process in psutil.Process(server_pid).children(recursive=True):
        try:
            if any("onnxruntime_providers_cuda" in mapped.path for mapped in process.memory_maps()):
                return True
        except psutil.Error:  # it has ended
            continue
    return False
