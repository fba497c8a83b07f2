"""Embedding store → head: trains it, calibrates it, chooses its thresholds, measures it and writes it.

    python -m training.fit --recipe demo
    python -m training.fit --recipe demo --head demo --store artifacts/embeddings/shapes
    python -m training.fit --recipe demo --track                # and record the run with MLflow

The weights are fitted to the train split; the validation split stops the training, then calibrates the scores and
chooses the thresholds of the operating points; every figure is measured on the test split, which nothing else sees.

Near-duplicates share a side of the split, which the store remembers (training.split).

Writes artifacts/heads/<head>/: head.safetensors, head.json, report.json, loss_curve.png, score_histogram.png,
roc.png and reliability.png, all once the fit has succeeded. Prints the path of head.json.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors.numpy
from rich.table import Table

from common.manifest import (
    Calibration,
    EncoderFingerprint,
    HeadManifest,
    Layer,
    ManifestError,
    Prevalence,
    ScoreDistribution,
    Threshold,
    head_weights,
    read_encoder,
    read_head,
    tool_versions,
    write_atomically,
    write_manifest,
)
from common.paths import encoder_folder, head_folder
from recipes.errors import run_step
from recipes.schema import Head, Recipe, load_recipe
from training.calibrate import Activation, activated, calibrated_logits, calibration_report, fit_calibration
from training.errors import INTERRUPTED, StepError
from training.labels import LabelError, label_matrix
from training.leakage import Groups, group_rows
from training.losses import LOSSES, Curve, Loss, Task
from training.metrics import task_metrics
from training.operating_points import Chosen, OperatingPoint, choose_threshold, parse_point, realised
from training.plots import Column, fit_pngs
from training.progress import console
from training.score_distribution import score_distribution
from training.split import Split, saved_split
from training.store import Embeddings, read_embeddings, store_folder
from training.tracking import git_commit, started_run, tracking_uri

if TYPE_CHECKING:
    from training.optimize import Examples

_TOOLS = ("torch", "numpy", "scikit-learn", "safetensors")


@dataclass(frozen=True)
class Labelled:
    """The rows a head is fitted to."""

    embedding: np.ndarray  # (n, embed_dim) float32
    label: np.ndarray  # (n,) index into class_names; multilabel (n, L) 0 or 1; regression (n,) float
    sha256: list[str]
    row: np.ndarray = field(default_factory=lambda: np.array([], int))  # (n,) number of the row in the store

    @property
    def fingerprint(self) -> str:
        """Equal images with equal labels have equal fingerprints, wherever they lie."""
        lines = sorted(f"{content} {label}\n" for content, label in zip(self.sha256, self.label.tolist(), strict=True))
        return hashlib.sha256("".join(lines).encode()).hexdigest()


@dataclass(frozen=True)
class Plan:
    """What a recipe's head means for its training, checked before anything is computed."""

    task: Task
    loss: Loss
    activation: Activation
    points: list[OperatingPoint]

    @property
    def probabilities(self) -> bool:
        return self.activation != "none"


@dataclass(frozen=True)
class Fitted:
    """A trained head and what is known of it."""

    plan: Plan
    layers: list[Layer]
    tensors: dict[str, np.ndarray]
    split: Split
    curve: Curve
    calibration: Calibration | None
    prevalence: Prevalence | None
    thresholds: list[list[Threshold]]
    test_targets: np.ndarray  # (n test, L)
    test_scores: np.ndarray  # (n test, L)
    score_distribution: ScoreDistribution  # of both held-out parts
    metrics: dict[str, Any]
    report: dict[str, Any]  # calibration before and after, operating points as chosen
    device: str


def plan_of(head: Head) -> Plan:
    """What to train, from the recipe.

    Raises:
        StepError: settings that do not go together, or an operating point that is none.
    """
    loss = head.fit.loss or LOSSES[head.task][0]
    if loss not in LOSSES[head.task]:
        raise StepError(
            f"fit.loss {loss} does not fit a {head.task} head; take {' or '.join(LOSSES[head.task])}, or leave it out"
        )
    points = [parse_point(text) for text in head.operating_points]
    if head.task == "regression" and points:
        raise StepError(f"operating points are for classes, head {head.name} is a regression: give it thresholds")
    activation = _activation(head.task, loss, head.calibration)
    if head.prevalence is not None and activation == "none":
        raise StepError("prevalence corrects probabilities, and with loss mse and calibration none there are none")
    return Plan(head.task, loss, activation, points)


