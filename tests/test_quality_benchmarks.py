"""The parts of benchmarks.scaled_decoding and benchmarks.finetune that decide what is compared."""

from __future__ import annotations

import io

import numpy as np
import pytest
from pictures import noise
from PIL import Image

from benchmarks.finetune import PARTS, quality_recipes
from benchmarks.scaled_decoding import CROPS, changes, comparisons, pictures_of, views_of
from common.manifest import Preprocessing

VIEW = Preprocessing(
    image_size=32, resize_mode="shortest", interpolation="bicubic", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)
)


@pytest.fixture
def photographs(tmp_path):
    """A large JPEG and one that would be decoded whole."""
    paths = [tmp_path / "large.jpg", tmp_path / "small.jpg"]
    for path, edge in zip(paths, (200, 120), strict=True):
        noise(edge + 40, edge, seed=edge).resize((edge + 40, edge)).save(path, quality=92)
    return paths


def test_pictures_are_whole_cropped_and_mirrored_and_large_enough_to_be_decoded_smaller(photographs):
    pictures = pictures_of(photographs, least_edge=4 * 32)
    assert len(pictures) == 1 + CROPS + 1
    assert pictures[0].data == photographs[0].read_bytes()
    sizes = [Image.open(io.BytesIO(picture.data)).size for picture in pictures]
    assert all(min(size) >= 4 * 32 for size in sizes)
    assert len(set(sizes[1:-1])) > CROPS // 2
    assert sizes[-1] == (480, 400)


def test_each_way_to_decode_gives_other_pixels(photographs):
    views = views_of(VIEW, pictures_of(photographs, least_edge=128))
    assert list(views) == ["exact", "scaled", "saved again"]
    for name in ("scaled", "saved again"):
        assert np.abs(views[name].astype(int) - views["exact"]).reshape(len(views["exact"]), -1).max(axis=1).all()


def test_changes_are_counted_where_decisions_change_most_easily():
    before = np.linspace(0, 1, 101)[:, None]
    assert changes(before, before) == {"largest_change": 0, "changed_at_a_half": 0, "changed_at_deciles": 0}
    figures = changes(before, before - 0.011)
    assert figures["largest_change"] == pytest.approx(0.011)
    assert figures["changed_at_a_half"] == pytest.approx(2 / 101)
    assert figures["changed_at_deciles"] == pytest.approx(2 / 101, rel=0.2)


def test_of_several_classes_another_best_one_is_a_change():
    before = np.array([[0.5, 0.3, 0.2], [0.1, 0.8, 0.1]])
    after = np.array([[0.4, 0.45, 0.15], [0.2, 0.7, 0.1]])
    assert changes(before, after) == {"largest_change": pytest.approx(0.15), "another_best_class": 0.5}


def test_scaled_decoding_is_held_against_int8():
    rows = [
        {"change": "scaled", "cosine_min": 0.9, "stamps: changed_at_deciles": 0.01, "emoji: another_best_class": 0.3},
        {"change": "int8", "cosine_min": 0.9, "stamps: changed_at_deciles": 0.02, "emoji: another_best_class": 0.2},
    ]
    assert [(row.name, row.met) for row in comparisons(rows)] == [
        ("scaled, stamps: changed at deciles", True),
        ("scaled, emoji: another best class", False),
    ]


def test_the_models_that_are_compared_have_recipes(tmp_path):
    recipes = quality_recipes(tmp_path, image_size=96, epochs=3)
    assert len(recipes) == 3
    for recipe in recipes.values():
        tuned = recipe.encoder.finetune
        assert tuned is not None
        assert (tuned.epochs, tuned.patience, tuned.image_size) == (3, 3, 96)
    assert len({recipe.name for recipe in recipes.values()}) == 3
    assert set(PARTS) == {"speed", "quality"}
