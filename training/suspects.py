"""Labels that look wrong, by the head's task, from predictions of models that never saw the row nor a near-duplicate.

binary, multiclass   cleanlab's confident learning: the other class is likelier than the classes' usual confusion
multilabel           the same for each label on its own; the suggestion is the whole set
regression           cleanlab's score of the residual: beyond about four times the median one
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from recipes.head_section import GRADED, Task
from training.errors import StepError
from training.progress import say

FOLDS = 5

_STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0)  # C of logistic regression: the smaller, the smoother
_PENALTIES = np.logspace(-1, 5, 13)  # alpha of ridge regression
_ROWS_TO_CHOOSE = 20_000
_QUALITY_OF_MEDIAN = 0.05
"""A number whose score is below this share of the median score is suspect, as in cleanlab's Datalab."""


@dataclass(frozen=True)
class Labelled:
    """The rows that are audited."""

    embedding: np.ndarray  # (n, embed_dim) float32
    label: np.ndarray  # (n,) index into class_names; multilabel (n, L) 0 or 1; regression (n,) float
    text: list[str]
    """The labels as tables have them."""
    sha256: list[str]
    path: list[str]
    key: list[str]
    together: list[tuple[str, ...]] = field(default_factory=list)
    """Of each row the groups that the data sets name: a person, a burst, a video. Empty where they name none."""


@dataclass(frozen=True)
class Finding:
    """Something about one row that a person should look at."""

    row: int
    kind: str
    """`label`, `near-duplicate` or `outlier`."""
    suggested: str | None
    """A label as tables have it, when another than the given one is likely."""
    confidence: float
    reason: str


@dataclass(frozen=True)
class Classes:
    """The labels of a binary or multiclass head."""

    data: Labelled
    class_names: list[str]
    probabilities: np.ndarray  # (n, classes)

    def findings(self) -> list[Finding]:
        from cleanlab.filter import find_label_issues  # slow to import

        rows = np.flatnonzero(find_label_issues(self.data.label, self.probabilities, n_jobs=1))
        findings = []
        for row in rows.tolist():
            best = int(self.probabilities[row].argmax())
            if best != self.data.label[row]:
                name, confidence = self.class_names[best], float(self.probabilities[row, best])
                findings.append(Finding(row, "label", name, confidence, f"looks like {name}"))
        return findings

    def differ(self, rows: np.ndarray, others: np.ndarray) -> np.ndarray:
        """(n,) bool: each row's label is another than its partner's."""
        return self.data.label[rows] != self.data.label[others]

    def favours(self, row: int, other: int) -> bool:
        """Return True if the other row's label is the likely one of this row."""
        return bool(self.probabilities[row].argmax() == self.data.label[other])


@dataclass(frozen=True)
class LabelSets:
    """The label sets of a multilabel head."""

    data: Labelled
    class_names: list[str]
    probabilities: np.ndarray  # (n, L); of a label that is not audited 0 or 1, as given
    audited: list[int]
    """Columns of the labels that are."""

    def findings(self) -> list[Finding]:
        from cleanlab.multilabel_classification.filter import find_multilabel_issues_per_class  # slow to import

        sets = [np.flatnonzero(row).tolist() for row in self.data.label[:, self.audited]]
        wrong = np.zeros(self.data.label.shape, bool)
        wrong[:, self.audited] = find_multilabel_issues_per_class(sets, self.probabilities[:, self.audited], n_jobs=1)
        wrong &= self._likely() != self.data.label
        return [self._finding(row, wrong[row]) for row in np.flatnonzero(wrong.any(axis=1)).tolist()]

    def differ(self, rows: np.ndarray, others: np.ndarray) -> np.ndarray:
        """(n,) bool: each row's label set is another than its partner's."""
        return (self.data.label[rows] != self.data.label[others]).any(axis=1)

    def favours(self, row: int, other: int) -> bool:
        """Return True if the other row's label set is the likely one of this row."""
        return bool((self._likely()[row] == self.data.label[other]).all())

    def _likely(self) -> np.ndarray:
        return (self.probabilities > 0.5).astype(np.int64)

    def _finding(self, row: int, wrong: np.ndarray) -> Finding:
        """The row with the labels that look wrong turned over; as sure as the surest of them."""
        given, probability = self.data.label[row], self.probabilities[row]
        sure = np.where(given == 1, 1 - probability, probability)
        turned = sorted(np.flatnonzero(wrong).tolist(), key=lambda label: -sure[label])
        words = [
            f"looks {'unlike' if given[label] else 'like'} {self.class_names[label]} ({sure[label]:.2f})"
            for label in turned
        ]
        suggested = [name for name, is_on in zip(self.class_names, given ^ wrong, strict=True) if is_on]
        return Finding(row, "label", json.dumps(suggested), float(sure[turned[0]]), ", ".join(words))


