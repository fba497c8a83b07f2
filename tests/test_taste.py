"""Heads of grades and of choices: their losses, what they serve, and layers that are merged."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from graded_store import write_recipe, write_store
from safetensors.numpy import save
from torch import nn

from build.head import build_head
from common import paths
from common.head_figures import RegressionMetrics
from common.manifest import EncoderFingerprint, HeadManifest, Linear, read_head, write_atomically, write_manifest
from recipes.errors import run_step
from recipes.head_section import Fit, Head
from recipes.schema import Recipe, RecipeError, load_recipe, parse_recipe
from training import evaluate, fit
from training.errors import StepError
from training.grades import order_of
from training.head_files import head_manifest
from training.head_fit import Fitted, fit_head, merged_layers
from training.labelled import Labelled
from training.leakage import group_rows
from training.merge import MergeLayers, with_merge, without_merge
from training.mlflow_model import ServedHead
from training.order_losses import GaussianLoss, OrderLoss, partners, rounded_hinge
from training.split import Split, split_rows

ROWS, DIM = 300, 12


def _data(noise: float = 0.3, scale: float = 60.0, offset: float = 1250.0) -> Labelled:
    """Grades that are a line through the embeddings and noise: of 1100 to 1450, as a tournament's are."""
    rng = np.random.default_rng(0)
    embedding = rng.normal(size=(ROWS, DIM)).astype(np.float32)
    taste = embedding @ rng.normal(size=DIM) / np.sqrt(DIM)
    grade = offset + scale * (taste + noise * rng.normal(size=ROWS))
    return Labelled(embedding, grade, [f"{row:064x}" for row in range(ROWS)], np.arange(ROWS))


def _split(data: Labelled) -> Split:
    return split_rows(None, data.sha256, ["taste"], 0.2, 0.15, 0)


def _head(task: str = "regression", **settings) -> Head:
    return Head.model_validate({"name": "taste", "task": task, "class_names": ["taste"], **settings})


def _fit(head: Head, data: Labelled | None = None, **options) -> Fitted:
    data = data or _data()
    return fit_head(data, head, "cpu", _split(data), np.arange(len(data.label)), **options)


def _manifest(fitted: Fitted, data: Labelled, head: Head, folder: Path) -> HeadManifest:
    """head.json and head.safetensors as training.fit writes them."""
    encoder = EncoderFingerprint(
        id="tiny", weights_sha256="0" * 64, preprocessing="none", normalize=False, embed_dim=data.embedding.shape[1]
    )
    recipe = load_recipe("demo")
    weights = save(fitted.tensors)
    groups = group_rows(data.sha256, data.embedding, None)
    manifest = head_manifest(fitted, data, recipe, head, encoder, weights, groups)
    write_atomically(folder / "head.safetensors", weights)
    write_manifest(manifest, folder / "head.json")
    return manifest


def _answers(folder: Path, embedding: np.ndarray) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, map(np.asarray, session.run(names, {"embedding": embedding})), strict=True))


@pytest.mark.parametrize(
    ("task", "fit"),
    [
        ("regression", {}),
        ("regression", {"loss": "ab"}),
        ("regression", {"loss": "nll", "learning_rate": 0.01}),
        ("ranking", {}),
        ("ranking", {"hidden_sizes": [16], "learning_rate": 0.01, "max_epochs": 60}),
    ],
)
def test_every_loss_gives_grades_in_their_own_units(task: str, fit: dict) -> None:
    fitted = _fit(_head(task, fit=fit))
    metrics = fitted.metrics
    assert metrics["spearman"] > 0.85
    assert metrics["ab"] > 0.8
    assert metrics["mse"] < 0.4 * metrics["mse_of_mean"]
    assert set(metrics["sets"]) == {"train", "validation", "evaluation", "all"}
    assert [figures["n"] for figures in metrics["sets"].values()] == [240, 240, 60, 300]
    assert not fitted.warnings


