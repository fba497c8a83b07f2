"""The root of every expected error, and what a command says and returns when one ends it.

ExpectedError
├── RecipeError, OverrideError                                                a recipe, and values of it
├── ManifestError, ConfigError, ProofFileError, DownloadError                 what steps hand to one another
├── StepError, LabelError                                                     training
├── BuildError and its kinds, EngineError, PlanError, RepositoryError         build
└── ServingError and its kinds, PrometheusError                               serving

It lies here because recipes/ is what every other folder may import. Any other exception is a bug: it ends a command
with its traceback.
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import io
import os
import signal
import sys
import threading
from collections.abc import Callable

_ROOM = "make room there, or name another place (CLIPSIEVE_ARTIFACTS is the folder of all artefacts)"
_ELSEWHERE = "name a place where this user may write"
_REMEDIES = {
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: _ROOM,
    errno.EFBIG: "the size of a file is limited here; lift the limit (ulimit -f), or name another place",
    errno.EROFS: _ELSEWHERE,
    errno.EACCES: _ELSEWHERE,
    errno.EPERM: _ELSEWHERE,
    errno.ENAMETOOLONG: "name a shorter path",
    errno.ENOTDIR: "a file lies where a folder should be; name another place",
    errno.EEXIST: "a file lies where a folder should be; name another place",
}
_DISK_IS_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}
"""Nobody's bug either; writing to an open file reports them without its name."""


class ExpectedError(Exception):
    """A command cannot go on, and it is no bug: the message says what is wrong, the value found and what to do."""


def run_step(name: str, step: Callable[[], int | None], interrupted: str | None = None) -> int:
    """Run a command; the exit status. An expected error is one message on stderr and status 1.

    Args:
        name: what `python -m` calls it; begins the message.
        step: its `main`; None, which it may return, is status 0.
        interrupted: what is kept when it is interrupted, which is then a message and status 130, not a traceback. A
            second interruption while it cleans up ends the process.
    """
    _print_anything()
    if interrupted is not None:
        _end_at_once_on_the_second_interrupt(name)
    try:
        status = step() or 0
        with contextlib.suppress(BrokenPipeError):  # nobody reads on
            sys.stdout.flush()  # here, so that a full disk behind it is an error like any other
        return status
    except ExpectedError as error:
        message, status = str(error), 1
    except OSError as error:
        if error.filename is None and error.errno not in _DISK_IS_FULL:
            raise
        message, status = _os_error_text(error), 1
    except UnicodeEncodeError as error:
        if not any("\ud800" <= letter <= "\udfff" for letter in error.object):
            raise
        message = (
            f"{error.object!r}: a library here takes no name that is not UTF-8; rename it, or a folder of its path"
        )
        status = 1
    except KeyboardInterrupt:
        if interrupted is None:
            raise
        message, status = interrupted, 130
    print(f"{name}: {message}", file=sys.stderr)
    return status


def _end_at_once_on_the_second_interrupt(name: str) -> None:
    """Set what Ctrl-C does, unless somebody has set it, or the process shall not hear of it."""
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    ):
        return

    def end_at_once(number: int, frame: object) -> None:
        os.write(sys.stderr.fileno(), f"\n{name}: ended at once\n".encode())
        os._exit(130)  # what is written is whole; threads and exit handlers would be waited for

    def interrupt(number: int, frame: object) -> None:
        signal.signal(signal.SIGINT, end_at_once)
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupt)


def _print_anything() -> None:
    """Let stdout carry names that are not UTF-8, as the bytes that they are, and any text where it is ASCII alone.

    Whoever closed a stream does not want to read it.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 (open to the end)
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors in ("strict", "surrogateescape"):
        is_utf8 = codecs.lookup(sys.stdout.encoding).name == "utf-8"
        sys.stdout.reconfigure(errors="surrogateescape" if is_utf8 else "backslashreplace")


def writing_remedy(number: int | None) -> str:
    """What a person can do about an `errno` of a file that cannot be written."""
    return _REMEDIES.get(number or 0, "name another place")


def _os_error_text(error: OSError) -> str:
    """`a.json: Permission denied`; of two files, as for a rename, both; without a file what to do about a full disk."""
    files = [str(name) for name in (error.filename, error.filename2) if name is not None]
    if not files:
        return f"a file cannot be written ({error.strerror}); {writing_remedy(error.errno)}"
    return f"{' → '.join(files)}: {error.strerror or error}"
