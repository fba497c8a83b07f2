"""config.pbtxt as protobuf, with an error that says where the text is wrong."""

from __future__ import annotations

from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig  # pyright: ignore[reportAttributeAccessIssue] (generated code)

from recipes.errors import ExpectedError


class ConfigError(ExpectedError):
    """A config.pbtxt does not parse."""


def read_config(path: Path) -> ModelConfig:
    """The config in a file; raises as `parse_config`."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start}); {_REMEDY}") from error
    return parse_config(text, path)


def parse_config(text: str, path: Path) -> ModelConfig:
    """The config in a text, of which `path` is only named.

    Raises:
        ConfigError: an unknown field, or no config at all; with the line and the column.
    """
    try:
        return text_format.Parse(text, ModelConfig())
    except text_format.ParseError as error:
        raise ConfigError(f"{path}:{_place_and_reason(error)}; {_REMEDY}") from error


_REMEDY = "correct it there or, where a build has written it, have it written again: make engines"


def _place_and_reason(error: text_format.ParseError) -> str:
    """`3:1: Message type "inference.ModelConfig" has no field named "max_batch"`."""
    line, column = error.GetLine(), error.GetColumn()
    if line is None or column is None:
        return f" {error}"
    reason = str(error).removeprefix(f"{line}:{column} : ").removesuffix(".")
    return f"{line}:{column}: {reason}"
