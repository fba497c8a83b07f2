from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.special import expit, softmax
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from common.head_training import Refit
from common.manifest import Calibration, Prevalence
from recipes.head_section import Fit, Head
from training.calibrate import (
    brier,
    calibrated_logits,
    calibration_report,
    choose_calibration,
    ece,
    fit_calibration,
    held_temperature,
    platt,
)
from training.errors import StepError
from training.head import head_from_layers, logits_of
from training.head_fit import Fitted, fit_head, plan_of
from training.labelled import Labelled, strata_of
from training.split import split_rows

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=20_000) * 2
TARGETS = (RNG.random(20_000) < expit(LOGITS * 0.5 - 1)).astype(float)


def test_platt_finds_the_scale_and_offset_that_made_the_labels() -> None:
    scale, offset = platt(LOGITS, TARGETS)
    assert scale == pytest.approx(0.5, abs=0.03)
    assert offset == pytest.approx(-1, abs=0.05)


def test_platt_stays_finite_where_the_classes_separate() -> None:
    scale, offset = platt(np.r_[np.full(10, -3.0), np.full(10, 3.0)], np.repeat([0.0, 1.0], 10))
    assert expit(3 * scale + offset) == pytest.approx(11 / 12, abs=1e-3)
    assert np.isfinite(platt(np.zeros(6), np.repeat([0.0, 1.0], 3))).all()


def test_a_scale_is_never_negative() -> None:
    rng = np.random.default_rng(0)
    logits, targets = rng.normal(size=200), np.arange(200) % 2.0
    logits -= 2 * targets  # the wrong way round
    assert platt(logits, targets)[0] == pytest.approx(0.01)
    classes = np.stack([logits, -logits, 0 * logits], axis=1)
    assert min(fit_calibration("platt", classes, np.eye(3)[targets.astype(int)], "softmax").scale) > 0
    choice = choose_calibration("platt", logits[:, None], targets[:, None], "sigmoid", ["round"])
    assert choice.calibration is None
    assert "platt: the share of positives does not rise with the logit" in choice.reason


def _chosen(method, logits: np.ndarray, targets: np.ndarray):
    return choose_calibration(method, logits[:, None], targets[:, None], "sigmoid", ["round"])


def test_rows_that_are_too_few_are_left_uncalibrated_and_it_is_said() -> None:
    choice = _chosen("platt", np.linspace(-3, 3, 14), np.repeat([0.0, 1.0], 7))
    assert choice.calibration is None
    assert choice.reason == (
        "platt: 7 held-out rows of a class are fewer than 10; temperature: 14 held-out rows are fewer than 20"
    )


def test_a_calibration_that_helps_no_other_rows_is_left_out() -> None:
    worse = better = 0.0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        logits, fresh = rng.normal(size=(2, 60)) * 2, rng.normal(size=4000) * 2
        targets, fresh_targets = ((rng.random(len(x)) < expit(x)).astype(float) for x in (logits[0], fresh))
        choice = _chosen("platt", logits[0], targets)
        plain = np.logaddexp(0, fresh) - fresh_targets * fresh
        after = calibrated_logits(fresh[:, None], choice.calibration)[:, 0]
        better += float((np.logaddexp(0, after) - fresh_targets * after - plain).mean())
        scale, offset = platt(logits[0], targets)
        always = fresh * scale + offset
        worse += float((np.logaddexp(0, always) - fresh_targets * always - plain).mean())
    assert better < worse / 3


def test_logits_that_need_no_calibration_are_kept_as_they_are() -> None:
    targets = (np.random.default_rng(5).random(20_000) < expit(LOGITS)).astype(float)
    choice = _chosen("platt", LOGITS, targets)
    assert choice.calibration == Calibration(method="platt", scale=[1.0], offset=[0.0])
    assert "the log loss of held-out rows does not fall" in choice.reason


def test_each_label_is_judged_by_itself() -> None:
    rare = np.r_[np.ones(5), np.zeros(len(LOGITS) - 5)]
    logits, targets = np.stack([LOGITS, LOGITS], axis=1), np.stack([TARGETS, rare], axis=1)
    choice = choose_calibration("platt", logits, targets, "sigmoid", ["common", "rare"])
    assert choice.calibration is not None
    assert choice.calibration.scale == pytest.approx([0.5, 1], abs=0.03)
    assert choice.reason == "platt of rare: 5 held-out rows of a class are fewer than 10"


