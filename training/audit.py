"""Embedding store → list of rows to look at: likely wrong labels, contradicting duplicates, outliers.

    python -m training.audit --recipe nsfw-vit-b-32 --out audit.csv
    # look at the images; put an x under `accept`, or the right class under `label`; then
    python -m training.relabel --recipe nsfw-vit-b-32 audit.csv

A label is suspect when a classifier that never saw the row, nor a near-duplicate of it, disagrees by more
than the classes' usual confusion (cleanlab). The CSV has path, key, given_label, suggested_label, confidence
(0 to 1, of the reason), reason, and the empty columns accept and label; the surest rows come first.
"""

from __future__ import annotations

import argparse
import csv
import io
import sys
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.manifest import read_encoder, write_atomically
from common.paths import encoder_folder
from common.writing import check_writable
from recipes.errors import run_step
from recipes.schema import Head, load_recipe
from training.errors import INTERRUPTED, StepError
from training.leakage import group_rows
from training.neighbours import Neighbours, unit_vectors
from training.progress import say
from training.sources import HeadData
from training.store import store_folder
from training.store_view import Embeddings, Pictures, read_embeddings

FOLDS = 5
COLUMNS = ("path", "key", "given_label", "suggested_label", "confidence", "reason", "accept", "label")

_STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0)  # C: the smaller, the smoother
_ROWS_TO_CHOOSE = 20_000
_NEIGHBOURS = 10


@dataclass(frozen=True)
class Labelled:
    """The rows that are audited."""

    embedding: np.ndarray  # (n, embed_dim) float32
    label: np.ndarray  # (n,) index into class_names
    sha256: list[str]
    path: list[str]
    key: list[str]


@dataclass(frozen=True)
class Finding:
    """Something about one row that a person should look at."""

    row: int
    kind: str
    """`label`, `exact duplicate`, `near-duplicate` or `outlier`."""
    suggested: int | None
    """Index into class_names, when it is not the given label."""
    confidence: float
    reason: str


def labelled_rows(embeddings: Embeddings, class_names: list[str], store: Path) -> Labelled:
    """The rows that have a label, checked.

    Raises:
        StepError: a label that is no class, only one class, or an embedding that is not finite; names the path.
    """
    rows = [row for row, label in enumerate(embeddings.label) if label is not None]
    for row in rows:
        if embeddings.label[row] not in class_names:
            raise StepError(
                f"{store}: {embeddings.path[row]} is labelled {embeddings.label[row]!r}, which is not one of the "
                f"head's class_names {class_names}; correct it with training.relabel, or rename the class"
            )
    matrix = embeddings.embedding[rows]
    broken = np.flatnonzero(~np.isfinite(matrix).all(axis=1))
    if len(broken):
        raise StepError(f"{store}: the embedding of {embeddings.path[rows[broken[0]]]} is not finite; embed it again")
    return Labelled(
        embedding=matrix,
        label=np.array([class_names.index(str(embeddings.label[row])) for row in rows], np.int64),
        sha256=[embeddings.sha256[row] for row in rows],
        path=[embeddings.path[row] for row in rows],
        key=[embeddings.key[row] for row in rows],
    )


def audit_rows(data: Labelled, class_names: list[str], cosine: float | None, seed: int = 0) -> list[Finding]:
    """Everything suspect, in no order; a row may have several findings.

    Args:
        data: the labelled rows.
        class_names: of a binary or multiclass head.
        cosine: embeddings at least this close are near-duplicates; None looks at content only.
        seed: of the folds.

    Raises:
        StepError: a class is missing, or has fewer groups of duplicates than there are folds.
    """
    groups = group_rows(data.sha256, data.embedding, cosine).ids
    _check_folds(data, groups, class_names)
    probabilities = out_of_fold(data.embedding, data.label, groups, seed)
    vectors = unit_vectors(data.embedding)
    neighbours = Neighbours(vectors)
    findings = _wrong_labels(data, probabilities, class_names)
    if cosine is not None:
        findings += _near_conflicts(data, probabilities, neighbours, cosine, class_names)
    return findings + _outliers(neighbours, len(data.label))


