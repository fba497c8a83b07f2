"""The page of `clipsieve review` in a real browser: grid, one and two, by keys, by mouse and at phone width."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from reviews import RunningReview, rows_of, running_review, write_pictures, write_scores
from sklearn.metrics import roc_auc_score
from tiny_encoder import write_tiny_encoder
from waiting import until

from common import paths
from recipes.schema import load_recipe
from tests.chromium import Browser, Page

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


def _choose_queue(page: Page, queue: str) -> None:
    page.run(f"(state.queue = byId('queue').value = {json.dumps(queue)}, readOrder(true))")
    page.settled()


def _texts(page: Page, selector: str) -> list[str]:
    return page.run(f"[...document.querySelectorAll({json.dumps(selector)})].map(node => node.textContent)")


def test_the_grid_is_sorted_and_answered_by_keys_and_mouse(opened, review: RunningReview, folder: Path) -> None:
    page = opened(review)
    assert page.run(NAMES) == ["0.jpg", "4.jpg", HOSTILE, "2.jpg", "5.jpg", "3.jpg", "6.jpg", "1.jpg"]
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
    assert page.run(NAMES) == ["0.jpg"]
    _choose_queue(page, "uncertain")
    assert page.run(NAMES)[:2] == ["5.jpg", "3.jpg"]
    _choose_queue(page, "unanswered")
    assert len(page.run(NAMES)) == len(SCORES) - 1
    _choose_queue(page, "duplicates")
    assert sorted(page.run(NAMES)) == ["0.jpg", "1.jpg"]
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


def _auroc(folder: Path, red: dict[str, bool]) -> float:
    with (folder / "out" / "review-scores.csv").open(newline="") as text:
        scores = {Path(row["image_path"]).name: float(row["demo_score"]) for row in csv.DictReader(text)}
    assert scores.keys() == red.keys()
    return float(roc_auc_score(list(red.values()), [scores[name] for name in red]))


def _train(page: Page, count: int) -> None:
    version = page.run("state.facts.version.scores")
    page.press("Escape", "r")
    until(
        lambda: page.run("state.facts.training.state") != "running" and page.run("state.facts.training.line"),
        "training",
    )
    page.wait_for(f"state.facts.training.state !== 'running' && state.facts.version.scores !== {version}")
    assert page.run("state.facts.training.state") == "done", page.run("state.facts.training.line")


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
        _train(page, 14)
        first = _auroc(tmp_path, red)

        _choose_queue(page, "disagreeing")
        names = page.run(NAMES)
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
        _train(page, 44)
        second = _auroc(tmp_path, red)
        assert second > first
        assert second > 0.9
        scores = page.run("gallery.rows.map(id => rowOf(id)?.score).filter(score => score !== undefined)")
        assert len(scores) > 3