def labelled_rows(embeddings: Embeddings, class_names: list[str], task: Task = "binary") -> Labelled:
    """The rows that have a label, checked.

    Raises:
        StepError: a label that does not fit the task, only one class, or an embedding that is not finite.
    """
    rows = [row for row, label in enumerate(embeddings.label) if label is not None]
    texts = [str(embeddings.label[row]) for row in rows]
    names = [embeddings.path[row] for row in rows]
    label = _labels(texts, names, class_names, task)
    matrix = embeddings.embedding[rows]
    _check_finite(matrix, names)
    return Labelled(matrix, label, [embeddings.sha256[row] for row in rows], np.array(rows, int))


def targets_of(label: np.ndarray, task: Task, label_count: int) -> np.ndarray:
    """`Labelled.label` → (n, L) float32: one column per score, 0 or 1, of a regression the value."""
    if task == "multiclass":
        return (label[:, None] == np.arange(label_count)).astype(np.float32)
    return label.reshape(len(label), -1).astype(np.float32)


def strata_of(data: Labelled, task: Task) -> np.ndarray | None:
    """What the parts of the split must hold equal shares of: classes, or labels; nothing of a regression."""
    return None if task == "regression" else data.label


def fit_head(data: Labelled, head: Head, device: str, split: Split) -> Fitted:
    """Train, calibrate, choose thresholds and measure; writes nothing."""
    # Here and not above: --help needs no torch.
    from training.head import head_from_layers, hidden_layers, initial_tensors, logits_of, new_layers, tensors_of
    from training.optimize import Examples, optimize

    plan, fit, label_count = plan_of(head), head.fit, len(head.labels)
    hidden = hidden_layers(fit)
    layers = new_layers(hidden)
    module = head_from_layers(layers, initial_tensors(data.embedding[split.train], hidden, label_count, fit.seed))
    train, validation = (
        Examples.from_arrays(data.embedding[rows], data.label[rows], device, plan.loss)
        for rows in (split.train, split.validation)
    )
    curve = optimize(module.to(device), train, validation, fit, plan.loss)
    held_out, test = (
        _Part(logits_of(module, data.embedding[rows]), targets_of(data.label[rows], head.task, label_count))
        for rows in (split.validation, split.test)
    )
    calibration = _fit_calibration(head, plan, held_out)
    prevalence = _prevalence(head, calibration, held_out, train)
    scores = [
        activated(calibrated_logits(part.logits, calibration, prevalence), plan.activation) for part in (held_out, test)
    ]
    chosen = _choose(head, plan, held_out.targets, scores[0])
    thresholds = _thresholds(head, plan, chosen, test.targets, scores[1])
    return Fitted(
        plan=plan,
        layers=layers,
        tensors=tensors_of(module, layers),
        split=split,
        curve=curve,
        calibration=calibration,
        prevalence=prevalence,
        thresholds=thresholds,
        test_targets=test.targets,
        test_scores=scores[1],
        score_distribution=score_distribution(head.task, np.concatenate(scores)),
        metrics=task_metrics(
            head.task,
            head.labels,
            test.targets,
            scores[1],
            [row[0].value if row else 0.5 for row in thresholds],
            seed=fit.seed,
            probabilities=plan.probabilities,
            prevalence=head.prevalence,
        ),
        report={
            "calibration": _calibration_report(plan, calibration, held_out, test),
            "operating_points": {name: [point.report() for point in row] for name, row in chosen.items()},
        },
        device=device,
    )


def head_manifest(
    fitted: Fitted,
    data: Labelled,
    recipe: Recipe,
    head: Head,
    encoder: EncoderFingerprint,
    weights: bytes,
    groups: Groups,
) -> HeadManifest:
    """head.json for the weights, which are the bytes of head.safetensors."""
    return HeadManifest(
        name=head.name,
        recipe=head.model_dump(mode="json"),
        notice=recipe.notice,
        task=head.task,
        encoder=encoder,
        labels=head.labels,
        class_names=head.class_names,
        layers=fitted.layers,
        activation=fitted.plan.activation,
        calibrated=fitted.calibration is not None,
        calibration=fitted.calibration,
        prevalence=fitted.prevalence,
        thresholds=fitted.thresholds,
        weights_sha256=hashlib.sha256(weights).hexdigest(),
        metrics=fitted.metrics,
        score_distribution=fitted.score_distribution,
        training={
            "data_sha256": data.fingerprint,
            "counts": _counts(fitted.split, data.label, head),
            "duplicates": groups.counts(),
            "left_out": len(fitted.split.left_out),
            "seed": head.fit.seed,
            "loss": fitted.plan.loss,
            "best_epoch": fitted.curve.best_epoch,
            "device": fitted.device,
        },
        versions=tool_versions(*_TOOLS),
    )


