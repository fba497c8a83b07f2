"""The facts about a head's training that its watch needs, the same at installation and after a rollout."""

from __future__ import annotations

from common.manifest import HeadManifest
from common.score_edges import default_edges


def training_of(head: HeadManifest) -> dict[str, object]:
    """Parameters for `WatchedHead` (serving/score_watch/score_counts.py): `edges`, and where the training is known
    `training_ratios` and `training_revision`."""
    known = head.score_distribution
    if known is None:
        return {"edges": default_edges(head.task)}
    return {"edges": known.edges, "training_ratios": known.ratios, "training_revision": f"{head.revision:016x}"}
