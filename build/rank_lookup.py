"""Writes RankLookup as plain ONNX operators: a search in two steps, so that a row meets few of the intervals.

The intervals of a column are cut into blocks. Counting the blocks that start at or below the value finds the
block, counting the intervals in it that do finds the interval. Comparisons are exact in float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto, helper

_BLOCK = 128  # about the square root of the largest vocabulary


@dataclass(frozen=True)
class Lookup:
    """Columns with the intervals of each, ascending, and their ranks: (N,) float32 arrays."""

    columns: list[int]
    low: list[np.ndarray]
    high: list[np.ndarray]
    ranks: list[np.ndarray]

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """Reference implementation: (B, D) → (B, D) with the columns replaced."""
        replaced = values.copy()
        for column, low, high, ranks in zip(self.columns, self.low, self.high, self.ranks, strict=True):
            x = values[:, column, None]  # (B, 1)
            inside = (x >= low) & (x <= high)  # (B, N), at most one of them in a row
            replaced[:, column] = inside @ ranks.astype(values.dtype)
        return replaced

    @property
    def is_ascending(self) -> bool:
        """True if the intervals of each column are disjoint and ascend, as the search needs."""
        ends = zip(self.low, self.high, strict=True)
        return all((low <= high).all() and (high[:-1] < low[1:]).all() for low, high in ends)


def lookup_nodes(
    lookup: Lookup, value: str, width: int, prefix: str
) -> tuple[list[NodeProto], dict[str, np.ndarray], str]:
    """Nodes, constants and the name of the (B, width) result that replace the columns of `value`."""
    keep = np.ones((1, width), np.float32)
    keep[0, lookup.columns] = 0
    place = np.zeros((len(lookup.columns), width), np.float32)
    place[range(len(lookup.columns)), lookup.columns] = 1
    if not any(map(len, lookup.low)):  # no value has a rank
        return [helper.make_node("Mul", [value, f"{prefix}keep"], [prefix])], {f"{prefix}keep": keep}, prefix
    nodes = [
        helper.make_node("Mul", [value, f"{prefix}keep"], [f"{prefix}kept"]),
        *_rank_nodes(value, prefix),  # (B, C) ranks
        helper.make_node("MatMul", [f"{prefix}ranks", f"{prefix}place"], [f"{prefix}placed"]),
        helper.make_node("Add", [f"{prefix}kept", f"{prefix}placed"], [prefix]),
    ]
    constants = {"keep": keep, "place": place} | _tables(lookup)
    return nodes, {f"{prefix}{name}": array for name, array in constants.items()}, prefix


def _tables(lookup: Lookup) -> dict[str, np.ndarray]:
    """The intervals of all columns, each padded to the same number of blocks with intervals that hold nothing."""
    blocks = -(-max(map(len, lookup.low)) // _BLOCK)
    padded = {
        name: np.stack([_padded(array, blocks * _BLOCK, filler) for array in arrays])  # (C, blocks * _BLOCK)
        for name, arrays, filler in (
            ("low", lookup.low, np.inf),
            ("high", lookup.high, -np.inf),
            ("rank", lookup.ranks, 0),
        )
    }
    low = padded["low"].reshape(len(lookup.columns), blocks, _BLOCK)
    return {
        "columns": np.array(lookup.columns, np.int64),
        "starts": low[:, :, 0],  # (C, blocks)
        "blocks": low.reshape(-1, _BLOCK),  # (C * blocks, _BLOCK)
        "first_block": np.arange(len(lookup.columns), dtype=np.int32) * np.int32(blocks),
        "flat_low": padded["low"].ravel(),
        "flat_high": padded["high"].ravel(),
        "flat_rank": padded["rank"].ravel(),
        "last": np.array([2], np.int64),
        "none": np.array(0, np.int32),
        "one": np.array(1, np.int32),
        "block_size": np.array(_BLOCK, np.int32),
        "unknown": np.array(0, np.float32),
    }


def _padded(array: np.ndarray, length: int, filler: float) -> np.ndarray:
    return np.concatenate([array, np.full(length - len(array), filler)]).astype(np.float32)


def _rank_nodes(value: str, prefix: str) -> list[NodeProto]:
    """Nodes that compute the (B, C) ranks of the (B, width) `value`."""

    def node(operator: str, inputs: str, output: str, **attributes: Any) -> NodeProto:
        names = [value if name == "VALUE" else f"{prefix}{name}" for name in inputs.split()]
        return helper.make_node(operator, names, [f"{prefix}{output}"], **attributes)

    def count_nodes(starts: str, output: str) -> list[NodeProto]:
        """Nodes that find the position of the last of the (…, n) starts at or below x, or 0."""
        return [
            node("GreaterOrEqual", f"x_3d {starts}", f"{output}_below"),
            node("Cast", f"{output}_below", f"{output}_ones", to=TensorProto.INT32),
            node("ReduceSum", f"{output}_ones last", f"{output}_count", keepdims=0),
            node("Sub", f"{output}_count one", f"{output}_signed"),
            node("Max", f"{output}_signed none", output),
        ]

    return [
        node("Gather", "VALUE columns", "x", axis=1),  # (B, C)
        node("Unsqueeze", "x last", "x_3d"),  # (B, C, 1)
        *count_nodes("starts", "block_of_column"),
        node("Add", "block_of_column first_block", "block"),
        node("Gather", "blocks block", "lows", axis=0),  # (B, C, _BLOCK)
        *count_nodes("lows", "within"),
        node("Mul", "block block_size", "start"),
        node("Add", "start within", "position"),
        node("Gather", "flat_low position", "low", axis=0),
        node("Gather", "flat_high position", "high", axis=0),
        node("Gather", "flat_rank position", "rank", axis=0),
        node("GreaterOrEqual", "x low", "above"),
        node("LessOrEqual", "x high", "under"),
        node("And", "above under", "known"),
        node("Where", "known rank unknown", "ranks"),
    ]