def is_fitted(
    folder: Path, head: Head, recipe: Recipe, encoder: EncoderFingerprint, data: Labelled, split: Split
) -> bool:
    """Whether the folder holds a head that was fitted to this data, in these parts, by the same recipe and versions."""
    try:
        manifest = read_head(folder)
        head_weights(manifest, folder)
    except ManifestError:
        return False
    return (
        (manifest.recipe, manifest.notice) == (head.model_dump(mode="json"), recipe.notice)
        and manifest.encoder == encoder
        and manifest.training.get("data_sha256") == data.fingerprint
        and manifest.training.get("counts") == _counts(split, data.label, head)
        and manifest.versions == tool_versions(*_TOOLS)
    )


def write_head(folder: Path, fitted: Fitted, manifest: HeadManifest, weights: bytes) -> Path:
    """Write all files of the head, everything computed first, and head.json last; returns its path."""
    report = {"metrics": fitted.metrics, **fitted.report, "training": manifest.training, "loss": asdict(fitted.curve)}
    columns = [
        Column(name, fitted.test_targets[:, at], fitted.test_scores[:, at], [t.value for t in fitted.thresholds[at]])
        for at, name in enumerate(manifest.labels)
    ]
    files = {
        "report.json": (json.dumps(report, indent=2, allow_nan=False) + "\n").encode(),
        **fit_pngs(manifest, columns, fitted.curve),
        "head.safetensors": weights,
    }
    for name, content in files.items():
        write_atomically(folder / name, content)
    write_manifest(manifest, folder / "head.json")
    return folder / "head.json"


def write_tracked_head(uri: str, head: Head, fitted: Fitted, manifest: HeadManifest, weights: bytes) -> Path:
    """`write_head` within an MLflow run, whose id goes into head.json; nothing is written when MLflow refuses it."""
    with started_run(uri, head.name) as run:
        tags = {"data_sha256": manifest.training["data_sha256"], "git_commit": git_commit() or "unknown"}
        run.log_fit(head, fitted.metrics, fitted.curve, tags | {"weights_sha256": manifest.weights_sha256})
        # Where the run is: the URI of a server, but not of a file on this machine.
        where = {"mlflow_run_id": run.id, "mlflow_tracking_uri": uri if uri.startswith("http") else "local"}
        tracked = manifest.model_copy(update={"training": manifest.training | where})
        path = write_head(head_folder(head), fitted, tracked, weights)
        version = run.log_head(path.parent, head.name)
        console.print(f"tracked as MLflow run {run.id}, model {head.name} version {version}")
    return path


@dataclass(frozen=True)
class _Part:
    """A part of the split as the trained layers see it."""

    logits: np.ndarray  # (n, L) float64
    targets: np.ndarray  # (n, L)


def _activation(task: Task, loss: Loss, calibration: str) -> Activation:
    """A head trained with MSE on 0 and 1 gives its raw output, unless calibration makes a probability of it."""
    if task == "regression" or (loss == "mse" and calibration == "none"):
        return "none"
    return "softmax" if task == "multiclass" else "sigmoid"


def _fit_calibration(head: Head, plan: Plan, held_out: _Part) -> Calibration | None:
    if head.task == "regression" or head.calibration == "none":
        return None
    return fit_calibration(head.calibration, held_out.logits, held_out.targets, plan.activation)


def _prevalence(head: Head, calibration: Calibration | None, held_out: _Part, train: Examples) -> Prevalence | None:
    """What the logits take for the share of positives: the held-out data's once calibrated, else the loss's."""
    if head.prevalence is None:
        return None
    if calibration is not None:
        share = float(held_out.targets.mean())
    else:
        share = 0.5 if head.fit.class_weights else float(train.label.mean())
    return Prevalence(training=share, target=head.prevalence)


def _choose(head: Head, plan: Plan, targets: np.ndarray, scores: np.ndarray) -> dict[str, list[Chosen]]:
    """For each label the thresholds of its operating points, ascending; none when the recipe fixes them."""
    chosen = {}
    for at, name in enumerate(head.labels if plan.points else []):
        if targets[:, at].min() == targets[:, at].max():
            raise StepError(f"label {name!r} is the same in the whole validation split; operating points need both")
        found = [choose_threshold(point, targets[:, at], scores[:, at], head.prevalence) for point in plan.points]
        chosen[name] = sorted(found, key=lambda point: point.threshold)
    return chosen


