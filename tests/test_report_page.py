"""The page of `clipsieve report` in a real browser: Debian's packages chromium."""

from __future__ import annotations

import csv
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stores import Row, head_data, write_rows
from tiny_encoder import write_tiny_encoder
from waiting import until

from clipsieve.passed_over import PassedOver
from clipsieve.report.page import ReportOptions, write_report
from clipsieve.results import Threshold
from clipsieve.run_record import RunRecord, ScoreFacts, write_record
from common.manifest import EncoderFingerprint, read_encoder
from common.paths import encoder_folder
from recipes.errors import run_step
from recipes.schema import load_recipe
from tests.chromium import Browser, Page
from tests.pictures import jpeg
from training import embed, relabel
from training.store import store_folder
from training.store_view import read_embeddings

HOSTILE = [
    "<img src=x onerror=window.hacked=1>",
    "</script><script>window.hacked=1</script>",
    "<!--<script>",
    "\"'><svg onload=window.hacked=1>",
    "javascript:window.hacked=1",
    "__proto__",
    "two\nlines",
]
ENCODER = EncoderFingerprint(id="tiny", weights_sha256="aa", preprocessing="exact", normalize=True, embed_dim=4)
SCORES = [0.05, 0.97, 0.31, 0.62, 0.88, 0.45, 0.5, 0.12, 0.71, 0.2]


@pytest.fixture
def opened(chromium: Browser):
    """Opens pages; afterwards none may have logged an error or fetched anything but itself and files beside it."""
    pages: list[tuple[Page, str]] = []

    def open_page(file: Path, **options: Any) -> Page:
        pages.append((chromium.open(file.as_uri(), **options), file.as_uri()))
        return pages[-1][0]

    yield open_page
    for page, url in pages:
        assert page.complaints() == []
        assert all(each.startswith(url.rpartition("/")[0] + "/") for each in page.requests())
        assert page.run("typeof window.hacked") == "undefined"
        page.close()


def _write_table(file: Path, rows: list[dict[str, Any]]) -> Path:
    names = list({name: None for row in rows for name in row})
    with file.open("w", newline="", encoding="utf-8") as text:
        writer = csv.DictWriter(text, names)
        writer.writeheader()
        writer.writerows(rows)
    return file


