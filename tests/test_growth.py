"""benchmarks.growth: cases in turns, their report in figures, words and pictures, and copied heads."""

from __future__ import annotations

import asyncio
import json
from statistics import median
from xml.etree import ElementTree

import pytest
import yaml
from pictures import jpeg

from benchmarks.comparison import rounded
from benchmarks.growth import __main__ as growth
from benchmarks.growth import batches, heads, rates, sizes
from benchmarks.growth.head_copies import with_head_copies
from benchmarks.growth.load import RequestsInTurn, group_requests, kept_busy, one_by_one, per_second, smallest_good
from benchmarks.growth.photographs import photographs
from benchmarks.growth.pictures import svgs
from benchmarks.growth.rounds import Samples, interleaved, rotated, slope
from benchmarks.growth.scene import Scene, Settings
from benchmarks.growth.spent import Counted, Spent, read_spent
from benchmarks.growth.titles import batches_title, heads_title, rates_title, sizes_title
from benchmarks.offered_load import Answer, Caller, service_pb2
from benchmarks.results.views import terminal_text
from build.repository import install
from build.repository_check import check
from common.manifest import read_encoder, read_head
from common.paths import encoder_folder
from common.pixels import served_transform
from recipes.errors import run_step
from recipes.serving_section import Serving

SVG = "{http://www.w3.org/2000/svg}"


def head_row(installed: int, requested: int, p50_ms: float, cpu_ms: float) -> dict:
    spent = {"cpu_ms": cpu_ms, "rest_cpu_ms": cpu_ms - 59}
    measured = {"images_per_s": 1000 / cpu_ms, "p50_ms": p50_ms, **spent}
    return {"installed": installed, "asked": requested, **measured, "resident_mib": 500.0 + 60 * installed}


def size_row(megapixels: float, decoding_ms: float) -> dict:
    spent = {"cpu_ms": 31 + decoding_ms, "preprocess_cpu_ms": decoding_ms, "encoder_cpu_ms": 30.0}
    steps = {"p50_ms": 20 + decoding_ms, "preprocess_ms": decoding_ms, "encoder_ms": 18.0}
    size = {"megapixels": megapixels, "mean_bytes": round(megapixels * 2e5)}
    return {**size, "images_per_s": 2000 / (31 + decoding_ms), **spent, **steps}


def rate_row(percent: int, p50_ms: float | None, refused_ratio: float) -> dict:
    many = None if p50_ms is None else 3 * p50_ms
    latencies = {"p50_ms": p50_ms, "p95_ms": many, "p99_ms": many}
    ratios = {"refused_ratio": refused_ratio, "failed_ratio": 0.0}
    return {"percent": percent, "rate_per_s": percent / 4, "requests": 90, **latencies, **ratios}


def batch_row(size: int, concurrency: int, images_per_s: float) -> dict:
    measured = {"images_per_s": images_per_s, "p50_ms": 1000 * size * concurrency / images_per_s}
    return {"images_per_request": size, "concurrency": concurrency, **measured, "encoder_batch": concurrency / 2}


