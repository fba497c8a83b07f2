"""The pictures of a fine-tuning: read once for what they are, split, and handed out for training and for measuring."""

from __future__ import annotations

import csv
import hashlib
import io
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import v2

from common.cpu import core_count
from common.manifest import Preprocessing, write_atomically
from common.pixels import served_module, served_transform
from recipes.encoder_section import Augment
from recipes.head_section import Head
from recipes.schema import Recipe
from recipes.serving_section import Serving
from training.datasets import samples_in
from training.errors import StepError
from training.labelled import Labelled, grouped_split, labelled_rows
from training.leakage import Groups
from training.progress import tracked
from training.sample import DataSet, Failure, Sample
from training.sources import HeadData, Mention, Source, mentions_table, write_source
from training.split import Split
from training.store_view import Embeddings, Pictures, read_pictures
from training.unserved import format_of, unserved

HASH_EDGE = 16
"""Edge of a perceptual hash, which has that many bits squared."""
_SCAN = "scan.npz"


@dataclass(frozen=True)
class TuningData:
    """Labelled pictures, which are there once each, and the parts that they are in."""

    samples: list[Sample]
    data: Labelled
    """Their labels; `embedding` is the perceptual hash, a bit a column, as -1 and 1."""
    groups: Groups
    split: Split
    pictures: Pictures
    failures: list[Failure]
    """Files that cannot be used, each with its reason."""


@dataclass(frozen=True)
class _Seen:
    """What was found out about one file."""

    sha256: str
    bits: np.ndarray  # (256,) bool


class _Whole:
    """A view for `clip_pixels.Transform`: the whole picture, decoded as it is served and not resized."""

    image_size = 0

    def __init__(self, at_least: int) -> None:
        self._at_least = at_least

    def resized(self, width: int, height: int) -> tuple[int, int]:
        """The size that scaled decoding must leave twice over."""
        return self._at_least, self._at_least

    def of(self, picture: Any) -> Image.Image:
        """The picture as it is: what has one view alone takes it as it comes, and nothing is copied."""
        box = tuple(map(round, picture.box))
        image = picture.image if box == (0, 0, *picture.image.size) else picture.image.crop(box)
        return image.convert("RGB")


def whole_transform(preprocessing: Preprocessing, serving: Serving, at_least: int) -> Any:
    """`transform(image_bytes)` → the RGB picture, decoded with the limits and the care of what is served.

    Args:
        preprocessing: says how large JPEGs are decoded.
        serving: limits of the recipe.
        at_least: pixels along each edge of which scaled decoding leaves twice as many.
    """
    served = served_transform([preprocessing], serving)
    return replace(served, views=(_Whole(at_least),))


def read_tuning_data(recipe: Recipe, head: Head, data_set: DataSet, view: Preprocessing, folder: Path) -> TuningData:
    """Read every picture once: whether it can be decoded, what it is a near-duplicate of, and which part it is in.

    Args:
        recipe: with `encoder.finetune`.
        head: whose labels are learned, and whose `fit` says how to split.
        data_set: of --data.
        view: the preprocessing of the model.
        folder: of the fine-tuning; what was found out is kept there for a resumed run.

    Raises:
        StepError: too many files are unreadable, or the labels do not fit the head.
    """
    settings = recipe.encoder.finetune
    assert settings is not None
    samples, seen, failures = _scanned(data_set, view, recipe.serving, folder)
    _check_readable(failures + data_set.failures, len(samples), settings.maximum_unreadable, folder)
    by_content = {one.sha256: (sample, one) for sample, one in zip(samples, seen, strict=True)}
    head_data = HeadData(folder, recipe.name, head.name)
    for file in head_data.folder.glob("source-*.parquet"):  # a fine-tuning is of one data set
        file.unlink()
    mentions = [
        Mention(sample.key, sample.stored_path, one.sha256, sample.label, sample.split, sample.group)
        for sample, one in zip(samples, seen, strict=True)
    ]
    write_source(head_data, Source(data_set.identity, mentions_table(mentions), notes=data_set.notes))
    pictures = read_pictures(head_data)
    bits = np.stack([by_content[content][1].bits for content in pictures.sha256])
    data = labelled_rows(Embeddings(np.where(bits, 1, -1).astype(np.float32), pictures), head.class_names, head.task)
    near = settings.near_duplicate_bits
    cosine = None if near is None else 1 - 2 * near / bits.shape[1]
    fit = head.fit.model_copy(update={"near_duplicate_cosine": cosine})
    groups, split = grouped_split(data, pictures, head.model_copy(update={"fit": fit}), head_data.folder)
    kept = [by_content[content][0] for content in data.sha256]
    return TuningData(kept, data, groups, split, pictures, [*data_set.failures, *failures])


