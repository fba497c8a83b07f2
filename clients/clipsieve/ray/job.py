"""Runs the units of a bulk job on Ray.

The dataset of Ray Data has one row for each unit of work, which a task turns into a file and one row that tells what
became of it: so a unit is what Ray gives to another machine when one dies. Tasks and not actors: Ray starts a lost
task again wherever there is room, while the actors of a lost machine wait for room that idle ones do not give up.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.util import find_spec
from typing import Any, cast

from clipsieve.exceptions import ClipsieveError, RayFailed, ServerUnavailable
from clipsieve.ray.part import Part
from clipsieve.ray.unit import Job, Outcome, Served, Servers, Status, UnitScorer, served

_UNITS_AT_ONCE = 10_000
"""Units in one dataset: Ray keeps a block for each."""

_STORE_BYTES = 128 << 20
"""Object store of a Ray that we start: the job carries little."""

_QUIET = {"RAY_DEDUP_LOGS_SKIP_REGEX": ".*", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
"""Variables that Ray reads when it is imported: it prints no line that matches, and does not warn of a change to
come."""


_AGAIN: dict[Status, type[Exception]] = {"unavailable": ServerUnavailable, "unwritten": OSError}
"""Outcomes that may go better another time or on another machine, and the error that is raised when they do not."""


def check_installed() -> None:
    """Raises RayFailed."""
    if find_spec("ray") is None:
        raise RayFailed("bulk jobs need Ray, which is not installed: pip install 'clipsieve[ray]'")


@contextmanager
def connected(address: str | None, is_quiet: bool = True) -> Iterator[int]:
    """Connect to a cluster, or start Ray on this machine alone; yields how many nodes can work.

    Args:
        address: `auto` for the cluster this machine belongs to, `host:port`, or `ray://host:port`; None for what
            RAY_ADDRESS says or, without that, a Ray of our own.
        is_quiet: drop what Ray and its workers print.

    Raises:
        RayFailed: there is no such cluster.
    """
    ray = _imported(is_quiet)
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    level = logging.ERROR if is_quiet else logging.INFO
    own: dict[str, Any] = (
        {"include_dashboard": False, "object_store_memory": _STORE_BYTES} if address == "local" else {}
    )
    try:
        ray.init(address, log_to_driver=not is_quiet, logging_level=level, **own)
    except Exception as error:  # Ray's own when one of its processes does not start in time
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        remedy = "try again when this machine has less to do" if address == "local" else "is the cluster up?"
        raise RayFailed(f"no Ray at {address!r}: {reason} ({remedy}; --ray-log shows what Ray says)") from None
    try:
        yield sum(1 for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) >= 1) or 1
    finally:
        ray.shutdown()


def served_to_workers(servers: Servers, names: list[str] | None, allow_version_change: bool) -> Served:
    """`ray.unit.served`, asked from a worker: the servers may be where only workers reach them."""
    import ray

    ask = ray.remote(num_cpus=0)(_ask)
    with _ray_errors():
        answer = ray.get(ask.remote(servers, names, allow_version_change))
    if isinstance(answer, ClipsieveError):
        raise answer
    return answer


def outcomes(job: Job, units: list[int], workers: int) -> Iterator[Outcome]:
    """Score units in whatever order, so many at once. Raises what `retried` raises, and

    RayFailed: a task failed otherwise than by the loss of its machine.
    """
    return retried(lambda some: _scored(job, some, workers), units, workers)


def retried(score: Callable[[list[int]], Iterator[Outcome]], units: list[int], workers: int) -> Iterator[Outcome]:
    """The outcome of each unit; one that found no server, or no room, is tried again when the others are done.

    Raises:
        ServerUnavailable, OSError: that happened to so many units in a row that more than one worker has met it.
    """
    left, in_a_row = list(units), 0
    while left:
        now, left = left[:_UNITS_AT_ONCE], left[_UNITS_AT_ONCE:]
        for outcome in score(now):
            if outcome.status not in _AGAIN:
                in_a_row = 0
                yield outcome
                continue
            in_a_row += 1
            left.append(outcome.unit)
            if in_a_row >= 2 * workers - 1:
                raise _AGAIN[outcome.status](outcome.message)


def _scored(job: Job, units: list[int], workers: int) -> Iterator[Outcome]:
    import ray.data

    dataset = ray.data.from_items([{"unit": unit} for unit in units], override_num_blocks=len(units))
    scored = dataset.map_batches(
        cast(Any, _score), batch_size=1, fn_kwargs={"job": job}, concurrency=workers, num_cpus=1
    )
    with _ray_errors():
        for row in scored.iter_rows():
            yield _outcome_from_json(row["outcome"])


_scorers: dict[str, UnitScorer] = {}
"""The one of this worker process, by run: its connections last from unit to unit."""


def _score(batch: dict[str, Any], job: Job) -> dict[str, Any]:
    if job.plan.run_id not in _scorers:
        _scorers[job.plan.run_id] = UnitScorer(job)
    results = [asdict(_scorers[job.plan.run_id].score(int(unit))) for unit in batch["unit"]]
    return {"outcome": [json.dumps({**each, "node": _node()}) for each in results]}


def _ask(servers: Servers, names: list[str] | None, allow_version_change: bool) -> Served | ClipsieveError:
    try:
        return served(servers, names, allow_version_change)
    except ClipsieveError as error:
        return error


def _node() -> str:
    import ray

    return ray.get_runtime_context().get_node_id()


def _outcome_from_json(text: str) -> Outcome:
    fields = json.loads(text)
    part = Part(**fields["part"]) if fields["part"] else None
    return Outcome(**{**fields, "part": part})


def _imported(is_quiet: bool) -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if is_quiet:
        for variable, value in _QUIET.items():
            os.environ.setdefault(variable, value)
    import ray
    import ray.data

    if is_quiet:
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        ray.data.DataContext.get_current().enable_progress_bars = False
    return ray


@contextmanager
def _ray_errors() -> Iterator[None]:
    import ray.exceptions

    try:
        yield
    except ray.exceptions.RayError as error:
        raise RayFailed(f"Ray gave up: {error}") from error
