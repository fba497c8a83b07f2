"""The page of `clipsieve review` in a real browser: grid, one and two, by keys, by mouse and at phone width."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from graded_store import write_recipe
from PIL import Image
from reviews import RunningReview, rows_of, running_review, write_pictures, write_scores
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score
from tiny_encoder import write_tiny_encoder
from waiting import until

from clipsieve import Client
from common import paths
from recipes.schema import Recipe, load_recipe
from tests.chromium import Browser, Page
from training.sources import HeadData
from training.store import store_folder
from training.store_view import read_pictures

SCORES = [0.95, 0.1, 0.62, 0.4, 0.83, 0.55, 0.2, 0.71]
HOSTILE = "<img src=x onerror=window.hacked=1>.jpg"
READY = "document.body.dataset.ready === 'yes' && !document.querySelector('.card .name:empty')"
NAMES = "gallery.rows.map(id => nameOf(id))"
SHOWN = "nameOf(large.row)"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    files = write_pictures(tmp_path / "pictures", len(SCORES) - 1)
    files.append(tmp_path / "pictures" / HOSTILE)
    files[-1].write_bytes(files[0].read_bytes())
    write_scores(tmp_path / "scores.csv", files, SCORES)
    return tmp_path


@pytest.fixture
def review(folder: Path) -> Iterator[RunningReview]:
    with running_review(folder / "scores.csv", "--out", folder / "out") as running:
        yield running


@pytest.fixture
def opened(chromium: Browser):
    """Opens pages; afterwards none may have complained or asked anything but its own server."""
    pages: list[tuple[Page, RunningReview]] = []

    def open_page(review: RunningReview, **options: Any) -> Page:
        page = chromium.open(review.address, **options)
        pages.append((page, review))
        page.wait_for(READY)
        return page

    yield open_page
    for page, review in pages:
        # The browser logs every answer that is no success, and a server that ended; what is said of it is on the page.
        assert [text for text in page.complaints() if "Failed to load resource" not in text] == []
        assert all(url.startswith(f"http://127.0.0.1:{review.port}/") for url in page.requests())
        assert page.run("typeof window.hacked") == "undefined"
        page.close()


def _labels(folder: Path) -> dict[str, str]:
    file = folder / "out" / "labels.csv"
    return {Path(path).name: label for path, label in rows_of(file)} if file.exists() else {}


def _idle(page: Page) -> None:
    """Wait until what was pressed has been answered and shown."""
    page.run("lastChange")
    page.settled()


def _press(page: Page, *keys: str) -> None:
    for key in keys:
        page.press(key)
        _idle(page)


def _names(page: Page) -> list[str]:
    """Names of the pictures in the grid's order, read until the first screenful is there."""
    until(lambda: not any(name.startswith("picture ") for name in page.run(NAMES)[:8]), "names of the first pictures")
    return page.run(NAMES)


def _choose_queue(page: Page, queue: str) -> None:
    page.run(f"(state.queue = byId('queue').value = {json.dumps(queue)}, readOrder(true))")
    page.settled()


def _texts(page: Page, selector: str) -> list[str]:
    return page.run(f"[...document.querySelectorAll({json.dumps(selector)})].map(node => node.textContent)")


def test_the_grid_is_sorted_and_answered_by_keys_and_mouse(opened, review: RunningReview, folder: Path) -> None:
    page = opened(review)
    assert _names(page) == ["0.jpg", "4.jpg", HOSTILE, "2.jpg", "5.jpg", "3.jpg", "6.jpg", "1.jpg"]
    assert page.run("location.search") == ""  # the token is not in the address any more
    _press(page, "ArrowDown", "1", "0")
    page.click(".card[aria-label^='2.jpg'] [data-mark='0']")
    _idle(page)
    assert _labels(folder) == {"0.jpg": "delete", "4.jpg": "keep", "2.jpg": "keep"}
    _press(page, "u", "u")
    assert _labels(folder) == {"0.jpg": "delete"}
    page.click(".card[aria-label^='0.jpg'] [data-mark='1']")  # again, which takes it back
    _idle(page)
    assert _labels(folder) == {}
    page.wait_for("byId('counted').textContent === 'nothing answered yet'")


