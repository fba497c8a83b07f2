"""The embedded server started by another command, such as prlimit, or with more in its environment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from serving.embedded import EmbeddedServer, ServerSettings
from serving.triton_wheel import TritonWheel


class PrefixedServer(EmbeddedServer):
    """Arguments: the repository, `ServerSettings` but for the ports, which are free ones; and

    prefix: a command that ends by running the command that follows it, in the same process.
    environment: variables beside those of the embedded server.
    """

    def __init__(
        self,
        repository: Path,
        *,
        log_path: Path,
        prefix: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        **options: Any,
    ) -> None:
        settings = ServerSettings.on_free_ports(log_path, **options)
        super().__init__(repository, settings)
        self._prefix = list(prefix)
        self._more_environment = dict(environment or {})

    def _command(self, wheel: TritonWheel, folder: Path) -> list[str]:
        return self._prefix + super()._command(wheel, folder)

    def _environment(self, wheel: TritonWheel) -> dict[str, str]:
        return super()._environment(wheel) | self._more_environment
