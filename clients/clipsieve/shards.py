"""Reads WebDataset shards: tars in which the files of one sample follow one another and share a key.

    000123.jpg   the image of the sample with the key `000123`
    000123.json  what else belongs to it; never read here

The rules are WebDataset's: a key is the member's name up to the first dot of its last part, with the folder;
case of the extension does not matter; directories, hidden files, names without a dot and `__name__` are passed over.

A shard is read once and forwards, so it may also be a stream, with one image in memory at a time. Nothing is
unpacked: a key such as `../a` or `/etc/a` is only a name. A tar ends with a mark, and `tarfile` takes damage for
that mark: here a shard that is cut off or damaged raises `ShardError`, after the samples that are whole.

What is wrong with one sample is that sample's error (codes of `ImageRejected`, no image with it):

    NO_IMAGE          no member has an image's extension
    DOTTED_NAME       only behind further dots, as in `22.05 a.jpg`, so they are files of another key; names them all
    SEVERAL_IMAGES    more than one has
    NOT_A_FILE        the image is a link, or a sparse or special file
    TOO_MANY_BYTES    the image is larger than the limit; it is not read
    DUPLICATE_MEMBER  two members of the same name
    DUPLICATE_KEY     the key came before: the members of a sample must follow one another, and keys must differ
"""

from __future__ import annotations

import gzip
import os
import re
import tarfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from clipsieve.exceptions import ClipsieveError, ImageRejected, ShardError
from clipsieve.images import MAX_IMAGE_BYTES

IMAGE_EXTENSIONS = ("jpg", "jpeg", "jfif", "jpe", "png", "webp", "gif", "bmp", "avif")
MORE_IMAGE_EXTENSIONS = ("heic", "heif", "hif", "tif", "tiff")
"""Of the image of a sample that has none of the others; whether a server takes it, the server says."""

SHARD_SUFFIXES = (".tar", ".tar.gz", ".tgz")

_BLOCK = 512
_MOST_HEADER_BYTES = 1 << 16  # of one extended header: long names and attributes; tarfile would take any size
_CHUNK = 1 << 20
_META = re.compile(r"__[^/]*__($|/)")
_KINDS = {tarfile.SYMTYPE: "a symbolic link", tarfile.LNKTYPE: "a hard link"}


@dataclass(frozen=True)
class Sample:
    """The image of one key, or the reason why there is none."""

    key: str
    """Key as in the tar; bytes that are not UTF-8 are surrogates, as in Python's paths (see `clipsieve.paths`)."""
    index: int
    """Position in the shard, from 0; every sample has one, also those with an error."""
    image: bytes = field(default=b"", repr=False)
    """The encoded file; empty when there is an error."""
    extension: str = ""
    """Extension of the image, in lower case: `jpg`."""
    error: ImageRejected | None = None

    @property
    def ok(self) -> bool:
        return self.error is None


@dataclass(frozen=True)
class Member:
    """One file of a shard; positions are bytes in the tar (of a .gz, in what it unpacks to)."""

    name: str
    key: str
    extension: str
    """The rest of the name after the key and its dot, in lower case: `jpg`, `seg.png`."""
    start: int
    """Offset of its first header."""
    data: int
    size: int
    end: int
    """Offset of the next member's header."""
    kind: str = ""
    """Empty for a plain file; else what it is: `a symbolic link`."""

    @property
    def is_image(self) -> bool:
        return self.extension in IMAGE_EXTENSIONS

    @property
    def may_be_image(self) -> bool:
        """True for a format that only some servers take."""
        return self.extension in MORE_IMAGE_EXTENSIONS


@dataclass(frozen=True)
class Span:
    """Place of the members of one sample."""

    key: str
    members: tuple[Member, ...]


@dataclass(frozen=True)
class Layout:
    """Places of all samples in a shard."""

    spans: tuple[Span, ...]
    """One for each sample, in the order of `iter_samples`."""
    common: tuple[tuple[int, int], ...]
    """Start and end of headers that hold for all members after them."""


def is_shard(path: str | os.PathLike[str]) -> bool:
    """True for the name of a shard: .tar, .tar.gz or .tgz."""
    return os.fspath(path).lower().endswith(SHARD_SUFFIXES)