def test_the_median_divides_good_from_bad_and_is_the_decision(tmp_path: Path) -> None:
    data, head = _data(), _head()
    fitted = _fit(head, data)
    manifest = _manifest(fitted, data, head, tmp_path)
    rows = np.concatenate([_split(data).train, _split(data).validation])
    divider = float(np.median(data.label[rows]))
    assert [[(point.value, point.operating_point) for point in row] for row in manifest.thresholds] == [
        [(divider, "good")]
    ]
    assert manifest.training.accuracy_divider == divider
    assert fitted.metrics["accuracy"] > 0.8
    build_head(tmp_path, 18)
    answers = _answers(tmp_path, data.embedding)
    assert set(answers) == {"score", "decision", "revision"}
    assert (answers["decision"] == (answers["score"] >= np.float32(divider))).all()


def test_thresholds_of_the_recipe_are_served_and_the_divider_still_measures() -> None:
    fitted = _fit(_head(thresholds=[1200, 1300], accuracy_divider=1280))
    assert [point.value for point in fitted.thresholds[0]] == [1200, 1300]
    assert fitted.metrics["accuracy_divider"] == 1280


def test_without_a_divider_nothing_is_decided() -> None:
    fitted = _fit(_head(accuracy_divider="none"))
    assert fitted.thresholds == [[]]
    assert "accuracy" not in fitted.metrics


def test_the_served_head_gives_a_value_and_its_deviation(tmp_path: Path) -> None:
    data = _data()
    head = _head(fit={"loss": "nll", "learning_rate": 0.01})
    fitted = _fit(head, data)
    assert _manifest(fitted, data, head, tmp_path).deviation
    build_head(tmp_path, 18)
    test = _split(data).test
    answers = _answers(tmp_path, data.embedding[test])
    assert answers["score"].shape == answers["deviation"].shape == (60, 1)
    np.testing.assert_allclose(answers["score"], fitted.scores.test_scores, rtol=1e-4)
    distance = np.abs(answers["score"][:, 0] - data.label[test]) / answers["deviation"][:, 0]
    assert 0.85 < (distance < 1.96).mean() <= 1
    assert fitted.report["deviation"]["within_95"] == pytest.approx((distance <= 1.96).mean(), abs=0.02)


def test_mlflows_model_gives_the_value_alone(tmp_path: Path) -> None:
    data = _data()
    head = _head(fit={"loss": "nll", "learning_rate": 0.01})
    fitted = _fit(head, data)
    _manifest(fitted, data, head, tmp_path)
    test = _split(data).test
    np.testing.assert_allclose(ServedHead(tmp_path).scores(data.embedding[test]), fitted.scores.test_scores, rtol=1e-4)


def test_a_deviation_stays_finite_far_from_all_that_was_seen(tmp_path: Path) -> None:
    data = _data()
    head = _head(fit={"loss": "nll"})
    _manifest(_fit(head, data), data, head, tmp_path)
    build_head(tmp_path, 18)
    answers = _answers(tmp_path, (1e4 * data.embedding).astype(np.float32))
    assert np.isfinite(answers["deviation"]).all()


def test_choices_train_a_head_directly() -> None:
    data = _data(noise=0)
    rng = np.random.default_rng(1)
    pairs = rng.integers(0, ROWS, (2000, 2))
    pairs = pairs[data.label[pairs[:, 0]] > data.label[pairs[:, 1]]]
    grades = data.label
    # The labels alone would teach the contrary: what is learned comes from the choices.
    chosen = Labelled(data.embedding, -grades, data.sha256, data.row, pairs)
    fitted = _fit(_head("ranking", fit={"folds": 0, "optimizer": "adamw", "max_epochs": 10}), chosen)
    assert fitted.choices > 300
    rows = _split(data).test
    assert (order_of(grades[rows], fitted.scores.test_scores[:, 0]).ab or 0) > 0.75


def test_both_optimizers_learn_from_choices() -> None:
    data = _data(noise=0)
    pairs = np.random.default_rng(1).integers(0, ROWS, (2000, 2))
    pairs = pairs[data.label[pairs[:, 0]] > data.label[pairs[:, 1]]]
    chosen = Labelled(data.embedding, data.label, data.sha256, data.row, pairs)
    fitted = _fit(_head("ranking"), chosen)
    assert fitted.curve.weight_decay
    assert fitted.metrics["ab"] > 0.9


