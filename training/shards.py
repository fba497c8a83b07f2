"""Reads WebDataset shards: tars in which the files of one sample follow one another and share a key.

    000123.jpg   000123.cls    the class's index or name
                 000123.json   {"label": …}
                 000123.txt    the class's name, where there is neither of the others

A .txt that is no label is a caption, and passed over. Where most are captions all are: a caption that happens to be
a class's name is none.

A key ends at the first dot of a name, so `22.05 pic.jpg` is no image of its own but the file `05 pic.jpg` of the
sample `22`. Such a file is a failure (DOTTED_NAME) where the sample has no image, and passed over where it has, as
`y.seg.png` is beside `y.jpg`.

What is a sample and which shards are whole, `clipsieve.shards` says, for training as for scoring. Only the headers are
read here; an image is read from its place when its turn comes, so a shard may not be compressed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from clipsieve import ImageRejected
from clipsieve.exceptions import ShardError
from clipsieve.paths import text_from_path
from clipsieve.shards import IMAGE_EXTENSIONS, Member, Span, image_among, layout_of
from recipes.head_section import Head
from training.errors import StepError
from training.labels import LabelError, label_from
from training.sample import DataSet, Failure, Sample
from training.unserved import format_of_suffix, unserved

_LABEL_EXTENSIONS = ("cls", "json")
_MOST_LABEL_BYTES = 1 << 20
_GZIPPED = b"\x1f\x8b"


@dataclass
class _Captions:
    """The texts of the .txt files of samples without another label."""

    labels: dict[int, str] = field(default_factory=dict)
    """By the number of the sample."""
    others: int = 0
    example: str = ""


def samples_in_shards(shards: list[Path], head: Head, label_name: str = "label", identity: str = "") -> DataSet:
    """A sample for each key that has an image, in the order of the shards.

    Args:
        shards: uncompressed .tar files.
        head: whose task and class_names say what a label may be.
        label_name: the label's name in a sample's json.
        identity: of the data set.

    Raises:
        StepError: a shard is missing, compressed, not whole or no tar; a key comes twice, has two images or one that is
            no plain file; or a label the head cannot have. Names the shard and the key or byte.
    """
    data = DataSet([], identity or f"shards {text_from_path(str(shards[0].parent.resolve()))}")
    samples = data.samples
    captions = _Captions()
    seen: dict[str, Path] = {}
    for shard in shards:
        for span in _spans(shard):
            key = text_from_path(span.key)
            image = _image(shard, key, span.members)
            _account_for_others(shard, span.members, image, data)
            if image is None:
                continue
            if key in seen:
                raise StepError(f"{shard}: key {key!r} comes a second time, first in {seen[key]}; keys must differ")
            seen[key] = shard
            label = _label(shard, key, span.members, head, label_name)
            if label is None:
                _read_caption(shard, span.members, head, len(samples), captions)
            samples.append(Sample(key, shard.resolve(), label, member=image, origin=f"{shard.name} key {key}"))
    _take_captions(captions, data)
    if not samples and data.failures:
        failure = data.failures[0]
        raise StepError(f"{shards[0]}: no image can be used; the first: {failure.path}: {failure.message}")
    if not samples:
        raise StepError(f"{shards[0].parent}: no images ({', '.join(IMAGE_EXTENSIONS)}) in {len(shards)} shards")
    if all(sample.label is None for sample in samples):
        raise StepError(
            f"{shards[0]}: no sample has a label; expected <key>.cls, <key>.txt or {label_name!r} in <key>.json "
            f"(name another with --label-column){captions.example}"
        )
    return data


def _account_for_others(shard: Path, members: Sequence[Member], image: Member | None, data: DataSet) -> None:
    """Name or count every file of a sample that is an image by its last suffix and is not the sample's image."""
    for member in members:
        format = format_of_suffix(member.extension.rpartition(".")[2])
        if format is not None and image is None and not member.is_image:
            data.failures.append(unserved(text_from_path(f"{shard}#{member.name}"), format))
            continue
        if member.is_image or member.extension.rpartition(".")[2] not in IMAGE_EXTENSIONS:
            continue
        if image is not None:
            data.pass_over("images beside a sample's own, such as .seg.png")
            continue
        problem = (
            f"a key ends at the first dot of a name, so this is the file {member.extension!r} of the sample "
            f"{text_from_path(member.key)!r}, which has no image; write the shard with names that have one dot"
        )
        data.failures.append(Failure(text_from_path(f"{shard}#{member.name}"), "DOTTED_NAME", problem))


def _read_caption(shard: Path, members: Sequence[Member], head: Head, number: int, captions: _Captions) -> None:
    """Take in the .txt of a sample, which is its label or a caption."""
    member = next((member for member in members if member.extension == "txt"), None)
    if member is None:
        return
    try:
        text = _text(shard, member).strip()
        label = label_from(text, head)
    except (LabelError, ValueError) as error:
        captions.others += 1
        captions.example = captions.example or f"; {member.name} holds none: {error}"
    else:
        if label is not None:
            captions.labels[number] = label


def _take_captions(captions: _Captions, data: DataSet) -> None:
    """Label samples by their .txt, unless most of those files are captions."""
    if len(captions.labels) >= captions.others:
        for number, label in captions.labels.items():
            data.samples[number] = replace(data.samples[number], label=label)
        data.pass_over("captions (.txt that is no label)", captions.others)
    else:
        data.pass_over("captions (.txt that is no label)", captions.others + len(captions.labels))


def _spans(shard: Path) -> Sequence[Span]:
    """List where the samples of a whole, uncompressed shard lie."""
    try:
        spans = layout_of(shard).spans
    except ShardError as error:
        raise StepError(str(error)) from error
    with shard.open("rb") as file:
        if file.read(len(_GZIPPED)) == _GZIPPED:
            raise StepError(f"{shard}: is compressed, so that no image can be read from its place; unpack it: gunzip")
    return spans


def _image(shard: Path, key: str, members: Sequence[Member]) -> Member | None:
    """The image of a key; None where there is none."""
    try:
        return image_among(members)
    except ImageRejected as error:
        if error.code in ("NO_IMAGE", "DOTTED_NAME"):
            return None
        raise StepError(f"{shard}: key {key!r}: {error.code}: {error.message}") from error


def _label(shard: Path, key: str, members: Sequence[Member], head: Head, label_name: str) -> str | None:
    for extension in _LABEL_EXTENSIONS:
        for member in members:
            if member.extension != extension:
                continue
            try:
                text = _text(shard, member)
                value = json.loads(text).get(label_name) if extension == "json" else text.strip()
                if value is not None:
                    return label_from(value, head)
            except (LabelError, ValueError, AttributeError, RecursionError) as error:
                raise StepError(f"{shard}: key {key!r}: {member.name}: {error}") from error
    return None


def _text(shard: Path, member: Member) -> str:
    if member.kind:
        raise LabelError(f"is {member.kind}; only plain files are read")
    if member.size > _MOST_LABEL_BYTES:
        raise LabelError(f"{member.size} bytes are too many for a label")
    return Sample(member.name, shard, None, member=member).read().decode("utf-8")
