"""What other releases, tools and machines read, byte for byte: manifests, a store's files, stamped configs.

tests/golden/ holds the texts; model_repository/ is the golden of the default recipe (test_repository.py). Who changes
one on purpose writes it again, and says in the commit what that does to artefacts that exist:

    GOLDEN=write .venv/bin/python -m pytest -q tests/test_golden.py
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from artefacts import encoder_manifest
from stores import Row, head_data, write_rows

from build.repository_configs import stamped, to_text
from common.head_figures import Figure, LabelMetrics, Realised
from common.head_training import HeadTraining
from common.manifest import (
    Calibration,
    EncoderManifest,
    EngineManifest,
    HeadManifest,
    Linear,
    Preprocessing,
    Prevalence,
    Relu,
    ScoreDistribution,
    Standardize,
    Tensor,
    Threshold,
    read_encoder,
    read_engine,
    read_head,
    write_manifest,
)
from recipes.schema import load_recipe
from training.store_view import append_corrections

GOLDEN = Path(__file__).parent / "golden"


def assert_golden(text: str, name: str) -> None:
    if os.environ.get("GOLDEN") == "write":
        (GOLDEN / name).write_text(text, encoding="utf-8")
    assert text == (GOLDEN / name).read_text(encoding="utf-8")


def demo_encoder() -> EncoderManifest:
    """As the demo recipe's build would describe it, without the weights."""
    view = Preprocessing(
        image_size=112, resize_mode="shortest", interpolation="bicubic", mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)
    )
    return encoder_manifest(
        id=load_recipe("demo").encoder.id,
        input=Tensor(name="pixels", dtype="UINT8", dims=[112, 112, 3]),
        output=Tensor(name="embedding", dtype="FP32", dims=[128]),
        preprocessing=[view],
    )


def demo_head() -> HeadManifest:
    """A head with every part that a manifest can have."""
    realised = Realised(recall=Figure(value=0.75, interval_95=[0.5, 1.0]))
    return HeadManifest(
        name="demo",
        recipe=load_recipe("demo").head(None).settings(),
        made_by="demo",
        notice="a notice",
        licence="MIT",
        encoder=demo_encoder().fingerprint(),
        labels=["round"],
        class_names=["angular", "round"],
        layers=[Standardize(mean="mean", std="std"), Linear(weight="0.weight", bias="0.bias"), Relu()],
        activation="sigmoid",
        calibrated=True,
        calibration=Calibration(method="platt", scale=[1.5], offset=[-0.25]),
        prevalence=Prevalence(training=0.5, target=0.125),
        thresholds=[[Threshold(value=0.25, operating_point="recall>=0.9", realised=realised)]],
        weights_sha256="c" * 64,
        metrics=LabelMetrics(n=8, auroc=0.875),
        score_distribution=ScoreDistribution(images=8, edges=[0.25, 0.5], ratios=[[0.25, 0.75]]),
        training=HeadTraining(data_sha256="d" * 64, seed=0),
        versions={"python": "3.11.0"},
    )


def test_head_json_and_its_revision(tmp_path: Path) -> None:
    write_manifest(demo_head(), tmp_path / "head.json")
    assert_golden((tmp_path / "head.json").read_text(encoding="utf-8"), "head.json")
    assert f"{read_head(GOLDEN).revision:016x}" == "4a4a0f8a7840a9df"


def figures(*names: str, value: float | None = 0.75) -> dict[str, Any]:
    """Figures with their intervals, as training.metrics writes them."""
    spread = None if value is None else [0.5, 1.0]
    return {key: part for name in names for key, part in ((name, value), (f"{name}_95_interval", spread))}