def test_temperature_is_one_scale() -> None:
    targets = (RNG.random(20_000) < expit(LOGITS / 3)).astype(float)
    found = fit_calibration("temperature", LOGITS[:, None], targets[:, None], "sigmoid")
    assert found.offset == [0]
    assert found.scale[0] == pytest.approx(1 / 3, abs=0.03)


@pytest.mark.parametrize("method", ["platt", "temperature"])
def test_classes_are_calibrated_together(method) -> None:
    true = RNG.normal(size=(20_000, 3))
    drawn = (RNG.random(20_000)[:, None] > softmax(true, axis=1).cumsum(axis=1)).sum(axis=1)
    targets = np.eye(3)[np.minimum(drawn, 2)]
    found = fit_calibration(method, true * 4, targets, "softmax")
    assert found.scale == pytest.approx([0.25] * 3, abs=0.02)
    after = softmax(calibrated_logits(true * 4, found), axis=1)
    assert ece(after[:, 0], targets[:, 0]) < 0.015 < ece(softmax(true * 4, axis=1)[:, 0], targets[:, 0])


def test_each_label_has_its_own() -> None:
    logits = np.stack([LOGITS, LOGITS * 10], axis=1)
    found = fit_calibration("platt", logits, np.stack([TARGETS, TARGETS], axis=1), "sigmoid")
    assert found.scale[0] == pytest.approx(10 * found.scale[1], rel=1e-3)


def test_prevalence_shifts_the_log_odds_as_bayes_says() -> None:
    shifted = calibrated_logits(np.array([[0.4]]), None, Prevalence(training=0.5, target=0.01))
    odds = np.exp(0.4) * (0.01 / 0.99)
    assert expit(shifted[0, 0]) == pytest.approx(odds / (1 + odds))


def test_scale_comes_before_the_shift() -> None:
    calibration = Calibration(method="platt", scale=[2.0], offset=[1.0])
    shifted = calibrated_logits(np.array([[0.5]]), calibration, Prevalence(training=0.5, target=0.5))
    assert shifted[0, 0] == pytest.approx(2)


def test_ece_and_brier_by_hand() -> None:
    probabilities, targets = np.array([0.1, 0.1, 0.9, 0.9]), np.array([0, 1, 1, 1])
    assert ece(probabilities, targets) == pytest.approx((0.4 + 0.1) / 2)
    assert brier(probabilities, targets) == pytest.approx((0.01 + 0.81 + 0.01 + 0.01) / 4)
    assert ece(np.array([1.0]), np.array([1])) == 0


def test_the_report_shows_the_gain_and_isotonic_beside_it() -> None:
    half = len(LOGITS) // 2
    before, targets = expit(LOGITS)[:, None], TARGETS[:, None]
    after = expit(calibrated_logits(LOGITS[:, None], Calibration(method="platt", scale=[0.5], offset=[-1.0])))
    found = calibration_report(before[half:], after[half:], targets[half:], (before[:half], targets[:half]))
    assert found["before"]["ece"] > 0.1 > 0.02 > found["after"]["ece"]
    assert found["isotonic"]["ece"] < 0.03
    assert found["after"]["brier"] < found["before"]["brier"]