def _row(path: Path | str, score: float) -> dict[str, Any]:
    decision = "block" if score >= 0.9 else "review" if score >= 0.5 else "allow"
    return {
        "image_path": str(path),
        "nsfw_score": score,
        "nsfw_decision": decision,
        "nsfw_class_name": "safe" if decision == "allow" else "nsfw",
        "taste_score": 10 - 8 * score,
        "model_version": "nsfw-01",
    }


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten pictures, and three errors of two kinds; the run passed over three files."""
    folder = tmp_path_factory.mktemp("report")
    for number in range(len(SCORES)):
        (folder / f"{number}.jpg").write_bytes(jpeg(seed=number))
    rows = [_row(folder / f"{number}.jpg", score) for number, score in enumerate(SCORES)]
    rows += [{"image_path": f"bad/{n}.gif", "error": error} for n, error in enumerate(["EMPTY: no bytes"] * 2)]
    rows += [{"image_path": "worse.png", "error": "NOT_AN_IMAGE: <b>no</b> known format"}]
    table = _write_table(folder / "scores.csv", rows)
    thresholds = (Threshold(0.5, "recall>=0.99"), Threshold(0.9, "precision>=0.95"))
    write_record(table, RunRecord({"nsfw_score": ScoreFacts(("safe", "nsfw"), thresholds)}, PassedOver({".heic": 3})))
    write_report(table, folder / "report.html", ReportOptions())
    return folder / "report.html"


@pytest.fixture
def page(opened, report: Path):
    page = opened(report)
    yield page
    page.run("localStorage.clear()")


FOCUS = "gallery.rows.indexOf(Number(document.activeElement.dataset.row))"
CARDS = "[...document.querySelectorAll('.card')].map(card => facts.names[card.dataset.row].split('/').pop())"


def _texts(page: Page, selector: str) -> list[str]:
    return page.run(f"[...document.querySelectorAll({json.dumps(selector)})].map(node => node.textContent)")


def _in_reading_order(page: Page) -> list[float]:
    return page.run("gallery.rows.map(row => state.column.scores[row])")


def test_the_summary_says_what_there_is(page: Page) -> None:
    summary = " | ".join(_texts(page, "#summary li"))
    assert (
        "13 rows | 10 scored | 3 errors (EMPTY 2, NOT_AN_IMAGE 1) | passed over: 3 .heic | model nsfw-01 | table w"
        in summary
    )


def test_pictures_stand_highest_first_where_they_seem_to(page: Page) -> None:
    """The order is that of the screen: the cards from left to right and top to bottom."""
    seen = page.run(
        "[...document.querySelectorAll('.card')].map(card => [card.getBoundingClientRect(), card]).sort(([a], [b]) => "
        "a.top - b.top || a.left - b.left).map(([, card]) => Number(card.querySelector('.score').textContent))"
    )
    assert seen == sorted(SCORES, reverse=True)


def test_every_thumbnail_is_decoded_and_blurred_at_first(page: Page) -> None:
    page.wait_for("[...document.images].every(image => image.complete)")
    assert page.run("document.images.length") == len(SCORES)
    assert page.run("[...document.images].every(image => image.naturalWidth === 120)")  # smaller than 128: kept
    blurs = "[...new Set([...document.images].map(image => getComputedStyle(image).filter.split('(')[0]))]"
    assert page.run(blurs) == ["blur"]
    assert page.run("document.images[0].alt").startswith("Blurred picture ")


def test_one_picture_or_all_can_be_unblurred(page: Page) -> None:
    clear = "[...document.images].filter(image => getComputedStyle(image).filter === 'none').length"
    page.press("ArrowDown", "b")
    assert page.run(clear) == 1
    page.press("b")
    assert page.run(clear) == 0
    page.click("#blur-all")
    assert page.run(clear) == len(SCORES)
    page.press("ArrowDown", "b")
    assert page.run(clear) == len(SCORES) - 1
    page.click("#blur-all")
    assert page.run(clear) == 0


def test_the_threshold_counts(page: Page) -> None:
    def counted() -> list[str]:
        return [text.split(" (")[0] for text in _texts(page, "#counts span")]

    assert counted() == ["5 at or above", "5 below", "5 allow", "4 review", "1 block"]
    page.run("byId('threshold-number').value = '0.62'; byId('threshold-number').dispatchEvent(new Event('input'))")
    page.settled()
    assert counted()[:2] == ["4 at or above", "6 below"]
    assert page.run("document.querySelectorAll('.card.at-or-above').length") == 4
    page.run("byId('threshold').value = '0.1'; byId('threshold').dispatchEvent(new Event('input'))")
    assert counted()[:2] == ["9 at or above", "1 below"]
    assert page.run("byId('threshold-number').value") == "0.1"


def test_the_threshold_can_be_dragged_in_the_histogram(page: Page) -> None:
    left, width, top = page.run("(box => [box.left, box.width, box.top])(histogram.getBoundingClientRect())")
    page.mouse("mousePressed", left + width * 0.5, top + 40)
    page.mouse("mouseMoved", left + width * 0.3, top + 40)
    assert page.run("state.column.threshold") == pytest.approx(0.3, abs=0.01)
    page.mouse("mouseReleased", left + width * 0.3, top + 40)
    page.mouse("mouseMoved", left + width * 0.9, top + 40)
    assert page.run("state.column.threshold") == pytest.approx(0.3, abs=0.01)
    assert _texts(page, "#counts .above") == ["7 at or above (70.0 %)"]


def test_the_histogram_holds_every_score(page: Page) -> None:
    assert page.run("histogramBins().reduce((sum, bin) => sum + bin.count, 0)") == len(SCORES)
    bars = page.run("histogram.querySelectorAll('rect.above').length")
    assert 0 < bars < page.run("histogram.querySelectorAll('rect').length")


@pytest.mark.parametrize(
    ("filter", "expected"),
    [
        ("band 0", [0.45, 0.31, 0.2, 0.12, 0.05]),
        ("band 1", [0.88, 0.71, 0.62, 0.5]),
        ("band 2", [0.97]),
        ("above", [0.97, 0.88, 0.71, 0.62, 0.5]),
        ("marked", []),
    ],
)
def test_bands_and_other_filters(page: Page, filter: str, expected: list[float]) -> None:
    page.click(f"[data-filter='{filter}']")
    assert _in_reading_order(page) == expected
    assert page.run("document.querySelectorAll('.card').length") == len(expected)


def test_names_can_be_searched(page: Page) -> None:
    page.run("byId('search').value = '/3.JPG'; byId('search').dispatchEvent(new Event('input'))")
    page.settled()
    assert page.run(CARDS) == ["3.jpg"]


def test_pictures_can_be_sorted_by_another_score(page: Page) -> None:
    page.run("byId('column').value = '1'; byId('column').dispatchEvent(new Event('change'))")
    page.settled()
    assert _in_reading_order(page) == sorted((round(10 - 8 * score, 6) for score in SCORES), reverse=True)
    assert _texts(page, "#histogram text")[0] == "2"
    page.run("byId('sort').value = 'near'; byId('sort').dispatchEvent(new Event('change'))")
    assert _in_reading_order(page)[0] == pytest.approx(6, abs=0.5)


def test_errors_have_a_tab_of_their_own(page: Page) -> None:
    page.click("#tab-errors")
    assert page.run("byId('pictures').hidden")
    assert _texts(page, "#errors li") == [
        "EMPTY no bytesbad/0.gif",
        "EMPTY no bytesbad/1.gif",
        "NOT_AN_IMAGE <b>no</b> known formatworse.png",
    ]
    page.click("#codes button:nth-child(3)")
    assert len(_texts(page, "#errors li")) == 1


def test_arrow_keys_move_the_focus(page: Page) -> None:
    across = page.run("gallery.across")
    moves = [("ArrowDown", 0), ("ArrowRight", 1), ("ArrowDown", 1 + across), ("ArrowLeft", across), ("ArrowUp", 0)]
    for key, expected in [*moves, ("End", 9), ("ArrowRight", 9), ("Home", 0), ("ArrowLeft", 0), ("ArrowUp", 0)]:
        page.press(key)
        assert page.run(FOCUS) == expected, key


def test_the_heads_own_thresholds_can_be_chosen(page: Page) -> None:
    assert page.run("byId('threshold-number').value") == "0.5"
    assert _texts(page, "#limits button") == ["0.5 recall>=0.99", "0.9 precision>=0.95"]
    page.click("#limits button:nth-child(2)")
    assert page.run("byId('threshold-number').value") == "0.9"
    assert _texts(page, "#counts .above") == ["1 at or above (10.0 %)"]


def _sort(page: Page, order: str) -> None:
    """Choose an order with the mouse; the list itself is the browser's, which cannot be clicked here."""
    page.run("byId('sort').focus(); byId('sort').dispatchEvent(new PointerEvent('pointerdown'))")
    page.run(f"byId('sort').value = {order!r}; byId('sort').dispatchEvent(new Event('change'))")
    page.settled()


