"""Figures of the parts' rows: a share of the card's own rate, and the page in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.machine import Machine, hardware_line, versions_line
from benchmarks.tables import table

Result = Mapping[str, Any]
"""The keys of a part's result: `part`, `kind`, `status`, `seconds`, `rows` and, where it did not end well, `reason`."""

TITLES = {
    "matmul": "The card: a product of two square matrices",
    "torch": "The encoder by torch",
    "export": "ONNX files",
    "onnxruntime": "The encoder by onnxruntime",
    "decoding": "JPEG files to pixels, on the CPU's cores",
    "served": "The whole ensemble on the embedded server, one picture a request",
    "dali": "DALI against exact decoding",
}
DRY_RUN = (
    "A dry run on the CPU with a tiny model: every part was executed, and no number below says anything about a GPU."
)


def with_shares(results: Sequence[Result]) -> list[dict[str, Any]]:
    """The results, the encoders' rows with TFLOP/s and their share of the matrix product of the same type."""
    products = {row["dtype"]: row["tflops"] for row in rows_of(results, "matmul")}
    flops = {
        row["model"]: row["flops_per_image"]
        for kind in ("export", "torch")
        for row in rows_of(results, kind)
        if "flops_per_image" in row
    }
    return [
        dict(result) | {"rows": [with_share(row, flops, products) for row in result["rows"]]}
        if result["kind"] in ("torch", "onnxruntime")
        else dict(result)
        for result in results
    ]


def with_share(row: Result, flops: Mapping[str, float], products: Mapping[str, float]) -> dict[str, Any]:
    """A row with `tflops` and `of_matmul`, as far as what they need was measured."""
    counted = flops.get(row["model"])
    if counted is None:
        return dict(row)
    tflops = row["images_per_s"] * counted / 1e12
    product = products.get(row["dtype"])
    return dict(row) | {"tflops": tflops} | ({} if not product else {"of_matmul": tflops / product})


def rows_of(results: Sequence[Result], kind: str) -> list[Mapping[str, Any]]:
    return [row for result in results if result["kind"] == kind for row in result["rows"]]


def page(results: Sequence[Result], hardware: Machine, dry_run: bool) -> str:
    """Everything in Markdown: what ran, what did not and why, and a table of each kind."""
    states = [{key: result.get(key) or "" for key in ("part", "status", "seconds", "reason")} for result in results]
    blocks = ["# On a GPU", hardware_line(hardware), versions_line(hardware)]
    blocks += [f"**{DRY_RUN}**"] if dry_run else []
    blocks += ["## Parts", table(states)]
    for kind, title in TITLES.items():
        if rows := rows_of(results, kind):
            blocks += [f"## {title}", table(rows)]
    return "\n\n".join(blocks) + "\n"