def _thresholds(
    head: Head, plan: Plan, chosen: dict[str, list[Chosen]], targets: np.ndarray, scores: np.ndarray
) -> list[list[Threshold]]:
    """For each label its thresholds, with what they do to the test split."""
    fixed = [(value, "fixed") for value in head.fixed_thresholds]
    rows = []
    for at, name in enumerate(head.labels):
        points = [(point.threshold, point.operating_point) for point in chosen[name]] if chosen else fixed
        measured = [
            realised(targets[:, at], scores[:, at], value, head.prevalence) if head.task != "regression" else None
            for value, _ in points
        ]
        rows.append(
            [
                Threshold(value=value, operating_point=text, realised=found)
                for (value, text), found in zip(points, measured, strict=True)
            ]
        )
    return rows


def _calibration_report(
    plan: Plan, calibration: Calibration | None, held_out: _Part, test: _Part
) -> dict[str, Any] | None:
    """Before and after, at the data's own prevalence. Raw outputs count as the probabilities nearest to them."""
    if calibration is None:
        return None
    before, known = (
        np.clip(part.logits, 0, 1) if plan.loss == "mse" else activated(part.logits, plan.activation)
        for part in (test, held_out)
    )
    after = activated(calibrated_logits(test.logits, calibration), plan.activation)
    return calibration_report(before, after, test.targets, (known, held_out.targets))


def _labels(texts: list[str], names: list[str], class_names: list[str], task: Task) -> np.ndarray:
    if task == "regression":
        return _numbers(texts, names)
    if task == "multilabel":
        return _label_sets(texts, names, class_names)
    _check_classes(texts, class_names)
    number_of = {name: number for number, name in enumerate(class_names)}
    return np.array([number_of[text] for text in texts])


def _numbers(texts: list[str], names: list[str]) -> np.ndarray:
    values = np.full(len(texts), np.nan)
    for row, text in enumerate(texts):
        try:
            values[row] = float(text)
        except ValueError:
            continue
    broken = np.flatnonzero(~np.isfinite(values))
    if len(broken):
        row = broken[0]
        raise StepError(
            f"{len(broken)} labels are no finite numbers, the first of them {texts[row]!r} of {names[row]}; "
            "a regression needs numbers, another task class names"
        )
    if len(values) == 0 or values.min() == values.max():
        raise StepError(f"the store has {len(values)} labelled images, all of one value; a regression needs several")
    return values


def _label_sets(texts: list[str], names: list[str], class_names: list[str]) -> np.ndarray:
    """(n, L) 0 or 1, with enough rows on either side of each label."""
    try:
        label = label_matrix(texts, class_names)
    except LabelError as error:
        raise StepError(f"{error}; a multilabel head's class_names must name every label of the store") from error
    for column, name in zip(label.T, class_names, strict=True):
        if min(column.sum(), (1 - column).sum()) < 3:
            raise StepError(
                f"label {name!r} is on {int(column.sum())} of {len(names)} images; a head needs at least 3 with it "
                "and 3 without: label more images, or take it out of class_names"
            )
    return label


def _check_classes(names: list[str], class_names: list[str]) -> None:
    found = sorted(set(names))
    unknown = [name for name in found if name not in class_names]
    if unknown:
        raise StepError(f"the store has labels {unknown}, the head's class_names are {class_names}; rename one of them")
    if len(found) < len(class_names):
        wanted = f"both {class_names[0]} and {class_names[1]}" if len(class_names) == 2 else ", ".join(class_names)
        raise StepError(
            f"the store has labelled images of {', '.join(found) or 'no class'} only; "
            f"a head needs {wanted}: embed the missing ones"
        )


def _check_finite(matrix: np.ndarray, paths: list[str]) -> None:
    broken = np.flatnonzero(~np.isfinite(matrix).all(axis=1))
    if len(broken):
        first = ", ".join(paths[row] for row in broken[:3])
        raise StepError(
            f"{len(broken)} of {len(paths)} embeddings are not finite, the first of them: {first}. "
            "Delete the store and embed again; if that does not help, the encoder overflows on these images."
        )