def labelled_samples(data: str, head: Head, columns: Any, form: Any = None) -> DataSet:
    """`training.datasets.samples_in` of a head whose labels can be fine-tuned.

    Raises:
        StepError: as there, or the head has grades.
    """
    if head.is_graded:
        raise StepError(
            f"head {head.name} is a {head.task}, and fine-tuning is for classes and labels; train its head on a frozen "
            "encoder (training.embed, training.fit)"
        )
    return samples_in(data, head, columns, form)


class TrainingPictures(torch.utils.data.Dataset):
    """Pictures changed at random, `(epoch, row)` → (3, S, S) uint8: the same key gives the same picture."""

    def __init__(
        self, samples: list[Sample], view: Preprocessing, serving: Serving, augment: Augment, seed: int
    ) -> None:
        self._samples, self._view, self._serving, self._seed = samples, view, serving, seed
        self._changes = random_changes(view, augment)
        self._decode: Any = None  # made where it is used: a worker process loads the served file anew

    def __getitem__(self, key: tuple[int, int]) -> torch.Tensor:
        if self._decode is None:
            self._decode = whole_transform(self._view, self._serving, self._view.image_size)
        epoch, row = key
        picture = _decoded(self._samples[row], self._decode)
        seed = np.random.SeedSequence([self._seed, epoch, row]).generate_state(1, np.uint64)
        chance = torch.default_generator  # torch.random.fork_rng asks every kind of device, a fifth of a millisecond
        before = chance.get_state()
        try:
            chance.manual_seed(int(seed[0]) & (2**63 - 1))
            return self._changes(picture)
        finally:
            chance.set_state(before)


class ServedPictures(torch.utils.data.Dataset):
    """Pictures exactly as they are served, `row` → (3, S, S) uint8."""

    def __init__(self, samples: list[Sample], view: Preprocessing, serving: Serving) -> None:
        self._samples, self._view, self._serving = samples, view, serving
        self._transform: Any = None

    def __getitem__(self, row: int) -> torch.Tensor:
        if self._transform is None:
            self._transform = served_transform([self._view], self._serving)
        return torch.from_numpy(_decoded(self._samples[row], self._transform).copy()).permute(2, 0, 1)


def random_changes(view: Preprocessing, augment: Augment) -> v2.Compose:
    """The augmentations of a recipe, a PIL picture → (3, S, S) uint8.

    The crop is taken from the picture as it is served: squashed to a square where that is how it is resized.
    """
    size = view.image_size
    interpolation = v2.InterpolationMode(view.interpolation)
    steps: list[Any] = []
    if view.resize_mode == "squash":
        edge = round(size / augment.crop_scale**0.5)
        steps.append(v2.Resize((edge, edge), interpolation))
    ratio = (3 / 4, 4 / 3) if augment.crop_scale < 1 else (1.0, 1.0)
    steps += [v2.RandomResizedCrop(size, (augment.crop_scale, 1.0), ratio, interpolation), v2.PILToTensor()]
    if augment.flip:
        steps.append(v2.RandomHorizontalFlip(augment.flip))
    if augment.rotation:
        grey = [round(255 * mean) for mean in view.mean]
        steps.append(v2.RandomRotation([-augment.rotation, augment.rotation], v2.InterpolationMode.BILINEAR, fill=grey))
    if augment.brightness or augment.contrast or augment.saturation or augment.hue:
        steps.append(v2.ColorJitter(augment.brightness, augment.contrast, augment.saturation, augment.hue))
    if augment.blur:
        steps.append(v2.RandomApply([v2.GaussianBlur(kernel_size=5, sigma=(0.1, 2.0))], augment.blur))
    return v2.Compose(steps)


def _decoded(sample: Sample, transform: Any) -> Any:
    """What the transform gives."""
    try:
        return transform(sample.read())
    except Exception as error:
        raise StepError(
            f"{sample.stored_path}: can no longer be read as a picture ({error}); repair it or take it away, and run "
            "the same command again: it goes on where it was"
        ) from error


