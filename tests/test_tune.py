"""`tuning`: its candidates, its choice, its records; and a small sweep with the real server and load."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml

from build.errors import BuildError
from build.repository import install
from build.repository_check import check
from common.instances import Processors, with_instances
from common.manifest import ManifestError
from common.paths import ROOT
from common.proof_file import read_proof
from recipes.errors import run_step
from recipes.schema import RECIPES, Recipe, load_recipe, parse_recipe
from tuning.__main__ import concurrencies, main, parser, summary, tune
from tuning.candidates import (
    STAGES,
    Room,
    Setting,
    Stage,
    batch_sizes,
    candidates,
    encoder_layouts,
    preprocess_counts,
)
from tuning.choice import Point, choose, curve, curves
from tuning.conditions import most_copies
from tuning.curve import curves_svg
from tuning.recipe import MARK, edited_text, tuned_text
from tuning.rows import Figures, Row, open_measurements
from tuning.server import CandidateError, Load, _reason, check_load, stamp
from tuning.sweep import CONFIRMATION, Choice, Plan, Sweep

SETTING = Setting(
    encoder_instances=1, intra_op_threads=2, preprocess_instances=2, max_batch_size=32, max_queue_delay_us=0
)
ROOM = Room(cores=2, most_copies=8, most_in_flight=16)
CONDITIONS = {"cpu": "a", "onnx_sha256": "b"}


def recipe_with(build: dict | None = None, **serving: object) -> Recipe:
    heads = [{"name": "any", "class_names": ["no", "yes"]}]
    data = {"name": "r", "description": "r", "encoder": {"model": "m"}, "heads": heads}
    return parse_recipe(data | {"build": build or {}, "serving": serving})


def figures(images_per_s: float, p99_ms: float = 100) -> Figures:
    return Figures(images_per_s=images_per_s, p50_ms=p99_ms / 2, p90_ms=p99_ms, p99_ms=p99_ms)


def points(*throughputs: float, p99_ms: float = 100) -> list[Point]:
    return [Point(2**power, value, p99_ms / 2, p99_ms) for power, value in enumerate(throughputs)]


@pytest.mark.parametrize(
    ("cores", "expected"),
    [
        (1, [(1, 1)]),
        (2, [(1, 2), (2, 1), (1, 1)]),
        (6, [(1, 6), (2, 3), (4, 1), (6, 1), (1, 5)]),
        (16, [(1, 16), (2, 8), (4, 4), (8, 2), (16, 1), (1, 15)]),
    ],
)
def test_encoders_share_out_the_cores(cores, expected):
    assert encoder_layouts(cores, most_copies=99) == expected


def test_copies_that_memory_cannot_hold_are_not_tried():
    assert most_copies(file_bytes=1_000, memory_bytes=16_000) == 4
    assert most_copies(file_bytes=1_000, memory_bytes=100) == 1
    assert encoder_layouts(16, most_copies=4) == [(1, 16), (2, 8), (4, 4), (1, 15)]


def test_counts_follow_from_cores_and_load():
    assert [preprocess_counts(cores) for cores in (1, 2, 16)] == [[1, 2], [1, 2, 3], [1, 8, 16, 24]]
    assert [batch_sizes(most) for most in (1, 16, 20, 5000)] == [[1], [4, 8, 16], [8, 16, 32], [256, 512, 1024]]
    assert concurrencies(1) == [1, 2, 4, 8]
    assert concurrencies(2) == [1, 2, 4, 8, 16]


@pytest.mark.parametrize("stage", STAGES)
def test_the_incumbent_comes_first_and_once(stage):
    recipe = recipe_with(**SETTING.model_dump())
    settings = candidates(stage, SETTING, recipe, ROOM)
    assert settings[0] == SETTING == Setting.of(recipe.serving)
    assert len(set(settings)) == len(settings)


def test_what_the_recipe_forbids_is_not_tried():
    recipe = recipe_with()
    own = Setting.of(recipe.serving)
    assert candidates("delay", own, recipe, ROOM) == [own]  # it has queue limits
    free = recipe_with(queue_timeout_ms=0, max_queue_size=0)
    delays = [setting.max_queue_delay_us for setting in candidates("delay", own, free, ROOM)]
    assert delays == [0, 500, 2000]
    with_plan = recipe_with({"engine": {"opt_batch_size": 8}})
    sizes = [setting.max_batch_size for setting in candidates("batch", own, with_plan, ROOM)]
    assert sizes == [32, 8, 16]


def test_a_setting_leaves_the_rest_of_a_recipe_alone():
    for name in ("demo", "nsfw-vit-l-14"):
        recipe = load_recipe(name)
        changed = SETTING.applied_to(recipe)
        assert Setting.of(changed.serving) == SETTING
        assert changed.model_copy(update={"serving": recipe.serving}) == recipe


def test_curves_are_medians_and_leave_out_what_fails_in_half_of_the_rounds():
    def row(round_: int, concurrency: int, measured: Figures | None) -> Row:
        error = None if measured else "refused"
        return Row(stage="batch", round=round_, setting=SETTING, concurrency=concurrency, figures=measured, error=error)

    rows = [row(round_, 4, figures(value, 10 * value)) for round_, value in enumerate((30.0, 10.0, 20.0))]
    rows += [row(0, 1, figures(5.0, 50)), row(0, 16, figures(99)), row(1, 16, None)]
    rows += [row(0, 8, figures(40, 100)), row(1, 8, None), row(2, 8, figures(20, 100))]
    rows.append(Row(stage="batch", round=2, setting=SETTING, error="did not start"))
    assert curve(rows) == [Point(1, 5.0, 25.0, 50.0), Point(4, 20.0, 100.0, 200.0), Point(8, 30.0, 50.0, 100.0)]


def test_the_highest_throughput_wins():
    fast = SETTING.change(encoder_instances=2)
    assert choose({SETTING: points(10, 50), fast: points(20, 53)}, SETTING, None) == fast


def test_of_equals_the_cheapest_wins():
    copies = SETTING.change(encoder_instances=2)
    processes = SETTING.change(preprocess_instances=3)
    batch = SETTING.change(max_batch_size=16)
    measured = {copies: points(50.9), processes: points(50.5), SETTING: points(50.0), batch: points(49.9)}
    assert choose(measured, copies, None) == batch
    threads = SETTING.change(intra_op_threads=1)
    assert choose({threads: points(50.5), SETTING: points(50)}, SETTING, None) == SETTING  # costs the same: keep it


def test_the_budget_comes_before_throughput():
    slow = SETTING.change(encoder_instances=2)
    measured = {SETTING: points(50, p99_ms=300), slow: points(20, 30, p99_ms=150)}
    assert choose(measured, SETTING, 200) == slow
    assert choose(measured, SETTING, 100) == slow  # nearest to it
    assert choose({SETTING: [], slow: []}, SETTING, None) == SETTING


RECIPE_TEXT = """# A recipe.
name: r
description: r  # of nothing
encoder: {model: m}
heads: [{name: any, class_names: ['no', 'yes']}]
"""
SERVINGS = {
    "none": "",
    "block": "serving:\n  # as it was\n  encoder_instances: 4   # copies\n  watch: true\n",
    "block in the middle": "serving:\n    encoder_instances: 4\n    watch: true # too\n\nbuild: {opset: 19}\n",
    "block that ends in a list": "serving:\n  watch: true # too\n  formats:\n    - JPEG\n    # the other\n    - PNG\n",
    "a list alone": "serving:\n  formats:\n    - JPEG\n",
    "in braces": "serving: {encoder_instances: 4, watch: true}  # both\n",
    "in braces over lines": "serving: {\n  watch: true,  # too\n  encoder_instances: 4,\n}\n",
    "empty braces": "serving: {}",
    "quoted": "'serving':\n  \"encoder_instances\": 4\n  watch: true",
}


@pytest.mark.parametrize("name", SERVINGS)
def test_a_copy_differs_in_its_numbers_alone(name):
    text = RECIPE_TEXT + SERVINGS[name]
    recipe = parse_recipe(yaml.safe_load(text))
    copy = tuned_text(text, recipe, SETTING, ["by a test"])
    assert copy.startswith(f"{MARK}by a test\n# A recipe.\n")
    assert parse_recipe(yaml.safe_load(copy)) == SETTING.applied_to(recipe)
    comments = [line.partition("#")[2] for line in text.splitlines() if "#" in line]
    assert all(f"#{comment}\n" in copy for comment in comments)
    assert "written anew" not in copy


def test_a_copy_says_what_the_goal_would_decide():
    """It is for this machine; on another one the goal decides otherwise, beside numbers that were measured here."""
    text = RECIPE_TEXT + "serving: {goal: throughput}\n"
    recipe = parse_recipe(yaml.safe_load(text))
    own = Setting.of(recipe.serving)
    assert own == Setting.of(with_instances(recipe.serving, Processors.of_this_machine()))
    copy = parse_recipe(yaml.safe_load(tuned_text(text, recipe, own, ["by a test"])))
    assert copy.serving.goal == "throughput"
    assert copy.serving.encoder_instances == own.encoder_instances
    assert with_instances(copy.serving, Processors(64)) == copy.serving


def test_only_what_differs_is_written():
    text = RECIPE_TEXT + SERVINGS["block"]
    assert edited_text(text, {}) == text
    assert edited_text(text, {"encoder_instances": 1}) == text.replace("encoder_instances: 4 ", "encoder_instances: 1 ")


def test_a_second_sweep_replaces_what_the_first_reported():
    text = RECIPE_TEXT + SERVINGS["block"]
    recipe = parse_recipe(yaml.safe_load(text))
    once = tuned_text(text, recipe, SETTING, ["one", "two"])
    again = tuned_text(once, SETTING.applied_to(recipe), SETTING, ["three"])
    assert again == once.replace(f"{MARK}one\n{MARK}two\n", f"{MARK}three\n")


def test_where_a_key_cannot_be_changed_in_place_the_copy_is_written_anew():
    text = RECIPE_TEXT.replace("{model: m}", "{model: m, seed: &four 4}") + "serving: {encoder_instances: *four}\n"
    recipe = parse_recipe(yaml.safe_load(text))
    copy = tuned_text(text, recipe, SETTING, [])
    assert "written anew" in copy
    assert parse_recipe(yaml.safe_load(copy)) == SETTING.applied_to(recipe)


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_can_be_copied(path):
    recipe = load_recipe(path)
    copy = tuned_text(path.read_text(), recipe, SETTING, [])
    assert parse_recipe(yaml.safe_load(copy)) == SETTING.applied_to(recipe)
    assert "written anew" not in copy


def test_measurements_go_on_where_they_were_cut_off(tmp_path):
    path = tmp_path / "tuned.jsonl"
    row = Row(stage="batch", round=0, setting=SETTING, concurrency=4, figures=figures(5))
    failed = Row(stage="batch", round=1, setting=SETTING, error="did not start")
    open_measurements(path, CONDITIONS, resume=True).add([row, failed])
    path.write_text(path.read_text() + row.model_dump_json()[:40])
    again = open_measurements(path, dict(reversed(CONDITIONS.items())), resume=True)
    assert again.rows == [row, failed]
    assert again.is_measured("batch", 0, SETTING)
    assert not again.is_measured("batch", 1, SETTING)  # it may start this time
    again.add([row])
    assert open_measurements(path, CONDITIONS, resume=True).rows == [row, failed, row]
    assert open_measurements(path, CONDITIONS, resume=False).rows == []


def test_measurements_of_other_conditions_are_refused(tmp_path):
    path = tmp_path / "tuned.jsonl"
    open_measurements(path, CONDITIONS, resume=False)
    before = path.read_bytes()
    with pytest.raises(BuildError, match=r"other conditions(?s:.*)onnx_sha256: then b, now c"):
        open_measurements(path, CONDITIONS | {"onnx_sha256": "c"}, resume=True)
    assert path.read_bytes() == before
    path.write_text("{}\n")
    with pytest.raises(BuildError, match="not a sweep's measurements"):
        open_measurements(path, CONDITIONS, resume=True)


class Machine:
    """A machine whose throughput follows from the setting; counts what is measured on it."""

    def __init__(self) -> None:
        self.measured: list[Setting] = []

    def __call__(self, setting: Setting) -> dict[int, Figures | str]:
        self.measured.append(setting)
        if setting.preprocess_instances == 3:
            raise CandidateError("no memory")
        throughput = 10.0 * setting.encoder_instances + 30 * (setting.preprocess_instances == 2)
        return {1: figures(throughput / 2, 20), 4: figures(throughput, 80), 16: "refused"}


def sweep(
    path: Path,
    machine: Machine,
    recipe: Recipe,
    reports: list[str],
    stages: tuple[Stage, ...] = STAGES,
    p99_budget_ms: float | None = None,
) -> Choice:
    measurements = open_measurements(path, CONDITIONS, resume=True)
    return Sweep(recipe, Plan(stages, ROOM, 2, p99_budget_ms), measurements, machine, reports.append).run()


def test_a_sweep_carries_the_best_of_each_stage_on(tmp_path):
    machine, reports = Machine(), []
    recipe = recipe_with(preprocess_instances=1)
    choice = sweep(tmp_path / "rows.jsonl", machine, recipe, reports)
    assert choice.setting == Setting.of(recipe.serving).change(
        encoder_instances=2, intra_op_threads=1, preprocess_instances=2, max_batch_size=4
    )
    assert choice.point == Point(4, 50.0, 40.0, 80.0)
    assert choice.before == Point(4, 10.0, 40.0, 80.0)
    assert machine.measured[0] == machine.measured[7] == Setting.of(recipe.serving)  # rounds begin with another
    assert sum(setting.preprocess_instances == 3 for setting in machine.measured) == 1  # it never starts
    assert any("no memory" in line for line in reports)
    assert any("failed at 16 in flight" in line for line in reports)


def test_an_interrupted_sweep_measures_nothing_twice(tmp_path):
    class Interrupted(Machine):
        def __call__(self, setting: Setting) -> dict[int, Figures | str]:
            if len(self.measured) == 5:
                raise KeyboardInterrupt
            return super().__call__(setting)

    whole, first, second = Machine(), Interrupted(), Machine()
    recipe = recipe_with(preprocess_instances=1)
    expected = sweep(tmp_path / "whole.jsonl", whole, recipe, [])
    with pytest.raises(KeyboardInterrupt):
        sweep(tmp_path / "rows.jsonl", first, recipe, [])
    assert sweep(tmp_path / "rows.jsonl", second, recipe, []) == expected
    assert first.measured + second.measured == whole.measured
    third = Machine()
    assert sweep(tmp_path / "rows.jsonl", third, recipe, []) == expected
    assert {setting.preprocess_instances for setting in third.measured} == {3}  # what failed is tried again


def test_a_winner_is_compared_with_the_recipes_own_setting(tmp_path):
    path = tmp_path / "rows.jsonl"
    sweep(path, Machine(), recipe_with(preprocess_instances=1), [])
    assert CONFIRMATION in {row.stage for row in open_measurements(path, CONDITIONS, resume=True).rows}
    path.unlink()
    sweep(path, Machine(), recipe_with(preprocess_instances=1), [], stages=("preprocess",))  # its rounds had both
    assert {row.stage for row in open_measurements(path, CONDITIONS, resume=True).rows} == {"preprocess"}


def test_a_budget_that_nothing_meets_is_reported(tmp_path):
    with pytest.raises(BuildError, match=r"p99 of at most 10 ms; the lowest is .* p99 20 ms at 1 in flight"):
        sweep(tmp_path / "rows.jsonl", Machine(), recipe_with(), [], p99_budget_ms=10.0)


def test_a_sweep_in_which_nothing_starts_ends(tmp_path):
    with pytest.raises(BuildError, match="no setting could be measured; the last error: no memory"):
        sweep(tmp_path / "rows.jsonl", Machine(), recipe_with(preprocess_instances=3), [], stages=("encoder",))


def test_the_picture_is_svg_with_every_curve():
    others = [SETTING.change(encoder_instances=count) for count in range(2, 12)]
    measured = {SETTING: points(5, 9, 12), **{other: points(4, 8, 9) for other in others}, others[0]: []}
    picture = curves_svg(measured, others[1], SETTING, "demo on a machine", 200)
    assert ElementTree.fromstring(picture).tag == "{http://www.w3.org/2000/svg}svg"
    text = picture.decode()
    for label in ("throughput (images/s)", "median latency (ms)", "99th percentile of latency (ms)", "4 in flight"):
        assert label in text
    assert f"{SETTING} (the recipe's own)" in text
    assert f"{others[1]} (chosen)" in text
    assert f"{others[2]}<" in text
    assert str(others[0]) not in text
    assert curves_svg(measured, others[1], SETTING, "demo on a machine", 200) == picture


def test_the_summary_tells_machine_versions_and_figures():
    own = SETTING.change(encoder_instances=2)
    conditions = {"recipe": "r", "cpu": "A CPU", "cores": 2, "gpus": [], "pictures": 9, "seconds": 3.0}
    plan = Plan(STAGES, ROOM, 3, 250.0)
    lines = summary(
        Choice(SETTING, points(50)[0], own, points(40)[0]),
        plan,
        conditions | {"versions": {"onnxruntime": "1.31.1"}},
        "/somewhere/r.yaml",
    )
    text = "\n".join(lines)
    for part in (
        "`python -m tuning --recipe r.yaml --p99-ms 250`",
        "A CPU, 2 cores; onnxruntime 1.31.1",
        "9 pictures, one a request; medians of 3 rounds of 3 s",
        "changed: encoder_instances 2 → 1",
        "now: 50.0 images/s, p50 50 ms, p99 100 ms at 1 in flight",
        "before: 40.0 images/s",
    ):
        assert part in text


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (
            "a note\nserving.embedded: no answer\nend of the log:\nW1 odd",
            "serving.embedded: no answer\nend of the log:\nW1 odd",
        ),
        ("serving.embedded: no answer\n" + 40 * "W1 odd\n", "serving.embedded: no answer" + 11 * "\nW1 odd"),
        ("Traceback\n  a line\nKeyError: 'a'", "KeyError: 'a'\nTraceback\n  a line"),
        ("", "it ended and said nothing"),
    ],
)
def test_why_a_server_did_not_start_comes_first(said, told):
    assert _reason(said, "serving.embedded") == told


def test_a_proof_asks_for_no_more_than_the_setting_allows(repository, demo, tmp_path):
    """The server of a smaller batch refuses a larger request, and would never be ready."""
    install(demo, tmp_path / "models", "onnx")
    before = read_proof(tmp_path / "models")
    stamp(SETTING.change(max_batch_size=2).applied_to(demo), tmp_path / "models")
    assert check(tmp_path / "models") == []
    assert read_proof(tmp_path / "models") == replace(before, batch_size=2)
    stamp(SETTING.applied_to(demo), tmp_path / "models")
    assert read_proof(tmp_path / "models") == before


def refusal(*options: object) -> str:
    """The message of a run that stops before anything is measured."""
    with pytest.raises((BuildError, ManifestError)) as caught:
        tune(parser().parse_args([str(option) for option in options]))
    return str(caught.value)


def test_files_that_are_there_are_not_replaced(tmp_path):
    there = tmp_path / "tuned.yaml"
    (tmp_path / "tuned.jsonl").touch()
    assert "go on with it (--resume)" in refusal("--recipe", "demo", "--out", there)
    there.touch()
    assert "replace it with --overwrite" in refusal("--recipe", "demo", "--out", there, "--resume")
    assert "is the recipe itself" in refusal(
        "--recipe", RECIPES / "demo.yaml", "--out", RECIPES / "demo.yaml", "--overwrite"
    )
    assert "ends in .yaml" in refusal("--recipe", "demo", "--out", tmp_path / "tuned.txt")


def test_a_recipe_that_is_not_built_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("signal.signal", lambda *_: None)  # this process keeps its own handlers
    arguments = ["--recipe", "taste-vit-b-32", "--out", str(tmp_path / "tuned.yaml")]
    assert run_step("tuning", lambda: main(arguments)) == 1
    assert "make it with: python -m build.encoder" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_folder_without_images_is_refused(repository, tmp_path):
    assert "no images in it" in refusal("--recipe", "demo", "--out", tmp_path / "t.yaml", "--images", tmp_path)
    with pytest.raises(BuildError, match="no such folder"):
        check_load("demo", Load((1,), 1, tmp_path / "none"))


@pytest.mark.parametrize("options", [["--concurrency"], ["--concurrency", "0"], ["--seconds", "0"], ["--rounds", "x"]])
def test_numbers_that_make_no_sweep_are_refused(options, capsys):
    with pytest.raises(SystemExit) as caught:
        parser().parse_args(["--recipe", "demo", *options])
    assert caught.value.code == 2
    assert options[0] in capsys.readouterr().err


def test_a_real_sweep_of_two_candidates(repository, tmp_path):
    """The real server and perf_analyzer, from a folder that is not the project's."""
    options = ["--out", "tuned.yaml", "--stages", "preprocess", "--cores", "1", "--rounds", "1"]
    options += ["--concurrency", "1", "4", "--seconds", "0.3"]
    finished = subprocess.run(
        [sys.executable, "-m", "tuning", "--recipe", "demo", *options],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout == "tuned.yaml\n"
    own, tuned = load_recipe("demo"), load_recipe(tmp_path / "tuned.yaml")
    assert tuned.model_copy(update={"serving": own.serving}) == own
    assert tuned.serving.preprocess_instances in (1, 2)
    assert "# So small an encoder gains nothing" in (tmp_path / "tuned.yaml").read_text()
    first, *lines = (tmp_path / "tuned.jsonl").read_text().splitlines()
    rows = [Row.model_validate_json(line) for line in lines]
    assert "onnx_sha256" in first
    assert [(row.setting.preprocess_instances, row.concurrency) for row in rows] == [(2, 1), (2, 4), (1, 1), (1, 4)]
    assert all(row.figures is not None and row.figures.images_per_s > 0 for row in rows), finished.stderr
    assert set(curves(rows)) == {Setting.of(own.serving), Setting.of(own.serving).change(preprocess_instances=1)}
    ElementTree.parse(tmp_path / "tuned.svg")
