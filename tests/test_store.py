from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recipes.manifest import EncoderFingerprint
from training.errors import StepError
from training.store import Row, Store, fingerprint_of, part_files, read_embeddings

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
