"""The figures of how fast a head is fitted: pairs of an epoch and its products, and a plain loop beside ours."""

from __future__ import annotations

import numpy as np

from benchmarks.head_speed import beside_guide, beside_products, guide_loop, synthetic
from recipes.head_section import Fit

FIT = Fit(hidden_sizes=[8], loss="mse", max_epochs=2, patience=2, batch_size=32)


def test_rows_are_two_classes_on_the_unit_sphere_and_some_are_held_out():
    data = synthetic(90)
    assert (len(data.train), len(data.held_out)) == (90, 10)
    assert np.allclose(np.linalg.norm(data.train, axis=1), 1, atol=1e-5)
    assert set(data.train_label.tolist()) == {0, 1}


def test_every_round_has_an_epoch_and_its_products():
    figures = beside_products(synthetic(90), FIT, rounds=3)
    assert figures["epoch_processor_s"] > 0
    assert figures["products_processor_s"] > 0
    assert figures["least"] <= figures["processor_ratio"] <= figures["most"]


def test_a_loss_that_is_not_reached_has_no_speed():
    data = synthetic(90)
    figures = beside_guide(data, FIT.model_copy(update={"learning_rate": 1e-9}), *guide_loop(data, epochs=1))
    assert figures["guide_epochs_to_best"] == 1
    assert figures["our_epochs_to_it"] is None
    assert figures["speed_to_equal_loss"] is None
    assert figures["speed_an_epoch"] > 0