@dataclass(frozen=True)
class Numbers:
    """The labels of a regression."""

    data: Labelled
    prediction: np.ndarray  # (n,)

    def findings(self) -> list[Finding]:
        from cleanlab.regression.rank import get_label_quality_scores  # slow to import

        usual = self._usual
        quality = get_label_quality_scores(self.data.label / usual, self.prediction / usual, method="residual")
        rows = np.flatnonzero(quality < _QUALITY_OF_MEDIAN * np.median(quality))
        return [
            Finding(row, "label", self._shown(row), float(1 - quality[row]), self._reason(row)) for row in rows.tolist()
        ]

    def differ(self, rows: np.ndarray, others: np.ndarray) -> np.ndarray:
        """(n,) bool: each row's number is further from its partner's than two that each are nearly suspect."""
        beyond = self._usual * (1 - math.log(_QUALITY_OF_MEDIAN)) * math.sqrt(2)
        return np.abs(self.data.label[rows] - self.data.label[others]) > beyond

    def favours(self, row: int, other: int) -> bool:
        """Return True if the other row's number is nearer to this row's prediction than its own."""
        own, its = (abs(self.prediction[row] - self.data.label[n]) for n in (row, other))
        return bool(its < own)

    @property
    def _usual(self) -> float:
        """The median distance of a label from its prediction."""
        return max(float(np.median(np.abs(self.prediction - self.data.label))), 1e-12)

    def _reason(self, row: int) -> str:
        return f"predicted {self._shown(row)}; half of all labels are within {self._usual:.3g} of their prediction"

    def _shown(self, row: int) -> str:
        """The prediction to three digits of the labels' standard deviation."""
        digits = 2 - math.floor(math.log10(float(self.data.label.std())))
        return repr(round(float(self.prediction[row]), digits))


Score = Callable[[np.ndarray, np.ndarray], float]
Verdict = Classes | LabelSets | Numbers


def verdict_of(data: Labelled, class_names: list[str], task: Task, groups: np.ndarray, seed: int) -> Verdict:
    """Judge the labels by cross-validated models.

    Args:
        data: the labelled rows.
        class_names: of the head.
        task: of the head.
        groups: (n,) rows of one group are never on both sides of a fold.
        seed: of the folds.

    Raises:
        StepError: fewer groups than folds, of a class, of all labels of a multilabel head, or of a regression's rows.
    """
    if task in GRADED:
        _check_numbers(data, groups)
        return Numbers(data, predicted_numbers(data.embedding, data.label, groups, seed))
    if task == "multilabel":
        return LabelSets(data, class_names, *_label_probabilities(data, class_names, groups, seed))
    _check_classes(data, groups, class_names)
    return Classes(data, class_names, out_of_fold(data.embedding, data.label, groups, seed, auroc))


def out_of_fold(embedding: np.ndarray, label: np.ndarray, groups: np.ndarray, seed: int, score: Score) -> np.ndarray:
    """(n, classes) probabilities of each row by a logistic regression that saw no row of its group.

    Its strength of regularisation is the one with the best out-of-fold score. Measured with planted labels: AUROC finds
    more of balanced classes, `likelihood` of rare ones, where the best ranking often comes with useless probabilities.
    """
    sample = np.sort(np.random.default_rng(seed).permutation(len(label))[:_ROWS_TO_CHOOSE])
    chosen = [_cross_validated(embedding[sample], label[sample], groups[sample], c, seed) for c in _STRENGTHS]
    best = int(np.argmax([score(label[sample], probabilities) for probabilities in chosen]))
    if len(sample) == len(label):
        return chosen[best]
    return _cross_validated(embedding, label, groups, _STRENGTHS[best], seed)


def predicted_numbers(embedding: np.ndarray, label: np.ndarray, groups: np.ndarray, seed: int) -> np.ndarray:
    """(n,) the number of each row by a ridge regression that saw no row of its group."""
    from sklearn.linear_model import RidgeCV
    from sklearn.model_selection import GroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), RidgeCV(_PENALTIES))
    folds = GroupKFold(FOLDS, shuffle=True, random_state=seed)
    return np.asarray(cross_val_predict(model, embedding.astype(np.float64), label, groups=groups, cv=folds))


def auroc(label: np.ndarray, probabilities: np.ndarray) -> float:
    """AUROC of (n, classes) probabilities; of several classes the mean of each against the rest."""
    from sklearn.metrics import roc_auc_score

    if probabilities.shape[1] == 2:
        return float(roc_auc_score(label, probabilities[:, 1]))
    return float(roc_auc_score(label, probabilities, multi_class="ovr"))


def likelihood(label: np.ndarray, probabilities: np.ndarray) -> float:
    """Mean log likelihood of the labels."""
    from sklearn.metrics import log_loss

    return -float(log_loss(label, probabilities))


def _label_probabilities(
    data: Labelled, class_names: list[str], groups: np.ndarray, seed: int
) -> tuple[np.ndarray, list[int]]:
    """(n, L) of each label on its own, and the columns of the labels that enough images have, and lack, for folds."""
    probabilities = data.label.astype(np.float64)
    audited, left_out = [], []
    for column, name in enumerate(class_names):
        label = data.label[:, column]
        fewest = min(len(np.unique(groups[label == value])) for value in (0, 1))
        if fewest < FOLDS:
            left_out.append(f"{name} ({fewest})")
            continue
        audited.append(column)
        probabilities[:, column] = out_of_fold(data.embedding, label, groups, seed, likelihood)[:, 1]
    few = f"fewer different images with it or without it than the {FOLDS} folds of the audit: {', '.join(left_out)}"
    if not audited:
        raise StepError(f"every label has {few}; embed more")
    if left_out:
        say(f"labels that are not audited, with {few}")
    return probabilities, audited


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


def _check_classes(data: Labelled, groups: np.ndarray, class_names: list[str]) -> None:
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


def _check_numbers(data: Labelled, groups: np.ndarray) -> None:
    count = len(np.unique(groups))
    if count < 2 * FOLDS:
        raise StepError(
            f"the store has {count} different labelled images (near-duplicates count once), fewer than the "
            f"{2 * FOLDS} that the {FOLDS} folds of the audit need; embed more"
        )
    if data.label.min() == data.label.max():
        raise StepError(f"all {len(data.label)} labels are {data.text[0]}; an audit of a regression needs several")
