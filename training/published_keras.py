"""The AutoKeras heads: a SavedModel in a zip → layers and tensors, checked against the original graph.

TensorFlow reads the model and scores with it, in a throwaway environment that uv makes. AutoKeras took a
few columns of float16 embeddings for categories: the graph prints such a value with six decimals and
looks up how frequent that text was. A text stands for an interval of floats, which is what we keep.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np

from common.manifest import Layer, Linear, RankLookup, Relu, Standardize
from training.errors import StepError
from training.progress import say
from training.published import PublishedHead

Variant = Literal["published", "float16", "numeric"]
Tensors = dict[str, np.ndarray]

VARIANTS: tuple[Variant, ...] = ("published", "float16", "numeric")
LIMIT = 1e-5
"""Largest difference between an imported head's score and the original graph's."""

_TENSORFLOW = "2.15.1"  # the last with Keras 2 inside, which wrote these files
_ON_LINUX = "sys_platform == 'linux' and platform_machine == 'x86_64'"
_REQUIREMENTS = (
    f"tensorflow-cpu=={_TENSORFLOW}; {_ON_LINUX}",
    f"tensorflow=={_TENSORFLOW}; sys_platform != 'linux' or platform_machine != 'x86_64'",
)
_EXPORT = Path(__file__).with_name("keras_export.py")
_TIMEOUT_S = 1800
_LARGEST_UNPACKED_BYTES = 100 * 2**20
_DECIMALS = 1e6
_NO_TOKEN = 9.0  # a value that no vocabulary of unit vectors holds


@dataclass(frozen=True)
class KerasImport:
    """A verified head of one variant."""

    layers: list[Layer]
    tensors: Tensors
    verified: dict[str, Any]
    """`max_difference` of each kind of vectors, against the original graph given what the variant stands for."""
    variants: dict[str, Any]
    """Of each variant and kind, against the original graph: `max_difference`, and the share of decisions at 0.5
    that are `flipped`."""


class OriginalGraph:
    """A SavedModel as published, run by TensorFlow in a process of its own."""

    def __init__(self, saved_model: Path, work: Path) -> None:
        self._saved_model, self._work = saved_model, work

    def tensors(self) -> Tensors:
        """The tensors that keras_export.py finds in it."""
        target = self._work / "tensors.npz"
        _with_tensorflow("export", self._saved_model, target)
        return dict(np.load(target))

    def scores(self, vectors: Mapping[str, np.ndarray]) -> Tensors:
        """(n, embed_dim) float32 arrays → (n,) float32 arrays under the same names."""
        given, target = self._work / "vectors.npz", self._work / "scores.npz"
        np.savez(given, allow_pickle=False, **{name: array.astype(np.float32) for name, array in vectors.items()})
        _with_tensorflow("score", self._saved_model, given, target)
        return dict(np.load(target))


def import_keras(archive: Path, published: PublishedHead, variant: Variant, verify: int, work: Path) -> KerasImport:
    """Layers and tensors of the head in `archive`, after `verify` vectors of each kind agreed with the original.

    Raises:
        StepError: no SavedModel in the archive, TensorFlow cannot be had, another model, or other scores.
    """
    say(
        f"{published.name}: step 1 of 3, reading it with TensorFlow {_TENSORFLOW} in a throwaway environment "
        "(the first time, some 200 MB are downloaded)"
    )
    original = OriginalGraph(extract_saved_model(archive, work / "saved_model"), work)
    arrays = original.tensors()
    _check_arrays(arrays, published)
    heads = {name: layers_and_tensors(arrays, name) for name in VARIANTS}
    vectors = verification_vectors(arrays, verify)
    say(f"{published.name}: step 2 of 3, TensorFlow scores {verify} vectors of each of {len(vectors)} kinds")
    scores = original.scores(
        {f"{name}/{kind}": as_given(x, arrays, name) for name in VARIANTS for kind, x in vectors.items()}
    )
    say(f"{published.name}: step 3 of 3, comparing the scores of the imported head")
    ours = {name: {kind: _scores(*heads[name], x) for kind, x in vectors.items()} for name in VARIANTS}
    verified = {kind: _largest(ours[variant][kind], scores[f"{variant}/{kind}"]) for kind in vectors}
    _check_verified(verified, published, variant)
    variants = {
        name: {kind: _difference(ours[name][kind], scores[f"published/{kind}"]) for kind in vectors}
        for name in VARIANTS
    }
    figures = {"vectors_of_each_kind": verify, "max_difference": verified, "tensorflow": _TENSORFLOW}
    return KerasImport(*heads[variant], figures, variants)


def extract_saved_model(archive: Path, folder: Path) -> Path:
    """Unpack a zip into `folder`; returns the one folder in it that holds saved_model.pb.

    Raises:
        StepError: not a zip, an entry that would lie outside `folder` or is a link, too large, no SavedModel.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            for entry in opened.infolist():
                _check_entry(archive, entry)
            size = sum(entry.file_size for entry in opened.infolist())
            if size > _LARGEST_UNPACKED_BYTES:
                raise StepError(f"{archive}: {size} bytes unpacked, at most {_LARGEST_UNPACKED_BYTES} are expected")
            opened.extractall(folder)
    except zipfile.BadZipFile as error:
        raise StepError(f"{archive}: not a zip archive ({error})") from error
    models = sorted(folder.rglob("saved_model.pb"))
    if len(models) != 1:
        raise StepError(f"{archive}: holds {len(models)} files saved_model.pb, a published Keras head has one")
    return models[0].parent


