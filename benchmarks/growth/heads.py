"""1 to 16 heads, all of them requested; and one requested while 16 are installed."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from statistics import median
from typing import Any, NamedTuple

from benchmarks.growth.load import one_by_one, saturated
from benchmarks.growth.photographs import photographs
from benchmarks.growth.rounds import Samples, interleaved, say, slope
from benchmarks.growth.scene import MEGAPIXELS, Scene
from benchmarks.growth.spent import idle_cores, read_spent
from benchmarks.peers.processes import resident_mib
from serving.embedded import EmbeddedServer

COUNTS = (1, 2, 4, 8, 16)
BEFORE_HEADS = ("preprocess", "clip_encoder")


class Case(NamedTuple):
    installed: int
    requested: int


CASES = (*(Case(count, count) for count in COUNTS), Case(COUNTS[-1], 1))


def measure(scene: Scene) -> dict[str, Any]:
    """One server for each number of heads, all running: an idle one costs next to nothing, and that is reported."""
    with ExitStack() as stack:
        servers = {COUNTS[0]: scene.server}
        servers |= {count: stack.enter_context(scene.serve(count)) for count in COUNTS[1:]}
        _warm_up(scene, servers)
        idle = idle_cores(servers.values())
        loaded = _loaded(scene, servers)
        say("heads: one picture at a time, by all servers in turn")
        alone = _alone(scene, servers)
        memory = {count: resident_mib(server.pid) for count, server in servers.items()}
    rows = [
        {
            "installed": case.installed,
            "asked": case.requested,
            **loaded.medians(case),
            "p50_ms": median(alone[case]),
            "resident_mib": memory[case.installed],
        }
        for case in CASES
    ]
    return {"rows": rows, "per_head": per_head(rows), "unasked": unasked(rows), "idle_cores": idle}


def per_head(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """Cost that each further head adds when all installed heads are requested."""
    full = [row for row in rows if row["asked"] == row["installed"]]
    counts = [row["installed"] for row in full]

    def added(key: str) -> float:
        return slope(counts, [row[key] for row in full])

    return {"p50_ms": added("p50_ms"), "cpu_us": 1000 * added("rest_cpu_ms"), "resident_mib": added("resident_mib")}


def unasked(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """One of the most heads, relative to the only one there is."""
    one = next(row for row in rows if row["installed"] == row["asked"] == 1)
    of_many = next(row for row in rows if row["installed"] > row["asked"])
    ratios = {f"{key}_ratio": of_many[key] / one[key] for key in ("images_per_s", "p50_ms", "cpu_ms")}
    return {"installed": of_many["installed"], **ratios}


def _warm_up(scene: Scene, servers: dict[int, EmbeddedServer]) -> None:
    for count, server in servers.items():
        saturated(server.grpc_url, scene.heads(count), photographs(MEGAPIXELS), 4, scene.settings.seconds / 4)


def _loaded(scene: Scene, servers: dict[int, EmbeddedServer]) -> Samples[Case]:
    """Throughput and processor time per image at the best concurrency: images_per_s; cpu_ms, of the whole server;
    and rest_cpu_ms, without decoding and the encoder, whose time is the larger part and varies by more than heads
    cost."""
    samples, pictures, settings = Samples[Case](), photographs(MEGAPIXELS), scene.settings
    concurrency = scene.concurrency
    for case in interleaved("heads", CASES, settings.rounds):
        server = servers[case.installed]
        before = read_spent(server)
        rate = saturated(server.grpc_url, scene.heads(case.requested), pictures, concurrency, settings.seconds)
        spent = read_spent(server).since(before)
        rest_s = spent.cpu_s - sum(spent.model_cpu_s[model] for model in BEFORE_HEADS)
        per_image = {"cpu_ms": 1000 * spent.cpu_s / rate.images, "rest_cpu_ms": 1000 * rest_s / rate.images}
        samples.add(case, images_per_s=rate.images_per_s, **per_image)
    return samples


def _alone(scene: Scene, servers: dict[int, EmbeddedServer]) -> dict[Case, list[float]]:
    """Milliseconds."""
    targets = {case: (servers[case.installed].grpc_url, scene.heads(case.requested)) for case in CASES}
    seconds = scene.settings.rounds * scene.settings.seconds * len(CASES) / 2
    return one_by_one(targets, photographs(MEGAPIXELS), seconds)
