"""Setting of a growth run: repositories with copies of the recipe's first head, and the server most parts share."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from benchmarks.growth.head_copies import with_head_copies
from benchmarks.growth.load import best_concurrency
from benchmarks.growth.photographs import photographs
from benchmarks.growth.rounds import say
from build.repository import install
from common.manifest import read_encoder
from common.paths import encoder_folder
from recipes.schema import Recipe
from serving.embedded import EmbeddedServer, ServerSettings

MEGAPIXELS = 0.3
"""Size of the pictures in the parts that do not vary it."""


@dataclass(frozen=True)
class Settings:
    seconds: float
    """Length of each measurement."""
    rounds: int


class Scene:
    """A context manager that ends the server it started.

    Raises:
        ManifestError: on entering: the recipe's encoder or head is not built.
    """

    def __init__(self, recipe: Recipe, folder: Path, settings: Settings) -> None:
        self.recipe, self.folder, self.settings = recipe, folder, settings
        self._stack = ExitStack()

    def __enter__(self) -> Scene:
        self._install(1)
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    @cached_property
    def server(self) -> EmbeddedServer:
        """The server with one head, which most parts share."""
        return self._stack.enter_context(self.serve(1))

    @cached_property
    def concurrency(self) -> int:
        """Pictures in flight at which that server does about all it can."""
        seconds = self.settings.seconds / 2
        concurrency = best_concurrency(self.server.grpc_url, self.heads(1), photographs(MEGAPIXELS), seconds)
        say(f"{concurrency} pictures at once are the fewest with the best throughput")
        return concurrency

    @property
    def decode(self) -> str:
        """`exact` or `scaled`, as the encoder was built."""
        return read_encoder(encoder_folder(self.recipe)).preprocessing[0].decode

    def heads(self, count: int) -> list[str]:
        """Names of the first `count` heads."""
        return [head.name for head in self._recipe(count).heads]

    def serve(self, heads: int) -> EmbeddedServer:
        """Returns a server of this repository, not started yet."""
        say(f"a server with {heads} {'head' if heads == 1 else 'heads'}")
        log = self.folder / f"tritonserver-{heads}.log"
        return EmbeddedServer(self._install(heads), ServerSettings.on_free_ports(log))

    def _recipe(self, heads: int) -> Recipe:
        return with_head_copies(self.recipe, heads, self.folder / "heads")

    def _install(self, heads: int) -> Path:
        """A model repository with so many heads; the encoder's file is the same one in all of them."""
        target = self.folder / f"models-{heads}"
        if not target.exists():
            install(self._recipe(heads), target, engine="onnx")
            for path in (target / "clip_encoder" / "1").glob("model.onnx*"):
                _keep_one_copy(path, self.folder / path.name)
        return target


def _keep_one_copy(path: Path, shared: Path) -> None:
    """Both names are of one file: that of the first call."""
    if not shared.exists():
        os.link(path, shared)
        return
    path.unlink()
    os.link(shared, path)
