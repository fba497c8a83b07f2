"""Whether a head can be trusted, on data of which the truth is known: the steps of training, one after another.

    python -m benchmarks.head_trust
    python -m benchmarks.head_trust --rows 20000 --separation 2.5

Draws embeddings of two classes with wrong labels and near-duplicates of the other class at known rows, audits them,
splits them, trains a head on the labels as given and once more after the audit's suggestions were taken, and measures
both on fresh rows whose labels are true. A table goes to stderr, one line of JSON to stdout.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.special import expit
from sklearn.metrics import roc_auc_score

from benchmarks.machine import machine, print_result
from benchmarks.synthetic import TwoClasses, two_classes
from recipes.schema import Fit, Head
from training import audit, fit
from training.calibrate import calibrated_logits, ece
from training.head import head_from_layers, logits_of
from training.leakage import group_rows
from training.split import Split, split_rows

CLASSES = ["safe", "nsfw"]
COSINE = 0.97
HEAD = Head(
    name="nsfw",
    class_names=CLASSES,
    operating_points=["recall>=0.99"],
    fit=Fit(max_epochs=30, batch_size=1024, learning_rate=0.01, weight_decay=0.03, schedule="cosine", patience=6),
)

console = Console(stderr=True)


def rows_of(data: TwoClasses, rows: np.ndarray) -> TwoClasses:
    """Some of the rows; copies of rows that are not among them are no copies any more."""
    place = np.full(len(data.label) + 1, -1)
    place[rows] = np.arange(len(rows))
    return replace(
        data,
        embedding=data.embedding[rows],
        label=data.label[rows],
        true_label=data.true_label[rows],
        flipped=data.flipped[rows],
        copy_of=place[data.copy_of[rows]],
    )


def training_and_fresh(rows: int, embed_dim: int, separation: float, seed: int) -> tuple[TwoClasses, TwoClasses]:
    """As many spoiled rows to train on as there are fresh ones, none of which has a near-duplicate."""
    data = two_classes(2 * rows, embed_dim, separation, seed=seed)
    related = np.concatenate([np.flatnonzero(data.copy_of >= 0), data.copy_of[data.copy_of >= 0]])
    alone = np.setdiff1d(np.arange(rows, 2 * rows), related)
    return rows_of(data, np.arange(rows)), rows_of(data, alone)


def audited(data: TwoClasses) -> tuple[np.ndarray, dict[str, Any]]:
    """The labels after every suggestion for a wrong label was taken, and how right the suggestions were."""
    given = audit.Labelled(data.embedding, data.label, data.sha256, data.sha256, data.sha256, [None] * len(data.label))
    findings = audit.audit_rows(given, CLASSES, COSINE)
    suspects = {finding.row: finding.suggested for finding in findings if finding.kind == "label"}
    flagged = np.zeros(len(data.label), bool)
    flagged[list(suspects)] = True
    wrong = data.label != data.true_label
    copies = {finding.row for finding in findings if finding.kind == "near-duplicate"}
    corrected = data.label.copy()
    for row, suggested in suspects.items():
        corrected[row] = corrected[row] if suggested is None else suggested
    planted = np.flatnonzero(data.copy_of >= 0)
    return corrected, {
        "flipped": int(data.flipped.sum()),
        "precision": float(wrong[flagged].mean()),
        "recall": float(flagged[data.flipped].mean()),
        "contradicting_copies": len(planted),
        "contradicting_copies_found": sum(int(row) in copies or data.copy_of[row] in copies for row in planted),
    }


def leaking_pairs(data: TwoClasses, split: Split) -> int:
    """Planted near-duplicates that stand on another side than their original."""
    side = np.empty(len(data.label), int)
    for number, rows in enumerate(split.parts().values()):
        side[rows] = number
    copies = np.flatnonzero(data.copy_of >= 0)
    return int((side[copies] != side[data.copy_of[copies]]).sum())


def measured(data: TwoClasses, label: np.ndarray, fresh: TwoClasses) -> dict[str, Any]:
    """A head trained on these labels, on fresh rows."""
    groups = group_rows(data.sha256, data.embedding, COSINE).ids
    split = split_rows(label, data.sha256, CLASSES, HEAD.fit.test_fraction, HEAD.fit.validation_fraction, 0, groups)
    ungrouped = split_rows(label, data.sha256, CLASSES, HEAD.fit.test_fraction, HEAD.fit.validation_fraction, 0)
    fitted = fit.fit_head(fit.Labelled(data.embedding, label, data.sha256), HEAD, "cpu", split)
    logits = logits_of(head_from_layers(fitted.layers, fitted.tensors), fresh.embedding)
    scores, targets = expit(calibrated_logits(logits, fitted.calibration))[:, 0], fresh.true_label
    (threshold,) = fitted.thresholds[0]
    assert threshold.realised is not None
    (expected,) = fitted.report["operating_points"][HEAD.labels[0]]
    return {
        "leaking_pairs": leaking_pairs(data, split),
        "leaking_pairs_without_groups": leaking_pairs(data, ungrouped),
        "auroc": float(roc_auc_score(targets, scores)),
        "ece_before": float(ece(expit(logits)[:, 0], targets)),
        "ece": float(ece(scores, targets)),
        "threshold": threshold.value,
        "recall_interval_as_chosen": expected["interval_95"],
        "recall_interval_on_test": threshold.realised["recall"]["interval_95"],
        "recall": float((scores[targets == 1] >= threshold.value).mean()),
    }


def show(found: dict[str, Any]) -> None:
    table = Table(title=f"{found['rows']:,} rows of {found['embed_dim']}; AUROC of the best score {found['bayes']:.4f}")
    for column in ("labels", "AUROC", "ECE", "recall of recall>=0.99", "its interval", "leaking pairs (ungrouped)"):
        table.add_column(column)
    for name in ("as_given", "audited"):
        row = found[name]
        low, high = row["recall_interval_as_chosen"]
        table.add_row(
            name,
            f"{row['auroc']:.4f}",
            f"{row['ece']:.4f}",
            f"{row['recall']:.4f}",
            f"{low:.4f} to {high:.4f}",
            f"{row['leaking_pairs']} ({row['leaking_pairs_without_groups']})",
        )
    console.print(table)
    audit_found = found["audit"]
    console.print(
        f"audit: precision {audit_found['precision']:.3f}, recall of the {audit_found['flipped']} flipped labels "
        f"{audit_found['recall']:.3f}, {audit_found['contradicting_copies_found']} of "
        f"{audit_found['contradicting_copies']} contradicting near-duplicates found"
    )


def main(argv: list[str] | None = None) -> None:
    description = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.head_trust", description=description)
    parser.add_argument("--rows", type=int, default=40_000, help="for training; as many are fresh")
    parser.add_argument("--embed-dim", type=int, default=128)
    parser.add_argument("--separation", type=float, default=2.5, help="half the distance of the classes, in deviations")
    parser.add_argument("--seed", type=int, default=0)
    arguments, told = parser.parse_args(argv), machine()
    data, fresh = training_and_fresh(arguments.rows, arguments.embed_dim, arguments.separation, arguments.seed)
    corrected, audit_found = audited(data)
    found = {
        "rows": arguments.rows,
        "embed_dim": arguments.embed_dim,
        "separation": arguments.separation,
        "seed": arguments.seed,
        "bayes": data.bayes_auroc,
        "audit": audit_found,
        "as_given": measured(data, data.label, fresh),
        "audited": measured(data, corrected, fresh),
    }
    show(found)
    print_result("benchmarks.head_trust", told, **found)


if __name__ == "__main__":
    sys.exit(main())
