"""Scores of pictures for texts that are typed now, to find the wording of a head's `prompts`, without a server.

    python -m training.prompts --recipe policy-vit-b-32 --images photos 'a map' 'a street map' 'a photo of people'
    python -m training.prompts --recipe policy-vit-b-32 'a map' 'a street map'       # how near the texts are

Each text is a class of its own, taken as it is typed, without templates. The scores of a picture are the shares of a
softmax with the checkpoint's logit scale, and with SigLIP's bias a sigmoid's, one for each text; of a single text it is
the cosine, which tells which of two pictures is nearer. A picture's embedding is kept with those of the last call, so
that the next wording takes seconds. The encoder must have been exported: make encoder RECIPE=...

A text that the tower cannot read to its end is named. Prints a table, or with --format csv one row a picture; what
cannot be decoded is told on stderr.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from clipsieve.inputs import IMAGE_SUFFIXES
from clipsieve.paths import text_from_path
from common import paths
from common.manifest import read_encoder, write_atomically
from common.pixels import served_module, served_transform
from common.text_embeddings import TextEmbeddings, read_texts
from recipes.arguments import add_recipe_options, recipe_of, recipe_options
from recipes.errors import run_step
from recipes.prompts import why_no_texts
from recipes.schema import Recipe
from training.calibrate import activated
from training.encoder import OnnxEncoder
from training.errors import INTERRUPTED, StepError
from training.files_below import files_below
from training.progress import say, tracked


def embedded_texts(recipe_options: list[str], texts: list[str]) -> TextEmbeddings:
    """The texts' embeddings, by build.texts in a process of its own, which has the text tower and the same recipe.

    Raises:
        StepError: it failed, and has said why.
    """
    with tempfile.TemporaryDirectory(prefix="clipsieve-texts-") as folder:
        file = Path(folder) / "texts.safetensors"
        command = [sys.executable, "-m", "build.texts", *recipe_options, "--out", str(file), "--", *texts]
        status = subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode
        if status != 0:
            raise StepError(f"the texts could not be embedded: build.texts ended with status {status}, see above")
        return read_texts(file)


def embedded_pictures(recipe: Recipe, folder: Path) -> tuple[list[str], np.ndarray]:
    """Paths below the folder, and (n, embed_dim) float32; what cannot be decoded is told and left out.

    Raises:
        StepError: there are no pictures, or none that can be decoded.
    """
    if not folder.is_dir():
        raise StepError(f"--images {folder}: no such folder")
    names = [name for name in files_below(folder).paths if Path(name).suffix.lower() in IMAGE_SUFFIXES]
    if not names:
        raise StepError(f"--images {folder}: no pictures there ({', '.join(sorted(IMAGE_SUFFIXES))})")
    encoder = OnnxEncoder(paths.encoder_folder(recipe))
    cache = paths.ARTIFACTS / recipe.name / "prompts.safetensors"
    kept, fresh = _cached(cache, encoder.manifest.onnx_sha256), {}
    transform = served_transform(encoder.manifest.preprocessing, recipe.serving)
    content_of = {}
    for name in tracked(names, "embedding", len(names), "pictures"):
        try:
            data = (folder / name).read_bytes()
            content = hashlib.sha256(data).hexdigest()
            if content not in fresh:
                fresh[content] = kept[content] if content in kept else encoder(transform(data)[None])[0]
            content_of[text_from_path(name)] = content
        except (served_module().ImageError, OSError) as error:
            say(f"{text_from_path(name)}: {error}")
    if not content_of:
        raise StepError(f"--images {folder}: none of {len(names)} pictures can be decoded")
    write_atomically(cache, safetensors.numpy.save(fresh, {"onnx_sha256": encoder.manifest.onnx_sha256}))
    return list(content_of), np.stack([fresh[content] for content in content_of.values()])


def scores_of(pictures: np.ndarray, texts: TextEmbeddings) -> np.ndarray:
    """(n, embed_dim) → (n, texts): shares of a softmax, with a bias a sigmoid's, of a single text the cosines."""
    made = texts.description
    cosines = pictures.astype(np.float64) @ texts.embedding.astype(np.float64).T
    if made.logit_bias is not None:
        return activated(cosines * made.logit_scale + made.logit_bias, "sigmoid")
    return cosines if cosines.shape[1] == 1 else activated(cosines * made.logit_scale, "softmax")


def _cached(path: Path, onnx_sha256: str) -> dict[str, np.ndarray]:
    """Embeddings by content; none where the file is of another encoder, or is no such file."""
    try:
        with safetensors.safe_open(path, "numpy") as file:
            if (file.metadata() or {}).get("onnx_sha256") != onnx_sha256:
                return {}
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (safetensors.SafetensorError, OSError):
        return {}


def _print_table(rows: list[str], columns: list[str], values: np.ndarray, corner: str) -> None:
    table = Table(corner, *map(escape, columns))
    for name, row in zip(rows, values, strict=True):
        best = int(row.argmax())
        table.add_row(escape(name), *(f"[bold]{v:.3f}[/]" if at == best else f"{v:.3f}" for at, v in enumerate(row)))
    Console().print(table)


def _print_csv(rows: list[str], columns: list[str], values: np.ndarray) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["path", *columns])
    writer.writerows([name, *(f"{value:.6g}" for value in row)] for name, row in zip(rows, values, strict=True))


def _check_texts(texts: list[str]) -> None:
    if not all(text.strip() for text in texts):
        raise StepError(f"a text is empty, found {texts}; type what the picture shows")
    if len(set(texts)) != len(texts):
        raise StepError(f"a text is typed twice, found {texts}; each is a class of its own")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m training.prompts", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_recipe_options(parser)
    parser.add_argument("--images", type=Path, metavar="FOLDER", help="pictures to score, in all folders below")
    parser.add_argument("--format", choices=("table", "csv"), default="table")
    parser.add_argument("texts", nargs="+", metavar="TEXT", help="such as 'a photo of a map'")
    arguments = parser.parse_args(argv)
    _check_texts(arguments.texts)
    recipe = recipe_of(arguments)
    if (reason := why_no_texts(recipe.encoder)) is not None:
        raise StepError(f"recipe {recipe.name}: {reason}")
    read_encoder(paths.encoder_folder(recipe))  # before the text tower is loaded
    texts = embedded_texts(recipe_options(arguments), arguments.texts)
    if arguments.images is None:
        _print_table(arguments.texts, arguments.texts, texts.embedding @ texts.embedding.T, "cosine")
        return
    names, pictures = embedded_pictures(recipe, arguments.images)
    scores = scores_of(pictures, texts)
    if arguments.format == "csv":
        _print_csv(names, arguments.texts, scores)
    else:
        _print_table(names, arguments.texts, scores, "picture")


if __name__ == "__main__":
    sys.exit(run_step("training.prompts", main, INTERRUPTED))
