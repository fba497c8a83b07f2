"""Every command of the READMEs runs as it is printed there."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from gateways import running_gateway
from pictures import jpeg

from common.paths import ROOT


def commands(page: str) -> list[str]:
    """The lines of a page's `sh` blocks, without their comments."""
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    return [line.split("  #")[0].strip() for block in blocks for line in block.splitlines() if line.strip()]


MAKE = [line for page in ("README.md", "build/README.md") for line in commands(page) if line.startswith("make ")]
PAGES = ("README.md", "build/README.md", "clients/README.md")
OTHERS = [
    *(line for page in PAGES for line in commands(page) if line not in MAKE),
    *(line for line in commands("serving/README.md") if line.startswith("curl ")),
]


def test_there_are_commands_of_both_kinds():
    assert len(MAKE) >= 6
    assert len(OTHERS) >= 5


@pytest.mark.parametrize("command", MAKE)
def test_make_commands_name_targets_that_exist(command):
    """`make -n` fails on a missing target or prerequisite; other tests show what the targets do."""
    finished = subprocess.run([*command.split(), "-n"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr


STEPS = [command for command in OTHERS if "-m training." in command or "-m build." in command]
MEASURE = [line for line in [*OTHERS, *commands("serving/README.md")] if re.search(r"-m (benchmarks|trials)\.", line)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The folder in which a page's commands run one after another, on the files of those before."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "photos").mkdir()
    for path in ("photo.jpg", "photos/photo.jpg"):
        (folder / path).write_bytes(jpeg())
    (folder / ".venv").symlink_to(ROOT / ".venv")
    return folder


@pytest.mark.parametrize("command", MEASURE)
def test_benchmarks_and_trials_that_are_named_exist(command, monkeypatch, capsys):
    """Measurements take minutes; `--help` shows that the module exists and takes those options."""
    name, *options = command.split()[2:]
    spec = importlib.util.find_spec(name)
    assert spec is not None
    module = importlib.import_module(f"{name}.__main__" if spec.submodule_search_locations else name)
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as ended:
        module.main()
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert [option for option in options if option.startswith("--") and option not in shown] == []


@pytest.fixture(scope="module")
def gateway(server, tmp_path_factory):
    with running_gateway(server.grpc_url, tmp_path_factory.mktemp("gateway")) as running:
        yield running


@pytest.mark.parametrize(
    "command", [line for line in OTHERS if line not in STEPS + MEASURE and not line.startswith("pip ")]
)
def test_other_commands_run_against_a_server(command, server, gateway, folder):
    command = command.replace("127.0.0.1:8000", server.http_url)
    command = command.replace("http://127.0.0.1:8080", gateway.url)
    url = server.http_url if "--protocol http" in command else server.grpc_url
    path = f"{ROOT / '.venv' / 'bin'}:{os.environ['PATH']}"
    finished = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        cwd=folder,
        env=os.environ | {"CLIPSIEVE_URL": url, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    assert "error" not in finished.stdout.replace(",error,", "")


def test_make_help_lists_every_target():
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for target in re.findall(r"^\.PHONY: (\S+)", (ROOT / "Makefile").read_text(), re.MULTILINE):
        assert f"make {target} " in shown
    for variable in ("RECIPE=", "SET=", "DATA=", "OPTIONS=", "HEAD=", "TARGET=", "HTTP_PORT="):
        assert f"\n  {variable}" in shown


def test_make_train_asks_for_data():
    finished = subprocess.run(["make", "train"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert finished.returncode != 0
    assert "DATA=" in finished.stderr


@pytest.mark.timeout(1800)
def test_the_demo_draws_trains_builds_serves_and_scores(tmp_path):
    """The newcomer's first command, in a folder of its own."""
    environment = os.environ | {"CLIPSIEVE_ARTIFACTS": str(tmp_path)}
    finished = subprocess.run(["make", "demo"], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    match = re.search(r"AUROC (0\.\d+) .* on 200 held-out pictures; gRPC and HTTP differ by at most", finished.stdout)
    assert match is not None, finished.stdout
    assert float(match[1]) > 0.9
    assert len((tmp_path / "demo" / "scores.csv").read_text().splitlines()) == 201
    assert (tmp_path / "demo" / "scores.png").read_bytes().startswith(b"\x89PNG")
    assert "scores mean nothing beyond its own data" in finished.stdout
    run_steps(tmp_path, environment)


ONE_AFTER_ANOTHER = """
import json, runpy, sys
for name, *options in json.loads(sys.argv[1]):
    sys.argv = [name, *options]
    try:
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        if ended.code:
            sys.exit(f"{name} ended with {ended.code}")
"""


def run_steps(folder: Path, environment: dict[str, str]) -> None:
    """Run the README's further steps on the demo's artefacts, in one process, which loads torch once."""
    steps = json.dumps([shlex.split(command)[2:] for command in STEPS])
    finished = subprocess.run(
        [sys.executable, "-c", ONE_AFTER_ANOTHER, steps],
        cwd=folder,
        env=environment | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    assert (folder / "report" / "model_card.md").is_file()
    assert (folder / "audit.csv").is_file()
    assert list((folder / "pictures").iterdir())
    assert "laion-nsfw-l14" in finished.stdout  # of the last but one
