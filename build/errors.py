"""What a build step stops with. Every message says what was wrong, the value found and what to do."""

from __future__ import annotations

from recipes.errors import ExpectedError


class BuildError(ExpectedError):
    """Nothing was installed."""


class ParityError(BuildError):
    """What would be served is not what the model's authors would compute."""


class PrecisionError(BuildError):
    """The ONNX file cannot be had in this precision."""


class GraphError(BuildError):
    """An exported graph is not one that every promised runtime computes rightly."""