AT_A_THRESHOLD = ("auroc", "average_precision", "accuracy", "recall", "precision", "fpr")
AT_A_BOUND = ("recall_at_precision_0.95", "fpr_at_recall_0.99")
CONFUSION = {"true_positive": 3, "false_positive": 1, "false_negative": 1, "true_negative": 3}
ONE_LABEL = {
    "n": 8,
    "positives": 4,
    "threshold": 0.25,
    **figures(*AT_A_THRESHOLD),
    **figures(*AT_A_BOUND, value=None),
    **figures("ece", "brier"),
    "confusion": CONFUSION,
}
SEVERAL_LABELS = {
    "n": 8,
    "macro": figures("auroc", "average_precision", "ece", "brier"),
    "labels": {
        "round": ONE_LABEL,
        "angular": {"n": 8, "positives": 0, "reason": "no positives, so nothing to tell apart"},
    },
    **figures("accuracy"),
}
TRAINED = {
    "data_sha256": "d" * 64,
    "counts": {part: {"angular": 4, "round": 4} for part in ("train", "validation", "test")},
    "duplicates": {
        "exact_duplicate_groups": 1,
        "exact_duplicate_rows": 2,
        "near_duplicate_groups": 0,
        "near_duplicate_rows": 0,
    },
    "left_out": 1,
    "seed": 0,
    "loss": "bce",
    "best_epoch": 7,
    "device": "cpu",
}
CROSS_FITTED = {
    "best_epoch": None,
    "weight_decay": 0.1,
    "refit": {"folds": 5, "rows": 16},
    "calibration": "platt: 7 held-out rows of a class are fewer than 10",
    "warnings": ["head shapes may be no better than chance"],
}
TRACKED = {"mlflow_run_id": "1" * 32, "mlflow_tracking_uri": "local"}
FIGURE = {"value": 0.75, "interval_95": [0.5, 1.0]}
REALISED = {"n": 8, "prevalence": 0.5, "recall": FIGURE, "precision": None, "fpr": FIGURE, "f1": FIGURE}
PUBLISHED = {"name": "laion-nsfw-b32", "file": "b32.zip", "sha256": "e" * 64, "url": "https://example.org/b32.zip"}
DIFFERENCES = {"float16": {"max_difference": 0.0, "flipped": 0.0}, "float32": {"max_difference": 0.5, "flipped": 0.25}}
CHECKED = {
    "variant": "float16",
    "verified": {"vectors_of_each_kind": 9, "max_difference": {"float16": 0.0, "float32": 1e-7}, "tensorflow": "2.15"},
    "variants": {"published": DIFFERENCES, "float16": DIFFERENCES},
}
HEADS: dict[str, dict[str, Any]] = {
    "binary": {"metrics": ONE_LABEL, "training": TRAINED | TRACKED},
    "multilabel": {"metrics": SEVERAL_LABELS, "training": TRAINED | {"loss": "bce"}},
    "multiclass": {"metrics": SEVERAL_LABELS | {"confusion": [[3, 1], [1, 3]]}, "training": TRAINED},
    "regression": {"metrics": {"n": 8} | figures("mse", "pearson", "spearman"), "training": TRAINED},
    "cross_fitted": {"metrics": ONE_LABEL, "training": TRAINED | CROSS_FITTED},
    "regression_beside_the_mean": {
        "metrics": {"n": 8, "mse_of_mean": 0.5} | figures("mse", "r2", "pearson", "spearman"),
        "training": TRAINED | CROSS_FITTED,
    },
    "published_torch": {"metrics": {}, "training": {"published": PUBLISHED | {"variant": "published"}}},
    "published_keras": {"metrics": {}, "training": {"published": PUBLISHED | CHECKED}},
    "of_another_release": {"metrics": {"n": 8, "odd": 0.5}, "training": {"seed": 0, "odd": [1, None]}},
}


def head_of(kind: str) -> HeadManifest:
    """The demo's head with the metrics and the training of another kind of head."""
    task = kind if kind in ("multilabel", "multiclass", "regression") else "binary"
    row = [Threshold(value=0.25, operating_point="fixed").model_dump() | {"realised": REALISED}]
    parts = {"task": task, "thresholds": [row] if task != "regression" else [[]]}
    return HeadManifest.model_validate(demo_head().model_dump() | parts | HEADS[kind])


