from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.manifest import EncoderFingerprint
from training.errors import StepError
from training.store import Row, Store, fingerprint_of, part_files, scan_embeddings
from training.store_view import append_corrections, read_embeddings

ENCODER = EncoderFingerprint(id="tiny", weights_sha256="aa", preprocessing="exact", normalize=True, embed_dim=4)


def _row(path: str, sha256: str, label: str | None = "round", value: float = 0.0) -> Row:
    return Row(path, path, sha256, 10, 20, label, None, np.full(4, value, np.float32))


def test_rows_come_back_with_their_types(tmp_path: Path) -> None:
    Store(tmp_path / "store", ENCODER).append([_row("a", "1", value=0.25), _row("b", "2", None)])
    [part] = part_files(tmp_path / "store")
    table = pq.ParquetFile(part).read()
    assert table.column_names == ["key", "path", "sha256", "width", "height", "label", "split", "embedding"]
    assert isinstance(table.schema.field("embedding").type, pa.FixedSizeListType)
    assert table["width"].to_pylist() == [10, 10]
    assert table["label"].to_pylist() == ["round", None]
    assert table["embedding"].to_pylist()[0] == [0.25] * 4
    assert fingerprint_of(part) == ENCODER


def test_the_folder_is_an_ordinary_parquet_dataset(tmp_path: Path) -> None:
    store = Store(tmp_path, ENCODER)
    store.append([_row("a", "1")])
    store.append([_row("b", "2"), _row("c", "3")])
    assert pq.read_table(tmp_path)["key"].to_pylist() == ["a", "b", "c"]


def test_a_store_opened_again_knows_its_rows(tmp_path: Path) -> None:
    Store(tmp_path, ENCODER).append([_row("a", "1", value=1), _row("b", "2", value=2)])
    store = Store(tmp_path, ENCODER)
    assert store.holds("a", "1", "round")
    assert not store.holds("a", "1", "angular")
    assert not store.holds("a", "2", "round")
    assert store.knows("2")
    assert not store.knows("3")
    np.testing.assert_array_equal(store.embedding_of("2"), np.full(4, 2, np.float32))


def test_parts_are_only_added(tmp_path: Path) -> None:
    Store(tmp_path, ENCODER).append([_row("a", "1")])
    before = {part: part.read_bytes() for part in part_files(tmp_path)}
    Store(tmp_path, ENCODER).append([_row("b", "2")])
    after = part_files(tmp_path)
    assert len(after) == 2
    assert all(part.read_bytes() == data for part, data in before.items())


def test_two_writers_at_once_do_not_overwrite_each_other(tmp_path: Path) -> None:
    first, second = Store(tmp_path, ENCODER), Store(tmp_path, ENCODER)
    first.append([_row("a", "1")])
    second.append([_row("b", "2")])
    assert read_embeddings(tmp_path, ENCODER).key == ["a", "b"]


def test_no_rows_write_no_part(tmp_path: Path) -> None:
    Store(tmp_path / "store", ENCODER).append([])
    assert not (tmp_path / "store").exists()


def test_a_half_written_part_is_not_read(tmp_path: Path) -> None:
    Store(tmp_path, ENCODER).append([_row("a", "1")])
    [part] = part_files(tmp_path)
    (tmp_path / f".part-00001-00000000.parquet.{1}.partial").write_bytes(part.read_bytes()[:100])
    assert read_embeddings(tmp_path, ENCODER).key == ["a"]
    assert not Store(tmp_path, ENCODER).knows("2")


def test_rows_are_sorted_by_content_whatever_their_order(tmp_path: Path) -> None:
    rows = [_row("a", "3", value=3), _row("b", "1", value=1), _row("c", "2", value=2)]
    Store(tmp_path / "one", ENCODER).append(rows)
    Store(tmp_path / "other", ENCODER).append(rows[::-1])
    one, other = (read_embeddings(tmp_path / name, ENCODER) for name in ("one", "other"))
    assert one.sha256 == other.sha256 == ["1", "2", "3"]
    np.testing.assert_array_equal(one.embedding, other.embedding)
    assert one.embedding[:, 0].tolist() == [1, 2, 3]


def test_a_replaced_file_counts_as_last_embedded(tmp_path: Path) -> None:
    Store(tmp_path, ENCODER).append([_row("a", "old")])
    Store(tmp_path, ENCODER).append([_row("a", "new")])
    assert read_embeddings(tmp_path, ENCODER).sha256 == ["new"]