def shard_stem(shard: Path) -> str:
    """The name without .tar, .tar.gz or .tgz; other names lose their last suffix."""
    for suffix in sorted(SHARD_SUFFIXES, key=len, reverse=True):
        if shard.name.lower().endswith(suffix):
            return shard.name[: -len(suffix)]
    return shard.stem


def scores_path(shard: Path, out_folder: Path | None = None) -> Path:
    """Path of a shard's scores: `<stem>.parquet` beside it, or in `out_folder`."""
    return (shard.parent if out_folder is None else out_folder) / f"{shard_stem(shard)}.parquet"


def scores_paths(shards: Sequence[Path], out_folder: Path | None = None) -> list[Path]:
    """`scores_path` of each.

    Raises:
        ClipsieveError: two shards would have the same file; names both.
    """
    taken: dict[Path, Path] = {}
    for shard in shards:
        path = scores_path(shard, out_folder)
        if path in taken:
            problem = f"{taken[path]} and {shard} would both be written to {path}"
            raise ClipsieveError(f"{problem}; rename one, or write them to different folders")
        taken[path] = shard
    return list(taken)


def iter_samples(
    shard: str | os.PathLike[str],
    *,
    file: BinaryIO | None = None,
    start: int = 0,
    max_image_bytes: int = MAX_IMAGE_BYTES,
) -> Iterator[Sample]:
    """The samples of a shard, in order: one for each run of members with the same key.

    Args:
        shard: a tar, which may be gzipped.
        file: where to read it from instead, such as an open file of an object store; need not be seekable.
            `shard` then only names it in messages.
        start: index of the first sample wanted; the images before it are not read.
        max_image_bytes: a larger image is not read and has the error TOO_MANY_BYTES.

    Raises:
        ShardError: not a tar, cut off or damaged. Samples that ended before are given first; the one in
            which the shard breaks off is not, since its other members are unknown.
    """

    def image_from(member: Member, index: int) -> bytes:
        is_wanted = member.is_image or member.may_be_image
        is_read = index >= start and is_wanted and not member.kind and member.size <= max_image_bytes
        return tar.read(member) if is_read else b""

    seen: dict[str, int] = {}
    with _open_tar(shard, file) as tar:
        for group in _groups(tar, image_from):
            first = seen.setdefault(group.key, group.index)
            if group.index >= start:
                yield _sample(group, first, max_image_bytes)


def layout_of(shard: str | os.PathLike[str]) -> Layout:
    """Find the places of a shard's samples; reads only headers, unless it is gzipped.

    Raises:
        ShardError: as for `iter_samples`.
    """
    with _open_tar(shard) as tar:
        spans = tuple(Span(group.key, tuple(group.members)) for group in _groups(tar, lambda member, index: b""))
        return Layout(spans, tuple(tar.common))


def image_among(members: Sequence[Member]) -> Member:
    """The one image of a sample.

    Raises:
        ImageRejected: DUPLICATE_MEMBER, NO_IMAGE, DOTTED_NAME, SEVERAL_IMAGES or NOT_A_FILE.
    """
    names = [member.name for member in members]
    images = [member for member in members if member.is_image] or [each for each in members if each.may_be_image]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ImageRejected("DUPLICATE_MEMBER", f"{twice!r} comes twice")
    if not images and (dotted := [m.name for m in members if m.extension.rpartition(".")[2] in IMAGE_EXTENSIONS]):
        raise ImageRejected(
            "DOTTED_NAME",
            f"a key ends at the first dot of a name, so {', '.join(map(repr, dotted))} "
            f"{'are files' if len(dotted) > 1 else 'is a file'} of the sample {members[0].key!r}, which has no image; "
            "write the shard with names that have one dot",
        )
    if not images:
        raise ImageRejected("NO_IMAGE", f"no {', '.join(IMAGE_EXTENSIONS)} among {', '.join(names[:5])}")
    if len(images) > 1:
        raise ImageRejected("SEVERAL_IMAGES", ", ".join(image.name for image in images[:5]))
    if images[0].kind:
        raise ImageRejected("NOT_A_FILE", f"{images[0].name!r} is {images[0].kind}; only plain files are read")
    return images[0]


