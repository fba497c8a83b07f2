"""Sets queue limits and priorities: who is taken first, and how long a request may wait before it is refused.

The limit is a time. A limit on the number is no substitute: Triton's batcher (2.51) is woken by requests that enter a
queue, so one that is full and refuses them stands idle until it looks by itself, twice a second.
Only `preprocess` and `clip_encoder` have limits. Heads run side by side in an ensemble, and a limit on such steps
wedges it on Triton before 26.02: a picture that passed preprocessing and encoder is scored.
"""

from __future__ import annotations

from tritonclient.grpc.model_config_pb2 import ModelConfig  # pyright: ignore[reportAttributeAccessIssue] (generated code)

from recipes.serving_section import Serving

LIMITED = ("preprocess", "clip_encoder")
INTERACTIVE, BULK = 1, 2
PATIENCE = {INTERACTIVE: 1, BULK: 30}
"""Multiple of the recipe's timeout that a request may wait, by priority level."""


def set_queues(config: ModelConfig, serving: Serving) -> None:
    """Stamp the limits of the interactive and of the bulk queue; without limits there is one plain queue."""
    batching = config.dynamic_batching
    if not serving.limits_queues:
        for field in ("priority_levels", "default_priority_level", "priority_queue_policy"):
            batching.ClearField(field)
        return
    for level, patience in PATIENCE.items():
        policy = batching.priority_queue_policy[level]
        policy.max_queue_size = serving.max_queue_size
        policy.default_timeout_microseconds = patience * serving.queue_timeout_ms * 1000
        # Triton takes a request's own timeout only where there is one that it shortens.
        policy.allow_timeout_override = serving.queue_timeout_ms > 0


def queue_problems(config: ModelConfig) -> list[str]:
    """Problems: limits that do harm."""
    batching = config.dynamic_batching
    policies = [batching.default_queue_policy, *batching.priority_queue_policy.values()]
    if not any(policy.max_queue_size or policy.default_timeout_microseconds for policy in policies):
        return []
    if config.name not in LIMITED:
        return [
            f"{config.name}: a queue policy on a step that runs beside others can wedge the ensemble; "
            f"limit {' and '.join(LIMITED)} instead"
        ]
    if batching.max_queue_delay_microseconds:
        return [
            f"{config.name}: max_queue_delay_microseconds {batching.max_queue_delay_microseconds} beside a queue "
            "policy costs ever more throughput (triton server #8870); set one of them to 0"
        ]
    return []
