"""Stored embeddings scored by a real server: the layouts people keep them in, joined with what is beside them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command_line import run_cli
from pictures import jpeg

from clipsieve import Client
from clipsieve.embedding_files import ParquetEmbeddings, embedding_files
from clipsieve.exceptions import TableError

ROWS = 12
NAMES = [f"photos/{row}.jpg" for row in range(ROWS)]


@pytest.fixture(scope="module")
def pictures() -> list[bytes]:
    return [jpeg(seed=seed) for seed in range(ROWS)]


@pytest.fixture(scope="module")
def vectors(server, pictures) -> np.ndarray:
    """(12, D) of the pictures, as the server embeds them."""
    with Client(server.grpc_url) as client:
        return np.stack([each.vector for each in client.embed(pictures)])


@pytest.fixture(scope="module")
def scores(server, pictures) -> list[float]:
    with Client(server.grpc_url) as client:
        return [float(each.scores[0]) for each in client.score(pictures)]


def _run(server, data: Path, out: Path, *more: object, status: int = 0):
    result = run_cli("score-embeddings", data, "--out", out, "--url", server.grpc_url, *more)
    assert result.exit_code == status, result.stderr
    return result


def _table(path: Path) -> dict[str, list]:
    return pq.read_table(path).to_pydict()


def test_an_array_has_the_scores_of_its_images(server, vectors, scores, tmp_path):
    np.save(tmp_path / "a.npy", vectors)
    result = _run(server, tmp_path / "a.npy", tmp_path / "out.parquet")
    table = _table(tmp_path / "out.parquet")
    assert table["embedding"] == [f"a.npy#{row}" for row in range(ROWS)]
    np.testing.assert_allclose(table["demo_score"], scores, atol=1e-5)
    assert set(table["error"]) == {None}
    assert len(set(table["model_version"])) == 1
    assert "12 embeddings scored, 0 failed" in result.stderr


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_metadata_of_clip_retrieval_is_kept(server, vectors, scores, tmp_path, dtype):
    for folder in ("img_emb", "metadata"):
        (tmp_path / folder).mkdir()
    for number, rows in enumerate(np.array_split(np.arange(ROWS), [8])):
        np.save(tmp_path / "img_emb" / f"img_emb_{number}.npy", vectors[rows].astype(dtype))
        metadata = pa.table({"image_path": [NAMES[row] for row in rows], "width": rows})
        pq.write_table(metadata, tmp_path / "metadata" / f"metadata_{number}.parquet", row_group_size=3)
    _run(server, tmp_path, tmp_path / "out.parquet")
    table = _table(tmp_path / "out.parquet")
    assert list(table)[:3] == ["image_path", "width", "demo_score"]
    assert (table["image_path"], table["width"]) == (NAMES, list(range(ROWS)))
    np.testing.assert_allclose(table["demo_score"], scores, atol=2e-3 if dtype == "float16" else 1e-5)


def test_what_embed_writes_is_read_back(server, pictures, scores, tmp_path):
    (tmp_path / "photos").mkdir()
    for row, picture in enumerate(pictures):
        (tmp_path / "photos" / f"{row:02}.jpg").write_bytes(picture)
    (tmp_path / "photos" / "07.jpg").write_bytes(b"no picture")
    for suffix in ("npy", "parquet"):
        embedded = tmp_path / f"embedded.{suffix}"
        assert run_cli("embed", tmp_path / "photos", "--out", embedded, "--url", server.grpc_url).exit_code == 3
        result = _run(server, embedded, tmp_path / f"out_{suffix}.parquet", status=3)
        assert "11 embeddings scored, 1 failed (NO_EMBEDDING 1)" in result.stderr
        table = _table(tmp_path / f"out_{suffix}.parquet")
        assert table["demo_score"][7] is None
        assert table["error"][7] == "NO_EMBEDDING: its values are not finite, or all 0"
        known = [row for row in range(ROWS) if row != 7]
        np.testing.assert_allclose(
            np.array(table["demo_score"])[known].astype(float), np.array(scores)[known], atol=1e-5
        )
    assert [Path(path).name for path in table["image_path"]] == [f"{row:02}.jpg" for row in range(ROWS)]


def test_a_second_run_over_its_own_output_writes_its_columns_anew(server, vectors, scores, tmp_path):
    lists = pa.array(list(vectors), pa.list_(pa.float32()))
    beside = {"url": NAMES, "image_embedding": lists, "demo_score": [0.5] * ROWS}
    pq.write_table(pa.table(beside), tmp_path / "a.parquet")
    result = _run(server, tmp_path / "a.parquet", tmp_path / "out.csv")
    assert "columns of an earlier run are written anew: demo_score" in result.stderr
    header, first, *_ = (tmp_path / "out.csv").read_text().splitlines()
    assert header == "url,demo_score,demo_decision,demo_class_name,error,model_version"
    assert first.startswith("photos/0.jpg,")
    assert float(first.split(",")[1]) == pytest.approx(scores[0], abs=1e-5)


def test_a_killed_run_goes_on_after_the_rows_that_it_kept(server, vectors, tmp_path, monkeypatch):
    monkeypatch.setattr("clipsieve.embedding_rows.BLOCK_ROWS", 4)
    np.save(tmp_path / "a.npy", vectors)
    whole, broken = tmp_path / "whole.parquet", vectors.copy()
    _run(server, tmp_path / "a.npy", whole)
    broken[9] *= 2
    np.save(tmp_path / "a.npy", broken)
    result = _run(server, tmp_path / "a.npy", tmp_path / "out.parquet", status=2)
    assert "a.npy: row 9 has length 2.000, but the server's encoder normalises its embeddings to 1" in result.stderr
    assert "8 rows are kept" in result.stderr
    np.save(tmp_path / "a.npy", vectors)
    assert "going on after 8 rows" in _run(server, tmp_path / "a.npy", tmp_path / "out.parquet").stderr
    assert _table(tmp_path / "out.parquet") == _table(whole)


def test_what_the_server_cannot_score_is_refused(server, vectors, tmp_path):
    np.save(tmp_path / "a.npy", vectors[:, :7])
    result = _run(server, tmp_path / "a.npy", tmp_path / "out.csv", status=2)
    assert f"a.npy: embeddings have 7 values, those of the server's encoder {vectors.shape[1]}" in result.stderr
    result = _run(server, tmp_path / "typo", tmp_path / "out.csv", status=2)
    assert f"{tmp_path / 'typo'}: no such file or folder" in result.stderr
    (tmp_path / "empty").mkdir()
    assert "holds no embeddings" in _run(server, tmp_path / "empty", tmp_path / "out.csv", status=2).stderr
    assert not (tmp_path / "out.csv").exists()


# ---- the reader ----


def test_labels_are_no_embeddings(tmp_path):
    for name in ("x", "y", "y_ratings"):
        np.save(tmp_path / f"{name}.npy", np.ones((3, 2)))
    assert [each.file.name for each in embedding_files(tmp_path)] == ["x.npy"]


def test_metadata_of_another_length_is_refused(tmp_path):
    for folder in ("img_emb", "metadata"):
        (tmp_path / folder).mkdir()
    np.save(tmp_path / "img_emb" / "img_emb_0.npy", np.ones((3, 2)))
    with pytest.raises(TableError, match=r"metadata_0.parquet: no such file"):
        embedding_files(tmp_path)
    pq.write_table(pa.table({"key": ["a"]}), tmp_path / "metadata" / "metadata_0.parquet")
    with pytest.raises(TableError, match=r"metadata_0.parquet: 1 rows, but .*img_emb_0.npy has 3"):
        embedding_files(tmp_path)


@pytest.mark.parametrize("kind", ["list", "large", "fixed"])
def test_rows_without_an_embedding_are_nan_or_refused(tmp_path, kind):
    types = {"list": pa.list_(pa.float32()), "large": pa.large_list(pa.float32()), "fixed": pa.list_(pa.float32(), 2)}
    rows = [None, [1.0, 2.0], [3.0, 4.0]] if kind != "fixed" else [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]
    pq.write_table(pa.table({"embedding": pa.array(rows, types[kind])}), tmp_path / "a.parquet", row_group_size=1)
    read = ParquetEmbeddings(tmp_path / "a.parquet", "embedding", may_lack=True)
    assert read.shape == (3, 2)
    expected = [[np.nan, np.nan] if row is None else row for row in rows]
    np.testing.assert_array_equal(read[0:3], np.array(expected, np.float32))
    if kind != "fixed":
        with pytest.raises(TableError, match="row 0 of 'embedding' has 0 values, others 2"):
            ParquetEmbeddings(tmp_path / "a.parquet", "embedding")[0:3]
