"""Embedding store → list of rows to look at: likely wrong labels, contradicting duplicates, outliers.

    python -m training.audit --recipe nsfw-vit-b-32 --out audit.csv
    # look at the images; put an x under `accept`, or the right class under `label`; then
    python -m training.relabel --recipe nsfw-vit-b-32 audit.csv

A label is suspect when a model that never saw the row, nor a near-duplicate of it, nor another of its group (a person,
a video: --group-column of training.embed), disagrees by more than it usually does (cleanlab): with a class, with each
label of a set on its own, or with a number. The CSV has path, key,
given_label, suggested_label, confidence (0 to 1, of the first reason), reason, and the empty columns accept and label.
Files of one content that have several labels come first, then the rows with a suggestion, then the others; each the
surest first. Labels are written as in tables: a name, a list of names (`["gore", "nude"]`), or a number.
"""

from __future__ import annotations

import argparse
import csv
import io
import sys
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np

from common.manifest import read_encoder, write_atomically
from common.paths import encoder_folder
from common.writing import check_writable
from recipes.arguments import add_recipe_options, recipe_of
from recipes.errors import run_step
from recipes.head_section import Head, Task
from training.errors import INTERRUPTED, StepError
from training.labels import LabelError, label_from, label_matrix
from training.leakage import group_rows
from training.neighbours import Neighbours, unit_vectors
from training.progress import say
from training.sources import HeadData
from training.store import store_folder
from training.store_view import Embeddings, Pictures, read_embeddings
from training.suspects import Finding, Labelled, Verdict, verdict_of

COLUMNS = ("path", "key", "given_label", "suggested_label", "confidence", "reason", "accept", "label")

_NEIGHBOURS = 10


def labelled_rows(embeddings: Embeddings, head: Head, store: Path) -> Labelled:
    """The rows that have a label, checked.

    Raises:
        StepError: a label that the head cannot have, or an embedding that is not finite; names the path.
    """
    rows = [row for row, label in enumerate(embeddings.label) if label is not None]
    texts = [str(embeddings.label[row]) for row in rows]
    values = []
    for row, text in zip(rows, texts, strict=True):
        try:
            values.append(_value_of(text, head))
        except LabelError as error:
            raise StepError(
                f"{store}: {embeddings.path[row]}: {error}; correct it with training.relabel, or the recipe"
            ) from error
    matrix = embeddings.embedding[rows]
    broken = np.flatnonzero(~np.isfinite(matrix).all(axis=1))
    if len(broken):
        raise StepError(f"{store}: the embedding of {embeddings.path[rows[broken[0]]]} is not finite; embed it again")
    return Labelled(
        embedding=matrix,
        label=np.array(values, np.float64 if head.is_graded else np.int64),
        text=texts,
        sha256=[embeddings.sha256[row] for row in rows],
        path=[embeddings.path[row] for row in rows],
        key=[embeddings.key[row] for row in rows],
        together=[embeddings.pictures.group[row] for row in rows],
    )


def audit_rows(
    data: Labelled, class_names: list[str], cosine: float | None, seed: int = 0, task: Task = "binary"
) -> list[Finding]:
    """Everything suspect, in no order; a row may have several findings.

    Args:
        data: the labelled rows.
        class_names: of the head.
        cosine: embeddings at least this close are near-duplicates; None looks at content only.
        seed: of the folds.
        task: of the head.

    Raises:
        StepError: a class is missing, or there are fewer groups of duplicates than there are folds.
    """
    groups = group_rows(data.sha256, data.embedding, cosine, data.together).ids
    verdict = verdict_of(data, class_names, task, groups, seed)
    neighbours = Neighbours(unit_vectors(data.embedding))
    findings = verdict.findings()
    if cosine is not None:
        findings += _near_conflicts(data, verdict, neighbours, cosine)
    return findings + _outliers(neighbours, len(data.label))


def write_findings(path: Path, data: Labelled, findings: list[Finding], disputed: list[list[str]]) -> None:
    """One line for each row that has findings, after the `disputed_rows`: those with a suggestion first."""
    of_row: dict[int, list[Finding]] = defaultdict(list)
    for finding in sorted(findings, key=lambda finding: (finding.suggested is None, -finding.confidence)):
        of_row[finding.row].append(finding)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(disputed)
    for row, found in of_row.items():  # in the order of each row's first finding
        reason = "; ".join(finding.reason for finding in found)
        suggested, confidence = found[0].suggested or "", f"{found[0].confidence:.4f}"
        writer.writerow([data.path[row], data.key[row], data.text[row], suggested, confidence, reason, "", ""])
    write_atomically(path, text.getvalue().encode())


def disputed_rows(pictures: Pictures) -> list[list[str]]:
    """COLUMNS of each file of a content to which the data sets give several labels, and no correction one."""
    settled = {content for content, corrected in zip(pictures.sha256, pictures.corrected, strict=True) if corrected}
    rows = []
    for content, files in pictures.disputed.items():
        if content not in settled:
            labels = ", ".join(f"{path} is labelled {label}" for path, label in files[:3])
            rows += [[path, "", label, "", "1.0000", f"same content: {labels}", "", ""] for path, label in files]
    return rows


def _near_conflicts(data: Labelled, verdict: Verdict, neighbours: Neighbours, cosine: float) -> list[Finding]:
    """Find each row's nearest near-duplicate with another label."""
    nearest: dict[int, tuple[float, int]] = {}
    for rows, others, cosines in neighbours.pairs(cosine):
        differ = verdict.differ(rows, others)
        pairs = zip(rows[differ].tolist(), others[differ].tolist(), cosines[differ].tolist(), strict=True)
        for row, other, near in pairs:
            nearest[row] = max(nearest.get(row, (0.0, -1)), (near, other))
            nearest[other] = max(nearest.get(other, (0.0, -1)), (near, row))
    findings = []
    for row, (near, other) in nearest.items():
        suggested = data.text[other] if verdict.favours(row, other) else None
        reason = f"near-duplicate (cosine {near:.3f}) of {data.path[other]}, labelled {data.text[other]}"
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


def _value_of(text: str, head: Head) -> int | float | list[int]:
    """A label as the store has it → its number or numbers; LabelError if the head cannot have it."""
    if head.is_graded:
        return float(label_from(text, head) or "nan")
    if head.task == "multilabel":
        return label_matrix([text], head.class_names)[0].tolist()
    if text not in head.class_names:
        raise LabelError(f"label {text!r} is not one of the head's class_names {head.class_names}")
    return head.class_names.index(text)


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
    add_recipe_options(parser)
    parser.add_argument("--head", help="needed if the recipe has several heads")
    parser.add_argument("--store", type=Path, help="default: artifacts/embeddings/<encoder>")
    parser.add_argument("--out", type=Path, required=True, help="the CSV to write")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    arguments = _arguments(argv)
    recipe = recipe_of(arguments)
    head = recipe.head(arguments.head)
    store = arguments.store or store_folder(recipe)
    encoder = read_encoder(encoder_folder(recipe)).fingerprint()
    embeddings = read_embeddings(HeadData(store, recipe.name, head.name), encoder)
    data = labelled_rows(embeddings, head, store)
    check_writable(arguments.out.parent)
    findings = audit_rows(data, head.class_names, head.fit.near_duplicate_cosine, head.fit.seed, head.task)
    disputed = disputed_rows(embeddings.pictures)
    write_findings(arguments.out, data, findings, disputed)
    _report(findings, len(data.label), len(disputed))
    print(arguments.out)


if __name__ == "__main__":
    sys.exit(run_step("training.audit", main, INTERRUPTED))
