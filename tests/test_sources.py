"""Data sets of a head: what is gone, moved, replaced, disputed or prescribed, by content."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from stores import Row, head_data, write_rows

from common.manifest import EncoderFingerprint
from training.errors import StepError
from training.overview import overview
from training.sources import HeadData, Mention, Source, heads_in, mentions_table, read_sources, write_source
from training.store_view import read_pictures

ENCODER = EncoderFingerprint(id="tiny", weights_sha256="aa", preprocessing="exact", normalize=True, embed_dim=4)


def _row(path: str, sha256: str, label: str | None = "round", split: str | None = None, group: str | None = None):
    return Row(path, path, sha256, 1, 1, label, split, np.zeros(4, np.float32), group)


def _labels(folder: Path) -> dict[str, str | None]:
    pictures = read_pictures(head_data(folder))
    return dict(zip(pictures.sha256, pictures.label, strict=True))


def _set(folder: Path, name: str) -> str:
    """The identity of a data set that is there."""
    (folder / name).mkdir(parents=True, exist_ok=True)
    return f"folders {folder / name}"


def test_files_that_are_gone_count_no_more(tmp_path: Path) -> None:
    write_rows(tmp_path, ENCODER, [_row("a", "1"), _row("b", "2"), _row("c", "3")])
    changes = write_rows(tmp_path, ENCODER, [_row("a", "1"), _row("d", "4")])
    assert set(_labels(tmp_path)) == {"1", "4"}
    assert (changes.new, changes.gone, changes.moved, changes.relabelled) == (1, 2, 0, 0)


def test_missing_files_are_kept_on_request(tmp_path: Path) -> None:
    write_rows(tmp_path, ENCODER, [_row("a", "1"), _row("b", "2")])
    write_rows(tmp_path, ENCODER, [_row("a", "3")], keep_missing=True)
    assert set(_labels(tmp_path)) == {"2", "3"}


def test_a_file_moved_to_another_class_is_one_picture_with_its_new_label(tmp_path: Path) -> None:
    write_rows(tmp_path, ENCODER, [_row("angular/a", "1", "angular"), _row("round/b", "2")])
    changes = write_rows(tmp_path, ENCODER, [_row("round/a", "1", "round"), _row("round/b", "2")])
    assert _labels(tmp_path) == {"1": "round", "2": "round"}
    assert (changes.moved, changes.relabelled, changes.gone) == (1, 1, 0)


def test_a_folder_that_moved_counts_once_and_comes_back_when_it_does(tmp_path: Path) -> None:
    store, old = tmp_path / "store", _set(tmp_path, "old")
    rows = [_row(f"/old/{n}", str(n)) for n in range(3)]
    write_rows(store, ENCODER, rows, identity=old)
    (tmp_path / "old").rename(tmp_path / "new")
    moved = [_row(f"/new/{n}", str(n)) for n in range(2)]
    changes = write_rows(store, ENCODER, moved, identity=_set(tmp_path, "new"))
    pictures = read_pictures(head_data(store))
    assert (pictures.sha256, pictures.path) == (["0", "1"], ["/new/0", "/new/1"])
    assert changes.missing == {old: 3}
    assert (changes.gone, changes.moved) == (1, 2)
    (tmp_path / "old").mkdir()
    changes = write_rows(store, ENCODER, moved, identity=_set(tmp_path, "new"))
    assert (changes.missing, changes.new) == ({}, 1)
    assert read_pictures(head_data(store)).files.tolist() == [2, 2, 1]


def test_a_data_set_that_is_no_longer_there_is_kept_on_request(tmp_path: Path) -> None:
    store = tmp_path / "store"
    write_rows(store, ENCODER, [_row("/old/1", "1")], identity=f"folders {tmp_path}/unmounted")
    changes = write_rows(store, ENCODER, [_row("/new/2", "2")], identity=_set(tmp_path, "new"), keep_missing=True)
    assert set(_labels(store)) == {"1", "2"}
    assert changes.missing == {}


def test_a_pattern_of_shards_is_there_while_a_shard_is(tmp_path: Path) -> None:
    store, identity = tmp_path / "store", f"shards {tmp_path}/shards/*.tar"
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "0.tar").touch()
    write_rows(store, ENCODER, [_row("1", "1")], identity=identity)
    write_rows(store, ENCODER, [_row("2", "2")], identity=_set(tmp_path, "other"))
    assert set(_labels(store)) == {"1", "2"}
    (tmp_path / "shards" / "0.tar").unlink()
    assert write_rows(store, ENCODER, [_row("2", "2")], identity=_set(tmp_path, "other")).missing == {identity: 1}


def test_a_shorter_array_replaces_the_longer_one(tmp_path: Path) -> None:
    write_rows(tmp_path, ENCODER, [_row(f"x.npy#{n}", f"old {n}") for n in range(5)])
    write_rows(tmp_path, ENCODER, [_row(f"x.npy#{n}", f"new {n}") for n in range(2)])
    assert set(_labels(tmp_path)) == {"new 0", "new 1"}


def test_a_data_set_is_written_once_and_not_a_file_for_each_reading(tmp_path: Path) -> None:
    for _ in range(3):
        write_rows(tmp_path, ENCODER, [_row("a", "1")])
    assert len(list(head_data(tmp_path).folder.iterdir())) == 1
    assert [source.generation for source in read_sources(head_data(tmp_path))] == [2]


def test_no_label_says_nothing(tmp_path: Path) -> None:
    store = tmp_path / "store"
    write_rows(store, ENCODER, [_row("a", "1"), _row("b", "2")], identity=_set(tmp_path, "labelled"))
    write_rows(store, ENCODER, [_row("pool/a", "1", None)], identity=_set(tmp_path, "pool"))
    assert _labels(store) == {"1": "round", "2": "round"}


def test_copies_with_several_labels_are_left_out_and_listed(tmp_path: Path) -> None:
    write_rows(tmp_path, ENCODER, [_row("angular/a", "1", "angular"), _row("round/a", "1"), _row("round/b", "2")])
    pictures = read_pictures(head_data(tmp_path))
    assert pictures.label == [None, "round"]
    assert pictures.disputed == {"1": [("angular/a", "angular"), ("round/a", "round")]}
    rows = dict(overview([], pictures))
    assert rows["left out"] == "1 pictures with several labels; the first: angular/a is angular, round/a is round"


def test_labels_are_each_heads_own(tmp_path: Path) -> None:
    write_rows(tmp_path, ENCODER, [_row("a", "1", "no")])
    gore = HeadData(tmp_path, "demo", "gore")
    write_source(gore, Source("folders /", mentions_table([Mention("a", "a", "1", "yes")])))
    assert (_labels(tmp_path), read_pictures(gore).label) == ({"1": "no"}, ["yes"])
    assert heads_in(tmp_path) == [head_data(tmp_path), gore]


def test_the_more_held_out_of_two_prescribed_sides_counts(tmp_path: Path) -> None:
    rows = [_row("a", "1", split="train"), _row("b", "1", split="test"), _row("c", "2", split="train"), _row("d", "3")]
    write_rows(tmp_path, ENCODER, rows)
    assert read_pictures(head_data(tmp_path)).split == ["test", "train", None]
    write_rows(tmp_path, ENCODER, [_row("a", "1", split="holdout")])
    with pytest.raises(StepError, match=r"prescribe \['holdout'\], expected train, validation, test"):
        read_pictures(head_data(tmp_path))


def test_a_picture_has_the_groups_of_all_its_files(tmp_path: Path) -> None:
    rows = [_row("a", "1", group="anna"), _row("b", "1", group="bert"), _row("c", "2", group="anna"), _row("d", "3")]
    write_rows(tmp_path, ENCODER, rows)
    assert read_pictures(head_data(tmp_path)).group == [("anna", "bert"), ("anna",), ()]


def test_pictures_are_sorted_by_content_whatever_the_order_of_files(tmp_path: Path) -> None:
    rows = [_row("a", "3"), _row("b", "1"), _row("c", "2"), _row("d", "1")]
    write_rows(tmp_path / "one", ENCODER, rows)
    write_rows(tmp_path / "other", ENCODER, rows[::-1])
    one, other = (read_pictures(head_data(tmp_path / name)) for name in ("one", "other"))
    assert one.sha256 == other.sha256 == ["1", "2", "3"]
    assert one.path == other.path == ["b", "c", "a"]
    assert one.files.tolist() == [2, 1, 1]


def test_a_file_of_no_data_set_is_named(tmp_path: Path) -> None:
    write_rows(tmp_path, ENCODER, [_row("a", "1")])
    [file] = head_data(tmp_path).folder.iterdir()
    file.write_bytes(b"not parquet")
    with pytest.raises(StepError, match=rf"{file.name}: not a readable Parquet file"):
        read_pictures(head_data(tmp_path))


def _overview(folder: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    data, pictures = head_data(folder), read_pictures(head_data(folder))
    for name, text in overview(read_sources(data), pictures):
        found.setdefault(name, []).append(text)
    return found


def test_the_overview_says_what_counts_and_why_the_rest_does_not(tmp_path: Path) -> None:
    mentions = [
        Mention("a", "a", "1", "round", "test"),
        Mention("b", "b", "2", "angular", "train"),
        Mention("c", "c", "2", "angular", "train"),
        Mention("d", "d", "3", None),
    ]
    source = Source("folders /", mentions_table(mentions), {".txt files": 2, "EMPTY": 1}, ["labels: by hand"])
    write_source(head_data(tmp_path), source)
    assert _overview(tmp_path) == {
        "pictures": ["3 in 4 files of folders /"],
        "labels": ["angular 1, round 1"],
        "split": ["by the data: train 1, test 1"],
        "left out": ["2 .txt files", "1 EMPTY", "1 pictures without a label"],
        "note": ["labels: by hand"],
    }


def test_labels_of_several_names_are_counted_by_name(tmp_path: Path) -> None:
    labels = ['["gore", "nude"]', '["nude"]', "[]"]
    write_rows(tmp_path, ENCODER, [_row(str(n), str(n), label) for n, label in enumerate(labels)])
    assert _overview(tmp_path)["labels"] == ["gore 1, none of them 1, nude 2"]


def _write(folder: Path, name: str, labels: dict[str, str | None], decides: bool = False) -> None:
    mentions = [Mention(key, f"{name}/{key}", key, label) for key, label in labels.items()]
    source = Source(_set(folder, name), mentions_table(mentions), decides=decides)
    write_source(head_data(folder), source)


def test_a_data_set_that_decides_is_right_for_as_long_as_it_says_so(tmp_path: Path) -> None:
    _write(tmp_path, "photos", {"1": "round", "2": "round", "3": None})
    _write(tmp_path, "answers", {"1": "angular", "3": "angular"}, decides=True)
    assert _labels(tmp_path) == {"1": "angular", "2": "round", "3": "angular"}
    assert read_pictures(head_data(tmp_path)).disputed == {}
    _write(tmp_path, "answers", {"3": "angular"}, decides=True)
    assert _labels(tmp_path) == {"1": "round", "2": "round", "3": "angular"}
    _write(tmp_path, "answers", {}, decides=True)
    assert _labels(tmp_path) == {"1": "round", "2": "round", "3": None}
    _write(tmp_path, "answers", {"1": "angular"})
    assert _labels(tmp_path)["1"] is None  # they contradict each other


def test_data_sets_that_are_all_empty_are_refused(tmp_path: Path) -> None:
    _write(tmp_path, "answers", {}, decides=True)
    with pytest.raises(StepError, match="have no pictures any more"):
        _labels(tmp_path)
