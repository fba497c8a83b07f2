"""A recipe whose head learns grades, with graded embeddings in its store."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import yaml
from tiny_encoder import EMBED_DIM, write_tiny_encoder

from common import paths
from recipes.schema import load_recipe
from training.sources import HeadData, Mention, Source, mentions_table, write_source
from training.store import Embedded, Store, store_folder

ROWS = 150


def write_recipe(folder: Path, **settings: object) -> Path:
    """Write taste.yaml, whose one head is called taste."""
    demo = load_recipe("demo").model_dump(mode="json", exclude_unset=True)
    head = {"name": "taste", "task": "regression", "class_names": ["taste"], **settings}
    file = folder / "taste.yaml"
    file.write_text(yaml.safe_dump(demo | {"name": "taste", "heads": [head]}), encoding="utf-8")
    return file


def write_store(recipe: Path) -> None:
    """Write the tiny encoder, embeddings, and grades: the size of one of the values, which no line gives, and noise."""
    loaded = load_recipe(recipe)
    encoder = write_tiny_encoder(paths.encoder_folder(loaded)).fingerprint()
    rng = np.random.default_rng(0)
    embeddings = rng.normal(size=(ROWS, EMBED_DIM)).astype(np.float32)
    grades = np.abs(embeddings[:, 0]) + embeddings[:, 1] + 0.1 * rng.normal(size=ROWS)
    folder = store_folder(loaded)
    Store(folder, encoder).append([Embedded(f"{row:064x}", 9, 9, x) for row, x in enumerate(embeddings)])
    mentions = [Mention(f"{row}.png", f"{row}.png", f"{row:064x}", repr(float(grades[row]))) for row in range(ROWS)]
    write_source(HeadData(folder, "taste", "taste"), Source("folders /", mentions_table(mentions)))