@pytest.fixture
def result() -> dict:
    """A result as a run prints it."""
    rows = [head_row(count, count, 40 + 0.5 * count, 60 + 0.25 * count) for count in heads.COUNTS]
    rows.append(head_row(16, 1, 40.6, 60.3))
    added = {"per_head": heads.per_head(rows), "unasked": heads.unasked(rows), "idle_cores": 0.01}
    loaded = [rate_row(percent, percent / 2, 0.25 if percent == 100 else 0.0) for percent in rates.PERCENTS]
    by_request = [batch_row(size, 32 // size, 24 + size / 16) for size in batches.IMAGES_PER_REQUEST]
    by_concurrency = [batch_row(1, each, 25 * each / (each + 0.5)) for each in batches.CONCURRENCIES]
    return {
        "benchmark": "growth",
        "recipe": "any",
        "heads": {"rows": rows, **added},
        "sizes": {"decode": "exact", "rows": [size_row(each, 10 * each) for each in sizes.MEGAPIXELS]},
        "rates": {"capacity_per_s": 25.0, "queue_timeout_ms": 700, "rows": loaded},
        "batches": {"in_flight": 32, "by_request": by_request, "by_concurrency": by_concurrency},
        "problems": {},
        "machine": {"cpu": "any", "cores": 2},
    }


# ---- rounds ----


def test_every_case_is_measured_once_a_round_and_none_is_always_first(capsys):
    order = list(interleaved("letters", "abcd", 2))
    assert order == [*"abcd", *"cdab"]
    assert "growth: letters: round 2 of 2" in capsys.readouterr().err
    assert rotated([1, 2, 3], 1) == [2, 3, 1]


def test_told_are_medians_of_rounds():
    samples = Samples[str]()
    for value in (3.0, 1.0, 9.0):
        samples.add("a", ms=value)
    samples.add("a", other=5.0)
    assert samples.medians("a") == {"ms": 3.0, "other": 5.0}


def test_slope():
    assert slope([1, 2, 4, 8, 16], [40 + 0.5 * count for count in (1, 2, 4, 8, 16)]) == pytest.approx(0.5)


def test_json_has_four_digits_and_no_nan():
    assert rounded({"a": [1.23456, float("nan")], "b": 123456, "c": "text"}) == {
        "a": [1.235, None],
        "b": 123456,
        "c": "text",
    }


# ---- figures ----


def test_each_heads_cost_is_of_those_that_are_asked_for(result):
    added = result["heads"]["per_head"]
    assert added == pytest.approx({"p50_ms": 0.5, "cpu_us": 250, "resident_mib": 60})
    unasked = result["heads"]["unasked"]
    assert unasked["installed"] == 16
    assert unasked["p50_ms_ratio"] == pytest.approx(40.6 / 40.5)


def test_the_fewest_in_flight_that_bring_nearly_all():
    assert smallest_good({4: 90.0, 8: 97.5, 16: 100.0, 32: 99.0}) == 8


def answers(statuses: dict[str, int]) -> list[Answer]:
    return [Answer(0.1 * number, 0.5, status) for status, count in statuses.items() for number in range(count)]


def test_shares_of_what_was_offered():
    row = rates.row_of(80, 25.0, answers({"OK": 6, "UNAVAILABLE": 3, "DEADLINE_EXCEEDED": 1}))
    assert (row["rate_per_s"], row["requests"]) == (20, 10)
    assert (row["refused_ratio"], row["failed_ratio"]) == pytest.approx((0.3, 0.1))
    assert row["p99_ms"] == pytest.approx(500)


def test_latencies_of_no_scores_are_none():
    row = rounded(rates.row_of(100, 25.0, answers({"UNAVAILABLE": 2})))
    assert (row["p50_ms"], row["refused_ratio"]) == (None, 1)


def test_answers_a_second_count_from_the_first_request_to_the_last_answer():
    assert per_second(answers({"OK": 6})) == pytest.approx(6 / 1.0)


def test_what_was_spent_is_a_difference():
    before = Spent(1.0, {"preprocess": 0.5}, {"clip_encoder": Counted(10, 5, 100.0)})
    after = Spent(3.0, {"preprocess": 1.0, "new": 0.25}, {"clip_encoder": Counted(30, 10, 400.0)})
    spent = after.since(before)
    assert (spent.cpu_s, spent.model_cpu_s) == (2.0, {"preprocess": 0.5, "new": 0.25})
    encoder = spent.counted["clip_encoder"]
    assert (encoder.images_per_batch, encoder.compute_ms_per_image) == (4, 15)


# ---- the load ----


def test_a_request_of_several_pictures_begins_at_each_of_them():
    requests = [
        service_pb2.ModelInferRequest.FromString(data) for data in group_requests([b"one", b"two", b"three"], 4)
    ]
    assert [list(request.inputs[0].shape) for request in requests] == [[4, 1]] * 3
    assert requests[1].raw_input_contents[0] == b"\3\0\0\0two\5\0\0\0three\3\0\0\0one\3\0\0\0two"
    assert requests[0].parameters["priority"].int64_param == 2


def test_prepared_requests_take_turns():
    class Echo(Caller):
        def __init__(self) -> None:
            pass

        async def __call__(self, request: bytes) -> Answer:
            return Answer(0.0, 0.0, request.decode())

    async def run() -> list[str]:
        caller = RequestsInTurn(Echo(), [b"a", b"b"])
        return [(await caller()).status for _ in range(3)]

    assert asyncio.run(run()) == ["a", "b", "a"]


def test_photographs_of_a_size(demo, encoder):
    views = read_encoder(encoder_folder(demo)).preprocessing
    files = photographs(0.05)
    assert len(files) == 9
    assert served_transform(views, Serving(formats=["JPEG"]))(files[0]).shape == (112, 112, 3)


def test_a_server_is_asked_and_what_it_spent_is_read(server):
    pictures = [jpeg(seed=seed) for seed in range(3)]
    before = read_spent(server)
    (taken,) = one_by_one({"demo": (server.grpc_url, ["demo"])}, pictures, 0.2).values()
    done = kept_busy(server.grpc_url, group_requests(pictures, 2), concurrency=2, seconds=0.2)
    spent = read_spent(server).since(before)
    images = len(taken) + 1 + 2 * len(done)  # one warms up
    assert {model: spent.counted[model].images for model in ("preprocess", "clip_encoder", "demo_head")} == {
        "preprocess": images, "clip_encoder": images, "demo_head": images,
    }  # fmt: skip
    assert spent.counted["clip_encoder"].images_per_batch >= 1
    assert 0 < spent.counted["clip_encoder"].compute_ms_per_image < 1000
    assert spent.cpu_s >= sum(spent.model_cpu_s.values()) > 0


# ---- heads ----


def test_copied_heads_make_a_repository_that_passes_its_check(demo, repository, tmp_path):
    recipe = with_head_copies(demo, 3, tmp_path / "heads")
    install(recipe, tmp_path / "models", engine="onnx")
    assert check(tmp_path / "models") == []
    installed = [read_head(tmp_path / "models" / f"demo_{number}_head" / "1") for number in (1, 2, 3)]
    assert len({head.revision for head in installed}) == 3
    assert len({head.weights_sha256 for head in installed}) == 1


def test_all_repositories_share_the_encoders_file(demo, repository, tmp_path):
    with Scene(demo, tmp_path, Settings(seconds=0.1, rounds=1)) as scene:
        models = [scene.serve(count).repository / "clip_encoder" / "1" / "model.onnx" for count in (1, 2)]
        assert models[0].samefile(models[1])
        assert scene.heads(2) == ["demo_1", "demo_2"]
        assert scene.decode == "exact"


# ---- what is told ----


def test_the_terminal_shows_every_part_and_why_one_is_missing(result):
    del result["rates"]
    text = terminal_text({"benchmark": "growth"} | result | {"problems": {"rates": "ServingError: no"}})
    assert "Each head adds 0.50 ms" in text
    assert "rates was not measured: ServingError: no" in text
    assert "images/s" in text


def test_a_figure_that_is_missing_is_a_dash(result):
    result["rates"]["rows"][-1] = rate_row(100, None, 1.0)
    assert "–" in terminal_text({"benchmark": "growth"} | result)


def test_titles_say_what_was_found(result):
    assert heads_title(result["heads"]) == (
        "Each head adds 0.50 ms and 250 µs of processor time to an image; "
        "of 16 heads the 15 that nobody asks for cost nothing"
    )
    assert sizes_title(result["sizes"]) == (
        "63 images/s at 0.05 megapixels, 13 at 12 (decode: exact); "
        "decoding costs more than the encoder from 4 megapixels on"
    )
    assert rates_title(result["rates"]) == (
        "At 80 % of 25 images/s half the answers take up to 40 ms, 99 % up to 120 ms; 25.0 % are refused at 100 %"
    )
    assert batches_title(result["batches"]) == (
        "One image a request brings 93 % of the best rate; 16 in flight are enough for 95 %, "
        "in batches of 8.0 at the encoder"
    )


@pytest.mark.parametrize(
    ("slope_ms", "cpu_us", "p50_ratio", "words"),
    [
        (0.01, 1500.0, 1.2, ["16 heads answer as soon as one does; each adds 1.5 ms", "cost 20 %"]),
        (-0.1, -3.0, 0.9, ["as soon as one", "adds no processor time", "cost nothing"]),
    ],
)
def test_what_is_within_the_noise_is_none(result, slope_ms, cpu_us, p50_ratio, words):
    part = result["heads"]
    part["per_head"] |= {"p50_ms": slope_ms, "cpu_us": cpu_us}
    part["unasked"]["p50_ms_ratio"] = p50_ratio
    assert all(each in heads_title(part) for each in words)


@pytest.mark.parametrize(
    ("refused", "words"),
    [
        ([0, 0], "none is refused up to 100 %"),
        ([0.01, 0.5], "refusals begin at 90 % and are 50.0 % at 100 %"),
    ],
)
def test_refusals_in_words(result, refused, words):
    result["rates"]["rows"][-2:] = [rate_row(90, 50, refused[0]), rate_row(100, 60, refused[1])]
    assert words in rates_title(result["rates"])


@pytest.mark.parametrize(("decoding_ms", "words"), [(1.0, "the encoder costs more"), (99.0, "decoding costs more")])
def test_where_nothing_crosses(result, decoding_ms, words):
    result["sizes"]["rows"] = [size_row(each, decoding_ms) for each in sizes.MEGAPIXELS]
    assert sizes_title(result["sizes"]).endswith("at every size")
    assert words in sizes_title(result["sizes"])


# ---- pictures ----


def words_of(svg: bytes) -> str:
    return " ".join(text.strip() for text in ElementTree.fromstring(svg).itertext() if text.strip())


def test_pictures_are_svg_small_and_the_same_every_time(result):
    result = json.loads(json.dumps(rounded(result)))
    pictures = svgs(result, "growth")
    assert pictures == svgs(result, "growth")
    assert list(pictures) == [f"growth-{part}.svg" for part in growth.PARTS]
    for svg in pictures.values():
        assert ElementTree.fromstring(svg).tag == f"{SVG}svg"
        assert b"<dc:date>" not in svg
    assert median(map(len, pictures.values())) < 60_000


def test_pictures_say_what_was_found_and_in_which_units(result):
    heads_svg, sizes_svg, rates_svg, batches_svg = svgs(result, "growth").values()
    assert "Each head adds 0.50 ms" in words_of(heads_svg)
    assert "processor time an image, ms" in words_of(sizes_svg)
    assert "requests refused, %" in words_of(rates_svg)
    assert "images a request, 32 in flight" in words_of(batches_svg)


def test_a_part_that_was_not_measured_has_no_picture_and_a_missing_figure_leaves_a_gap(result):
    del result["heads"]
    result["rates"]["rows"][-1] = rate_row(100, None, 1.0)
    assert list(svgs(result, "growth")) == [f"growth-{part}.svg" for part in ("sizes", "rates", "batches")]


# ---- the command ----


def test_a_part_that_fails_is_told_and_the_others_go_on(demo, tmp_path, monkeypatch, capsys):
    def failing(scene: Scene) -> dict:
        raise OSError("no memory")

    monkeypatch.setitem(growth.PARTS, "sizes", failing)
    monkeypatch.setitem(growth.PARTS, "rates", lambda scene: {"rows": []})
    scene = Scene(demo, tmp_path, Settings(seconds=1, rounds=1))
    assert growth.measured(scene, ["sizes", "rates"]) == {
        "rates": {"rows": []},
        "problems": {"sizes": "OSError: no memory"},
    }
    assert "growth: sizes: OSError: no memory" in capsys.readouterr().err


def test_a_recipe_that_is_not_built_is_refused(demo, tmp_path, capsys):
    data = demo.model_dump(mode="json", exclude_defaults=True) | {"name": "never-built"}
    data["heads"][0]["source"] = str(tmp_path / "head")
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(data))
    assert run_step("benchmarks.growth", lambda: growth.main(["--recipe", str(tmp_path / "recipe.yaml")])) == 1
    assert "head.json: not found; make it with: python -m training.fit" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--rounds", "0"], ["--seconds", "0"], ["--only", "cold"]])
def test_arguments_that_cannot_be(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        growth.main(arguments)
    assert ended.value.code == 2