def test_a_head_is_near_the_bayes_optimum_calibrated_and_keeps_its_recall() -> None:
    """Two Gaussians on the sphere: AUROC, ECE on fresh data, and the realised recall of `recall>=0.99`."""
    separation, rows, embed_dim = 2.5, 60_000, 24
    rng = np.random.default_rng(1)
    label = (rng.random(2 * rows) < 0.3).astype(int)
    embedding = rng.normal(size=(2 * rows, embed_dim)).astype(np.float32)
    embedding[:, 0] += separation * label
    contents = [f"{row:064x}" for row in range(rows)]
    head = Head(
        name="nsfw",
        class_names=["safe", "nsfw"],
        operating_points=["recall>=0.99", "precision>=0.95"],
        fit=Fit(max_epochs=8, batch_size=1024, learning_rate=0.02, schedule="cosine", seed=3),
    )
    data = Labelled(embedding[:rows], label[:rows], contents)
    split = split_rows(data.label, contents, head.class_names, 0.2, 0.15, 0)
    fitted = fit_head(data, head, "cpu", split)
    fresh = logits_of(head_from_layers(fitted.layers, fitted.tensors), embedding[rows:])
    scores, targets = expit(calibrated_logits(fresh, fitted.calibration))[:, 0], label[rows:]
    assert roc_auc_score(targets, scores) == pytest.approx(norm.cdf(separation / np.sqrt(2)), abs=0.003)
    assert ece(scores, targets) <= 0.01
    assert fitted.report["calibration"]["after"]["ece"] < fitted.report["calibration"]["before"]["ece"]
    by_name = {point.operating_point: point for point in fitted.thresholds[0]}
    assert by_name["recall>=0.99"].value < by_name["precision>=0.95"].value
    realised = by_name["recall>=0.99"].realised
    assert realised is not None
    assert realised.recall is not None
    low, high = realised.recall.interval_95
    recall = (scores[targets == 1] >= by_name["recall>=0.99"].value).mean()
    assert low <= recall <= high
    [expected, _] = fitted.report["operating_points"]["nsfw"]
    assert expected["interval_95"][0] <= recall <= expected["interval_95"][1]
    json.dumps(fitted.report, allow_nan=False)


def _data(label: np.ndarray, seed: int = 0) -> Labelled:
    rng = np.random.default_rng(seed)
    columns = label[:, None] if label.ndim == 1 else label
    embedding = rng.normal(size=(len(label), 6)).astype(np.float32)
    embedding[:, : columns.shape[1]] += 2 * columns
    return Labelled(embedding, label, [f"{row:064x}" for row in range(len(label))])


def _fitted(data: Labelled, head: Head) -> Fitted:
    strata = strata_of(data, head.task)
    return fit_head(data, head, "cpu", split_rows(strata, data.sha256, head.class_names, 0.2, 0.2, 0))


FAST = {"max_epochs": 15, "learning_rate": 0.05}


def test_several_classes() -> None:
    head = Head(name="shape", task="multiclass", class_names=["a", "b", "c"], fit=Fit(**FAST))
    found = _fitted(_data(np.arange(300) % 3), head)
    assert (found.plan.loss, found.plan.activation) == ("cross_entropy", "softmax")
    assert found.scores.test_scores.sum(axis=1) == pytest.approx(np.ones(60))
    assert found.calibration is not None
    assert len(found.calibration.scale) == 3
    assert found.metrics["macro"]["auroc"] > 0.8
    assert len(found.thresholds) == 3


def test_several_labels() -> None:
    label = (np.random.default_rng(0).random((400, 2)) < 0.4).astype(int)
    head = Head(name="tags", task="multilabel", class_names=["gore", "nude"], operating_points=["f1"], fit=Fit(**FAST))
    found = _fitted(_data(label), head)
    assert found.metrics["labels"]["nude"]["auroc"] > 0.8
    assert [[point.operating_point for point in row] for row in found.thresholds] == [["f1"], ["f1"]]


def test_a_regression() -> None:
    head = Head(name="taste", task="regression", class_names=["taste"], fit=Fit(**FAST))
    label = np.random.default_rng(0).normal(size=400)
    found = _fitted(_data(label), head)
    assert (found.plan.activation, found.calibration) == ("none", None)
    assert [[point.operating_point for point in row] for row in found.thresholds] == [["good"]]
    assert found.metrics["spearman"] > 0.8


def test_a_regression_gives_the_unit_of_its_labels_whatever_it_is() -> None:
    grades = 1275 + 50 * np.random.default_rng(0).normal(size=400)
    data = _data((grades - 1275) / 50)
    data = Labelled(data.embedding, grades, data.sha256)
    head = Head(name="taste", task="regression", class_names=["taste"])
    found = _fitted(data, head)
    assert found.metrics["mse"] < 0.5 * found.metrics["mse_of_mean"]
    assert found.metrics["r2"] > 0.5
    assert found.warnings == []
    fresh = logits_of(head_from_layers(found.layers, found.tensors), data.embedding)[:, 0]
    assert fresh.mean() == pytest.approx(1275, abs=10)


