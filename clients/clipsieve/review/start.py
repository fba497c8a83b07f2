"""What a review begins with: where its answers go, and which pictures it has."""

from __future__ import annotations

import subprocess
from pathlib import Path

from clipsieve.exceptions import InputRefused, ToolchainFailed
from clipsieve.review.pictures import Pictures, pictures_in_folder, pictures_in_table
from clipsieve.review.toolchain import Toolchain, reason, scores_file


def is_store(folder: Path) -> bool:
    """Return True for an embedding store of the toolchain."""
    return folder.is_dir() and any(folder.glob("part-*.parquet"))


def answers_folder(reviewed: Path | None, out: Path | None) -> Path:
    """The folder of the answers: the one that was named, else that of the pictures or of the table.

    Raises:
        InputRefused: there is no such input, or nobody named a folder where the pictures are those of a store.
    """
    if reviewed is not None and not reviewed.exists():
        raise InputRefused(f"there is no {reviewed}; name a folder of pictures or a table of scores")
    if out is not None:
        return out
    if reviewed is None or is_store(reviewed):
        raise InputRefused("name the folder of the answers with --out: the pictures are those of an embedding store")
    return reviewed if reviewed.is_dir() else reviewed.parent


def pictures_of(reviewed: Path | None, images: Path, folder: Path, toolchain: Toolchain | None) -> tuple[Pictures, str]:
    """The pictures, and what was passed over.

    Args:
        reviewed: a folder, a table, or an embedding store; None is that of the recipe.
        images: folder that a table's relative paths start from.
        folder: of the answers, where the scores of a store are written.
        toolchain: reads the store.

    Raises:
        InputRefused: there are no pictures.
        ToolchainFailed: the store cannot be read.
    """
    if reviewed is None or is_store(reviewed):
        return _pictures_of_store(folder, toolchain), ""
    if not reviewed.is_dir():
        return pictures_in_table(reviewed, images), ""
    pictures, note = pictures_in_folder(reviewed)
    earlier = scores_file(folder)
    if earlier.is_file():  # of the last training
        count = len(pictures)
        pictures.take(pictures_in_table(earlier, Path()), only_known=True)
        assert len(pictures) == count
    return pictures, note


def _pictures_of_store(folder: Path, toolchain: Toolchain | None) -> Pictures:
    if toolchain is None:
        raise InputRefused("name what to review: a folder, a table of scores, or the store of a --recipe")
    out = scores_file(folder).resolve()
    ended = subprocess.run(
        toolchain.score_command(out), cwd=toolchain.root, capture_output=True, text=True, check=False
    )
    if ended.returncode:
        raise ToolchainFailed(reason(ended.stderr))
    return pictures_in_table(out, Path())