def test_the_first_arrow_after_sorting_goes_to_the_first_picture(opened, report: Path) -> None:
    """Neither is the order chosen again, nor the picture that had the focus before gone to."""
    page = opened(report, width=600, height=700)
    page.press("ArrowDown", "ArrowRight", "End")
    _sort(page, "lowest")
    page.press("ArrowDown")
    assert page.run("byId('sort').value") == "lowest"
    assert page.run(FOCUS) == 0
    _sort(page, "near")
    before = page.run("scrollY")
    page.press("ArrowRight")
    assert page.run(FOCUS) == 0
    assert page.run("scrollY") == before


def test_the_first_arrow_goes_to_a_picture_that_is_seen(opened, report: Path) -> None:
    page = opened(report, width=600, height=700)
    page.run("scrollTo(0, document.body.scrollHeight)")
    page.settled()
    page.press("ArrowDown")
    assert page.run(FOCUS) >= page.run("gallery.across")


def test_who_sorts_by_keys_keeps_the_focus(page: Page) -> None:
    page.run("byId('sort').focus()")
    page.press("ArrowDown")
    page.run("byId('sort').dispatchEvent(new Event('change'))")
    assert page.run("document.activeElement.id") == "sort"


LARGE = "large.isOpen && facts.names[large.row].split('/').pop()"
LARGE_IS_CLEAR = "getComputedStyle(byId('large-picture').querySelector('img')).filter === 'none'"


