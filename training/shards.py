"""Reads WebDataset shards: tars in which the files of one sample follow one another and share a key.

    000123.jpg   000123.cls    the class's index or name
                 000123.json   {"label": …}
                 000123.txt    the class's name, where there is neither of the others

What is a sample and which shards are whole, `clipsieve.shards` says, for training as for scoring. Only the headers are
read here; an image is read from its place when its turn comes, so a shard may not be compressed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from clipsieve import ImageRejected
from clipsieve.exceptions import ShardError
from clipsieve.paths import text_from_path
from clipsieve.shards import IMAGE_EXTENSIONS, Member, Span, image_among, layout_of
from recipes.schema import Head
from training.errors import StepError
from training.labels import LabelError, label_from
from training.sample import Sample

_LABEL_EXTENSIONS = ("cls", "json", "txt")
_MOST_LABEL_BYTES = 1 << 20
_GZIPPED = b"\x1f\x8b"


def samples_in_shards(shards: list[Path], head: Head, label_name: str = "label") -> list[Sample]:
    """A sample for each key that has an image, in the order of the shards.

    Args:
        shards: uncompressed .tar files.
        head: whose task and class_names say what a label may be.
        label_name: the label's name in a sample's json.

    Raises:
        StepError: a shard is missing, compressed, not whole or no tar; a key comes twice, has two images or one that is
            no plain file; or a label the head cannot have. Names the shard and the key or byte.
    """
    samples: list[Sample] = []
    seen: dict[str, Path] = {}
    for shard in shards:
        for span in _spans(shard):
            key = text_from_path(span.key)
            image = _image(shard, key, span.members)
            if image is None:
                continue
            if key in seen:
                raise StepError(f"{shard}: key {key!r} comes a second time, first in {seen[key]}; keys must differ")
            seen[key] = shard
            label = _label(shard, key, span.members, head, label_name)
            samples.append(Sample(key, shard.resolve(), label, member=image, origin=f"{shard.name} key {key}"))
    if not samples:
        raise StepError(f"{shards[0].parent}: no images ({', '.join(IMAGE_EXTENSIONS)}) in {len(shards)} shards")
    if all(sample.label is None for sample in samples):
        raise StepError(
            f"{shards[0]}: no sample has a label; expected <key>.cls, <key>.txt or {label_name!r} in <key>.json "
            "(name another with --label-column)"
        )
    return samples


def _spans(shard: Path) -> Sequence[Span]:
    """Where the samples of a whole, uncompressed shard lie."""
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
        if error.code == "NO_IMAGE":
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
