"""The page of the gateway in a real browser: pictures in, scores, bands and thresholds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from gateways import RunningGateway, running_gateway
from pictures import jpeg

from serving.gateway.page import load_page
from tests.chromium import Browser, Page

HOSTILE = "<img src=x onerror=window.hacked=1>.jpg"


@pytest.fixture(scope="module")
def gateway(server, tmp_path_factory):
    with running_gateway(server.grpc_url, tmp_path_factory.mktemp("gateway")) as running:
        yield running


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three pictures and a text."""
    for number in range(3):
        (tmp_path / f"{number}.jpg").write_bytes(jpeg(seed=number))
    (tmp_path / HOSTILE).write_bytes(b"hello")
    return tmp_path


@pytest.fixture
def opened(chromium: Browser, gateway: RunningGateway):
    """Opens pages; afterwards none of them may have complained or asked another server."""
    pages: list[Page] = []

    def open_page(path: str = "/", **options) -> Page:
        pages.append(chromium.open(gateway.url + path, **options))
        return pages[-1]

    yield open_page
    for page in pages:
        # The browser logs an answer that is no success; what a picture is refused for is on the page.
        assert [text for text in page.complaints() if "status of 415" not in text] == []
        assert all(url.startswith(gateway.url) for url in page.requests())
        assert page.run("typeof window.hacked") == "undefined"
        page.close()


def _choose(page: Page, *files: Path) -> None:
    node = page.call("Runtime.evaluate", expression="document.querySelector('#files')")["result"]["objectId"]
    page.call("DOM.setFileInputFiles", files=[str(file) for file in files], objectId=node)
    page.wait_for(f"state.cards.length === {len(files)} && state.cards.every(card => card.result || card.failed)")


def _texts(page: Page, selector: str) -> list[str]:
    return page.run(f"[...document.querySelectorAll({json.dumps(selector)})].map(node => node.textContent)")


def test_chosen_pictures_are_scored_and_shown(opened, folder: Path, gateway: RunningGateway) -> None:
    page = opened()
    page.wait_for("state.heads.length === 1")
    _choose(page, *(folder / name for name in ("0.jpg", "1.jpg", "2.jpg", HOSTILE)))
    scores = [gateway.send("/score", jpeg(seed=seed), "image/jpeg").json["heads"]["demo"]["score"] for seed in range(3)]
    shown = page.run(
        "state.cards.filter(card => card.result).map(card => [card.file.name, card.result.heads.demo.score])"
    )
    assert dict(shown) == pytest.approx({f"{number}.jpg": score for number, score in enumerate(scores)}, abs=1e-5)
    assert "demo recipe" in page.run("document.querySelector('#notice').textContent")
    (failure,) = _texts(page, ".failed")
    assert failure.startswith("NOT_AN_IMAGE: ")
    assert HOSTILE in _texts(page, ".name")
    assert "4 pictures" in page.run("document.querySelector('#summary').textContent")


def test_a_threshold_is_dragged_and_put_back(opened, folder: Path) -> None:
    page = opened()
    page.wait_for("state.heads.length === 1")
    _choose(page, folder / "0.jpg")
    band = page.run("document.querySelector('.band').textContent")
    x, y, width = page.run(
        "(box => [box.x, box.y + box.height / 2, box.width])"
        "(document.querySelector('.threshold input').getBoundingClientRect())"
    )
    target = 0.01 if band == "allow" else 0.99
    for kind, place in (
        ("mousePressed", x + width / 2),
        ("mouseMoved", x + target * width),
        ("mouseReleased", x + target * width),
    ):
        page.mouse(kind, place, y)
    page.settled()
    assert page.run("document.querySelector('.band').textContent") == ("block" if band == "allow" else "allow")
    assert abs(page.run("Number(document.querySelector('.threshold output').textContent)") - target) < 0.05
    page.click("#reset")
    assert page.run("document.querySelector('.band').textContent") == band
    assert page.run("document.querySelector('.threshold output').textContent") == "0.5000"


