"""Reads WebDataset shards: tars in which the files of one sample follow one another and share a key.

    000123.jpg   000123.cls    the class's index or name
                 000123.json   {"label": …}
                 000123.txt    the class's name, where there is neither of the others

Only the headers are read here; an image is read from its place when its turn comes. Nothing is unpacked, so
a name such as `../a.jpg` is only a key. A tar ends with a mark; one without it was cut off and is refused,
because its reader would take it for a shorter one.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

from recipes.schema import Head
from training.errors import StepError
from training.labels import LabelError, label_from
from training.sample import Member, Sample

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "avif")
_LABEL_SUFFIXES = ("cls", "json", "txt")
_MOST_LABEL_BYTES = 1 << 20
_BLOCK = 512


def samples_in_shards(shards: list[Path], head: Head, label_name: str = "label") -> list[Sample]:
    """A sample for each key that has an image, in the order of the shards.

    Args:
        shards: uncompressed .tar files.
        head: whose task and class_names say what a label may be.
        label_name: the label's name in a sample's json.

    Raises:
        StepError: a shard is missing, cut off or no tar; a key comes twice or has two images; or a label the
            head cannot have. Names the shard and the key or byte.
    """
    samples: list[Sample] = []
    seen: dict[str, Path] = {}
    for shard in shards:
        for key, members in _by_key(shard):
            images = [member for suffix, member in members.items() if suffix.lower() in IMAGE_SUFFIXES]
            if not images:
                continue
            if len(images) > 1:
                raise StepError(f"{shard}: key {key!r} has several images: {', '.join(image.name for image in images)}")
            if key in seen:
                raise StepError(f"{shard}: key {key!r} comes a second time, first in {seen[key]}; keys must differ")
            seen[key] = shard
            label = _label(shard, key, members, head, label_name)
            samples.append(Sample(key, shard.resolve(), label, member=images[0], origin=f"{shard.name} key {key}"))
    if not samples:
        raise StepError(f"{shards[0].parent}: no images ({', '.join(IMAGE_SUFFIXES)}) in {len(shards)} shards")
    if all(sample.label is None for sample in samples):
        raise StepError(
            f"{shards[0]}: no sample has a label; expected <key>.cls, <key>.txt or {label_name!r} in <key>.json "
            "(name another with --label-column)"
        )
    return samples


def _by_key(shard: Path) -> Iterator[tuple[str, dict[str, Member]]]:
    """(key, its members by suffix): members of one key follow one another."""
    current: str | None = None
    members: dict[str, Member] = {}
    for member in _members(shard):
        key, suffix = _key_and_suffix(member.name)
        if key != current and current is not None:
            yield current, members
            members = {}
        if suffix in members:
            raise StepError(f"{shard}: {member.name!r} comes twice (at byte {member.offset})")
        current, members[suffix] = key, member
    if current is not None:
        yield current, members


def _members(shard: Path) -> Iterator[Member]:
    """The files of a tar that is whole."""
    try:
        with tarfile.open(shard, "r:") as archive:
            for entry in archive:
                if entry.isdir():
                    continue
                if not entry.isreg() or entry.sparse is not None:
                    raise StepError(f"{shard}: {entry.name!r} is a link or a special file; only plain files are read")
                yield Member(entry.name, entry.offset_data, entry.size)
                archive.members = []  # type: ignore[assignment]  # tarfile would keep every header
            end = archive.offset
    except FileNotFoundError as error:
        raise StepError(f"{shard}: no such file") from error
    except (tarfile.TarError, OSError, EOFError) as error:
        raise StepError(
            f"{shard}: not a whole uncompressed tar of {_size(shard)} bytes ({error}); copy it again, or unpack a .gz"
        ) from error
    _check_end(shard, end)


def _check_end(shard: Path, end: int) -> None:
    """tarfile takes damage after the first member for the end: look whether the end mark is there."""
    with shard.open("rb") as file:
        file.seek(end)
        block = file.read(_BLOCK)
    if block != bytes(_BLOCK):
        what = "is damaged" if len(block) == _BLOCK else "ends without the mark of a tar's end: it was cut off"
        raise StepError(f"{shard}: {what} at byte {end} of {_size(shard)}; copy it again")


def _key_and_suffix(name: str) -> tuple[str, str]:
    """WebDataset's rule: the key ends at the first dot of the file's name; folders are part of it."""
    folder, slash, base = name.rpartition("/")
    stem, _, suffix = base.partition(".")
    return f"{folder}{slash}{stem}", suffix


def _label(shard: Path, key: str, members: dict[str, Member], head: Head, label_name: str) -> str | None:
    for suffix in _LABEL_SUFFIXES:
        if suffix not in members:
            continue
        try:
            text = _text(shard, members[suffix])
            value = json.loads(text).get(label_name) if suffix == "json" else text.strip()
            if value is not None:
                return label_from(value, head)
        except (LabelError, ValueError, AttributeError, RecursionError) as error:
            raise StepError(f"{shard}: key {key!r}: {members[suffix].name}: {error}") from error
    return None


def _text(shard: Path, member: Member) -> str:
    if member.size > _MOST_LABEL_BYTES:
        raise LabelError(f"{member.size} bytes are too many for a label")
    return Sample(member.name, shard, None, member=member).read().decode("utf-8")


def _size(shard: Path) -> int:
    return shard.stat().st_size
