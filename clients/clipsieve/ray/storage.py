"""Files by name, wherever they lie: a local path, or an address such as `s3://bucket/photos/a.jpg`.

`s3://` and `gs://` are read by pyarrow, with its options after a `?` (`s3://bucket/x?endpoint_override=host:9000`),
every other scheme by fsspec and the package it wants for it. What follows the scheme is the name as it is stored:
a space is a space and not `%20`. `file:///a/b` is the path `/a/b`.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from clipsieve.exceptions import InputRefused
from clipsieve.inputs import Inputs, is_wanted
from clipsieve.partial import sync_folder
from clipsieve.passed_over import PassedOver, reason_to_pass_over

if TYPE_CHECKING:
    from pyarrow import NativeFile
    from pyarrow.fs import FileSystem

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_OPTIONS = re.compile(r"\?[a-z_]+=[^?*]*$")
_BUCKETS = ("s3://", "gs://")
_WILD = re.compile(r"[*?\[]")
TEMPORARY = re.compile(r"\..+\.[0-9a-f]{32}\.tmp")
"""Name of a file that is being written."""


def is_remote(name: str) -> bool:
    scheme = _SCHEME.match(name)
    return scheme is not None and scheme[1] != "file"


def local_path(name: str) -> str:
    """The path of what is not remote."""
    return name.removeprefix("file://")


def locate(name: str) -> tuple[FileSystem, str]:
    """The file system and the path in it.

    Raises:
        InputRefused: no file system for that scheme, or it wants a package or an account that is not there.
    """
    from pyarrow.fs import FSSpecHandler, LocalFileSystem, PyFileSystem

    if not is_remote(name):
        return LocalFileSystem(), os.path.abspath(local_path(name))
    try:
        if name.startswith(_BUCKETS):
            body, options = _without_options(name)
            path = body.partition("://")[2]
            return _bucket(name.partition("://")[0], path.partition("/")[0], options), path
        import fsspec

        filesystem, path = fsspec.core.url_to_fs(name)
        return PyFileSystem(FSSpecHandler(filesystem)), path
    except (ImportError, OSError, ValueError) as error:
        raise InputRefused(f"{name} cannot be reached: {error}") from None


def joined(folder: str, name: str) -> str:
    """The name of a file in a folder; options stay at the end."""
    body, options = _without_options(folder)
    return f"{body.rstrip('/')}/{name}{options}"


def file_names(folder: str) -> list[str]:
    """Base names of the files in a folder; none when there is no such folder."""
    from pyarrow.fs import FileSelector

    filesystem, path = locate(folder)
    entries = filesystem.get_file_info(FileSelector(path, allow_not_found=True))
    return [entry.base_name for entry in entries if entry.is_file]


def files_below(name: str, inputs: Inputs) -> Iterator[str]:
    """Sorted names of the remote files that are meant: the one of that name, those in a folder, or of `a/**/*.png`.

    A folder's whole listing is held in memory. What does not exist is yielded too: reading it makes an error row.

    Args:
        inputs: which files of a folder are taken; it counts what the folder holds besides.

    Raises:
        InputRefused: the storage does not answer, or nothing matches.
    """
    body, options = _without_options(name)
    wild = _WILD.search(body)
    base = (body if wild is None else body[: body.rindex("/", 0, wild.start())]).rstrip("/")
    filesystem, top = locate(base + options)
    paths = _listed(filesystem, top, name)
    if wild is not None:
        expression = re.compile(_glob_expression(body[len(base) + 1 :]))
        paths = [path for path in paths if expression.fullmatch(os.path.relpath(path, top))]
        if not paths:
            raise InputRefused(f"no file matches {name!r}")
    elif paths != [top]:
        listed, paths = paths, []
        for path in listed:
            if (kind := _kind_passed_over(os.path.relpath(path, top), inputs)) is None:
                paths.append(path)
            else:
                inputs.passed_over.add(kind)
    root = base[: -len(top)] if base.endswith(top) else f"{base.partition('://')[0]}://"
    for path in paths:
        yield f"{root}{path}{options}"


class RemoteImage:
    """A file object that opens what it reads when it is read, in the client's own threads."""

    def __init__(self, name: str) -> None:
        self._name = name

    def read(self, size: int = -1) -> bytes:
        """Raises OSError."""
        try:
            with opened(self._name) as file:
                return read_up_to(file, size)
        except Exception as error:  # file systems have exceptions of their own; all mean that this image is unreadable
            raise OSError(getattr(error, "strerror", None) or str(error) or type(error).__name__) from None


