"""Quality of a head from words with 0, 5, 20 and 100 labelled pictures of a class, beside plain training on them.

    make .trained/.installed
    python -m benchmarks.few_shot --stamps FOLDER --emoji FOLDER
    python -m benchmarks.few_shot --stamps FOLDER --emoji FOLDER --cache FOLDER --seeds 10 --means 3

Pictures and embeddings are those of `benchmarks.head_quality`, a trained DINOv2 ViT-S/14's. It has no text tower: the
texts are imitated by the means of --means pictures of each class, which nothing else sees, and their logit scale by the
one of least log loss on the quarter that those pictures are from. How good real texts are depends on the words; these
figures say what labels add to a start that is about right, and whether the start is ever worse than none.

Each seed cuts the pictures into a quarter for the texts, a quarter to measure on and a half to draw labels from,
near-duplicates on one side. `texts` keeps the weights and, with labels, calibrates them; `from texts` is `fit.start:
prompts`; `plain` is the same fit without the texts. Prints means with 95 % intervals over the seeds. Last comes JSON.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict

import numpy as np
from scipy.stats import t as student

from benchmarks.comparison import rounded
from benchmarks.head_quality import Pictures, figures_of, parsed, sets_of
from benchmarks.machine import machine, print_result
from benchmarks.tables import print_table
from common.manifest import EncoderFingerprint
from common.text_embeddings import TextEmbeddings, TextsDescription
from recipes.head_section import Fit, Head
from training.calibrate import activated, fit_calibration
from training.folds import folds_of
from training.head_fit import fit_head
from training.labelled import targets_of
from training.split import Split
from training.text_weights import TextWeights, text_weights

LABELS = (5, 20, 100)
"""Labelled pictures of each class."""
METHODS = ("texts", "from texts", "plain")
FIGURES = {"accuracy": "accuracy", "auroc": "AUROC", "log_loss": "log loss"}

Figures = dict[tuple[int, str], np.ndarray]
"""(labels, method) → (seeds, figures)."""


def head_of(pictures: Pictures, seed: int, method: str) -> Head:
    """The recipe's entry for a method; of `plain` one without prompts."""
    names = pictures.class_names
    words = {} if method == "plain" else {"prompts": {name: name for name in names}, "templates": []}
    task = "binary" if len(names) == 2 else "multiclass"
    fit = Fit(seed=seed, start="prompts" if method == "from texts" else None)
    return Head.model_validate({"name": "head", "task": task, "class_names": names, "fit": fit.model_dump()} | words)


def imitated_texts(pictures: Pictures, rows: np.ndarray, means: int, head: Head) -> TextWeights:
    """Class means of a few of the rows, with the logit scale that the rows themselves want."""
    embedding, label = pictures.data.embedding[rows], pictures.data.label[rows]
    directions = [embedding[label == kind][:means].mean(axis=0) for kind in range(len(pictures.class_names))]
    unit = np.stack([row / np.linalg.norm(row) for row in directions]).astype(np.float32)
    encoder = EncoderFingerprint(
        id="dinov2", weights_sha256=None, preprocessing="", normalize=True, embed_dim=embedding.shape[1]
    )
    description = TextsDescription(
        encoder=encoder, texts=pictures.class_names, cut=[], logit_scale=1, logit_bias=None, versions={}
    )
    weights = text_weights(head, TextEmbeddings(description, unit))
    targets = targets_of(label, head.task, len(head.labels))
    scale = fit_calibration("temperature", weights.logits(embedding), targets, weights.activation).scale[0]
    return text_weights(head, TextEmbeddings(description.model_copy(update={"logit_scale": scale}), unit))


def drawn(label: np.ndarray, rows: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` of the rows of each class, or all where there are fewer."""
    parts = [rng.permutation(rows[label[rows] == kind])[:count] for kind in np.unique(label)]
    return np.sort(np.concatenate(parts))


def measured(pictures: Pictures, seeds: int, means: int) -> Figures:
    """Figures of every method at every number of labels."""
    results: dict[tuple[int, str], list[list[float]]] = defaultdict(list)
    label = pictures.data.label
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        quarter = folds_of(label, pictures.groups, 4, seed)
        of_texts, test, pool = (
            rng.permutation(np.flatnonzero(part)) for part in (quarter == 0, quarter == 1, quarter > 1)
        )
        words = imitated_texts(pictures, of_texts, means, head_of(pictures, seed, "texts"))
        alone = activated(words.logits(pictures.data.embedding[test]), words.activation)
        results[0, "texts"].append(_figures(label[test], alone))
        for count in LABELS:
            rows = drawn(label, pool, count, rng)
            cut = folds_of(label[rows], pictures.groups[rows], 5, seed) == 0
            split = Split(rows[~cut], rows[cut], np.sort(test))
            for method in METHODS:
                start = None if method == "plain" else words
                head = head_of(pictures, seed, method)
                scores = fit_head(pictures.data, head, "cpu", split, pictures.groups, given=start).scores.test_scores
                results[count, method].append(_figures(label[split.test], scores))
        print(f"{pictures.name}: seed {seed + 1} of {seeds}", file=sys.stderr)
    return {key: np.array(rows) for key, rows in results.items()}


def interval(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(seeds, figures) → mean and half the width of its 95 % interval, by Student's t."""
    error = values.std(axis=0, ddof=1) / np.sqrt(len(values))
    return values.mean(axis=0), error * student.ppf(0.975, len(values) - 1)


def _figures(label: np.ndarray, scores: np.ndarray) -> list[float]:
    probabilities = scores if scores.shape[1] > 1 else np.hstack([1 - scores, scores])
    figures = figures_of(label, probabilities)
    return [figures[name] for name in FIGURES]


def _print_figures(name: str, figures: Figures) -> None:
    rows = []
    for (count, method), values in figures.items():
        cells = [f"{mean:.3f} ± {half:.3f}" for mean, half in zip(*interval(values), strict=True)]
        rows.append({"labels": str(count), name: method} | dict(zip(FIGURES, cells, strict=True)))
    print_table(rows, {"labels": "labels", name: name} | FIGURES)
    print()


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="draws")
    parser.add_argument("--means", type=int, default=30, help="pictures of a class whose mean imitates a text")
    arguments = parsed(parser, argv)
    hardware, results = machine(), {}
    for pictures in sets_of(arguments):
        figures = measured(pictures, arguments.seeds, arguments.means)
        _print_figures(pictures.name, figures)
        results[pictures.name] = {
            f"{method}, {count} labels": {
                name: {"mean": float(mean), "half_interval_95": float(half)}
                for name, mean, half in zip(FIGURES, *interval(values), strict=True)
            }
            for (count, method), values in figures.items()
        }
    print_result("benchmarks.few_shot", hardware, means=arguments.means, sets=rounded(results))


if __name__ == "__main__":
    main()
