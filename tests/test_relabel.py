from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from stores import Row, head_data, write_rows

from common.manifest import EncoderFingerprint
from recipes.errors import run_step
from training import relabel
from training.store_view import read_mentions, read_pictures

ENCODER = EncoderFingerprint(id="tiny", weights_sha256="aa", preprocessing="exact", normalize=True, embed_dim=4)


def _row(path: str, sha256: str, label: str | None) -> Row:
    return Row(Path(path).name, path, sha256, 1, 1, label, None, np.zeros(4, np.float32))


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Six rows; /x/d.jpg is a copy of /x/a.jpg, and two different images have the key e.jpg."""
    rows = [
        _row("/x/a.jpg", "1" * 64, "angular"),
        _row("/x/b.jpg", "2" * 64, "round"),
        _row("/x/c.jpg", "3" * 64, None),
        _row("/x/d.jpg", "1" * 64, "angular"),
        _row("/x/e.jpg", "4" * 64, "round"),
        _row("/y/e.jpg", "5" * 64, "round"),
    ]
    write_rows(tmp_path / "store", ENCODER, rows)
    return tmp_path / "store"


def _labels(store: Path) -> dict[str, str | None]:
    """The label of every file, which is its content's."""
    data = head_data(store)
    pictures, mentions = read_pictures(data), read_mentions(data)
    label_of = dict(zip(pictures.sha256, pictures.label, strict=True))
    sums = mentions["sha256"].to_pylist()
    return {path: label_of[content] for path, content in zip(mentions["path"].to_pylist(), sums, strict=True)}


def _run(store: Path, text: str, *arguments: str, name: str = "fix.csv") -> int:
    file = store.parent / name
    file.write_text(text)
    return run_step("training.relabel", lambda: relabel.main([str(file), "--store", str(store), *arguments]))


@pytest.mark.parametrize("who", ["path\n/x/a.jpg", "key\na.jpg", "sha256\n" + "1" * 64, "path\na.jpg"])
def test_rows_are_named_by_path_key_or_content(store: Path, capsys, who: str) -> None:
    column, value = who.split("\n")
    assert _run(store, f"{column},label\n{value},round\n") == 0
    out, err = capsys.readouterr()
    assert out == "1\n"
    assert "1 of 1 known pictures have another label now" in err
    assert _labels(store) == {
        "/x/a.jpg": "round",
        "/x/b.jpg": "round",
        "/x/c.jpg": None,
        "/x/d.jpg": "round",
        "/x/e.jpg": "round",
        "/y/e.jpg": "round",
    }


def test_a_path_may_be_relative_to_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "s", ENCODER, [_row(f"{tmp_path}/p/a.jpg", "1", "round"), _row("b", "2", "angular")])
    assert _run(tmp_path / "s", "path,label\np/a.jpg,angular\n") == 0
    assert _labels(tmp_path / "s") == {f"{tmp_path}/p/a.jpg": "angular", "b": "angular"}


def test_an_unlabelled_row_gets_a_label(store: Path) -> None:
    assert _run(store, "path,label\n/x/c.jpg,angular\n") == 0
    assert _labels(store)["/x/c.jpg"] == "angular"


def test_parts_stay_as_they_are(store: Path) -> None:
    before = {path: path.read_bytes() for path in store.rglob("*.parquet")}
    assert _run(store, "path,label\n/x/a.jpg,round\n") == 0
    assert all(path.read_bytes() == content for path, content in before.items())
    assert len(list(store.rglob("*.parquet"))) == len(before) + 1


def test_a_label_can_be_changed_back(store: Path) -> None:
    for label in ("round", "angular", "round"):
        assert _run(store, f"path,label\n/x/a.jpg,{label}\n") == 0
        assert _labels(store)["/x/a.jpg"] == label


def test_the_same_corrections_again_change_nothing(store: Path, capsys) -> None:
    assert _run(store, "path,label\n/x/a.jpg,round\n") == 0
    files = sorted(store.rglob("*"))
    assert _run(store, "path,label\n/x/a.jpg,round\n") == 0
    assert capsys.readouterr().out == "1\n0\n"
    assert sorted(store.rglob("*")) == files


