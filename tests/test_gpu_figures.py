"""The arithmetic of the benchmark on a GPU: times, shares of the card, and what is said of a part that did not run."""

from __future__ import annotations

from itertools import count

import pytest

from benchmarks.gpu.__main__ import state_of
from benchmarks.gpu.figures import DRY_RUN, page, with_shares
from benchmarks.gpu.part import CANNOT_RUN, FUNCTIONS
from benchmarks.gpu.plan import Part, Rows, Settings, chosen, limit_of, parts_of, recipe_of_model
from benchmarks.gpu.timing import LEAST_ROUND_S, seconds_per_call

REAL, DRY = Settings.of(False, 2.0), Settings.of(True, 2.0)
HARDWARE = {"cpu": "a CPU", "cores": 16, "gpus": ["a card"], "versions": {"torch": "2"}}


def part(kind: str, *rows: dict, **others) -> dict:
    return {"part": kind, "kind": kind, "status": "measured", "seconds": 1.0, "rows": list(rows)} | others


def test_a_calls_time_is_that_of_a_round_by_its_calls():
    """A clock that only work moves: 2 ms a call, all of it seen when the device is waited for."""
    now, queued = [0.0], [0]

    def wait() -> None:
        now[0] += 0.002 * queued[0]
        queued[0] = 0

    def call() -> None:
        queued[0] += 1

    assert seconds_per_call(call, wait, 0.5, clock=lambda: now[0]) == pytest.approx(0.002)
    assert now[0] >= 0.5


def test_calls_that_take_no_time_end():
    ticks = count()
    assert seconds_per_call(lambda: None, lambda: None, 0.01, clock=lambda: next(ticks) * LEAST_ROUND_S) > 0


def test_an_encoders_share_is_of_the_product_of_its_type():
    results = [
        part("matmul", {"dtype": "fp16", "tflops": 800.0}, {"dtype": "fp32", "tflops": 50.0}),
        part("export", {"model": "B/32", "precision": "fp16"}, {"model": "B/32", "flops_per_image": 8e9}),
        part("onnxruntime", {"model": "B/32", "dtype": "fp16", "images_per_s": 50_000.0}),
        part("torch", {"model": "L/14", "dtype": "fp16", "images_per_s": 1000.0}),
    ]
    *_, runtime, torch = with_shares(results)
    assert runtime["rows"][0]["tflops"] == pytest.approx(400)
    assert runtime["rows"][0]["of_matmul"] == pytest.approx(0.5)
    assert "of_matmul" not in torch["rows"][0]  # its operations were not counted
    assert "of_matmul" not in with_shares(results[1:])[1]["rows"][0]  # the card was not measured


def test_the_page_says_what_ran_and_why_the_rest_did_not():
    results = [part("matmul", {"dtype": "fp16", "tflops": 800.0}), part("dali", status="cannot run", reason="no DALI")]
    text = page(results, HARDWARE, dry_run=False)
    assert "| dali | cannot run | 1 | no DALI |" in text
    assert "a CPU, 16 cores, a card" not in text or "fp16 | 800" in text
    assert DRY_RUN not in text
    assert DRY_RUN in page(results, HARDWARE, dry_run=True)


@pytest.mark.parametrize(
    ("status", "log", "state", "reason"),
    [
        (0, "warning", "measured", None),
        (CANNOT_RUN, "x\nno GPU\n\n", "cannot run", "no GPU"),
        (1, "Traceback\nValueError: 3", "failed (1)", "ValueError: 3"),
        (-9, "", "failed (-9)", "it said nothing"),
        (None, "compiling", "stopped", "it took longer than 30 s; its last line was: compiling"),
    ],
)
def test_how_a_part_ended(status, log, state, reason):
    ended = state_of(status, log, 30)
    assert (ended["status"], ended.get("reason")) == (state, reason)


def test_parts_share_the_time_and_the_last_ones_go_without():
    part = Part("matmul", None, 60)
    assert [limit_of(part, left) for left in (500, 20, 5, 4.9, -3)] == [60, 20, 5, None, None]
    assert sum(part.limit_s for part in parts_of(REAL) if part.kind != "export") <= 800  # whatever is left is divided


def test_every_part_has_a_function_and_brings_what_it_needs():
    assert {part.kind for part in parts_of(REAL)} == {part.kind for part in parts_of(DRY)} == set(FUNCTIONS)
    assert [part.name for part in chosen(parts_of(REAL), ["matmul"])] == ["matmul"]
    assert [part.name for part in chosen(parts_of(DRY), ["served"])] == ["export tiny", "served tiny"]
    assert chosen(parts_of(DRY), None) == parts_of(DRY)


def test_settings_and_rows_go_through_files(tmp_path):
    assert Settings.from_json(REAL.to_json()) == REAL
    rows = Rows(tmp_path / "rows.json")
    rows.add(batch=1)
    rows.add(batch=2)
    assert (tmp_path / "rows.json").read_text() == '[{"batch": 1}, {"batch": 2}]'


def test_models_are_of_random_weights_in_fp16():
    for model in (*REAL.models, *DRY.models):
        recipe = recipe_of_model(model)
        assert (recipe.build.precision, recipe.encoder.weights_source) == ("fp16", "random-1")
    assert [recipe_of_model(model).name for model in REAL.models] == ["gpu-b-32", "gpu-l-14"]
