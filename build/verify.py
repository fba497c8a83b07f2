"""Compares the whole chain: torch → ONNX fp32 → fp16 or int8 → TensorRT plan, and each step's effect on the scores.

    python -m build.verify --recipe demo

Every step left the embeddings of the same photographs and drawn pictures beside its file. Here they meet torch's,
and the recipe's heads: cosines, largest differences, scores and decisions that change. Writes
artifacts/<recipe>/verification.json and prints a table; stops `make engines` before anything is installed
when a step is below the recipe's build.minimum_cosine.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from build.cosine import compare_embeddings
from build.dali_parity import describe, measure_dali
from build.encoder import VERIFICATION
from build.errors import INTERRUPTED, BuildError
from common.manifest import ManifestError, Parity, read_encoder, read_engine, read_head, write_atomically
from common.paths import ARTIFACTS, encoder_folder, head_folder
from recipes.arguments import add_recipe_options, recipe_of
from recipes.build_section import Precision
from recipes.errors import run_step
from recipes.head_section import Head
from recipes.schema import Recipe


@dataclass(frozen=True)
class Stage:
    """A file of the chain: its name for people, its precision, (N, embed_dim) float32 of the pictures."""

    name: str
    precision: Precision
    embeddings: np.ndarray


@dataclass(frozen=True)
class HeadChange:
    """The change of a head's scores from torch's embeddings to a stage's, over all pictures and labels."""

    head: str
    score_max_abs_difference: float
    score_mean_abs_difference: float
    scores: int
    decisions_changed: int


@dataclass(frozen=True)
class Comparison:
    """A comparison of one stage with torch."""

    stage: str
    minimum_cosine: float
    """The recipe's limit at this precision."""
    parity: Parity
    heads: list[HeadChange]

    @property
    def passed(self) -> bool:
        return self.parity.cosine_min >= self.minimum_cosine  # false for NaN


def verify(recipe: Recipe) -> list[Comparison]:
    """Compare every stage of a recipe's chain with torch.

    Raises:
        ManifestError: an artefact is missing.
    """
    reference = saved_embeddings(encoder_folder(recipe, "fp32"), "torch")
    sessions = {head.name: _session(recipe, head) for head in recipe.heads}
    return [
        Comparison(
            stage.name,
            recipe.build.minimum_cosine.at(stage.precision),
            compare_embeddings(reference, stage.embeddings),
            [compare_scores(name, session, reference, stage.embeddings) for name, session in sessions.items()],
        )
        for stage in find_stages(recipe)
    ]


def find_stages(recipe: Recipe) -> list[Stage]:
    """The chain's files in order: the exported one, the one made from it, and plans of the one that is served."""
    full, served = encoder_folder(recipe, "fp32"), encoder_folder(recipe)
    stages = [Stage("ONNX fp32", "fp32", saved_embeddings(full, "embeddings"))]
    precision = recipe.build.precision
    if served != full:
        stages.append(Stage(f"ONNX {precision}", precision, saved_embeddings(served, "embeddings")))
    onnx_sha256 = read_encoder(served).onnx_sha256
    for folder in sorted(served.glob("engines/*")):
        if not (folder / VERIFICATION).is_file() or not (folder / "engine.json").is_file():
            continue
        engine = read_engine(folder / "engine.json")
        if engine.onnx_sha256 == onnx_sha256:  # others are never installed
            stages.append(
                Stage(f"TensorRT {engine.tensorrt} {engine.gpu}", precision, saved_embeddings(folder, "embeddings"))
            )
    return stages


def compare_scores(
    name: str, session: onnxruntime.InferenceSession, reference: np.ndarray, embeddings: np.ndarray
) -> HeadChange:
    """Compare the head's scores of two (N, embed_dim) float32 arrays of the same pictures."""
    expected_scores, expected_decisions = _head_outputs(session, reference)
    scores, decisions = _head_outputs(session, embeddings)
    differences = np.abs(expected_scores - scores)
    return HeadChange(
        name,
        float(differences.max()),
        float(differences.mean()),
        int(scores.size),
        int((expected_decisions != decisions).sum()),
    )