def test_pasted_and_dropped_pictures_are_taken(opened) -> None:
    page = opened()
    page.wait_for("state.heads.length === 1")
    for event, holder in (("paste", "clipboardData"), ("drop", "dataTransfer")):
        page.run(
            "new Promise(done => { const canvas = document.createElement('canvas'); canvas.width = canvas.height = 40;"
            "canvas.getContext('2d').fillRect(0, 0, 20, 40); canvas.toBlob(blob => { const data = new DataTransfer();"
            f"data.items.add(new File([blob], '{event}.png', {{type: 'image/png'}}));"
            f"const event = new Event('{event}', {{bubbles: true, cancelable: true}});"
            f"Object.defineProperty(event, '{holder}', {{value: data}});"
            "document.body.dispatchEvent(event); done(); }); })"
        )
    page.wait_for("state.cards.length === 2 && state.cards.every(card => card.result)")
    assert sorted(page.run("state.cards.map(card => card.file.name)")) == ["drop.png", "paste.png"]
    page.click("#clear")
    assert page.run("document.querySelectorAll('.card').length") == 0


def test_pictures_of_a_safety_head_are_blurred_until_they_are_wanted(opened, folder: Path) -> None:
    page = opened()
    page.wait_for("state.heads.length === 1")
    assert page.run("state.blurAll") is False  # the demo's head is none
    page.run("state.heads[0].class_names = ['safe', 'nsfw'], setBlur(state.heads.some(isSafety))")
    _choose(page, folder / "0.jpg", folder / "1.jpg")
    assert page.run("document.querySelectorAll('.card.blurred').length") == 2
    page.click(".card .picture")
    assert page.run("document.querySelectorAll('.card.blurred').length") == 1
    page.click("#blur")
    assert page.run("document.querySelectorAll('.card.blurred').length") == 0


def test_several_thresholds_stay_in_order(opened) -> None:
    page = opened()
    page.wait_for("state.heads.length === 1")
    page.run(
        "state.heads = [{name: 'nsfw', task: 'binary', labels: ['nsfw'], class_names: ['safe', 'nsfw'], notice: null,"
        "thresholds: {nsfw: [{value: 0.3, operating_point: 'recall>=0.99'}, {value: 0.8, operating_point: ''}]}}]"
        ".map(withThresholds), showHeads()"
    )
    assert [text.split("from")[0] for text in _texts(page, ".threshold span span")] == ["review ", "block "]
    page.run(
        "(input => { input.value = 0.9; input.dispatchEvent(new Event('input')); })"
        "(document.querySelector('.threshold input'))"
    )
    assert _texts(page, "output") == ["0.9000", "0.9000"]
    assert page.run("[0.2, 0.95].map(score => bandOf(state.heads[0], state.heads[0].limits.get('nsfw'), score))") == [
        "allow",
        "block",
    ]
    graded = "bandOf({task: 'regression'}, [{own: 5.5}], score)"
    assert page.run(f"[5, 6].map(score => {graded})") == ["bad", "good"]


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [360, 1280])
def test_it_fits_the_screen(opened, folder: Path, width: int, dark: bool, tmp_path: Path) -> None:
    page = opened(width=width, height=740, dark=dark)
    page.wait_for("state.heads.length === 1")
    _choose(page, folder / "0.jpg", folder / "1.jpg", folder / HOSTILE)
    assert page.run("document.documentElement.scrollWidth <= innerWidth")
    assert page.run(
        "[...document.querySelectorAll('button')].every(node => !node.offsetParent || node.offsetHeight >= 40)"
    )
    page.screenshot(tmp_path / f"{width}-{dark}.png")


def test_the_help_shows_every_request_and_code(opened) -> None:
    page = opened("/docs#TOO_SLOW")
    page.wait_for("document.querySelectorAll('#codes tr').length >= 20")
    titles = _texts(page, "#paths h2")
    assert titles[0] == "POST /score"
    assert {"GET /heads", "GET /health", "POST /invocations"} <= set(titles)
    assert any(text.startswith("curl -sS -F image=@a.jpg") for text in _texts(page, "pre"))
    assert page.run("document.querySelector('#TOO_SLOW').textContent").startswith("TOO_SLOW408")


@pytest.mark.parametrize("name", ["page.html", "docs.html"])
def test_a_page_may_run_only_its_own_script(name: str) -> None:
    page = load_page(name)
    policy = page.headers["Content-Security-Policy"]
    assert policy.count("'sha256-") == page.content.count(b"<script>") + page.content.count(b"<style>")
    assert "unsafe" not in policy
    assert b"http://" not in page.content
    assert b"https://" not in page.content