def test_one_after_another_is_on_the_disk_before_the_next_shows(opened, review: RunningReview, folder: Path) -> None:
    page = opened(review)
    _press(page, "o")
    assert page.run(SHOWN) == "0.jpg"
    page.press("1")
    page.wait_for(f"{SHOWN} === '4.jpg'")
    assert _labels(folder) == {"0.jpg": "delete"}
    page.press("0", "1", "s", "1")  # faster than the answers come
    _idle(page)
    page.wait_for(f"{SHOWN} === '3.jpg'")
    assert _labels(folder) == {"0.jpg": "delete", "4.jpg": "keep", HOSTILE: "delete", "5.jpg": "delete"}
    _press(page, "u")
    assert page.run(SHOWN) == "5.jpg"
    page.click("#large-answers [data-mark='0']")
    _idle(page)
    assert _labels(folder)["5.jpg"] == "keep"
    page.press("Escape")
    page.wait_for("!isOpen('large')")
    assert page.run("byId('way-grid').getAttribute('aria-pressed')") == "true"


def test_grades_are_given_by_digits(opened, review: RunningReview, folder: Path) -> None:
    page = opened(review)
    page.run("chooseKind('grade')")
    _press(page, "o", "7", "0", "1")
    assert [row[1] for row in rows_of(folder / "out" / "grades.csv")] == ["7", "10", "1"]
    page.press("Escape")
    assert _texts(page, ".card .given b") == ["7", "10", "1"]
    page.run("openOne(gallery.rows[0])")
    _press(page, "Delete")
    assert [row[1] for row in rows_of(folder / "out" / "grades.csv")] == ["10", "1"]


def test_two_are_compared_by_arrows_and_undone(opened, review: RunningReview, folder: Path) -> None:
    page = opened(review)
    page.press("t")
    page.wait_for("pair.length === 2")
    left, right = page.run("pair.map(row => row.name)")
    _press(page, "ArrowRight")
    assert rows_of(folder / "out" / "pairs.csv") == [[right, left]]
    assert page.run("pair.map(row => row.name)") != [left, right]
    _press(page, "u")
    assert rows_of(folder / "out" / "pairs.csv") == []
    assert sorted(page.run("pair.map(row => row.name)")) == sorted([left, right])
    _press(page, "s")
    assert sorted(page.run("pair.map(row => row.name)")) != sorted([left, right])
    page.click("#side-0")
    _idle(page)
    assert len(rows_of(folder / "out" / "pairs.csv")) == 1


def test_queues_show_what_is_uncertain_wrong_new_or_doubled(opened, review: RunningReview, folder: Path) -> None:
    page = opened(review)
    _press(page, "ArrowDown", "0")  # 0.jpg, of which the head is surest, is to be kept
    _choose_queue(page, "disagreeing")
    assert _names(page) == ["0.jpg"]
    _choose_queue(page, "uncertain")
    assert _names(page)[:2] == ["5.jpg", "3.jpg"]
    _choose_queue(page, "unanswered")
    assert len(_names(page)) == len(SCORES) - 1
    _choose_queue(page, "duplicates")
    assert sorted(_names(page)) == ["0.jpg", "1.jpg"]
    page.run("chooseKind('grade')")
    _choose_queue(page, "disagreeing")
    assert "agrees with every answer" in _texts(page, "#shown")[0]


def test_another_page_and_an_editor_are_seen(opened, review: RunningReview, folder: Path) -> None:
    page = opened(review)
    ids = review.ids()
    review.send("/answer", {"id": ids["0.jpg"], "kind": "label", "value": "delete"})  # as another page does
    page.wait_for("document.querySelector('.card[data-mark=\"1\"]') !== null")
    file = folder / "out" / "labels.csv"
    before = file.read_text()
    _press(page, "ArrowDown", "ArrowRight", "0")
    assert len(_labels(folder)) == 2
    file.write_text(before)  # an editor that was open before
    page.wait_for("!byId('lost').hidden")
    assert "1 answer given here is no longer in the files" in _texts(page, "#lost")[0]
    page.click("#put-back")
    page.wait_for("byId('lost').hidden")
    assert _labels(folder) == {"0.jpg": "delete", "4.jpg": "keep"}


