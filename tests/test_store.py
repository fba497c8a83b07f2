"""The embedding store: contents and their embeddings, in parts that are only added."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from stores import Row, head_data, write_rows

from common import paths
from common.manifest import EncoderFingerprint
from recipes.schema import load_recipe
from training.errors import StepError
from training.sources import adopt_former_files
from training.store import Embedded, Store, adopt_former_folder, fingerprint_of, part_files, store_folder
from training.store_view import Embeddings, append_corrections, read_embeddings, read_pictures

ENCODER = EncoderFingerprint(id="tiny", weights_sha256="aa", preprocessing="exact", normalize=True, embed_dim=4)


def _embedded(sha256: str, value: float = 0.0) -> Embedded:
    return Embedded(sha256, 10, 20, np.full(4, value, np.float32))


def _row(path: str, sha256: str, label: str | None = "round", value: float = 0.0) -> Row:
    return Row(path, path, sha256, 10, 20, label, None, np.full(4, value, np.float32))


def _read(folder: Path) -> Embeddings:
    return read_embeddings(head_data(folder), ENCODER)


def test_contents_come_back_with_their_types(tmp_path: Path) -> None:
    Store(tmp_path / "store", ENCODER).append([_embedded("1", 0.25), _embedded("2")])
    [part] = part_files(tmp_path / "store")
    table = pq.ParquetFile(part).read()
    assert table.column_names == ["sha256", "width", "height", "embedding"]
    assert isinstance(table.schema.field("embedding").type, pa.FixedSizeListType)
    assert table["width"].to_pylist() == [10, 10]
    assert table["embedding"].to_pylist()[0] == [0.25] * 4
    assert fingerprint_of(part) == ENCODER


def test_a_store_opened_again_knows_its_contents(tmp_path: Path) -> None:
    Store(tmp_path, ENCODER).append([_embedded("1", 1), _embedded("2", 2)])
    store = Store(tmp_path, ENCODER)
    assert store.holds("2")
    assert not store.holds("3")
    np.testing.assert_array_equal(store.embedding_of("2"), np.full(4, 2, np.float32))


def test_parts_are_only_added(tmp_path: Path) -> None:
    Store(tmp_path, ENCODER).append([_embedded("1")])
    before = {part: part.read_bytes() for part in part_files(tmp_path)}
    Store(tmp_path, ENCODER).append([_embedded("2")])
    after = part_files(tmp_path)
    assert len(after) == 2
    assert all(part.read_bytes() == data for part, data in before.items())


def test_two_writers_at_once_do_not_overwrite_each_other(tmp_path: Path) -> None:
    first, second = Store(tmp_path, ENCODER), Store(tmp_path, ENCODER)
    first.append([_embedded("1", 1)])
    second.append([_embedded("2", 2), _embedded("1", 1)])
    store = Store(tmp_path, ENCODER)
    assert (store.embedding_of("1")[0], store.embedding_of("2")[0]) == (1, 2)
    write_rows(tmp_path, ENCODER, [_row("a", "1"), _row("b", "2")])
    assert _read(tmp_path).embedding[:, 0].tolist() == [1, 2]


def test_no_rows_write_no_part(tmp_path: Path) -> None:
    Store(tmp_path / "store", ENCODER).append([])
    assert not (tmp_path / "store").exists()


def test_a_half_written_part_is_not_read(tmp_path: Path) -> None:
    Store(tmp_path, ENCODER).append([_embedded("1")])
    [part] = part_files(tmp_path)
    (tmp_path / f".part-00001-00000000.parquet.{1}.partial").write_bytes(part.read_bytes()[:100])
    assert Store(tmp_path, ENCODER).holds("1")


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
    write_rows(tmp_path, ENCODER, [_row("a", "1")])
    other = ENCODER.model_copy(update=changed)
    for use in (lambda: Store(tmp_path, other), lambda: read_embeddings(head_data(tmp_path), other)):
        with pytest.raises(StepError) as error:
            use()
        assert words in str(error.value)
        assert "--store" in str(error.value)


def test_the_same_encoder_under_another_name_is_welcome(tmp_path: Path) -> None:
    Store(tmp_path, ENCODER).append([_embedded("1")])
    assert Store(tmp_path, ENCODER.model_copy(update={"id": "renamed"})).holds("1")


def test_a_missing_and_an_empty_store_say_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(StepError, match=r"no such embedding store; make it with: python -m training\.embed"):
        _read(tmp_path / "nowhere")
    with pytest.raises(StepError, match=r"has no rows; make it with: python -m training\.embed"):
        _read(tmp_path)


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
    Store(tmp_path, wide).append([Embedded("1", 1, 1, np.zeros(6, np.float32))])
    [part] = part_files(tmp_path)
    table = pq.ParquetFile(part).read()
    lying = {b"clipsieve.encoder": ENCODER.model_dump_json().encode()}
    pq.write_table(table.replace_schema_metadata(lying), part)
    with pytest.raises(
        StepError, match=r"embedding: fixed_size_list<float>\[6\], expected fixed_size_list<float>\[4\]"
    ):
        _read(tmp_path)


def test_a_float16_store_is_half_as_big_and_read_as_float32(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    rows = [Row(str(n), str(n), f"{n:03d}", 1, 1, None, None, value) for n, value in enumerate(values)]
    write_rows(tmp_path, ENCODER, rows[:25], dtype="float16")
    write_rows(tmp_path, ENCODER, rows)  # keeps the store's dtype
    schema = pq.read_schema(part_files(tmp_path)[1])
    assert pa.types.is_float16(schema.field("embedding").type.value_type)
    read = _read(tmp_path).embedding
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, values.astype(np.float16).astype(np.float32))
    found = Store(tmp_path, ENCODER).embedding_of("030")
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, values[30].astype(np.float16))


def test_another_dtype_than_the_stores_is_refused(tmp_path: Path) -> None:
    Store(tmp_path, ENCODER).append([_embedded("1")])
    with pytest.raises(StepError, match="its embeddings are float32, not float16; leave --dtype out"):
        Store(tmp_path, ENCODER, "float16")


def test_contents_of_many_parts_are_gathered_in_order(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    store = Store(tmp_path, ENCODER)
    order = rng.permutation(60)
    for chunk in np.split(order, [7, 8, 40]):
        store.append([_embedded(f"{n:03d}", float(n)) for n in chunk])
    write_rows(tmp_path, ENCODER, [_row(f"p{n}", f"{n:03d}") for n in range(0, 60, 2)])
    rows = _read(tmp_path)
    assert rows.sha256 == [f"{n:03d}" for n in range(0, 60, 2)]
    np.testing.assert_array_equal(rows.embedding[:, 0], [float(sum256) for sum256 in rows.sha256])


def test_a_picture_without_an_embedding_is_refused(tmp_path: Path) -> None:
    store = Store(tmp_path, ENCODER)
    store.append([_embedded("1")])
    store.append([_embedded("2")])
    write_rows(tmp_path, ENCODER, [_row("a", "1"), _row("b", "2")])
    part_files(tmp_path)[0].unlink()
    with pytest.raises(StepError, match=r"1 pictures of head demo of recipe demo have no embedding here, the first 1"):
        _read(tmp_path)


# ---- stores from before embeddings belonged to an encoder, and labels to a head ----


def _former_part(folder: Path) -> None:
    """A part as it was: with paths and labels beside the embeddings."""
    Store(folder, ENCODER).append([_embedded("1", 1), _embedded("2", 2)])
    [part] = part_files(folder)
    table = pq.ParquetFile(part).read()
    for name, values in (("key", ["a", "b"]), ("path", ["/a", "/b"]), ("label", ["round", None])):
        table = table.append_column(name, pa.array(values))
    pq.write_table(table, part)


def test_embeddings_of_a_former_store_are_kept_and_its_corrections_become_the_heads(tmp_path: Path) -> None:
    _former_part(tmp_path)
    correction = {"sha256": ["1"], "was": ["round"], "label": ["angular"]}
    pq.write_table(pa.table(correction), tmp_path / "_labels-00000-0000aaaa.parquet")
    pq.write_table(pa.table({"sha256": ["1"], "split": ["test"]}), tmp_path / "_split-0a0b0c0d-00000-0000aaaa.parquet")
    data = head_data(tmp_path)
    with pytest.raises(StepError, match="no data set was read for head demo of recipe demo; name one"):
        _read(tmp_path)
    adopt_former_files(data)
    assert Store(tmp_path, ENCODER).holds("2")
    write_rows(tmp_path, ENCODER, [_row("/a", "1"), _row("/b", "2")])
    rows = _read(tmp_path)
    assert rows.label == ["angular", "round"]
    assert rows.embedding[:, 0].tolist() == [1, 2]
    assert sorted(path.name[:6] for path in data.folder.iterdir()) == ["correc", "source", "split-"]
    assert not list(tmp_path.glob("_*"))


def test_a_recipes_former_store_becomes_its_encoders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "ARTIFACTS", tmp_path)
    recipe = load_recipe("demo")
    _former_part(tmp_path / "embeddings" / "demo")
    adopt_former_folder(recipe, ENCODER.model_copy(update={"weights_sha256": "other"}))
    assert not store_folder(recipe).exists()
    adopt_former_folder(recipe, ENCODER)
    assert Store(store_folder(recipe), ENCODER).holds("1")
    assert not part_files(tmp_path / "embeddings" / "demo")


# ---- corrections ----


def _corrected(folder: Path, *rules: tuple[str, str | None, str]) -> dict[str, str | None]:
    """Content → label after the corrections (sha256, was, label), one file each."""
    for sha256, was, label in rules:
        append_corrections(head_data(folder), [sha256], [was], [label])
    pictures = read_pictures(head_data(folder))
    return dict(zip(pictures.sha256, pictures.label, strict=True))


def test_a_correction_changes_the_label_and_no_other_file(tmp_path: Path) -> None:
    write_rows(tmp_path, ENCODER, [_row("a", "1"), _row("b", "2"), _row("c", "1"), _row("d", "3", None)])
    before = {file: file.read_bytes() for file in tmp_path.rglob("*.parquet")}
    assert _corrected(tmp_path, ("1", "round", "angular"), ("3", None, "round")) == {
        "1": "angular",
        "2": "round",
        "3": "round",
    }
    assert all(file.read_bytes() == content for file, content in before.items())
    pictures = read_pictures(head_data(tmp_path))
    assert pictures.data_label == ["round", "round", None]
    assert pictures.corrected == [True, False, True]


def test_the_last_correction_counts(tmp_path: Path) -> None:
    write_rows(tmp_path, ENCODER, [_row("a", "1")])
    assert _corrected(tmp_path, ("1", "round", "angular"), ("1", "round", "round")) == {"1": "round"}


def test_reading_the_same_data_again_does_not_undo_a_correction(tmp_path: Path) -> None:
    write_rows(tmp_path, ENCODER, [_row("a", "1")])
    append_corrections(head_data(tmp_path), ["1"], ["round"], ["angular"])
    write_rows(tmp_path, ENCODER, [_row("a", "1")])
    assert read_pictures(head_data(tmp_path)).label == ["angular"]


def test_a_correction_ends_when_the_data_set_says_something_else(tmp_path: Path) -> None:
    write_rows(tmp_path, ENCODER, [_row("a", "1")])
    append_corrections(head_data(tmp_path), ["1"], ["round"], ["angular"])
    write_rows(tmp_path, ENCODER, [_row("a", "1", "square")])
    assert read_pictures(head_data(tmp_path)).label == ["square"]