def out_of_fold(embedding: np.ndarray, label: np.ndarray, groups: np.ndarray, seed: int) -> np.ndarray:
    """(n, classes) probabilities of each row by a logistic regression that saw no row of its group.

    Its strength of regularisation is the one with the best out-of-fold AUROC.
    """
    sample = np.sort(np.random.default_rng(seed).permutation(len(label))[:_ROWS_TO_CHOOSE])
    chosen = [_cross_validated(embedding[sample], label[sample], groups[sample], c, seed) for c in _STRENGTHS]
    aurocs = [_auroc(label[sample], probabilities) for probabilities in chosen]
    best = int(np.argmax(aurocs))
    if len(sample) == len(label):
        return chosen[best]
    return _cross_validated(embedding, label, groups, _STRENGTHS[best], seed)


def write_findings(
    path: Path, data: Labelled, findings: list[Finding], class_names: list[str], disputed: list[list[str]]
) -> None:
    """One line for each row that has findings, the surest first, after the `disputed_rows`."""
    of_row: dict[int, list[Finding]] = defaultdict(list)
    for finding in sorted(findings, key=lambda finding: -finding.confidence):
        of_row[finding.row].append(finding)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(disputed)
    for row, found in of_row.items():  # in the order of each row's surest finding
        suggested = next((finding.suggested for finding in found if finding.suggested is not None), None)
        writer.writerow(
            [
                data.path[row],
                data.key[row],
                class_names[data.label[row]],
                "" if suggested is None else class_names[suggested],
                f"{found[0].confidence:.4f}",
                "; ".join(finding.reason for finding in found),
                "",
                "",
            ]
        )
    write_atomically(path, text.getvalue().encode())


def _wrong_labels(data: Labelled, probabilities: np.ndarray, class_names: list[str]) -> list[Finding]:
    from cleanlab.filter import find_label_issues  # slow to import

    rows = np.flatnonzero(find_label_issues(data.label, probabilities, n_jobs=1))
    findings = []
    for row in rows.tolist():
        best = int(probabilities[row].argmax())
        if best != data.label[row]:
            confidence = float(probabilities[row, best])
            findings.append(Finding(row, "label", best, confidence, f"looks like {class_names[best]}"))
    return findings


def disputed_rows(pictures: Pictures) -> list[list[str]]:
    """COLUMNS of each file of a content to which the data sets give several labels, and no correction one."""
    settled = {content for content, corrected in zip(pictures.sha256, pictures.corrected, strict=True) if corrected}
    rows = []
    for content, files in pictures.disputed.items():
        if content not in settled:
            labels = ", ".join(f"{path} is labelled {label}" for path, label in files[:3])
            rows += [[path, "", label, "", "1.0000", f"same content: {labels}", "", ""] for path, label in files]
    return rows


def _near_conflicts(
    data: Labelled, probabilities: np.ndarray, neighbours: Neighbours, cosine: float, class_names: list[str]
) -> list[Finding]:
    """For each row its nearest near-duplicate with another label."""
    nearest: dict[int, tuple[float, int]] = {}
    for rows, others, cosines in neighbours.pairs(cosine):
        differ = data.label[rows] != data.label[others]
        pairs = zip(rows[differ].tolist(), others[differ].tolist(), cosines[differ].tolist(), strict=True)
        for row, other, near in pairs:
            nearest[row] = max(nearest.get(row, (0.0, -1)), (near, other))
            nearest[other] = max(nearest.get(other, (0.0, -1)), (near, row))
    findings = []
    for row, (near, other) in nearest.items():
        best = int(probabilities[row].argmax())
        suggested = best if best == data.label[other] else None
        reason = f"near-duplicate (cosine {near:.3f}) of {data.path[other]}, labelled {class_names[data.label[other]]}"
        findings.append(Finding(row, "near-duplicate", suggested, min(near, 1.0), reason))
    return findings