def test_a_picture_that_is_removed_is_told_and_skipped(opened, review: RunningReview, folder: Path) -> None:
    (folder / "pictures" / "4.jpg").unlink()
    page = opened(review)
    _press(page, "o", "1")
    page.wait_for(f"{SHOWN} === {json.dumps(HOSTILE)}")
    assert "4.jpg: the file is no longer there Skipped." in _texts(page, "#large-toast")
    (folder / "pictures" / HOSTILE).unlink()
    _press(page, "1")
    page.wait_for(f"{SHOWN} === '2.jpg'")
    assert _labels(folder) == {"0.jpg": "delete"}


def test_a_safety_head_begins_blurred(opened, folder: Path) -> None:
    files = sorted((folder / "pictures").glob("?.jpg"))
    table = write_scores(folder / "nsfw.csv", files, SCORES[: len(files)], "nsfw")
    blurred = (
        "[...document.querySelectorAll('.card img')].every(image => getComputedStyle(image).filter.includes('blur'))"
    )
    with running_review(table, "--out", folder / "out") as review:
        page = opened(review)
        assert page.run(blurred)
        page.press("t")
        page.wait_for("pair.length === 2 && byId('two').classList.contains('blurred')")
        page.press("b")
        page.wait_for("!byId('two').classList.contains('blurred')")
    with running_review(table, "--out", folder / "out", "--no-blur") as review:
        assert not opened(review).run(blurred)


def test_what_the_server_refuses_is_said(opened, review: RunningReview, folder: Path) -> None:
    page = opened(review)
    _press(page, "ArrowDown", "1")
    (folder / "out" / "labels.csv").write_text("something else\n")
    _press(page, "1")
    page.wait_for("!byId('problem').hidden")
    assert "expected columns path and label" in _texts(page, "#problem")[0]
    assert page.run("nameOf(gallery.active)") == "4.jpg"  # it has not gone on


@pytest.mark.parametrize("width", [390, 700, 1280])
@pytest.mark.parametrize("dark", [False, True])
def test_nothing_is_cut_off_at_any_width(opened, review: RunningReview, width: int, dark: bool) -> None:
    page = opened(review, width=width, height=844, dark=dark)
    assert page.run("document.documentElement.scrollWidth") == width
    assert page.run("getComputedStyle(document.body).backgroundColor") == (
        "rgb(18, 21, 27)" if dark else "rgb(245, 246, 248)"
    )
    for way, picture in (("one", "large-picture"), ("two", "side-0")):
        page.run(f"goWay('{way}')")
        page.wait_for("isOpen('large') || pair.length === 2")
        page.settled()
        dialog = "large" if way == "one" else "two"
        assert page.run(f"byId('{dialog}').scrollWidth") == width
        assert page.run(f"byId('{picture}').getBoundingClientRect().height") > 844 * (0.6 if way == "one" else 0.3)


def test_controls_have_names(opened, review: RunningReview) -> None:
    page = opened(review)
    for way in ("grid", "one", "two"):
        page.run(f"goWay('{way}')")
        _idle(page)
        unnamed = page.run(
            "[...document.querySelectorAll('button, input, select, img, progress')].filter(node => !(node.alt || "
            "node.getAttribute('aria-label') || node.closest('button[aria-label]') || node.textContent.trim()))"
            ".map(node => node.outerHTML)"
        )
        assert unnamed == []