def opened(name: str) -> NativeFile:
    """A file to read forwards; a context manager."""
    filesystem, path = locate(name)
    return filesystem.open_input_stream(path, compression=None)


def read_up_to(file: Any, size: int) -> bytes:
    """Read that many bytes, or all; fewer only at the end."""
    if size < 0:
        return file.read()
    pieces = []
    while size > 0 and (piece := file.read(size)):
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)


@contextmanager
def fetched(name: str) -> Iterator[str]:
    """A local copy, with the same suffix, for as long as it is used.

    Raises:
        InputRefused: it cannot be read.
    """
    with tempfile.TemporaryDirectory(prefix="clipsieve-") as folder:
        copy = os.path.join(folder, f"list{os.path.splitext(name)[1]}")
        try:
            with opened(name) as file, open(copy, "wb") as local:
                while piece := file.read(1 << 20):
                    local.write(piece)
        except OSError as error:
            raise InputRefused(f"{name} cannot be read: {error}") from None
        yield copy


@contextmanager
def whole_file(name: str) -> Iterator[Any]:
    """A file to write that gets its name when it is complete, and on disk; when the work fails there is none.

    It is written beside it under another name: closing an unfinished upload could publish it.
    """
    filesystem, path = locate(name)
    folder, _, base = path.rpartition("/")
    temporary = f"{folder}/.{base}.{uuid4().hex}.tmp"
    try:
        with filesystem.open_output_stream(temporary, compression=None) as file:
            yield file
        if not is_remote(name):
            sync_folder(temporary)
        _move(filesystem, temporary, path)
        if not is_remote(name):
            sync_folder(folder)
    except BaseException:
        with suppress(OSError):
            filesystem.delete_file(temporary)
        raise


def _without_options(name: str) -> tuple[str, str]:
    """The name, and the options of a bucket with their question mark."""
    options = _OPTIONS.search(name) if name.startswith(_BUCKETS) and is_remote(name) else None
    return (name, "") if options is None else (name[: options.start()], name[options.start() :])


@lru_cache(maxsize=64)
def _bucket(scheme: str, bucket: str, options: str) -> FileSystem:
    from pyarrow.fs import FileSystem

    return FileSystem.from_uri(f"{scheme}://{bucket}{options}")[0]


def _listed(filesystem: FileSystem, path: str, name: str) -> list[str]:
    from pyarrow.fs import FileSelector, FileType

    try:
        if filesystem.get_file_info(path).type != FileType.Directory:
            return [path]
        entries = filesystem.get_file_info(FileSelector(path, recursive=True))
    except Exception as error:  # as for images
        raise InputRefused(f"{name} cannot be listed: {error}") from None
    return sorted(entry.path for entry in entries if entry.is_file)


def _kind_passed_over(inside: str, inputs: Inputs) -> str | None:
    """The kind of a file that is not taken; None for one that is."""
    folder, name = os.path.split(inside)
    if inputs.pattern is None and (reason := next(filter(None, map(reason_to_pass_over, inside.split("/"))), None)):
        return reason
    return None if is_wanted(name, inputs, folder) else PassedOver.kind_of(name, inputs.pattern)


def _glob_expression(pattern: str) -> str:
    """`*` stays within a folder, `**/` is any number of folders."""
    pieces = re.split(r"(\*\*/|\*\*|\*|\?|\[[^\]]+\])", pattern)
    expressions = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return "".join(
        expressions.get(piece)
        or (f"[{piece[1:-1].replace('!', '^', 1)}]" if piece.startswith("[") else re.escape(piece))
        for piece in pieces
    )


def _move(filesystem: FileSystem, source: str, target: str) -> None:
    handler: Any = getattr(filesystem, "handler", None)
    if handler is None:
        filesystem.move(source, target)
        return
    from fsspec import AbstractFileSystem

    if type(handler.fs).mv is not AbstractFileSystem.mv:  # a rename of its own
        handler.fs.mv(source, target)
    else:  # the inherited one takes a `?` or `[` in a name for a pattern
        handler.fs.cp_file(source, target)
        handler.fs.rm_file(source)