def test_a_regression_that_is_no_better_than_the_mean_is_shouted_at() -> None:
    data = _data(np.random.default_rng(0).normal(size=100))
    split = split_rows(np.zeros(100, int), data.sha256, ["taste"], 0.2, 0.2, 0)
    data.embedding[split.test] *= -1  # what holds of the other pictures is the other way round in these
    found = fit_head(data, Head(name="taste", task="regression", class_names=["taste"]), "cpu", split)
    assert found.metrics["r2"] <= 0
    assert any("no better than always answering the mean: its mean squared error" in each for each in found.warnings)


@pytest.mark.parametrize("seed", range(3))
def test_a_small_set_never_serves_scores_the_wrong_way_round(seed: int) -> None:
    rng = np.random.default_rng(seed)
    label = np.repeat([1, 0], 9 + 500)
    embedding = rng.normal(size=(len(label), 128))
    embedding[:, :8] += np.where(label == 1, 1.0, -1.0)[:, None]
    embedding = (embedding / np.linalg.norm(embedding, axis=1, keepdims=True)).astype(np.float32)
    rows = np.r_[np.arange(9), 509 + np.arange(9)]
    fresh = np.setdiff1d(np.arange(len(label)), rows)
    head = Head(name="mine", class_names=["angular", "round"], fit=Fit(near_duplicate_cosine=None, max_epochs=60))
    found = _fitted(Labelled(embedding[rows], label[rows], [str(n) for n in range(18)]), head)
    raw = logits_of(head_from_layers(found.layers, found.tensors), embedding[fresh])
    served = calibrated_logits(raw, found.calibration, found.prevalence)
    assert roc_auc_score(label[fresh], served[:, 0]) == roc_auc_score(label[fresh], raw[:, 0]) > 0.8
    assert found.calibration is None
    assert any("is not calibrated: platt: 7 held-out rows of a class" in warning for warning in found.warnings)


def test_the_final_weights_are_fitted_to_all_rows_but_the_test_part() -> None:
    data = _data(np.arange(300) % 2)
    head = Head(name="nsfw", class_names=["safe", "nsfw"])
    split = split_rows(data.label, data.sha256, head.class_names, 0.2, 0.2, 0)
    found = fit_head(data, head, "cpu", split, groups=np.arange(300))
    assert found.refit == Refit(folds=5, rows=240)
    known = np.sort(np.concatenate([split.train, split.validation]))
    assert found.tensors["standardize.mean"] == pytest.approx(data.embedding[known].mean(axis=0), abs=1e-5)
    data.embedding[split.test] = 1e3 * data.label[split.test][:, None]
    again = fit_head(data, head, "cpu", split, groups=np.arange(300))
    for name, tensor in found.tensors.items():
        np.testing.assert_array_equal(tensor, again.tensors[name], "the test part shaped the weights")


def test_without_folds_the_validation_part_is_never_trained_on() -> None:
    data = _data(np.arange(300) % 2)
    found = _fitted(data, Head(name="nsfw", class_names=["safe", "nsfw"], fit=Fit(folds=0)))
    assert found.refit == Refit(folds=0, rows=180)


def test_the_recall_promised_holds_for_the_final_weights() -> None:
    """They saw the rows that the threshold was chosen on; the logits that chose it did not."""
    passed = positives = 0
    for seed in range(5):
        data = _data(np.arange(700) % 2, seed)
        head = Head(name="nsfw", class_names=["safe", "nsfw"], operating_points=["recall>=0.99"], fit=Fit(seed=seed))
        split = split_rows(data.label, data.sha256, head.class_names, 0.4, 0.15, seed)
        found = fit_head(data, head, "cpu", split, groups=np.arange(700))
        positive = found.scores.test_targets[:, 0] > 0
        passed += int((found.scores.test_scores[positive, 0] >= found.thresholds[0][0].value).sum())
        positives += int(positive.sum())
    assert passed / positives >= 0.985