@pytest.mark.parametrize("way", ["Enter", "click"])
def test_a_picture_can_be_seen_large(page: Page, way: str) -> None:
    """The file itself is shown; the next pictures stay blurred until they are asked for."""
    page.press("ArrowDown")
    page.press("Enter") if way == "Enter" else page.click(".card .picture")
    assert page.run(LARGE) == "1.jpg"
    page.wait_for("byId('large-picture').querySelector('img').src.endsWith('/1.jpg')")
    assert page.run(LARGE_IS_CLEAR)
    assert _texts(page, "#large-place") == ["1 of 10"]
    page.press("ArrowRight")
    assert page.run(LARGE) == "4.jpg"
    assert not page.run(LARGE_IS_CLEAR)
    page.press("b")
    assert page.run(LARGE_IS_CLEAR)
    page.press("End", "ArrowRight")
    assert page.run(LARGE) == "0.jpg"
    page.click("#large-before")
    assert page.run(LARGE) == "7.jpg"
    page.press("Escape")
    assert not page.run(LARGE)
    assert page.run(FOCUS) == 8


def test_a_page_without_its_files_shows_thumbnails_large(chromium: Browser, report: Path, tmp_path: Path) -> None:
    (tmp_path / "moved.html").write_bytes(report.read_bytes())
    page = chromium.open((tmp_path / "moved.html").as_uri())
    page.press("ArrowDown", "Enter")
    page.wait_for("byId('large-picture').querySelector('img').naturalWidth === 120")
    page.close()


def test_large_pictures_are_marked_and_followed_by_the_next(page: Page) -> None:
    page.press("ArrowDown", "Enter", "1")
    assert page.run(LARGE) == "4.jpg"
    page.click("#large .marks [data-mark='0']")
    assert page.run(LARGE) == "8.jpg"
    assert page.run("[...marks.values.values()]") == [1, 0]
    page.press("u")
    assert (page.run(LARGE), page.run("marks.size")) == ("4.jpg", 1)
    page.click("#large-undo")
    assert (page.run(LARGE), page.run("marks.size")) == ("1.jpg", 0)


def test_marks_can_be_undone_by_key_and_button(page: Page) -> None:
    """Undoing gives back what was there, one change after the other, and goes to the picture."""
    page.press("ArrowDown", "1", "1", "ArrowLeft", "0")
    assert page.run("[...marks.values.values()]") == [1, 0]
    page.click("#undo")
    assert page.run("[...marks.values.values()]") == [1, 1]
    assert page.run(FOCUS) == 1
    page.press("u")
    assert page.run("[...marks.values.values()]") == [1]
    page.press("u")
    assert page.run("marks.size") == 0
    assert page.run(FOCUS) == 0
    assert page.run("byId('undo').disabled")
    page.press("u")
    page.press("1")
    page.run("window.confirm = () => true")
    page.click("#more-button")
    page.click("#clear")
    assert page.run("marks.size") == 0
    page.click("#undo")
    assert page.run("marks.size") == 1


def test_going_on_after_a_mark_can_be_switched_off(page: Page) -> None:
    page.click("#more-button")
    page.click("#advance")
    page.press("ArrowDown", "1")
    assert page.run(FOCUS) == 0
    page.press("0")
    assert page.run("[...marks.values.values()]") == [0]


