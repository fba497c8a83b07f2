"""The tree is the architecture: imports between folders, and the place of each kind of file."""

from __future__ import annotations

import ast
import re
import runpy
import subprocess
from pathlib import Path

import pytest

import build
from common.paths import ROOT

OURS = {"benchmarks", "build", "clipsieve", "common", "recipes", "serving", "tests", "training", "trials", "tuning"}
MAY_IMPORT = {
    "recipes": {"recipes"},
    "common": {"common", "recipes"},
    "training": {"clipsieve", "common", "recipes", "training"},
    "build": {"common", "recipes", "build"},
    "serving": {"clipsieve", "common", "recipes", "serving"},
    "tuning": {"build", "common", "recipes", "serving", "tuning"},
    "clients": {"clipsieve"},
    "benchmarks": {"benchmarks", "build", "clipsieve", "common", "recipes", "serving", "training", "tuning"},
    "trials": {"benchmarks", "build", "clipsieve", "common", "recipes", "serving", "training", "trials"},
    "model_repository": set(),
}
TEXT = {".c", ".py", ".typed", ".md", ".txt", ".html", ".css", ".js", ".svg", ".sh", ""}
TEXT |= {".conf", ".json", ".lock", ".pbtxt", ".toml", ".yaml", ".yml"}


def tracked_files() -> list[Path]:
    """Files that git tracks, and new ones that it does not ignore."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\n")
    return [ROOT / name for name in names if name and (ROOT / name).is_file()]


def imported_packages(path: Path) -> set[str]:
    """Top-level names a file imports, at its top or inside functions."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_arrows_point_one_way(folder):
    for path in (ROOT / folder).rglob("*.py"):
        forbidden = (imported_packages(path) & OURS) - MAY_IMPORT[folder]
        assert not forbidden, f"{path.relative_to(ROOT)} imports {forbidden}"


def test_build_is_ours_and_not_the_packaging_tool():
    assert Path(build.__file__) == ROOT / "build" / "__init__.py"


def test_no_source_is_ignored_by_git():
    sources = [str(path) for folder in MAY_IMPORT for path in (ROOT / folder).rglob("*.py")]
    ignored = subprocess.run(["git", "check-ignore", *sources], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ignored.stdout == ""


def test_triton_models_are_thin():
    for path in (ROOT / "model_repository").rglob("model.py"):
        assert len(path.read_text().splitlines()) <= 60, path


@pytest.mark.parametrize("folder", ["build", "serving", "training"])
def test_a_folder_that_is_run_lists_what_is_in_it(folder, capsys):
    """`python -m training` names its steps, and each is there."""
    runpy.run_module(folder, run_name="__main__")
    names = re.findall(r"^  ([a-z_.]+)  ", capsys.readouterr().err, re.MULTILINE)
    places = [ROOT / folder / name.replace(".", "/") for name in names]
    assert len(places) >= 5
    assert [place for place in places if not place.is_dir() and not place.with_suffix(".py").is_file()] == []


def test_tests_are_flat():
    assert not [path for path in (ROOT / "tests").rglob("*.py") if path.parent != ROOT / "tests"]


def test_files_are_small_texts():
    for path in tracked_files():
        assert path.suffix in TEXT, f"{path}: a kind of file that does not belong here"
        assert path.stat().st_size < 200_000, f"{path}: {path.stat().st_size} bytes"
        assert b"\0" not in path.read_bytes(), f"{path}: binary"


FORBIDDEN = [
    r"(?<![\w.$}])/(?:work|root|home/\w+|Users)/",
    r"pythonhosted\.org|pypi\.org|registry\.npmjs|deb\.debian",
    r"--(?:extra-)?index[-]url|--find[-]links",
]


@pytest.mark.parametrize("pattern", FORBIDDEN)
def test_no_paths_of_one_machine_and_no_registries(pattern):
    mine = Path(__file__)
    matches = [
        f"{path.relative_to(ROOT)}: {match.group()}"
        for path in tracked_files()
        if path != mine
        for match in re.finditer(pattern, path.read_text(encoding="utf-8"))
        if "/home/user/secret.jpg" not in path.read_text()[match.start() : match.start() + 30]
    ]
    assert not matches


def test_every_make_target_is_phony_and_explained():
    text = (ROOT / "Makefile").read_text()
    phony = set(re.findall(r"^\.PHONY: (\S+)", text, re.MULTILINE))
    explained = set(re.findall(r"^([a-z-]+):.*## \S", text, re.MULTILINE))
    targets = set(re.findall(r"^([a-z][a-z-]*):", text, re.MULTILINE))
    assert targets == phony == explained


def test_the_readmes_tree_is_true():
    tree = (ROOT / "README.md").read_text().split("## The tree")[1].split("```text")[1].split("```")[0]
    named = {line.split()[0].rstrip("/") for line in tree.splitlines() if line and not line.startswith(" ")}
    there = {path.relative_to(ROOT).parts[0] for path in tracked_files()}
    assert named - there == set()
    written_by_dvc = {"dvc.lock"}  # where somebody has run the pipeline
    assert {name for name in there if not name.startswith(".")} - named - written_by_dvc == {"LICENSE"}


def test_continuous_integration_runs_what_the_readme_says():
    assert "make test" in (ROOT / "README.md").read_text()
    commands = [line for line in (ROOT / ".ci" / "run").read_text().splitlines() if line.startswith("make ")]
    assert commands == ["make check", "make test"]


def test_pins_name_versions_alone():
    for path in (ROOT / "requirements").glob("*.txt"):
        pins = [line for line in path.read_text().splitlines() if not line.lstrip().startswith("#")]
        assert all(re.match(r"[a-z0-9-]+==\S+( ; .+)?$", line) for line in pins), path