def test_of_an_audit_only_marked_rows_count(store: Path) -> None:
    audit = """path,key,given_label,suggested_label,confidence,reason,accept,label
/x/a.jpg,a.jpg,angular,round,0.98,looks like round,x,
/x/b.jpg,b.jpg,round,angular,0.97,looks like angular,,
/x/c.jpg,c.jpg,,round,0.9,looks like round,no,
/x/e.jpg,e.jpg,round,,0.9,far,,angular
/gone.jpg,gone.jpg,round,angular,0.9,looks like angular,,
"""
    assert _run(store, audit) == 0
    labels = _labels(store)
    assert (labels["/x/a.jpg"], labels["/x/b.jpg"], labels["/x/c.jpg"]) == ("round", "round", None)
    assert (labels["/x/e.jpg"], labels["/y/e.jpg"]) == ("angular", "round")


def test_the_recipes_classes_may_be_new_to_the_store_and_numbers(store: Path) -> None:
    assert _run(store, "path,label\n/x/a.jpg,1\n/x/b.jpg,0\n", "--recipe", "demo") == 0
    assert (_labels(store)["/x/a.jpg"], _labels(store)["/x/b.jpg"]) == ("round", "angular")


def test_json_lines_are_corrections_too(store: Path) -> None:
    assert _run(store, '{"path": "/x/a.jpg", "label": "round"}\n', name="fix.jsonl") == 0
    assert _labels(store)["/x/a.jpg"] == "round"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "path,label\n/x/a.jpg,round\n/no.jpg,round\n/nor.jpg,round\n",
            ["row 3: path '/no.jpg' is not in the store", "/nor"],
        ),
        ("key,label\ne.jpg,angular\n", ["key 'e.jpg' is the key of 2 images; give its whole path"]),
        ("path,label\n/x/a.jpg,square\n", ["row 2: label 'square' is none that the store has (angular, round)"]),
        (
            "path,label\n/x/a.jpg,round\n/x/d.jpg,angular\n",
            ["row 3: angular, but fix.csv row 2 says round of the same"],
        ),
        ("path,class\n/x/a.jpg,round\n", ["no column 'label'; found: path, class"]),
        ("file,label\n/x/a.jpg,round\n", ["no column 'path'; found: file, label"]),
        ("path,suggested_label,accept\n/x/a.jpg,round,maybe\n", ["accept is 'maybe'; put an x there"]),
        ("path,suggested_label,accept\n/x/a.jpg,,x\n", ["accepted, but there is no suggested_label"]),
        ("path,label\n,round\n", ["row 2: no sha256, path, key given"]),
    ],
)
def test_bad_corrections_change_nothing(store: Path, capsys, text: str, words: list[str]) -> None:
    before = {path: path.read_bytes() for path in store.rglob("*.parquet")}
    assert _run(store, text) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert all(word in err for word in words)
    assert "fix.csv" in err
    assert {path: path.read_bytes() for path in store.rglob("*.parquet")} == before


def test_a_long_list_of_unknown_paths_is_cut(store: Path, capsys) -> None:
    assert _run(store, "path,label\n" + "".join(f"/no/{n}.jpg,round\n" for n in range(25))) == 1
    assert "and 15 more" in capsys.readouterr().err


def test_missing_files_are_named(store: Path, tmp_path: Path, capsys) -> None:
    assert run_step("training.relabel", lambda: relabel.main([str(tmp_path / "no.csv"), "--store", str(store)])) == 1
    assert "no.csv: cannot be read: No such file" in capsys.readouterr().err
    assert _run(tmp_path / "nowhere", "path,label\na,b\n") == 1
    assert "nowhere: whose labels? name the --recipe" in capsys.readouterr().err
    assert run_step("training.relabel", lambda: relabel.main([str(tmp_path / "no.csv")])) == 1
    assert "give --store, or --recipe" in capsys.readouterr().err
