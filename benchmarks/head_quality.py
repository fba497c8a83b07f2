"""Quality of a head that `training.fit` makes beside logistic regression and nearest neighbours on the same rows.

    make .trained/.installed
    python -m benchmarks.head_quality --stamps FOLDER --emoji FOLDER
    python -m benchmarks.head_quality --stamps FOLDER --emoji FOLDER --cache FOLDER --seeds 5 --recall

Embeddings are a trained DINOv2 ViT-S/14's at 224 pixels, kept in --cache. The pictures are not in this repository:

--stamps    Debian's package tuxpaint-stamps-default, unpacked: usr/share/tuxpaint/stamps. Photo or drawing; what is in
            a folder `cartoon` or below `symbols` is a drawing, which is roughly true
--emoji     npm's package emoji-datasource-google, unpacked: the folder with emoji.json. Nine categories, and living
            (people, animals and nature) or not

Each seed draws a split as `training.fit` does, near-duplicates on one side; all methods are measured on its test part.
Logistic regression is scikit-learn's on standardised embeddings of all other rows, its strength chosen by five-fold
log loss; nearest neighbours are 15 by cosine. Prints mean and standard error over the seeds, and the difference between
the head and logistic regression, seed by seed, in standard errors of that difference: above -1 is what is asked.
--recall adds the recall that `recall>=0.99` reaches on the test part over twenty seeds, on `living`. Last comes JSON.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.comparison import rounded
from benchmarks.machine import machine, print_result
from benchmarks.tables import print_table
from recipes.head_section import Fit, Head
from recipes.serving_section import Serving
from training.calibrate import ece
from training.errors import StepError
from training.head_fit import fit_head
from training.labelled import Labelled
from training.leakage import group_rows
from training.metrics import auroc, counts_of
from training.split import Split, split_rows

FIGURES = {"accuracy": 1, "auroc": 1, "log_loss": -1, "ece": -1}
"""The figures, and whether more of it is better (1) or less (-1)."""
STRENGTHS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
"""C of logistic regression, to choose among."""
NEIGHBOURS = 15
FOLDS = 5
_LIVING = ("People & Body", "Animals & Nature")
_RECALL_SEEDS = 20


@dataclass(frozen=True)
class Pictures:
    """A labelled set and its embeddings."""

    name: str
    data: Labelled
    class_names: list[str]
    groups: np.ndarray  # (n,) near-duplicates share a number

    def head(self, seed: int, **settings) -> Head:
        task = "binary" if len(self.class_names) == 2 else "multiclass"
        return Head(name="head", task=task, class_names=self.class_names, fit=Fit(seed=seed), **settings)

    def split(self, seed: int) -> Split:
        fit = Fit()
        fractions = fit.test_fraction, fit.validation_fraction
        return split_rows(self.data.label, self.data.sha256, self.class_names, *fractions, seed, self.groups)


Method = Callable[[Pictures, Split, int], np.ndarray]
"""Pictures, their split and a seed → (n test, classes) probabilities."""


def stamps_in(folder: Path) -> dict[Path, str]:
    """Pictures with their labels."""
    paths = sorted(folder.rglob("*.png"))
    drawn = [("cartoon" in path.parts) or path.relative_to(folder).parts[0] == "symbols" for path in paths]
    return {path: "drawing" if drawing else "photo" for path, drawing in zip(paths, drawn, strict=True)}


def emoji_in(folder: Path) -> dict[Path, str]:
    """Pictures with their categories."""
    pictures = folder / "img" / "google" / "64"
    entries = json.loads((folder / "emoji.json").read_text(encoding="utf-8"))
    named = {pictures / entry["image"]: entry["category"] for entry in entries if entry["category"] != "Component"}
    return {path: category for path, category in named.items() if path.is_file()}


def sets_of(arguments: argparse.Namespace) -> list[Pictures]:
    """The labelled sets of the folders that are given."""
    sets = []
    if arguments.stamps:
        sets.append(_pictures("stamps", stamps_in(arguments.stamps), arguments.cache))
    if arguments.emoji:
        categories = emoji_in(arguments.emoji)
        living = {path: "living" if category in _LIVING else "other" for path, category in categories.items()}
        sets += [_pictures(name, kinds, arguments.cache) for name, kinds in (("living", living), ("emoji", categories))]
    return sets


def clipsieve(pictures: Pictures, split: Split, seed: int) -> np.ndarray:
    fitted = fit_head(pictures.data, pictures.head(seed), "cpu", split)
    scores = fitted.scores.test_scores
    return scores if scores.shape[1] > 1 else np.hstack([1 - scores, scores])


def logistic_regression(pictures: Pictures, split: Split, seed: int) -> np.ndarray:
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, StratifiedGroupKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    rows, data = training_rows(split), pictures.data
    search = GridSearchCV(
        make_pipeline(StandardScaler(), LogisticRegression(max_iter=3000)),
        {"logisticregression__C": STRENGTHS},
        scoring="neg_log_loss",
        cv=StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed),
    )
    search.fit(data.embedding[rows], data.label[rows], groups=pictures.groups[rows])
    return np.asarray(search.predict_proba(data.embedding[split.test]))


def nearest_neighbours(pictures: Pictures, split: Split, seed: int) -> np.ndarray:
    """A row more for each class, spread over all, keeps its log loss finite."""
    from sklearn.neighbors import KNeighborsClassifier

    rows, data = training_rows(split), pictures.data
    known = KNeighborsClassifier(NEIGHBOURS, metric="cosine").fit(data.embedding[rows], data.label[rows])
    shares = np.asarray(known.predict_proba(data.embedding[split.test]))
    return (shares * NEIGHBOURS + 1 / shares.shape[1]) / (NEIGHBOURS + 1)


METHODS: dict[str, Method] = {
    "clipsieve": clipsieve,
    "logistic regression": logistic_regression,
    "nearest neighbours": nearest_neighbours,
}


def training_rows(split: Split) -> np.ndarray:
    """All rows but the test part's."""
    return np.sort(np.concatenate([split.train, split.validation]))