def test_a_file_moved_to_another_class_takes_its_last_label(tmp_path: Path) -> None:
    Store(tmp_path, ENCODER).append([_row("angular/a", "1", "angular")])
    Store(tmp_path, ENCODER).append([_row("round/a", "1", "round")])
    assert set(read_embeddings(tmp_path, ENCODER).label) == {"round"}
    assert not Store(tmp_path, ENCODER).holds("angular/a", "1", "angular")


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"weights_sha256": "bb"}, "weights_sha256: the store has 'aa', the encoder is 'bb'"),
        ({"preprocessing": "squash"}, "preprocessing: the store has 'exact', the encoder is 'squash'"),
        ({"normalize": False}, "normalize: the store has True, the encoder is False"),
        ({"embed_dim": 8}, "embed_dim: the store has 4, the encoder is 8"),
    ],
)
def test_another_encoders_store_is_refused_with_both_values(tmp_path: Path, changed: dict, words: str) -> None:
    Store(tmp_path, ENCODER).append([_row("a", "1")])
    other = ENCODER.model_copy(update=changed)
    for use in (lambda: Store(tmp_path, other), lambda: read_embeddings(tmp_path, other)):
        with pytest.raises(StepError) as error:
            use()
        assert words in str(error.value)
        assert "--store" in str(error.value)


def test_the_same_encoder_under_another_name_is_welcome(tmp_path: Path) -> None:
    Store(tmp_path, ENCODER).append([_row("a", "1")])
    assert Store(tmp_path, ENCODER.model_copy(update={"id": "renamed"})).knows("1")


def test_a_missing_and_an_empty_store_say_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(StepError, match=r"no such embedding store; make it with: python -m training\.embed"):
        read_embeddings(tmp_path / "nowhere", ENCODER)
    with pytest.raises(StepError, match=r"has no rows; make it with: python -m training\.embed"):
        read_embeddings(tmp_path, ENCODER)


def test_a_damaged_part_is_named(tmp_path: Path) -> None:
    (tmp_path / "part-00000-aaaaaaaa.parquet").write_bytes(b"not parquet")
    with pytest.raises(StepError, match=r"part-00000-aaaaaaaa\.parquet: not a readable Parquet file"):
        Store(tmp_path, ENCODER)


def test_a_foreign_parquet_file_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"key": ["a"]}), tmp_path / "part-00000-aaaaaaaa.parquet")
    with pytest.raises(StepError, match="no encoder in its metadata"):
        Store(tmp_path, ENCODER)


def test_a_width_other_than_embed_dim_is_refused(tmp_path: Path) -> None:
    wide = ENCODER.model_copy(update={"embed_dim": 6})
    Store(tmp_path, wide).append([Row("a", "a", "1", 1, 1, "round", None, np.zeros(6, np.float32))])
    [part] = part_files(tmp_path)
    table = pq.ParquetFile(part).read()
    lying = {b"clipsieve.encoder": ENCODER.model_dump_json().encode()}
    pq.write_table(table.replace_schema_metadata(lying), part)
    with pytest.raises(
        StepError, match=r"embedding: fixed_size_list<float>\[6\], expected fixed_size_list<float>\[4\]"
    ):
        read_embeddings(tmp_path, ENCODER)


def _corrected(folder: Path, *rules: tuple[str, str | None, str]) -> dict[str, str | None]:
    """path → label after the corrections (sha256, was, label), one file each."""
    for sha256, was, label in rules:
        append_corrections(folder, [sha256], [was], [label])
    rows = read_embeddings(folder, ENCODER)
    return dict(zip(rows.path, rows.label, strict=True))


def test_a_correction_changes_the_label_and_no_part(tmp_path: Path) -> None:
    Store(tmp_path, ENCODER).append([_row("a", "1"), _row("b", "2"), _row("c", "1"), _row("d", "3", None)])
    before = {part: part.read_bytes() for part in part_files(tmp_path)}
    labels = _corrected(tmp_path, ("1", "round", "angular"), ("3", None, "round"))
    assert labels == {"a": "angular", "b": "round", "c": "angular", "d": "round"}
    assert {part: part.read_bytes() for part in part_files(tmp_path)} == before
    rows = read_embeddings(tmp_path, ENCODER)
    assert rows.own_label == ["round", "round", "round", None]
    assert rows.corrected == [True, True, False, True]


