"""Searches of settings: what they try, what they remember, and what they refuse."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from graded_store import write_recipe, write_store

from common import paths
from common.manifest import read_head
from recipes.errors import run_step
from recipes.head_section import Fit, Head, Search
from recipes.schema import RecipeError, load_recipe
from training import search
from training.errors import StepError
from training.grades import divider_of
from training.search_space import fit_with
from training.trials import figure

SEARCH = {"trials": 4, "max_epochs": [2, 3], "hidden_layers": 1, "hidden_size": [4, 8], "batch_size": 64}


def _recipe(tmp_path: Path, **settings) -> Path:
    return write_recipe(tmp_path, **{"search": SEARCH, **settings})


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe with graded pictures in its store."""
    monkeypatch.setattr(paths, "ARTIFACTS", tmp_path / "artifacts")
    file = _recipe(tmp_path)
    write_store(file)
    return file


def _search(recipe: Path, *arguments: str) -> int:
    return run_step("training.search", lambda: search.main(["--recipe", str(recipe), *arguments]))


def _study_file() -> Path:
    return paths.ARTIFACTS / "taste" / "searches" / "taste.db"


def _trials() -> list[tuple[str, int]]:
    connection = sqlite3.connect(_study_file())
    try:
        return connection.execute("SELECT state, COUNT(*) FROM trials GROUP BY state ORDER BY state").fetchall()
    finally:
        connection.close()


def test_the_winner_is_trained_and_saved_as_every_head_is(recipe: Path, capsys) -> None:
    assert _search(recipe) == 0
    printed, shown = capsys.readouterr()
    folder = paths.ARTIFACTS / "taste" / "heads" / "taste"
    assert printed == f"{folder / 'head.json'}\n"
    manifest = read_head(folder)
    assert "search" not in manifest.recipe
    assert manifest.metrics.n == 30
    assert "optuna-dashboard sqlite:///" in shown
    assert "by the recipe's own settings" in " ".join(shown.split())
    assert "fit:" in shown
    assert sum(count for _, count in _trials()) == 4


def test_a_search_goes_on_where_it_ended(recipe: Path, capsys) -> None:
    assert _search(recipe, "--trials", "2") == 0
    assert sum(count for _, count in _trials()) == 2
    assert _search(recipe) == 0
    assert sum(count for _, count in _trials()) == 4
    assert _search(recipe) == 0
    assert sum(count for _, count in _trials()) == 4


def test_a_study_of_other_settings_is_refused_and_kept(recipe: Path, tmp_path: Path, capsys) -> None:
    assert _search(recipe) == 0
    before = _study_file().read_bytes()
    _recipe(tmp_path, search={**SEARCH, "hidden_size": 16})
    capsys.readouterr()
    assert _search(recipe) == 1
    shown = " ".join(capsys.readouterr().err.split())
    assert "4 trials of something else: search: was" in shown
    assert "--study" in shown
    assert _study_file().read_bytes() == before
    assert _search(recipe, "--study", str(tmp_path / "other.db")) == 0


