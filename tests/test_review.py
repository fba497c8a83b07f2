"""The server of `clipsieve review`, as a process: who may come in, what is refused, and that no answer is lost."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from http.client import HTTPException
from itertools import pairwise
from pathlib import Path

import pytest
from pictures import jpeg
from reviews import RunningReview, rows_of, running_review, write_pictures, write_scores

from clipsieve.review.toolchain import Toolchain, reason
from common.paths import ROOT
from tests.command_line import run_cli

KILLS = 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("review")
    write_pictures(folder / "pictures", 6)
    return folder


@pytest.fixture(scope="module")
def review(folder: Path) -> Iterator[RunningReview]:
    files = [folder / "pictures" / f"{number}.jpg" for number in range(6)]
    table = write_scores(folder / "scores.csv", files, [0.9, 0.8, 0.55, 0.45, 0.2, 0.1])
    with running_review(table, "--out", folder / "answers") as running:
        yield running


def test_only_who_has_the_token_comes_in(review: RunningReview) -> None:
    for path in ("/", "/state", "/order", "/thumbnail/0", "/picture/0"):
        assert review.send(path, headers={}).status == 403
        assert review.send(path, headers={"Authorization": "Bearer wrong"}).status == 403
    assert review.send(f"/state?token={review.token}", headers={}).status == 403  # it is of the page's address alone
    page = review.send(f"/?token={review.token}", headers={})
    assert page.status == 200
    cookie = page.headers["set-cookie"]
    assert "HttpOnly; SameSite=Strict" in cookie
    assert review.send("/state", headers={"Cookie": cookie.partition(";")[0]}).status == 200


def test_another_name_of_this_machine_is_refused(review: RunningReview) -> None:
    """As when another site has its name point here."""
    for host in ("evil.example", f"evil.example:{review.port}", "127.0.0.1", ""):
        headers = {"Host": host, "Authorization": f"Bearer {review.token}"}
        assert review.send("/state", headers=headers).status == 421


def test_a_change_comes_from_the_page_alone(review: RunningReview) -> None:
    entered = {"Authorization": f"Bearer {review.token}"}
    marked = entered | {"X-Clipsieve-Review": "1"}
    assert review.send("/undo", {}, headers=entered).status == 403
    assert review.send("/undo", {}, headers=marked | {"Origin": "https://evil.example"}).status == 403
    assert review.send("/undo", {}, headers=marked | {"Origin": f"http://127.0.0.1:{review.port}"}).status == 200
    assert review.send("/answer", headers=entered).status == 405


def test_the_page_may_load_nothing_from_elsewhere(review: RunningReview) -> None:
    page = review.send("/")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert b"http://" not in page.body.replace(b"http://www.w3.org/2000/svg", b"")
    assert b"https://" not in page.body
    for answer in (page, review.send("/state"), review.send("/picture/0")):
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"


@pytest.mark.parametrize(
    ("path", "body", "detail"),
    [
        ("/answer", {"id": 99, "kind": "label", "value": "keep"}, "there is no picture 99"),
        ("/answer", {"id": -1, "kind": "label", "value": "keep"}, "there is no picture -1"),
        ("/answer", {"id": True, "kind": "label", "value": "keep"}, "id is the number"),
        ("/answer", {"id": 0, "kind": "other", "value": "keep"}, "none of label, grade"),
        ("/answer", {"id": 0, "kind": "label", "value": "odd"}, "none of keep, delete"),
        ("/answer", {"id": 0, "kind": "grade", "value": 5}, "value is a text"),
        ("/choose", {"winner": 1, "loser": 1}, "between two pictures"),
        ("/answer", b"[" * 30000, "not JSON"),
        ("/answer", b"[]", "no JSON object"),
        ("/answer", b" " * 70000, "more than 65536 bytes"),
        ("/train", {}, "--recipe"),
        ("/score", b"x", "--url"),
    ],
)
def test_what_cannot_be_is_refused(review: RunningReview, path: str, body, detail: str) -> None:
    answer = review.send(path, body)
    assert answer.status == 400
    assert detail in answer.json["detail"]


def test_an_answer_is_in_the_file_when_it_is_answered(review: RunningReview, folder: Path) -> None:
    ids = review.ids()
    answer = review.send("/answer", {"id": ids["2.jpg"], "kind": "label", "value": "keep"})
    assert (answer.status, answer.json["label"]) == (200, "keep")
    assert rows_of(folder / "answers" / "labels.csv") == [[str(folder / "pictures" / "2.jpg"), "keep"]]
    review.send("/choose", {"winner": ids["1.jpg"], "loser": ids["0.jpg"]})
    assert review.send("/state").json["counts"] == {"label": 1, "grade": 0, "pair": 1}
    assert review.send("/undo", {}).json["undone"] == {"kind": "pair", "ids": [ids["1.jpg"], ids["0.jpg"]]}
    assert review.send("/undo", {}).json["rows"][0]["label"] is None
    assert rows_of(folder / "answers" / "labels.csv") == []


def test_pictures_are_made_small_and_the_files_stay(review: RunningReview, folder: Path) -> None:
    before = {file.name: file.read_bytes() for file in (folder / "pictures").iterdir()}
    picture = review.send("/thumbnail/0")
    assert picture.headers["content-type"] == "image/jpeg"
    assert picture.body.startswith(b"\xff\xd8")
    assert {file.name: file.read_bytes() for file in (folder / "pictures").iterdir()} == before


def test_a_picture_that_was_removed_is_told(tmp_path: Path) -> None:
    files = write_pictures(tmp_path, 3)
    (tmp_path / "odd.jpg").write_bytes(b"no picture")
    with running_review(tmp_path) as review:
        ids = review.ids()
        files[1].unlink()
        assert review.send(f"/picture/{ids['1.jpg']}").status == 410
        answer = review.send("/answer", {"id": ids["1.jpg"], "kind": "label", "value": "keep"})
        assert answer.status == 410
        assert "1.jpg is no longer there" in answer.json["detail"]
        odd = review.send(f"/thumbnail/{ids['odd.jpg']}")
        assert (odd.status, odd.json["detail"][:12]) == (404, "NOT_AN_IMAGE")
        assert not (tmp_path / "labels.csv").exists()


def test_a_file_that_cannot_be_read_any_more_loses_no_answer(tmp_path: Path) -> None:
    """Somebody saves the labels as something else while the page is open: no answer is taken until it is mended."""
    write_pictures(tmp_path, 2)
    with running_review(tmp_path) as review:
        assert review.send("/answer", {"id": 0, "kind": "label", "value": "keep"}).status == 200
        good = (tmp_path / "labels.csv").read_bytes()
        (tmp_path / "labels.csv").write_text("something else\n")
        answer = review.send("/answer", {"id": 1, "kind": "label", "value": "keep"})
        assert answer.status == 500
        assert "expected columns path and label" in answer.json["detail"]
        (tmp_path / "labels.csv").write_bytes(good)
        assert review.send("/answer", {"id": 1, "kind": "label", "value": "keep"}).status == 200
        assert len(rows_of(tmp_path / "labels.csv")) == 2


def test_killed_at_any_moment_every_answer_that_was_given_is_kept(tmp_path: Path) -> None:
    """Labels, changed labels and pairs at full speed, and kill -9 at random moments."""
    files = write_pictures(tmp_path / "pictures", 40)
    chance = random.Random(7)
    given: dict[int, str] = {}
    pairs: list[tuple[int, int]] = []
    for _ in range(KILLS):
        with running_review(tmp_path / "pictures", "--out", tmp_path) as review:
            timer = threading.Timer(chance.uniform(0.05, 0.6), review.kill)
            timer.start()
            pending: tuple[int, str] | None = None
            try:
                while True:
                    pending = chance.randrange(40), chance.choice(["keep", "delete"])
                    if review.send("/answer", {"id": pending[0], "kind": "label", "value": pending[1]}).status == 200:
                        given[pending[0]] = pending[1]
                    pair = chance.sample(range(40), 2)
                    pending = None
                    if review.send("/choose", {"winner": pair[0], "loser": pair[1]}).status == 200:
                        pairs.append((pair[0], pair[1]))
            except (OSError, HTTPException):
                timer.join()
            written = dict(rows_of(tmp_path / "labels.csv")) if (tmp_path / "labels.csv").exists() else {}
            if pending is not None and written.get(_listed(files)[pending[0]]) == pending[1]:
                given[pending[0]] = pending[1]  # written, and killed before it could be answered
            assert written == {_listed(files)[place]: label for place, label in given.items()}
            choices = rows_of(tmp_path / "pairs.csv") if (tmp_path / "pairs.csv").exists() else []
            expected = [[_listed(files)[one], _listed(files)[other]] for one, other in pairs]
            rest = list(choices)
            for choice in expected:
                rest.remove(choice)
            assert len(rest) <= KILLS
    assert len(given) > 10


def _listed(files: list[Path]) -> list[str]:
    """Paths by the pictures' numbers, which are in the order of their names."""
    return sorted(map(str, files))


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["missing"], 2, "there is no missing"),
        (["empty"], 2, "holds no pictures"),
        (["odd.csv"], 2, "no column"),
        (["pictures", "--out", "a-file/x"], 1, "name a folder of your own with --out"),
        (["pictures", "--class-names", "one"], 2, "two to nine different names"),
        (["pictures", "--recipe", "demo", "--toolchain", "empty"], 2, "--toolchain"),
        (["pictures", "--set", "heads.demo.fit.seed=1"], 2, "which recipe's? name it with --recipe"),
        (["pictures", "--recipe", "demo", "--toolchain", str(ROOT), "--set", "heads.demo.fit.sed=1"], 1, "sed"),
        ([], 2, "--out"),
        (["--out", "x"], 2, "name what to review"),
    ],
)
def test_what_cannot_be_reviewed_is_told_at_the_start(
    folder: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], status: int, message: str
) -> None:
    monkeypatch.chdir(folder)
    (folder / "empty").mkdir(exist_ok=True)
    (folder / "a-file").touch()
    (folder / "odd.csv").write_text("a,b\n1,2\n")
    result = run_cli("review", *arguments)
    assert result.exit_code == status, result.stderr
    assert message in " ".join(result.stderr.split())


