"""Small changes to a config.pbtxt as text, which keep its comments; each is checked by parsing the result."""

from __future__ import annotations

import re
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import (  # generated code
    ModelConfig,  # pyright: ignore[reportAttributeAccessIssue]
    ModelParameter,  # pyright: ignore[reportAttributeAccessIssue]
)

from common.model_config import ConfigError, parse_config
from serving.triton_wheel import ServingError

_POLICY = re.compile(r"^version_policy\s*:?\s*\{(?:[^{}]|\{[^{}]*\})*\}", re.MULTILINE)


def parsed(text: str, path: Path) -> ModelConfig:
    """The config in protobuf.

    Raises:
        ServingError: it does not parse.
    """
    try:
        return parse_config(text, path)
    except ConfigError as error:
        raise ServingError(str(error)) from error


def edited(text: str, version: int | None, parameters: dict[str, str], path: Path) -> str:
    """The config with `version`, if any, as the one that is served, and these parameters, new or in place of the old.

    Raises:
        ServingError: the text is written in a way that cannot be edited.
    """
    expected = parsed(text, path)
    if version is not None:
        expected.version_policy.specific.versions[:] = [version]
    for key, value in parameters.items():
        expected.parameters[key].string_value = value
    result = text if version is None else _with_version(text, version)
    for key, value in parameters.items():
        result = _with_parameter(result, key, value)
    if parsed(result, path) != expected:
        raise ServingError(f"{path}: cannot be edited safely; write it again with: make engines")
    return result


def _with_version(text: str, version: int) -> str:
    line = f"version_policy: {{ specific: {{ versions: [ {version} ] }} }}"
    changed, count = _POLICY.subn(line, text)
    return changed if count else f"{text.rstrip()}\n{line}\n"


def _with_parameter(text: str, key: str, value: str) -> str:
    quoted = text_format.MessageToString(ModelParameter(string_value=value), as_utf8=True, as_one_line=True).strip()
    old = re.compile(rf'(key:\s*"{re.escape(key)}"\s*value\s*\{{\s*)string_value:\s*"(?:[^"\\\n]|\\.)*"')
    changed, count = old.subn(lambda match: match[1] + quoted, text)
    return changed if count else f'{text.rstrip()}\nparameters {{ key: "{key}" value {{ {quoted} }} }}\n'
