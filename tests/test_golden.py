"""What other releases, tools and machines read, byte for byte: head.json, a store's files, stamped configs.

tests/golden/ holds the texts; model_repository/ is the golden of the default recipe (test_repository.py). Who changes
one on purpose writes it again, and says in the commit what that does to artefacts that exist:

    GOLDEN=write .venv/bin/python -m pytest -q tests/test_golden.py
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from artefacts import encoder_manifest

from build.repository_configs import stamped, to_text
from common.manifest import (
    Calibration,
    EncoderManifest,
    HeadManifest,
    Linear,
    Preprocessing,
    Prevalence,
    Relu,
    ScoreDistribution,
    Standardize,
    Tensor,
    Threshold,
    read_head,
    write_manifest,
)
from recipes.schema import load_recipe
from training.store import Row, Store
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
    realised = {"recall": {"value": 0.75, "interval_95": [0.5, 1.0]}}
    return HeadManifest(
        name="demo",
        recipe=load_recipe("demo").head(None).model_dump(mode="json"),
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
        metrics={"n": 8, "auroc": 0.875},
        score_distribution=ScoreDistribution(images=8, edges=[0.25, 0.5], ratios=[[0.25, 0.75]]),
        training={"data_sha256": "d" * 64, "seed": 0},
        versions={"python": "3.11.0"},
    )


def test_head_json_and_its_revision(tmp_path: Path) -> None:
    write_manifest(demo_head(), tmp_path / "head.json")
    assert_golden((tmp_path / "head.json").read_text(encoding="utf-8"), "head.json")
    assert f"{read_head(GOLDEN).revision:016x}" == "4a4a0f8a7840a9df"


def test_files_of_a_store(tmp_path: Path) -> None:
    """Columns, metadata, compression and names; the bytes themselves are pyarrow's."""
    embedding = np.full(128, 0.25, np.float32)
    pictures = [("a.jpg", "1" * 64, "round"), ("b.tar#7", "2" * 64, None)]
    rows = [Row(path, path, content, 10, 20, label, "train", embedding) for path, content, label in pictures]
    for dtype in ("float32", "float16"):
        Store(tmp_path / dtype, demo_encoder().fingerprint(), dtype).append(rows)
    append_corrections(tmp_path / "float32", ["1" * 64], ["round"], ["angular"])
    files = sorted(tmp_path.glob("*/*"), key=lambda path: (path.parent.name, path.name))
    assert_golden("\n".join(described(path) for path in files), "store.txt")


def described(path: Path) -> str:
    file = pq.ParquetFile(path)
    compression = {file.metadata.row_group(0).column(at).compression for at in range(file.metadata.num_columns)}
    rows = [{name: shortened(value) for name, value in row.items()} for row in file.read().to_pylist()]
    name = re.sub(r"-[0-9a-f]{8}\.parquet$", "-<random>.parquet", path.name)
    schema, metadata = file.schema_arrow.remove_metadata(), file.schema_arrow.metadata
    lines = [f"{path.parent.name}/{name}  {', '.join(compression)}", str(schema), str(metadata), *map(str, rows)]
    return "\n".join(lines) + "\n"


def shortened(value: object) -> object:
    return [f"{len(value)} values", value[0]] if isinstance(value, list) else value


def test_configs_stamped_for_the_demo() -> None:
    configs = stamped(load_recipe("demo"), demo_encoder(), [demo_head()])
    assert_golden("".join(f"## {name}\n{to_text(configs[name], 'demo')}" for name in configs), "demo_configs.txt")
