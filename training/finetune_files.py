"""The folder that a fine-tuning ends in: a classifier as timm's hub layout has it, with what it was made of.

config.json, model.safetensors     architecture, label_names and preprocessing; weights of the best epoch
finetune.json                      settings, split, data, figures with intervals, course
pictures.parquet                   sha256, path, label, split and group of every picture it was made with
curves.png
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import timm
import torch

from common.finetuned import PICTURES, RECORD
from common.manifest import write_atomically
from common.writing import writing
from recipes.head_section import Head
from training.finetune_pictures import TuningData
from training.losses import TuningCurve
from training.plots import tuning_curve_png


def write_classifier(
    folder: Path,
    model: torch.nn.Module,
    head: Head,
    data_config: dict[str, Any],
    record: dict[str, Any],
    data: TuningData,
    curve: TuningCurve,
) -> None:
    """Write the folder whole, in the place of a former one.

    Args:
        folder: to be written.
        model: with the weights of the best epoch.
        head: whose classes its outputs are.
        data_config: timm's description of its preprocessing.
        record: contents of finetune.json.
        data: the pictures.
        curve: of the training.
    """
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(partial, ignore_errors=True)
        try:
            names = head.class_names
            saved = with_two_outputs(model) if head.task == "binary" else model
            saved = saved.to(memory_format=torch.contiguous_format)
            timm.models.save_for_hf(
                saved.cpu(), str(partial), {"label_names": names}, safe_serialization=True, data_config=data_config
            )
            write_record(partial, record)
            write_atomically(partial / PICTURES, _pictures_table(data))
            write_atomically(partial / "curves.png", tuning_curve_png(curve))
            _swap(partial, folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def with_two_outputs(model: torch.nn.Module) -> torch.nn.Module:
    """A binary model of one logit as one of two, 0 and the logit, whose softmax is the sigmoid; others stay."""
    last = cast(Any, model).get_classifier()
    if last.out_features != 1:
        return model
    weight, bias = last.weight.detach(), last.bias.detach()
    cast(Any, model).reset_classifier(2)
    with torch.no_grad():
        two = cast(Any, model).get_classifier()
        two.weight.copy_(torch.cat([torch.zeros_like(weight), weight]))
        two.bias.copy_(torch.cat([torch.zeros_like(bias), bias]))
    return model.eval()


def write_record(folder: Path, record: dict[str, Any]) -> None:
    """Write finetune.json."""
    write_atomically(folder / RECORD, (json.dumps(record, indent=2, allow_nan=False) + "\n").encode())


def read_record(folder: Path) -> dict[str, Any] | None:
    """finetune.json of a folder; None where there is none."""
    with contextlib.suppress(OSError, ValueError):
        return json.loads((folder / RECORD).read_text(encoding="utf-8"))
    return None


def _pictures_table(data: TuningData) -> bytes:
    side = np.full(len(data.data.sha256), "left out", object)
    for name, rows in data.split.parts().items():
        side[rows] = name
    table = pa.table(
        {
            "sha256": data.data.sha256,
            "path": [data.pictures.path[row] for row in data.data.row],
            "label": [data.pictures.label[row] for row in data.data.row],
            "split": side.tolist(),
            "group": [f"near-{group}" for group in data.groups.ids.tolist()],
        }
    )
    file = io.BytesIO()
    pq.write_table(table, file)
    return file.getvalue()


def _swap(partial: Path, folder: Path) -> None:
    """Put a whole folder in the place of another."""
    former = folder.with_name(f".{folder.name}.{os.getpid()}.former")
    if folder.exists():
        folder.rename(former)
    partial.rename(folder)
    shutil.rmtree(former, ignore_errors=True)
