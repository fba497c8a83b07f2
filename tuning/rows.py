"""What a sweep measured, in a JSON-lines file that an interrupted sweep goes on with.

The first line says what was measured where; each further one is a `Row`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from build.errors import BuildError
from common.manifest import write_atomically
from tuning.candidates import Setting

Conditions = dict[str, Any]
"""What figures depend on besides the tuned keys, as JSON has it: encoder, machine, pictures, versions, …"""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Figures(_Part):
    """What perf_analyzer found."""

    images_per_s: float
    p50_ms: float
    p90_ms: float
    p99_ms: float


class Row(_Part):
    """A setting in one round of a stage, at so many requests in flight."""

    stage: str
    round: int
    setting: Setting
    concurrency: int | None = None
    """None: the server did not start."""
    figures: Figures | None = None
    error: str | None = None
    """Why there are no figures."""


class Measurements:
    """The rows so far, in memory and in the file."""

    def __init__(self, path: Path, rows: list[Row]) -> None:
        self.path = path
        self.rows = rows

    def add(self, rows: list[Row]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write("".join(f"{row.model_dump_json(exclude_none=True)}\n" for row in rows))
        self.rows += rows

    def of_stage(self, stage: str) -> list[Row]:
        return [row for row in self.rows if row.stage == stage]

    def is_measured(self, stage: str, round_: int, setting: Setting) -> bool:
        """A server that did not start is no measurement: it is tried again when the sweep is resumed."""
        return any(
            (row.round, row.setting) == (round_, setting) and row.concurrency is not None
            for row in self.of_stage(stage)
        )


def open_measurements(path: Path, conditions: Conditions, resume: bool) -> Measurements:
    """An empty file, or the rows of an earlier one, in the same conditions.

    Raises:
        BuildError: the earlier sweep's conditions were others, or the file cannot be read.
    """
    rows = _read(path, conditions) if resume and path.is_file() else []
    lines = [json.dumps({"conditions": conditions}), *(row.model_dump_json(exclude_none=True) for row in rows)]
    write_atomically(path, ("\n".join(lines) + "\n").encode())
    return Measurements(path, rows)


def _read(path: Path, conditions: Conditions) -> list[Row]:
    """Its rows; a last line that an interruption cut off is left out."""
    first, *lines = path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1] or [""]
    try:
        earlier = json.loads(first)["conditions"]
        rows = [Row.model_validate_json(line) for line in lines]
    except (ValueError, KeyError, TypeError, ValidationError) as error:
        raise BuildError(f"{path}: not a sweep's measurements ({error}); name another --out") from error
    if found := differences(earlier, json.loads(json.dumps(conditions))):
        raise BuildError(
            f"{path}: measured in other conditions, so --resume cannot go on with it:\n  "
            + "\n  ".join(found)
            + "\nname another --out, or measure all again with --overwrite instead of --resume"
        )
    return rows


def differences(earlier: Conditions, now: Conditions) -> list[str]:
    """One line for each key that differs, with both values."""
    keys = [key for key in {**earlier, **now} if earlier.get(key) != now.get(key)]
    return [f"{key}: then {earlier.get(key)}, now {now.get(key)}" for key in keys]