def test_the_last_correction_counts(tmp_path: Path) -> None:
    Store(tmp_path, ENCODER).append([_row("a", "1")])
    assert _corrected(tmp_path, ("1", "round", "angular"), ("1", "round", "round")) == {"a": "round"}


def test_embedding_the_same_data_again_does_not_undo_a_correction(tmp_path: Path) -> None:
    Store(tmp_path, ENCODER).append([_row("a", "1")])
    _corrected(tmp_path, ("1", "round", "angular"))
    assert Store(tmp_path, ENCODER).holds("a", "1", "round")


def test_a_correction_ends_when_the_data_set_says_something_else(tmp_path: Path) -> None:
    Store(tmp_path, ENCODER).append([_row("a", "1")])
    _corrected(tmp_path, ("1", "round", "angular"))
    Store(tmp_path, ENCODER).append([_row("b", "1", "square")])
    assert set(read_embeddings(tmp_path, ENCODER).label) == {"square"}


def test_tables_beside_the_parts_are_no_rows_of_the_data_set(tmp_path: Path) -> None:
    Store(tmp_path, ENCODER).append([_row("a", "1")])
    _corrected(tmp_path, ("1", "round", "angular"))
    assert pq.read_table(tmp_path)["key"].to_pylist() == ["a"]


def test_the_own_label_of_each_copy_is_kept(tmp_path: Path) -> None:
    Store(tmp_path, ENCODER).append([_row("a", "1", "round"), _row("b", "1", "angular")])
    rows = read_embeddings(tmp_path, ENCODER)
    assert (rows.label, rows.own_label) == (["angular", "angular"], ["round", "angular"])


def test_a_float16_store_is_half_as_big_and_read_as_float32(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    rows = [Row(str(n), str(n), f"{n:03d}", 1, 1, None, None, value) for n, value in enumerate(values)]
    Store(tmp_path, ENCODER, "float16").append(rows[:25])
    Store(tmp_path, ENCODER).append(rows[25:])  # keeps the store's dtype
    schema = pq.read_schema(part_files(tmp_path)[1])
    assert pa.types.is_float16(schema.field("embedding").type.value_type)
    read = read_embeddings(tmp_path, ENCODER).embedding
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, values.astype(np.float16).astype(np.float32))
    found = Store(tmp_path, ENCODER).embedding_of("030")
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, values[30].astype(np.float16))


def test_another_dtype_than_the_stores_is_refused(tmp_path: Path) -> None:
    Store(tmp_path, ENCODER).append([_row("a", "1")])
    with pytest.raises(StepError, match="its embeddings are float32, not float16; leave --dtype out"):
        Store(tmp_path, ENCODER, "float16")


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_scan_gives_every_row_in_batches_without_copying(tmp_path: Path, dtype) -> None:
    store = Store(tmp_path, ENCODER, dtype)
    store.append([_row(str(n), str(n), value=n) for n in range(7)])
    store.append([_row(str(n), str(n), value=n) for n in range(7, 10)])
    batches = list(scan_embeddings(tmp_path, ["path", "label"], batch_rows=4))
    assert [len(batch.embedding) for batch in batches] == [4, 3, 3]
    assert [path for batch in batches for path in batch.columns["path"].to_pylist()] == [str(n) for n in range(10)]
    assert np.concatenate([batch.embedding for batch in batches])[:, 0].tolist() == list(range(10))
    assert all(batch.embedding.dtype == dtype and not batch.embedding.flags.owndata for batch in batches)


def test_a_part_cut_short_is_named_by_a_scan(tmp_path: Path) -> None:
    Store(tmp_path, ENCODER).append([_row(str(n), str(n)) for n in range(100)])
    [part] = part_files(tmp_path)
    part.write_bytes(part.read_bytes()[:-40])
    with pytest.raises(StepError, match=rf"{part.name}: not a readable Parquet file"):
        list(scan_embeddings(tmp_path))


def test_rows_of_many_parts_are_gathered_in_order(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    store = Store(tmp_path, ENCODER)
    order = rng.permutation(60)
    for chunk in np.split(order, [7, 8, 40]):
        store.append([_row(f"p{n}", f"{n:03d}", value=float(n)) for n in chunk])
    store.append([_row("p5", "005", value=5.0), _row("p6", "106", value=106.0)])
    rows = read_embeddings(tmp_path, ENCODER)
    assert rows.sha256 == sorted([f"{n:03d}" for n in range(60) if n != 6] + ["106"])
    np.testing.assert_array_equal(rows.embedding[:, 0], [float(sum256) for sum256 in rows.sha256])
