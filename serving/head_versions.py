"""A head's versions in the model repository: which one is served, a new one beside it, and the way back.

<repository>/<head>_head/config.pbtxt           names the version that is served (version_policy)
<repository>/<head>_head/<version>/model.onnx, head.json
<repository>/<head>_head/<version>/rollout.json     what that version replaced; a first version has none

config.pbtxt is the switch: one file, replaced atomically, so that a server started at any moment serves one version
with that version's thresholds.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError
from tritonclient.grpc.model_config_pb2 import ModelConfig  # pyright: ignore[reportAttributeAccessIssue] (generated code)

from common.manifest import HeadManifest, read_head, write_atomically, write_manifest
from common.served_versions import installed_versions, served_versions
from serving.config_text import edited, parsed
from serving.triton_wheel import ServingError


class Replaced(BaseModel):
    """rollout.json: what a version took the place of."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: Literal["rollout"] = "rollout"
    version: int
    config: str
    """The text of config.pbtxt that served it."""


@dataclass(frozen=True)
class Served:
    """The version of a head that the repository serves."""

    folder: Path
    """`<repository>/<head>_head`."""
    version: int
    config: str
    """Text of config.pbtxt, which names `version`."""
    manifest: HeadManifest

    @property
    def model(self) -> str:
        return self.folder.name

    def version_folder(self, version: int | None = None) -> Path:
        return self.folder / str(version or self.version)

    def __str__(self) -> str:
        return f"version {self.version} (revision {self.manifest.revision:016x})"


def read_served(repository: Path, head: str) -> Served:
    """Read the version that the repository serves now.

    Raises:
        ServingError: it has no such head, or serves several versions of it.
        ManifestError: head.json is missing or malformed.
    """
    folder = repository / f"{head}_head"
    path = folder / "config.pbtxt"
    if not path.is_file() or not installed_versions(folder):
        raise ServingError(f"{folder}: no head is installed here; install the repository with: make engines")
    text = path.read_text(encoding="utf-8")
    version = _only_version(folder, parsed(text, path))
    return Served(folder, version, edited(text, version, {}, path), read_head(folder / str(version)))


def _only_version(folder: Path, config: ModelConfig) -> int:
    versions = served_versions(folder, config)
    if len(versions) != 1:
        policy = " ".join(str(config.version_policy).split())
        raise ServingError(
            f"{folder / 'config.pbtxt'}: version_policy is {policy}, which serves the versions {versions} of "
            f"{installed_versions(folder)}; a rollout needs one that serves a single version"
        )
    return versions[0]


def write_config(served: Served, text: str) -> None:
    """Throw the switch, for servers that load the model from now on."""
    write_atomically(served.folder / "config.pbtxt", text.encode())


def add_version(served: Served, source: Path, version: int) -> Path:
    """Copy a built head into the directory of a new version, which is not served yet; the directory.

    Raises:
        OSError: the copy failed; nothing is left of it.
    """
    write_config(served, served.config)  # with no version named there, the newest directory would be served
    target = served.version_folder(version)
    with tempfile.TemporaryDirectory(dir=served.folder, prefix=".partial-") as partial:
        fresh = Path(partial) / target.name
        fresh.mkdir()
        for path in [*source.glob("model.onnx*"), source / "head.json"]:
            shutil.copy(path, fresh)
        write_manifest(Replaced(version=served.version, config=served.config), fresh / "rollout.json")
        fresh.rename(target)
    return target


def read_replaced(served: Served) -> Replaced:
    """Read the version that the served one replaced.

    Raises:
        ServingError: nothing, or it is no longer there.
    """
    path = served.version_folder() / "rollout.json"
    if not path.is_file():
        raise ServingError(f"{served.model}: {served} replaced no other; there is nothing to roll back to")
    try:
        replaced = Replaced.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise ServingError(f"{path}: not a record of a rollout ({error.errors()[0]['msg']})") from error
    if not served.version_folder(replaced.version).is_dir():
        raise ServingError(f"{served.version_folder(replaced.version)}: not found; version {replaced.version} is gone")
    return replaced


@contextlib.contextmanager
def only_rollout(folder: Path) -> Iterator[None]:
    """Hold the model's folder against other rollouts.

    Raises:
        ServingError: one is under way, or there is no such folder.
    """
    if not folder.is_dir():
        raise ServingError(f"{folder}: no head is installed here; install the repository with: make engines")
    handle = os.open(folder, os.O_RDONLY)
    try:
        _lock(handle, folder)
        yield
    finally:
        os.close(handle)


def _lock(handle: int, folder: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ServingError(f"{folder}: another rollout of this head is under way; wait until it ends") from error
