"""Keeps beside a table what its columns cannot say: `scores.csv.run.json`.

    {"clipsieve": "run", "passed_over": {".heic": 3},
     "scores": {"nsfw_score": {"class_names": ["safe", "nsfw"], "thresholds": [{"value": 0.5, "operating_point": ""}]}}}

A report reads it: where the head decides, what its classes are called, and what the run passed over. A table without
one, or with a damaged one, is as good a table.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clipsieve.passed_over import PassedOver
from clipsieve.results import Head, Threshold
from clipsieve.scoring import Columns


@dataclass(frozen=True)
class ScoreFacts:
    """Facts of one column of scores."""

    class_names: tuple[str, ...] = ()
    """Negative and positive class; none where a score is not about two classes."""
    thresholds: tuple[Threshold, ...] = ()
    """Thresholds that decided, ascending."""


@dataclass(frozen=True)
class RunRecord:
    """Facts of a run."""

    scores: Mapping[str, ScoreFacts] = field(default_factory=dict)
    """Facts by column of scores."""
    passed_over: PassedOver = field(default_factory=PassedOver)


def record_path(table: Path) -> Path:
    return table.with_name(f"{table.name}.run.json")


def score_facts(columns: Columns) -> dict[str, ScoreFacts]:
    """Facts of each column of scores, as the columns' heads and options have them."""
    names = iter(columns.score_names)
    return {next(names): _facts(columns, head, label) for head in columns.heads for label in range(_scores_of(head))}


def write_record(table: Path, record: RunRecord) -> None:
    """Write what a run knows of its table; a file of that name that is not a record stays."""
    path = record_path(table)
    if path.exists() and not _is_record(_content(path)):
        return
    scores = {
        name: {"class_names": each.class_names, "thresholds": _listed(each)} for name, each in record.scores.items()
    }
    content = {"clipsieve": "run", "passed_over": record.passed_over, "scores": scores}
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    temporary.replace(path)


def read_record(table: Path) -> RunRecord:
    """The record beside a table; an empty one where there is none that can be read."""
    content = _content(record_path(table))
    if not _is_record(content):
        return RunRecord()
    try:
        scores = {
            name: ScoreFacts(
                tuple(map(str, each["class_names"])),
                tuple(Threshold(float(one["value"]), str(one["operating_point"])) for one in each["thresholds"]),
            )
            for name, each in content["scores"].items()
        }
        return RunRecord(scores, PassedOver({str(kind): int(count) for kind, count in content["passed_over"].items()}))
    except (AttributeError, KeyError, TypeError, ValueError):
        return RunRecord()


def _facts(columns: Columns, head: Head, label: int) -> ScoreFacts:
    class_names = head.class_names if head.task == "binary" else ()
    if columns.threshold is not None:
        return ScoreFacts(class_names, (Threshold(columns.threshold, ""),))
    thresholds = head.thresholds[label] if head.thresholds and head.task != "multiclass" else ()
    if columns.operating_point is not None:
        thresholds = tuple(each for each in thresholds if each.operating_point == columns.operating_point)
    return ScoreFacts(class_names, thresholds)


def _scores_of(head: Head) -> int:
    """Number of a head's columns of scores."""
    return 1 if head.task in ("binary", "regression") else len(head.labels)


def _listed(facts: ScoreFacts) -> Sequence[Mapping[str, Any]]:
    return [{"value": each.value, "operating_point": each.operating_point} for each in facts.thresholds]


def _content(path: Path) -> Any:
    """The JSON in a file; None where there is none."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None


def _is_record(content: Any) -> bool:
    return isinstance(content, dict) and content.get("clipsieve") == "run"
