"""The pipeline of dvc.yaml: its stages fit together, and DVC runs the demo with them from clean."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_layout import tracked_files

from build import repository_check
from common.manifest import read_head
from common.paths import ROOT

DVC = ROOT / ".dvcenv" / "bin" / "dvc"
PIPELINE = yaml.safe_load((ROOT / "dvc.yaml").read_text())


FINETUNED = {"finetune", "build-finetuned"}
"""Stages of the other way: training.finetune and the build, which tests of their own run without DVC."""


def paths_of(entries: list[Any]) -> list[str]:
    """The paths of deps, outs or metrics, with or without settings."""
    return [next(iter(entry)) if isinstance(entry, dict) else entry for entry in entries]


def test_what_a_stage_needs_is_a_source_or_another_stages():
    made = [path for stage in PIPELINE["stages"].values() for path in paths_of(stage.get("outs", []))]
    assert len(set(made)) == len(made)
    values = PIPELINE["vars"][0]
    assert values["data"] == values["tuned"]["data"]
    assert any(values["data"].startswith(f"{path}/") for path in made)  # the demo's pictures are drawn
    sources = {"recipes/${name}.yaml", "recipes/${tuned.name}.yaml", "${data}", "${tuned.data}"}
    for stage in PIPELINE["stages"].values():
        assert set(stage.get("deps", [])) <= sources | set(made)


def test_every_command_is_a_step():
    commands = re.findall(r"-m ([a-z_.]+)", (ROOT / "dvc.yaml").read_text())
    assert {"training.embed", "training.fit", "build.repository"} <= set(commands)
    assert [name for name in commands if not (ROOT / name.replace(".", "/")).with_suffix(".py").is_file()] == []


class Project:
    """A clean copy of the project's sources that DVC was begun in."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for path in tracked_files():
            target = folder / path.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
        (folder / ".venv").symlink_to(sys.prefix)
        subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)
        if not (folder / ".dvc").is_dir():
            self.run("init", "--quiet")

    def run(self, *words: str) -> str:
        """What a command of DVC's prints; the environment is that of a shell at the project."""
        kept = {name: value for name, value in os.environ.items() if name != "CLIPSIEVE_ARTIFACTS"}
        own = {"DVC_NO_ANALYTICS": "true", "DVC_SITE_CACHE_DIR": str(self.folder / ".site")}
        finished = subprocess.run(
            [DVC, *words], cwd=self.folder, env=kept | own, capture_output=True, text=True, check=False
        )
        assert finished.returncode == 0, finished.stdout[-2000:] + finished.stderr[-4000:]
        return finished.stdout

    def outdated(self) -> set[str]:
        """The stages that would run."""
        return set(json.loads(self.run("status", "--json")))


@pytest.fixture(scope="module")
def dvc_project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    if not DVC.is_file():
        pytest.skip("DVC has an environment of its own: make dvc")
    project = Project(tmp_path_factory.mktemp("dvc"))
    project.run("repro", "build")
    return project


@pytest.mark.timeout(1800)
def test_repro_makes_the_demo_from_clean(dvc_project):
    artifacts = dvc_project.folder / "artifacts" / "demo"
    assert repository_check.check(artifacts / "model_repository") == []
    assert read_head(artifacts / "heads" / "demo").class_names == ["angular", "round"]
    locked = yaml.safe_load((dvc_project.folder / "dvc.lock").read_text())["stages"]
    assert list(locked) == ["images", "embed", "fit", "build"]
    assert dvc_project.outdated() == FINETUNED


def test_only_what_a_change_concerns_runs_again(dvc_project):
    recipe = dvc_project.folder / "recipes" / "demo.yaml"
    text = recipe.read_text()
    assert "encoder_instances: 2" in text
    assert "max_epochs: 300" in text
    recipe.write_text(text.replace("encoder_instances: 2", "encoder_instances: 1"))
    assert dvc_project.outdated() - FINETUNED == {"embed", "build"}  # nothing new is embedded; the head stays
    recipe.write_text(text.replace("max_epochs: 300", "max_epochs: 30"))
    assert dvc_project.outdated() - FINETUNED == {"embed", "fit", "build"}
    recipe.write_text(text)
    assert dvc_project.outdated() - FINETUNED == set()
    picture = next((dvc_project.folder / "artifacts/demo/images/train/round").iterdir())
    picture.unlink()
    assert dvc_project.outdated() - FINETUNED == {"images", "embed"}