def layers_and_tensors(arrays: Tensors, variant: Variant) -> tuple[list[Layer], Tensors]:
    """The head that the exported `arrays` describe, without its sigmoid."""
    columns = [int(column) for column in arrays["columns"]]
    intervals = [_intervals(arrays, number, variant) for number in range(len(columns))]
    low, high, ranks = (np.concatenate(parts) for parts in zip(*intervals, strict=True))
    tensors = {
        "rank_lookup.low": low,
        "rank_lookup.high": high,
        "rank_lookup.ranks": ranks,
        "standardize.mean": arrays["mean"],
        "standardize.std": np.maximum(np.sqrt(arrays["variance"]), arrays["smallest_std"]),
    }
    layers: list[Layer] = [
        RankLookup(
            columns=columns,
            lengths=[len(part[0]) for part in intervals],
            low="rank_lookup.low",
            high="rank_lookup.high",
            ranks="rank_lookup.ranks",
        ),
        Standardize(mean="standardize.mean", std="standardize.std"),
    ]
    for number in range(_count(arrays, "kernel")):
        layer = Linear(weight=f"linear_{number}.weight", bias=f"linear_{number}.bias")
        tensors |= {layer.weight: arrays[f"kernel_{number}"].T.copy(), layer.bias: arrays[f"bias_{number}"]}
        layers += [*([Relu()] if number else []), layer]
    return layers, tensors


def verification_vectors(arrays: Tensors, count: int, seed: int = 0) -> Tensors:
    """Unit vectors (count, embed_dim) of three kinds.

    `float16`: float16 values, those of the categorical columns drawn from the vocabularies.
    `float32`: random ones, whose categorical values are nearly all unknown.
    `float32_edges`: categorical values at, or one float beside, an end of what prints as a known text.
    """
    rng = np.random.default_rng(seed)
    columns, embed_dim = arrays["columns"], len(arrays["mean"])
    tokens = [arrays[f"tokens_{number}"].astype(np.float32) for number in range(len(columns))]
    tokens_drawn = np.stack([rng.choice(values, count) for values in tokens], axis=1)
    edges = np.stack([_edges(arrays, number, count, rng) for number in range(len(columns))], axis=1)
    random = rng.standard_normal((count, embed_dim))
    return {
        "float16": _unit_with(rng, tokens_drawn, arrays).astype(np.float16).astype(np.float32),
        "float32": (random / np.linalg.norm(random, axis=1, keepdims=True)).astype(np.float32),
        "float32_edges": _unit_with(rng, edges, arrays),
    }


def as_given(x: np.ndarray, arrays: Tensors, variant: Variant) -> np.ndarray:
    """Return the input for which the original graph gives the score that a variant gives `x`."""
    given, columns = x.copy(), arrays["columns"]
    if variant == "float16":
        given[:, columns] = given[:, columns].astype(np.float16)
    elif variant == "numeric":
        given[:, columns] = _NO_TOKEN
    return given