@contextmanager
def open_forwards(shard: str | os.PathLike[str], file: BinaryIO | None = None) -> Iterator[ForwardFile]:
    """The bytes of the tar, unpacked if it is gzipped.

    Raises:
        ShardError: it cannot be opened.
    """
    with _open(shard) if file is None else nullcontext(file) as source:
        plain = ForwardFile(source)
        if plain.peek(2) != b"\x1f\x8b":
            yield plain
            return
        with gzip.GzipFile(fileobj=plain) as unpacked:  # type: ignore[arg-type]  # reads forwards only
            yield ForwardFile(unpacked)


class ForwardFile:
    """A binary file that knows where it is and only goes forwards, seekable or not."""

    def __init__(self, source: Any) -> None:
        self._source = source
        self._peeked = b""
        self._position = 0
        self._seekable = bool(source.seekable())

    def peek(self, size: int) -> bytes:
        """The next bytes, which stay the next ones; fewer at the end."""
        self._peeked += self._read_source(size - len(self._peeked))
        return self._peeked[:size]

    def read(self, size: int) -> bytes:
        """Exactly `size` bytes; fewer only at the end."""
        data, self._peeked = self._peeked[:size], self._peeked[size:]
        data += self._read_source(size - len(data))
        self._position += len(data)
        return data

    def tell(self) -> int:
        return self._position

    def seek(self, position: int) -> int:
        ahead = position - self._position
        if ahead < 0:
            raise tarfile.ReadError(f"a header points back to byte {position}")
        if self._seekable and ahead > _CHUNK and not self._peeked:
            self._source.seek(ahead, os.SEEK_CUR)
            self._position = position
        else:
            self._read_past(position)
        return self._position

    def _read_past(self, position: int) -> None:
        while self._position < position and self.read(min(_CHUNK, position - self._position)):
            pass

    def _read_source(self, size: int) -> bytes:
        pieces = []
        while size > 0 and (piece := self._source.read(size)):
            pieces.append(piece)
            size -= len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)


class _HeaderFile:
    """File for tarfile to read headers from, which refuses to read much at once, or a negative size."""

    def __init__(self, file: ForwardFile) -> None:
        self.tell, self.seek = file.tell, file.seek
        self.last = b""
        """The last bytes read: when tarfile finds no more members, the block it took for the end."""
        self._file = file

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _MOST_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {size} bytes; at most {_MOST_HEADER_BYTES} are read")
        self.last = self._file.read(size)
        return self.last


class _Damage(Exception):
    """The shard cannot be read on from here; becomes a ShardError, which counts the samples."""

    after_end = False


class _MoreAfterEnd(_Damage):
    after_end = True


class _Tar:
    """The members of one shard, read forwards."""

    def __init__(self, shard: str | os.PathLike[str], file: ForwardFile) -> None:
        self.shard = shard
        self.common: list[tuple[int, int]] = []
        self._file = file

    def members(self) -> Iterator[Member]:
        """The files that belong to a sample; raises _Damage where the tar is not whole."""
        with self._damage_named():
            headers = _HeaderFile(self._file)
            archive = tarfile.TarFile(fileobj=headers, mode="r")  # type: ignore[arg-type]
            end = 0
            for entry in archive:
                if entry.size < 0:
                    raise tarfile.ReadError(f"a member of {entry.size} bytes")
                if entry.offset > end:
                    self.common.append((end, entry.offset))
                end = archive.offset
                archive.members = []  # type: ignore[assignment]  # tarfile would keep every header
                if (member := _member(entry, end)) is not None:
                    yield member
            self._check_end(headers.last, archive.offset)

    def read(self, member: Member) -> bytes:
        with self._damage_named():
            self._file.seek(member.data)
            data = self._file.read(member.size)
        if len(data) < member.size:
            raise _Damage(f"cut off at byte {self._file.tell()}, within {member.name!r}")
        return data

    def _check_end(self, block: bytes, where: int) -> None:
        if len(block) < _BLOCK:
            raise _Damage(f"cut off at byte {self._file.tell()}")
        if any(block):
            raise _Damage(f"damaged at byte {where} (a bad header)")
        while block := self._file.read(_CHUNK):
            if block.count(0) < len(block):
                raise _MoreAfterEnd(f"more follows the end of the tar at byte {where} (two tars in one file?)")

    @contextmanager
    def _damage_named(self) -> Iterator[None]:
        """Whatever tarfile, gzip or the disk finds wrong with a file from anywhere is damage."""
        try:
            yield
        except _Damage:
            raise
        except Exception as error:
            raise _Damage(self._problem(error)) from error

    def _problem(self, error: Exception) -> str:
        where = self._file.tell()
        if isinstance(error, EOFError) or "unexpected end of data" in str(error):
            return f"cut off at byte {where}"
        if isinstance(error, tarfile.ReadError) and where <= _BLOCK:
            return f"not a tar, nor a gzipped one ({error})"
        return f"damaged at byte {where} ({error})"