def _scanned(
    data_set: DataSet, view: Preprocessing, serving: Serving, folder: Path
) -> tuple[list[Sample], list[_Seen], list[Failure]]:
    """The samples that can be decoded, what was found out about each, and the others' failures."""
    known = _read_scan(folder / _SCAN)
    transform = whole_transform(view, serving, 4 * HASH_EDGE)

    def look(sample: Sample) -> _Seen | Failure:
        return known.get(_file_state(sample)) or _look(sample, transform)

    with ThreadPoolExecutor(core_count()) as pool:
        found = pool.map(look, data_set.samples)
        outcomes = list(tracked(found, "reading pictures", len(data_set.samples), "pictures"))
    pairs = zip(data_set.samples, outcomes, strict=True)
    usable = [(sample, one) for sample, one in pairs if isinstance(one, _Seen)]
    _write_scan(folder / _SCAN, usable)
    return [sample for sample, _ in usable], [one for _, one in usable], [o for o in outcomes if isinstance(o, Failure)]


def _look(sample: Sample, transform: Any) -> _Seen | Failure:
    from imagehash import phash  # pyright: ignore[reportMissingImports] (its extra)

    try:
        data = sample.read()
    except Exception as error:  # as in training.embed: one file must not end the run
        return Failure(sample.stored_path, "UNREADABLE", str(error) or type(error).__name__)
    try:
        picture = transform(data)
    except served_module().ImageError as error:
        if error.code == "NOT_AN_IMAGE" and (format := format_of(data)) is not None:
            return unserved(sample.stored_path, format)
        return Failure(sample.stored_path, error.code, error.message)
    except Exception as error:
        return Failure(sample.stored_path, "DECODE_FAILED", f"{type(error).__name__}: {error}")
    bits = phash(picture, hash_size=HASH_EDGE).hash.ravel()
    return _Seen(hashlib.sha256(data).hexdigest(), bits)


def _check_readable(failures: list[Failure], readable: int, limit: float, folder: Path) -> None:
    """Refuse a data set that is not what somebody thinks it is.

    Raises:
        StepError: no picture can be read, or more than the limit cannot.
    """
    if not failures and readable:
        return
    write_atomically(
        folder / "unreadable.csv",
        _failures_csv(failures).encode(errors="backslashreplace"),
    )
    share = len(failures) / (len(failures) + readable)
    if not readable or share > limit:
        first = "; ".join(f"{failure.path}: {failure.code}" for failure in failures[:3])
        raise StepError(
            f"{len(failures)} of {len(failures) + readable} files cannot be used, more than "
            f"finetune.maximum_unreadable {limit:g} allows: {first}. All are in {folder / 'unreadable.csv'}; repair "
            "them or take them away, or raise the limit"
        )


def _failures_csv(failures: list[Failure]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("path", "code", "message"))
    writer.writerows((failure.path, failure.code, failure.message) for failure in failures)
    return text.getvalue()


def _file_state(sample: Sample) -> tuple[str, int, int]:
    """Path, size and time of change of the file: as long as they are the same, so is what was found out."""
    try:
        state = sample.path.stat()
    except (OSError, ValueError):
        return sample.stored_path, -1, -1
    return sample.stored_path, state.st_size, state.st_mtime_ns


def _read_scan(path: Path) -> dict[tuple[str, int, int], _Seen]:
    try:
        with np.load(path, allow_pickle=False) as file:
            columns = [file[name].tolist() for name in ("path", "size", "changed", "sha256")]
            bits = np.unpackbits(file["bits"], axis=1).astype(bool)
    except (OSError, ValueError, KeyError):
        return {}
    return {(p, s, c): _Seen(sha, row) for p, s, c, sha, row in zip(*columns, bits, strict=True)}


def _write_scan(path: Path, usable: list[tuple[Sample, _Seen]]) -> None:
    if not usable:
        return
    states = [_file_state(sample) for sample, _ in usable]
    file = io.BytesIO()
    np.savez(
        file,
        path=np.array([state[0] for state in states]),
        size=np.array([state[1] for state in states]),
        changed=np.array([state[2] for state in states]),
        sha256=np.array([one.sha256 for _, one in usable]),
        bits=np.packbits(np.stack([one.bits for _, one in usable]), axis=1),
    )
    write_atomically(path, file.getvalue())


def batches(rows: np.ndarray, epoch: int, seed: int, batch_size: int, least: int = 2) -> list[np.ndarray]:
    """The rows of one epoch in a new order, cut into batches; a last one of fewer than `least` joins the one before.

    A normalisation over one picture is none, and each device wants one.
    """
    order = np.random.default_rng([seed, epoch]).permutation(rows)
    cuts = list(range(batch_size, len(order), batch_size))
    if cuts and len(order) - cuts[-1] < least:
        cuts.pop()
    return np.split(order, cuts)
