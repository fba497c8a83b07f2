"""Requests of a probe to Triton, and Triton's messages when it refuses one; seen from 2.51.

Standard library only: the container's health check takes it from here. The client (`clipsieve.triton_messages`,
`clipsieve.transport`) and the served models (`metric_counters`) stand alone and have copies, which a test compares.
"""

from __future__ import annotations

PROBE_ID = "probe"
"""The id of a request whose images the server's metrics do not count."""
HIGHEST_PRIORITY = 1
"""Passes what waits in a queue with priority levels, and means nothing to others."""
ENSEMBLES = ("image_score", "image_embedding")
"""Models that a probe calls; together they run every model."""
QUEUE_REFUSALS = ("maximum queue size", "timeout expired")
"""Parts of a refusal, in lower case, that mean: the server works and has no room in a queue."""
PROCESS_DEAD = "is not healthy"
"""Part of the message of a server whose Python process is gone; Triton never starts it again."""


def is_queue_refusal(message: str) -> bool:
    return any(refusal in message.lower() for refusal in QUEUE_REFUSALS)
