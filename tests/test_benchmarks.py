"""The benchmarks and the trials as sets: listed, run by name, and ending with a line that names the machine."""

from __future__ import annotations

import ast
import json
import os
import socket
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from benchmarks.catalogue import Command, find_commands, first_sentence, listing, main
from benchmarks.comparison import comparisons_json
from benchmarks.machine import hardware_line, machine, print_result, versions_line
from benchmarks.results.stored import REQUIRED_OF_MACHINE, parse_output
from common.paths import ROOT

BENCHMARKS, TRIALS = (find_commands(ROOT / package) for package in ("benchmarks", "trials"))
ALL = [("benchmarks", name) for name in BENCHMARKS] + [("trials", name) for name in TRIALS]
PARTS = {"machine", "catalogue", "offered_load", "server_processes", "image_mutations", "results"}


# ---- what there is ----


def test_commands_are_listed_and_their_parts_are_not():
    assert {"peers", "preprocessing", "growth", "precision"} <= set(BENCHMARKS)
    assert {"soak", "faults", "malformed", "overload", "fuzz_images"} <= set(TRIALS)
    assert not (set(BENCHMARKS) | set(TRIALS)) & PARTS


@pytest.mark.parametrize(("package", "name"), ALL)
def test_each_says_what_it_does_and_how_it_is_run(package, name):
    path = ROOT / package / f"{name}.py"
    path = path if path.is_file() else ROOT / package / name / "__main__.py"
    assert find_commands(ROOT / package)[name].sentence.endswith(".")
    assert f"\n    python -m {package}.{name}" in path.read_text()


@pytest.mark.parametrize(("package", "name"), ALL)
def test_each_ends_with_a_result_of_its_name_and_the_machine(package, name):
    folder = ROOT / package
    paths = [*folder.glob(f"{name}.py"), *folder.glob(f"{name}/*.py")]
    calls = [call for path in paths for call in calls_of("print_result", path)]
    assert calls
    for call in calls:
        module, *others = call.args
        assert isinstance(module, ast.Constant)
        assert module.value == f"{package}.{name}"
        assert len(others) == 1


def calls_of(function: str, path: Path) -> list[ast.Call]:
    nodes = ast.walk(ast.parse(path.read_text()))
    return [
        node
        for node in nodes
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == function
    ]


def test_the_listing_tells_what_comes_first_and_how_long_it_takes():
    lines = listing("trials", TRIALS, {"overload": 300.0}).splitlines()
    after = dict(pairwise(lines))
    assert "make trial NAME=" in lines[0]
    (overload,) = (line for line in lines if line.startswith("  overload "))
    (faults,) = (line for line in lines if line.startswith("  faults "))
    assert "Ten times the load" in overload
    assert after[overload].strip() == "(first make demo; about 5 minutes)"
    assert after[faults].strip() == "(first make demo; about 6 minutes)"


def test_a_docstring_is_read_up_to_its_first_sentence():
    assert first_sentence("Images/s of 0.3 MP,\nand of 2. Then more.\n\nEnd.") == "Images/s of 0.3 MP, and of 2."
    assert first_sentence("no full stop\n\nanother") == "no full stop"


def test_a_module_is_read_without_being_imported(tmp_path):
    (tmp_path / "part.py").write_text('"""A part."""\n')
    (tmp_path / "one.py").write_text(
        '"""One.\n\n    make demo  # first\n    python -m benchmarks.one  # about two hours\n"""\n'
        "import nothing_of_this_name\n\nif __name__ == '__main__':\n    pass\n"
    )
    assert find_commands(tmp_path) == {"one": Command("one", "One.", ["make demo"], "about two hours")}


# ---- running one ----


def test_without_a_name_all_are_listed(capsys):
    for package, commands in (("benchmarks", BENCHMARKS), ("trials", TRIALS)):
        assert main(package, []) == 0
        assert capsys.readouterr().out.count("\n  ") >= len(commands)


def test_an_unknown_name_suggests_the_nearest(capsys):
    assert main("benchmarks", ["preprocesing"]) == 2
    assert "did you mean preprocessing?" in capsys.readouterr().err


def test_options_are_passed_on_and_the_exit_status_is_kept():
    command = [sys.executable, "-m", "benchmarks", "encoders", "no-such-encoder"]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert finished.returncode == 2
    assert "no encoder matches no-such-encoder" in finished.stderr


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("bench",), "-m benchmarks"),
        (("bench", "NAME=peers", "OPTIONS=--rounds 3"), "-m benchmarks peers --rounds 3"),
        (("trial", "NAME=overload", "OPTIONS=--rounds 3"), "-m trials overload --rounds 3"),
    ],
)
def test_make_lists_or_runs(arguments, expected):
    """A NAME of the environment, which some systems have, is not a benchmark's."""
    command, environment = ["make", "--no-print-directory", "-n", *arguments], os.environ | {"NAME": "host"}
    finished = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert finished.stdout.splitlines()[-1].rstrip().endswith(f"python {expected}")


# ---- what was asked ----


def test_what_was_asked_of_preprocessing_stands_beside_what_was_measured():
    from benchmarks.preprocessing import comparisons  # it loads torch

    sizes = [{"megapixels": 12.0, "methods": {"exact": {"relative": 1.1}, "scaled": {"relative": 2.5}}}]
    assert [(row.value, row.met) for row in comparisons(sizes, {})] == [(1.1, True), (2.5, False), (None, None)]
    rows = comparisons_json(comparisons(sizes, {"as they are": {"cosine_mean": 0.999998}}))
    assert (rows[-1]["value"], rows[-1]["met"]) == (0.999998, True)


# ---- the machine ----


def test_the_machine_is_told_without_its_name():
    hardware = machine()
    assert set(REQUIRED_OF_MACHINE) <= set(hardware)
    assert hardware["cores"] >= 1
    assert hardware["memory_gib"] > 0.5
    assert {"python", "numpy", "onnxruntime"} <= set(hardware["versions"])
    assert socket.gethostname() not in json.dumps(hardware)
    assert f"{hardware['cores']} cores" in hardware_line(hardware)
    assert f"numpy {hardware['versions']['numpy']}" in versions_line(hardware)


def test_the_last_line_is_a_result_that_can_be_stored(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["peers", "--out", f"{ROOT}/artifacts/a picture.png"])
    print("a table")
    print_result("benchmarks.peers", machine(), p99_ms=float("nan"), rates=[1.5], name="kept")
    result = parse_output(capsys.readouterr().out)
    assert result["benchmark"] == "peers"
    assert result["command"] == "python -m benchmarks.peers --out 'artifacts/a picture.png'"
    assert (result["p99_ms"], result["rates"], result["name"]) == (None, [1.5], "kept")
    assert list(result)[-1] == "machine"
