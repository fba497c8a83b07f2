"""The end of `make demo`: serves a demo recipe and scores its held-out pictures over gRPC and HTTP.

    python -m serving.demo --images artifacts/demo/images/held_out
    python -m serving.demo --recipe solar-vit-s-14 --images artifacts/solar-vit-s-14/images/held_out

Uses the command line a user would use, compares both protocols, and writes scores.csv and scores.png.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.csv

from common.paths import ARTIFACTS, repository_folder
from recipes.arguments import add_recipe_options, recipe_of
from recipes.errors import run_step
from recipes.schema import Recipe
from serving.embedded import EmbeddedServer, ServerSettings
from serving.triton_wheel import ServingError

RECIPE = "demo"
RESAMPLINGS = 2000
TOLERANCE = 1e-5  # a score may differ in its last digits with the batch it happened to be in


def score(images: Path, url: str, protocol: str, out: Path) -> list[dict]:
    """Rows of `clipsieve score`, the command itself.

    Raises:
        ServingError: it failed.
    """
    command = [str(Path(sys.executable).parent / "clipsieve"), "score", str(images)]
    command += ["--url", url, "--protocol", protocol, "--out", str(out), "--overwrite"]
    try:
        subprocess.run(command, check=True)
    except subprocess.CalledProcessError as error:
        raise ServingError(str(error)) from error
    return pyarrow.csv.read_csv(out).to_pylist()


def largest_difference(rows: list[dict], others: list[dict]) -> float:
    """Largest difference of the probabilities, row by row; infinite if the tables disagree on anything else."""
    for row, other in zip(rows, others, strict=True):
        if any(row[key] != other[key] for key in ("image_path", "error", "model_version")):
            return float("inf")
    return max(abs(row["probability"] - other["probability"]) for row, other in zip(rows, others, strict=True))


def label_of(row: dict) -> str:
    """The class a held-out picture was drawn for: its folder."""
    return Path(row["image_path"]).parent.name


def plot_scores(rows: list[dict], recipe: Recipe, path: Path) -> None:
    """Histogram of the probabilities, by true class."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes, class_names = figure.subplots(), recipe.heads[0].class_names
    groups = [[row["probability"] for row in rows if label_of(row) == name] for name in class_names]
    axes.hist(groups, bins=25, range=(0, 1), label=class_names, stacked=False)
    title = f"{recipe.name}: served scores, held-out pictures"
    axes.set(xlabel=f"probability of {class_names[1]}", ylabel="pictures", title=title)
    axes.legend(loc="upper center")
    figure.savefig(path, dpi=120)


def auroc_of(scores: np.ndarray, positive: np.ndarray) -> float:
    """The chance that a picture of the class scores above one that is not of it; equal scores count half."""
    above = scores[positive][:, None] - scores[~positive]
    return float((above > 0).mean() + (above == 0).mean() / 2)


def auroc_interval(scores: np.ndarray, positive: np.ndarray) -> tuple[float, float]:
    """Where 95 % of the areas lie when as many pictures of each class are drawn again, with replacement."""
    rng, (above, below) = np.random.default_rng(0), (scores[positive], scores[~positive])
    areas = []
    for _ in range(RESAMPLINGS):
        drawn = np.concatenate([rng.choice(above, len(above)), rng.choice(below, len(below))])
        areas.append(auroc_of(drawn, np.arange(len(drawn)) < len(above)))
    low, high = np.quantile(areas, [0.025, 0.975])
    return float(low), float(high)


def table(rows: list[dict], class_names: list[str]) -> str:
    lines = [f"{'true class':<12}{'pictures':>9}{'mean':>8}{'right':>8}"]
    for name in class_names:
        group = [row for row in rows if label_of(row) == name]
        mean = sum(row["probability"] for row in group) / len(group)
        right = sum(row["class_name"] == name for row in group)
        lines.append(f"{name:<12}{len(group):>9}{mean:>8.3f}{right:>5}/{len(group)}")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m serving.demo", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=Path, required=True, help="a folder with one sub-folder per class")
    add_recipe_options(parser, default=RECIPE, help="built; two classes (default %(default)s)")
    arguments = parser.parse_args(argv)
    recipe = recipe_of(arguments)
    class_names, output = recipe.heads[0].class_names, ARTIFACTS / recipe.name
    with EmbeddedServer(repository_folder(recipe), ServerSettings.on_free_ports(output / "tritonserver.log")) as server:
        rows = score(arguments.images, server.grpc_url, "grpc", output / "scores.csv")
        http_rows = score(arguments.images, server.http_url, "http", output / "scores-http.csv")
    plot_scores(rows, recipe, output / "scores.png")
    probabilities = np.array([row["probability"] for row in rows])
    positive = np.array([label_of(row) == class_names[1] for row in rows])
    low, high = auroc_interval(probabilities, positive)
    right = sum(row["class_name"] == label_of(row) for row in rows)
    difference = largest_difference(rows, http_rows)
    print(f"\n{recipe.notice}\n\n{table(rows, class_names)}")
    print(
        f"AUROC {auroc_of(probabilities, positive):.3f} (95 %: {low:.3f} to {high:.3f}), accuracy "
        f"{right / len(rows):.3f} on {len(rows)} held-out pictures; gRPC and HTTP differ by at most {difference:.1g}"
    )
    print(f"scores:  {output / 'scores.csv'}\npicture: {output / 'scores.png'}")
    return 0 if difference <= TOLERANCE else 1


if __name__ == "__main__":
    sys.exit(run_step("serving.demo", main))
