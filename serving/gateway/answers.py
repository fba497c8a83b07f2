"""Writes the gateway's answers about heads and pictures as JSON.

A head of one number has `score`, and `deviation` where it knows its standard deviation; a head of several has `scores`,
by label. `decision` (or `decisions`, by label) is there when the head has thresholds, `class` when it chooses one.
`revision` names the very head that spoke.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from clipsieve import Head, HeadScore, Score, Threshold
from clipsieve.scoring import shortest
from serving.gateway.problems import problem_of


def result_json(name: str | None, score: Score, heads: Sequence[Head]) -> dict[str, Any]:
    """The answer about one picture: its heads, or its error."""
    if score.error is not None:
        return {"image": name, "error": problem_of(score.error)}
    return {"image": name, "heads": {head.name: head_score_json(head, score.heads[head.name]) for head in heads}}


def head_score_json(head: Head, result: HeadScore) -> dict[str, Any]:
    """Write one head's answer about a picture."""
    answer: dict[str, Any] = {}
    scores = [shortest(score) for score in result.scores]
    decisions = [word_of(head, label, int(passed)) for label, passed in enumerate(result.decisions)]
    if is_single(head):
        answer["score"] = scores[0]
        if result.deviation is not None:
            answer["deviation"] = shortest(result.deviation)
    else:
        answer["scores"] = dict(zip(head.labels, scores, strict=True))
    if decides(head):
        if is_single(head):
            answer["decision"] = decisions[0]
        else:
            answer["decisions"] = dict(zip(head.labels, decisions, strict=True))
    if result.class_name is not None:
        answer["class"] = result.class_name
    return answer | {"revision": result.version.rpartition("-")[2]}


def head_json(head: Head) -> dict[str, Any]:
    """A head's description."""
    return {
        "name": head.name,
        "task": head.task,
        "labels": list(head.labels),
        "class_names": list(head.class_names),
        "thresholds": _thresholds_json(head),
        "notice": head.notice,
    }


def is_single(head: Head) -> bool:
    """True for a head whose answer is one number."""
    return head.is_single


def decides(head: Head) -> bool:
    """True when the head's thresholds say something; of a multiclass head the class does."""
    return head.task != "multiclass" and any(head.thresholds or ())


def word_of(head: Head, label: int, passed: int) -> str:
    """The number of thresholds that a score passed, as a word: none is allow, all is block, between is review."""
    thresholds: Sequence[Threshold] = head.thresholds[label] if head.thresholds else ()
    if passed == 0:
        return "allow"
    return "block" if passed >= len(thresholds) else "review"


def _thresholds_json(head: Head) -> dict[str, list[dict[str, Any]]] | None:
    if not head.thresholds:
        return None
    return {
        label: [{"value": each.value, "operating_point": each.operating_point} for each in row]
        for label, row in zip(head.labels, head.thresholds, strict=False)
    }