def test_a_page_can_begin_without_blur(opened, report: Path) -> None:
    write_report(report.with_name("scores.csv"), report.with_name("clear.html"), ReportOptions(blur=False))
    page = opened(report.with_name("clear.html"))
    assert page.run("[...document.images].every(image => getComputedStyle(image).filter === 'none')")
    assert _texts(page, "#blur-all") == ["Blur all"]


def test_nothing_is_marked_before_a_picture_has_the_focus(page: Page) -> None:
    page.press("1", "b")
    assert page.run("marks.size") == 0
    assert page.run("byId('export').disabled")


def test_a_question_mark_shows_the_keys(page: Page) -> None:
    page.press("?")
    assert page.run("byId('keys').open")
    page.click("#keys-close")
    assert not page.run("byId('keys').open")


def test_keys_do_not_mark_while_someone_types(page: Page) -> None:
    page.press("ArrowDown")
    page.run("byId('search').focus()")
    page.press("1", "n")
    assert page.run("marks.size") == 0
    assert page.run("byId('search').value") == "1n"


def _export(page: Page, folder: Path) -> Path:
    page.save_downloads(folder)
    page.click("#export")
    until(lambda: list(folder.glob("*-labels.csv")), "the download")
    return next(folder.glob("*-labels.csv"))


def _content(path: str) -> str:
    """Sum of a file; of one that is not there, of its name."""
    return hashlib.sha256(Path(path).read_bytes() if Path(path).exists() else path.encode()).hexdigest()


def _write_store(folder: Path, paths: list[str], labels: list[str]) -> None:
    rows = [
        Row(Path(path).name, path, _content(path), 1, 1, label, None, np.zeros(4, np.float32))
        for path, label in zip(paths, labels, strict=True)
    ]
    write_rows(folder, ENCODER, rows)


def test_marks_are_exported_for_relabel(page: Page, report: Path, tmp_path: Path) -> None:
    """Rows are marked by keys and by button, one mark is removed, and the step itself reads the file."""
    paths = [str(report.parent / f"{number}.jpg") for number in range(len(SCORES))]
    labels = ["safe", "safe", "safe", "nsfw", "safe", "nsfw", "safe", "safe", "safe", "safe"]
    _write_store(tmp_path / "store", paths, labels)
    page.press("ArrowDown", "1", "p", "1", "ArrowLeft", "Delete", "ArrowRight", "0")  # 0.97 0.88 0.71 0.62
    page.click(".card[aria-label^='5.jpg'] [data-mark='0']")
    assert _texts(page, "#marked") == ["4 marked: 2 as nsfw, 2 as safe"]
    exported = _export(page, tmp_path)
    assert exported.read_text().splitlines()[0] == "path,sha256,label,nsfw_score,decision"
    assert exported.read_text().splitlines()[1] == f"{paths[1]},{_content(paths[1])},nsfw,0.97,block"

    assert run_step("training.relabel", lambda: relabel.main([str(exported), "--store", str(tmp_path / "store")])) == 0
    rows = read_embeddings(head_data(tmp_path / "store"), ENCODER)
    expected = dict(zip(paths, labels, strict=True))
    expected |= {paths[1]: "nsfw", paths[4]: "nsfw", paths[3]: "safe", paths[5]: "safe"}
    assert dict(zip(rows.path, rows.label, strict=True)) == expected