@pytest.mark.parametrize("kind", HEADS)
def test_head_json_of_every_kind(tmp_path: Path, kind: str) -> None:
    """Written as it was before, and what was read is written again as it was."""
    path = tmp_path / "head.json"
    write_manifest(head_of(kind), path)
    assert_golden(path.read_text(encoding="utf-8"), f"head_{kind}.json")
    write_manifest(read_head(tmp_path), path)
    assert_golden(path.read_text(encoding="utf-8"), f"head_{kind}.json")


PARITY = {"pictures": 24, "cosine_min": 0.9999999, "cosine_mean": 1.0, "max_abs_difference": 1e-7}
SCALED = {"scaled_pictures": 8, "scaled_cosine_mean": 0.9990000001, "scaled_cosine_min": 0.998}


@pytest.mark.parametrize("parity", [{}, PARITY, PARITY | SCALED], ids=["unchecked", "exact", "scaled"])
def test_encoder_json(tmp_path: Path, parity: dict[str, float], request: pytest.FixtureRequest) -> None:
    name = f"encoder_{request.node.callspec.id}.json"
    path = tmp_path / "encoder.json"
    write_manifest(EncoderManifest.model_validate(demo_encoder().model_dump() | {"parity": parity}), path)
    assert_golden(path.read_text(encoding="utf-8"), name)
    write_manifest(read_encoder(tmp_path), path)
    assert_golden(path.read_text(encoding="utf-8"), name)


def test_engine_json(tmp_path: Path) -> None:
    encoder = demo_encoder()
    manifest = EngineManifest.model_validate(
        {
            "encoder": encoder.fingerprint(),
            "onnx_sha256": "b" * 64,
            "plan_sha256": "f" * 64,
            "tensorrt": "10.16.1.11",
            "gpu": "NVIDIA L4",
            "compute_capability": "8.9",
            "profile": {"min_batch_size": 1, "opt_batch_size": 8, "max_batch_size": 32},
            "workspace_bytes": 2**30,
            "precision": "fp16",
            "tf32": False,
            "input": encoder.input,
            "output": encoder.output,
            "parity": PARITY,
            "versions": {"python": "3.11.0"},
        }
    )
    write_manifest(manifest, tmp_path / "engine.json")
    assert_golden((tmp_path / "engine.json").read_text(encoding="utf-8"), "engine.json")
    assert read_engine(tmp_path / "engine.json") == manifest


def test_files_of_a_store(tmp_path: Path) -> None:
    """Columns, metadata, compression and names; the bytes themselves are pyarrow's."""
    embedding = np.full(128, 0.25, np.float32)
    pictures = [("a.jpg", "1" * 64, "round"), ("b.tar#7", "2" * 64, None)]
    rows = [Row(path, path, content, 10, 20, label, "train", embedding) for path, content, label in pictures]
    for dtype in ("float32", "float16"):
        write_rows(tmp_path / dtype, demo_encoder().fingerprint(), rows, dtype=dtype)
    append_corrections(head_data(tmp_path / "float32"), ["1" * 64], ["round"], ["angular"])
    files = sorted(tmp_path.rglob("*.parquet"), key=str)
    assert_golden("\n".join(described(path, tmp_path) for path in files), "store.txt")


def described(path: Path, folder: Path) -> str:
    file = pq.ParquetFile(path)
    compression = {file.metadata.row_group(0).column(at).compression for at in range(file.metadata.num_columns)}
    rows = [{name: shortened(value) for name, value in row.items()} for row in file.read().to_pylist()]
    name = re.sub(r"-[0-9a-f]{8}\.parquet$", "-<random>.parquet", path.name)
    schema, metadata = file.schema_arrow.remove_metadata(), file.schema_arrow.metadata
    lines = [
        f"{path.parent.relative_to(folder)}/{name}  {', '.join(compression)}",
        str(schema),
        str(metadata),
        *map(str, rows),
    ]
    return "\n".join(lines) + "\n"


def shortened(value: object) -> object:
    return [f"{len(value)} values", value[0]] if isinstance(value, list) else value


def test_configs_stamped_for_the_demo() -> None:
    configs = stamped(load_recipe("demo"), demo_encoder(), [demo_head()])
    assert_golden("".join(f"## {name}\n{to_text(configs[name], 'demo')}" for name in configs), "demo_configs.txt")
