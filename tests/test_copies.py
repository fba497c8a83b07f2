"""Facts that are written twice, because one of their readers imports nothing of ours: the copies are equal."""

from __future__ import annotations

import importlib
import json
import sys

import pytest

from clipsieve import InferenceFailed, triton_messages
from clipsieve.client import EMBEDDING_MODEL, SCORE_MODEL
from clipsieve.transport import PROBE_ID as CLIENTS_PROBE_ID
from common.paths import MODEL_REPOSITORY
from common.triton_messages import ENSEMBLES, HIGHEST_PRIORITY, PROBE_ID, PROCESS_DEAD, QUEUE_REFUSALS, is_queue_refusal
from serving.container import health


@pytest.fixture(scope="module")
def served_probe_id() -> str:
    """The id of probes in the code beside the served preprocessing, which the other Python models copy."""
    folder = str(MODEL_REPOSITORY / "preprocess" / "1")
    sys.path.insert(0, folder)
    try:
        return importlib.import_module("metric_counters").PROBE_ID
    finally:
        sys.path.remove(folder)


def test_the_probes_id_is_that_which_the_metrics_leave_out(served_probe_id: str) -> None:
    assert {PROBE_ID, CLIENTS_PROBE_ID, health.REQUEST["id"]} == {served_probe_id}


def test_the_health_check_is_the_supervisors_probe() -> None:
    assert health.REQUEST == {"id": PROBE_ID, "parameters": {"priority": HIGHEST_PRIORITY}}
    assert (SCORE_MODEL, EMBEDDING_MODEL) == ENSEMBLES == health.ENSEMBLES


REFUSALS = [
    "Exceeds maximum queue size",
    "in ensemble 'image_score', Exceeds maximum queue size",
    "Request timeout expired",
    "Server exiting",
    "in ensemble 'image_score', ",
    "failed to connect to all addresses",
]


@pytest.mark.parametrize("message", REFUSALS)
def test_client_health_check_and_supervisor_agree_on_who_is_busy(message: str) -> None:
    failure = triton_messages.failure_from_status("UNAVAILABLE", message, "localhost:8001")
    busy = isinstance(failure, InferenceFailed) and failure.code == "SERVER_BUSY"
    assert is_queue_refusal(message) is busy
    assert health.is_busy(503, json.dumps({"error": message})) is busy


def test_the_clients_texts_are_the_servings() -> None:
    assert triton_messages.QUEUE_REFUSALS == QUEUE_REFUSALS
    assert triton_messages.PROCESS_DEAD == PROCESS_DEAD
