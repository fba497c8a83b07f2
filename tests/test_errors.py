"""The toolchain's and the client's root of expected errors, and how a command ends on one."""

from __future__ import annotations

import ast
import builtins
import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from clipsieve import exceptions
from common.paths import ROOT
from recipes.errors import ExpectedError, run_step

FOLDERS = ("recipes", "common", "training", "build", "serving", "tuning", "benchmarks", "trials")
TOOLCHAIN = [ROOT / name for name in FOLDERS]
NOT_OF_THE_TOOLCHAINS_TREE = {
    "ProofUnreadable": "its file is also clients/clipsieve/proof_format.py, byte for byte, which knows no toolchain",
    "Unhealthy": "container/health.py is one file of the standard library, and answers a probe with it",
    "Busy": "as Unhealthy",
    "Problem": "the gateway's answer to a request that it refuses, never the end of a command",
    "_Stop": "a signal that ends serving.embedded as it should end",
    "_FirstStep": "ends the run of a benchmark at the moment that it measures",
    "Skipped": "a fault that this machine does not allow: a row of trials.faults",
}
NO_STEPS = {
    "serving/container/health.py": "runs in the container without the rest",
    "training/keras_export.py": "runs in TensorFlow's environment without the rest",
}

CLIENT_EXCEPTIONS = ROOT / "clients" / "clipsieve" / "exceptions.py"
NOT_OF_THE_CLIENTS_TREE = {
    "ProofUnreadable": "its file is common/proof.py, byte for byte, which knows no client",
    "_Damage": "never leaves clipsieve/shards.py, which raises a ShardError instead",
    "_MoreAfterEnd": "a _Damage",
    "_NothingToDo": "never leaves clipsieve/ray/plan.py but as the InputRefused that it is",
    "BadRequest": "the review page's answer to a request that it refuses; never leaves its server",
}


