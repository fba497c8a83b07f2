"""Files ordered by times and linked into bands: undone exactly, never moved, deleted or replaced."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipsieve import UnknownHead
from clipsieve.arrange import Scored
from clipsieve.arrange_table import Source, read_scored, source_in, source_of
from clipsieve.exceptions import ArrangeError
from clipsieve.file_links import Link, link, plan_links
from clipsieve.file_times import Touch, plan_touches, touch, undo_touch

NEWEST_S = 1_700_000_000.0
OLD_NS = 1_500_000_000_123_456_789


def _files(folder: Path, *names: str) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        (folder / name).write_bytes(name.encode(errors="surrogateescape"))
        os.utime(folder / name, ns=(OLD_NS - number, OLD_NS + number))
    return [str(folder / name) for name in names]


def _by_newest(paths: list[str]) -> list[str]:
    return sorted(paths, key=lambda path: -os.stat(path).st_mtime_ns)


def _tree(folder: Path) -> dict[str, str | None]:
    """The paths below a folder, with the targets of links."""
    paths = sorted(path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return {str(path.relative_to(folder)): os.readlink(path) if path.is_symlink() else None for path in paths}


# Times


def test_the_highest_score_becomes_the_newest_file(tmp_path: Path) -> None:
    low, high, middle = paths = _files(tmp_path, "low", "high", "middle")
    record = tmp_path / "times.json"
    done = touch(list(zip(paths, [0.1, 0.9, 0.5], [None] * 3, strict=True)), record, newest_s=NEWEST_S)
    assert _by_newest(paths) == [high, middle, low]
    assert [os.stat(path).st_mtime for path in (high, middle, low)] == [NEWEST_S, NEWEST_S - 1, NEWEST_S - 2]
    assert str(done) == "3 arranged, 0 already so"


def test_by_default_no_file_is_from_the_future(tmp_path: Path) -> None:
    (path,) = _files(tmp_path / "p", "a")
    touch([(path, 1.0, None)], tmp_path / "r.json")
    reference = tmp_path / "now"
    reference.touch()
    assert reference.stat().st_mtime - 60 < os.stat(path).st_mtime <= reference.stat().st_mtime


def test_undo_gives_the_exact_times_back(tmp_path: Path) -> None:
    paths = _files(tmp_path / "p", "a", "b", "byte\udcff", "new\nline")
    before = [os.stat(path) for path in paths]
    touch([(path, float(number), None) for number, path in enumerate(paths)], tmp_path / "r.json")
    assert [os.stat(path).st_mtime_ns for path in paths] != [each.st_mtime_ns for each in before]
    assert len(undo_touch(tmp_path / "r.json").actions) == 4
    after = [os.stat(path) for path in paths]
    assert [(a.st_mtime_ns, a.st_atime_ns) for a in after] == [(b.st_mtime_ns, b.st_atime_ns) for b in before]
    again = undo_touch(tmp_path / "r.json")
    assert (again.actions, again.already) == ([], 4)


def test_a_second_run_keeps_the_times_from_before_the_first(tmp_path: Path) -> None:
    paths = _files(tmp_path / "p", "a", "b", "c")
    before = [os.stat(path).st_mtime_ns for path in paths]
    for scores in ((1.0, 2.0, 3.0), (3.0, 2.0, 1.0)):
        touch(list(zip(paths, scores, [None] * 3, strict=True)), tmp_path / "r.json", newest_s=NEWEST_S + scores[0])
    assert _by_newest(paths) == paths
    undo_touch(tmp_path / "r.json")
    assert [os.stat(path).st_mtime_ns for path in paths] == before


def test_a_run_killed_between_two_files_can_be_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = _files(tmp_path / "p", "a", "b", "c")
    before = [os.stat(path).st_mtime_ns for path in paths]
    rows = list(zip(paths, (1.0, 2.0, 3.0), [None] * 3, strict=True))
    touch(rows, tmp_path / "r.json", newest_s=NEWEST_S)
    real, calls = os.utime, []

    def killed(*args, **options):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        real(*args, **options)

    with monkeypatch.context() as patched:
        patched.setattr(os, "utime", killed)
        with pytest.raises(KeyboardInterrupt):
            touch(rows, tmp_path / "r.json", newest_s=NEWEST_S + 1000)
    assert len(undo_touch(tmp_path / "r.json").actions) == 3
    assert [os.stat(path).st_mtime_ns for path in paths] == before


def test_a_file_changed_since_keeps_its_time(tmp_path: Path) -> None:
    changed, gone, other = _files(tmp_path / "p", "changed", "gone", "other")
    touch([(path, 1.0, None) for path in (changed, gone, other)], tmp_path / "r.json", newest_s=NEWEST_S)
    os.utime(changed, (1.0, 1.6e9))
    os.remove(gone)
    done = undo_touch(tmp_path / "r.json")
    assert [reason for _, reason in done.failed] == ["changed since it was touched", "No such file or directory"]
    assert os.stat(changed).st_mtime == 1.6e9
    assert os.stat(other).st_mtime_ns == OLD_NS + 2


def test_rows_without_a_score_and_missing_files_are_left_alone(tmp_path: Path) -> None:
    (path,) = _files(tmp_path / "p", "a")
    rows = [(path, None, None), (path, math.nan, None), (str(tmp_path / "gone"), 1.0, None), ("a\0b", 1.0, None)]
    done = touch(rows, tmp_path / "r.json")
    assert (done.actions, done.unscored, len(done.failed)) == ([], 2, 2)
    assert os.stat(path).st_mtime_ns == OLD_NS


def test_a_dry_run_changes_nothing(tmp_path: Path) -> None:
    (path,) = _files(tmp_path / "p", "a")
    done = touch([(path, 1.0, None)], tmp_path / "r.json", newest_s=NEWEST_S, dry_run=True)
    assert done.actions == [Touch(path, round(NEWEST_S * 1e9))]
    assert str(done.actions[0]).endswith(f" {path}")
    assert (os.stat(path).st_mtime_ns, os.listdir(tmp_path)) == (OLD_NS, ["p"])
    touch([(path, 1.0, None)], tmp_path / "r.json", newest_s=NEWEST_S)
    assert len(undo_touch(tmp_path / "r.json", dry_run=True).actions) == 1
    assert os.stat(path).st_mtime == NEWEST_S


def test_names_of_one_file_count_with_the_highest_score(tmp_path: Path) -> None:
    first, second = _files(tmp_path / "p", "a", "b")
    os.link(first, tmp_path / "p" / "hard")
    rows = [(first, 0.1, None), (second, 0.5, None), (str(tmp_path / "p" / "hard"), 0.9, None), (first, 0.2, None)]
    touch(rows, tmp_path / "r.json", newest_s=NEWEST_S)
    assert _by_newest([first, second]) == [first, second]
    assert undo_touch(tmp_path / "r.json").failed == []
    assert os.stat(first).st_mtime_ns == OLD_NS


def test_a_relative_path_can_be_undone_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (path,) = _files(tmp_path / "p", "a")
    monkeypatch.chdir(tmp_path / "p")
    touch([("a", 1.0, None)], tmp_path / "r.json")
    monkeypatch.chdir(tmp_path)
    undo_touch(tmp_path / "r.json")
    assert os.stat(path).st_mtime_ns == OLD_NS


@pytest.mark.parametrize("content", ["", "[]", '{"files": [{}]}', '{"files": [{"path": 3, "before_ns": 1}]}', "\x00"])
def test_a_bad_record_is_refused_before_anything_is_touched(tmp_path: Path, content: str) -> None:
    (path,) = _files(tmp_path / "p", "a")
    record = tmp_path / "r.json"
    record.write_text(content)
    with pytest.raises(ArrangeError, match=r"r\.json: not a record of times"):
        touch([(path, 1.0, None)], record)
    with pytest.raises(ArrangeError, match="not a record"):
        undo_touch(record)
    assert (os.stat(path).st_mtime_ns, record.read_text()) == (OLD_NS, content)


def test_a_record_that_cannot_be_written_stops_before_anything_is_touched(tmp_path: Path) -> None:
    (path,) = _files(tmp_path / "p", "a")
    with pytest.raises(ArrangeError, match="cannot be written"):
        touch([(path, 1.0, None)], tmp_path / "no" / "folder.json")
    assert os.stat(path).st_mtime_ns == OLD_NS
    with pytest.raises(ArrangeError, match="cannot be read"):
        undo_touch(tmp_path / "gone.json")


def test_the_record_is_text_that_anyone_reads(tmp_path: Path) -> None:
    (path,) = _files(tmp_path / "p", "byte\udcff")
    touch([(path, 1.0, None)], tmp_path / "r.json", newest_s=NEWEST_S)
    (entry,) = json.loads((tmp_path / "r.json").read_bytes().decode())["files"]
    assert entry["path"].endswith("byte\\udcff")
    assert (entry["before_ns"], entry["given_ns"]) == (OLD_NS, [round(NEWEST_S * 1e9)])


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.none() | st.floats(allow_infinity=False), st.none())))
def test_any_plan_is_in_the_order_of_scores(rows: list) -> None:
    touches, unscored = plan_touches(rows, 10**18)
    best = {}
    for path, score, _ in rows:
        if score is not None and not math.isnan(score):
            best[os.path.abspath(path)] = max(score, best.get(os.path.abspath(path), -math.inf))
    assert [each.mtime_ns for each in touches] == [10**18 - place * 10**9 for place in range(len(best))]
    assert [best[each.path] for each in touches] == sorted(best.values(), reverse=True)
    assert unscored == sum(score is None or math.isnan(score) for _, score, _ in rows)


# Links


@pytest.mark.parametrize("relative", [True, False])
def test_files_are_linked_into_a_folder_per_band(tmp_path: Path, relative: bool) -> None:
    a, b, c = _files(tmp_path / "photos", "a.jpg", "b.jpg", "c.jpg")
    out = tmp_path / "sorted"
    done = link([Scored(a, 0.1, "allow"), (b, 0.5, "review"), (c, None, None)], out, relative=relative)
    start = "../../photos" if relative else str(tmp_path / "photos")
    assert _tree(out) == {"allow/a.jpg": f"{start}/a.jpg", "review/b.jpg": f"{start}/b.jpg"}
    assert [(out / name).read_bytes() for name in ("allow/a.jpg", "review/b.jpg")] == [b"a.jpg", b"b.jpg"]
    assert str(done) == "2 arranged, 0 already so, 1 without a score left alone"
    assert sorted(os.listdir(tmp_path / "photos")) == ["a.jpg", "b.jpg", "c.jpg"]


def test_relative_links_survive_a_move_of_the_whole_tree(tmp_path: Path) -> None:
    (a,) = _files(tmp_path / "one" / "photos", "a.jpg")
    link([(a, 0.1, "allow")], tmp_path / "one" / "sorted")
    (tmp_path / "one").rename(tmp_path / "two")
    assert (tmp_path / "two" / "sorted" / "allow" / "a.jpg").read_bytes() == b"a.jpg"


def test_relative_links_are_right_from_a_folder_that_is_itself_a_link(tmp_path: Path) -> None:
    (a,) = _files(tmp_path / "photos", "a.jpg")
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "out").symlink_to(tmp_path / "deep" / "er")
    link([(a, 0.1, "allow")], tmp_path / "out")
    assert (tmp_path / "out" / "allow" / "a.jpg").read_bytes() == b"a.jpg"


def test_running_again_changes_nothing(tmp_path: Path) -> None:
    one, two = _files(tmp_path / "1", "x.jpg") + _files(tmp_path / "2", "x.jpg")
    rows = [(one, 0.1, "allow"), (two, 0.2, "allow")]
    link(rows, tmp_path / "out")
    before = _tree(tmp_path / "out")
    for again in (rows, rows[::-1], rows[1:]):
        done = link(again, tmp_path / "out")
        assert (done.actions, done.already) == ([], len(again))
        assert _tree(tmp_path / "out") == before
    assert link(rows, tmp_path / "out", relative=False).already == 2


def test_names_are_made_unique_without_loss(tmp_path: Path) -> None:
    paths = [path for number in range(4) for path in _files(tmp_path / str(number), "x.jpg")]
    paths += _files(tmp_path / "4", "X.JPG", "no suffix", "n" * 250 + ".jpg") + _files(
        tmp_path / "5", "n" * 250 + ".jpg"
    )
    link([(path, 0.1, "allow") for path in paths], tmp_path / "out")
    targets = {os.path.realpath(path) for path in (tmp_path / "out" / "allow").iterdir()}
    assert targets == {os.path.realpath(path) for path in paths}
    names = [name.casefold() for name in os.listdir(tmp_path / "out" / "allow")]
    assert len(set(names)) == len(names) == len(paths)


def test_what_is_there_is_never_replaced(tmp_path: Path) -> None:
    (a,) = _files(tmp_path / "photos", "a.jpg")
    allow = tmp_path / "out" / "allow"
    allow.mkdir(parents=True)
    (allow / "a.jpg").write_bytes(b"mine")
    link([(a, 0.1, "allow")], tmp_path / "out")
    assert (allow / "a.jpg").read_bytes() == b"mine"
    (other,) = (path for path in allow.iterdir() if path.name != "a.jpg")
    assert other.read_bytes() == b"a.jpg"
    assert other.name.startswith("a-")


def test_links_of_a_band_that_a_file_has_left_are_told(tmp_path: Path) -> None:
    (a,) = _files(tmp_path / "photos", "a.jpg")
    link([(a, 0.1, "allow")], tmp_path / "out")
    done = link([(a, 0.9, "block")], tmp_path / "out")
    assert done.elsewhere == ["allow/a.jpg"]
    assert sorted(_tree(tmp_path / "out")) == ["allow/a.jpg", "block/a.jpg"]
    assert "1 old links in other bands" in str(done)


@pytest.mark.parametrize("band", ["../up", "..", ".", "", "/etc", "a/b", "nul\0"])
def test_a_band_cannot_lead_out_of_the_folder(tmp_path: Path, band: str) -> None:
    (a,) = _files(tmp_path / "photos", "a.jpg")
    with pytest.raises(ArrangeError, match="a folder cannot be named"):
        link([(a, 0.1, "allow"), (a, 0.1, band)], tmp_path / "out")
    assert os.listdir(tmp_path) == ["photos"]


def test_a_band_that_is_a_link_or_a_file_is_refused(tmp_path: Path) -> None:
    (a,) = _files(tmp_path / "photos", "a.jpg")
    outside = tmp_path / "outside"
    outside.mkdir()
    out = tmp_path / "out"
    out.mkdir()
    (out / "allow").symlink_to(outside)
    (out / "block").write_bytes(b"")
    for band in ("allow", "block"):
        with pytest.raises(ArrangeError, match=f"out/{band} is not a folder"):
            link([(a, 0.1, band)], out)
    with pytest.raises(ArrangeError, match="is not a folder"):
        link([(a, 0.1, "review")], out / "block")
    assert os.listdir(outside) == []


def test_missing_files_and_nasty_names(tmp_path: Path) -> None:
    names = ["new\nline.jpg", "byte\udcff.jpg", "-rf", ".hidden", "a\\b"]
    paths = _files(tmp_path / "photos", *names)
    done = link([(path, 0.1, "allow") for path in [*paths, str(tmp_path / "gone")]], tmp_path / "out")
    assert sorted(os.listdir(tmp_path / "out" / "allow")) == sorted(names)
    assert done.failed == [(str(tmp_path / "gone"), "no such file")]


def test_a_link_among_the_inputs_is_linked_itself(tmp_path: Path) -> None:
    _files(tmp_path / "photos", "a.jpg")
    (tmp_path / "photos" / "alias.jpg").symlink_to("a.jpg")
    link([(str(tmp_path / "photos" / "alias.jpg"), 0.1, "allow")], tmp_path / "out")
    assert _tree(tmp_path / "out") == {"allow/alias.jpg": "../../photos/alias.jpg"}


def test_a_dry_run_of_links_makes_nothing(tmp_path: Path) -> None:
    (a,) = _files(tmp_path / "photos", "a.jpg")
    done = link([(a, 0.1, "allow")], tmp_path / "out", dry_run=True)
    assert done.actions == [Link("allow/a.jpg", "../../photos/a.jpg")]
    assert str(done.actions[0]) == "link allow/a.jpg -> ../../photos/a.jpg"
    assert os.listdir(tmp_path) == ["photos"]


_ROWS = st.lists(
    st.tuples(
        st.text("ab/", min_size=1, max_size=4).map(lambda t: f"/photos/{t}/x.jpg"), st.none(), st.sampled_from("12")
    )
)


@settings(max_examples=80, deadline=None)
@given(first=_ROWS, second=_ROWS)
def test_any_plan_links_each_file_once_and_again_plans_nothing(first: list, second: list) -> None:
    state: dict[str, str | None] = {}
    for rows in (first, second, second, first):
        actions = [action for action in plan_links(rows, state, None).actions if isinstance(action, Link)]
        assert not {action.path for action in actions} & state.keys()
        state |= {action.path: action.target for action in actions}
    expected = {(band, os.path.realpath(path)) for path, _, band in first + second}
    assert sorted((name.partition("/")[0], target) for name, target in state.items()) == sorted(expected)


# Tables

PLAIN = ["image_path", "probability", "prediction", "class_name", "error", "model_version"]
WIDE = [
    "image_path", "nsfw_score", "nsfw_decision", "nsfw_class_name", "taste_score", "kind_a_score", "kind_b_score",
    "kind_class_name", "tags_x_score", "tags_y_score", "tags_x_decision", "tags_y_decision", "error", "model_version",
]  # fmt: skip


@pytest.mark.parametrize(
    ("head", "score", "band"),
    [
        (None, "nsfw_score", "nsfw_decision"),
        ("nsfw_score", "nsfw_score", "nsfw_decision"),
        ("taste", "taste_score", None),
        ("kind", "kind_a_score", "kind_class_name"),
        ("kind_b", "kind_b_score", "kind_class_name"),
        ("tags", "tags_x_score", "tags_x_decision"),
        ("tags_y", "tags_y_score", "tags_y_decision"),
    ],
)
def test_the_columns_of_a_head(head: str | None, score: str, band: str | None) -> None:
    source = source_of(WIDE, head)
    assert (source.score, source.band) == (score, band)
    assert score not in source.others
    assert len(source.others) == 5


def test_the_label_of_a_head_does_not_take_a_shorter_heads_decision() -> None:
    names = ["image_path", "a_score", "a_decision", "a_b_score"]
    assert source_of(names, "a_b").band is None


def test_the_plain_table_of_one_head() -> None:
    assert source_of(PLAIN) == Source("image_path", "probability", "class_name")
    assert source_of(PLAIN, "nsfw").head == "nsfw"


def test_actions_are_one_line_each() -> None:
    assert str(Link("allow/a\nb\x1b[2J.jpg", "../p/c d.jpg")) == r"link 'allow/a\nb\x1b[2J.jpg' -> ../p/c d.jpg"
    assert str(Touch("a\rb", 0)).endswith(r" 'a\rb'")


def test_rows_with_an_error_have_no_score(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text(
        ",".join(PLAIN) + "\n./=a.jpg,0.5,1,nsfw,,nsfw-1\nb\\udcff.jpg,0.9,1,nsfw,X: y,\nc.jpg,,,,,\nd,inf,1,nsfw,,\n"
    )
    assert list(read_scored(table, source_in(table, "nsfw"))) == [
        ("./=a.jpg", 0.5, "nsfw"), ("b\udcff.jpg", None, None), ("c.jpg", None, None), ("d", None, "nsfw"),
    ]  # fmt: skip
    with pytest.raises(UnknownHead, match="row 1: there is no score of head 'taste', this one is by nsfw-1"):
        list(read_scored(table, source_in(table, "taste")))


def test_an_unknown_head_names_the_table(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text("image_path,nsfw_score\n")
    with pytest.raises(UnknownHead, match=r"t\.csv: there is no score of head 'taste'; there are: nsfw_score"):
        source_in(table, "taste")