def _write_colours(folder: Path) -> dict[str, bool]:
    """Sixty pictures of reds and blues that overlap a little; which of them are red."""
    rng = np.random.default_rng(3)
    folder.mkdir()
    red = {}
    for number in range(60):
        name = f"{number:02}.png"
        red[name] = bool(rng.random() < 0.5)
        level = rng.normal(0.58 if red[name] else 0.42, 0.07)
        colour = np.array([255 * level, 60 + 80 * rng.random(), 255 * (1 - level)])
        pixels = np.clip(colour + rng.normal(0, 20, (48, 48, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / name)
    return red


def _scores(folder: Path, head: str) -> dict[str, float]:
    """The scores of training anew, by the pictures' names."""
    with (folder / "out" / "review-scores.csv").open(newline="") as text:
        return {Path(row["image_path"]).name: float(row[f"{head}_score"]) for row in csv.DictReader(text)}


def _auroc(folder: Path, red: dict[str, bool]) -> float:
    scores = _scores(folder, "demo")
    assert scores.keys() == red.keys()
    return float(roc_auc_score(list(red.values()), [scores[name] for name in red]))


def _train(page: Page) -> None:
    version = page.run("state.facts.version.scores")
    page.press("Escape")
    _press(page, "r")
    while page.run("state.facts.training.state") == "running":
        step = json.dumps(page.run("state.facts.training.step"))
        # Each step is a process of its own, which a busy machine takes its time for.
        page.wait_for(f"state.facts.training.state !== 'running' || state.facts.training.step !== {step}")
    assert page.run("state.facts.training.state") == "done", page.run("state.facts.training.line")
    page.wait_for(f"state.facts.version.scores !== {version}")


def test_a_visit_from_nothing_labelled_to_a_better_head(opened, tmp_path: Path, monkeypatch) -> None:
    """Ten labels in a hurry, some of them wrong, make a head; its disagreements and more labels make a better one."""
    monkeypatch.setattr(paths, "ARTIFACTS", tmp_path / "artifacts")
    write_tiny_encoder(paths.encoder_folder(load_recipe("demo")))
    red = _write_colours(tmp_path / "pictures")
    environment = {"CLIPSIEVE_ARTIFACTS": str(tmp_path / "artifacts")}
    arguments = (tmp_path / "pictures", "--out", tmp_path / "out", "--recipe", "demo", "--toolchain", paths.ROOT)
    with running_review(*arguments, environment=os.environ | environment) as review:
        page = opened(review)
        _choose_queue(page, "uncertain")
        assert "needs scores" in _texts(page, "#shown")[0]
        _choose_queue(page, "unanswered")
        page.press("o")
        for number in range(14):
            right = red[page.run(SHOWN)]
            _press(page, str(int(right if number % 3 else not right)))
        _train(page)
        first = _auroc(tmp_path, red)

        _choose_queue(page, "disagreeing")
        names = _names(page)
        labels = _labels(tmp_path)
        assert any((labels[name] == "round") != red[name] for name in names[:3])
        page.press("o")
        for _ in names:
            _press(page, str(int(red[page.run(SHOWN)])))
        _press(page, "Escape")
        _choose_queue(page, "uncertain")
        page.press("o")
        for _ in range(30):
            _press(page, str(int(red[page.run(SHOWN)])))
        _train(page)
        second = _auroc(tmp_path, red)
        assert second > first
        assert second > 0.9
        page.wait_for("gallery.rows.filter(id => rowOf(id)?.score !== undefined).length > 3")


def _stored_labels(recipe: Recipe) -> dict[str, str | None]:
    """What the store's data sets and corrections say of each picture."""
    pictures = read_pictures(HeadData(store_folder(recipe), recipe.name, recipe.heads[0].name))
    return {Path(path).name: label for path, label in zip(pictures.path, pictures.label, strict=True)}


def _write_levels(folder: Path) -> dict[str, float]:
    """Sixty pictures from blue to red, in no order; how red each is."""
    rng = np.random.default_rng(4)
    folder.mkdir()
    levels = {f"{number:02}.png": float(level) for number, level in enumerate(rng.permutation(np.linspace(0, 1, 60)))}
    for name, level in levels.items():
        colour = np.array([40 + 170 * level, 60 + 80 * rng.random(), 40 + 170 * (1 - level)])
        pixels = np.clip(colour + rng.normal(0, 20, (48, 48, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / name)
    return levels


def _spearman(folder: Path, levels: dict[str, float]) -> float:
    scores = _scores(folder, "taste")
    assert scores.keys() == levels.keys()
    return float(cast(Any, spearmanr([scores[name] for name in levels], list(levels.values()))).statistic)


@pytest.fixture
def graded(opened, tmp_path: Path, monkeypatch) -> Iterator[tuple[Page, dict[str, float], Recipe]]:
    """A page over pictures of which nothing is known, for a head of grades."""
    monkeypatch.setattr(paths, "ARTIFACTS", tmp_path / "artifacts")
    recipe = write_recipe(tmp_path, fit={"near_duplicate_cosine": None})  # which the tiny encoder cannot tell apart
    write_tiny_encoder(paths.encoder_folder(load_recipe(recipe)))
    levels = _write_levels(tmp_path / "pictures")
    arguments = (tmp_path / "pictures", "--out", tmp_path / "out", "--recipe", recipe, "--toolchain", paths.ROOT)
    environment = {"CLIPSIEVE_ARTIFACTS": str(tmp_path / "artifacts")}
    with running_review(*arguments, environment=os.environ | environment) as review:
        yield opened(review), levels, load_recipe(recipe)


def test_grades_train_a_better_order(graded, tmp_path: Path) -> None:
    """A few grades by chance, then right ones; one that is taken back is learnt no more."""
    page, levels, recipe = graded
    assert page.run("byId('kind').value") == "grade"
    rng = np.random.default_rng(5)
    page.press("o")
    for _ in range(12):
        _press(page, str(rng.integers(10)))
    _train(page)
    first = _spearman(tmp_path, levels)

    def grade(name: str) -> str:
        return str(int(1 + 9.99 * levels[name]) % 10)

    _choose_queue(page, "disagreeing")
    for queue in ("all", "unanswered"):
        _choose_queue(page, queue)
        page.press("o")
        for _ in range(12 if queue == "unanswered" else 30):
            _press(page, grade(page.run(SHOWN)))
        page.press("Escape")
    _train(page)
    second = _spearman(tmp_path, levels)
    assert second > first
    assert second > 0.8
    _choose_queue(page, "all")
    assert _names(page)[0] == max(_scores(tmp_path, "taste").items(), key=lambda pair: pair[1])[0]

    file = tmp_path / "out" / "grades.csv"
    picture = Path(rows_of(file)[-1][0]).name
    _press(page, "u")
    _train(page)
    assert _stored_labels(recipe)[picture] is None


def test_choices_between_two_train_a_better_order(graded, tmp_path: Path) -> None:
    """The first choices are all wrong, and taken back; the head that follows right ones turns the order round."""
    page, levels, _ = graded
    page.press("t")
    page.wait_for("pair.length === 2")

    def choose(count: int, right: bool) -> None:
        for _ in range(count):
            left, other = (levels[Path(name).name] for name in page.run("pair.map(row => row.name)"))
            _press(page, "ArrowLeft" if (left > other) == right else "ArrowRight")

    choose(30, right=False)
    _train(page)
    first = _spearman(tmp_path, levels)
    assert first < 0
    page.press("t")
    page.wait_for("pair.length === 2")
    _press(page, *["u"] * 30)
    assert rows_of(tmp_path / "out" / "pairs.csv") == []
    choose(120, right=True)
    _train(page)
    assert _spearman(tmp_path, levels) > 0.3  # each was compared with its neighbours in the wrong order alone
    assert page.run("byId('two-count').textContent") == "120 compared"


def test_a_picture_dropped_onto_the_page_is_scored_by_every_head(opened, server, folder: Path) -> None:
    files = sorted((folder / "pictures").glob("?.jpg"))
    with running_review(folder / "pictures", "--out", folder / "out", "--url", server.grpc_url) as review:
        page = opened(review)
        page.drop(files[0])
        page.wait_for("byId('dropped').open && !document.querySelector('#dropped table').hidden")
        assert page.run("byId('dropped-title').textContent") == "0.jpg"
        rows = "[...document.querySelectorAll('#dropped tbody tr')]"
        (row,) = page.run(f"{rows}.map(row => [...row.cells].map(cell => cell.textContent))")
        with Client(server.grpc_url) as client:
            (score,) = client.score([files[0]])
        assert (row[0], row[3]) == ("demo", score.class_name)
        assert float(row[1]) == pytest.approx(float(score.scores[0]), abs=1e-3)
        assert page.run("document.querySelector('#dropped-picture img').naturalWidth") > 0
        page.press("Escape")
        (folder / "note.txt").write_text("no picture")
        page.drop(folder / "note.txt")
        page.wait_for("byId('dropped-line').textContent.includes('NOT_AN_IMAGE')")
        assert page.run("document.querySelector('#dropped table').hidden")


def test_a_picture_dropped_where_no_server_scores_is_answered_with_how(
    opened, review: RunningReview, folder: Path
) -> None:
    page = opened(review)
    page.drop(folder / "pictures" / "0.jpg")
    page.wait_for("byId('shown').textContent.includes('start `clipsieve review` with --url')")