def test_one_command_takes_marks_of_known_and_new_pictures(opened, tmp_path: Path, monkeypatch) -> None:
    """The table's paths are relative to its folder, and the file lies where the browser saved it."""
    monkeypatch.setattr("common.paths.ARTIFACTS", tmp_path / "artifacts")
    recipe = load_recipe("demo")
    write_tiny_encoder(encoder_folder(recipe))
    (tmp_path / "album").mkdir()
    monkeypatch.chdir(tmp_path)
    for number in range(4):
        Path(f"album/{number}.jpg").write_bytes(jpeg(seed=number))
    Path("known.csv").write_text("path,label\nalbum/0.jpg,round\nalbum/1.jpg,angular\n")
    embed.main(["--recipe", "demo", "--data", "known.csv"])
    rows = [{"image_path": f"album/{n}.jpg", "demo_score": (9 - n) / 10, "demo_decision": "block"} for n in range(4)]
    write_record(_write_table(Path("t.csv"), rows), RunRecord({"demo_score": ScoreFacts(("angular", "round"))}))
    write_report(Path("t.csv"), tmp_path / "r.html", ReportOptions())
    page = opened(tmp_path / "r.html")
    page.press("ArrowDown", "0", "0", "0", "1")
    (tmp_path / "Downloads").mkdir()
    exported = _export(page, tmp_path / "Downloads")
    page.run("localStorage.clear()")
    monkeypatch.chdir(tmp_path / "Downloads")
    relabel.main(["--recipe", "demo", str(exported)])
    read = read_embeddings(head_data(store_folder(recipe)), read_encoder(encoder_folder(recipe)).fingerprint())
    labels = {Path(path).name: label for path, label in zip(read.path, read.label, strict=True)}
    assert labels == {"0.jpg": "angular", "1.jpg": "angular", "2.jpg": "angular", "3.jpg": "round"}


def test_marks_survive_a_reload_and_can_be_removed(opened, page: Page, report: Path) -> None:
    page.press("ArrowDown", "1", "0")
    again = opened(report)
    assert _texts(again, "#marked") == ["2 marked: 1 as nsfw, 1 as safe"]
    again.click("[data-filter=marked]")
    assert again.run(CARDS) == ["1.jpg", "4.jpg"]
    again.run("window.confirm = () => true")
    again.click("#more-button")
    again.click("#clear")
    assert again.run("localStorage.length") == 0
    page.wait_for("byId('marked').textContent === 'nothing marked yet'")  # the other tab hears of it


def test_without_class_names_relabel_refuses_the_export(page: Page, tmp_path: Path, capsys) -> None:
    page.run("byId('column').value = '1'; byId('column').dispatchEvent(new Event('change'))")
    page.press("ArrowDown", "1")
    exported = _export(page, tmp_path)
    assert exported.read_text().startswith("path,sha256,mark,taste_score,decision\n")
    _write_store(tmp_path / "store", ["0.jpg"], ["3.5"])
    assert run_step("training.relabel", lambda: relabel.main([str(exported), "--store", str(tmp_path / "store")])) == 1
    assert "no column 'label'; found: path, sha256, mark" in capsys.readouterr().err


def test_hostile_names_are_only_text(opened, tmp_path: Path) -> None:
    rows = [_row(name, 0.9 - number / 100) for number, name in enumerate(HOSTILE)]
    rows += [{"image_path": name, "error": f"CODE: {name}"} for name in HOSTILE]
    table = _write_table(tmp_path / "<img src=x onerror=hacked=1>.csv", rows)
    write_report(table, tmp_path / "report.html", ReportOptions())
    page = opened(tmp_path / "report.html")
    assert page.run("[...document.querySelectorAll('.card .name')].map(node => node.title)") == HOSTILE
    assert _texts(page, "#table") == [table.name]
    assert page.run("document.querySelectorAll('main img, main script, main svg:not(#histogram)').length") == 0
    page.press("ArrowDown", *["1"] * len(HOSTILE))
    with _export(page, tmp_path).open(newline="") as text:
        assert [row["path"] for row in csv.DictReader(text)] == [f"{Path.cwd()}/{name}" for name in HOSTILE]
    page.click("#tab-errors")
    assert _texts(page, "#errors li bdi") == HOSTILE


def test_linked_pictures_are_shown(chromium: Browser, tmp_path: Path) -> None:
    (tmp_path / "pics").mkdir()
    file = tmp_path / "pics" / "a b#?%41.jpg"
    file.write_bytes(jpeg(200, 100))
    rows = [_row(file, 0.9), _row(tmp_path / "pics" / "text.jpg", 0.1)]
    (tmp_path / "pics" / "text.jpg").write_text("no picture")
    write_report(_write_table(tmp_path / "t.csv", rows), tmp_path / "r.html", ReportOptions(link_images=True))
    page = chromium.open((tmp_path / "r.html").as_uri())
    page.wait_for("document.images.length === 1 && document.images[0].naturalWidth === 200")
    assert _texts(page, ".missing") == ["no picture: the browser cannot show the file"]
    assert page.complaints() == []
    assert all(url.startswith(tmp_path.as_uri()) for url in page.requests())
    page.close()