def text_intervals(micros: np.ndarray, rounded: bool) -> tuple[np.ndarray, np.ndarray]:
    """First and last float32 (n,) that print with six decimals as `micros` (n,) millionths.

    Args:
        rounded: the value is rounded to float16 before it is printed.
    """

    def printed(x: np.ndarray) -> np.ndarray:
        value = x.astype(np.float16) if rounded else x
        return np.rint(value.astype(np.float64) * _DECIMALS)  # exact product; halves to even, as printf

    return _first_reaching(printed, micros), np.nextafter(_first_reaching(printed, micros + 1), np.float32(-np.inf))


def _intervals(arrays: Tensors, number: int, variant: Variant) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(low, high, ranks), ascending, of one categorical column."""
    if variant == "numeric":
        nothing = np.zeros(0, np.float32)
        return nothing, nothing, nothing
    micros = np.rint(arrays[f"tokens_{number}"].astype(np.float64) * _DECIMALS)
    order = np.argsort(micros)
    low, high = text_intervals(micros[order], rounded=variant == "float16")
    return low, high, arrays[f"ranks_{number}"][order].astype(np.float32)


def _first_reaching(key: Callable[[np.ndarray], np.ndarray], targets: np.ndarray) -> np.ndarray:
    """The smallest float32 in [-4, 4] whose `key`, which never falls, is at least each target."""
    four = int(np.float32(4).view(np.int32))
    below, reaching = np.full(len(targets), -four), np.full(len(targets), four)
    while (reaching - below > 1).any():
        middle = (below + reaching) // 2
        reached = key(_float_at(middle)) >= targets
        below, reaching = np.where(reached, below, middle), np.where(reached, middle, reaching)
    return _float_at(reaching)


def _float_at(index: np.ndarray) -> np.ndarray:
    """float32 number `index` of all, counted from 0.0; negative ones below it."""
    return np.sign(index).astype(np.float32) * np.abs(index).astype(np.int32).view(np.float32)


def _edges(arrays: Tensors, number: int, count: int, rng: np.random.Generator) -> np.ndarray:
    low, high, _ = _intervals(arrays, number, "published")
    infinity = np.float32(np.inf)
    edges = np.concatenate([low, high, np.nextafter(low, -infinity), np.nextafter(high, infinity)])
    return rng.choice(edges, count)


def _unit_with(rng: np.random.Generator, values: np.ndarray, arrays: Tensors) -> np.ndarray:
    """(n, embed_dim) float32 vectors with `values` in the categorical columns, the others as the head's own
    standardisation says, scaled to norm 1 where that is possible."""
    columns, std = arrays["columns"], np.sqrt(arrays["variance"])
    others = rng.standard_normal((len(values), len(std))) * std + arrays["mean"]
    others[:, columns] = 0
    rest = np.sqrt(np.maximum(1 - np.square(values).sum(axis=1), 0.1))
    vectors = (others * (rest / np.linalg.norm(others, axis=1))[:, None]).astype(np.float32)
    vectors[:, columns] = values
    return vectors


def _scores(layers: list[Layer], tensors: Tensors, x: np.ndarray) -> np.ndarray:
    import torch  # only to verify: `make engines` has mostly nothing to import

    from training.head import head_from_layers

    with torch.inference_mode():
        logits = head_from_layers(layers, tensors).eval()(torch.from_numpy(x))
    return torch.sigmoid(logits.double()).numpy()[:, 0]


def _largest(ours: np.ndarray, original: np.ndarray) -> float:
    return float(np.abs(ours - original).max())


def _difference(ours: np.ndarray, original: np.ndarray) -> dict[str, float]:
    flipped = (ours >= 0.5) != (original >= 0.5)
    return {"max_difference": _largest(ours, original), "flipped": float(flipped.mean())}


def _check_verified(verified: dict[str, float], published: PublishedHead, variant: Variant) -> None:
    worst = max(verified, key=lambda kind: verified[kind])
    if not verified[worst] <= LIMIT:
        raise StepError(
            f"{published.name} ({variant}): scores differ from the original graph's by {verified[worst]:.2g} on "
            f"{worst} vectors, at most {LIMIT:g} is allowed; nothing was written"
        )


def _check_arrays(arrays: Tensors, published: PublishedHead) -> None:
    """The model must be the one that the table of published heads describes."""
    widths = tuple(arrays[f"kernel_{number}"].shape[1] for number in range(_count(arrays, "kernel")))
    actual = {
        "embed_dim": len(arrays["mean"]),
        "widths": widths,
        "columns": tuple(arrays["columns"].tolist()),
        "vocabularies": _count(arrays, "tokens"),
    }
    expected = {
        "embed_dim": published.embed_dim,
        "widths": tuple(width for width in published.sequence if isinstance(width, int)),
        "columns": published.rank_columns,
        "vocabularies": len(published.rank_columns),
    }
    differing = [f"{key} is {actual[key]}, expected {expected[key]}" for key in actual if actual[key] != expected[key]]
    zero = [token for n in range(actual["vocabularies"]) for token in arrays[f"tokens_{n}"] if float(token) == 0]
    differing += [f"the text {token!r} is in a vocabulary; 0 and -0 cannot be told apart" for token in zero]
    if differing:
        raise StepError(f"the SavedModel is not {published.name}: {'; '.join(differing)}")


def _count(arrays: Tensors, prefix: str) -> int:
    return sum(name.startswith(f"{prefix}_") for name in arrays)


def _check_entry(archive: Path, entry: zipfile.ZipInfo) -> None:
    path = PurePosixPath(entry.filename)
    if path.is_absolute() or ".." in path.parts or "\\" in entry.filename or ":" in entry.filename:
        raise StepError(f"{archive}: the entry {entry.filename!r} would be written outside its folder; refused")
    if stat.S_ISLNK(entry.external_attr >> 16):
        raise StepError(f"{archive}: the entry {entry.filename!r} is a link; refused")


def _with_tensorflow(command: str, *paths: Path) -> None:
    """Run keras_export.py where TensorFlow is.

    Raises:
        StepError: there is no uv, TensorFlow cannot be installed, or the SavedModel cannot be read.
    """
    requirements = [part for requirement in _REQUIREMENTS for part in ("--with", requirement)]
    arguments = [_uv(), "run", "--isolated", "--no-project", "--python", ">=3.9,<3.12", *requirements]
    kept = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "VIRTUAL_ENV"}}
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
    try:
        status, lines = _run_shown(
            [*arguments, "python", str(_EXPORT), command, *map(str, paths)], paths[-1].parent, kept | quiet
        )
    except subprocess.TimeoutExpired as error:
        raise StepError(f"TensorFlow took more than {_TIMEOUT_S} s to {command}; run the step again") from error
    if status:
        last = "\n  ".join(lines[-6:])
        raise StepError(
            f"TensorFlow {_TENSORFLOW} could not {command} the Keras head:\n  {last}\n"
            "It is installed by uv from the package index the first time (about 200 MB, Python 3.9 to 3.11). Without "
            "a network, import the head once on a machine that has one and copy artifacts/<recipe>/heads/<head>/."
        )


def _run_shown(command: list[str], folder: Path, environment: dict[str, str]) -> tuple[int, list[str]]:
    """Run a program and show what it says, line by line: its exit status and the lines.

    Raises:
        subprocess.TimeoutExpired: it took too long, and was ended.
    """
    lines: list[str] = []
    with subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    ) as process:
        stderr = process.stderr
        assert stderr is not None

        def show() -> None:
            for line in filter(None, map(str.rstrip, stderr)):
                lines.append(line)
                say(f"  {line}")

        showing = threading.Thread(target=show, daemon=True)
        showing.start()
        try:
            status = process.wait(_TIMEOUT_S)
        except BaseException:  # also Ctrl-C, which the program hears of only at a terminal
            process.kill()
            raise
        showing.join()
    return status, lines


def _uv() -> str:
    """uv beside this Python, or on PATH."""
    program = shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if program is None:
        raise StepError("uv was not found: Keras heads are read in a throwaway environment it makes; run `make venv`")
    return program
