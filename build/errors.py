"""Errors that end a build step. Every message says what was wrong, the value found and what to do."""

from __future__ import annotations

from recipes.errors import ExpectedError

INTERRUPTED = "interrupted; nothing half-made was installed, run the same command again"
"""Message of a step that Ctrl-C ends."""


class BuildError(ExpectedError):
    """A build step failed and installed nothing."""


class ParityError(BuildError):
    """The served file does not compute what the model's authors compute."""


class PrecisionError(BuildError):
    """The ONNX file cannot be converted to this precision."""


class GraphError(BuildError):
    """An exported graph is not one that every promised runtime computes rightly."""