def test_the_policy_lets_nothing_else_run_or_load(chromium: Browser, report: Path) -> None:
    page = chromium.open(report.as_uri())
    page.run(
        "document.body.append(Object.assign(document.createElement('script'), {textContent: 'window.hacked = 1'}), "
        "Object.assign(new Image(), {src: 'http://localhost:9/x.png'}))"
    )
    page.run("fetch('http://localhost:9/').catch(() => 0)")
    page.settled()
    assert page.run("typeof window.hacked") == "undefined"
    refused = " ".join(page.complaints())
    assert all(f"{kind}-src" in refused for kind in ("script", "img", "connect"))
    page.close()


def test_five_thousand_pictures_are_few_nodes(opened, tmp_path: Path) -> None:
    """The test scrolls to the last picture, and every screen is filled."""
    for number in range(50):
        (tmp_path / f"{number}.jpg").write_bytes(jpeg(160, 120, seed=number))
    scores = np.random.default_rng(0).random(5000).round(6)
    rows = [_row(tmp_path / f"{number % 50}.jpg", float(score)) for number, score in enumerate(scores)]
    write_report(_write_table(tmp_path / "t.csv", rows), tmp_path / "r.html", ReportOptions())
    page = opened(tmp_path / "r.html")
    assert page.run("gallery.rows.length") == 5000
    page.run(
        """(async () => {
          const frame = () => new Promise(requestAnimationFrame);
          for (let step = 0; step <= 60; step++) {
            scrollTo(0, document.body.scrollHeight * step / 60);
            await frame(); await frame();
            if (document.querySelectorAll('*').length > 1500) throw new Error('too many nodes');
            const boxes = [...gallery.cards.values()].map(card => card.getBoundingClientRect());
            if (!boxes.some(box => box.top < innerHeight && box.bottom > innerHeight - 100)) throw new Error('a gap');
          }
        })()"""
    )
    assert page.run("Math.max(...[...gallery.cards.keys()].map(row => gallery.rows.indexOf(row)))") == 4999
    page.press("ArrowDown", "End")
    assert page.run("Number(document.activeElement.dataset.row)") == page.run("gallery.rows[4999]")


@pytest.mark.parametrize("width", [390, 600, 1280])
@pytest.mark.parametrize("dark", [False, True])
def test_nothing_is_cut_off_at_any_width(opened, report: Path, width: int, dark: bool) -> None:
    page = opened(report, width=width, dark=dark)
    assert page.run("document.documentElement.scrollWidth") == width
    background = page.run("getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(18, 21, 27)" if dark else "rgb(245, 246, 248)")


def test_on_a_phone_pictures_begin_on_the_first_screen(opened, report: Path) -> None:
    page = opened(report, width=390, height=844)
    assert page.run("grid.getBoundingClientRect().top") < 0.6 * 844
    page.run("showLarge(gallery.rows[0])")
    page.settled()
    assert page.run("byId('large').scrollWidth") == 390
    assert page.run("byId('large-picture').getBoundingClientRect().height") > 0.6 * 844


def test_controls_have_names(page: Page) -> None:
    """Every control says what it is, and what is clicked is a button."""
    page.press("ArrowDown", "Enter")
    unnamed = page.run(
        "[...document.querySelectorAll('button, input, select, img')].filter(node => !(node.alt || "
        "node.getAttribute('aria-label') || node.closest('label')?.textContent.trim() || node.textContent.trim()))"
        ".map(node => node.outerHTML)"
    )
    assert unnamed == []
    assert page.run("document.querySelectorAll('[onclick], a[href]').length") == 0
