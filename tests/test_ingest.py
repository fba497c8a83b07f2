from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from stores import demo_store
from tiny_encoder import EMBED_DIM, write_tiny_encoder

from common import paths
from common.manifest import EncoderFingerprint, write_manifest
from recipes.errors import run_step
from recipes.schema import RECIPES, Recipe, load_recipe
from training import ingest
from training.sources import HeadData
from training.store_view import Embeddings, read_embeddings

CLASSES = ["angular", "round"]


def _unit(count: int, seed: int = 0, width: int = EMBED_DIM) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(count, width))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture
def recipe() -> Recipe:
    return load_recipe("demo")


@pytest.fixture
def encoder(tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> EncoderFingerprint:
    """An encoder that normalises, where the demo recipe's would lie."""
    monkeypatch.setattr(paths, "ARTIFACTS", tmp_path / "artifacts")
    folder = paths.encoder_folder(recipe)
    manifest = write_tiny_encoder(folder).model_copy(update={"normalize": True})
    write_manifest(manifest, folder / "encoder.json")
    return manifest.fingerprint()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def _run(*arguments: object, recipe: object = "demo") -> int:
    return run_step("training.ingest", lambda: ingest.main(["--recipe", str(recipe), *map(str, arguments)]))


def _rows(encoder: EncoderFingerprint, head: str = "demo") -> Embeddings:
    return read_embeddings(HeadData(demo_store(encoder).folder, "demo", head), encoder)


def _by_key(rows: Embeddings) -> dict[str, tuple[str | None, np.ndarray]]:
    return {key: (rows.label[row], rows.embedding[row]) for row, key in enumerate(rows.key)}


def _clip_retrieval(folder: Path, counts: tuple[int, ...] = (5, 3), **columns: list) -> None:
    (folder / "img_emb").mkdir()
    (folder / "metadata").mkdir()
    for number, count in enumerate(counts):
        np.save(folder / "img_emb" / f"img_emb_{number}.npy", _unit(count, number).astype(np.float16))
        table = {"image_path": [f"{number}/{row}.jpg" for row in range(count)], "caption": ["words"] * count}
        table |= {name: values[:count] for name, values in columns.items()}
        pq.write_table(pa.table(table), folder / "metadata" / f"metadata_{number}.parquet")


def test_positive_and_negative_become_rows(encoder: EncoderFingerprint, data: Path, capsys) -> None:
    np.save(data / "positive.npy", _unit(4, 1))
    np.save(data / "negative.npy", _unit(6, 2))
    assert _run("--data", data) == 0
    out, err = capsys.readouterr()
    assert out == f"{demo_store(encoder).folder}\n"
    assert "10 rows added, 0 known before" in err
    rows = _rows(encoder)
    found = _by_key(rows)
    assert [label for label, _ in found.values()].count("round") == 4
    np.testing.assert_array_equal(found["positive/2"][1], _unit(4, 1)[2])
    assert found["negative/5"][0] == "angular"
    assert f"{(data / 'positive.npy').resolve()}#3" in rows.path
    assert len(set(rows.sha256)) == 10


@pytest.mark.parametrize(
    "labels",
    [
        [0, 1, 1],
        [[0.0], [1.0], [1.0]],
        [False, True, True],
        ["angular", "round", "round"],
        [b"angular", b"round", b"round"],
        [[1, 0], [0, 1], [0, 1]],
    ],
)
def test_x_and_y_become_rows(encoder: EncoderFingerprint, data: Path, labels: list) -> None:
    np.save(data / "x.npy", _unit(3).astype(np.float64))
    np.save(data / "y.npy", np.array(labels))
    assert _run("--data", data) == 0
    assert {key: label for key, (label, _) in _by_key(_rows(encoder)).items()} == {
        "x/0": "angular",
        "x/1": "round",
        "x/2": "round",
    }


@pytest.mark.parametrize(
    "write",
    [
        lambda data: [np.save(data / f"{name}.npy", _unit(2, seed)) for seed, name in enumerate(CLASSES)],
        lambda data: [np.save(data / "x_L14_embeddings.npy", _unit(4)), np.save(data / "y_ratings.npy", [0, 1, 0, 1])],
        lambda data: np.savez(data / "all.npz", x=_unit(4), y=[0, 1, 0, 1]),
        lambda data: [np.save(data / "x.npy", _unit(4)[:, None]), np.save(data / "y.npy", [0, 1, 0, 1])],
    ],
    ids=["a file per class", "LAION's names", "npz", "an axis of one"],
)
def test_arrays_as_people_keep_them_become_rows(encoder: EncoderFingerprint, data: Path, write) -> None:
    write(data)
    assert _run("--data", data) == 0
    assert sorted(str(label) for label in _rows(encoder).label) == ["angular", "angular", "round", "round"]


@pytest.mark.parametrize(
    ("dtype", "kind"),
    [(np.float16, None), (np.float64, None), (np.float32, pa.list_(pa.float32(), EMBED_DIM))],
    ids=["float16", "float64", "lists of a fixed size"],
)
def test_parquet_with_lists_becomes_rows(encoder: EncoderFingerprint, data: Path, dtype, kind) -> None:
    embeddings = _unit(7).astype(dtype)
    table = pa.table(
        {
            "path": [f"{row}.jpg" for row in range(7)],
            "embedding": pa.array(list(embeddings), kind),
            "label": [*[0, 1] * 3, None],
        }
    )
    pq.write_table(table, data / "all.parquet", row_group_size=3)
    for place in (data, data / "all.parquet"):
        assert _run("--data", place) == 0
    found = _by_key(_rows(encoder))
    assert {key: label for key, (label, _) in found.items()} == {
        f"{row}.jpg": None if row == 6 else CLASSES[row % 2] for row in range(7)
    }
    np.testing.assert_array_equal(found["4.jpg"][1], embeddings[4].astype(np.float32))


def test_parquet_with_a_list_of_another_length_is_refused_with_its_row(encoder, data: Path, capsys) -> None:
    lists = [row.tolist() for row in _unit(5)]
    lists[3] = lists[3][:-1]
    pq.write_table(pa.table({"embedding": lists, "label": [0] * 5}), data / "a.parquet", row_group_size=2)
    assert _run("--data", data) == 1
    assert "a.parquet: row 3 of 'embedding' has 7 values, others 8" in capsys.readouterr().err


def test_an_npz_of_objects_or_without_its_arrays_is_refused(encoder, data: Path, capsys) -> None:
    np.savez(data / "a.npz", x=_unit(2), other=[0, 1])
    assert _run("--data", data / "a.npz") == 1
    assert "a.npz: needs the arrays x and y, found x, other" in capsys.readouterr().err
    np.savez(data / "a.npz", x=_unit(2), y=np.array([{}, {}], object))
    assert _run("--data", data / "a.npz") == 1
    assert "a pickle that could run code" in capsys.readouterr().err
    (data / "a.npz").write_bytes((data / "a.npz").read_bytes()[:100])
    assert _run("--data", data / "a.npz") == 1
    assert "a.npz: no whole .npz file" in capsys.readouterr().err


def test_a_label_per_column_for_a_multilabel_head(encoder: EncoderFingerprint, data: Path, tmp_path: Path) -> None:
    settings = yaml.safe_load((RECIPES / "demo.yaml").read_text())
    settings["heads"] = [{"name": "tags", "task": "multilabel", "class_names": ["gore", "nude", "text"]}]
    (tmp_path / "tags.yaml").write_text(yaml.safe_dump(settings))
    np.save(data / "x.npy", _unit(2))
    np.save(data / "y.npy", np.array([[1, 0, 1], [0, 0, 0]]))
    assert _run("--data", data, recipe=tmp_path / "tags.yaml") == 0
    assert {key: label for key, (label, _) in _by_key(_rows(encoder, "tags")).items()} == {
        "x/0": '["gore", "text"]',
        "x/1": "[]",
    }


def test_clip_retrievals_output_becomes_rows(encoder: EncoderFingerprint, data: Path) -> None:
    _clip_retrieval(data, nsfw=[0, 1, 0, 1, 1])
    assert _run("--data", data, "--label-column", "nsfw", "--dtype", "float16") == 0
    found = _by_key(_rows(encoder))
    assert len(found) == 8
    assert found["0/3.jpg"][0] == "round"
    np.testing.assert_array_equal(found["1/2.jpg"][1], _unit(3, 1).astype(np.float16)[2].astype(np.float32))


def test_rows_may_be_taken_in_without_labels(encoder: EncoderFingerprint, data: Path) -> None:
    _clip_retrieval(data)
    assert _run("--data", data, "--no-labels") == 0
    assert _rows(encoder).label == [None] * 8


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_again_adds_only_what_is_new(encoder: EncoderFingerprint, data: Path, capsys, dtype: str) -> None:
    np.save(data / "negative.npy", _unit(6, 2))
    np.save(data / "positive.npy", _unit(4, 1))
    assert _run("--data", data, "--dtype", dtype) == 0
    np.save(data / "positive.npy", np.concatenate([_unit(4, 1), _unit(2, 3)]))
    assert _run("--data", data) == 0
    assert "2 rows added, 10 known before" in capsys.readouterr().err
    assert len(_rows(encoder)) == 12


def _nan(rows: np.ndarray) -> np.ndarray:
    rows[3, 1] = np.nan
    return rows


def _long(rows: np.ndarray) -> np.ndarray:
    rows[2] *= 5
    return rows


@pytest.mark.parametrize(
    ("x", "y", "words"),
    [
        (_nan(_unit(5)), [0, 1, 0, 1, 0], "x.npy: row 3 has values that are not finite"),
        (_unit(5, width=6), [0, 1, 0, 1, 0], "x.npy: embeddings have 6 values, those of encoder tiny 8"),
        (_long(_unit(5)), [0, 1, 0, 1, 0], "x.npy: row 2 has length 5.000, but encoder tiny normalises"),
        (_unit(5), [0, 1, 0, 2, 0], "y.npy: row 3: label 2 is neither 0 or 1 nor one of angular, round"),
        (_unit(5), [0, 1, 0, 0.5, 0], "y.npy: row 3: label 0.5 is neither"),
        (_unit(5), ["round", "flat", "", "", ""], "y.npy: row 1: label 'flat' is neither"),
        (_unit(5), [0, 1, 0, 1], "y.npy: 4 rows, but "),
        (_unit(5), [[0, 1, 0]] * 5, r"y.npy: shape (5, 3), expected (n,) for the binary head demo"),
        (_unit(5), [[0, 1]] * 4 + [[1, 1]], "y.npy: row 4 is [1, 1], expected one 1 among 2 values"),
        (_unit(5)[0], [0], "x.npy: shape (8,) of float32, expected (rows, values)"),
        (np.ones((5, 8), int), [0] * 5, "x.npy: shape (5, 8) of int64, expected (rows, values) of float16"),
    ],
)
def test_bad_arrays_are_refused_with_file_and_row(
    encoder: EncoderFingerprint, data: Path, capsys, x: np.ndarray, y: list, words: str
) -> None:
    np.save(data / "x.npy", x)
    np.save(data / "y.npy", np.array(y))
    assert _run("--data", data) == 1
    out, err = capsys.readouterr()
    assert words in err
    assert str(data) in err
    assert out == ""
    assert not (paths.ARTIFACTS / "embeddings").exists()


def test_a_bad_row_in_the_second_file_leaves_the_store_as_it_was(encoder, data: Path, capsys) -> None:
    np.save(data / "negative.npy", _unit(6, 2))
    np.save(data / "positive.npy", _nan(_unit(6, 1)))
    assert _run("--data", data) == 1
    assert "positive.npy: row 3" in capsys.readouterr().err
    assert not (paths.ARTIFACTS / "embeddings").exists()


class _Payload:
    """Unpickled, it would leave a file behind."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


@pytest.mark.parametrize("name", ["x.npy", "y.npy"])
def test_objects_are_refused_and_not_unpickled(encoder, data: Path, tmp_path: Path, capsys, name: str) -> None:
    np.save(data / "x.npy", _unit(2))
    np.save(data / "y.npy", np.array([0, 1]))
    np.save(data / name, np.array([_Payload(tmp_path / "ran"), None], object), allow_pickle=True)
    assert _run("--data", data) == 1
    assert f"{name}: holds Python objects (dtype object), a pickle that could run code" in capsys.readouterr().err
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("kept", [0, 5, 60, 129, 200])
def test_an_npy_cut_short_is_refused(encoder, data: Path, capsys, kept: int) -> None:
    np.save(data / "x.npy", _unit(20))
    np.save(data / "y.npy", np.zeros(20, int))
    (data / "x.npy").write_bytes((data / "x.npy").read_bytes()[:kept])
    assert _run("--data", data) == 1
    err = capsys.readouterr().err
    assert "x.npy: " in err
    assert f"{kept} bytes" in err


def test_metadata_problems_are_named(encoder, data: Path, capsys) -> None:
    _clip_retrieval(data, label=[0, 1, 0, 1, 9])
    metadata = data / "metadata" / "metadata_0.parquet"
    assert _run("--data", data) == 1
    assert f"{metadata}: row 4: label 9 is neither 0 or 1" in capsys.readouterr().err
    assert _run("--data", data, "--label-column", "nsfw") == 1
    assert "no column 'nsfw'; found: image_path, caption, label." in capsys.readouterr().err
    metadata.write_bytes(metadata.read_bytes()[:-9])
    assert _run("--data", data) == 1
    assert f"{metadata}: no whole Parquet file" in capsys.readouterr().err
    pq.write_table(pa.table({"label": [0, 1]}), metadata)
    assert _run("--data", data) == 1
    assert "metadata_0.parquet: 2 rows, but " in capsys.readouterr().err
    metadata.unlink()
    assert _run("--data", data) == 1
    assert f"{metadata}: no such file" in capsys.readouterr().err
    assert not (paths.ARTIFACTS / "embeddings").exists()


def test_missing_partners_and_folders_are_named(encoder, data: Path, capsys) -> None:
    assert _run("--data", data) == 1
    assert "holds none of positive.npy and negative.npy" in capsys.readouterr().err
    np.save(data / "positive.npy", _unit(2))
    assert _run("--data", data) == 1
    assert "negative.npy: no such file; positive.npy needs it beside it" in capsys.readouterr().err
    assert _run("--data", data / "nowhere") == 1
    assert "nowhere: no such folder" in capsys.readouterr().err


def test_a_store_of_another_encoder_is_refused(encoder, data: Path, recipe: Recipe, capsys) -> None:
    np.save(data / "positive.npy", _unit(2))
    np.save(data / "negative.npy", _unit(2, 1))
    assert _run("--data", data) == 0
    write_tiny_encoder(paths.encoder_folder(recipe), seed=1)
    assert _run("--data", data) == 1
    assert "weights_sha256: the store has '000" in capsys.readouterr().err
