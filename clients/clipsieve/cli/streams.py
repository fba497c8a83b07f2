"""The standard streams as a command may be given them: closed, full, or of a terminal that knows ASCII alone."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
from collections.abc import Callable

from clipsieve.cli.options import FAILURE

_WAYS = (("stdin", os.O_WRONLY), ("stdout", os.O_RDONLY), ("stderr", os.O_RDWR))
"""The way in which a closed one is opened again: stdin and stdout then fail as closed ones do, stderr says nothing."""


def run_command(name: str, command: Callable[[], object]) -> None:
    """Run a command line; a stream that cannot be used is one line on stderr and status 1, not a traceback.

    Args:
        name: of the command, for the message.
        command: exits by itself.
    """
    _open_closed_ones()
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors in ("strict", "surrogateescape"):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        try:
            command()
        except SystemExit as ended:
            if ended.code:  # it has said why
                _flush_what_goes()
                raise
            sys.stdout.flush()
            raise
    except BrokenPipeError:
        _stop_writing()
        raise SystemExit(FAILURE) from None
    except OSError as error:
        _stop_writing()
        named = f"{error.filename}: " if error.filename else _stream_of(error)
        print(f"{name}: {named}{error.strerror or error}", file=sys.stderr)
        raise SystemExit(FAILURE) from None


def _open_closed_ones() -> None:
    """Take the places of closed streams, so that no file that is opened later gets one and is written into."""
    for place, (name, way) in enumerate(_WAYS):
        if getattr(sys, name) is not None:
            continue
        opened = os.open(os.devnull, way)
        if opened != place:
            os.dup2(opened, place)
            os.close(opened)
        mode = "r" if name == "stdin" else "w"
        setattr(sys, name, os.fdopen(place, mode, encoding="utf-8", closefd=False))


def _flush_what_goes() -> None:
    try:
        sys.stdout.flush()
    except OSError:
        _stop_writing()


def _stop_writing() -> None:
    """Have the interpreter's last flush go nowhere."""
    with contextlib.suppress(OSError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())


def _stream_of(error: OSError) -> str:
    return "standard input or output: " if error.errno in (errno.EBADF, errno.EIO) else "standard output: "