def classes_in(*folders: Path) -> Iterator[tuple[str, set[str], Path]]:
    """Name, names of the bases, and file of every class."""
    for path in sorted(path for folder in folders for path in folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                yield node.name, {ast.unparse(base).rpartition(".")[2] for base in node.bases}, path


def descendants(roots: set[str], *folders: Path) -> dict[str, Path]:
    """The classes defined there that come from `roots`, by name."""
    classes, names = list(classes_in(*folders)), set(roots)
    while more := {name for name, bases, _ in classes if bases & names} - names:
        names |= more
    return {name: path for name, _, path in classes if name in names - roots}


def exceptions_in(*folders: Path) -> dict[str, Path]:
    """The exception classes that are defined there, by name."""
    types = {name: value for name, value in vars(builtins).items() if isinstance(value, type)}
    return descendants({name for name, value in types.items() if issubclass(value, BaseException)}, *folders)


def test_the_clients_exceptions_are_in_one_file_under_one_root():
    files = exceptions_in(ROOT / "clients")
    assert set(NOT_OF_THE_CLIENTS_TREE) < set(files)
    for name in files.keys() - NOT_OF_THE_CLIENTS_TREE:
        assert files[name] == CLIENT_EXCEPTIONS, f"{name} belongs into {CLIENT_EXCEPTIONS.name}"
        assert issubclass(getattr(exceptions, name), exceptions.ClipsieveError)


def test_the_tree_that_is_drawn_for_the_client_names_every_exception():
    drawn = (exceptions.__doc__ or "").split("\n\n")[1]
    names = {name for name, path in exceptions_in(ROOT / "clients").items() if path == CLIENT_EXCEPTIONS}
    assert {line.strip("│├└─ ").split()[0] for line in drawn.splitlines()} == names


def test_the_toolchains_expected_errors_have_one_root():
    names = exceptions_in(*TOOLCHAIN).keys() - {"ExpectedError"}
    assert names - descendants({"ExpectedError"}, *TOOLCHAIN).keys() == NOT_OF_THE_TOOLCHAINS_TREE.keys()


def guarded(path: Path) -> list[str]:
    """The statements that a file runs as a command, under `if __name__ == "__main__"`."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'":
            return [ast.unparse(statement) for statement in node.body]
    return []


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__")


def test_every_step_ends_through_run_step():
    folders = ("recipes", "training", "build", "serving", "tuning")
    steps = {path for folder in folders for path in (ROOT / folder).rglob("*.py")}
    commands = {path: guarded(path) for path in steps if guarded(path)}
    assert len(commands) > 20
    for path, statements in commands.items():
        if path.relative_to(ROOT).as_posix() not in NO_STEPS:
            step = f"run_step('{module_name(path)}', "
            assert statements[-1].startswith((f"sys.exit({step}", f"leave({step}")), path


def test_run_step_is_told_the_name_of_its_module():
    for path in (path for folder in TOOLCHAIN for path in folder.rglob("*.py")):
        for statement in guarded(path):
            assert "run_step(" not in statement or f"run_step('{module_name(path)}', " in statement, path


def test_no_main_has_a_catch_list_of_its_own():
    """A handler may add to a message and raise again; run_step alone ends the command."""
    for path in (path for folder in TOOLCHAIN for path in folder.rglob("*.py")):
        functions = [node for node in ast.parse(path.read_text("utf-8")).body if isinstance(node, ast.FunctionDef)]
        handlers = [node for each in functions if each.name == "main" for node in ast.walk(each)]
        for handler in (node for node in handlers if isinstance(node, ast.ExceptHandler)):
            assert not any(isinstance(node, ast.Return) and node.value for node in ast.walk(handler)), path


# ---- what a command says ----


def raising(error: BaseException):
    def main() -> None:
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ExpectedError("a.yaml: name is 3, give a text"), "a.yaml: name is 3, give a text"),
        (PermissionError(errno.EACCES, "Permission denied", "a.json"), "a.json: Permission denied"),
        (OSError(errno.EXDEV, "Invalid link", "a", None, "b"), "a → b: Invalid link"),
        (
            OSError(errno.ENOSPC, "No space left on device"),
            "a file cannot be written (No space left on device); make room there, or name another place "
            "(CLIPSIEVE_ARTIFACTS is the folder of all artefacts)",
        ),
        (
            UnicodeEncodeError("utf-8", "caf\udce9", 3, 4, "surrogates not allowed"),
            "'caf\\udce9': a library here takes no name that is not UTF-8; rename it, or a folder of its path",
        ),
    ],
)
def test_an_expected_error_is_a_line_and_status_1(capsys, error, line):
    assert run_step("build.x", raising(error)) == 1
    output = capsys.readouterr()
    assert (output.out, output.err) == ("", f"build.x: {line}\n")


def test_an_interruption_is_a_line_where_the_step_says_what_is_kept(capsys):
    assert run_step("build.x", raising(KeyboardInterrupt()), "stopped; all is kept") == 130
    assert capsys.readouterr().err == "build.x: stopped; all is kept\n"
    with pytest.raises(KeyboardInterrupt):
        run_step("build.x", raising(KeyboardInterrupt()))


@pytest.mark.parametrize("bug", [ValueError("1"), KeyError("a"), BrokenPipeError(errno.EPIPE, "Broken pipe")])
def test_anything_else_keeps_its_traceback(bug):
    with pytest.raises(type(bug)):
        run_step("build.x", raising(bug))


def test_the_status_is_what_the_step_returns():
    assert [run_step("build.x", lambda status=status: status) for status in (None, 0, 3)] == [0, 0, 3]


@pytest.mark.parametrize("variables", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0"}])
def test_help_on_a_terminal_that_knows_ascii_alone(variables: dict[str, str]) -> None:
    command = [sys.executable, "-m", "training.relabel", "--help"]
    result = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | variables | {"PYTHONCOERCECLOCALE": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert "usage: python -m training.relabel" in result.stdout


def test_closed_streams_lose_their_text_alone() -> None:
    command = f"{sys.executable} -m training.import_head --list >&- 2>&-"
    assert subprocess.run(["bash", "-c", command], cwd=ROOT, check=False).returncode == 0
