"""What clients learn of a head from its config: the manifest's fields that stand in config.pbtxt as parameters."""

from __future__ import annotations

import json

from common.manifest import HeadManifest


def head_parameters(head: HeadManifest) -> dict[str, str]:
    """Parameters by name; each value JSON, but for the task."""
    thresholds = [
        [{"value": point.value, "operating_point": point.operating_point} for point in row] for row in head.thresholds
    ]
    return {
        "task": head.task,
        "labels": json.dumps(head.labels),
        "class_names": json.dumps(head.class_names),
        "thresholds": json.dumps(thresholds),
    }