def figures_of(label: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """Accuracy, AUROC, log loss and ECE; of several classes the mean over them, one against the others."""
    classes = probabilities.shape[1]
    targets = label[:, None] == np.arange(classes)
    columns = [1] if classes == 2 else range(classes)
    own = np.clip(probabilities[np.arange(len(label)), label], 1e-12, 1)
    return {
        "accuracy": float((probabilities.argmax(axis=1) == label).mean()),
        "auroc": float(np.mean([auroc(counts_of(targets[:, at], probabilities[:, at])) for at in columns])),
        "log_loss": float(-np.log(own).mean()),
        "ece": float(np.mean([ece(probabilities[:, at], targets[:, at]) for at in columns])),
    }


def measured(pictures: Pictures, seeds: int) -> dict[str, np.ndarray]:
    """Each method's figures, (seeds, figures)."""
    rows: dict[str, list[list[float]]] = defaultdict(list)
    for seed in range(seeds):
        split = pictures.split(seed)
        for name, method in METHODS.items():
            figures = figures_of(pictures.data.label[split.test], method(pictures, split, seed))
            rows[name].append(list(figures.values()))
        print(f"{pictures.name}: seed {seed + 1} of {seeds}", file=sys.stderr)
    return {name: np.array(values) for name, values in rows.items()}


def lead(figures: dict[str, np.ndarray]) -> dict[str, float]:
    """How much better the head is than logistic regression, in standard errors of the seeds' differences."""
    difference = (figures["clipsieve"] - figures["logistic regression"]) * np.array(list(FIGURES.values()))
    errors = difference.std(axis=0, ddof=1) / np.sqrt(len(difference))
    return dict(zip(FIGURES, (difference.mean(axis=0) / np.maximum(errors, 1e-12)).tolist(), strict=True))


def realised_recalls(pictures: Pictures, seeds: int) -> tuple[list[float], int]:
    """The share of test positives that pass `recall>=0.99`, by seed, and seeds in which it could not be chosen."""
    recalls, refused = [], 0
    for seed in range(seeds):
        try:
            head = pictures.head(seed, operating_points=["recall>=0.99"])
            fitted = fit_head(pictures.data, head, "cpu", pictures.split(seed))
        except StepError:
            refused += 1
            continue
        positive = fitted.scores.test_targets[:, 0] > 0
        recalls.append(float((fitted.scores.test_scores[positive, 0] >= fitted.thresholds[0][0].value).mean()))
    return recalls, refused


def _pictures(name: str, labels: dict[Path, str], cache: Path | None) -> Pictures:
    class_names = sorted(set(labels.values()))
    contents = [hashlib.sha256(path.read_bytes()).hexdigest() for path in labels]
    embedding = _embeddings(list(labels), contents, cache)
    label = np.array([class_names.index(kind) for kind in labels.values()])
    data = Labelled(embedding, label, contents, np.arange(len(label)))
    return Pictures(name, data, class_names, group_rows(contents, embedding, Fit().near_duplicate_cosine).ids)


def _embeddings(paths: list[Path], contents: list[str], cache: Path | None) -> np.ndarray:
    """(n, 384) float32, from the cache if it has these very pictures."""
    file = cache / f"{hashlib.sha256(''.join(contents).encode()).hexdigest()[:16]}.npy" if cache else None
    if file is not None and file.is_file():
        return np.load(file)
    embedding = _embedded(paths)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        np.save(file, embedding)
    return embedding


def _embedded(paths: list[Path]) -> np.ndarray:
    import torch

    from benchmarks.trained_weights import dinov2_small
    from build.export import EncoderGraph
    from common.pixels import served_transform

    tower = dinov2_small()
    graph, transform = EncoderGraph([tower]).eval(), served_transform([tower.preprocessing], Serving())
    blocks = []
    with torch.inference_mode():
        for start in range(0, len(paths), 16):
            pixels = np.stack([transform(path.read_bytes()) for path in paths[start : start + 16]])
            blocks.append(graph(torch.from_numpy(pixels)).numpy())
            print(f"embedded {start + len(pixels)} of {len(paths)}", file=sys.stderr)
    return np.concatenate(blocks)


def _print_figures(name: str, figures: dict[str, np.ndarray]) -> None:
    rows = []
    for method, values in figures.items():
        errors = values.std(axis=0, ddof=1) / np.sqrt(len(values))
        cells = [f"{mean:.4f} ± {error:.4f}" for mean, error in zip(values.mean(axis=0), errors, strict=True)]
        rows.append({name: method} | dict(zip(FIGURES, cells, strict=True)))
    rows.append({name: "lead, standard errors"} | {key: f"{value:+.1f}" for key, value in lead(figures).items()})
    print_table(rows, {name: name, "accuracy": "accuracy", "auroc": "AUROC", "log_loss": "log loss", "ece": "ECE"})
    print()


def parsed(parser: argparse.ArgumentParser, argv: list[str] | None) -> argparse.Namespace:
    """The parser's arguments, and those of the pictures that `sets_of` reads."""
    parser.add_argument("--stamps", type=Path, help="folder of tuxpaint-stamps-default")
    parser.add_argument("--emoji", type=Path, help="folder of emoji-datasource-google")
    parser.add_argument("--cache", type=Path, help="folder that keeps the embeddings")
    arguments = parser.parse_args(argv)
    if not (arguments.stamps or arguments.emoji):
        parser.error("give --stamps or --emoji, or both")
    return arguments


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="splits")
    parser.add_argument("--recall", action="store_true", help="measure recall>=0.99 too")
    arguments = parsed(parser, argv)
    hardware, results = machine(), {}
    for pictures in sets_of(arguments):
        figures = measured(pictures, arguments.seeds)
        _print_figures(pictures.name, figures)
        means = {
            name: dict(zip(FIGURES, values.mean(axis=0).tolist(), strict=True)) for name, values in figures.items()
        }
        results[pictures.name] = {"rows": len(pictures.data.label), "means": means, "lead": lead(figures)}
        if arguments.recall and pictures.name == "living":
            recalls, refused = realised_recalls(pictures, _RECALL_SEEDS)
            mean, error = float(np.mean(recalls)), float(np.std(recalls, ddof=1) / np.sqrt(len(recalls)))
            results[pictures.name]["recall"] = {"mean": mean, "standard_error": error, "refused": refused}
            print(f"recall>=0.99: realised {mean:.4f} ± {error:.4f}, in {refused} of {_RECALL_SEEDS} seeds refused\n")
    print_result("benchmarks.head_quality", hardware, sets=rounded(results))


if __name__ == "__main__":
    main()
