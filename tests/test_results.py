"""The page of results: page and pictures follow from the stored results alone, and the page is up to date."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree

import pytest

from benchmarks.results.__main__ import draw, main, problems
from benchmarks.results.page import NONE_STORED, PAGE, page_text, read_stored
from benchmarks.results.pictures import svgs
from benchmarks.results.stored import BY_RECIPE, FOLDER, ResultError, parse_output, read_results
from benchmarks.results.views import rows_of
from benchmarks.tables import duration, heading, number, table
from common.paths import ROOT
from recipes.errors import run_step

MACHINE = {
    "cpu": "A CPU",
    "instructions": ["avx2"],
    "cores": 2,
    "memory_gib": 15.6,
    "gpus": [],
    "kernel": "Linux 6.1 x86_64",
    "load_before": 0.1,
    "versions": {"python": "3.11.2", "numpy": "2.3.1"},
}


def peer(name, images_per_s, **more):
    row = {"name": name, "images_per_s": images_per_s, "p50_ms": 80.0, "p99_loaded_ms": 200.0, "cpu_ms": 90.0}
    row |= {"resident_mib": 1000.0, "cold_start_s": 3.0, "difference": 1e-7, "version": "1.2", "setting": "8 at once"}
    return row | {"problem": None} | more


def target_row(name, value, target, met):
    return {"name": name, "value": value, "target": target, "at_least": True, "against": "limit", "met": met}


def method(images_per_s, relative):
    return {"images_per_s": images_per_s, "relative": relative}


def quality(cosine, changed):
    row = {"images_per_s": 20.0, "relative": 2.0, "mib": 88, "batch_dependence": 0.0, "cosine_min": cosine}
    return row | {"cosine_mean": cosine, "score_max_change": 0.01, "decisions_changed": changed}


SIZES = [
    {"megapixels": size, "mean_bytes": 10, "methods": {name: method(100.0 / size, 1.0) for name in names}}
    for size, names in ((0.3, ("open_clip", "exact", "scaled")), (12.0, ("open_clip", "exact", "scaled")))
]
LIKENESS = {"pictures": 9, "decoded_smaller": 5, "cosine_mean": 0.999998, "cosine_min": 0.999, "cosine_to_next": 0.5}
RATE = {"requests": 90, "p50_ms": 50.0, "p95_ms": 60.0, "p99_ms": 70.0, "refused_ratio": 0.0, "failed_ratio": 0.0}
GROWTH = {
    "recipe": "demo",
    "rates": {"capacity_per_s": 20.0, "rows": [{"percent": 80, "rate_per_s": 16.0} | RATE]},
    "problems": {"sizes": "OSError: no space"},
}
SETTING = {"encoder_instances": 1, "intra_op_threads": 2, "preprocess_instances": 2, "max_batch_size": 8}
SETTING |= {"max_queue_delay_us": 0}
POINTS = [{"concurrency": each, "images_per_s": 10.0 + each, "p50_ms": 90.0, "p99_ms": 99.0} for each in (1, 8)]
TUNE = {
    "recipe": "demo",
    "encoder": "an-encoder",
    "own": SETTING,
    "chosen": SETTING | {"encoder_instances": 2, "intra_op_threads": 1},
    "now": POINTS[1] | {"images_per_s": 21.5},
    "before": POINTS[1],
    "settings": [
        {"setting": SETTING, "curve": POINTS},
        {"setting": SETTING | {"encoder_instances": 2, "intra_op_threads": 1}, "curve": POINTS},
        {"setting": SETTING | {"preprocess_instances": 3}, "curve": []},
    ],
}
RESULTS = {
    "growth": GROWTH,
    "tune": TUNE,
    "peers": {
        "rounds": 5,
        "seconds": 5.0,
        "encoder": "vit-b-32-random-1",
        "peers": [
            peer("limit", 13.0, p99_loaded_ms=None),
            peer("clipsieve fp32", 12.5),
            peer("clipsieve int8", 26.0),
            peer("FastAPI", 10.0),
            peer("infinity", None, p99_loaded_ms=None, problem="not installed; run: | this\nand that"),
        ],
        "comparisons": [
            target_row("served / limit", 0.96, 0.95, True),
            target_row("fp32 / best peer", 1.25, 1.3, False),
            target_row("int8 / best peer", None, 2.0, None),
        ],
    },
    "preprocessing": {"rounds": 7, "sizes": SIZES, "cosine": {"as they are": LIKENESS}, "comparisons": []},
    "precision": {
        "encoders": [
            {
                "model": "ViT-B-32",
                "pretrained": "random",
                "head": "a random head",
                "pictures": 40,
                "instruction_sets": {
                    name: {"fp32": quality(1.0, 0), "int8": quality(0.9991, 1)} for name in ("avx2", "native")
                },
            }
        ],
        "comparisons": [],
    },
    "encoders": {"rows": [{"name": "b-32", "seconds": 12.5, "mib": 340}]},
}


def line(name, load_before=0.1, **machine):
    """The line that a benchmark prints."""
    how = {"benchmark": name, "command": f"python -m benchmarks.{name}", "date": "2026-01-02", "took_s": 600}
    return json.dumps(how | RESULTS[name] | {"machine": MACHINE | {"load_before": load_before} | machine})


@pytest.fixture
def output(tmp_path):
    """Writes the outputs of benchmarks into files."""

    def write(*names, **machine):
        paths = [tmp_path / f"{name}.log" for name in names]
        for path, name in zip(paths, names, strict=True):
            path.write_text(f"a table\n{line(name, **machine)}\n")
        return paths

    return write


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "results").mkdir()
    return tmp_path / "results"


# ---- the page ----


def test_the_page_is_what_the_stored_results_give():
    """The page is up to date; if this fails, run: python -m benchmarks.results"""
    assert problems(FOLDER, PAGE) == []


def test_without_results_the_page_says_so(folder):
    assert NONE_STORED in page_text(read_stored(folder))


def test_every_result_has_a_section_with_its_command(folder, output, tmp_path):
    draw(output(*RESULTS), folder, page := tmp_path / "RESULTS.md")
    text = page.read_text()
    sections = text.split("\n## ")
    assert [section.splitlines()[0] for section in sections[1:]] == list(read_results(folder))
    assert sections[1].startswith("peers\n")
    for name in RESULTS:
        assert f"```sh\npython -m benchmarks.{name}\n```" in text
        assert f"results/{name}{'-demo' if name in BY_RECIPE else ''}.json" in text
    assert text.count("A CPU (avx2), 2 cores, 15.6 GiB, Linux 6.1 x86_64") == 1
    assert problems(folder, page) == []


def test_the_section_of_the_peers_tells_figures_targets_and_what_was_not_measured(folder, output, tmp_path):
    draw(output("peers"), folder, page := tmp_path / "RESULTS.md")
    text = page.read_text()
    assert "clipsieve int8: 26.0 images/s, 2.6 × FastAPI, the fastest of the others, 200% of one process" in text
    assert "infinity was not measured to the end: not installed" in text
    assert "| fp32 / best peer | 1.25 | at least 1.3 | **missed** | limit |" in text
    assert "Targets: 1 of 3 met, 1 missed ([fp32 / best peer](#peers)), 1 not measured." in text
    assert "![" in text
    assert "Where the time goes is not written down yet" in text


def test_the_section_of_growth_has_its_own_pictures(folder, output, tmp_path):
    draw(output("growth"), folder, page := tmp_path / "RESULTS.md")
    text = page.read_text()
    assert [path.name for path in folder.glob("*.svg")] == ["growth-demo-rates.svg"]
    assert "![growth-demo: At 80 % of 20 images/s half the answers take up to 50 ms" in text
    assert "| percent | rate/s | requests |" in text
    assert "sizes was not measured: OSError: no space" in text


def test_the_section_of_a_sweep_tells_every_setting_and_the_chosen_one(folder, output, tmp_path):
    draw(output("tune"), folder, page := tmp_path / "RESULTS.md")
    text = page.read_text()
    found = "chosen is 2 encoders × 1 thread, 2 preprocess, batch 8 instead of 1 encoder × 2 threads"
    assert found in text
    assert "21.5 images/s, p50 90 ms, p99 99 ms at 8 in flight; the recipe's own has 18.0 images/s" in text
    assert "| 1 encoder × 2 threads, 2 preprocess, batch 8 | the recipe's | 18.0 | 8 | 90.0 | 99.0 |" in text
    assert "| 1 encoder × 2 threads, 3 preprocess, batch 8 |  | – | – | – | – |" in text
    assert "![tune-demo: latency against images/s" in text


def test_each_recipe_of_a_sweep_is_kept(folder, output, tmp_path):
    (log,) = output("tune")
    draw([log], folder, page := tmp_path / "RESULTS.md")
    log.write_text(log.read_text().replace('"recipe": "demo"', '"recipe": "solar"'))
    draw([log], folder, page)
    assert list(read_results(folder)) == ["tune-demo", "tune-solar"]
    assert sorted(path.name for path in folder.glob("*.svg")) == ["tune-demo.svg", "tune-solar.svg"]
    assert problems(folder, page) == []


def test_notes_stand_in_the_page_as_they_are(folder, output, tmp_path):
    (folder / "peers.md").write_text("### Where the time goes\n\nDecoding: 3 ms of 4.\n")
    draw(output("peers"), folder, page := tmp_path / "RESULTS.md")
    assert "### Where the time goes\n\nDecoding: 3 ms of 4.\n" in page.read_text()
    assert "is not written down yet" not in page.read_text()


def test_machines_that_differ_are_told_in_each_section(folder, output, tmp_path):
    draw(output("encoders"), folder, page := tmp_path / "RESULTS.md")
    draw(output("precision", cpu="Another CPU"), folder, page)
    assert "One machine" not in page.read_text()
    assert "Machine: A CPU (avx2), 2 cores" in page.read_text()
    assert "Machine: Another CPU (avx2), 2 cores" in page.read_text()


def test_a_page_that_drifted_is_noticed(folder, output, tmp_path):
    draw(output("peers", "encoders"), folder, page := tmp_path / "RESULTS.md")
    (folder / "peers.svg").rename(folder / "old.svg")
    page.write_text(page.read_text().replace("26.0", "28.0"))
    assert problems(folder, page) == [
        "peers.svg: the picture is not there",
        "old.svg: no stored result has this picture",
        "RESULTS.md: is not what the stored results give",
    ]
    draw([], folder, page)
    assert problems(folder, page) == []


# ---- pictures ----


@pytest.mark.parametrize("name", ["peers", "preprocessing", "growth", "precision", "tune"])
def test_pictures_are_small_and_the_same_every_time(name):
    result = json.loads(line(name))
    first, second = svgs(result), svgs(result)
    assert first == second
    for svg in first.values():
        assert ElementTree.fromstring(svg).tag.endswith("svg")
        assert len(svg) < 60_000
        assert b"<dc:date>" not in svg


# ---- what is stored ----


def test_a_later_result_takes_the_place_of_the_earlier(folder, output, tmp_path):
    page = tmp_path / "RESULTS.md"
    draw(output("encoders"), folder, page)
    draw(output("encoders", load_before=1.7), folder, page)
    assert read_results(folder)["encoders"]["machine"]["load_before"] == 1.7


def test_numbers_are_kept_with_the_digits_that_mean_something():
    result = parse_output(line("encoders").replace("12.5", "12.123456789"))
    assert result["rows"][0]["seconds"] == 12.123457


WRONG = [
    ("", "is no JSON"),
    ("a table\nTraceback", "is no JSON"),
    ("[1]", "is list, not an object"),
    (line("peers").replace("12.5", "NaN"), "holds NaN"),
    (line("peers").replace('"benchmark"', '"name"'), "lacks benchmark"),
    (line("tune").replace('"recipe"', '"name"'), "lacks recipe"),
    (line("peers").replace('"memory_gib"', '"memory"'), "lacks machine.memory_gib"),
    (line("peers").replace('"benchmark": "peers"', '"benchmark": "peer"'), "did you mean peers?"),
    (line("peers").replace("FastAPI", "/var/lib/FastAPI"), "names the path /var/lib/FastAPI"),
    (line("peers").replace('"8 at once"', '"' + 40_000 * "long " + '"', 1), "bytes, at most"),
]


@pytest.mark.parametrize(("text", "message"), WRONG, ids=[message for _, message in WRONG])
def test_what_is_no_result_is_refused(text, message):
    with pytest.raises(ResultError, match=message.replace("?", "[?]")):
        parse_output(text)


def test_paths_inside_the_checkout_become_relative():
    result = parse_output(line("peers").replace("benchmarks.peers", f"benchmarks.peers --pictures {ROOT}/photos"))
    assert result["command"] == "python -m benchmarks.peers --pictures photos"


def test_a_result_that_cannot_be_shown_changes_nothing(folder, tmp_path):
    (log := tmp_path / "log").write_text(line("peers").replace('"peers": [', '"pears": ['))
    with pytest.raises(ResultError, match="lacks 'peers'"):
        draw([log], folder, tmp_path / "RESULTS.md")
    assert not list(folder.iterdir())
    assert not (tmp_path / "RESULTS.md").exists()


def test_a_file_that_is_not_there_is_told(tmp_path, capsys):
    assert run_step("benchmarks.results", lambda: main(["--store", str(tmp_path / "nothing.log")])) == 1
    assert "nothing.log: cannot be read: No such file or directory" in capsys.readouterr().err


# ---- Markdown ----


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "–"),
        (True, "yes"),
        (12_345, "12,345"),
        (12_345.6, "12,346"),
        (45.67, "45.7"),
        (1.234, "1.23"),
        (0.999998, "0.999998"),
        (0.995, "0.995"),
        (1.0, "1"),
        (0.0, "0"),
        (0.01234, "0.0123"),
    ],
)
def test_numbers_have_the_digits_that_mean_something(value, expected):
    assert number(value) == expected


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("images_per_s", "images/s"),
        ("cold_start_s", "cold start, s"),
        ("p99_ms", "p99, ms"),
        ("images_per_execution", "images/execution"),
        ("s", "s"),
        ("mib", "MiB"),
    ],
)
def test_keys_become_headings_with_units(key, expected):
    assert heading(key) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"), [(4, "4 seconds"), (89, "89 seconds"), (100, "2 minutes"), (9000, "2 hours")]
)
def test_durations_are_told_in_words(seconds, expected):
    assert duration(seconds) == expected


def test_figures_of_any_shape_become_rows():
    row, other = {"ms": 1}, {"ms": 2}
    assert rows_of([row, other]) == [row, other]
    assert rows_of({"a": row, "b": other}) == [{"": "a", "ms": 1}, {"": "b", "ms": 2}]
    assert rows_of({"a": [row, other], "b": row}) == [{"": "a", "ms": 1}, {"": "a", "ms": 2}, {"": "b", "ms": 1}]
    assert rows_of({"p50": 1, "p99": [2]}) == [{"p50": 1, "p99": [2]}]
    assert [rows_of(each) for each in ({}, [], [1], 3, None, "text")] == 6 * [[]]


def test_a_table_holds_whatever_a_figure_is():
    rows = [{"name": "a|b\nc", "images_per_s": 1.5, "statuses": {"OK": 3}}, {"name": "d", "images_per_s": None}]
    assert table(rows).splitlines() == [
        "| name | images/s | statuses |",
        "| --- | ---: | --- |",
        "| a\\|b c | 1.5 | OK 3 |",
        "| d | – |  |",
    ]
    assert table(rows, {"name": "", "images_per_s": "images/s"}, aligned=True).splitlines() == [
        "|        | images/s |",
        "| ------ | -------: |",
        "| a\\|b c |      1.5 |",
        "| d      |        – |",
    ]
    assert table([{"row": 1}] * 41) == "(41 rows, in the JSON)"
