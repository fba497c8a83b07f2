"""Facts that a watch is given about its head: JSON in its config, read by `WatchedHead` in model/score_counts.py."""

from __future__ import annotations

import json

from common.manifest import HeadManifest
from common.score_edges import default_edges

PARAMETER = "watched"
"""The parameter's name in the watch's config."""


def watched_parameters(head: HeadManifest, shadow: HeadManifest | None) -> str:
    """The parameter's text for a head, and the candidate that runs beside it."""
    watched = {
        "head": head.name,
        "labels": head.labels,
        "thresholds": [len(row) for row in head.thresholds],
        **_training(head),
    }
    if shadow is not None:
        watched |= {"shadow": shadow.name, "shadow_thresholds": [len(row) for row in shadow.thresholds]}
    return json.dumps(watched)


def with_training_of(text: str, head: HeadManifest) -> str:
    """The parameter's text with the training of another version of its head; the rest stays."""
    watched = json.loads(text)
    for key in ("training_ratios", "training_revision"):
        watched.pop(key, None)
    return json.dumps(watched | _training(head))


def _training(head: HeadManifest) -> dict[str, object]:
    """`edges`, and where scores on held-out data are known `training_ratios` and `training_revision`."""
    known = head.score_distribution
    if known is None:
        return {"edges": default_edges(head.task)}
    return {"edges": known.edges, "training_ratios": known.ratios, "training_revision": f"{head.revision:016x}"}
