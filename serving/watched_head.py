"""Updates a head's watch after a rollout: it compares scores with the training of the version that serves now."""

from __future__ import annotations

from pathlib import Path

from common.manifest import HeadManifest, write_atomically
from common.score_watch.parameters import PARAMETER, with_training_of
from serving.config_text import edited, parsed
from serving.model_control import ControlledServer
from serving.triton_wheel import ServingError


def update_watch(repository: Path, head: HeadManifest, server: ControlledServer) -> None:
    """Write what the watch knows of the head into its config, and load it; nothing where no watch is installed.

    Its counters begin again at 0 then, as at a restart.

    Raises:
        ServingError: it does not load; its config is as it was.
    """
    path = repository / f"{head.name}_watch" / "config.pbtxt"
    if not path.is_file():
        return
    before = path.read_text(encoding="utf-8")
    text = watched_text(before, head, path)
    if text == before:
        return
    write_atomically(path, text.encode())
    try:
        server.load(path.parent.name)
    except ServingError:
        write_atomically(path, before.encode())
        raise


def watched_text(text: str, head: HeadManifest, path: Path) -> str:
    """The watch's config for another version of its head."""
    watched = parsed(text, path).parameters[PARAMETER].string_value
    return edited(text, None, {PARAMETER: with_training_of(watched, head)}, path)
