"""The parts that are measured, in their order and with their limits of time, and what is small enough for a dry run."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from common.cpu import core_count
from recipes.errors import ExpectedError
from recipes.schema import Recipe, parse_recipe

MODELS = {"B/32": "ViT-B-32-quickgelu", "L/14": "ViT-L-14-quickgelu"}
TINY = "tiny"
_TINY_ENCODER = {
    "model": "clipsieve-tiny-vit",
    "open_clip_config": {
        "embed_dim": 64,
        "vision_cfg": {"image_size": 64, "layers": 2, "width": 128, "head_width": 64, "patch_size": 16},
        "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 1, "layers": 1},
    },
}
DRY_LIMIT_S = 600.0
"""Limit of each part of a dry run, which may share its machine."""
LEAST_S = 5.0
"""Time under which a part is not begun."""


class Part(NamedTuple):
    """One part, which runs in a process of its own."""

    kind: str
    model: str | None
    limit_s: float

    @property
    def name(self) -> str:
        return self.kind if self.model is None else f"{self.kind} {self.model}"


@dataclass(frozen=True)
class Settings:
    """Sizes of the work; a dry run does all of it, on the CPU and small."""

    dry_run: bool
    seconds: float
    """The length of each measurement."""
    batches: tuple[int, ...]
    """The one that matters most comes first, for a part may be stopped."""
    matrix: int
    """Rows and columns of the matrices whose product is the measure of the card."""
    megapixels: tuple[float, ...]
    concurrency: int
    """Pictures under way at the server."""

    @classmethod
    def of(cls, dry_run: bool, seconds: float) -> Settings:
        if dry_run:
            return cls(True, min(seconds, 0.2), (1, 2), 256, (0.3,), 4)
        return cls(False, seconds, (32, 1, 128), 8192, (0.3, 2.0, 12.0), 64)

    @property
    def models(self) -> list[str]:
        return [TINY] if self.dry_run else list(MODELS)

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Settings:
        fields: dict[str, Any] = json.loads(text)
        values: dict[str, Any] = {key: tuple(fields[key]) for key in ("batches", "megapixels")}
        return cls(**(fields | values))


def parts_of(settings: Settings) -> list[Part]:
    """The parts in their order: those that nothing else replaces come first, for the time may be over."""
    models = settings.models
    parts = [
        Part("matmul", None, 60),
        *(Part("torch", model, 120) for model in models),
        *(part for model in models for part in (Part("export", model, 150), Part("onnxruntime", model, 60))),
        Part("decoding", None, 75),
        Part("served", models[0], 120),
        Part("dali", models[0], 75),
    ]
    return [part._replace(limit_s=DRY_LIMIT_S) for part in parts] if settings.dry_run else parts


def chosen(parts: Sequence[Part], kinds: Sequence[str] | None) -> list[Part]:
    """Parts of these kinds, with the exports that they need."""
    if kinds is None:
        return list(parts)
    needs_export = {"onnxruntime", "served", "dali"} & set(kinds)
    return [part for part in parts if part.kind in kinds or (part.kind == "export" and needs_export)]


def limit_of(part: Part, left_s: float) -> float | None:
    """Seconds that a part may take; None where too few are left to begin it."""
    return None if left_s < LEAST_S else min(part.limit_s, left_s)


def recipe_of_model(model: str) -> Recipe:
    """A recipe with seeded random weights: speeds do not depend on them."""
    encoder = _TINY_ENCODER if model == TINY else {"model": MODELS[model]}
    head = {"name": "any", "class_names": ["no", "yes"]}
    serving = {"max_batch_size": 64, "preprocess_instances": core_count(), "queue_timeout_ms": 60_000}
    return parse_recipe(
        {
            "name": f"gpu-{model.lower().replace('/', '-')}",
            "description": f"{model} with random weights, for speeds.",
            "encoder": encoder | {"seed": 1},
            "build": {"precision": "fp16"},
            "serving": serving,
            "heads": [head],
        }
    )


class CannotRun(ExpectedError):
    """A part lacks what it measures; the message says what, and how it is had."""


class Rows:
    """A part's rows, written at each new one: a part that is stopped leaves those it has."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rows: list[dict[str, Any]] = []

    def add(self, **row: Any) -> None:
        self._rows.append(row)
        self._path.write_text(json.dumps(self._rows), encoding="utf-8")

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self._rows)
