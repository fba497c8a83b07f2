"""The manifest's fields that config.pbtxt carries as parameters, from which clients learn about a head."""

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
