"""Errors of files that cannot be written: they name the file, say why and what to do, and come before long work."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from recipes.errors import writing_remedy


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Code that writes a file, or into a folder.

    Raises:
        OSError: with the path as its `filename`, whichever partial file failed, and the remedy in its text.
    """
    try:
        yield
    except OSError as error:
        problem = f"cannot be written ({error.strerror or error}); {writing_remedy(error.errno)}"
        raise OSError(error.errno, problem, str(path)) from error


def check_writable(folder: Path) -> None:
    """Try a folder that results will be written into, before the work that leads to them; nothing is left there.

    Raises:
        OSError: nothing can be written there.
    """
    with writing(folder):
        made = [place for place in (folder, *folder.parents) if not place.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder, prefix=".writable-") as file:
            file.write(bytes(4096))
        with contextlib.suppress(OSError):  # somebody has begun to use it
            for place in made:
                place.rmdir()