def _counts(split: Split, labels: np.ndarray, head: Head) -> dict[str, dict[str, int]]:
    """Rows of each class in each part; of a regression all of them."""
    if head.task == "regression":
        return {part: {head.class_names[0]: len(rows)} for part, rows in split.parts().items()}
    if head.task == "multilabel":
        sums = {part: labels[rows].sum(axis=0) for part, rows in split.parts().items()}
    else:
        sums = {
            part: np.bincount(labels[rows], minlength=len(head.class_names)) for part, rows in split.parts().items()
        }
    return {part: dict(zip(head.class_names, map(int, row), strict=True)) for part, row in sums.items()}


def _print_result(fitted: Fitted, manifest: HeadManifest) -> None:
    metrics = manifest.metrics
    table = Table(title=f"head {manifest.name}: {metrics['n']} test images", show_header=False)
    for name, value in (metrics.get("macro") or metrics).items():
        spread = (metrics.get("macro") or metrics).get(f"{name}_95_interval")
        if spread is not None and value is not None:
            shown = name.replace("_", " ").replace("auroc", "AUROC").replace("ece", "ECE") if name != "recall" else name
            table.add_row(shown, f"{value:.3f} (95 %: {spread[0]:.3f} to {spread[1]:.3f})")
    for label, row in zip(manifest.labels, manifest.thresholds, strict=True):
        for point in row:
            table.add_row(f"{label}, {point.operating_point}", f"score >= {point.value:.4g}{_recall_text(point)}")
    if report := fitted.report["calibration"]:
        table.add_row("ECE before, after", f"{report['before']['ece']:.4f}, {report['after']['ece']:.4f}")
    table.add_row("best epoch", str(manifest.training["best_epoch"]))
    console.print(table)
    if manifest.notice:
        console.print(manifest.notice)


def _recall_text(point: Threshold) -> str:
    if point.realised is None or point.realised["recall"] is None:
        return ""
    recall = point.realised["recall"]
    low, high = recall["interval_95"]
    return f": recall {recall['value']:.3f} (95 %: {low:.3f} to {high:.3f})"


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m training.fit", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", required=True, help="a name in recipes/ or the path of a YAML file")
    parser.add_argument("--head", help="needed if the recipe has several heads")
    parser.add_argument(
        "--if-changed", action="store_true", help="leave a head that was fitted to the same data by the same recipe"
    )
    parser.add_argument("--store", type=Path, help="default: artifacts/embeddings/<recipe>")
    parser.add_argument(
        "--track",
        nargs="?",
        const="",
        metavar="URI",
        help="record the run with MLflow; by default in MLFLOW_TRACKING_URI, else in artifacts/mlflow",
    )
    return parser.parse_args(argv)


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def main(argv: list[str] | None = None) -> None:
    arguments = _arguments(argv)
    recipe = load_recipe(arguments.recipe)
    head = recipe.head(arguments.head)
    if head.source is not None:
        raise StepError(f"head {head.name} comes from {head.source}, it is not trained here; remove its source to fit")
    if head.published is not None:
        raise StepError(
            f"head {head.name} is the published {head.published.name}, it is not trained here; get it with: "
            f"python -m training.import_head --recipe {arguments.recipe}"
        )
    encoder = read_encoder(encoder_folder(recipe)).fingerprint()
    plan_of(head)
    folder = arguments.store or store_folder(recipe)
    store = read_embeddings(folder, encoder)
    data = labelled_rows(store, head.class_names, head.task)
    groups = group_rows(data.sha256, data.embedding, head.fit.near_duplicate_cosine)
    prescribed = [store.split[row] for row in data.row]
    split = saved_split(
        folder, strata_of(data, head.task), data.sha256, head.class_names, head.fit, groups.ids, prescribed
    )
    if arguments.if_changed and is_fitted(head_folder(head), head, recipe, encoder, data, split):
        console.print(f"head {head.name}: fitted before to the same data, nothing to do")
        print(head_folder(head) / "head.json")
        return
    fitted = fit_head(data, head, _device(), split)
    weights = safetensors.numpy.save(fitted.tensors)
    manifest = head_manifest(fitted, data, recipe, head, encoder, weights, groups)
    uri = tracking_uri(arguments.track)
    if uri is None:
        path = write_head(head_folder(head), fitted, manifest, weights)
    else:
        path = write_tracked_head(uri, head, fitted, manifest, weights)
    _print_result(fitted, manifest)
    print(path)


if __name__ == "__main__":
    sys.exit(run_step("training.fit", main, INTERRUPTED))