def _outliers(neighbours: Neighbours, count: int) -> list[Finding]:
    """Rows far from their neighbours: beyond Tukey's outer fence of all rows' mean distances."""
    distances = 1 - neighbours.nearest(min(_NEIGHBOURS, count - 1)).mean(axis=1)
    low, high = np.percentile(distances, [25, 75])
    fence = high + 3 * (high - low)
    rows = np.flatnonzero(distances > max(fence, 1e-6))
    reason = f"far from its {_NEIGHBOURS} neighbours (mean cosine {{:.3f}}, usual {1 - np.median(distances):.3f})"
    return [
        Finding(row, "outlier", None, float(1 - fence / distances[row]), reason.format(1 - distances[row]))
        for row in rows.tolist()
    ]


def _cross_validated(
    embedding: np.ndarray, label: np.ndarray, groups: np.ndarray, strength: float, seed: int
) -> np.ndarray:
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=1000))
    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed)
    return np.asarray(cross_val_predict(model, embedding, label, groups=groups, cv=folds, method="predict_proba"))


def _auroc(label: np.ndarray, probabilities: np.ndarray) -> float:
    from sklearn.metrics import roc_auc_score

    if probabilities.shape[1] == 2:
        return float(roc_auc_score(label, probabilities[:, 1]))
    return float(roc_auc_score(label, probabilities, multi_class="ovr"))


def _check_folds(data: Labelled, groups: np.ndarray, class_names: list[str]) -> None:
    counts = [len(np.unique(groups[data.label == label])) for label in range(len(class_names))]
    missing = [name for name, count in zip(class_names, counts, strict=True) if not count]
    if missing:
        raise StepError(f"the store has no images of {', '.join(missing)}; an audit compares the classes: embed them")
    for name, count in zip(class_names, counts, strict=True):
        if count < FOLDS:
            raise StepError(
                f"class {name!r} has {count} different images (near-duplicates count once), fewer than the {FOLDS} "
                "folds of the audit; embed more"
            )


def _check_head(head: Head) -> None:
    if head.task not in ("binary", "multiclass"):
        raise StepError(f"head {head.name} is {head.task}; the audit knows binary and multiclass heads")


def _report(findings: list[Finding], count: int, disputed: int) -> None:
    kinds = Counter(finding.kind for finding in findings)
    suspects = len({finding.row for finding in findings})
    counts = ", ".join(f"{number} {kind}" for kind, number in kinds.most_common())
    say(f"{suspects} of {count} labelled pictures to look at" + (f": {counts}" if counts else ""))
    if disputed:
        say(f"{disputed} files of pictures with several labels, which come first")


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m training.audit", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", required=True, help="a name in recipes/ or the path of a YAML file")
    parser.add_argument("--head", help="needed if the recipe has several heads")
    parser.add_argument("--store", type=Path, help="default: artifacts/embeddings/<encoder>")
    parser.add_argument("--out", type=Path, required=True, help="the CSV to write")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    arguments = _arguments(argv)
    recipe = load_recipe(arguments.recipe)
    head = recipe.head(arguments.head)
    _check_head(head)
    store = arguments.store or store_folder(recipe)
    encoder = read_encoder(encoder_folder(recipe)).fingerprint()
    embeddings = read_embeddings(HeadData(store, recipe.name, head.name), encoder)
    data = labelled_rows(embeddings, head.class_names, store)
    check_writable(arguments.out.parent)
    findings = audit_rows(data, head.class_names, head.fit.near_duplicate_cosine, head.fit.seed)
    disputed = disputed_rows(embeddings.pictures)
    write_findings(arguments.out, data, findings, head.class_names, disputed)
    _report(findings, len(data.label), len(disputed))
    print(arguments.out)


if __name__ == "__main__":
    sys.exit(run_step("training.audit", main, INTERRUPTED))