@pytest.mark.parametrize(("calibration", "activation"), [("platt", "sigmoid"), ("none", "none")])
def test_mse_gives_a_raw_value_unless_it_is_calibrated(calibration, activation: str) -> None:
    head = Head(name="nsfw", class_names=["safe", "nsfw"], calibration=calibration, fit=Fit(loss="mse", **FAST))
    found = _fitted(_data(np.arange(300) % 2), head)
    assert found.plan.activation == activation
    assert ("ece" in found.metrics) == (calibration == "platt")
    assert found.metrics["auroc"] > 0.8


@pytest.mark.parametrize(
    ("calibration", "class_weights", "training"),
    [("platt", True, 0.25), ("none", True, 0.5), ("none", False, 0.25)],
)
def test_prevalence_is_corrected_from_what_the_logits_take_for_it(calibration, class_weights, training: float) -> None:
    fit = Fit(class_weights=class_weights, **FAST)
    head = Head(name="nsfw", class_names=["safe", "nsfw"], calibration=calibration, prevalence=0.01, fit=fit)
    found = _fitted(_data((np.arange(400) % 4 == 0).astype(int)), head)
    assert found.prevalence is not None
    assert found.prevalence.training == pytest.approx(training, abs=0.01)
    assert found.scores.test_scores.mean() < 0.1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"fit": {"loss": "cross_entropy"}}, "fit.loss cross_entropy does not fit a binary head; take bce or mse"),
        ({"operating_points": ["recall>0.9"]}, "operating point 'recall>0.9' is not understood"),
        ({"task": "regression", "class_names": ["a"], "operating_points": ["f1"]}, "head x is a regression"),
        ({"fit": {"loss": "mse"}, "calibration": "none", "prevalence": 0.1}, "prevalence corrects probabilities"),
    ],
)
def test_settings_that_do_not_go_together_are_refused_before_training(changes: dict, words: str) -> None:
    head = Head.model_validate({"name": "x", "class_names": ["a", "b"]} | changes)
    with pytest.raises(StepError) as error:
        plan_of(head)
    assert words in str(error.value)


# ---- few rows of a head from words ----


def _of_texts(rng: np.random.Generator, count: int, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Logits of four texts that are too sure of themselves, and classes that come about as often as scale says."""
    logits = rng.normal(scale=8, size=(count, 4))
    classes = [rng.choice(4, p=softmax(row * scale)) for row in logits]
    return logits, np.eye(4)[classes]


def test_a_held_temperature_is_the_true_one_of_many_rows_and_within_its_interval_of_few() -> None:
    scale, (low, high) = held_temperature(*_of_texts(np.random.default_rng(0), 4000, 0.25), "softmax")
    assert scale == pytest.approx(0.25, abs=0.02)
    assert low < scale < high
    assert high - low < 0.05
    intervals = [
        held_temperature(*_of_texts(np.random.default_rng(seed), 16, 0.25), "softmax")[1] for seed in range(100)
    ]
    covered = sum(low <= 0.25 <= high for low, high in intervals)
    assert covered >= 85  # a little below 95: what holds it near 1 pulls
    assert np.median([high / low for low, high in intervals]) > 3  # few rows, wide intervals


def test_rows_that_are_all_right_do_not_make_texts_sure_without_end() -> None:
    scale, (_, high) = held_temperature(np.eye(4) * 2, np.eye(4), "softmax")
    assert 1 < scale < high < 20


def test_few_rows_calibrate_texts_alone_and_fresh_rows_are_the_better_for_it() -> None:
    before = after = 0.0
    fresh, classes = _of_texts(np.random.default_rng(1000), 4000, 0.25)
    for seed in range(20):
        logits, targets = _of_texts(np.random.default_rng(seed), 16, 0.25)
        few = "temperature", logits, targets, "softmax", list("abcd")
        assert choose_calibration(*few).calibration is None
        choice = choose_calibration(*few, from_words=True)
        assert choice.is_held
        assert choice.calibration is not None
        assert "16 held-out rows are fewer than 20; so a scale of" in choice.reason
        probabilities = softmax(calibrated_logits(fresh, choice.calibration), axis=1)
        before += ece(softmax(fresh, axis=1).ravel(), classes.ravel()) / 20
        after += ece(probabilities.ravel(), classes.ravel()) / 20
    assert after < before / 2