@pytest.mark.parametrize("content", ["half", "text"])
def test_a_damaged_study_is_refused_and_kept(recipe: Path, capsys, content: str) -> None:
    assert _search(recipe, "--trials", "2") == 0
    whole = _study_file().read_bytes()
    damaged = whole[: len(whole) // 2] if content == "half" else b"no database at all, but longer than a header" * 99
    _study_file().write_bytes(damaged)
    capsys.readouterr()
    assert _search(recipe) == 1
    assert "nothing was changed; move it away" in " ".join(capsys.readouterr().err.split())
    assert _study_file().read_bytes() == damaged


def test_another_programs_database_is_refused(recipe: Path, capsys) -> None:
    _study_file().parent.mkdir(parents=True)
    connection = sqlite3.connect(_study_file())
    connection.execute("CREATE TABLE photos (name TEXT)")
    connection.commit()
    connection.close()
    assert _search(recipe) == 1
    assert "a database of something else (tables photos)" in " ".join(capsys.readouterr().err.split())


def test_an_empty_file_becomes_a_study(recipe: Path) -> None:
    _study_file().parent.mkdir(parents=True)
    _study_file().touch()
    assert _search(recipe) == 0


def test_two_searches_do_not_share_a_study(recipe: Path, capsys) -> None:
    import fcntl

    _study_file().parent.mkdir(parents=True)
    with (_study_file().parent / ".taste.db.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert _search(recipe) == 1
    assert "another process searches with this study" in " ".join(capsys.readouterr().err.split())


def test_a_killed_search_goes_on(recipe: Path, tmp_path: Path) -> None:
    slow = _recipe(tmp_path, search={**SEARCH, "trials": 5000})
    command = [sys.executable, "-m", "training.search", "--recipe", str(slow)]
    environment = {**os.environ, "CLIPSIEVE_ARTIFACTS": str(paths.ARTIFACTS)}
    process = subprocess.Popen(command, cwd=paths.ROOT, env=environment, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 300
        while _finished() < 3:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.2)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    done = _finished()
    assert _search(slow, "--trials", str(done + 2)) == 0
    assert _finished() == done + 2
    assert not any(state == "RUNNING" for state, _ in _trials())


def _finished() -> int:
    try:
        return sum(count for state, count in _trials() if state in ("COMPLETE", "PRUNED"))
    except sqlite3.OperationalError:  # it is not made yet
        return 0


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"search": {"metric": "auroc"}}, "search.metric auroc is none of a regression head"),
        ({"search": {"loss": "bce"}}, "search.loss bce does not fit a regression head"),
        ({"search": {"metric": "accuracy"}, "accuracy_divider": "none"}, "accuracy takes an accuracy_divider"),
    ],
)
def test_what_a_head_cannot_search_is_refused(recipe: Path, tmp_path: Path, capsys, settings, problem: str) -> None:
    assert _search(_recipe(tmp_path, **settings)) == 1
    assert problem in " ".join(capsys.readouterr().err.split())


def test_ranges_that_settings_cannot_have_are_refused(tmp_path: Path) -> None:
    for ranges in ({"dropout": [0.2, 1.0]}, {"batch_size": 0}, {"learning_rate": {"low": 2, "high": 1}}):
        with pytest.raises(RecipeError, match="search"):
            load_recipe(_recipe(tmp_path, search=ranges))


def test_a_head_of_several_labels_is_not_searched() -> None:
    head = Head(name="tags", task="multilabel", class_names=["a", "b"])
    with pytest.raises(StepError, match="a search is for binary, regression, ranking heads"):
        search.metric_of(head, Search())


def test_settings_that_are_not_searched_stay_the_recipes() -> None:
    own = Fit(hidden_sizes=[8], schedule="cosine", learning_rate=0.5, optimizer="adam")
    fit = fit_with(own, {"learning_rate": 0.1, "hidden_sizes": []})
    assert (fit.schedule, fit.optimizer, fit.learning_rate, fit.hidden_sizes) == ("cosine", "adam", 0.1, [])


def test_figures_of_trials_are_those_of_the_metrics() -> None:
    rng = np.random.default_rng(0)
    grades = rng.normal(size=50)
    scores = grades + rng.normal(size=50)
    divider = divider_of("median", grades)
    from training.metrics import regression_metrics

    full = regression_metrics(grades, scores, 0, divider)
    for name in ("spearman", "ab", "pearson", "mse", "mae", "accuracy"):
        assert figure(name, grades, scores, divider) == pytest.approx(full[name])
    labels = (grades > 0).astype(float)
    assert figure("auroc", labels, grades, None) == 1
    assert figure("accuracy", labels, grades, None) == 1
    with pytest.raises(StepError, match="no auroc of 50 pictures"):
        figure("auroc", np.ones(50), scores, None)