@contextmanager
def _open_tar(shard: str | os.PathLike[str], file: BinaryIO | None = None) -> Iterator[_Tar]:
    with open_forwards(shard, file) as opened:
        yield _Tar(shard, opened)


@dataclass
class _Group:
    """The members of one key so far."""

    key: str
    index: int
    members: list[Member] = field(default_factory=list)
    image: bytes = b""
    is_sure: bool = False
    """Whether `image` is in a format that every server takes."""

    def take(self, member: Member, data: bytes) -> None:
        """Keep what may be the sample's image: the first in a format of every server, before any other."""
        if data and (not self.image or (member.is_image and not self.is_sure)):
            self.image, self.is_sure = data, member.is_image


def _groups(tar: _Tar, image_from: Callable[[Member, int], bytes]) -> Iterator[_Group]:
    """Members by key; `image_from` is called when the file stands at the member."""
    group: _Group | None = None
    whole = 0
    damage: _Damage | None = None
    try:
        for member in tar.members():
            if group is None or member.key != group.key:
                if group is not None:
                    whole += 1
                    yield group
                group = _Group(member.key, whole)
            group.members.append(member)
            group.take(member, image_from(member, group.index))
    except _Damage as error:
        damage = error
    if group is not None and (damage is None or damage.after_end):
        whole += 1
        yield group
    if damage is not None:
        problem = f"{damage}, after {whole} whole samples; copy the shard again"
        raise ShardError(tar.shard, problem, whole) from damage.__cause__


def _sample(group: _Group, first: int, max_image_bytes: int) -> Sample:
    try:
        if first != group.index:
            both = f"samples {first} and {group.index} of the shard have the same key"
            raise ImageRejected("DUPLICATE_KEY", both)
        image = image_among(group.members)
        if image.size > max_image_bytes:
            raise ImageRejected("TOO_MANY_BYTES", f"{image.size} bytes; at most {max_image_bytes} are sent")
    except ImageRejected as error:
        return Sample(group.key, group.index, error=error)
    return Sample(group.key, group.index, group.image, image.extension)


def _member(entry: tarfile.TarInfo, end: int) -> Member | None:
    """Read a member; None when it belongs to no sample."""
    folder, slash, base = entry.name.rpartition("/")
    stem, dot, extension = base.partition(".")
    if entry.isdir() or not stem or not dot or _META.match(entry.name):
        return None
    key = f"{folder}{slash}{stem}"
    return Member(
        entry.name, key, extension.lower(), entry.offset, entry.offset_data, entry.size, end, kind=_kind(entry)
    )


def _kind(entry: tarfile.TarInfo) -> str:
    if entry.sparse is not None:
        return "a sparse file"
    return "" if entry.isreg() else _KINDS.get(entry.type, "a special file")


def _open(shard: str | os.PathLike[str]) -> BinaryIO:
    try:
        return open(shard, "rb", opener=_open_without_waiting)
    except (OSError, ValueError) as error:
        raise ShardError(shard, getattr(error, "strerror", None) or str(error)) from error


def _open_without_waiting(path: str, flags: int) -> int:
    """A named pipe is then opened at once, and found empty, instead of waited for."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
