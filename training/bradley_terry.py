"""Pairwise choices → a score for each picture, by Bradley and Terry's model.

    python -m training.bradley_terry choices.csv --out scores.csv

The model says that a picture of score a wins against one of score b with the probability 1 / (1 + exp(b - a)). Scores
are the most likely ones under a normal prior around 0, so that a picture which never lost, or never won, has a finite
score, and one of few choices stays near 0. Pictures that no chain of choices joins have scores that say nothing of one
another.

Reads a table with the columns winner and loser, writes path and score, the best first. Prints the path of the file.
"""

from __future__ import annotations

import argparse
import csv
import io
import sys
from pathlib import Path

import numpy as np

from common.manifest import write_atomically
from recipes.errors import run_step
from training.choices import Choices, read_choices
from training.errors import INTERRUPTED
from training.progress import say

PRIOR_STD = 1.5
"""Standard deviation of the scores before any choice is seen; 1.5 apart is a win of 82 %."""
_MOST_NAMED = 3


def bradley_terry(pairs: np.ndarray, count: int) -> np.ndarray:
    """(m, 2) int rows of winner and loser among `count` pictures → (count,) float64 scores, 0 on average in a group."""
    from scipy.optimize import minimize  # slow to import

    winner, loser = pairs[:, 0], pairs[:, 1]

    def objective(score: np.ndarray) -> tuple[float, np.ndarray]:
        lead = score[winner] - score[loser]
        surprise = np.exp(-np.logaddexp(0, lead))  # 1 - the probability of what was chosen
        pull = np.bincount(winner, surprise, count) - np.bincount(loser, surprise, count)
        loss = np.logaddexp(0, -lead).sum() + np.square(score / PRIOR_STD).sum() / 2
        return float(loss), score / PRIOR_STD**2 - pull

    if not len(pairs):
        return np.zeros(count)
    solution = minimize(
        objective, np.zeros(count), jac=True, method="L-BFGS-B", options={"maxiter": 500, "ftol": 1e-12, "gtol": 1e-6}
    )
    return np.asarray(solution.x)


def groups_of(pairs: np.ndarray, count: int) -> np.ndarray:
    """(count,) number of the group of each picture that chains of choices join, 0 for the largest group."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    graph = coo_matrix((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    groups = connected_components(graph, directed=False)[1]
    by_size = np.argsort(-np.bincount(groups), kind="stable")
    return np.argsort(by_size)[groups]


def contradictions(pairs: np.ndarray) -> int:
    """Pairs of pictures that were decided both ways."""
    distinct = np.unique(pairs, axis=0)
    return (len(distinct) - len(np.unique(np.sort(distinct, axis=1), axis=0))) if len(pairs) else 0


def choice_texts(pairs: np.ndarray, names: list[str]) -> list[str]:
    """Sentences on what choices say of pictures.

    Args:
        pairs: (m, 2) rows of winner and loser, at least one.
        names: of all pictures; those in no pair do not count.
    """
    rows = np.unique(pairs)
    texts = [f"{len(pairs)} between {len(rows)} pictures"]
    if both := contradictions(pairs):
        texts.append(f"{both} pairs were decided both ways; each decision counts")
    groups = groups_of(np.searchsorted(rows, pairs), len(rows))
    if groups.max() > 0:
        texts.append(_groups_text(groups, [names[row] for row in rows]))
    return texts


def _groups_text(groups: np.ndarray, names: list[str]) -> str:
    sizes = np.bincount(groups)
    named = [names[int(np.flatnonzero(groups == group)[0])] for group in range(1, min(len(sizes), _MOST_NAMED + 1))]
    listed = ", ".join(f"{name} ({size})" for name, size in zip(named, sizes[1:].tolist(), strict=False))
    more = " …" if len(sizes) > _MOST_NAMED + 1 else ""
    return (
        f"{len(sizes)} groups of pictures that no choice joins, of {sizes[0]} and beside it those of {listed}{more}: "
        "scores of two groups say nothing of one another; choose between some of their pictures"
    )


def scores_csv(choices: Choices) -> str:
    """A table of path and score, the best first."""
    scores = bradley_terry(choices.pairs, len(choices.paths))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["path", "score"])
    writer.writerows([choices.paths[row], repr(float(scores[row]))] for row in np.argsort(-scores, kind="stable"))
    return text.getvalue()


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m training.bradley_terry",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("choices", type=Path, help="table with the columns winner and loser")
    parser.add_argument("--out", type=Path, required=True, help="CSV of path and score")
    arguments = parser.parse_args(argv)
    choices = read_choices(arguments.choices)
    for problem in choices.problems:
        say(f"{problem.path}: {problem.code}: {problem.message}")
    for text in choice_texts(choices.pairs, choices.paths):
        say(f"choices: {text}")
    write_atomically(arguments.out, scores_csv(choices).encode(errors="surrogateescape"))
    print(arguments.out)


if __name__ == "__main__":
    sys.exit(run_step("training.bradley_terry", main, INTERRUPTED))