def test_the_fingerprint_knows_the_choices() -> None:
    data = _data()
    chosen = Labelled(data.embedding, data.label, data.sha256, data.row, np.array([[0, 1]]))
    other = Labelled(data.embedding, data.label, data.sha256, data.row, np.array([[1, 0]]))
    assert len({data.fingerprint, chosen.fingerprint, other.fingerprint}) == 3


def test_grades_of_noise_warn_that_there_is_no_order() -> None:
    data = _data()
    noise = Labelled(data.embedding, np.random.default_rng(5).normal(size=ROWS), data.sha256, data.row)
    assert any("no better than chance" in warning for warning in _fit(_head("ranking"), noise).warnings)


def test_a_fit_prints_a_line_for_each_set_and_its_report_is_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setattr(paths, "ARTIFACTS", tmp_path / "artifacts")
    recipe = write_recipe(tmp_path, fit={"loss": "nll", "learning_rate": 0.01})
    write_store(recipe)
    assert run_step("training.fit", lambda: fit.main(["--recipe", str(recipe)])) == 0
    shown = capsys.readouterr().err
    for name in ("train", "validation", "evaluation", "all"):
        assert re.search(rf"^{name}: \d+ pictures, mse .*, mae .*, ab .* \(.* to .*\), .*accuracy", shown, re.MULTILINE)
    assert "1.96 of them hold" in " ".join(shown.split())
    metrics = read_head(paths.ARTIFACTS / "taste" / "heads" / "taste").metrics
    assert isinstance(metrics, RegressionMetrics)
    assert metrics.sets is not None
    assert metrics.sets["evaluation"].ab == metrics.ab
    out = tmp_path / "report"
    assert run_step("training.evaluate", lambda: evaluate.main(["--recipe", str(recipe), "--out", str(out)])) == 0
    again = json.loads((out / "report.json").read_text())["metrics"]
    assert again["ab"] == metrics.ab
    assert again["accuracy"] == metrics.accuracy
    assert "the share of pairs in the right order" in (out / "model_card.md").read_text()
    capsys.readouterr()
    assert run_step("training.fit", lambda: fit.main(["--recipe", str(recipe), "--if-changed"])) == 0
    assert "nothing to do" in capsys.readouterr().err


def test_partners_are_all_pairs_of_few_rows() -> None:
    first, second = partners(7)
    assert {frozenset(pair) for pair in zip(first.tolist(), second.tolist(), strict=True)} == {
        frozenset((one, other)) for one in range(7) for other in range(one)
    }


def test_the_order_loss_falls_with_the_right_order_and_passes_over_ties() -> None:
    grades = torch.tensor([[0.0], [1.0], [2.0]])
    loss = OrderLoss()
    assert loss(grades * 3, grades) < loss(grades, grades) < loss(-grades, grades)
    values = torch.randn(4, 1, requires_grad=True)
    tied = loss(values, torch.ones(4, 1))
    tied.backward()
    assert float(tied.detach()) == 0
    assert values.grad is not None
    assert not values.grad.any()


def test_the_hinge_is_a_hinge_but_for_its_corner() -> None:
    assert rounded_hinge(torch.tensor([-3.0, 3.0])).tolist() == pytest.approx([0, 3], abs=1e-3)


def test_the_gaussian_loss_is_the_likelihood_of_torch() -> None:
    values, grades = torch.randn(9, 2), torch.randn(9, 1)
    expected = nn.GaussianNLLLoss()(values[:, 0], grades[:, 0], torch.exp(2 * values[:, 1]))
    assert float(GaussianLoss()(values, grades)) == pytest.approx(float(expected), abs=1e-5)


def test_a_merge_is_folded_into_one_matrix() -> None:
    head = with_merge(nn.Sequential(nn.Identity(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 1)), 3)
    merge = head[1]
    assert isinstance(merge, MergeLayers)
    with torch.no_grad():
        merge.logits.copy_(torch.tensor([0.1, -0.2, 0.05]))
    served, weights = without_merge(head)
    x = torch.randn(5, 12)
    torch.testing.assert_close(served(x), head(x))
    assert weights == pytest.approx(merge.weights.tolist(), abs=1e-5)
    assert sum(weights or []) == pytest.approx(1, abs=1e-5)


