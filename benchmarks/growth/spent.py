"""Cost of a load to a server: processor time of its processes, and Triton's own counts for each model."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from benchmarks.peers.processes import cpu_s
from benchmarks.server_processes import stubs
from serving.embedded import EmbeddedServer
from serving.no_proxy import grpc_client

SETTLE_S = 0.2
"""A model counts an image a moment after its answer has left."""


@dataclass(frozen=True)
class Counted:
    """Triton's counts for one model."""

    images: int = 0
    batches: int = 0
    compute_ms: float = 0.0
    """Time of all batches together, from the first input read to the last output written; without waiting in the
    queue."""

    def since(self, before: Counted) -> Counted:
        return Counted(self.images - before.images, self.batches - before.batches, self.compute_ms - before.compute_ms)

    @property
    def images_per_batch(self) -> float:
        return self.images / self.batches if self.batches else float("nan")

    @property
    def compute_ms_per_image(self) -> float:
        return self.compute_ms / self.images if self.images else float("nan")


@dataclass(frozen=True)
class Spent:
    """Processor time of a server, since it started or since another reading."""

    cpu_s: float
    model_cpu_s: dict[str, float] = field(default_factory=dict)
    """Processor time of each model's Python processes; the rest of `cpu_s` is tritonserver's own."""
    counted: dict[str, Counted] = field(default_factory=dict)

    def since(self, before: Spent) -> Spent:
        return Spent(
            self.cpu_s - before.cpu_s,
            {model: seconds - before.model_cpu_s.get(model, 0.0) for model, seconds in self.model_cpu_s.items()},
            {model: count.since(before.counted.get(model, Counted())) for model, count in self.counted.items()},
        )


def read_spent(server: EmbeddedServer) -> Spent:
    time.sleep(SETTLE_S)
    models = {model: sum(map(cpu_s, pids)) for model, pids in stubs(server.pid).items()}
    return Spent(cpu_s(server.pid), models, _counted(server.grpc_url))


def idle_cores(servers: Iterable[EmbeddedServer], seconds: float = 2.0) -> float:
    """Cores that the servers keep busy while nobody asks them anything."""
    pids = [server.pid for server in servers]
    before = sum(map(cpu_s, pids))
    time.sleep(seconds)
    return (sum(map(cpu_s, pids)) - before) / seconds


def _counted(url: str) -> dict[str, Counted]:
    with grpc_client(url) as client:
        answer = client.get_inference_statistics()
    assert answer is not None
    return {model.name: _of_model(model) for model in answer.model_stats}


def _of_model(model) -> Counted:
    """Counts from a ModelStatistics message; its `batch_stats` count each batch once, however many requests are in
    it."""
    spent_ns = sum(
        batch.compute_input.ns + batch.compute_infer.ns + batch.compute_output.ns for batch in model.batch_stats
    )
    return Counted(model.inference_count, model.execution_count, spent_ns / 1e6)
