"""common.instances: how many encoders, threads and decoding processes a goal makes of a machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.instances import (
    Processors,
    instances_line,
    is_decided,
    other_machine_note,
    preferred_batch,
    recorded_processors,
    with_instances,
)
from recipes.schema import RecipeError, load_recipe, parse_recipe
from recipes.serving_section import Serving


def numbers(serving: Serving, cores: int, gpus: int = 0) -> tuple[int | None, int | None, int | None]:
    """(encoders, threads of each, processes that decode)."""
    full = with_instances(serving, Processors(cores, gpus))
    return full.encoder_instances, full.intra_op_threads, full.preprocess_instances


@pytest.mark.parametrize("cores", [1, 2, 4, 16, 64])
@pytest.mark.parametrize("gpus", [0, 1])
def test_for_latency_one_encoder_has_all_cores_whatever_the_machine(cores, gpus):
    assert numbers(Serving(), cores, gpus) == (1, 0, 2)


@pytest.mark.parametrize(
    ("cores", "encoders", "threads", "decoding"),
    [(1, 1, 1, 2), (2, 2, 1, 2), (4, 4, 1, 4), (16, 8, 2, 16), (64, 16, 4, 64)],
)
def test_for_throughput_encoders_share_out_the_cores(cores, encoders, threads, decoding):
    assert numbers(Serving(goal="throughput"), cores) == (encoders, threads, decoding)


def test_for_throughput_no_core_is_given_twice_and_few_are_left():
    for cores in range(1, 130):
        encoders, threads, _ = numbers(Serving(goal="throughput"), cores)
        assert encoders is not None
        assert threads is not None
        assert 0.75 * cores <= encoders * threads <= cores


def test_for_throughput_on_a_gpu_there_are_two_encoders_and_all_cores_decode():
    assert numbers(Serving(goal="throughput"), 16, 1) == (2, 8, 16)
    assert numbers(Serving(goal="throughput"), 16, 4) == (2, 2, 16)


@pytest.mark.parametrize("goal", ["latency", "throughput"])
def test_numbers_in_the_recipe_win(goal):
    given = Serving(goal=goal, encoder_instances=3, intra_op_threads=5, preprocess_instances=7)
    assert numbers(given, 16) == (3, 5, 7)
    assert not is_decided(given)


def test_what_the_recipe_leaves_out_follows_from_what_it_gives():
    assert numbers(Serving(goal="throughput", encoder_instances=4), 16) == (4, 4, 16)
    assert numbers(Serving(goal="throughput", intra_op_threads=8), 16) == (2, 8, 16)
    assert numbers(Serving(goal="throughput", intra_op_threads=0), 16)[1] == 0
    assert numbers(Serving(preprocess_instances=5), 16) == (1, 0, 5)


@pytest.mark.parametrize(("cores", "preferred"), [(1, 4), (2, 4), (16, 8), (64, 16)])
def test_for_throughput_a_batch_is_four_pictures_a_thread(cores, preferred):
    assert preferred_batch(Serving(goal="throughput"), Processors(cores)) == preferred
    assert preferred_batch(Serving(goal="throughput", max_batch_size=2), Processors(cores)) == 2
    assert preferred_batch(Serving(goal="throughput"), Processors(cores, 1)) is None
    assert preferred_batch(Serving(), Processors(cores)) is None


def test_the_line_says_what_was_decided_and_for_what():
    assert instances_line(Serving(goal="throughput"), Processors(2)) == (
        "2 encoders of 1 thread, 2 to decode; for goal throughput on 2 cores"
    )
    assert instances_line(Serving(), Processors(8)) == "1 encoder of all cores, 2 to decode; goal latency"
    assert instances_line(Serving(goal="throughput"), Processors(16, 1)) == (
        "2 encoders a GPU, 16 to decode; for goal throughput on 16 cores and 1 GPU"
    )


def test_the_schema_knows_the_goals():
    recipe = load_recipe("demo").model_dump(exclude_unset=True)
    with pytest.raises(RecipeError, match=r"serving.goal: .*'latency' or 'throughput'"):
        parse_recipe(recipe | {"serving": {"goal": "speed"}})


def config(repository: Path, text: str) -> Path:
    (repository / "clip_encoder").mkdir(exist_ok=True)
    (repository / "clip_encoder" / "config.pbtxt").write_text(text)
    return repository


@pytest.mark.parametrize(
    "text",
    [
        r'parameters { key: "instances_for" value { string_value: "{\"cores\": 2, \"gpus\": 1}" } }',
        'key: "instances_for"\n  value {\n    string_value: "{\\"cores\\": 2, \\"gpus\\": 1}"\n  }\n',
    ],
)
def test_the_machine_is_read_from_the_config_and_another_one_is_told(tmp_path, text):
    repository = config(tmp_path, text)
    assert recorded_processors(repository) == Processors(2, 1)
    assert other_machine_note(repository, Processors(2, 1)) is None
    note = other_machine_note(repository, Processors(16))
    assert note is not None
    assert "for 2 cores and 1 GPU, this machine has 16 cores" in note


@pytest.mark.parametrize("text", ["", 'key: "instances_for" value { string_value: "two" }', 'key: "other"'])
def test_a_repository_without_a_record_is_for_any_machine(tmp_path, text):
    assert other_machine_note(config(tmp_path, text), Processors(2)) is None


def test_no_repository_has_no_record(tmp_path):
    assert recorded_processors(tmp_path / "nothing") is None