def test_weighted_layers_find_the_one_that_informs(tmp_path: Path) -> None:
    data = _data()
    noise = np.random.default_rng(2).normal(size=(ROWS, 2 * DIM)).astype(np.float32)
    layers = np.concatenate([noise[:, :DIM], data.embedding, noise[:, DIM:]], axis=1)
    data = Labelled(layers, data.label, data.sha256, data.row)
    head = _head(fit={"merge_layers": "weighted", "learning_rate": 0.01, "max_epochs": 60})
    fitted = _fit(head, data, layer_widths=[DIM] * 3)
    assert fitted.layer_weights is not None
    assert np.argmax(fitted.layer_weights) == 1
    assert fitted.layer_weights[1] > 0.5
    manifest = _manifest(fitted, data, head, tmp_path)
    assert manifest.training.layer_weights == fitted.layer_weights
    (linear,) = (layer for layer in manifest.layers if isinstance(layer, Linear))
    assert fitted.tensors[linear.weight].shape == (1, 3 * DIM)
    build_head(tmp_path, 18)
    np.testing.assert_allclose(
        _answers(tmp_path, layers[_split(data).test])["score"], fitted.scores.test_scores, rtol=1e-4
    )


@pytest.mark.parametrize(
    ("widths", "problem"), [((), "no widths"), ((24,), "1 layers"), ((8, 16), "of one width, found")]
)
def test_layers_that_cannot_be_merged_are_refused(widths: tuple[int, ...], problem: str) -> None:
    with pytest.raises(StepError, match=problem):
        merged_layers(_head(fit={"merge_layers": "weighted"}), widths, 24)


def test_dropout_is_apart_for_input_hidden_and_output() -> None:
    from training.head import hidden_layers, new_layers

    fit = Fit(hidden_sizes=[8, 8, 8], dropout=0.3, input_dropout=0.1, output_dropout=0.5)
    layers = new_layers(hidden_layers(fit), fit.input_dropout)
    assert [layer.p for layer in layers if layer.type == "dropout"] == [0.1, 0.3, 0.3, 0.5]
    assert [layer.type for layer in layers[:3]] == ["standardize", "dropout", "linear"]


@pytest.mark.parametrize(
    ("fit", "optimizer"),
    [
        ({}, "lbfgs"),
        ({"loss": "ab"}, "lbfgs"),
        ({"loss": "nll"}, "adamw"),
        ({"input_dropout": 0.1}, "adamw"),
        ({"merge_layers": "weighted"}, "adamw"),
    ],
)
def test_lbfgs_solves_what_is_convex(fit: dict, optimizer: str) -> None:
    assert Fit.model_validate(fit).optimizer == optimizer
    if optimizer == "adamw":
        with pytest.raises(ValueError, match="lbfgs"):
            Fit.model_validate({**fit, "optimizer": "lbfgs"})


def _recipe(**head) -> Recipe:
    data = load_recipe("demo").model_dump(mode="json", exclude_unset=True)
    return parse_recipe(data | {"heads": [{"name": "demo", "class_names": ["a", "b"], **head}]})


def test_settings_of_grades_are_refused_for_classes() -> None:
    with pytest.raises(RecipeError, match="accuracy_divider is for regression and ranking"):
        _recipe(accuracy_divider=5)
    with pytest.raises(RecipeError, match="may not end in _decision, _deviation"):
        _recipe(name="taste_deviation")
    with pytest.raises(RecipeError, match="a ranking head has 1 class_names"):
        _recipe(task="ranking")


@pytest.mark.parametrize("loss", ["bce", "cross_entropy"])
def test_a_loss_of_classes_does_not_fit_a_ranking(loss: str) -> None:
    with pytest.raises(StepError, match="take ab or mse or nll"):
        _fit(_head("ranking", fit={"loss": loss}))