def _head_outputs(session: onnxruntime.InferenceSession, embeddings: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scores, decisions = session.run(["score", "decision"], {"embedding": embeddings})
    return np.asarray(scores), np.asarray(decisions)


def _session(recipe: Recipe, head: Head) -> onnxruntime.InferenceSession:
    path = head_folder(recipe, head) / "model.onnx"
    read_head(path.parent)
    if not path.is_file():
        raise ManifestError(f"{path}: not found; make it with: python -m build.head --recipe RECIPE")
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def saved_embeddings(folder: Path, name: str) -> np.ndarray:
    """Read the embeddings that a file's build saved, `torch` or `embeddings`: (N, embed_dim) float32.

    Raises:
        ManifestError: they are missing.
    """
    path = folder / VERIFICATION
    if not path.is_file():
        raise ManifestError(f"{path}: not found; make it with: make engines")
    with np.load(path) as arrays:
        return arrays[name]


def print_table(recipe: Recipe, comparisons: list[Comparison]) -> None:
    """Print one line for each stage and head on stderr."""
    console = Console(stderr=True, width=max(110, Console(stderr=True).width))  # a log has no width of its own
    pictures = int(comparisons[0].parity.pictures)
    table = Table(
        title=f"{recipe.name}: each step against torch, {pictures} pictures", title_justify="left", box=SIMPLE
    )
    for column in (
        "step",
        "cosine min",
        "limit",
        "cosine mean",
        "max |Δ|",
        "head",
        "max |Δ score|",
        "decisions changed",
    ):
        table.add_column(column, justify="left" if column in ("step", "head") else "right", no_wrap=True)
    for comparison in comparisons:
        parity = comparison.parity
        cells = [
            comparison.stage,
            f"{parity.cosine_min:.7f}",
            f"{comparison.minimum_cosine:g}",
            f"{parity.cosine_mean:.7f}",
            f"{parity.max_abs_difference:.1e}",
        ]
        for change in comparison.heads:
            changed = f"{change.decisions_changed} of {change.scores}"
            table.add_row(*cells, change.head, f"{change.score_max_abs_difference:.1e}", changed)
            cells = [""] * len(cells)
    console.print(table)


def write_report(recipe: Recipe, comparisons: list[Comparison]) -> Path:
    path = ARTIFACTS / recipe.name / "verification.json"
    report = {
        "recipe": recipe.name,
        "encoder": recipe.encoder.id,
        "versions": read_encoder(encoder_folder(recipe)).versions,
        "stages": [_stage_report(comparison) for comparison in comparisons],
    }
    write_atomically(path, (json.dumps(report, indent=2) + "\n").encode())
    return path


def _stage_report(comparison: Comparison) -> dict[str, Any]:
    parity = comparison.parity.model_dump() | {"pictures": int(comparison.parity.pictures)}
    return {
        "stage": comparison.stage,
        "minimum_cosine": comparison.minimum_cosine,
        "embeddings": parity,
        "heads": [asdict(change) for change in comparison.heads],
        "passed": comparison.passed,
    }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m build.verify", description=(__doc__ or "").splitlines()[0])
    add_recipe_options(parser)
    arguments = parser.parse_args(argv)
    recipe = recipe_of(arguments)
    comparisons = verify(recipe)
    print_table(recipe, comparisons)
    print(write_report(recipe, comparisons))
    for comparison in comparisons:
        if not comparison.passed:
            cosine, limit = comparison.parity.cosine_min, comparison.minimum_cosine
            raise BuildError(f"{comparison.stage}: cosine {cosine:.7f} is below build.minimum_cosine's {limit}")
    if recipe.serving.preprocess == "dali":
        for parity in measure_dali(recipe):
            print(describe(parity), file=sys.stderr)


if __name__ == "__main__":
    sys.exit(run_step("build.verify", main, INTERRUPTED))
