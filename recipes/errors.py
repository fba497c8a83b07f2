"""The root of every expected error, and what a command says and returns when one ends it.

ExpectedError
├── RecipeError, ManifestError, ConfigError, ProofFileError, DownloadError    what steps hand to one another
├── StepError, LabelError                                                     training
├── BuildError and its kinds, EngineError, PlanError, RepositoryError         build
└── ServingError and its kinds, PrometheusError                               serving

It lies here because recipes/ is what every other folder may import. Any other exception is a bug: it ends a command
with its traceback.
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable

_DISK_IS_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
"""Nobody's bug either; writing to an open file reports them without its name."""


class ExpectedError(Exception):
    """A command cannot go on, and it is no bug: the message says what is wrong, the value found and what to do."""


def run_step(name: str, step: Callable[[], int | None], interrupted: str | None = None) -> int:
    """Run a command; the exit status. An expected error is one message on stderr and status 1.

    Args:
        name: what `python -m` calls it; begins the message.
        step: its `main`; None, which it may return, is status 0.
        interrupted: what is kept when it is interrupted, which is then a message and status 130, not a traceback.
    """
    try:
        return step() or 0
    except ExpectedError as error:
        message, status = str(error), 1
    except OSError as error:
        if error.filename is None and error.errno not in _DISK_IS_FULL:
            raise
        message, status = _os_error_text(error), 1
    except KeyboardInterrupt:
        if interrupted is None:
            raise
        message, status = interrupted, 130
    print(f"{name}: {message}", file=sys.stderr)
    return status


def _os_error_text(error: OSError) -> str:
    """`a.json: Permission denied`; of two files, as for a rename, both."""
    files = [str(name) for name in (error.filename, error.filename2) if name is not None]
    return ": ".join([*([" → ".join(files)] if files else []), error.strerror or str(error)])