def test_every_step_of_training_gets_the_values_in_place_of_the_recipes(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("image,label\na.jpg,keep\n")
    values = ("heads.demo.fit.seed=1", "serving.decode=exact")
    toolchain = Toolchain(tmp_path, "demo", "demo", overrides=values)
    commands = [*toolchain.training_commands(tmp_path, False, tmp_path / "all.csv"), toolchain.command("scores")]
    steps = [command[2].removeprefix("training.") for command in commands]
    assert steps == ["embed", "embed", "fit", "scores", "scores"]
    for command in commands:
        given = [word for flag, word in pairwise(command) if flag == "--set"]
        assert given == list(values)


def test_pictures_are_scored_by_a_server_and_dropped_ones_too(server, tmp_path: Path) -> None:
    write_pictures(tmp_path, 5)
    (tmp_path / "odd.jpg").write_bytes(b"no picture")
    with running_review(tmp_path, "--url", server.grpc_url) as review:
        while review.send("/state").json["scoring"]["running"]:
            pass
        state = review.send("/state").json
        assert state["scoring"] == {"done": 6, "total": 6, "failed": 1, "running": False, "problem": ""}
        assert [(column["name"], column["scored"]) for column in state["columns"]] == [("demo", 5)]
        assert state["classNames"] == ["angular", "round"]
        order = review.send("/order?sort=highest").json["ids"]
        scores = [row["score"] for row in review.send(f"/rows?ids={','.join(map(str, order))}").json]
        assert scores[-1] is None
        assert scores[:-1] == sorted(scores[:-1], reverse=True)
        (dropped,) = review.send("/score", jpeg(seed=0)).json["heads"]
        assert (dropped["name"], dropped["score"]) == ("demo", pytest.approx(scores[order.index(0)], abs=1e-5))
        assert dropped["band"] in ("allow", "block")
        assert "NOT_AN_IMAGE" in review.send("/score", b"hello").json["error"]


def test_a_server_that_is_not_there_ends_it(refusing_url: str, tmp_path: Path) -> None:
    write_pictures(tmp_path, 1)
    result = run_cli("review", str(tmp_path), "--url", refusing_url, "--no-browser")
    assert result.exit_code == 5


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ("", "it said nothing"),
        ("12 embedded\nkilled", "killed"),
        ("training.fit: 5 folds\ntraining.fit: too few rows:\n  keep 1\n  delete 0\n", "training.fit: too few rows:"),
        ("training.fit: 5 folds\nTraceback (most recent call last):\nKeyError: 'a'", "KeyError: 'a'"),
    ],
)
def test_why_a_step_failed_is_the_line_that_says_it(said: str, why: str) -> None:
    assert reason(said) == why
